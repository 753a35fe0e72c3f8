"""Overlap-save, compiled: each real tile as a complex one of half the rows, read, filtered and written strip
by strip.

A tile is 2 ``rows`` x ``cols`` points, ``cols`` a multiple of the L lanes of a vector; what ``rows`` lacks of
one is zeros. Its upper half is the real part and its lower half the imaginary part of ``rows`` x ``cols``
complex points: modulo z^rows - i a polynomial with real coefficients loses nothing, since z^(2 rows) is -1
there. What wraps round comes back negative, and is dropped as in any overlap-save. A transform reaches that
ring by turning point n by exp(i pi n / (2 rows)) before, and back after; the same pass scales. So nothing is
shared between tiles, let alone between images.

Columns are transformed L at a time in a strip that stays in the first-level cache; each strip goes,
transposed, into ``spectra``, where L rows lie side by side. There rows are transformed, multiplied and
transformed back in one visit; then columns, strip by strip, straight into the result.

Range (``algos/engine/ranges.py``): tiles that are LARGE or FAINT, by ``limits``, are scaled while they are
turned, and so are all results. ``scales`` holds two factors for each kind of tile, then for each output
channel the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from algos.engine.butterflies import FORWARD, INVERSE, move, multiply, transpose, turn
from algos.engine.epilogue import after_of, finish_plane
from algos.engine.fourier import FLAGS, filtered, forward, inverse
from algos.engine.jit import compiled, linked
from algos.engine.ranges import ORDINARY, kind_of
from algos.engine.relay import fork
from algos.engine.tables import named

# Strips of columns read and written together: whole cache lines, even where rows lie a power of two apart
STRIPS = 4


class Stages(NamedTuple):
    """Of a ``Transform``."""

    stages: np.ndarray
    factors: np.ndarray


class Tile(NamedTuple):
    """A tile of 2 ``rows`` x ``cols`` pixels of an image, in vectors of so many lanes."""

    height: int  # of the image
    width: int
    rows: int
    cols: int
    lanes: int


class PlaneTiles(NamedTuple):
    """How images are cut into tiles; see ``fft_fused``."""

    height: int
    width: int
    out_height: int
    out_width: int
    rows: int  # half of a tile's
    cols: int
    kept_rows: int  # outputs of a tile, before the stride drops any
    kept_cols: int
    down: int  # tiles of an image
    across: int
    row_step: int  # the stride
    col_step: int
    top: int  # rows of padding
    left: int
    groups: int
    inputs: int  # of a group
    outputs: int
    lanes: int
    per_group: int  # tiles of all images
    faint: int  # limits of ``kind_of``
    large: int


class LineTiles(NamedTuple):
    """The same for signals, whose tiles go side by side, as many as a vector has lanes."""

    width: int
    out_width: int
    cols: int  # half of a tile
    kept: int
    step: int
    left: int
    groups: int
    inputs: int
    outputs: int
    lanes: int
    bundles: int  # of tiles of a signal
    faint: int
    large: int


class Memory(NamedTuple):
    """What threads work in, a row for each."""

    strips: np.ndarray
    spectra: np.ndarray


@linked(**FLAGS)
def whole(count, lanes):
    """``count`` and what it lacks of a multiple of ``lanes``."""
    return (count + lanes - 1) // lanes * lanes


@linked(**FLAGS)
def _read(x, plane, tile, top, left, data, at, strips):
    """Strips of ``rows`` x ``lanes`` pixels from (top, left) on, zero outside the
    image, each a part of complex points.
    """
    height, width, rows, lanes = tile.height, tile.width, tile.rows, tile.lanes
    point, pitch = 2 * lanes, 2 * lanes * whole(rows, lanes)
    first = min(rows, max(0, -top))
    last = max(first, min(rows, height - top))
    for k in range(strips):
        for r in range(first):
            _zero(data, at + k * pitch + r * point, lanes)
        for r in range(last, rows):
            _zero(data, at + k * pitch + r * point, lanes)
    source, target, after = plane + (top + first) * width + left, at + first * point, at + last * point
    if strips == STRIPS and left >= 0 and left + STRIPS * lanes <= width:
        for to in range(target, after, point):
            for k in range(STRIPS):
                move(x, source + k * lanes, 0, data, to + k * pitch, 0)
            source += width
        return
    for to in range(target, after, point):
        for k in range(strips):
            c = left + k * lanes
            if c >= 0 and c + lanes <= width:
                move(x, source + k * lanes, 0, data, to + k * pitch, 0)
            else:
                for j in range(lanes):
                    data[to + k * pitch + j] = (
                        x[source + k * lanes + j] if c + j >= 0 and c + j < width else 0
                    )
        source += width


@linked(**FLAGS)
def _zero(data, at, count):
    for j in range(count):
        data[at + j] = 0


@linked(**FLAGS)
def _write(data, at, strips, tiles, row, rows, col, cols, y, plane):
    """Every step-th of ``rows`` x ``cols`` points of strips, to y from (row, col)
    of the outputs before the stride on.
    """
    height, width, lanes = tiles.out_height, tiles.out_width, tiles.lanes
    row_step, col_step, pitch = tiles.row_step, tiles.col_step, 2 * lanes * whole(tiles.rows, lanes)
    step, oh = 2 * lanes * row_step, row // row_step
    rows = min((rows + row_step - 1) // row_step, height - oh)
    target, source = plane + oh * width, at  # y[n][o][oh][0]
    if strips == STRIPS and col_step == 1 and cols >= STRIPS * lanes and col + STRIPS * lanes <= width:
        for _ in range(rows):
            for k in range(STRIPS):
                move(data, source + k * pitch, 0, y, target + col + k * lanes, 0)
            source, target = source + step, target + width
        return
    for _ in range(rows):
        for k in range(strips):
            c, count = col + k * lanes, min(lanes, cols - k * lanes)
            if col_step == 1 and count == lanes and c + lanes <= width:
                move(data, source + k * pitch, 0, y, target + c, 0)
            else:
                for j in range(-c % col_step, count, col_step):
                    if (c + j) // col_step < width:
                        y[target + (c + j) // col_step] = data[source + k * pitch + j]
        source, target = source + step, target + width


@linked(**FLAGS)
def filter_rows(spectra, taken, rows, cols, lanes, along, kernels, kernel, inputs, target):
    """Sums of products with the kernels' spectra, rows back, at ``target``; 0: in
    place, on one input not yet forward.
    """
    stages, factors, points = along.stages, along.factors, cols * 2 * lanes
    for strip in range(0, rows // lanes * points, points):
        if target == 0:
            filtered(spectra, strip, cols, stages, factors, kernels, kernel)
            continue
        for at in range(strip, strip + points, 2 * lanes):
            multiply(spectra, target + at, spectra, at, kernels, kernel + at, 0)
            for i in range(1, inputs):
                multiply(spectra, target + at, spectra, i * taken + at, kernels, kernel + i * taken + at, 1)
        inverse(spectra, target + strip, cols, stages, factors, len(stages))


@linked(**FLAGS)
def columns_in(x, plane, tile, top, left, down, turns, scales, s, strip, spectra, to):
    """Columns of a tile from (top, left) on forward into ``spectra[to:]``, scaled by
    ``scales[s]``; the tile's ``peak``.
    """
    rows, cols, lanes = tile.rows, tile.cols, tile.lanes
    point, pitch, found = 2 * lanes, 2 * lanes * whole(rows, lanes), 0
    stages, factors = down.stages, down.factors
    for c in range(0, cols, STRIPS * lanes):
        strips = min(STRIPS, (cols - c) // lanes)
        for part in range(2):
            _read(x, plane, tile, top + part * rows, left + c, strip, part * lanes, strips)
        for k in range(strips):
            at = k * pitch
            found = max(found, turn(strip, at, rows, turns, scales, s, FORWARD))
            forward(strip, at, rows, stages, factors, len(stages))
            for r in range(0, rows, lanes):
                place = to + (r * cols + (c + k * lanes) * lanes) * 2
                transpose(strip, at + r * point, point, spectra, place, point)
                transpose(strip, at + r * point + lanes, point, spectra, place + lanes, point)
    return found


@linked(**FLAGS)
def rows_in(spectra, to, rows, cols, lanes, along):
    """Rows forward, where they lie."""
    stages, factors = along.stages, along.factors
    for at in range(to, to + rows * cols * 2, cols * 2 * lanes):
        forward(spectra, at, cols, stages, factors, len(stages))


@compiled(error_model="numpy")
def kernel_planes(weights, taps_h, taps_w, image, lanes, along, down, turns, scales, strip, kernels):
    """Spectra of kernels (pair, kh, kw), over the points of a tile; taps_h, taps_w: where taps stand in
    ``image``, the tile.

    along, down: stages and factors of the transforms of rows and of columns.
    """
    rows, cols = image.shape[0] // 2, image.shape[1]
    tile, of_rows, of_cols = Tile(2 * rows, cols, rows, cols, lanes), Stages(*along), Stages(*down)
    zero = np.int64(0)  # no literal, for which everything would be compiled once more
    for pair in range(weights.shape[0]):
        image[:] = 0
        for i in range(taps_h.size):
            for j in range(taps_w.size):
                image[taps_h[i], taps_w[j]] += weights[pair, i, j]
        at = pair * whole(rows, lanes) * cols * 2
        columns_in(image.reshape(image.size), zero, tile, zero, zero, of_cols, turns, scales, zero, strip,
                   kernels, at)  # fmt: skip
        rows_in(kernels, at, whole(rows, lanes), cols, lanes, of_rows)


@compiled(error_model="numpy")
def kernel_lines(weights, taps, lanes, cols, along, turns, scales, kernels):
    """The same for ``lines``: kernels (pair, k), the same in all lanes."""
    taken = cols * lanes * 2
    kernels[:] = 0
    for pair in range(weights.shape[0]):
        at = pair * taken
        for j in range(taps.size):
            place = taps[j] % cols * 2 * lanes + (lanes if taps[j] >= cols else 0)
            for lane in range(lanes):
                kernels[at + place + lane] += weights[pair, j]
        turn(kernels, at, cols, turns, scales, np.int64(0), FORWARD)
        rows_in(kernels, at, lanes, cols, lanes, Stages(*along))


@linked(**FLAGS)
def planes(x, y, kernels, tiles, stages_of, turns, scales, memory, after, slot, first, last):
    """Items [first, last): a group and a tile each. x: (n * c * h * w); y: (n * o * oh * ow); see
    ``fft_fused``; stages_of: those of rows and of columns.
    """
    strip, spectra, (along, down) = memory.strips[slot], memory.spectra[slot], stages_of
    tile = Tile(tiles.height, tiles.width, tiles.rows, tiles.cols, tiles.lanes)
    kept_rows, kept_cols, inputs, outputs = tiles.kept_rows, tiles.kept_cols, tiles.inputs, tiles.outputs
    rows, cols, lanes, across = tile.rows, tile.cols, tile.lanes, tiles.across
    stages, factors = down.stages, down.factors
    each, point, lines = tiles.down * across, 2 * lanes, whole(rows, lanes)
    taken = lines * cols * 2
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, which = item // tiles.per_group, item % tiles.per_group
        n, row, col = which // each, which % each // across * kept_rows, which % across * kept_cols
        kind, found = ORDINARY, 0
        i = 0
        while i < inputs:
            plane = ((n * tiles.groups + group) * inputs + i) * tile.height * tile.width  # x[n][c][0][0]
            top, left = row - tiles.top, col - tiles.left
            seen = columns_in(
                x, plane, tile, top, left, down, turns, scales, 2 * kind, strip, spectra, i * taken
            )
            found = max(found, seen)
            if target:
                rows_in(spectra, i * taken, lines, cols, lanes, along)
            i += 1
            if i == inputs and kind == ORDINARY:
                kind = kind_of(found, (tiles.faint, tiles.large))
                # Once more: channels are summed and must be scaled alike
                i = 0 if kind != ORDINARY else inputs
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(
                spectra, taken, lines, cols, lanes, along, kernels, o * inputs * taken, inputs, target
            )
            plane = (n * tiles.groups * outputs + o) * tiles.out_height * tiles.out_width  # y[n][o][0][0]
            for c in range(0, kept_cols, STRIPS * lanes):
                strips = min(STRIPS, (kept_cols - c + lanes - 1) // lanes)
                for k in range(strips):
                    at = k * lines * point
                    for r in range(0, rows, lanes):
                        place = target + (r * cols + (c + k * lanes) * lanes) * 2
                        transpose(spectra, place, point, strip, at + r * point, point)
                        transpose(spectra, place + lanes, point, strip, at + r * point + lanes, point)
                    inverse(strip, at, rows, stages, factors, len(stages))
                    turn(strip, at, rows, turns, scales, 6 * (o + 1) + 2 * kind, INVERSE)
                for part in range(2):
                    # Rows of this half before the first that the stride keeps
                    skip = -part * rows % tiles.row_step
                    count = min(rows, kept_rows - part * rows) - skip
                    if count > 0:
                        at, oh = part * lanes + skip * point, row + part * rows + skip
                        _write(strip, at, strips, tiles, oh, count, col + c, kept_cols - c, y, plane)
            oh, ow = row // tiles.row_step, col // tiles.col_step
            down_to = min((row + kept_rows + tiles.row_step - 1) // tiles.row_step, tiles.out_height)
            right_to = min((col + kept_cols + tiles.col_step - 1) // tiles.col_step, tiles.out_width)
            at = plane + oh * tiles.out_width + ow  # y[n][o][oh][ow]
            finish_plane(after, y, at, o, down_to - oh, tiles.out_width, right_to - ow)


@linked(**FLAGS)
def lines(x, y, kernels, tiles, along, turns, scales, memory, after, slot, first, last):
    """As ``planes`` for signals: an item is a group and a bundle of tiles of an image; ``cols`` is half a
    tile.

    strips: L * L elements for each thread, for what reaches over an end.
    """
    block, spectra = memory.strips[slot], memory.spectra[slot]
    width, out_width, cols, kept, step = tiles.width, tiles.out_width, tiles.cols, tiles.kept, tiles.step
    stages, factors = along.stages, along.factors
    groups, inputs, outputs, lanes = tiles.groups, tiles.inputs, tiles.outputs, tiles.lanes
    taken, point = cols * lanes * 2, 2 * lanes
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, tile = item // tiles.bundles % groups, item % tiles.bundles * lanes
        n = item // tiles.bundles // groups
        kind, found = ORDINARY, 0
        i = 0
        while i < inputs:
            plane, begin = ((n * groups + group) * inputs + i) * width, tile * kept - tiles.left  # x[n][c]
            for part in range(2):
                start = begin + part * cols
                for c in range(0, cols, lanes):
                    place = i * taken + c * point + part * lanes
                    if start + c >= 0 and start + c + (lanes - 1) * kept + lanes <= width:
                        transpose(x, plane + start + c, kept, spectra, place, point)
                        continue
                    for k in range(lanes):
                        at = start + k * kept + c
                        if at >= 0 and at + lanes <= width:
                            move(x, plane + at, 0, block, k * lanes, 0)
                            continue
                        for j in range(lanes):
                            block[k * lanes + j] = x[plane + at + j] if at + j >= 0 and at + j < width else 0
                    transpose(block, 0, lanes, spectra, place, point)
            found = max(found, turn(spectra, i * taken, cols, turns, scales, 2 * kind, FORWARD))
            if target:
                forward(spectra, i * taken, cols, stages, factors, len(stages))
            i += 1
            if i == inputs and kind == ORDINARY:
                kind = kind_of(found, (tiles.faint, tiles.large))
                i = 0 if kind != ORDINARY else inputs
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(
                spectra, taken, lanes, cols, lanes, along, kernels, o * inputs * taken, inputs, target
            )
            turn(spectra, target, cols, turns, scales, 6 * (o + 1) + 2 * kind, INVERSE)
            plane = (n * groups * outputs + o) * out_width  # y[n][o]
            for part in range(2):
                start, held = tile * kept + part * cols, min(cols, kept - part * cols)
                for c in range(0, held, lanes):
                    place = target + c * point + part * lanes
                    end = start + (lanes - 1) * kept + c + lanes
                    if step == 1 and c + lanes <= held and end <= out_width:
                        transpose(spectra, place, point, y, plane + start + c, kept)
                        continue
                    transpose(spectra, place, point, block, 0, lanes)
                    for k in range(lanes):
                        at, count = start + k * kept + c, min(lanes, held - c)
                        if step == 1 and count == lanes and at + lanes <= out_width:
                            move(block, k * lanes, 0, y, plane + at, 0)
                            continue
                        for j in range(-at % step, count, step):
                            if (at + j) // step < out_width:
                                y[plane + (at + j) // step] = block[k * lanes + j]
            begin, end = tile * kept // step, min(((tile + lanes) * kept + step - 1) // step, out_width)
            finish_plane(after, y, plane + begin, o, 1, 0, end - begin)


@compiled(error_model="numpy")
def all_planes(x, y, kernels, table, along, down, turns, scales, strips, spectra, job):
    """Every item of ``planes``, shared with the helpers; ``table``: of
    ``PlaneTiles``; the rest as ``kernel_planes``.
    """
    tiles, memory, pictures, results = (
        named(PlaneTiles, table),
        Memory(strips, spectra),
        x.reshape(x.size),
        y.reshape(y.size),
    )
    stages_of, after = (Stages(*along), Stages(*down)), after_of(job)
    fork(planes, (pictures, results, kernels, tiles, stages_of, turns, scales, memory, after), job)


@compiled(error_model="numpy")
def all_lines(x, y, kernels, table, along, turns, scales, strips, spectra, job):
    """Every item of ``lines``, shared with the helpers; ``table``: of ``LineTiles``."""
    tiles, memory, signals, results = (
        named(LineTiles, table),
        Memory(strips, spectra),
        x.reshape(x.size),
        y.reshape(y.size),
    )
    stages, after = Stages(*along), after_of(job)
    fork(lines, (signals, results, kernels, tiles, stages, turns, scales, memory, after), job)
