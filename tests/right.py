"""Correct algorithms of the FFT and Winograd classes, as short as they can be:
nothing that judges may refuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

import numpy as np
from scipy import fft

from algos.contract import Algorithm, Support
from algos.spec import ConvSpec


@dataclass(frozen=True)
class Transformed(Algorithm):
    """Convolution theorem over the padded full size; or, when ``circular``, over the padded size only."""

    name: str = "transformed"
    family: str = "fft"
    accuracy: str = "normwise"
    circular: bool = False
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 64 * (spec.min_bytes + math.prod(spec.padded_size) * spec.in_channels * spec.batch * 8)

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        axes = tuple(range(3, 3 + spec.ndim))
        full = [
            p + (0 if self.circular else e - 1)
            for p, e in zip(spec.padded_size, spec.kernel_extent, strict=True)
        ]
        n = [fft.next_fast_len(m, real=True) for m in full]
        groups, outer = spec.groups, spec.out_channels // spec.groups
        w = np.zeros((*weights.shape[:2], *spec.kernel_extent), weights.dtype)
        w[(..., *(slice(None, None, d) for d in spec.dilation))] = weights
        kernel = fft.rfftn(w.reshape(groups, outer, *w.shape[1:]), n, axes).conj()

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            x = np.pad(x, ((0, 0), (0, 0), *spec.padding)).reshape(spec.batch, groups, -1, *spec.padded_size)
            spectrum = np.einsum("ngi...,goi...->ngo...", fft.rfftn(x, n, axes), kernel)
            whole = fft.irfftn(spectrum, n, axes).reshape(spec.batch, spec.out_channels, *n)
            y = whole[
                (
                    ...,
                    *(
                        slice(0, (m - 1) * s + 1, s)
                        for m, s in zip(spec.output_size, spec.stride, strict=True)
                    ),
                )
            ]
            if out is None:
                return np.ascontiguousarray(y)
            out[...] = y
            return out

        return run


@cache
def toom_cook(m: int, r: int, points: tuple[Fraction, ...]) -> tuple[Any, Any, Any]:
    """A^T, G, B^T of F(m, r) from m + r - 2 points and infinity, as nested tuples of fractions."""
    t = m + r - 1
    back, kernel, data = [[Fraction(0)] * t for _ in range(m)], [[Fraction(0)] * r for _ in range(t)], []
    for k, a in enumerate([*points, None]):
        product = [Fraction(1)]
        for b in points:
            if b != a:
                product = [
                    low - b * high
                    for low, high in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)
                ]
        data.append((*product, *[Fraction(0)] * (t - len(product))))
        if a is None:
            back[m - 1][k] = kernel[k][r - 1] = Fraction(1)
            continue
        scale = math.prod((a - b for b in points if b != a), start=Fraction(1))
        for i in range(m):
            back[i][k] = a**i
        for j in range(r):
            kernel[k][j] = a**j / scale
    return tuple(map(tuple, back)), tuple(map(tuple, kernel)), tuple(data)


@dataclass(frozen=True)
class Minimal(Algorithm):
    """Winograd's F(m, 3) on every axis."""

    name: str = "minimal"
    family: str = "winograd"
    accuracy: str = "winograd"
    m: int = 2
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        t = math.prod(self.m + r - 1 for r in spec.kernel)
        return 16 * t * (spec.min_bytes + math.prod(spec.weight_shape))

    def transforms(self, spec: ConvSpec) -> tuple[Any, ...]:
        points = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))
        return tuple(toom_cook(self.m, r, points[: self.m + r - 2]) for r in spec.kernel)

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        matrices = [[np.array(a, spec.in_dtype) for a in axis] for axis in self.transforms(spec)]
        m, t = ([len(axis[which]) for axis in matrices] for which in (0, 2))
        tiles = [-(-n // k) for n, k in zip(spec.output_size, m, strict=True)]
        n, g = spec.batch, spec.groups

        def applied(which: int, a: np.ndarray) -> np.ndarray:
            for axis in range(spec.ndim):
                a = np.moveaxis(
                    np.tensordot(matrices[axis][which], a, (1, a.ndim - spec.ndim + axis)),
                    0,
                    axis - spec.ndim,
                )
            return a

        kernel = applied(1, weights).reshape(g, spec.out_channels // g, -1, *t)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            extra = [
                max(k * c + e - k - p, 0) for k, c, e, p in zip(m, tiles, t, spec.padded_size, strict=True)
            ]
            x = np.pad(
                x, ((0, 0), (0, 0), *((b, a + e) for (b, a), e in zip(spec.padding, extra, strict=True)))
            )
            pieces = np.lib.stride_tricks.sliding_window_view(x, t, tuple(range(2, x.ndim)))
            steps = [slice(0, k * c, k) for k, c in zip(m, tiles, strict=True)]
            pieces = pieces[(..., *steps, *[slice(None)] * spec.ndim)]
            pieces = applied(2, pieces).reshape(n, g, -1, math.prod(tiles), *t)
            y = applied(0, np.einsum("ngip...,goi...->ngop...", pieces, kernel))
            y = y.reshape(n, spec.out_channels, *tiles, *m)
            order = [0, 1] + [axis for k in range(spec.ndim) for axis in (2 + k, 2 + spec.ndim + k)]
            y = y.transpose(order).reshape(
                n, spec.out_channels, *(k * c for k, c in zip(m, tiles, strict=True))
            )
            y = np.ascontiguousarray(y[(..., *(slice(0, size) for size in spec.output_size))])
            if out is None:
                return y
            out[...] = y
            return out

        return run
