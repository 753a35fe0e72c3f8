"""Overlap-save, compiled: two real tiles as one complex one, read from the image, filtered and written strip by strip.

A tile is ``rows`` x ``cols`` points, both multiples of the L lanes of a vector. Its columns are transformed L at a time in a
strip that stays in the first-level cache; each strip goes, transposed, into ``spectra``, where L rows lie side by side. There
rows are transformed, multiplied and transformed back in one visit; then columns, strip by strip, straight into the result.
Tile A is the real part and tile B the imaginary part: the kernel is real, so what comes back has the two results as its parts.
"""

from __future__ import annotations

import numpy as np

from algos.engine.butterflies import move, multiply, transpose
from algos.engine.fourier import FLAGS, filtered, forward, inverse
from algos.engine.jit import compiled, linked
from algos.engine.relay import CHUNKS, fork, part_of

STRIPS = 4  # strips of columns read and written together: whole cache lines, even where rows lie a power of two apart


@linked(**FLAGS)
def _read(x, plane, height, width, top, left, data, at, rows, strips, lanes):
    """Strips of ``rows`` x ``lanes`` pixels from (top, left) on, zero outside the image, each a part of complex points."""
    point, pitch = 2 * lanes, 2 * lanes * rows
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
def columns_in(x, plane_a, plane_b, height, width, top_a, left_a, top_b, left_b, rows, cols, lanes, stages, factors,
               strip, spectra, to):  # fmt: skip
    """Columns of tiles A and B forward into ``spectra[to:]``; plane_b -1: there is no tile B."""
    point, pitch = 2 * lanes, 2 * lanes * rows
    for c in range(0, cols, STRIPS * lanes):
        strips = min(STRIPS, (cols - c) // lanes)
        for part in range(2):
            plane, top, left = (plane_b, top_b, left_b) if part else (plane_a, top_a, left_a)
            _read(x, plane, height if plane >= 0 else 0, width, top, left + c, strip, part * lanes, rows, strips, lanes)
        for k in range(strips):
            at = k * pitch
            forward(strip, at, rows, stages, factors, len(stages))
            for r in range(0, rows, lanes):
                place = to + (r * cols + (c + k * lanes) * lanes) * 2
                transpose(strip, at + r * point, point, spectra, place, point)
                transpose(strip, at + r * point + lanes, point, spectra, place + lanes, point)


@linked(**FLAGS)
def rows_in(spectra, to, rows, cols, lanes, stages, factors):
    """Rows forward, where they lie."""
    for at in range(to, to + rows * cols * 2, cols * 2 * lanes):
        forward(spectra, at, cols, stages, factors, len(stages))


@compiled(error_model="numpy")
def kernel_planes(weights, down, across, image, lanes, row_stages, row_factors, col_stages, col_factors, strip, kernels):
    """Spectra of kernels (pair, kh, kw), over the points of a tile; down, across: where taps stand in ``image``, the tile."""
    rows, cols = image.shape
    zero, nothing = np.int64(0), np.int64(-1)  # no literals, for which everything would be compiled once more
    for pair in range(weights.shape[0]):
        image[:] = 0
        for i in range(down.size):
            for j in range(across.size):
                image[down[i], across[j]] += weights[pair, i, j] / image.size
        at = pair * image.size * 2
        columns_in(image.reshape(image.size), zero, nothing, rows, cols, zero, zero, zero, zero, rows, cols, lanes, col_stages,
                   col_factors, strip, kernels, at)  # fmt: skip
        rows_in(kernels, at, rows, cols, lanes, row_stages, row_factors)


@compiled(error_model="numpy")
def kernel_lines(weights, across, lanes, cols, stages, factors, kernels):
    """The same for ``lines``: kernels (pair, k), the same in all lanes."""
    taken = cols * lanes * 2
    kernels[:] = 0
    for pair in range(weights.shape[0]):
        for j in range(across.size):
            for lane in range(lanes):
                kernels[pair * taken + across[j] * 2 * lanes + lane] += weights[pair, j] / cols
        rows_in(kernels, pair * taken, lanes, cols, lanes, stages, factors)


@linked(**FLAGS)
def planes(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, strip, spectra, first, last):
    """Items [first, last): a group and a pair of tiles each. x: (n * c * h * w); y: (n * o * oh * ow); see ``fft_fused``."""
    (height, width, out_height, out_width, rows, cols, kept_rows, kept_cols, down, across, row_step, col_step,
     top, left, batch, groups, inputs, outputs, lanes, pairs) = table  # fmt: skip
    tiles, taken, point = down * across, rows * cols * 2, 2 * lanes
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, a = item // pairs, item % pairs * 2
        b = a + 1
        row_a, col_a = a % tiles // across * kept_rows, a % across * kept_cols
        row_b, col_b = b % tiles // across * kept_rows, b % across * kept_cols
        has_b = b < batch * tiles
        for i in range(inputs):
            plane_a = ((a // tiles * groups + group) * inputs + i) * height * width
            plane_b = ((b // tiles * groups + group) * inputs + i) * height * width if has_b else -1
            columns_in(x, plane_a, plane_b, height, width, row_a - top, col_a - left, row_b - top, col_b - left,
                       rows, cols, lanes, col_stages, col_factors, strip, spectra, i * taken)  # fmt: skip
            if target:
                rows_in(spectra, i * taken, rows, cols, lanes, row_stages, row_factors)
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(spectra, taken, rows, cols, lanes, row_stages, row_factors, kernels, o * inputs * taken, inputs, target)
            plane_a = (a // tiles * groups * outputs + o) * out_height * out_width
            plane_b = (b // tiles * groups * outputs + o) * out_height * out_width
            for c in range(0, kept_cols, STRIPS * lanes):
                strips = min(STRIPS, (kept_cols - c + lanes - 1) // lanes)
                for k in range(strips):
                    at = k * rows * point
                    for r in range(0, rows, lanes):
                        place = target + (r * cols + (c + k * lanes) * lanes) * 2
                        transpose(spectra, place, point, strip, at + r * point, point)
                        transpose(spectra, place + lanes, point, strip, at + r * point + lanes, point)
                    inverse(strip, at, rows, col_stages, col_factors, len(col_stages))
                for part in range(2 if has_b else 1):
                    row, col, plane = (row_b, col_b, plane_b) if part else (row_a, col_a, plane_a)
                    _write(strip, part * lanes, rows * point, strips, lanes, row, kept_rows, row_step, col + c,
                           kept_cols - c, col_step, y, plane, out_height, out_width)  # fmt: skip


@linked(**FLAGS)
def lines(x, y, kernels, table, stages, factors, spectra, first, last):
    """As ``planes`` for signals: an item is a group and 2 L tiles of an image, L as real parts and L as imaginary parts."""
    (width, out_width, cols, kept, step, left, groups, inputs, outputs, lanes, blocks) = table
    taken, point = cols * lanes * 2, 2 * lanes
    target = 0 if inputs == outputs == 1 else inputs * taken
    for item in range(first, last):
        group, tile = item // blocks % groups, item % blocks * 2 * lanes
        n = item // blocks // groups
        for i in range(inputs):
            plane = ((n * groups + group) * inputs + i) * width
            for part in range(2):
                start = (tile + part * lanes) * kept - left
                for c in range(0, cols, lanes):
                    place = i * taken + c * point + part * lanes
                    if start + c >= 0 and start + c + (lanes - 1) * kept + lanes <= width:
                        transpose(x, plane + start + c, kept, spectra, place, point)
                        continue
                    for k in range(lanes):
                        for j in range(lanes):
                            at = start + k * kept + c + j
                            spectra[place + j * point + k] = x[plane + at] if at >= 0 and at < width else 0
            if target:
                forward(spectra, i * taken, cols, stages, factors, len(stages))
        for o in range(group * outputs, group * outputs + outputs):
            filter_rows(spectra, taken, lanes, cols, lanes, stages, factors, kernels, o * inputs * taken, inputs, target)
            plane = (n * groups * outputs + o) * out_width
            for part in range(2):
                start = (tile + part * lanes) * kept
                for c in range(0, kept, lanes):
                    place = target + c * point + part * lanes
                    end = start + (lanes - 1) * kept + c + lanes
                    if step == 1 and c + lanes <= kept and end <= out_width:
                        transpose(spectra, place, point, y, plane + start + c, kept)
                        continue
                    for k in range(lanes):
                        for j in range(min(lanes, kept - c)):
                            at = start + k * kept + c + j
                            if at % step == 0 and at // step < out_width:
                                y[plane + at // step] = spectra[place + j * point + k]


@linked(**FLAGS)
def planes_chunk(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, strips, spectra, items, chunks,
                 chunk, slot):  # fmt: skip
    first, last = part_of(items, chunks, chunk)
    planes(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, strips[slot], spectra[slot], first, last)


@linked(**FLAGS)
def lines_chunk(x, y, kernels, table, stages, factors, spectra, items, chunks, chunk, slot):
    first, last = part_of(items, chunks, chunk)
    lines(x, y, kernels, table, stages, factors, spectra[slot], first, last)


@compiled(error_model="numpy")
def all_planes(x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, strips, spectra, items, job, boxes,
               hands):  # fmt: skip
    """Every item of ``planes``, shared with the helpers; strips and spectra have one row for each thread."""
    arguments = (x, y, kernels, table, row_stages, row_factors, col_stages, col_factors, strips, spectra, items, job[CHUNKS])
    fork(planes_chunk, arguments, job, boxes, hands)


@compiled(error_model="numpy")
def all_lines(x, y, kernels, table, stages, factors, spectra, items, job, boxes, hands):
    """Every item of ``lines``, shared with the helpers."""
    fork(lines_chunk, (x, y, kernels, table, stages, factors, spectra, items, job[CHUNKS]), job, boxes, hands)
