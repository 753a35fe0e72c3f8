"""The bound of Winograd's minimal filtering: the algorithm's own matrices on absolute values, once they are
proven to compute correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from algos.dtypes import accumulator, real
from algos.lower.compose import compose
from algos.lower.tree import Node, plain, tree
from algos.spec import ConvSpec
from bench.data import Operands
from bench.oracle import border_value, padded
from bench.trial import Judgeable, Trial, UnjudgedError, absolute, linear

TILE_ELEMENTS = 1 << 22  # of a block of Winograd tiles
Transforms = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # per axis A^T (m, t), G (t, r), B^T (t, t)


class TransformsError(ValueError):
    """The matrices that an algorithm exposes do not compute correlation."""


def winograd(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """4 u sqrt(q) S with q = 2(2t + r) + C + 2 for two equal axes, C the products that are summed; lowered,
    that of each forward problem where it belongs.
    """
    node, spec = lowered(algorithm, trial.spec), linear(trial.spec)
    work = accumulator(real(trial.spec.out_dtype)).name

    def bound(part: Trial) -> np.ndarray:
        matrices = winograd_matrices(algorithm, plain(part.spec.with_(dtype=work)))
        summed = math.prod(len(data) for back, _, data in matrices if len(back) == 1)  # along the depth
        channels = part.inner_channels * trial.parts * summed
        q = sum(2 * g.shape[0] + g.shape[1] for _, g, _ in matrices) + channels + 2
        return 4 * trial.unit * math.sqrt(q) * amplified(part, matrices)

    if node.leaves == (plain(spec),):
        return bound(replace(trial, spec=spec))

    def solve(leaf: ConvSpec, w: Any, bias: Any) -> Callable[..., np.ndarray]:
        return lambda x, *late: bound(Trial(leaf, Operands(x, late[0] if w is None else w, None)))

    # The sums of absolute values: those of complex numbers are no complex problem, but a real one
    data, wide = trial.data, tree(spec.with_(dtype="float64"), _names(algorithm, trial.spec))
    weights = None if data.w is None else absolute(data.w)
    return trial.at(compose(wide, weights, solve)(*map(absolute, data.call)))


def key_of(algorithm: Judgeable, spec: ConvSpec) -> tuple[Any, ...]:
    """What the bound of ``spec`` depends on, of the algorithm."""
    node = lowered(algorithm, spec)
    return (node.words, *(_exposed(algorithm, leaf) for leaf in dict.fromkeys(node.leaves)))


def lowered(algorithm: Judgeable, spec: ConvSpec) -> Node:
    """The forward problems that the algorithm solves for ``spec``."""
    return tree(spec, _names(algorithm, spec))


def _names(algorithm: Judgeable, spec: ConvSpec) -> tuple[str, ...]:
    asked = getattr(algorithm, "lowered", None)
    return asked(spec) if asked else ("border", "flip")


def winograd_matrices(algorithm: Judgeable, spec: ConvSpec) -> Transforms:
    """The algorithm's matrices in float64, after proving with fractions that they compute correlation.

    Raises
    ------
    UnjudgedError
        For a direction, stride or dilation that this bound doesn't cover.
        Also for an algorithm without ``transforms``.
    TransformsError
        For matrices that compute something else.
    """
    if spec.direction != "forward" or max(spec.stride) > 1 or max(spec.dilation) > 1:
        raise UnjudgedError("the Winograd bound covers forward passes of stride and dilation 1")
    exposed = _exposed(algorithm, spec)
    if exposed is None:
        raise UnjudgedError(
            f"{algorithm.name} exposes no transforms(spec), which the Winograd bound is computed from"
        )
    transforms, matrices = _numbers(exposed)
    if len(transforms) != spec.ndim:
        raise TransformsError(f"transforms gives {len(transforms)} axes: the spec has {spec.ndim}")
    for axis, (back, kernel, data) in enumerate(transforms):
        if problem := _misfit(back, kernel, data, spec.kernel[axis]):
            raise TransformsError(f"the transforms of axis {axis} do not compute correlation: {problem}")
    return matrices


def _exposed(algorithm: Judgeable, spec: ConvSpec) -> tuple[Any, ...] | None:
    """The matrices per axis as nested tuples of fractions, or of texts; None where none are exposed."""
    transforms = getattr(algorithm, "transforms", None)
    found = transforms and transforms(spec)
    return found and tuple(tuple(tuple(map(tuple, m)) for m in axis) for axis in found)


@lru_cache(64)
def _numbers(exposed: tuple[Any, ...]) -> tuple[tuple[Any, ...], Transforms]:
    """What is exposed as fractions, and in float64."""
    exact = tuple(tuple(tuple(tuple(map(Fraction, row)) for row in m) for m in axis) for axis in exposed)
    return exact, [tuple(np.array(m, np.float64) for m in axis) for axis in exact]  # type: ignore[misc]


@lru_cache(64)
def _misfit(back: Any, kernel: Any, data: Any, size: int) -> str | None:
    """Why sum over k of A^T[i, k] G[k, j] B^T[k, l] is not 1 where l = i + j and 0 elsewhere, or None."""
    m, t, r = len(back), len(data), len(kernel[0])
    if t != m + r - 1 or r != size or any(len(row) != t for row in (*back, *data)) or len(kernel) != t:
        return (
            f"A^T is {m}x{len(back[0])}, G {len(kernel)}x{r}, B^T {t}x{len(data[0])} for a kernel of {size}"
        )
    for i, j, k in np.ndindex(m, r, t):
        total = sum((back[i][p] * kernel[p][j] * data[p][k] for p in range(t)), Fraction(0))
        if total != (k == i + j):
            return f"output {i}, tap {j}, input {k} has the weight {total}"
    return None


def amplified(trial: Trial, matrices: Transforms) -> np.ndarray:
    """S: the bilinear form run on absolute values, |A^T| ((|G| |w|) * (|B^T|
    |x|)) summed over channels, per result.
    """
    spec, data = trial.spec, trial.data
    assert data.x is not None and data.w is not None
    ndim, groups = spec.ndim, spec.groups
    inner, outer = spec.in_channels // groups, spec.out_channels // groups
    m, t = ([len(a[which]) for a in matrices] for which in (0, 2))
    tiles = [-(-n // k) for n, k in zip(spec.output_size, m, strict=True)]
    x, x_exponent = _near_one(padded(spec, absolute(data.x), abs(border_value(spec))))
    reach = [n * k + b - k for n, k, b in zip(tiles, m, t, strict=True)]
    x = np.pad(
        x, ((0, 0), (0, 0), *((0, max(n - have, 0)) for n, have in zip(reach, x.shape[2:], strict=True)))
    )
    windows = np.lib.stride_tricks.sliding_window_view(x, t, tuple(range(2, 2 + ndim)))
    steps: Any = (slice(None), slice(None), *(slice(0, n * k, k) for n, k in zip(tiles, m, strict=True)))
    windows = windows[steps]
    w, w_exponent = _near_one(absolute(np.flip(data.w, tuple(range(2, 2 + ndim))) if spec.flip else data.w))
    kernel = _applied([g for _, g, _ in matrices], w)  # (O, C / groups, *t)
    # (prod t, groups, C / groups, O / groups)
    kernel = kernel.reshape(groups, outer, inner, -1).transpose(3, 0, 2, 1)

    places = (spec.batch, *tiles)
    if trial.points is None:
        chosen = np.arange(math.prod(places))
    else:
        n, channel, *place = trial.points.T
        tile = np.ravel_multi_index((n, *(p // k for p, k in zip(place, m, strict=True))), places)
        chosen, inverse = np.unique(tile, return_inverse=True)
    result = np.empty((len(chosen), spec.out_channels, *m))
    step = max(TILE_ELEMENTS // (max(spec.in_channels, spec.out_channels) * math.prod(t)), 1)
    for start in range(0, len(chosen), step):
        image, *index = np.unravel_index(chosen[start : start + step], places)
        at: Any = (image, slice(None), *index)
        block = windows[at]  # (tiles, C, *t)
        block = _applied([b for _, _, b in matrices], block).reshape(-1, groups, inner, math.prod(t))
        product = block.transpose(3, 1, 0, 2) @ kernel  # (prod t, groups, tiles, O / groups)
        product = product.transpose(2, 1, 3, 0).reshape(-1, spec.out_channels, *t)
        result[start : start + step] = _applied([a for a, _, _ in matrices], product)
    result = np.ldexp(result, x_exponent + w_exponent)
    if trial.points is not None:
        return result[(inverse, channel, *(p % k for p, k in zip(place, m, strict=True)))]
    whole = result.reshape(*places, spec.out_channels, *m)
    order = [0, ndim + 1] + [axis for k in range(ndim) for axis in (1 + k, ndim + 2 + k)]
    whole = whole.transpose(order).reshape(
        spec.batch, spec.out_channels, *(n * k for n, k in zip(tiles, m, strict=True))
    )
    inside: Any = (..., *(slice(0, n) for n in spec.output_size))
    return whole[inside]


def _near_one(a: np.ndarray) -> tuple[np.ndarray, int]:
    """a / 2^e, whose finite elements are 1 at most, and e: what grows inside must not overflow."""
    exponent = int(np.frexp(a.max(initial=0, where=np.isfinite(a)))[1])
    return np.ldexp(a, -exponent), exponent


def _applied(matrices: list[np.ndarray], a: np.ndarray) -> np.ndarray:
    """Absolute values of one matrix per trailing axis, applied to a (first, second, *axes) in one product."""
    joined = np.abs(reduce(np.kron, matrices))
    return (a.reshape(-1, joined.shape[1]) @ joined.T).reshape(*a.shape[:2], *map(len, matrices))
