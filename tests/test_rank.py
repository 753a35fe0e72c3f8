"""Kernels that are sums of few outer products: found where the factors keep every tap,
promised ranks verified tap by tap.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import algos
from algos import ConvSpec
from algos.engine.outer import MOST_FOUND, WITHIN, factors, numerical_rank
from algos.plans import prepared
from bench.bounds import tolerance
from bench.check import check
from bench.data import Operands
from bench.trial import Trial
from tests.test_check import Right

TYPES = ["float32", "float64"]


def gaussian(sigma: float, reach: float, dtype: str) -> np.ndarray:
    """exp(-(x^2 + y^2) / 2 sigma^2) as the formula stands, all of it in its own
    type: the least exact that people write.
    """
    x = np.arange(-int(reach * sigma + 0.5), int(reach * sigma + 0.5) + 1).astype(dtype)
    w = np.exp(-(x[:, None] ** 2 + x**2) / np.dtype(dtype).type(2 * sigma * sigma))
    return w / w.sum()


def binomial(n: int) -> np.ndarray:
    return np.array([math.comb(n - 1, k) for k in range(n)], float)


def log(sigma: float) -> np.ndarray:
    """Laplacian of Gaussian: rank 2, zero on a circle."""
    x = np.arange(-int(4 * sigma), int(4 * sigma) + 1)
    square = (x[:, None] ** 2 + x**2) / sigma**2
    return (square - 2) * np.exp(-square / 2)


def found(w: Any, dtype: str) -> int:
    """As ``plan`` looks for it; min(KH, KW) is none."""
    w = np.asarray(w, dtype)[None, None]
    return numerical_rank(w, np.dtype(dtype), min(MOST_FOUND, min(w.shape[2:]) - 1), each_tap=True)


def formed(w: np.ndarray, rank: int) -> np.ndarray:
    down, along = factors(w[None, None], rank)
    assert down.dtype == along.dtype == w.dtype
    return np.einsum("rh,rw->hw", down[0, 0].astype(np.float64), along[0, 0])


OUTER = {
    "box": np.full((33, 33), 1 / 33**2),
    "binomial": np.outer(binomial(33), binomial(9)) / 2.0**40,
    "sobel": np.outer([1, 2, 1], [-1, 0, 1]),
    "scharr": np.outer([3, 10, 3], [-1, 0, 1]),
    "gabor at 0 degrees": np.outer(np.exp(-(np.arange(-20, 21) ** 2) / 98),
                                   np.exp(-(np.arange(-20, 21) ** 2) / 98)
                                   * np.cos(np.arange(-20, 21) * 0.9 + 0.4)),
    "tails below every number": np.outer(*[np.exp(-(np.arange(-40, 41) ** 2) / 2)] * 2),
    "tails below every number, and small": 1e-30 * np.outer(*[np.exp(-(np.arange(-40, 41) ** 2) / 2)] * 2),
    "unequal scales": np.outer(10.0 ** np.arange(-9, 10, 2), 10.0 ** np.arange(5, -8, -1)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OUTER)
def test_an_outer_product_is_found_untold_and_keeps_every_tap(name: str, dtype: str) -> None:
    w = OUTER[name].astype(dtype)
    assert found(w, dtype) == 1 and numerical_rank(w[None, None], np.dtype(dtype)) == 1
    rounding = np.maximum(np.abs(w.astype(float)), np.finfo(dtype).tiny) * np.finfo(dtype).eps / 2
    assert (np.abs(formed(w, 1) - w) <= 8 * rounding).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sigma", [1, 1.4, 2.5, 8, 20, 64])
def test_a_gaussian_is_found_untold(sigma: float, dtype: str) -> None:
    for reach in (2, 3, 4, 6):
        w = gaussian(sigma, reach, dtype)
        assert found(w, dtype) == 1, reach
        assert (np.abs(formed(w, 1) - w) <= WITHIN * np.finfo(dtype).eps / 2 * w).all()


@pytest.mark.parametrize("dtype", ["float16", *TYPES])
@pytest.mark.parametrize(
    "shape, rank", [((3, 3), 1), ((5, 4), 2), ((15, 15), 2), ((15, 9), 4), ((31, 31), 12), ((7, 7), 6)]
)
def test_a_promised_rank_is_believed_where_it_is_kept(shape: tuple[int, int], rank: int, dtype: str) -> None:
    """Random products, which cancel anywhere; rounded once, or summed in the type itself."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        column, row = (rng.standard_normal((rank, n)) for n in shape)
        exact = np.einsum("rh,rw->hw", column, row).astype(dtype)
        summed = sum(np.outer(a, b) for a, b in zip(column.astype(dtype), row.astype(dtype), strict=True))
        for w in (exact, summed if rank < 12 and dtype != "float16" else exact):
            assert numerical_rank(w[None, None], np.dtype(dtype)) == rank
    assert numerical_rank(rng.standard_normal((1, 1, *shape)).astype(dtype), np.dtype(dtype)) == min(shape)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sigma", [1, 1.4, 2.5, 8])
def test_products_that_cancel_are_taken_when_promised_only(sigma: float, dtype: str) -> None:
    w = log(sigma).astype(dtype)
    assert numerical_rank(w[None, None], np.dtype(dtype)) == 2
    # The third is so faint that the rounding of the first hides it, but in the tails.
    assert numerical_rank((w - w.mean())[None, None].astype(dtype), np.dtype(dtype)) == 3
    if (w == 0).any():  # where every tap counts for itself, a zero is a zero
        assert found(w, dtype) == min(w.shape)


@pytest.mark.parametrize("scale", [1e160, 1e-170])
def test_a_rank_is_found_at_any_scale(scale: float) -> None:
    full = np.random.default_rng(0).standard_normal((1, 1, 5, 5))
    with np.errstate(all="raise"):
        assert numerical_rank(full * scale, np.dtype(np.float64)) == 5
        assert (
            numerical_rank(np.outer(full[0, 0, 0], full[0, 0, 1])[None, None] * scale, np.dtype(np.float64))
            == 1
        )


def faint(dtype: str = "float32", size: int = 15, tap: float = 1e-8) -> np.ndarray:
    w = np.zeros((1, 1, size, size), dtype)
    w[0, 0, size // 2, size // 2], w[0, 0, 0, 0] = 1, tap
    return w


@pytest.mark.parametrize("dtype", TYPES)
def test_a_faint_tap_beside_a_large_one_is_no_rounding(dtype: str) -> None:
    """A bright pixel under it is 100; in a Gaussian and in one of rank 2 as well."""
    w, text = faint(dtype), f"256x256,15x15,p7,{dtype}"
    assert algos.plan(text, w, "separable").spec == ConvSpec.parse(text), "two products keep it"
    with pytest.raises(ValueError, match="rank 2, the spec promises 1"):
        algos.plan("256x256,15x15,p7,rank1," + dtype, w)
    x = np.zeros((1, 1, 256, 256), dtype)
    x[0, 0, 100, 100] = 1e10
    for name in ("separable", "direct_shift", algos.pick(text, accuracy="componentwise").algorithm):
        assert algos.plan(text, w, name)(x)[0, 0, 107, 107] == pytest.approx(100, rel=1e-6), name
    for kernel, rank in ((gaussian(2, 3.5, dtype), 1), (log(3.5), 2)):
        kernel = kernel.astype(dtype)
        kernel[0, 1] += np.abs(kernel).max() * 1e-8 if rank == 1 else 1e-3 * abs(kernel[0, 1])
        assert numerical_rank(kernel[None, None], np.dtype(dtype)) > rank


@pytest.mark.parametrize("text", ["1x1x60x70,1x1x31x31,p15", "1x1x60x70,1x1x31x31,p15,float64",
                                  "1x1x60x70,1x1x15x15,s2,p7", "1x1x90x90,1x1x31x31,p15,d2"])  # fmt: skip
@pytest.mark.parametrize("name", ["separable", "opencv_sepfilter2d"])
def test_every_tap_of_a_gaussian_acts_as_itself(name: str, text: str) -> None:
    """One bright pixel shows the taps: tails of 1e-13 of the largest too, as exact as they are."""
    spec, algorithm = ConvSpec.parse(text).with_(rank=1), algos.get(name)
    if reason := algorithm.unavailable() or algorithm.unsupported(spec):
        pytest.skip(reason)
    one = np.exp(-(np.linspace(-5.5, 5.5, spec.kernel[0]) ** 2) / 2)
    w = np.outer(one, one)[None, None].astype(spec.dtype)
    x = np.zeros(spec.input_shape, spec.dtype)
    x[0, 0, 30, 34] = 1e10
    trial = Trial(spec, Operands(x, w, None))
    y = prepared(spec, w, algorithm, 1)(x)
    assert np.count_nonzero(y) > 40
    assert (np.abs(y - trial.exact) <= (sum(spec.kernel) + 2) * trial.unit * np.abs(trial.exact)).all()
    assert (np.abs(y - trial.exact) <= tolerance(trial, algorithm)).all()


@pytest.mark.parametrize("options", ["", ",rank1", ",rank2", ",rank1,flip"])
def test_the_bound_of_separable_passes_fails_a_lost_tap(options: str) -> None:
    """Also where the spec's promise is broken: what one product cannot hold is not excused."""
    spec, w = ConvSpec.parse("64x64,15x15,p7" + options), faint()
    x = np.zeros(spec.input_shape, np.float32)
    x[0, 0, 30, 30] = 1e10
    trial, lost = Trial(spec, Operands(x, w, None)), Trial(spec, Operands(x, np.where(w < 1, 0, w), None))
    allowed = tolerance(trial, Right(accuracy="lowrank"))
    error = np.abs(lost.exact - trial.exact)
    assert error.max() == pytest.approx(100) and (error > allowed).sum() == 1
    assert (np.abs(trial.exact.astype(np.float32) - trial.exact) <= allowed).all()


@pytest.mark.parametrize("seed", [17, 42])
def test_products_of_another_choice_are_not_refused(seed: int) -> None:
    """Weights that fall off by powers of two have their rank up to rounding only:
    crosses miss some taps by 49 roundings.
    """
    verdict = check("1x1x30x31,1x1x5x6,p2,rank2", algos.get("separable"), 1, seed=seed)
    assert verdict.ok, verdict.reason
