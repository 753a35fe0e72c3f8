"""What every algorithm owes: one generic test over a wide grid of problems, for ours,
the peers' and any newcomer's alike.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest

from algos import Algorithm, ConvSpec, algorithms, get
from algos.contract import ACCURACIES, FAMILIES
from algos.engine.memory import rooms
from algos.engine.target import simd
from algos.lower.tree import plain
from algos.plans import prepared
from bench.check import check
from bench.data import operands
from tests.conftest import HUNG_S
from tests.covering import Trait, code_of, covered, covering, traits

GRID = [
    "1x1x1x1,1x1x1x1",
    "1x1x1x40,1x1x1x5,p0x2",  # one row
    "1x1x40x1,1x1x5x1,p2x0",  # one column
    "1x1x9x8,1x1x9x8",  # kernel = image
    "1x1x20x21,1x1x3x3,p1",
    "1x1x20x21,1x1x5x4",  # even kernels
    "1x1x33x70,1x1x15x15,p7",
    "1x1x3x300,1x1x3x9,p1x4",  # wide
    "1x1x300x3,1x1x9x3,p4x1",  # tall
    "1x1x40x2500,1x1x3x3,p1",  # wider than a block
    "2x3x23x101,2x3x5x4,p3:2x2:1",  # sums over channels in blocks that end inside a vector
    "1x2x37x150,2x2x7x19,p3x9,rank2",
    "1x1x41x130,1x1x1x31,p0x15,rank1",
    "1x1x70x67,1x1x21x70,p10x40,rank1,float64",
    "1x1x12x12,1x1x5x5,pfull",
    "1x1x9x9,1x1x3x3,p9:0",  # borders wider than the kernel
    "1x1x20x20,1x1x9x9,p0:63",
    "1x1x20x20,1x1x5x5,p4:1x0:2,s3",
    "1x1x17x19,1x1x2x2,s5x4",  # stride > kernel: some input is never read
    "1x1x23x23,1x1x3x3,d4,p4",
    "1x1x23x24,1x1x3x4,s2x3,d3x2,p3",
    "1x1x64x64,1x1x7x7,p3,rank1",
    "1x1x30x31,1x1x5x6,p2,rank2",
    "2x3x15x14,2x3x5x5,p1:2x2:1,s2,rank1",
    "2x3x20x21,3x1x5x4,p2:1,rank1",
    "2x4x12x11,4x1x5x3,p2x1,d2,rank2,float64",
    "2x3x9x10,4x3x3x3,p1",
    "2x3x9x10,4x3x3x3,p1,float64",
    "1x5x8x7,3x5x1x1",
    "1x5x8x7,3x5x1x1,s2",
    "2x8x6x6,16x8x1x1,float64",
    "1x1x10x10,7x1x3x3,p1",  # one input channel
    "1x7x10x10,1x7x3x3,p1",  # one output channel
    "2x4x9x10,6x2x3x2,s2x1,p1:0x2:1,d1x2",
    "1x6x11x9,9x2x3x3,p1",  # three groups
    "2x8x13x12,8x1x3x3,p1",  # depthwise
    "1x4x12x12,12x1x3x3,s2,p1",  # depthwise with a multiplier
    "1x6x10x9,6x1x5x5,p2,float64",
    "1x4x1x37,8x1x3x3,p1",  # depthwise: one row, one column, wide and tall, with remainders of any vector
    "1x4x37x1,4x1x3x3,p1,s2",
    "1x3x5x112,3x1x3x3,p1",
    "2x3x61x6,3x1x5x3,p2x1,s2",
    "2x3x19x35,6x1x3x3,p0:1,s2,float64",
    "3x5x7x7,5x1x3x3,p1",
    "1x3x15x14,3x1x7x7,p3",
    "1x3x21x40,3x1x3x3,p2,d2,s2",
    "1x2x13x20,4x1x3x3,p1,s1x3",
    "1x2x9x190,4x1x5x4,p2:1,s3",  # whole vectors inside the row
    "1x2x14x270,2x1x4x5,p0x3,s2x4,d1x3",
    "1x3x9x150,3x1x3x5,p1,s3,float64",
    "2x3x33x47,6x1x3x4,p9x4,s5x1,d7x5",  # strides and dilations beyond those that are written into code
    "1x3x29x41,3x1x3x3,p12,d12,s2,float64",
    "1x2x8x9,4x1x3x3,p1,s999999999999999999",
    "3x16x14x14,16x16x3x3,p1",
    "2x12x19x10,10x6x3x1,p1x0",  # one axis
    "1x12x1x3000,8x12x1x3,p0x2:1",
    "1x64x14x14,16x64x3x3,p1",
    "1x300x3x3,7x300x1x1",  # channels in pieces, outputs beside a block
    "2x514x5x7,10x257x1x1",
    "1x300x9x10,7x300x1x1,float64",
    "2x3x31x33,8x3x7x7,s2,p3",
    "1x2x9x9,3x2x3x3,p1,reflect",
    "1x2x9x9,3x2x3x3,p1:2,replicate",
    "1x2x9x9,3x2x5x4,p1x3,circular",
    "1x2x9x9,3x2x3x3,p2,symmetric",
    "1x2x9x9,3x2x3x3,p2,constant:0.7",
    "1x2x9x9,3x2x5x4,p2:1x1:0,flip",
    "0x3x9x10,4x3x3x3,p1",
    "1x1x64,1x1x9,p0:8",
    "2x4x40,6x2x5,p3,s2,d2",
    "1x3x50,2x3x50",
    "1x2x5x6x7,3x2x3x2x3,p1",
    "2x4x6x7x8,4x1x3x2x3,p1,s1x2x1,d1x1x2",
    "1x8x3x5x9,8x8x1x3x3,p1,float64",
    "1x2x9x9,3x2x3x3,int32",
    "1x2x9x9,3x2x3x3,float16",
    "1x2x9x9,3x2x3x3,p1,input_gradient",
    "1x2x9x9,3x2x3x3,p1,weight_gradient",
    "2x3x9x21,6x1x3x5,p1x2,s1x2,weight_gradient",
    "2x3x40,3x1x5,p2:0,s3,d2,float64,weight_gradient",
]

# Problems of the grid that each of ours solves at least, so that nothing becomes silently unsupported.
SOLVED = {
    "direct_loops": 40, "direct_shift": 49, "im2col_gemm": 49, "fft": 49, "fft_fused": 46, "separable": 4,
    "numba_direct": 46, "depthwise": 35, "direct_channels": 46, "direct_pixels": 46,
    "scipy_correlate2d": 38, "scipy_fftconvolve": 49, "scipy_oaconvolve": 49, "scipy_ndimage_correlate": 49,
    "opencv_filter2d": 22, "opencv_sepfilter2d": 2, "torch_nchw": 52, "torch_channels_last": 49,
    "torch_prepacked": 40, "torch_cuda_nchw": 50, "torch_cuda_channels_last": 47,
}  # fmt: skip
SLACK = 64 << 10  # Python objects of a plan and of a call
NAMES = [a.name for a in algorithms() if a.device == "cpu" and a.unavailable() is None and a.family != "auto"]


PROBLEMS = {text: ConvSpec.parse(text) for text in GRID}


def solves(algorithm: Algorithm, spec: ConvSpec) -> bool:
    return algorithm.unsupported(plain(spec)) is None


def specs() -> list[ConvSpec]:
    return list(PROBLEMS.values())


def kinds(name: str, spec: ConvSpec) -> set[Trait]:
    """What kind of problem it is to an algorithm: a rank is nothing to whoever makes no use of it."""
    ranked = get(name).accuracy == "lowrank"
    return {(what, which) for what, which in traits(spec) if what != "rank" or ranked}


def some(algorithm: Algorithm, specs: Iterable[ConvSpec], whole: bool) -> list[ConvSpec]:
    """Those that it solves, as the door hands them on; unless ``whole``, so many that every trait occurs."""
    solved = list(dict.fromkeys(plain(spec) for spec in specs if solves(algorithm, spec)))
    if whole:
        return solved
    codes = [code_of(algorithm, spec) for spec in solved]
    found = [kinds(algorithm.name, spec) for spec in solved]
    return [solved[i] for i in sorted(covering(found, codes, CHOSEN_CODES))]


# One problem after the other: its operands and the definition's answer are made once for all of its
# algorithms
CASES = [
    (name, text, threads)
    for text, spec in PROBLEMS.items()
    for name in NAMES
    if solves(get(name), spec)
    for threads in (1, 2)
]
TRAITS = [
    kinds(name, PROBLEMS[text]) | {("algorithm", name), ("threads", threads)} for name, text, threads in CASES
]
CODES = [code_of(get(name), plain(PROBLEMS[text])) for name, text, _ in CASES]
COVERED = covered(CASES, TRAITS, CODES)
CHOSEN_CODES = {code for code, case in zip(CODES, COVERED, strict=True) if type(case) is tuple}


@pytest.mark.parametrize(("name", "text", "threads"), COVERED)
def test_right(name: str, text: str, threads: int) -> None:
    verdict = check(PROBLEMS[text], get(name), threads)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", NAMES)
def test_says_why_not(name: str) -> None:
    for spec in specs():
        reason = get(name).unsupported(plain(spec))
        assert reason is None or (
            isinstance(reason, str) and reason.strip() == reason != "" and "\n" not in reason
        )


SHARED = [
    "2x32x30x30,32x32x3x3,p1",
    "1x1x300x400,1x1x9x9,p4,rank1",
    "2x16x200x100,16x1x3x3,p1,s2",
    "1x600x40x40,50x600x1x1",
]


SHARING = [(name, text) for text in SHARED for name in NAMES if solves(get(name), ConvSpec.parse(text))]
ONCE = covering([{name, (type(get(name)).__module__, text)} for name, text in SHARING])


@pytest.mark.parametrize(
    ("name", "text", "threads"),
    [
        pytest.param(*case, threads, marks=[] if threads == 3 and i in ONCE else pytest.mark.exhaustive)
        for i, case in enumerate(SHARING)
        for threads in (2, 3)
    ],
)
def test_right_when_work_is_shared(name: str, text: str, threads: int) -> None:
    """Large enough that every algorithm uses its threads; a plain run takes each once, and of each file one
    on every problem.
    """
    verdict = check(text, get(name), threads)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", sorted(SOLVED))
def test_support_does_not_shrink(name: str) -> None:
    solved = sum(solves(get(name), spec) for spec in specs())
    assert solved >= SOLVED[name], f"{name} solves {solved} of {len(GRID)} problems"


@pytest.mark.parametrize("algorithm", algorithms(), ids=lambda a: a.name)
def test_declares_itself(algorithm: Algorithm) -> None:
    assert algorithm.name.isidentifier() and algorithm.family in FAMILIES and algorithm.accuracy in ACCURACIES
    assert algorithm.runtime in ("numpy", "numba", "torch", "opencv", "cupy")
    assert (algorithm.device, algorithm.layout) in [
        ("cpu", "nchw"),
        ("cpu", "nhwc"),
        ("cuda", "nchw"),
        ("cuda", "nhwc"),
    ]
    assert hash(algorithm) is not None and algorithm.tunables() is not None
    reason = algorithm.unavailable()
    assert reason is None or reason
    if type(algorithm).__module__.startswith("algos"):
        assert sys.modules[type(algorithm).__module__].__doc__


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_plain_numbers(name: str) -> None:
    algorithm = get(name)
    for spec in specs():
        if spec.batch and solves(algorithm, spec):
            for threads in (1, 2, 64):
                assert type(algorithm.workspace_bytes(plain(spec), threads)) is int
                cost = algorithm.cost(plain(spec), threads)
                assert cost.operations > 0 and cost.bytes > 0 and cost.flops_per_s > 0
                assert 0 < cost.seconds(threads) < 1e4


@pytest.mark.parametrize("name", NAMES)
def test_results_are_fresh_and_operands_unchanged(name: str) -> None:
    """A second call must not touch what the first returned, nor any operand; ``out`` is written and returned.
    """
    algorithm = get(name)
    spec = next(s for s in specs() if s.batch == 2 and solves(algorithm, s))
    data = operands(spec, 0, "normal")
    x, w = data.x.copy(), data.w.copy()
    plan = prepared(spec, w, algorithm, 1)
    first = plan(x)
    kept = first.copy()
    second = plan(x * 2)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(second, kept)
    np.testing.assert_array_equal(x, data.x)
    np.testing.assert_array_equal(w, data.w)
    out = np.full(spec.output_shape, np.nan, spec.out_dtype)
    assert plan(x, out=out) is out
    np.testing.assert_array_equal(out, kept)


POINTWISE = ConvSpec.parse("2x5x4x3,6x5x1x1,weight_gradient")


@pytest.mark.parametrize("name", [name for name in NAMES if get(name).unsupported(POINTWISE) is None])
def test_a_pointwise_gradient_of_weights_is_written_and_added_to_nothing(name: str) -> None:
    data = operands(POINTWISE)
    plan, out = prepared(POINTWISE, None, get(name), 1), np.full(POINTWISE.weight_shape, np.nan, np.float32)
    assert plan(*data.call, out=out) is out
    exact = np.einsum("nihw,nohw->oi", data.x.astype(float), data.grad.astype(float))
    np.testing.assert_allclose(out[..., 0, 0], exact, rtol=0, atol=1e-4)


LARGER = [
    "1x1x256x300,1x1x7x7,p3", "2x32x30x30,32x32x3x3,p1", "2x16x60x50,16x1x3x3,p1,s2",
    "1x1x200x200,1x1x9x9,rank1", "1x64x14x14,256x64x3x3,p1", "1x512x7x7,512x512x3x3,p1", "1x1x20000,1x1x64",
    "1x640x1x1,500x640x1x1",
]  # fmt: skip


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)],
                         ids=["covering", "grid"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [name for name in NAMES if get(name).runtime not in ("torch", "opencv")])
def test_workspace_is_as_predicted(name: str, threads: int, whole: bool) -> None:
    """seen <= predicted <= 2 x seen, over the arrays of prepare and of a run, without x, w and y.

    PyTorch and OpenCV allocate where tracemalloc can't see: test_peers.py measures the peak of their process.
    """
    algorithm, off = get(name), []
    for spec in some(algorithm, map(ConvSpec.parse, GRID + LARGER), whole):
        if not spec.batch or algorithm.cost(spec).seconds() > 0.01:  # tracing slows plain Python down tenfold
            continue
        data = operands(spec, 0, "normal")
        out = np.empty(spec.result_shape, spec.out_dtype)
        algorithm.prepare(spec, data.w, threads)(*data.call, out=out)  # imports and compiles
        rooms.clear()  # what was kept of it would not be seen
        tracemalloc.start()
        try:
            plan = algorithm.prepare(spec, data.w, threads)
            plan(*data.call, out=out)
            plan(*data.call, out=out)
            seen = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        predicted = algorithm.workspace_bytes(spec, threads)
        if not seen - SLACK <= predicted <= 2 * seen + SLACK:
            off.append(f"{spec}: predicted {predicted}, seen {seen}")
    assert not off, "\n".join(off)


COMPILED = [name for name in NAMES if get(name).runtime == "numba"]
CHECKED_APART = """
import gc, sys
gc.disable()  # compiling leaves little behind
from algos import get
from bench.check import check
for name, text in zip(sys.argv[1::2], sys.argv[2::2]):
    verdict = check(text, get(name), 2)
    assert verdict.ok, f"{name} {text}: {verdict.reason}"
"""


def right_apart(cases: list[tuple[str, str]], **environment: str) -> None:
    """Check algorithms in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKED_APART, *itertools.chain(*cases)], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=HUNG_S,
    )  # fmt: skip
    assert cases and done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["covering", "grid"]
)
@pytest.mark.parametrize("module", sorted({type(get(name)).__module__ for name in COMPILED}))
def test_compiled_code_stays_inside_its_arrays(module: str, whole: bool) -> None:
    """Out-of-bounds reads return garbage silently, so the Numba algorithms run once with every index checked,
    of code that is not optimised: its indices are the same.
    """
    small = [s for s in specs() if s.dtype == "float32" and s.direction == "forward" and s.macs < 1e6]
    # Of variants of one code the first and the last
    names = [name for name in COMPILED if type(get(name)).__module__ == module][:: 1 if whole else 2]
    cases = [(name, spec) for name in names for spec in some(get(name), small, True)]
    # Every trait for the file, and for each algorithm every kind of end that its blocks may have
    if not whole:
        ends = ("row", "column")
        found = [
            {(name if what in ends else "", what, which) for what, which in kinds(name, spec)}
            for name, spec in cases
        ]
        codes = [code_of(get(name), spec) for name, spec in cases]
        cases = [cases[i] for i in sorted(covering(found, codes))]
    right_apart([(name, str(spec)) for name, spec in cases], NUMBA_BOUNDSCHECK="1", NUMBA_OPT="0")


@pytest.mark.parametrize("width", [width for width in ("plain", "avx512") if width != simd()])
def test_right_with_vectors_of_another_width(width: str) -> None:
    """What this machine lacks is split by the compiler: slow, but the same code as on a machine that has it;
    not optimised, which takes longest.
    """
    texts = ["1x17x13x15,19x17x3x3,p1", "1x1x40x75,1x1x5x5,p2,rank1", "1x5x9x8,5x1x3x3,s2,p1"]
    cases = [(name, text) for text in texts for name in COMPILED if solves(get(name), ConvSpec.parse(text))]
    chosen = covering([{("file", type(get(name)).__module__), ("text", text)} for name, text in cases])
    right_apart([cases[i] for i in sorted(chosen)], CONVBENCH_SIMD=width, NUMBA_OPT="0")


def test_an_unknown_width_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import algos.engine.simd"],
                          env={**os.environ, "CONVBENCH_SIMD": "mmx"}, capture_output=True, text=True,
                          timeout=HUNG_S)  # fmt: skip
    assert done.returncode == 1 and "use avx512, avx2, plain" in done.stderr.splitlines()[-1]
