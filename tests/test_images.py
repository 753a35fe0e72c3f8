"""What one image holds never shows in another's result, and what a type can hold is computed in it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from algos import ConvSpec, algorithms, get, pick
from algos.plans import prepared
from bench.bounds import tolerance
from bench.data import Operands, operands
from bench.trial import Trial

NAMES = [a.name for a in algorithms() if a.device == "cpu" and a.unavailable() is None and a.family != "auto"]
BATCHES = [
    "3x1x64x64,1x1x15x15,p7",  # one tile for each image
    "3x1x40x150,1x1x9x9,p4,s2",
    "3x1x30x31,1x1x3x3,p1,rank1,float64",
    "3x3x20x21,4x3x3x3,p1",
    "3x20x14x14,24x20x3x3,p1",
    "3x4x12x11,4x1x3x3,p1",
    "3x2x300,4x2x9,p4",
    "3x2x6x7x8,3x2x3x3x3,p1",
]


@lru_cache(64)
def judged(spec: ConvSpec, x: bytes, w: bytes) -> Trial:
    """What the definition says, once for all algorithms and numbers of threads."""
    arrays = (
        np.frombuffer(a, spec.in_dtype).reshape(shape)
        for a, shape in ((x, spec.input_shape), (w, spec.weight_shape))
    )
    return Trial(spec, Operands(*arrays, None))


def alone(spec: ConvSpec, x: np.ndarray, w: np.ndarray, name: str, y: np.ndarray) -> float:
    """The largest share of the tolerance that one image's result ``y`` uses, judged without its neighbours.
    """
    one = judged(spec.with_(batch=1), x.tobytes(), w.tobytes())
    with np.errstate(all="ignore"):
        return float((np.abs(y[None] - one.exact) / tolerance(one, get(name))).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", BATCHES)
def test_no_image_depends_on_its_neighbours(name: str, text: str) -> None:
    """One 1e8 times as large, one with a NaN and an infinity: the third is as
    exact as by itself, wherever it stands.
    """
    spec = ConvSpec.parse(text)
    if get(name).unsupported(spec):
        return
    found = operands(spec, 3)
    assert found.x is not None and found.w is not None
    plans = [prepared(spec, found.w, get(name), threads) for threads in (1, 2)]
    for quiet in range(3):
        run = plans[(quiet + BATCHES.index(text)) % 2]
        x = found.x.copy()
        x[quiet - 1] *= 1e8
        x[quiet - 2].flat[[7, -9]] = np.nan, np.inf
        with np.errstate(all="ignore"):
            y = run(x)
        for n in (quiet, quiet - 1):
            assert alone(spec, x[n], found.w, name, y[n]) <= 1, f"image {n} beside a spoilt one"
        again = run(found.x)  # nothing of it stays behind
        for n in range(3):
            assert alone(spec, found.x[n], found.w, name, again[n]) <= 1, f"image {n} after a spoilt batch"


# x and w of about these sizes, whose results are ordinary numbers of the type.
SIZES = {
    "float32": [
        (2e38, 1e-3),
        (1e38, 1e-30),
        (1e-38, 1e3),
        (1e-44, 1e10),
        (1e-42, 1e38),
        (1e30, 1e-42),
        (2.0**70, 2.0**-40),
    ],
    "float64": [
        (1e308, 1e-3),
        (1e-308, 1e3),
        (1e-320, 1e20),
        (1e-315, 1e300),
        (1e300, 1e-315),
        (2.0**560, 2.0**-40),
    ],
}
OURS = [name for name in NAMES if get(name).family != "peer"]


@pytest.mark.parametrize("name", [*OURS, "auto"])
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("text", ["1x64x18x18,64x64x3x3,p1", "2x1x64x65,1x1x15x15,p7", "1x3x400,2x3x9,p4"])
def test_what_the_type_holds_is_computed_in_it(name: str, dtype: str, text: str) -> None:
    """Neither the sums inside a transform nor subnormal numbers show."""
    spec, rng = ConvSpec.parse(text).with_(dtype=dtype), np.random.default_rng(5)
    if get(name).unsupported(spec):
        return
    x = rng.random((spec.batch, spec.in_channels, *spec.size))
    w = rng.random((spec.out_channels, spec.in_channels, *spec.kernel))
    for large, small in SIZES[dtype]:
        scaled = (x * large).astype(dtype), (w * (small / w[0].size)).astype(dtype)
        plan = prepared(spec, scaled[1], get(name), 1)
        y = plan(scaled[0])
        assert np.isfinite(y).all()
        judge = get(plan.algorithm) if name == "auto" else get(name)
        for n in range(spec.batch):
            assert alone(spec, scaled[0][n], scaled[1], judge.name, y[n]) <= 1, f"{large} x {small}"


@pytest.mark.parametrize("text", ["4x3x20x21,4x3x3x3,p1", "4x3x5x9x10,4x3x3x3x3,p1"])
@pytest.mark.parametrize("name", OURS)
def test_an_image_keeps_its_precision_whatever_the_scale_of_its_neighbours(name: str, text: str) -> None:
    """Large, faint and ordinary ones in one batch, each scaled for itself."""
    spec = ConvSpec.parse(text)
    if get(name).unsupported(spec):
        return
    found = operands(spec, 3)
    assert found.x is not None and found.w is not None
    x = found.x * np.array([2.0**120, 1, 2.0**-140, 0], "f4").reshape(4, *(1,) * (spec.ndim + 1))
    y = prepared(spec, found.w, get(name), 1)(x)
    for n in range(4):
        assert alone(spec, x[n], found.w, name, y[n]) <= 1


@pytest.mark.parametrize("text", ("1x8x20x21,40x8x3x3,p1", "1x256x14x14,256x256x3x3,p1"))
@pytest.mark.parametrize("name", ("winograd_f2", "winograd_f4", "winograd_f6"))
def test_a_few_large_filters_overflow_inside_no_more_than_many(name: str, text: str) -> None:
    """Whose results are not among the first ones; of a small problem and of one whose blocks threads share.
    """
    spec, rng = ConvSpec.parse(text), np.random.default_rng(8)
    x, w = (rng.random(shape, "f4") for shape in (spec.input_shape, spec.weight_shape))
    x *= np.float32(1e29)
    w *= np.where(np.arange(spec.out_channels) < spec.out_channels - 8, 1e-20, 6e8 / spec.in_channels).astype(
        "f4"
    )[:, None, None, None]
    y = prepared(spec, w, get(name), 2)(x)
    assert alone(spec, x[0], w, name, y[0]) <= 1


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("shape", ("2x5x17x19,7x5x3x3,p1", "2x256x14x14,256x256x3x3,p1"))
@pytest.mark.parametrize("name", ("winograd_f2", "winograd_f4", "winograd_f6"))
def test_a_nan_or_zeros_in_a_faint_image_change_nothing_beyond_their_tiles(
    name: str, shape: str, threads: int
) -> None:
    """Results tell that an operand is large or faint: those of zeros and of a NaN
    tell neither. Blocks apart and shared.
    """
    spec = ConvSpec.parse(shape)
    found = operands(spec, 3)
    assert found.x is not None and found.w is not None
    x = found.x * np.float32(2.0**-120)
    x[0, :, :, 12:] = 0
    plan = prepared(spec, found.w, get(name), threads)
    clean = plan(x)
    assert all(alone(spec, x[n], found.w, name, clean[n]) <= 1 for n in range(2))
    x[1, 0, 3, 3] = np.nan
    spoilt = plan(x)
    np.testing.assert_array_equal(spoilt[0], clean[0])
    np.testing.assert_array_equal(spoilt[1, :, 10:, 10:], clean[1, :, 10:, 10:])
    assert np.isnan(spoilt[1, :, 2:5, 2:5]).all()


def test_componentwise_keeps_a_faint_tap() -> None:
    """A tap of 1e-8 beside 1, over a pixel of 1e10 beside zeros: transforms
    lose it, and are left out when asked.
    """
    w, x = np.zeros((1, 1, 15, 15), "f4"), np.zeros((1, 1, 256, 256), "f4")
    w[0, 0, 7, 7], w[0, 0, 0, 0], x[0, 0, 100, 100] = 1, 1e-8, 1e10
    choice = pick("256x256,15x15,p7", accuracy="componentwise")
    y = prepared(ConvSpec.parse("256x256,15x15,p7"), w, get(choice.algorithm), 1)(x)
    assert y[0, 0, 107, 107] == np.float32(1e-8) * np.float32(1e10)
