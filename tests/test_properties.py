"""What is true of convolution, of every algorithm of ours on the CPU: no other implementation stands beside
these laws.

Problems are drawn, in float64. A law is asked of an algorithm where it claims all the problems that the law
needs, which it solves as every user's call is, with prepared plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import algos
from algos import ConvSpec
from algos.lower.search import unsupported

OWN = [a.name for a in algos.algorithms() if a.device == "cpu" and a.family not in ("peer", "auto")]
# In short and in full: most of the compiled ones compile for each kernel
EXAMPLES = {"numpy": (8, 60), "numba": (4, 30)}
# Times the products in a result and the largest of each operand. Winograd's tiles multiply rounding by up to
# 1e3.
ROUNDING = {"componentwise": 1e-15, "lowrank": 4e-15, "normwise": 4e-15, "winograd": 1e-12}
STRIDED = ConvSpec.parse("1x1x5x8,1x1x3x3,s2,float64")
MODES = ("zeros", "zeros", "reflect", "replicate", "circular", "symmetric")


class NotClaimed(Exception):
    """The algorithm solves no such problem."""


class Solver:
    """One algorithm, with what was drawn for an example.

    Parameters
    ----------
    name : str
    draw : callable
        Hypothesis's.
    full : bool
        Whatever has to be compiled for it.
    """

    def __init__(self, name: str, draw: Callable[[Any], Any], full: bool) -> None:
        self.algorithm, self.draw = algos.get(name), draw
        self.compiles_little = not full and self.algorithm.runtime == "numba"
        self.rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
        self.threads = draw(st.integers(1, 2))

    def spec(self, **fixed: Any) -> ConvSpec:
        """Any geometry, but for what is fixed; few kernels for the compiled ones.

        Some sizes become kernels, and strides become others where they are lowered.
        """
        some, compiled = self.draw, self.algorithm.runtime == "numba"
        ndim = 2 if compiled else some(st.sampled_from([1, 2, 2, 3]))
        each = lambda *values: tuple(some(st.sampled_from(values)) for _ in range(ndim))  # noqa: E731
        groups = fixed.get("groups", some(st.sampled_from([1, 1, 2])))
        kernel, steps, gaps = each(1, 2, 3, 4), each(1, 1, 2), each(1, 1, 2)
        more, padding = each(0, 2, 5, 6), tuple(zip(each(0, 1, 2), each(0, 1, 2), strict=True))
        if compiled:
            native = self.algorithm.unsupported(STRIDED) is None
            kernel, steps, gaps = (3, 3), (some(st.sampled_from([1, 1, 2])) if native else 1,) * 2, (1, 1)
            more, padding = some(st.sampled_from([(0, 0), (2, 2)])), some(st.integers(0, 1))
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
        values = {
            "batch": some(st.integers(1, 2)), "in_channels": groups * some(st.integers(1, 3)),
            "groups": groups,
            "size": tuple(map(sum, zip(extents, more, strict=True))),
            "out_channels": groups * some(st.integers(1, 3)), "kernel": kernel, "stride": steps,
            "dilation": gaps, "padding": padding,
            "padding_mode": some(st.sampled_from(MODES)), "flip": some(st.booleans()), "dtype": "float64",
        }  # fmt: skip
        return ConvSpec(**(values | fixed))  # type: ignore[arg-type]

    def array(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def __call__(self, spec: ConvSpec, w: np.ndarray | None, *arrays: np.ndarray) -> np.ndarray:
        if self.algorithm.accuracy == "lowrank" and spec.ndim == 2 and spec.direction != "weight_gradient":
            spec = spec.with_(rank=min(spec.kernel))  # which any weights keep
        if unsupported(self.algorithm, spec):
            raise NotClaimed
        return algos.plan(spec, w, algorithm=self.algorithm.name, threads=self.threads)(*arrays)

    def same(self, a: Any, b: Any, products: int, *operands: np.ndarray) -> None:
        """Equal but for rounding, of sums of so many products of the operands."""
        scale = products * np.prod([max(1.0, float(abs(o).max())) for o in operands])
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING[self.algorithm.accuracy] * scale)


def linear(solve: Solver) -> None:
    spec = solve.spec()
    x, more, w, other = (solve.array(*shape) for shape in 2 * [spec.input_shape] + 2 * [spec.weight_shape])
    products = 8 * spec.reduction_length
    solve.same(solve(spec, w, 3 * x - 2 * more), 3 * solve(spec, w, x) - 2 * solve(spec, w, more), products,
               x, more, w)
    solve.same(solve(spec, 3 * w - 2 * other, x), 3 * solve(spec, w, x) - 2 * solve(spec, other, x), products,
               w, other, x)  # fmt: skip


def commutative(solve: Solver) -> None:
    """x * w = w * x, of true and full convolution."""
    spec = solve.spec(batch=1, in_channels=1, out_channels=1, groups=1, stride=1, dilation=1, padding="full",
                      flip=True, padding_mode="zeros",
                      **({"size": (3, 3)} if solve.compiles_little else {}))  # fmt: skip
    exchanged = spec.with_(size=spec.kernel, kernel=spec.size, padding="full")
    x, w = solve.array(*spec.input_shape), solve.array(*spec.weight_shape)
    solve.same(solve(spec, w, x), solve(exchanged, x, w), w.size, x, w)


def moves_along(solve: Solver) -> None:
    """Away from the border, what lies t strides further on gives the same t places further on."""
    spec = solve.spec(padding=0, padding_mode="zeros")
    t = tuple(solve.draw(st.integers(0, 2)) for _ in range(spec.ndim))
    whole = solve.array(
        *spec.input_shape[:2], *(n + s * m for n, s, m in zip(spec.size, spec.stride, t, strict=True))
    )
    w = solve.array(*spec.weight_shape)

    def window(moved: Any) -> np.ndarray:
        starts = (s * m for s, m in zip(spec.stride, moved, strict=True))
        return solve(
            spec, w, whole[(..., *(slice(a, a + n) for a, n in zip(starts, spec.size, strict=True)))]
        )

    here, there = window((0,) * spec.ndim), window(t)
    later = tuple(slice(m, None) for m in t)
    sooner = tuple(slice(0, max(n - m, 0)) for n, m in zip(spec.output_size, t, strict=True))
    solve.same(here[(..., *later)], there[(..., *sooner)], spec.reduction_length, whole, w)


def adjoint(solve: Solver) -> None:
    """<conv(x, w), g> = <x, input gradient of g>, which is element by element what <conv(x, w), g> changes
    by.
    """
    spec = solve.spec()
    x, w, g = drawn(solve, spec)
    dx = solve(spec.with_(direction="input_gradient"), w, g)
    solve.same((solve(spec, w, x) * g).sum(), (dx * x).sum(), spec.macs, x, w, g)
    changes(solve, spec, (x, w, g), x, dx)


def adjoint_of_weights(solve: Solver) -> None:
    """<conv(x, w), g> = <w, weight gradient of x and g>, which is what <conv(x, w), g> changes by."""
    spec = solve.spec()
    x, w, g = drawn(solve, spec)
    dw = solve(spec.directed("weight_gradient"), None, x, g)
    solve.same((solve(spec, w, x) * g).sum(), (dw * w).sum(), spec.macs, x, w, g)
    changes(solve, spec, (x, w, g), w, dw)


def drawn(solve: Solver, spec: ConvSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return solve.array(*spec.input_shape), solve.array(*spec.weight_shape), solve.array(*spec.output_shape)


def changes(solve: Solver, spec: ConvSpec, operands: Any, array: np.ndarray, gradient: np.ndarray) -> None:
    """Central differences in some elements of one operand, exact but for
    rounding since the loss is linear in it.
    """
    x, w, g = operands
    for _ in range(3):
        at = tuple(int(solve.rng.integers(n)) for n in array.shape)
        kept, losses = array[at], []
        for array[at] in (kept + 0.5, kept - 0.5):
            losses.append(float((solve(spec, w, x) * g).sum()))
        array[at] = kept
        solve.same(losses[0] - losses[1], gradient[at], 2 * spec.macs, x, w, g)


def associative(solve: Solver) -> None:
    """Two layers without a border in between are one, whose kernel is the convolution of both."""
    first = solve.spec(groups=1, stride=1, dilation=1, padding="full", flip=True, padding_mode="zeros")
    kernel, outer = first.kernel, solve.draw(st.integers(1, 2))
    second = first.with_(
        in_channels=first.out_channels, size=first.output_size, out_channels=outer, padding="full"
    )
    x, w, v = (solve.array(*shape) for shape in (first.input_shape, first.weight_shape, second.weight_shape))
    # (M, C, k) as C images of M channels
    stacked = first.with_(
        batch=first.in_channels,
        in_channels=first.out_channels,
        size=kernel,
        out_channels=outer,
        padding="full",
    )
    composed = solve(stacked, v, np.ascontiguousarray(w.swapaxes(0, 1))).swapaxes(0, 1)
    both = first.with_(out_channels=outer, kernel=composed.shape[2:], padding="full")
    y = solve(both, np.ascontiguousarray(composed), x)
    solve.same(
        solve(second, v, solve(first, w, x)), y, first.out_channels * v[0, 0].size * w[0].size, x, w, v
    )


LAWS = linear, commutative, moves_along, adjoint, adjoint_of_weights, associative
# Claimed for none of the few: weights' gradients have kernels as large as grad, and those of two layers grow.
SELDOM = {
    (adjoint_of_weights, "separable"),
    (adjoint_of_weights, "winograd_f6"),
    (associative, "winograd_f6"),
}


@pytest.mark.parametrize(
    "full", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["short", "full"]
)
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Solver], None], name: str, full: bool) -> None:
    if reason := algos.get(name).unavailable():
        pytest.skip(reason)
    met: Counter[bool] = Counter()

    @settings(
        deadline=None,
        max_examples=EXAMPLES[algos.get(name).runtime][full],
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    @given(st.data())
    def example(data: st.DataObject) -> None:
        try:
            law(Solver(name, data.draw, full))
        except NotClaimed:
            met[False] += 1
        else:
            met[True] += 1

    example()
    assert met[True] or (law, name) in SELDOM


@pytest.mark.parametrize("call", [algos.conv1d, algos.conv2d, algos.conv3d, algos.conv_transpose1d,
                                  algos.conv_transpose2d, algos.conv_transpose3d],
                         ids=lambda call: call.__name__)  # fmt: skip
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "batch"])
def test_a_bias_is_added_once(call: Any, batch: tuple[int, ...]) -> None:
    """And its gradient is that of a sum: <bias, conv_bias(g)> = <what it adds, g>."""
    ndim = int(call.__name__[-2])
    rng = np.random.default_rng(ndim)
    x, w, bias = (
        rng.standard_normal((*batch, 3, *(6,) * ndim)),
        rng.standard_normal((3, 3, *(2,) * ndim)),
        rng.standard_normal(3),
    )
    without, with_it = call(x, w, algorithm="im2col_gemm"), call(x, w, bias, algorithm="im2col_gemm")
    added = np.broadcast_to(bias.reshape(-1, *(1,) * ndim), without.shape)
    np.testing.assert_array_equal(with_it, without + added)
    out = np.full_like(without, 7.0)
    assert call(x, w, bias, algorithm="im2col_gemm", out=out) is out
    np.testing.assert_array_equal(out, with_it)
    g = rng.standard_normal(without.shape)
    np.testing.assert_allclose(bias @ getattr(algos, f"conv{ndim}d_bias")(g), (added * g).sum(), rtol=1e-12)
