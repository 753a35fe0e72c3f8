"""Compiled kernels run as the Python that they are written in, with what moves and multiplies numbers left
out and counted: which outputs each thread finishes, and what its part costs. Nothing is compiled or computed.

The model counts in multiply-adds of a microkernel, about a hundredth of a nanosecond each: those that a
kernel really makes, what is empty of vectors included; six for each element that is packed, transformed or
transposed; eight for each weight that a thread reads for the first time, and again where its weights leave
the second-level cache between two readings; and what handing over costs, more for each thread that must be
told. Chunks go to whoever is free, from the front to the caller, from the back to helpers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

from algos.contract import Algorithm
from algos.cpu import (
    _inputs,
    _weights,
    depthwise,
    direct_channels,
    direct_pixels,
    fft_fused,
    numba_direct,
    numba_picture,
    separable,
    winograd,
)
from algos.cpu._weights import SUMMED
from algos.engine.epilogue import After
from algos.engine.relay import CHUNKS, HELPERS, ITEMS, Helpers
from algos.engine.simd import lanes
from algos.engine.target import ROWS, UNROLLED, VECTOR_BYTES, VECTORS
from algos.host import caches
from algos.spec import ConvSpec

MODULES = (_inputs, _weights, depthwise, direct_channels, direct_pixels, fft_fused, numba_direct,
           numba_picture, separable, winograd)  # fmt: skip
WIDE = VECTOR_BYTES // 4
MOVED, READ = 6.0, 8.0  # of an element packed or transposed, and of a weight read
LOOSE, PICKED = 3.0, 12.0  # of multiply-adds elsewhere, and of elements that are picked out
HAND_OVER, TELLING, CHUNK = 1e5, 1e4, 5e3
APART = 1 << 40  # addresses of arrays
GIVEN, RESULT, OTHER, PACKED, ROOMS = (n * APART for n in range(1, 6))


class Counted:
    """An array of which only the shape and the place are known."""

    def __init__(self, shape: Any, itemsize: int = 4, base: int = 0) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(map(int, shape))
        self.itemsize, self.base = itemsize, base
        self.size, self.ndim = math.prod(self.shape), len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self
        at, rest = self.base, self.shape
        for i in index if isinstance(index, tuple) else (index,):
            rest = rest[1:]
            at += int(i) * math.prod(rest) * self.itemsize
        return Counted(rest, self.itemsize, at) if rest else 1.0

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def reshape(self, *shape: Any) -> Counted:
        return Counted(shape[0] if len(shape) == 1 else shape, self.itemsize, self.base)


class Machine:
    """``run(algorithm, spec, threads)`` fills in what happened.

    Attributes
    ----------
    found : dict of arrays
        How often each output was finished, and each of what shares of positions found, by address.
    tiled : bool
        Whether tiles overlap within a chunk: then ``TWICE`` says that two chunks had an output.
    macs, packing : float
        Of all threads, multiply-adds and what moving elements takes.
    weights, read : int
        Elements of the weights as packed, and how many each thread read, again where it must.
    seconds : float
        In multiply-adds, of the thread that ends last, hand-overs included.
    busy : list of float
        Of each thread.
    """

    TWICE = 255

    def __init__(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> None:
        self.spec, self.macs, self.packing, self.time, self.now, self.chunk = spec, 0.0, 0.0, 0.0, 0, 0
        self.tiled = algorithm.name == "depthwise"
        self.seconds, self.cache = 0.0, caches()["L2"]
        self._pure: dict[Any, Any] = {}
        result = {"forward": spec.output_shape, "input_gradient": spec.input_shape,
                  "weight_gradient": spec.weight_shape}[spec.direction]  # fmt: skip
        given = spec.input_shape if spec.direction != "input_gradient" else spec.output_shape
        as_4d = lambda s: (s[0], s[1] * math.prod(s[2:-2]), *(1, *s[2:])[-2:])  # noqa: E731
        self.x, self.y = Counted(as_4d(given), base=GIVEN), Counted(as_4d(result), base=RESULT)
        self.plane = math.prod(self.y.shape[2:])
        self.sizes, self.found = {RESULT: self.y.size}, {RESULT: np.zeros(self.y.size, np.uint8)}
        nothing_given = np.broadcast_to(np.float32(0), spec.weight_shape)
        weights = None if spec.direction == "weight_gradient" else nothing_given
        self.threads = 1
        crew = Helpers()
        with mock.patch.object(Helpers, "hire", lambda _, count: count):
            stood_in = self._prepared(algorithm, spec, weights, threads)
            self.threads = stood_in.threads
            job = crew.job(stood_in.items, stood_in.threads)
        self.busy, self.last, self.read = [0.0] * self.threads, [0] * self.threads, [0] * self.threads
        self.known: list[set[int]] = [set() for _ in range(self.threads)]
        arrays_of = (a for a in stood_in.arguments if isinstance(a, Counted))
        self.weights = next((a.size for a in arrays_of if a.base == PACKED), 0)
        arrays = [self.x, self.y]
        if spec.direction == "weight_gradient":
            arrays = [self.x, Counted(as_4d(spec.output_shape), base=OTHER), self.y]
        self.pure(stood_in.kernel)(*arrays, *stood_in.arguments, job)

    def _prepared(self, algorithm: Algorithm, spec: ConvSpec, weights: Any, threads: int) -> Any:
        def packed(kernels: Any, offsets: Any, block: int, threads: int) -> Counted:
            return Counted((len(kernels), -(-kernels.shape[1] // block), offsets.size, block), base=PACKED)

        def packed_rows(kernels: Any) -> Counted:
            groups, outputs, elements = kernels.shape
            return Counted(groups * -(-outputs // ROWS) * ROWS * elements, base=PACKED)

        def transformed(self: Any, spec: ConvSpec, weights: Any, threads: int) -> Any:
            block, groups = VECTORS * lanes(spec.in_dtype), spec.groups
            shape = (groups, math.prod(self._tile(spec)), -(-spec.out_channels // groups // block),
                     spec.in_channels // groups * math.prod(spec.kernel[:-2]), block)  # fmt: skip
            return Counted(shape, base=PACKED), (0, None, (0, 0), np.ones((3, 3)))

        def spectra(self: Any, spec: ConvSpec, plan: Any, *_: Any) -> Counted:
            pairs = spec.out_channels * spec.in_channels // spec.groups
            return Counted(pairs * self._taken(spec, plan), base=PACKED)

        rooms = count(ROOMS, APART)

        def aligned(shape: Any, dtype: Any = None, zeros: bool = False) -> Counted:
            made = Counted(shape, base=next(rooms))
            self.sizes[made.base] = made.size
            return made

        instead = {"packed": packed, "_packed": packed_rows, "aligned": aligned}
        with mock.patch.multiple(winograd.Winograd, _kernels=transformed), \
             mock.patch.multiple(fft_fused.FftFused, _kernels=spectra):  # fmt: skip
            patches = [mock.patch.object(module, name, made) for module in MODULES
                       for name, made in instead.items() if hasattr(module, name)]  # fmt: skip
            for patch in patches:
                patch.start()
            try:
                return algorithm.work(spec, weights, threads)
            finally:
                for patch in patches:
                    patch.stop()

    # ---- code ----------------------------------------------------------------------------------------------

    def pure(self, function: Any) -> Callable[..., Any]:
        """A kernel as Python, with all that it calls."""
        code = function.py_func if isinstance(function, Dispatcher) else function
        if code not in self._pure:
            names: dict[str, Any] = dict(code.__globals__)
            self._pure[code] = FunctionType(code.__code__, names, code.__name__, code.__defaults__,
                                            code.__closure__)  # fmt: skip
            for name in code.__code__.co_names:
                value = names.get(name)
                if stub := getattr(self, f"on_{name.lstrip('_')}", None):
                    names[name] = stub
                elif isinstance(value, Dispatcher):
                    names[name] = self.pure(value)
                elif isinstance(value, _Intrinsic):
                    names[name] = nothing
        return self._pure[code]

    def on_fork(self, function: Any, arguments: tuple[Any, ...], job: np.ndarray) -> None:
        threads, left, right = int(job[HELPERS]) + 1, 0, int(job[CHUNKS]) - 1
        items, chunks, ends = int(job[ITEMS]), int(job[CHUNKS]), [0.0] * (int(job[HELPERS]) + 1)
        while left <= right:
            self.now = min(range(threads), key=ends.__getitem__)
            self.chunk = left if self.now == 0 else right
            left, right = (left + 1, right) if self.now == 0 else (left, right - 1)
            before = self.time
            function(*arguments, self.now, items * self.chunk // chunks, items * (self.chunk + 1) // chunks)
            ends[self.now] += self.time - before + (CHUNK if threads > 1 else 0.0)
        self.seconds += max(ends) + (HAND_OVER + TELLING * threads if threads > 1 else 0.0)
        self.busy = [a + b for a, b in zip(self.busy, ends + [0.0] * threads, strict=False)]

    # ---- counting ------------------------------------------------------------------------------------------

    def multiply(self, macs: float, factor: float = 1.0) -> None:
        self.macs += macs
        self.time += macs * factor

    def move(self, elements: float) -> None:
        self.packing += elements * MOVED
        self.time += elements * MOVED

    def weigh(self, at: int, elements: int) -> None:
        """Weights at address ``at``, whose last use may have been the last one."""
        if at == self.last[self.now]:
            return
        self.last[self.now] = at
        if at not in self.known[self.now] or 4 * self.weights > self.cache:
            self.known[self.now].add(at)
            self.read[self.now] += elements
            self.time += elements * READ

    def counts(self, base: int) -> np.ndarray:
        """Flat, of the result, or of what each share of the positions finds of it."""
        if base not in self.found:
            self.found[base] = np.zeros(self.sizes[base], np.uint8)
        return self.found[base]

    def finish(
        self, y: Counted, plane: int, planes: int, pixel: int, rows: int, step: int, cols: int
    ) -> None:
        """Rows of ``cols`` outputs, ``step`` apart."""
        each = self.counts(y.base).reshape(-1, math.prod(y.shape[2:]))[plane : plane + planes]
        for r in range(rows):
            each[:, pixel + r * step : pixel + r * step + cols] += 1

    # ---- what kernels call ---------------------------------------------------------------------------------

    on_named = staticmethod(lambda kind, table: kind(*table))
    on_after_of = staticmethod(lambda job: After(0, 0))
    on_kind_of = staticmethod(lambda *_: 0)
    on_uintp = staticmethod(int)
    on_element_size = staticmethod(lambda _: 4)

    @staticmethod
    def on_address(a: Any, index: int) -> Any:
        return a[index:] if isinstance(a, np.ndarray) else a.base + int(index) * a.itemsize

    on_place = on_address

    @staticmethod
    def on_advance(at: Any, count: int) -> Any:
        return at + int(count) * 4

    def on_pack_patch(self, x, plane0, apart, at, channels, row0, rows, left, cut, patch):
        self.move(channels * rows * cut.cols)

    def on_runs_block(self, source, outputs, pixels, starts, n_starts, singles, n_singles, w, sums, more,
                      vectors):  # fmt: skip
        elements = (n_starts * UNROLLED + n_singles) * len(vectors) * WIDE
        self.multiply(outputs * elements)
        if PACKED <= w < ROOMS:
            self.weigh(w, elements)

    def on_unpack_sums(self, sums, y, plane0, apart, o, count, at, pixels, after):
        self.move(count * pixels)
        self.on_finish_planes(After(0, 0), y, plane0, apart, o, count, at, 1, int(pixels))

    def on_unpack_places(self, sums, places, y, plane, count, at, pixels, spare):
        self.move(count * pixels)
        self.finish(y, int(plane), count, int(at), 1, 0, int(pixels))

    def on_unpack_merged(self, sums, y, plane, planes, b, q, count, m, columns, layout):
        left, each = layout.left + m * layout.step, sums.shape[1] // layout.run
        first, end = max(0, left), min(layout.width, left + columns * layout.step)
        for number in range(b * each, (b + 1) * each):
            c, a = divmod(number, layout.stride)
            rows = range(layout.begin + q * layout.stride + a, layout.height, layout.stride)[:count]
            for row in rows if c < planes else ():
                if row >= 0:
                    self.move((end - first) / layout.step)
                    self.finish(y, plane + c, 1, row * layout.width + first, 1, 0, end - first)

    def on_pack_panel(self, x, start, plane, rows, count, panel):
        self.move(rows * count / 4)

    def on_block_of_outputs(self, w, first, source, taps, k, y, plane, filters, pixels, wide, spare, more):
        rows = ROWS if filters > ROWS * 2 // 3 else ROWS * 2 // 3
        self.multiply(k * rows * wide * (VECTORS if pixels > wide else 1))
        self.weigh(w + 4 * first * ROWS, k * rows)

    def on_finish(self, after, y, n, o, planes, pixel, rows, cols):
        self.finish(y, int(n * y.shape[1] + o), planes, int(pixel), rows, y.shape[3], cols)

    def on_finish_planes(self, after, y, first, step, o, planes, pixel, rows, cols):
        for plane in range(int(first), int(first) + planes * step, step):
            self.finish(y, plane, 1, int(pixel), rows, y.shape[3], cols)

    def on_finish_plane(self, after, y, at, o, rows, row_step, cols):
        self.finish(self.y, int(at) // self.plane, 1, int(at) % self.plane, int(rows), row_step, int(cols))

    def on_pack(self, x, i, scratch, geometry, phases, block):
        self.move(geometry.row_phases * geometry.col_phases * (block.rows + geometry.row_reach)
                  * (block.cols + geometry.col_reach))  # fmt: skip

    def on_accumulate(self, sums, span, scratch, base, offsets, weights, set_first):
        self.multiply(span * len(offsets), LOOSE)

    def on_crop(self, sums, pitch, y, o, block):
        self.move(block.rows * block.cols / MOVED)

    def on_transform(self, *_):
        self.move(WIDE)

    def on_outer_rows(self, source, left, weights, taps, channels, target, right, more, rows, vectors):
        self.multiply(channels * rows * vectors * WIDE)
        self.weigh(weights, channels * vectors * WIDE)

    def on_correlate_block(self, rows, outs, w, col, to, kh, kw, more, taps, strip):
        self.multiply(len(strip) * kh * kw * WIDE * 3, LOOSE)

    def on_slide(self, source, pitch, w, outs, vectors, more, taps, part):
        self.multiply(len(part) * len(taps) * vectors * WIDE, LOOSE)

    def on_copy(self, to, source, count):
        """Rows of a weight gradient of swapped operands."""
        if self.spec.direction == "weight_gradient":
            self.counts(to // APART * APART)[to % APART // 4 :][:count] += 1

    def on_add_shares(self, found, dw, slot, first, last):
        begin, end = first * SUMMED, min(dw.size, last * SUMMED)
        self.counts(RESULT)[begin:end] += 1
        self.move(len(found) * (end - begin) / MOVED)

    def on_columns_in(self, x, plane, tile, *_):
        self.transformed(2 * tile.rows * tile.cols)
        return 0

    def on_filter_rows(self, spectra, taken, *_):
        self.transformed(taken)

    def transformed(self, points: int) -> None:
        self.multiply(points * 2.5 * math.log2(points), LOOSE)

    def on_turn(self, *_):
        return 0

    def on_tile_rows(self, source, kernel, target, end, zeros, bias, top, layer, shape):
        rows, at = len(shape[2]), int(target - self.y.base) // 4
        self.multiply(rows * -(-layer.out_width // WIDE) * WIDE * layer.kernel_h * layer.kernel_w, LOOSE)
        self.own(at // self.plane, at % self.plane // layer.out_width, rows, layer.out_width)

    def on_adjoint_rows(self, grad, w, y, zeros, spare, first, layer, shape):
        at, rows = int(y - self.y.base) // 4, len(shape[1]) * layer.stride_h
        top = int(first) * layer.stride_h - layer.top
        low, high = max(0, top), min(layer.height, top + rows)
        self.multiply(rows * layer.width * layer.kernel_h * layer.kernel_w / layer.stride_h, LOOSE)
        self.own(at // self.plane, low, high - low, layer.width)

    def own(self, plane: int, row: int, rows: int, width: int) -> None:
        """Rows of a plane that a tile writes, maybe again: the last overlaps the one before of its chunk."""
        part = self.found[RESULT].reshape(-1, self.plane // width, width)[plane, row : row + rows]
        mine = 1 + self.chunk % (self.TWICE - 1)
        part[...] = np.where((part == 0) | (part == mine), mine, self.TWICE)

    def on_add_products(self, x, y, dw, rows, start, skip, layer, shape):
        at = int(dw - self.y.base) // 4 + skip
        self.multiply(rows * len(shape[1]) * layer.out_width, LOOSE if len(shape[2]) == 1 else PICKED)
        row = self.found[RESULT][at : at + len(shape[1]) - skip]
        row[...] = np.maximum(row, 1)


def nothing(*_: Any) -> None:
    pass
