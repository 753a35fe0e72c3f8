"""Overlap-save, compiled: each real tile as a complex one of half the rows, read, filtered and written strip by strip.

A tile is 2 ``rows`` x ``cols`` points, ``cols`` a multiple of the L lanes of a vector; what ``rows`` lacks of one is zeros.
Its upper half is the real part and its lower half the imaginary part of ``rows`` x ``cols`` complex points: modulo z^rows - i a
polynomial with real coefficients loses nothing, since z^(2 rows) is -1 there. What wraps round comes back negative, and is
dropped as in any overlap-save. A transform reaches that ring by turning point n by exp(i pi n / (2 rows)) before, and back
after; the same pass scales. So nothing is shared between tiles, let alone between images.

Columns are transformed L at a time in a strip that stays in the first-level cache; each strip goes, transposed, into
``spectra``, where L rows lie side by side. There rows are transformed, multiplied and transformed back in one visit; then
columns, strip by strip, straight into the result.

Range (``algos/engine/ranges.py``): tiles that are LARGE or FAINT, by ``limits``, are scaled while they are turned, and so are
all results. ``scales`` holds two factors for each kind of tile, then for each output channel the same.
"""

from __future__ import annotations

import numpy as np

from algos.engine.butterflies import FORWARD, INVERSE, move, multiply, transpose, turn
from algos.engine.fourier import FLAGS, filtered, forward, inverse
from algos.engine.jit import compiled, linked
from algos.engine.ranges import ORDINARY, kind_of
from algos.engine.relay import fork

STRIPS = 4  # strips of columns read and written together: whole cache lines, even where rows lie a power of two apart


@linked(**FLAGS)
def whole(count, lanes):
    """``count`` and what it lacks of a multiple of ``lanes``."""
    return (count + lanes - 1) // lanes * lanes


@linked(**FLAGS)
def _read(x, plane, height, width, top, left, data, at, rows, strips, lanes, pitch):
    """Strips of ``rows`` x ``lanes`` pixels from (top, left) on, zero outside the image, each a part of complex points."""
    point = 2 * lanes
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
                    data[to + k * pitch + j] = x[source + k * lanes + j] if c + j >= 0 and c + j < width else 0
        source += width


@linked(**FLAGS)
def _zero(data, at, count):
    for j in range(count):
        data[at + j] = 0


@linked(**FLAGS)
def _write(data, at, pitch, strips, lanes, row, rows, row_step, col, cols, col_step, y, plane, height, width):
    """Every step-th of ``rows`` x ``cols`` points of strips, to y from (row, col) of the outputs before the stride on."""
    step, oh = 2 * lanes * row_step, row // row_step
    rows = min((rows + row_step - 1) // row_step, height - oh)
    target, source = plane + oh * width, at
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
def filter_rows(spectra, taken, rows, cols, lanes, stages, factors, kernels, kernel, inputs, target):
    """Sums of products with the kernels' spectra, rows back, at ``target``; 0: in place, on one input not yet forward."""
    last, points = len(stages), cols * 2 * lanes
    for strip in range(0, rows // lanes * points, points):
        if target == 0:
            filtered(spectra, strip, cols, stages, factors, kernels, kernel)
            continue
        for at in range(strip, strip + points, 2 * lanes):
            multiply(spectra, target + at, spectra, at, kernels, kernel + at, 0)
            for i in range(1, inputs):
                multiply(spectra, target + at, spectra, i * taken + at, kernels, kernel + i * taken + at, 1)
        inverse(spectra, target + strip, cols, stages, factors, last)


@linked(**FLAGS)
def columns_in(x, plane, height, width, top, left, rows, cols, lanes, stages, factors, turns, scales, s, strip, spectra,
               to):  # fmt: skip
    """Columns of a tile of 2 rows x cols forward into ``spectra[to:]``, scaled by ``scales[s]``; the tile's ``peak``."""
    point, pitch, found = 2 * lanes, 2 * lanes * whole(rows, lanes), 0
    for c in range(0, cols, STRIPS * lanes):
        strips = min(STRIPS, (cols - c) // lanes)
        for part in range(2):
            _read(x, plane, height, width, top + part * rows, left + c, strip, part * lanes, rows, strips, lanes, pitch)
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
def rows_in(spectra, to, rows, cols, lanes, stages, factors):
    """Rows forward, where they lie."""
    for at in range(to, to + rows * cols * 2, cols * 2 * lanes):
        forward(spectra, at, cols, stages, factors, len(stages))


@compiled(error_model="numpy")
def kernel_planes(weights, down, across, image, lanes, row_stages, row_factors, col_stages, col_factors, turns, scales, strip,
                  kernels):  # fmt: skip
    """Spectra of kernels (pair, kh, kw), over the points of a tile; down, across: where taps stand in ``image``, the tile."""
    rows, cols = image.shape[0] // 2, image.shape[1]
    zero = np.int64(0)  # no literal, for which everything would be compiled once more
    for pair in range(weights.shape[0]):
        image[:] = 0
        for i in range(down.size):
            for j in range(across.size):
                image[down[i], across[j]] += weights[pair, i, j]
        at = pair * whole(rows, lanes) * cols * 2
        columns_in(image.reshape(image.size), zero, 2 * rows, cols, zero, zero, rows, cols, lanes, col_stages, col_factors,
                   turns, scales, zero, strip, kernels, at)  # fmt: skip
        rows_in(kernels, at, whole(rows, lanes), cols, lanes, row_stages, row_factors)


@compiled(error_model="numpy")
def kernel_lines(weights, across, lanes, cols, stages, factors, turns, scales, kernels):
    """The same for ``lines``: kernels (pair, k), the same in all lanes."""
    taken = cols * lanes * 2
    kernels[:] = 0
    for pair in range(weights.shape[0]):
        at = pair * taken
        for j in range(across.size):
            place = across[j] % cols * 2 * lanes + (lanes if across[j] >= cols else 0)
            for lane in range(lanes):
                kernels[at + place + lane] += weights[pair, j]
        turn(kernels, at, cols, turns, scales, np.int64(0), FORWARD)
        rows_in(kernels, at, lanes, cols, lanes, stages, factors)


@linked(**FLAGS)
def planes(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, turns, scales, strips, all_spectra, slot,
           first, last):  # fmt: skip
    """Items [first, last): a group and a tile each. x: (n * c * h * w); y: (n * o * oh * ow); see ``fft_fused``."""
    strip, spectra = strips[slot], all_spectra[slot]
    (height, width, out_height, out_width, rows, cols, kept_rows, kept_cols, down, across, row_step, col_step,
     top, left, groups, inputs, outputs, lanes, per_group, faint, large) = table  # fmt: skip
    tiles, point, lines = down * across, 2 * lanes, whole(rows, lanes)
    taken = lines * cols * 2
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, tile = item // per_group, item % per_group
        n, row, col = tile // tiles, tile % tiles // across * kept_rows, tile % across * kept_cols
        kind, found = ORDINARY, 0
        i = 0
        while i < inputs:
            plane = ((n * groups + group) * inputs + i) * height * width
            seen = columns_in(x, plane, height, width, row - top, col - left, rows, cols, lanes, col_stages, col_factors, turns,
                              scales, 2 * kind, strip, spectra, i * taken)  # fmt: skip
            found = max(found, seen)
            if target:
                rows_in(spectra, i * taken, lines, cols, lanes, row_stages, row_factors)
            i += 1
            if i == inputs and kind == ORDINARY:
                kind = kind_of(found, (faint, large))
                i = 0 if kind != ORDINARY else inputs  # once more: channels are summed and must be scaled alike
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(spectra, taken, lines, cols, lanes, row_stages, row_factors, kernels, o * inputs * taken, inputs,
                        target)  # fmt: skip
            plane = (n * groups * outputs + o) * out_height * out_width
            for c in range(0, kept_cols, STRIPS * lanes):
                strips = min(STRIPS, (kept_cols - c + lanes - 1) // lanes)
                for k in range(strips):
                    at = k * lines * point
                    for r in range(0, rows, lanes):
                        place = target + (r * cols + (c + k * lanes) * lanes) * 2
                        transpose(spectra, place, point, strip, at + r * point, point)
                        transpose(spectra, place + lanes, point, strip, at + r * point + lanes, point)
                    inverse(strip, at, rows, col_stages, col_factors, len(col_stages))
                    turn(strip, at, rows, turns, scales, 6 * (o + 1) + 2 * kind, INVERSE)
                for part in range(2):
                    skip = -part * rows % row_step  # rows of this half before the first that the stride keeps
                    count = min(rows, kept_rows - part * rows) - skip
                    if count > 0:
                        _write(strip, part * lanes + skip * point, lines * point, strips, lanes, row + part * rows + skip,
                               count, row_step, col + c, kept_cols - c, col_step, y, plane, out_height,
                               out_width)  # fmt: skip


@linked(**FLAGS)
def lines(x, y, kernels, table, stages, factors, turns, scales, blocks, all_spectra, slot, first, last):
    """As ``planes`` for signals: an item is a group and L tiles of an image, side by side; ``cols`` is half a tile.

    block: L * L elements, for what reaches over an end.
    """
    (width, out_width, cols, kept, step, left, groups, inputs, outputs, lanes, items, faint, large) = table
    block, spectra = blocks[slot], all_spectra[slot]
    taken, point = cols * lanes * 2, 2 * lanes
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, tile = item // items % groups, item % items * lanes
        n = item // items // groups
        kind, found = ORDINARY, 0
        i = 0
        while i < inputs:
            plane, begin = ((n * groups + group) * inputs + i) * width, tile * kept - left
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
                kind = kind_of(found, (faint, large))
                i = 0 if kind != ORDINARY else inputs
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(spectra, taken, lanes, cols, lanes, stages, factors, kernels, o * inputs * taken, inputs, target)
            turn(spectra, target, cols, turns, scales, 6 * (o + 1) + 2 * kind, INVERSE)
            plane = (n * groups * outputs + o) * out_width
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


@compiled(error_model="numpy")
def all_planes(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, turns, scales, strips, spectra,
               job):  # fmt: skip
    """Every item of ``planes``, shared with the helpers; strips and spectra have one row for each thread."""
    fork(planes, (x.reshape(x.size), y.reshape(y.size), kernels, table, row_stages, row_factors, col_stages, col_factors,
                  turns, scales, strips, spectra), job)  # fmt: skip


@compiled(error_model="numpy")
def all_lines(x, y, kernels, table, stages, factors, turns, scales, blocks, spectra, job):
    """Every item of ``lines``, shared with the helpers."""
    fork(lines, (x.reshape(x.size), y.reshape(y.size), kernels, table, stages, factors, turns, scales, blocks, spectra), job)
