"""Batch normalisation: (x - mean) / sqrt(variance + eps) of a channel over all images and places, then a
weight and a bias.

The variance is the mean square of what is left after the mean is taken away, in a second pass. Where NaN or
infinity is among the elements of a mean, all that it normalises is NaN.

Cost: about ten operations for each element; three passes in training, one for known means. Workspace: a few
numbers for each channel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from algos.door import apart
from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.simd import place
from algos.layers._calls import Calls, filled, floats, matching, remembered
from algos.layers._rows import PRODUCTS, SQUARES, TOTAL, blend_row, row_sum, scale_columns, scale_row

COLUMNS, ROWS = 256, 32  # channels at a time, and rows that are summed in their own type
EMPTY = {kind: np.empty(0, kind) for kind in "fd"}  # in place of a weight or a bias


@linked(error_model="numpy")
def some_moments(x, moments, images, pixels, slot, first, last):
    """Items [first, last), channels of flat x: mean and variance in float64."""
    channels, count = moments.shape[1], images * pixels
    if pixels == 1:  # channels lie side by side; as in rows, blocks are summed in their own type
        room = np.zeros((2, last - first), x.dtype)
        centres, part = room[0], room[1]
        for form in range(2):
            total = moments[form, first:last]
            total[:] = 0
            for begin in range(0, images, ROWS):
                part[:] = 0
                for n in range(begin, min(begin + ROWS, images)):
                    row = x[n * channels + first : n * channels + last]
                    if form == 0:
                        for c in range(len(part)):
                            part[c] += row[c]
                    else:
                        for c in range(len(part)):
                            part[c] += (row[c] - centres[c]) * (row[c] - centres[c])
                for c in range(len(part)):
                    total[c] += part[c]
            for c in range(len(part)):
                total[c] /= count
            if form == 0:
                centres[:] = total
        return
    for c in range(first, last):
        found = 0.0
        for n in range(images):
            found += row_sum(TOTAL, x, x, (n * channels + c) * pixels, pixels, 0.0)
        mean_of, found = found / count, 0.0
        for n in range(images):
            found += row_sum(SQUARES, x, x, (n * channels + c) * pixels, pixels, mean_of)
        moments[0, c], moments[1, c] = mean_of, found / count


@compiled(error_model="numpy")
def all_moments(x, moments, images, pixels, job):
    """Every channel."""
    fork(some_moments, (x, moments, images, pixels), job)


class Known(NamedTuple):
    """By channel: running means and variances, weights and biases, of length 0 where there are none."""

    means: np.ndarray
    variances: np.ndarray
    w: np.ndarray
    b: np.ndarray


@linked(error_model="numpy")
def some_channels(x, y, known, numbers, images, pixels, moments, factors, slot, first, last):
    """Items [first, last), channels of flat y, a few at a time, so that x stays in the cache from one pass to
    the next.

    numbers: (whether x is normalised by its own mean and variance, which running ones then follow, momentum,
    eps); moments, factors: room for (2, c) and (3, c).
    """
    training, momentum, eps = numbers
    channels, count = moments.shape[1], images * pixels
    for begin in range(first, last, COLUMNS):
        end = min(begin + COLUMNS, last)
        if training:
            some_moments(x, moments, images, pixels, slot, begin, end)
            running = known.means[begin:end], known.variances[begin:end]
            for c in range(len(running[0])):
                running[0][c] += momentum * (moments[0, begin + c] - running[0][c])
            for c in range(len(running[1])):
                unbiased = moments[1, begin + c] * (count / (count - 1))
                running[1][c] += momentum * (unbiased - running[1][c])
        else:
            moments[0, begin:end], moments[1, begin:end] = known.means[begin:end], known.variances[begin:end]
        centres, rates, shifts = factors[0, begin:end], factors[1, begin:end], factors[2, begin:end]
        means, variances = moments[0, begin:end], moments[1, begin:end]
        for c in range(len(rates)):
            centres[c], rates[c], shifts[c] = means[c], 1 / np.sqrt(variances[c] + eps), 0
        if len(known.w):
            rates *= known.w[begin:end]
        if len(known.b):
            shifts[:] = known.b[begin:end]
        for n in range(images):
            at = n * channels + begin
            if pixels == 1:
                scale_columns(place(x, at), place(y, at), end - begin, place(centres, 0), place(rates, 0),
                              place(shifts, 0), x.dtype.type(0))  # fmt: skip
                continue
            for c in range(len(centres)):
                plane = (at + c) * pixels
                scale_row(place(x, plane), place(y, plane), pixels, centres[c], rates[c], shifts[c])


@compiled(error_model="numpy")
def all_channels(x, y, means, variances, w, b, numbers, images, pixels, moments, factors, job):
    """Every channel."""
    known = Known(means, variances, w, b)
    fork(some_channels, (x, y, known, numbers, images, pixels, moments, factors), job)


@linked(error_model="numpy")
def some_scaled(x, y, means, variances, w, b, eps, pixels, slot, first, last):
    """Items [first, last), planes of flat y; by channel: means, variances, and where not empty w and b."""
    c = first % len(means)
    for plane in range(first, last):
        at = plane * pixels
        rate = (w[c] if len(w) else 1) / math.sqrt(variances[c] + eps)
        shift = b[c] if len(b) else x.dtype.type(0)
        scale_row(place(x, at), place(y, at), pixels, x.dtype.type(means[c]), x.dtype.type(rate), shift)
        c = c + 1 if c + 1 < len(means) else 0


@compiled(error_model="numpy")
def all_scaled(x, y, means, variances, w, b, eps, pixels, job):
    """Every plane."""
    fork(some_scaled, (x, y, means, variances, w, b, eps, pixels), job)


@linked(error_model="numpy")
def some_channel_sums(grad, x, sums, means, images, pixels, slot, first, last):
    """Items [first, last), channels: sums of the gradient, and of its products with x - mean."""
    channels = len(sums)
    for c in range(first, last):
        total, products = 0.0, 0.0
        for n in range(images):
            at = (n * channels + c) * pixels
            total += row_sum(TOTAL, grad, grad, at, pixels, 0.0)
            products += row_sum(PRODUCTS, x, grad, at, pixels, means[c])
        sums[c, 0], sums[c, 1] = total, products


@compiled(error_model="numpy")
def all_channel_sums(grad, x, sums, means, images, pixels, job):
    """Every channel."""
    fork(some_channel_sums, (grad, x, sums, means, images, pixels), job)


@linked(error_model="numpy")
def some_blended(grad, x, dx, factors, pixels, slot, first, last):
    """Items [first, last), planes of flat dx; factors: by channel, as ``blend_row`` takes them."""
    c = first % len(factors)
    for plane in range(first, last):
        at, f = plane * pixels, factors[c]
        blend_row(place(grad, at), place(x, at), place(dx, at), pixels, f[0], f[1], f[2], f[3])
        c = c + 1 if c + 1 < len(factors) else 0


@compiled(error_model="numpy")
def all_blended(grad, x, dx, factors, pixels, job):
    """Every plane."""
    fork(some_blended, (grad, x, dx, factors, pixels), job)


def _by_channel(threads: int, kernel: Any, shape: tuple, dtype: np.dtype, arrays: int,
                *types: Any) -> Calls:  # fmt: skip
    """``kernel`` over the channels of x, or over its planes where it takes no number of images.

    types: whatever else its arguments' types depend on.
    """
    pixels, moved = math.prod(shape[2:]), arrays * math.prod(shape) * dtype.itemsize
    if kernel in (all_moments, all_channel_sums):
        return Calls(kernel, shape[1], moved, threads, (shape[0], pixels))
    if kernel is all_channels:
        return Calls(kernel, shape[1], moved, threads, (shape[0], pixels),
                     lambda _: (np.empty((2, shape[1])), np.empty((3, shape[1]), dtype)))
    return Calls(kernel, shape[0] * shape[1], moved, threads, (pixels,))


def _channels(x: np.ndarray, *vectors: tuple[str, Any]) -> list[np.ndarray | None]:
    """The vectors, one number for each channel, in the type of x."""
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}: batch normalisation needs (N, C, ...)")
    return [None if v is None else matching(name, v, (x.shape[1],), x.dtype) for name, v in vectors]


def _several(x: np.ndarray) -> None:
    if math.prod(x.shape) // max(x.shape[1], 1) < 2:
        raise ValueError(f"x has shape {x.shape}: training needs more than one value of each channel")


def _moments(x: np.ndarray, threads: int | None) -> np.ndarray:
    _several(x)
    moments = np.empty((2, x.shape[1]))
    remembered(_by_channel, threads, all_moments, x.shape, x.dtype, 2)(x.reshape(-1), moments)
    return moments


def batch_norm(x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
               threads: int | None = None, out: Any = None) -> np.ndarray:  # fmt: skip
    """Batch normalisation, in the argument order of ``torch.nn.functional.batch_norm``.

    Parameters
    ----------
    x : array (N, C, ...)
        Floats.
    running_mean, running_var : array (C,) or None
        Those that x is normalised by, unless ``training``. In training they are arrays of NumPy's, and get in
        place ``momentum`` parts of those of x, of the variance the one over one element less, as torch's do.
    weight, bias : array (C,), optional
    training : bool
        Whether x is normalised by its own mean and variance.
    momentum, eps : float
    threads : int, optional
        The usable cores when left out.
    out : array, optional

    Returns
    -------
    array like x

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    options = training, momentum, eps, threads, out
    return apart(_batch_norm, x, running_mean, running_var, weight, bias, *options)


def _batch_norm(x: Any, mean: Any, var: Any, weight: Any, bias: Any, training: bool, momentum: float,
                eps: float, threads: int | None, out: Any) -> np.ndarray:  # fmt: skip
    held = floats("x", x)
    w, b = _channels(held, ("weight", weight), ("bias", bias))
    running = ("running_mean", mean), ("running_var", var)
    if training:
        _several(held)
        for name, given in running:
            if given is not None and not given.flags.writeable:
                raise ValueError(f"{name} is read-only, and training changes it: pass a writable array")
        known = [None if v is None else matching(name, v, held.shape[1:2]) for name, v in running]
    elif mean is None or var is None:
        raise ValueError("running_mean and running_var are missing: give both, or training=True")
    else:
        known = _channels(held, *running)
    vectors = [EMPTY[held.dtype.char] if v is None else v for v in (*known, w, b)]
    if training or held.ndim == 2:
        numbers = bool(training), float(momentum), float(eps)
        calls = remembered(_by_channel, threads, all_channels, held.shape, held.dtype, 3 if training else 2,
                           vectors[0].dtype, vectors[1].dtype)
        y = filled(lambda y: calls(held.reshape(-1), y, *vectors, numbers), held.shape, x, out)
        if training:
            for given, now in ((mean, known[0]), (var, known[1])):
                if given is not now:
                    given[...] = now
        return y
    calls = remembered(_by_channel, threads, all_scaled, held.shape, held.dtype, 2)
    return filled(lambda y: calls(held.reshape(-1), y, *vectors, float(eps)), held.shape, x, out)


def batch_norm_backward(
    grad: Any, x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *, threads: int | None = None,
    out: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The gradients of ``batch_norm`` with respect to x, weight and bias; running means stay as they are."""
    vectors = running_mean, running_var, weight
    return apart(_batch_norm_backward, grad, x, *vectors, training, eps, threads, out)


def _batch_norm_backward(grad: Any, x: Any, mean: Any, var: Any, weight: Any, training: bool, eps: float,
                         threads: int | None, out: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    held = floats("x", x)
    grad = matching("grad", grad, held.shape, held.dtype)
    vectors = ("running_mean", mean), ("running_var", var), ("weight", weight)
    means, variances, w = _channels(held, *vectors)
    if training:
        means, variances = _moments(held, threads)
    elif means is None or variances is None:
        raise ValueError("running_mean and running_var are missing: give both, or training=True")
    channels, count = held.shape[1], math.prod(held.shape) // max(held.shape[1], 1)
    sums, centres = np.zeros((channels, 2)), np.asarray(means, held.dtype)
    if held.size:
        remembered(_by_channel, threads, all_channel_sums, held.shape, held.dtype, 4)(
            grad.reshape(-1), held.reshape(-1), sums, centres
        )
    rate = 1 / np.sqrt(np.asarray(variances, np.float64) + eps)
    factors = np.zeros((channels, 4), held.dtype)
    factors[:, 0], factors[:, 1] = centres, rate if w is None else w * rate
    if training:
        factors[:, 2] = -factors[:, 1] * rate**2 * sums[:, 1] / count
        factors[:, 3] = -factors[:, 1] * sums[:, 0] / count
    calls = remembered(_by_channel, threads, all_blended, held.shape, held.dtype, 3)
    dx = filled(lambda dx: calls(grad.reshape(-1), held.reshape(-1), dx, factors), held.shape, x, out, grad)
    return dx, (sums[:, 1] * rate).astype(dx.dtype), sums[:, 0].astype(dx.dtype)
