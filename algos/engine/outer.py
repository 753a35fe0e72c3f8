"""A kernel as a sum of few outer products, as exact tap by tap as it can be.

Each product is a cross of what the ones before it leave over: the column and the row through its largest
element that is more than rounding. Both are read off the kernel itself, so that a tap of 1e-20 beside one of
1 keeps its digits; a singular value decomposition, exact only beside the largest tap, would lose it. The
first row holds nothing above 1 and the first column nothing above the largest tap: a pass down the columns
forms no sum that the definition could not form.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from algos.dtypes import limits

# Roundings of a tap that products may miss it by; a Gaussian's formula in its own type misses by 53 at 6
# sigma
WITHIN = 64
MOST_FOUND = 4  # products that are looked for unasked
CHUNK = 1 << 13  # elements of kernels that are decomposed at a time

Product = tuple[np.ndarray, np.ndarray]  # columns (n, KH) and rows (n, KW)


def factors(weights: np.ndarray, rank: int) -> Product:
    """(o, i, rank, KH) columns and (o, i, rank, KW) rows whose outer products sum to ``weights`` (o, i, KH,
    KW).
    """
    *pairs, height, width = weights.shape
    kernels = weights.reshape(-1, height, width)
    down, along = (np.empty((len(kernels), rank, k), weights.dtype) for k in (height, width))
    step = _step(height, width)
    with np.errstate(all="ignore"):
        for first in range(0, len(kernels), step):
            some = slice(first, first + step)
            left = kernels[some].astype(np.float64)
            for r, (product, _) in zip(range(rank), _crosses(left, weights.dtype), strict=False):
                down[some, r], along[some, r] = product
    return down.reshape(*pairs, rank, height), along.reshape(*pairs, rank, width)


def factor_bytes(kernels: int, height: int, width: int) -> int:
    """What ``factors`` holds besides its results: a chunk's left-overs, how far
    rounding moves them, and NumPy's steps.
    """
    return 10 * 8 * min(kernels, _step(height, width)) * height * width


def numerical_rank(w: np.ndarray, dtype: np.dtype, most: int | None = None, each_tap: bool = False) -> int:
    """The products that every kernel of w (o, i, KH, KW) needs, up to what rounding its taps to ``dtype``
    explains.

    ``each_tap`` asks for more: every tap, as the passes form it, lies within ``WITHIN`` roundings of itself,
    so that neither a faint tap is lost nor one where products cancel. min(KH, KW) where ``most`` do not do,
    and for weights that are not finite.
    """
    *_, height, width = w.shape
    full, rank, step = min(height, width), 1, _step(height, width)
    most, kernels = most or full, np.asarray(w).reshape(-1, height, width)
    if not np.isfinite(kernels).all():
        return full
    with np.errstate(all="ignore"):
        for first in range(0, len(kernels), step):
            rank = max(
                rank, _rank(kernels[first : first + step].astype(np.float64), np.dtype(dtype), most, each_tap)
            )
            if rank > most:
                return full
    return rank


def _rank(left: np.ndarray, dtype: np.dtype, most: int, each_tap: bool) -> int:
    """The products that (n, KH, KW) float64 kernels need, or ``most`` + 1."""
    limit = WITHIN * float(limits(dtype).eps) / 2
    size, summed = np.maximum(np.abs(left), limits(dtype).tiny), np.zeros_like(left)
    largest = size.max((1, 2), keepdims=True)
    for rank, ((down, along), spread) in zip(range(1, most + 1), _crosses(left, dtype), strict=False):
        if each_tap:
            summed += np.abs(_outer(down, along))
            kept = np.abs(left) + limit / WITHIN * summed <= limit * size
        else:
            kept = np.abs(left) <= limit * np.minimum(spread, largest)
        if kept.all():
            return rank
    return most + 1


def _crosses(left: np.ndarray, dtype: np.dtype) -> Iterator[tuple[Product, np.ndarray]]:
    """Take products, rounded to ``dtype``, from ``left`` (n, KH, KW) float64, one after another.

    With each comes (n, KH, KW) what the rounding of the taps and of the products may have moved what is left
    over by, in units of roundoff as independent errors add up; halved, so that one product's comes to a tap's
    own magnitude.
    """
    unit, every = float(limits(dtype).eps) / 2, np.arange(len(left))
    # Below the normal numbers every rounding is as large
    spread = np.maximum(np.abs(left), limits(dtype).tiny) / 2
    while True:
        size = np.abs(left)
        size[size <= WITHIN * unit * spread] = 0
        row, col = np.divmod(size.reshape(len(left), -1).argmax(1), left.shape[2])
        largest = left[every, row, col]
        found = (size[every, row, col] > 0)[:, None]
        down = np.where(found, left[every, :, col], 0)
        along = np.where(found, left[every, row] / np.where(largest == 0, 1, largest)[:, None], 0)
        c, a = np.abs(down / np.where(largest == 0, 1, largest)[:, None])[:, :, None], np.abs(along)[:, None]
        ends = np.hypot(spread[every, row], np.abs(along) * spread[every, row, col][:, None])[:, None]
        spread = np.hypot(np.hypot(spread, a * spread[every, :, col][:, :, None]), c * ends)
        down, along = down.astype(dtype), along.astype(dtype)
        product = _outer(down, along)
        left -= product
        spread = np.hypot(spread, np.abs(product) / 2)
        yield (down, along), spread


def _outer(down: np.ndarray, along: np.ndarray) -> np.ndarray:
    return down[:, :, None].astype(np.float64) * along[:, None]


def _step(height: int, width: int) -> int:
    return max(1, CHUNK // (height * width))
