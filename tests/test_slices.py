"""An algorithm of a single float type solves the problems of all types, with all their digits."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import algos
from algos.contract import Algorithm, Support
from algos.lower.search import chain, unsupported
from algos.spec import ConvSpec
from bench.check import check
from tests.wrong import Right


class Single(Algorithm):
    """Plain 2-D correlation in float32 alone, as it says when it is asked."""

    def unsupported(self, spec: ConvSpec) -> str | None:
        plain = spec.direction, spec.ndim, spec.groups, spec.stride, spec.dilation, spec.padding
        if plain == ("forward", 2, 1, (1, 1), (1, 1), ((0, 0), (0, 0))) and spec.dtype == "float32":
            return None
        return "computes plain problems in float32"

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return spec.min_bytes * int(np.prod(spec.kernel))

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        assert weights.dtype == np.float32

        def run(x: Any, out: Any = None) -> Any:
            assert x.dtype == np.float32
            windows = np.lib.stride_tricks.sliding_window_view(x, spec.kernel, axis=(2, 3))
            return np.einsum("nchwij,ocij->nohw", windows, weights, out=out)

        return run


class Double(Single):
    """In float64 alone, as its ``support`` says."""

    support = Support(dtypes=("float64",))

    def unsupported(self, spec: ConvSpec) -> str | None:
        return self.support.lacks(spec) or super().unsupported(spec.with_(dtype="float32"))

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        def run(x: Any, out: Any = None) -> Any:
            assert x.dtype == weights.dtype == np.float64
            windows = np.lib.stride_tricks.sliding_window_view(x, spec.kernel, axis=(2, 3))
            return np.einsum("nchwij,ocij->nohw", windows, weights, out=out)

        return run


class OwnGradients(Right):
    """All directions in float32."""

    support = Support(dtypes=("float32",), directions=("forward", "input_gradient", "weight_gradient"))

    def unsupported(self, spec: ConvSpec) -> str | None:
        return self.support.lacks(spec)


SINGLE, DOUBLE = Single("single", "gemm"), Double("double", "gemm")
SOLVED = ["1x2x8x9,3x2x3x3,s2,p1,float64", "2x2x8x9,3x2x3x3,p1,complex128,weight_gradient",
          "1x2x8x9,3x2x3x3,float64,input_gradient,s2", "1x4x9x9,4x1x3x3,p1,int32", "1x2x20,3x2x5,float64",
          "1x3x9x9,4x3x3x3,float64,bias,silu", "1x1x7x7,1x1x1x1,float64"]  # fmt: skip


@pytest.mark.parametrize("text", SOLVED)
def test_float32_alone_solves_what_has_more_digits(text: str) -> None:
    verdict = check(text, SINGLE)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float16", "int32"])
def test_float64_alone_solves_what_has_fewer_digits(dtype: str) -> None:
    verdict = check(f"1x2x8x9,3x2x3x3,p1,{dtype}", DOUBLE)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_gradients_of_its_own_are_cut_too(direction: str) -> None:
    spec = ConvSpec.parse(f"2x2x8x9,3x2x3x3,s2,p1,float64,{direction}")
    own = OwnGradients("own", "gemm")
    assert chain(own, spec).leaves == (spec.with_(dtype="float32"),)
    verdict = check(spec, own)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("late", [False, True])
def test_no_digit_is_lost_however_far_apart_the_sizes_lie(late: bool) -> None:
    spec = ConvSpec.parse("1x2x6x6,2x2x2x2,float64")
    rng = np.random.default_rng(0)
    x = np.ldexp(rng.standard_normal(spec.input_shape), rng.integers(-400, 400, spec.input_shape))
    w = np.ldexp(rng.standard_normal(spec.weight_shape), rng.integers(-400, 400, spec.weight_shape))
    x[0, 0, 0, 0], w[0, 0, 0, 0] = 5e-324, 2.0**600
    run = chain(SINGLE, spec).prepare(None if late else w, 1)
    out = np.full(spec.output_shape, 7.0)
    assert run(*((x, w) if late else (x,)), out=out) is out
    for n, o, i, j in np.ndindex(*spec.output_shape):
        reads = [(c, a, b) for c in range(2) for a in range(2) for b in range(2)]
        products = [Fraction(x[n, c, i + a, j + b]) * Fraction(w[o, c, a, b]) for c, a, b in reads]
        off, size = abs(Fraction(out[n, o, i, j]) - sum(products)), sum(map(abs, products))
        assert off <= 2 * Fraction(2.0**-53) * size + Fraction(5e-324)


def test_infinities_and_nans_are_those_of_the_definition() -> None:
    spec = ConvSpec.parse("2x1x5x9,1x1x1x3,float64")
    x = np.random.default_rng(1).standard_normal(spec.input_shape)
    x[0, 0, 0, 4], x[0, 0, 2, 1], x[1, 0, 3, 3:5] = np.inf, np.nan, (np.inf, -np.inf)
    w = np.array([2.0**-60, 0.0, -3.0]).reshape(spec.weight_shape)
    y, right = chain(SINGLE, spec).prepare(w, 1)(x), algos.conv2d(x, w, algorithm="direct_shift")
    assert np.isfinite(right).sum() < right.size - 6
    np.testing.assert_allclose(y, right, rtol=1e-15)


def test_who_has_both_types_or_rounds_otherwise_is_not_cut() -> None:
    spec = ConvSpec.parse("1x3x9x9,4x3x3x3,float64")
    assert chain(algos.get("im2col_gemm"), spec).words == ""
    assert unsupported(Single("rounds", "fft", accuracy="normwise"), spec) is not None
