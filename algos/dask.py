"""``scipy.ndimage``'s ``convolve`` and ``correlate`` on dask arrays, with the arguments of ``dask_image``.

Lazy: a chunk is filtered with what it needs of its neighbours, in ``wrap`` of those at the opposite edge too,
and what lies beyond the array is made within the chunks at its edge. NumPy and CuPy chunks keep their kind.

Two tasks a chunk: one cuts off what its neighbours need, all of it at once, one filters. ``map_overlap``
makes eight, and it is tasks that small chunks cost: 132 instead of 32 for 4 x 4 chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import product
from math import prod
from operator import index
from typing import Any, NamedTuple

import numpy as np

from algos.arrays import is_device_array, module_of
from algos.auto import pick
from algos.grammar import meant
from algos.plans import Plan, plan
from algos.spec import ConvSpec

INSTALL = "algos.dask needs dask: pip install 'convbench[dask]'"
# What lies beyond the edge, by SciPy's names for it
MODES = {"reflect": "symmetric", "grid-mirror": "symmetric", "mirror": "reflect", "nearest": "replicate",
         "wrap": "circular", "grid-wrap": "circular", "constant": "constant", "grid-constant": "constant"}
MOST_AXES = 3  # on which a kernel is longer than 1
MOST_PLANS = 128  # shapes of blocks, whose plans a process keeps

Pair = tuple[int, int]
Side = tuple[int, ...]  # -1, 0 or 1 along each axis


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
    result: np.dtype
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
    w = (np.flip(w) if flip else np.conj(w)).astype(sums)  # a correlation conjugates
    if not x.size:
        return x.astype(result)
    border = f"constant:{float(cval)!r}" if MODES[mode] == "constant" else MODES[mode]
    own = _Filter(w.tobytes(), w.shape, sums, exact, border, result, threads)
    return _graph(_joined(x, reach), own, reach)


def _reach(kernel: tuple[int, ...], origin: int | Sequence[int], flip: bool) -> list[Pair]:
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


def _joined(x: Any, reach: Sequence[Pair]) -> Any:
    """``x`` in chunks that hold all that the next one needs of them, and one more for ``mirror``; whole along
    an axis that is no longer than that.
    """
    from dask.array.overlap import ensure_minimum_chunksize as _least

    chunks = []
    for size, pair, own in zip(x.shape, reach, x.chunks, strict=True):
        most = max(pair)
        chunks.append(own if not most else (size,) if most + 1 >= size else _least(most + 1, own))
    return x.rechunk(tuple(chunks))


def _graph(x: Any, own: _Filter, reach: Sequence[Pair]) -> Any:
    """Two tasks a chunk, one where no chunk has neighbours."""
    from dask.array import Array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    token = tokenize(x, own, reach)
    name, edges = f"filtered-{token}", f"edges-{token}"
    parts = [(-1,) * (before > 0) + (0,) + (1,) * (after > 0) for before, after in reach]
    sides = [side for side in product(*parts) if any(side)]
    cut = partial(_edges, reach=tuple(reach), sides=tuple(sides))
    tasks: dict[Any, Any] = {}
    for at in np.ndindex(*x.numblocks):
        beside = {side: _beside(at, side, x.numblocks, own.mode) for side in sides}
        theirs = {side: (edges, *found) for side, found in beside.items() if found is not None}
        tasks |= {key: (cut, (x.name, *key[1:])) for key in theirs.values()}
        padding = _beyond(at, x.numblocks, reach, own.mode)
        call = partial(_block, own=own, sides=tuple(theirs), padding=padding)
        tasks[name, *at] = (call, (x.name, *at), *theirs.values())
    graph = HighLevelGraph.from_collections(name, tasks, [x])
    return Array(graph, name, x.chunks, meta=x._meta.astype(own.result))


def _beside(at: Side, side: Side, counts: tuple[int, ...], mode: str) -> Side | None:
    """The chunk on that side of the one at ``at``; round the edge where the mode is periodic."""
    found = [k + step for k, step in zip(at, side, strict=True)]
    if mode == "circular" and all(count > 1 or not step for count, step in zip(counts, side, strict=True)):
        return tuple(k % count for k, count in zip(found, counts, strict=True))
    return tuple(found) if all(0 <= k < n for k, n in zip(found, counts, strict=True)) else None


def _beyond(at: Side, counts: tuple[int, ...], reach: Sequence[Pair], mode: str) -> tuple[Pair, ...]:
    """Elements beyond the array that the chunk at ``at`` needs, along each axis."""
    def alone(k: int, step: int, count: int) -> bool:
        return _beside((k,), (step,), (count,), mode) is None

    return tuple(
        (before * alone(k, -1, count), after * alone(k, 1, count))
        for k, count, (before, after) in zip(at, counts, reach, strict=True)
    )


def _edges(block: Any, reach: tuple[Pair, ...], sides: tuple[Side, ...]) -> dict[Side, Any]:
    """What each neighbour needs of a chunk, by the side on which the chunk lies of it."""
    found = {}
    for side in sides:
        cut = tuple(
            slice(size - before, size) if step < 0 else slice(0, after) if step else slice(None)
            for step, size, (before, after) in zip(side, block.shape, reach, strict=True)
        )
        found[side] = block[cut].copy()  # or it would hold the whole chunk
    return found


def _block(
    block: Any, *edges: dict[Side, Any], own: _Filter, sides: tuple[Side, ...], padding: tuple[Pair, ...]
) -> Any:
    """A chunk and what it needs of its neighbours -> its result."""
    alike = next((k for k, length in enumerate(own.kernel[:-1]) if length > 1), len(own.kernel) - 1)
    alike = max(alike, len(own.kernel) - MOST_AXES)  # axes that are a batch
    whole = _put_together(block, dict(zip(sides, edges, strict=True)), own.dtype)
    size, images = whole.shape[alike:], prod(whole.shape[:alike])
    idle = _plans(own, images, size, padding[alike:], is_device_array(block))
    try:
        run = idle.pop()
    except IndexError:  # all of them are in other threads' calls
        run = _prepared(own, images, size, padding[alike:], module_of(block))
    try:
        y = run(whole.reshape(images, 1, *size))
    finally:
        idle.append(run)
    with np.errstate(invalid="ignore"):  # out of a whole number's range, as SciPy
        y = y.reshape(*block.shape)
        return (np.trunc(y) if own.result.kind == "b" else y).astype(own.result, copy=False)


def _put_together(block: Any, edges: dict[Side, dict[Side, Any]], dtype: np.dtype) -> Any:
    """The chunk with its neighbours' edges around it, in the type of sums."""
    if not edges:
        return block.astype(dtype, copy=False)
    parts = {(0,) * block.ndim: block} | {side: theirs[side] for side, theirs in edges.items()}
    lengths: list[dict[int, int]] = [{} for _ in block.shape]
    for side, part in parts.items():
        for axis, step in enumerate(side):
            lengths[axis][step] = part.shape[axis]
    whole = module_of(block).empty(tuple(sum(length.values()) for length in lengths), dtype)
    for side, part in parts.items():
        first = [sum(length for step, length in own.items() if step < mine)
                 for own, mine in zip(lengths, side, strict=True)]  # fmt: skip
        whole[tuple(slice(k, k + n) for k, n in zip(first, part.shape, strict=True))] = part
    return whole


@lru_cache(maxsize=MOST_PLANS)
def _plans(
    own: _Filter, images: int, size: tuple[int, ...], padding: tuple[Pair, ...], on_device: bool
) -> list[Plan]:
    """Those that are in no call: as many are prepared as threads were in one at a time."""
    return []


def _prepared(
    own: _Filter, images: int, size: tuple[int, ...], padding: tuple[Pair, ...], module: Any
) -> Plan:
    kernel = own.kernel[len(own.kernel) - len(size) :]
    spec = ConvSpec(
        batch=images, in_channels=1, size=size, out_channels=1, kernel=kernel, padding=padding,
        padding_mode=own.mode, dtype=own.dtype.name,
    )  # fmt: skip
    w = np.frombuffer(own.weights, own.dtype).reshape(spec.weight_shape)
    device, algorithm = "cpu" if module is np else "cuda", "auto"
    if own.exact:
        algorithm = pick(spec, threads=own.threads, device=device, accuracy="componentwise").algorithm
    return plan(spec, w if module is np else module.asarray(w), algorithm, own.threads)
