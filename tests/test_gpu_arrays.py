"""The CuPy algorithms judged without a GPU: their array code on NumPy, their
kernels emulated, the contract the same.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from algos import ConvSpec, algorithms, get
from algos.gpu._cupy import CupyAlgorithm, Kernel
from algos.lower.search import chain, unsupported
from algos.lower.tree import plain
from algos.plans import prepared
from bench.check import check
from bench.data import operands
from tests.covering import covered, traits
from tests.cuda_on_cpu import apart, on_numpy
from tests.pretended_cupy import pretended
from tests.test_contract import GRID, LARGER, SLACK, some
from tests.test_images import alone

MORE = [
    "1x1x40x50,1x1x31x31,p15,float64",
    "1x2x70x33,3x2x2x3,s40x30,p40",  # patches too wide for shared memory
    "1x1x400x40,1x1x350x3,rank2,float64",  # more rows than shared memory holds at a time
    "1x1x90x33,1x1x3x3,s9x1,d30x2,p30,rank1",  # rows that no tap reads
    "3x4x19x18,4x4x5x4,p2:3x1:2,float64",
    "2x12x9x8,6x6x2x3,p1",
]
SPECS = [ConvSpec.parse(text) for text in GRID + MORE]

# Problems that each solves at least, so that nothing becomes silently unsupported.
SOLVED = {
    "cupy_direct": 53, "cupy_im2col_gemm": 56, "cupy_fft": 56, "cupy_separable": 7, "cupy_winograd_f2": 26,
    "cupy_winograd_f4": 24,
}  # fmt: skip
# Small enough that every spec with more than a handful of outputs needs several blocks.
BLOCKED = [("cupy_im2col_gemm", 4096), ("cupy_fft", 4096), ("cupy_winograd_f2", 8192)]
NAMES = [a.name for a in algorithms() if isinstance(a, CupyAlgorithm)]


def twin(name: str, **tunables: Any) -> Any:
    algorithm = get(name)
    assert isinstance(algorithm, CupyAlgorithm)
    return on_numpy(algorithm, **tunables)


def solved(algorithm: Any) -> list[ConvSpec]:
    return [spec for spec in SPECS if algorithm.unsupported(plain(spec)) is None]


CASES = [(name, spec) for name in NAMES for spec in solved(get(name))]
TRAITS = [traits(spec) | {("algorithm", name)} for name, spec in CASES]


@pytest.mark.parametrize(("name", "spec"), covered(CASES, TRAITS), ids=str)
def test_right(name: str, spec: ConvSpec) -> None:
    verdict = check(spec, twin(name))
    assert verdict.ok, verdict.reason


SMALL = ("2x4x9x10,6x2x3x3,s2x1,p1:0x2:1", "1x3x4x5x6,4x3x2x3x2,p1")
AFTER = ("", ",input_gradient", ",weight_gradient", ",bias,relu", ",bias,silu")
LOWERED = [f"{size},{dtype}{after}" for size in SMALL for after in AFTER
           for dtype in ("float32", "bfloat16", "complex64", "int8>int32", "int16", "int64", "uint64")
           if not (dtype == "complex64" and "bias" in after)
           and not (dtype not in ("float32", "bfloat16") and "silu" in after)]  # fmt: skip


@pytest.mark.parametrize("name", ["cupy_direct", "cupy_im2col_gemm", "cupy_winograd_f2"])
def test_what_is_lowered_stays_on_the_device(name: str) -> None:
    """Epilogues, types and directions, with arrays that do not meet the host's."""
    algorithm, tried = apart(get(name)), 0
    with pretended():
        for spec in map(ConvSpec.parse, LOWERED):
            if unsupported(algorithm, spec) is None:
                verdict = check(spec, algorithm)
                assert verdict.ok, f"{spec}: {verdict.reason}"
                tried += 1
    assert tried >= 10


@pytest.mark.parametrize("name", NAMES)
def test_says_why_not(name: str) -> None:
    for spec in SPECS:
        reason = get(name).unsupported(plain(spec))
        assert reason is None or (
            isinstance(reason, str) and reason.strip() == reason != "" and "\n" not in reason
        )


@pytest.mark.parametrize("name", sorted(SOLVED))
def test_support_does_not_shrink(name: str) -> None:
    assert len(solved(get(name))) >= SOLVED[name]


WHOLE = pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["covering", "grid"]
)


@WHOLE
@pytest.mark.parametrize(("name", "block_bytes"), BLOCKED)
def test_right_in_many_blocks(name: str, block_bytes: int, whole: bool) -> None:
    algorithm = twin(name, block_bytes=block_bytes)
    for spec in some(algorithm, (s for s in SPECS if s.macs < 1 << 15), whole):
        verdict = check(spec, algorithm)
        assert verdict.ok, f"{spec}: {verdict.reason}"


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_declared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``prepare`` compiles is what ``kernels`` tells, so that every kernel meets NVRTC in a test."""
    algorithm, asked = twin(name), []
    compiled = type(algorithm).compiled

    def watched(self: Any, kernel: Kernel) -> Any:
        asked.append(kernel)
        return compiled(self, kernel)

    monkeypatch.setattr(type(algorithm), "compiled", watched)
    for spec in solved(algorithm)[::7]:
        if spec.batch:
            asked.clear()
            algorithm.prepare(plain(spec), operands(plain(spec), 0).w)
            assert asked == algorithm.kernels(plain(spec))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_plain_numbers(name: str) -> None:
    algorithm = get(name)
    for spec in (plain(s) for s in solved(algorithm) if s.batch):
        assert type(algorithm.workspace_bytes(spec)) is int
        cost = algorithm.cost(spec)
        assert cost.operations > 0 and cost.bytes > 0 and 0 < cost.seconds() < 1


@WHOLE
@pytest.mark.parametrize("name", NAMES)
def test_workspace_is_as_predicted(name: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """seen <= predicted <= 2 x seen, with kernels that do nothing; cuFFT's work areas
    are predicted and don't exist here.
    """
    algorithm, off = twin(name), []
    monkeypatch.setattr(type(algorithm), "compiled", lambda self, kernel: lambda blocks, *arguments: None)
    allowed = 4 if name == "cupy_fft" else 2
    for spec in some(algorithm, map(ConvSpec.parse, [*GRID, *MORE, *LARGER]), whole):
        if not spec.batch:
            continue
        data = operands(spec, 0, "normal")
        out = np.empty(spec.output_shape, spec.out_dtype)
        with np.errstate(all="ignore"):  # the numbers are what memory held
            algorithm.prepare(spec, data.w)(data.x, out=out)
            tracemalloc.start()
            try:
                plan = algorithm.prepare(spec, data.w)
                plan(data.x, out=out)
                plan(data.x, out=out)
                seen = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        predicted = algorithm.workspace_bytes(spec)
        if not seen - SLACK <= predicted <= allowed * seen + SLACK:
            off.append(f"{spec}: predicted {predicted}, seen {seen}")
    assert not off, "\n".join(off)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_fresh_and_kept(name: str) -> None:
    """Through the door, with ``out`` and with a border that the door adds."""
    algorithm = twin(name)
    spec = next(s for s in solved(algorithm) if s.batch == 2)
    data = operands(spec, 0, "normal")
    plan = prepared(spec, data.w, algorithm, 1)
    first = plan(data.x)
    kept = first.copy()
    assert not np.shares_memory(first, plan(data.x * 2))
    np.testing.assert_array_equal(first, kept)
    out = np.full(spec.output_shape, np.nan, spec.out_dtype)
    assert plan(data.x, out=out) is out
    np.testing.assert_array_equal(out, kept)


@pytest.mark.parametrize(
    "text", ["3x3x20x21,4x3x3x3,p1", "3x1x30x31,1x1x3x3,p1,rank1,float64", "3x20x9x8,24x20x3x3,p1"]
)
@pytest.mark.parametrize("name", NAMES)
def test_no_image_depends_on_its_neighbours(name: str, text: str) -> None:
    """In blocks as large as the batch and smaller; nor do weights near an end of the type's range lose
    anything.
    """
    spec = ConvSpec.parse(text)
    if get(name).unsupported(spec):
        return
    found = operands(spec, 3)
    for algorithm in (
        (twin(name), twin(name, block_bytes=8192)) if hasattr(get(name), "block_bytes") else (twin(name),)
    ):
        for size in (1.0, 2.0**-130, 2.0**100):
            x, w = found.x * found.x.dtype.type(size**-0.5), found.w * found.w.dtype.type(size)
            x[0] *= 1e8 if size == 1 else 1
            x[2].flat[[7, -9]] = np.nan, np.inf
            with np.errstate(all="ignore"):
                y = prepared(spec, w, algorithm, 1)(x)
            for n in range(2):
                assert alone(spec, x[n], w, name, y[n]) <= 1, (
                    f"image {n} beside a spoilt one, weights of about {size}"
                )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["0x3x9x10,4x3x3x3,p1", "0x1x9x10,1x1x3x3,p1,rank1"])
def test_an_empty_batch_has_a_cost(name: str, text: str) -> None:
    """Who picks asks everybody."""
    if unsupported(get(name), ConvSpec.parse(text)) is None:
        assert 0 < chain(get(name), ConvSpec.parse(text)).seconds() < 1e-3
