"""From one type of elements to another, all at once: by compiled loops where NumPy's are slow and there are
many elements, else by NumPy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from algos.dtypes import BFLOAT16
from algos.host import cpu_features

LEAST = 1 << 12  # elements; below, a call of a loop and its compilation do not pay
SHARED = 1 << 15  # fewer stay on one thread
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
NARROW = {(HALF, SINGLE): "halves_in", (SINGLE, HALF): "halves_out", (BFLOAT16, SINGLE): "brains_in",
          (SINGLE, BFLOAT16): "brains_out"}  # fmt: skip


@cache
def _compiles(half: bool) -> bool:
    from algos.engine.jit import disabled

    return disabled() is None and (not half or bool(cpu_features().get("f16c")))


def _loop(name: str, *arrays: Any) -> Callable[..., Any] | None:
    """The compiled loop of that name, where it serves these arrays."""
    if not all(type(a) is np.ndarray and a.flags.c_contiguous and a.size >= LEAST for a in arrays):
        return None
    if not _compiles("halves" in name):
        return None
    from algos.engine import casting

    return getattr(casting, name)


_jobs: Any = threading.local()  # one call at a time may use a job, and making one takes 5 us
JOBS = 1 << 8


def _job(elements: int, threads: int, items: int = 0) -> np.ndarray:
    """What shares a loop over so many elements; its helpers are woken."""
    from algos.engine.casting import ITEM
    from algos.engine.relay import HELPERS, helpers

    crew = helpers()
    kept: dict[Any, Any] = _jobs.__dict__
    key = crew, items or -(-elements // ITEM), threads if elements >= SHARED else 1
    if (job := kept.get(key)) is None:
        if len(kept) >= JOBS:
            kept.clear()
        job = kept[key] = crew.job(*key[1:])
    if job[HELPERS]:
        crew.wake(int(job[HELPERS]))
    return job


def convert(target: Any, a: Any, threads: int = 1, point: int = 0) -> None:
    """target[...] = a - point, rounded to nearest where the type is narrower."""
    name = NARROW.get((a.dtype, target.dtype))
    if a.dtype.kind in "iu" and target.dtype.kind == "f":
        name = "differences" if a.itemsize < 8 else "long_differences"
    if name is not None and (loop := _loop(name, a, target)) is not None:
        if name in NARROW.values():
            loop(_bits(a), _bits(target), _job(a.size, threads))
        else:
            whole = np.array(point, a.dtype).astype(np.int64) if a.itemsize == 8 else target.dtype.type(point)
            loop(a.reshape(-1), target.reshape(-1), whole[()], _job(a.size, threads))
    elif point and a.itemsize == 8:  # which floats may not hold, where they hold the difference
        target[...] = (a - a.dtype.type(point)).view(np.int64)
    else:
        target[...] = a
        if point:
            target -= point


def _bits(a: np.ndarray) -> np.ndarray:
    """Flat; of types that Numba does not have, their bits."""
    return (a.view(np.uint16) if a.itemsize == 2 else a).reshape(-1)


def pair(target: np.ndarray, a: np.ndarray, point: int, threads: int = 1) -> None:
    """Channels 2k and 2k + 1 of a (n, c, *size) less ``point`` as halves of target (n, k, *size).

    A last one alone is beside a zero.
    """
    rows, channels, halves = *a.shape[:2], target.shape[1]
    if (loop := _loop("pairs", a, target)) is not None:
        job = _job(a.size, threads, rows * halves)
        loop(a.reshape(rows, channels, -1), target.reshape(rows, halves, -1), np.int32(point), job)
        return
    numbers = target.view(np.int16).reshape(*target.shape, 2)
    np.subtract(a[:, ::2], point, out=numbers[..., 0], dtype=np.int16, casting="unsafe")
    np.subtract(a[:, 1::2], point, out=numbers[:, : channels // 2, ..., 1], dtype=np.int16, casting="unsafe")
    if channels % 2:
        numbers[:, -1, ..., 1] = 0


def quadruple(target: np.ndarray, a: np.ndarray, above: int, threads: int = 1) -> None:
    """Channels 4k to 4k + 3 of a (n, c, *size) of 8 bits, ``above`` more, as bytes of target (n, k, *size).

    Beside the last ones are zeros.
    """
    rows, channels, fours = *a.shape[:2], target.shape[1]
    bits = a.view(np.uint8)
    if (loop := _loop("quads", bits, target)) is not None:
        job = _job(a.size, threads, rows * fours)
        turned = np.uint32(above * 0x01010101)
        loop(bits.reshape(rows, channels, -1), target.reshape(rows, fours, -1), turned, job)
        return
    numbers = target.view(np.uint8).reshape(*target.shape, 4)
    numbers[...] = 0
    for k in range(4):
        part = bits[:, k::4]
        numbers[:, : part.shape[1], ..., k] = part ^ above


def pair_brains(target: np.ndarray, a: np.ndarray, threads: int = 1) -> bool:
    """Channels of bfloat16 as ``pair`` has them; whether one is denormal."""
    rows, channels, halves = *a.shape[:2], target.shape[1]
    bits = a.view(np.uint16)
    if (loop := _loop("brain_pairs", bits, target)) is not None:
        job, faint = _job(a.size, threads, rows * halves), np.zeros(1, np.int64)
        loop(bits.reshape(rows, channels, -1), target.reshape(rows, halves, -1), faint, job)
        return bool(faint[0])
    numbers = target.view(np.uint16).reshape(*target.shape, 2)
    numbers[..., 0], numbers[:, : channels // 2, ..., 1] = bits[:, ::2], bits[:, 1::2]
    if channels % 2:
        numbers[:, -1, ..., 1] = 0
    return bool(denormal(a).any())


def denormal(a: np.ndarray) -> Any:
    """Which numbers of bfloat16 are."""
    size = a.view(np.uint16) & 0x7FFF
    return (size > 0) & (size < 0x80)


def store_whole(y: Any, result: Any, threads: int = 1) -> None:
    """y[...] = whole numbers that floats, or integers, hold.

    Raises
    ------
    OverflowError
        For one that does not fit the type of y.
    """
    info, kind = np.iinfo(y.dtype), result.dtype.type
    if result.dtype.kind == "f":
        low, high = kind(info.min), kind(info.max)
        if int(high) > info.max:  # rounded up
            high = np.nextafter(high, kind(0))
    else:
        inside = np.iinfo(result.dtype)
        low, high = kind(max(info.min, inside.min)), kind(min(info.max, inside.max))
    loop = _loop("wholes_out", y, result)
    if loop is not None and y.itemsize < 8:
        outside = np.zeros(1, np.int64)
        loop(result.reshape(-1), y.reshape(-1), low, high, outside, _job(y.size, threads))
        fits = not outside[0]
    else:
        fits = not result.size or (int(result.min()) >= info.min and int(result.max()) <= info.max)
        if fits:
            y[...] = result
    if not fits:
        off = max(int(result.max()) - info.max, info.min - int(result.min()))
        value = int(result.max()) if int(result.max()) - info.max == off else int(result.min())
        raise OverflowError(beyond(value, y.dtype))


def beyond(value: int, dtype: np.dtype) -> str:
    """What to do about a result that does not fit."""
    told = f"a sum of {value} does not fit {dtype}"
    if dtype.itemsize == 8:
        return f"{told}, and no integer type is wider: use smaller numbers, or floats"
    wider = "int32" if dtype.itemsize < 4 else "int64"
    return f"{told}: convert the operands to {wider}, or give a plan a wider result, {dtype}>{wider}"


def split(a: Any, first: Any, second: Any, threads: int = 1) -> None:
    """Real and imaginary parts."""
    floats = np.dtype(f"f{a.itemsize // 2}")
    loop = _loop("parts", a, first, second) if first.dtype == second.dtype == floats else None
    if loop is None:
        first[...], second[...] = a.real, a.imag
    else:
        loop(a.reshape(-1).view(floats), first.reshape(-1), second.reshape(-1), _job(a.size, threads))


def combined(y: Any, products: Any, conjugate: bool, threads: int = 1) -> None:
    """y from the real products of its parts: those of [real, imaginary] images with [real, imaginary]
    weights, the latter's sign turned if ``conjugate``.
    """
    (a, b), (c, d) = products[0], products[1]  # a: real with real; b: real image, imaginary weights; ...
    floats = np.dtype(f"f{y.itemsize // 2}")
    loop = _loop("joined", y, a, b, c, d) if a.dtype == floats else None
    if loop is not None:
        flat = [p.reshape(-1) for p in ((a, c, b, d) if conjugate else (a, b, c, d))]
        sign = floats.type(-1 if conjugate else 1)
        loop(*flat, sign, y.reshape(-1).view(floats), _job(y.size, threads))
    elif conjugate:
        np.add(a, d, out=y.real)
        np.subtract(c, b, out=y.imag)
    else:
        np.subtract(a, d, out=y.real)
        np.add(b, c, out=y.imag)
