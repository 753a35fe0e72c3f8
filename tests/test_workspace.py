"""What an algorithm predicts to hold is what it holds, on problems that nobody chose."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from algos import Algorithm, ConvSpec, algorithms, get
from algos.engine.memory import rooms
from algos.lower.search import chain, unsupported
from algos.lower.tree import plain
from bench.data import operands
from tests.covering import code_of
from tests.test_contract import CHOSEN_CODES, SLACK

TRACED = [
    a for a in algorithms() if a.device == "cpu" and a.runtime in ("numpy", "numba") and a.family != "auto"
]
SPECS = {False: 6, True: 3}  # of each algorithm: of any code few, since each is compiled
LARGEST = 1 << 20  # elements of an array
DIRECTIONS = ("forward", "input_gradient", "input_gradient", "weight_gradient")
MODES = ("zeros", "zeros", "reflect", "replicate", "circular", "symmetric", "constant:2")
SLOWEST_S = 0.005  # tracing slows plain Python down tenfold


def drawn(rng: random.Random) -> ConvSpec:
    """Any number of axes, channels, groups, taps, strides and borders, from a few pixels to ``LARGEST``
    elements.

    Raises
    ------
    ValueError
        Where no convolution has these numbers.
    """
    ndim, pixels = rng.choice((1, 2, 2, 2, 3)), 2 ** rng.uniform(4, 20 if rng.random() < 0.3 else 13)
    size = [max(1, round(pixels ** (1 / ndim) * 2 ** rng.uniform(-1.5, 1.5))) for _ in range(ndim)]
    taps = (1, 1, 2, 3, 3, 4, 5, 7, 9, 15, 31, 64) if ndim < 3 else (1, 2, 3, 3, 5)
    kernel = [min(rng.choice(taps), 4 * n) for n in size]
    padding = [(rng.choice((0, k // 2, k - 1, k + 3)), rng.choice((0, k // 2, k - 1))) for k in kernel]
    stride = [rng.choice((1, 1, 2, 3)) for _ in size] if rng.random() < 0.4 else 1
    dilation = [rng.choice((1, 1, 2, 5)) for _ in size] if rng.random() < 0.25 else 1
    groups, inputs, outputs = map(
        rng.choice, ((1, 1, 1, 2, 3, 8), (1, 1, 2, 3, 16, 40), (1, 1, 2, 7, 33, 100))
    )
    if rng.random() < 0.2:
        groups, inputs, outputs = rng.choice((4, 16, 64)), 1, rng.choice((1, 2))
    rank = rng.randint(1, min(3, *kernel)) if ndim == 2 and rng.random() < 0.4 else None
    spec = ConvSpec(rng.choice((1, 1, 2, 3)), inputs * groups, tuple(size), outputs * groups, tuple(kernel),
                    stride, padding, dilation, groups, rank,
                    rng.choice(("float32", "float32", "float64")))  # type: ignore[arg-type]  # fmt: skip
    if max(np.prod(spec.input_shape), np.prod(spec.output_shape), np.prod(spec.weight_shape)) > LARGEST:
        raise ValueError("too large")
    return spec


def seen(algorithm: Algorithm, spec: ConvSpec, threads: int, largest: int = 0) -> int:
    """Peak of prepare and of two runs, without operands and result; of random numbers up to ``largest``."""
    data, out = operands(spec), np.empty(spec.result_shape, spec.result_dtype)
    w, way = None if spec.direction == "weight_gradient" else data.w, chain(algorithm, spec, threads)
    call = data.call
    if largest:
        rng = np.random.default_rng(0)
        w, *call = (a if a is None else rng.integers(0, largest, a.shape).astype(a.dtype) for a in (w, *call))
    way.prepare(w, threads)(*call, out=out)  # imports and compiles
    peaks = []
    for _ in range(2):  # what other threads of the process make meanwhile comes once
        rooms.clear()  # what was kept would not be seen
        tracemalloc.start()
        try:
            plan = way.prepare(w, threads)
            plan(*call, out=out)
            plan(*call, out=out)
            peaks.append(tracemalloc.get_traced_memory()[1])
            del plan
        finally:
            tracemalloc.stop()
    return min(peaks)


def compiled_anyway(algorithm: Algorithm, *specs: ConvSpec) -> bool:
    """Whether test_contract.py needs the same code: most of the compiled ones compile for each kernel."""
    return all(code_of(algorithm, spec) in {None, *CHOSEN_CODES} for spec in specs)


ANY = pytest.mark.parametrize(
    "any_code", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["known code", "any code"]
)


@ANY
@pytest.mark.parametrize("name", [a.name for a in TRACED if a.unavailable() is None])
def test_no_problem_takes_more_memory_than_predicted(name: str, any_code: bool) -> None:
    algorithm, rng, off, left = get(name), random.Random(name), [], SPECS[any_code]
    while left:
        try:
            spec, threads = drawn(rng), rng.choice((1, 2, 3))
        except ValueError:
            continue
        if (
            algorithm.unsupported(spec) is None
            and (any_code or compiled_anyway(algorithm, spec))
            and algorithm.cost(spec).seconds() < SLOWEST_S
        ):
            left -= 1
            predicted = algorithm.workspace_bytes(spec, threads)
            if (held := seen(algorithm, spec, threads)) > predicted + SLACK:
                off.append(f"{spec} in {threads} threads: predicted {predicted}, seen {held}")
    assert not off, "\n".join(off)


def other(spec: ConvSpec, rng: random.Random) -> ConvSpec:
    """Its gradients and borders, cropped ones among them."""
    padding = tuple((b - rng.choice((0, 0, 2)), a) for b, a in spec.padding)
    changes = {
        "direction": rng.choice(DIRECTIONS),
        "padding_mode": rng.choice(MODES),
        "flip": rng.random() < 0.2,
    }
    return spec.with_(**changes, **({"padding": padding} if rng.random() < 0.3 else {}))


# Python's own
@ANY
@pytest.mark.parametrize(
    "name", [a.name for a in TRACED if a.unavailable() is None and a.name != "direct_loops"]
)
def test_no_lowering_takes_more_memory_than_predicted(name: str, any_code: bool) -> None:
    algorithm, rng, off, left = get(name), random.Random(name), [], SPECS[any_code]
    while left:
        try:
            spec, threads = other(drawn(rng), rng), rng.choice((1, 2, 3))
        except ValueError:
            continue
        if (
            unsupported(algorithm, spec) is None
            and (way := chain(algorithm, spec, threads)).seconds() < SLOWEST_S
            and way.words
            and (any_code or compiled_anyway(algorithm, *way.leaves))
        ):
            left -= 1
            predicted = way.workspace_bytes(threads)
            if (held := seen(algorithm, spec, threads)) > predicted + SLACK:
                off.append(f"{spec} in {threads} threads: predicted {predicted}, seen {held}: {way.words}")
    assert not off, "\n".join(off)


TYPED = ["float16", "complex64", "int8>int32", "int8", "int16>int32", "int64", "uint64"]
OF_EACH_TYPE = ["2x16x30x30,24x16x3x3,p1", "1x5x60x50,4x5x3x3,p1", "1x64x9x9,80x64x3x3"]


@pytest.mark.parametrize("dtype", TYPED)
@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("name", ["direct_shift", "im2col_gemm", "direct_channels", "winograd_f2"])
def test_no_type_takes_more_memory_than_predicted(
    name: str, dtype: str, direction: str, request: pytest.FixtureRequest
) -> None:
    """Whole numbers of 64 bits also where their sums are too large for floats; in a plain run the problems
    take turns.
    """
    turn = TYPED.index(dtype) + len(direction)
    for text in OF_EACH_TYPE if request.config.option.exhaustive else [OF_EACH_TYPE[turn % 3]]:
        spec = ConvSpec.parse(f"{text},{dtype}").directed(direction)
        if unsupported(get(name), spec):
            continue
        for largest in (0, 1 << 26) if dtype.endswith("int64") else (0,):
            held = seen(get(name), spec, 2, largest)
            predicted = chain(get(name), spec, 2).workspace_bytes(2)
            assert held <= predicted + SLACK, (text, largest)
            assert largest or dtype.endswith("int64") or predicted <= 3 * held + SLACK, (text, largest)


@pytest.mark.parametrize(
    ("name", "text", "threads"),
    [
        # Hundreds of calls, whose tuples Python keeps
        ("scipy_oaconvolve", "1x24x21x7,264x3x5x3,p4:0x6:1", 1),
        # Images one after the other, each one block: nothing to share
        ("fft_tiles", "3x4x58x19,8x1x101x4,p104:100x3", 3),
        # Each thread has sums of its own
        ("im2col_gemm", "1x96x16x16,96x96x3x3,p1,weight_gradient", 3),
    ],
)
def test_a_prediction_is_near_what_is_held(name: str, text: str, threads: int) -> None:
    spec = plain(ConvSpec.parse(text))
    predicted, held = get(name).workspace_bytes(spec, threads), seen(get(name), spec, threads)
    assert held <= predicted + SLACK
    assert predicted <= 2 * held + SLACK
