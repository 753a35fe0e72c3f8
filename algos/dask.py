"""``scipy.ndimage``'s ``convolve`` and ``correlate`` on dask arrays, with the arguments of ``dask_image``.

Lazy: every chunk is filtered with what it needs of its neighbours (``dask.array.map_overlap``), and what lies
beyond the array is made within the chunks at its edge. ``wrap`` brings the opposite edge there first. NumPy
and CuPy chunks keep their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from operator import index
from typing import Any, NamedTuple

import numpy as np

from algos.arrays import is_device_array, module_of
from algos.auto import pick
from algos.functional import Plan, plan
from algos.grammar import meant
from algos.spec import ConvSpec

INSTALL = "algos.dask needs dask: pip install 'convbench[dask]'"
# What lies beyond the edge, by SciPy's names for it
MODES = {"reflect": "symmetric", "grid-mirror": "symmetric", "mirror": "reflect", "nearest": "replicate",
         "wrap": "circular", "grid-wrap": "circular", "constant": "constant", "grid-constant": "constant"}
MOST_AXES = 3  # on which a kernel is longer than 1
MOST_PLANS = 128  # shapes of blocks, whose plans a process keeps


def correlate(
    image: Any, weights: Any, mode: str = "reflect", cval: float = 0.0, origin: int | Sequence[int] = 0, *,
    threads: int = 1,
) -> Any:  # fmt: skip
    """Correlate an array with a kernel, lazily.

    Parameters
    ----------
    image : dask array, or what ``dask.array.asarray`` takes
        Of 1 to 3 dimensions, and any number before them on which the kernel is 1 long.
    weights : array
        As many dimensions as ``image``; brought to the type in which sums are made.
    mode : str
        reflect (d c b a | a b c d), mirror (d c b | a b c d), nearest, wrap, constant with ``cval``, or their
        names with ``grid-``.
    origin : int, or one for each axis
        By how many elements the kernel's centre, k // 2, is moved to the right.
    threads : int
        Of each chunk; dask runs several chunks at a time.

    Returns
    -------
    dask array
        Of the image's shape and type, complex where the weights are. Chunks smaller than the kernel reaches
        are joined. Whole numbers are summed as float64 and cut off, as SciPy does; float32 is summed as
        float32, unlike there.

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return _filtered(image, weights, mode, cval, origin, threads, flip=False)


def convolve(
    image: Any, weights: Any, mode: str = "reflect", cval: float = 0.0, origin: int | Sequence[int] = 0, *,
    threads: int = 1,
) -> Any:  # fmt: skip
    """Convolve an array with a kernel, lazily: ``correlate`` with the kernel turned round."""
    return _filtered(image, weights, mode, cval, origin, threads, flip=True)


class _Filter(NamedTuple):
    """What all chunks of a call have in common; hashable, so that it finds its plans in whatever process."""

    weights: bytes
    kernel: tuple[int, ...]
    dtype: np.dtype  # of sums
    exact: bool  # whether sums must be exact where they can be
    mode: str
    edges: tuple[tuple[int, int], ...]  # elements that are made beyond the array
    threads: int


def _filtered(
    image: Any, weights: Any, mode: str, cval: float, origin: int | Sequence[int], threads: int, flip: bool
) -> Any:
    try:
        import dask.array as da
    except ModuleNotFoundError:
        raise ModuleNotFoundError(INSTALL) from None
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: {meant(str(mode), list(MODES), 'use ' + ', '.join(MODES))}")
    x, w = da.asarray(image), np.asarray(weights.get() if is_device_array(weights) else weights)
    if w.ndim != x.ndim or not w.size:
        raise ValueError(f"weights have shape {w.shape}: give {x.ndim} axes as the image has, none empty")
    reach = _reach(w.shape, origin, flip)
    result, sums, exact = _types(x.dtype, w.dtype)
    w = (np.flip(w) if flip else w).astype(sums)
    if not x.size:
        return x.astype(result)
    periodic = MODES[mode] == "circular"
    x, edges = _joined(x, reach)
    chunks = x.chunks
    for axis, (before, after) in enumerate(reach):
        if periodic and len(chunks[axis]) > 1:
            x, edges[axis] = _wrapped(x, axis, before, after), (0, 0)
    border = f"constant:{float(cval)!r}" if MODES[mode] == "constant" else MODES[mode]
    own = _Filter(w.tobytes(), w.shape, sums, exact, border, tuple(edges), threads)
    depth = {axis: pair if len(chunks[axis]) > 1 else 0 for axis, pair in enumerate(reach)}
    return da.map_overlap(
        _block, x, depth=depth, boundary="none", trim=False, allow_rechunk=False, chunks=chunks, dtype=result,
        meta=x._meta.astype(result), own=own, result=result,
    )  # fmt: skip


def _reach(kernel: tuple[int, ...], origin: int | Sequence[int], flip: bool) -> list[tuple[int, int]]:
    """Elements before and after its own that a result needs, along each axis."""
    moves = [origin] * len(kernel) if isinstance(origin, (int, np.integer)) else list(origin)
    if len(moves) != len(kernel):
        raise ValueError(f"origin has {len(moves)} numbers: give one, or one for each of {len(kernel)} axes")
    found = []
    for length, move in zip(kernel, map(index, moves), strict=True):
        before = length // 2 + move
        if flip:  # the turned kernel's element of the same centre
            before = length - 1 - before
        if not 0 <= before < length:
            raise ValueError(f"origin {move} moves a kernel of {length} off its centre's pixel: use "
                             f"{-(length // 2)} to {(length - 1) // 2}")  # fmt: skip
        found.append((before, length - 1 - before))
    if sum(length > 1 for length in kernel) > MOST_AXES or any(n > 1 for n in kernel[:-MOST_AXES]):
        raise ValueError(f"the kernel is {kernel}: only its last {MOST_AXES} axes may be longer than 1")
    return found


def _types(image: np.dtype, weights: np.dtype) -> tuple[np.dtype, np.dtype, bool]:
    """Of the result, of sums, and whether these must be exact."""
    result = np.promote_types(image, np.complex64) if weights.kind == "c" else image
    if result.kind in "biu":
        return result, np.dtype(np.float64), True
    return result, result, False


def _joined(x: Any, reach: Sequence[tuple[int, int]]) -> tuple[Any, list[tuple[int, int]]]:
    """``x`` in chunks that hold all that the next one needs of them, and one more for ``mirror``; whole along
    an axis that is no longer than that.
    """
    from dask.array.overlap import ensure_minimum_chunksize

    chunks = []
    for size, pair, own in zip(x.shape, reach, x.chunks, strict=True):
        least = max(pair) + 1
        alone = max(pair) == 0
        chunks.append(own if alone else (size,) if least >= size else ensure_minimum_chunksize(least, own))
    return x.rechunk(tuple(chunks)), list(reach)


def _wrapped(x: Any, axis: int, before: int, after: int) -> Any:
    """``x`` with the opposite edges' elements in the first and in the last chunk."""
    import dask.array as da

    def part(start: int, stop: int) -> Any:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    size, own = x.shape[axis], list(x.chunks[axis])
    own[0], own[-1] = own[0] + before, own[-1] + after
    return da.concatenate([part(size - before, size), x, part(0, after)], axis).rechunk({axis: tuple(own)})


def _block(block: Any, own: _Filter, result: np.dtype, block_info: Any = None) -> Any:
    """A chunk with what it needs of its neighbours -> its result."""
    places = zip(own.edges, block_info[0]["chunk-location"], block_info[0]["num-chunks"], strict=True)
    padding = tuple((before * (at == 0), after * (at == count - 1)) for (before, after), at, count in places)
    alike = next((k for k, length in enumerate(own.kernel[:-1]) if length > 1), len(own.kernel) - 1)
    alike = max(alike, len(own.kernel) - MOST_AXES)  # axes that are a batch
    size = block.shape[alike:]
    idle = _plans(own, prod(block.shape[:alike]), size, padding[alike:], is_device_array(block))
    try:
        run = idle.pop()
    except IndexError:  # all of them are in other threads' calls
        run = _prepared(own, prod(block.shape[:alike]), size, padding[alike:], module_of(block))
    try:
        y = run(block.astype(own.dtype).reshape(-1, 1, *size))
    finally:
        idle.append(run)
    with np.errstate(invalid="ignore"):  # out of a whole number's range, as SciPy
        return y.reshape(*block.shape[:alike], *y.shape[2:]).astype(result, copy=False)


@lru_cache(maxsize=MOST_PLANS)
def _plans(
    own: _Filter, batch: int, size: tuple[int, ...], padding: tuple[tuple[int, int], ...], on_device: bool
) -> list[Plan]:
    """Those that are in no call: as many are prepared as threads were in one at a time."""
    return []


def _prepared(
    own: _Filter, batch: int, size: tuple[int, ...], padding: tuple[tuple[int, int], ...], module: Any
) -> Plan:
    kernel = own.kernel[len(own.kernel) - len(size) :]
    spec = ConvSpec(
        batch=batch, in_channels=1, size=size, out_channels=1, kernel=kernel, padding=padding,
        padding_mode=own.mode, dtype=own.dtype.name,
    )  # fmt: skip
    w = np.frombuffer(own.weights, own.dtype).reshape(spec.weight_shape)
    device, algorithm = "cpu" if module is np else "cuda", "auto"
    if own.exact:
        algorithm = pick(spec, threads=own.threads, device=device, accuracy="componentwise").algorithm
    return plan(spec, w if module is np else module.asarray(w), algorithm, own.threads)
