"""How layers are called: operands made regular, kernels compiled and shared by threads."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from algos.door import as_array, overlaps, regular
from algos.dtypes import FLOAT_TYPES, accumulator
from algos.engine.jit import compile_for, disabled
from algos.engine.memory import aligned
from algos.engine.relay import HELPERS, SPIN_S, helpers
from algos.engine.threads import checked_threads
from algos.host import usable_cores

BYTES_PER_S = 1e10  # of one thread, and far from the slowest: what is shared takes a while
SHARED_S = 1e-5  # less work than this stays on one thread
MEMO_SIZE = 4096
SMALL = 1 << 15  # elements of a result for which asking for alignment costs more than it gains


class Calls:
    """Calls of one compiled function with arrays of the same shapes, on ``threads`` threads at most.

    The function is ``kernel(*arrays, *fixed, *scratch, job)`` and forks ``job``. Job and scratch serve one
    call at a time; calls at the same time, from other threads, get their own.

    Parameters
    ----------
    kernel : function
        Of ``algos.engine.jit.compiled``.
    items : int
        Equal parts of the work.
    moved : int
        Bytes that it reads and writes, from which follows how long it takes.
    fixed : tuple
        What every call takes after its arrays.
    scratch : function, optional
        A tuple of arrays for a number of threads.
    """

    def __init__(self, kernel: Any, items: int, moved: int, threads: int, fixed: tuple = (),
                 scratch: Callable[[int], tuple] | None = None) -> None:
        if reason := disabled():
            raise RuntimeError(reason)
        seconds = moved / BYTES_PER_S
        self._kernel, self._items, self._fixed, self._scratch = kernel, items, fixed, scratch
        self._threads, self._long = 1 if seconds < SHARED_S else threads, seconds > SPIN_S
        self._crew = helpers()
        self._free = [self._new()]
        self._run: Callable[..., Any] | None = None

    def _new(self) -> tuple:
        job = self._crew.job(self._items, self._threads)
        self._hands = int(job[HELPERS])
        return (*self._fixed, *(self._scratch(self._hands + 1) if self._scratch else ()), job)

    def __call__(self, *arrays: Any) -> None:
        try:
            held = self._free.pop()
        except IndexError:
            held = self._new()
        if self._run is None:  # later calls bring the same types: nobody looks at them again
            self._run = compile_for(self._kernel, *arrays, *held)
        if self._hands:
            self._crew.wake(self._hands, self._long)
        self._run(*arrays, *held)
        self._free.append(held)


_memo: dict[Hashable, Any] = {}


def remembered(make: Callable[..., Any], threads: int | None, *key: Any) -> Any:
    """``make(threads, *key)``, once for equal keys: what depends on shapes, types and options alone."""
    known: Hashable = (make, usable_cores() if threads is None else threads, key)
    try:
        found = _memo.get(known)
    except TypeError:  # a list among the options
        return make(checked_threads(threads), *key)
    if found is None:
        found = make(checked_threads(threads), *key)
        if len(_memo) >= MEMO_SIZE:
            _memo.clear()
        _memo[known] = found
    return found


def floats(name: str, array: Any) -> np.ndarray:
    """An array of floats in C order, of a type that kernels have: float16 and bfloat16 as float32.

    Raises
    ------
    ValueError
        For other types, and for what is no array of numbers.
    """
    if type(array) is np.ndarray and array.dtype.char in "fd" and array.flags.carray:
        return array
    array = as_array(name, array)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} lives on a GPU: layers take arrays of the host, use {name}.get()")
    dtype = array.dtype.newbyteorder("=")
    if dtype.name not in FLOAT_TYPES:
        raise ValueError(f"{name} is {dtype}: layers take floats, use {name}.astype(np.float32)")
    return regular(name, array.astype(accumulator(dtype), copy=False), array.shape, accumulator(dtype), None)


def matching(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype | None = None) -> np.ndarray:
    """``floats``, of that shape, as the type that the other operand is computed in, where one is given."""
    if type(array) is not np.ndarray or array.dtype != dtype or not array.flags.carray:
        array = floats(name, array)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}: it must be {shape}")
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)


def filled(write: Callable[[np.ndarray], Any], shape: tuple[int, ...], x: Any, out: Any,
           *operands: Any) -> np.ndarray:
    """A result like x, the caller's operand, that ``write(y)`` fills: ``out`` where it is given.

    y: a flat array in the type that x is computed in.
    """
    if type(x) is np.ndarray and x.dtype.char in "fd" and x.dtype.isnative:
        dtype = held = x.dtype
    else:
        dtype = as_array("x", x).dtype.newbyteorder("=")
        held = accumulator(dtype)
    direct = False
    if out is not None:
        _check(out, shape, dtype, (x, *operands))
        direct = held == dtype and out.flags.carray and type(out) is np.ndarray
    size = math.prod(shape)
    y = out if direct else aligned(shape, held) if size > SMALL else np.empty(shape, held)
    if size:
        write(y.reshape(-1))
    if out is None:
        return y if held is dtype else y.astype(dtype, copy=False)
    if not direct:
        out[...] = y
    return out


def _check(out: Any, shape: tuple[int, ...], dtype: np.dtype, operands: tuple) -> None:
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out is a {type(out).__name__}: it must be a NumPy array")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}: it must be {dtype} {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only: pass a writable array")
    if any(overlaps(out, operand) for operand in operands):
        raise ValueError("out overlaps an operand: pass an array of its own")


def for_dimensions(function: Callable[..., Any]) -> list[Any]:
    """``function(ndim, ...)`` for 1, 2 and 3 axes of space, as torch names them: ``max_pool2d``."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    found = []
    for ndim in (1, 2, 3):
        name = function.__name__.lstrip("_")
        stem, backward, _ = name.partition("_backward")
        one: Any = partial(function, ndim)
        one.__name__ = one.__qualname__ = f"{stem}{ndim}d{backward}"
        one.__module__, one.__doc__ = function.__module__, function.__doc__
        one.__signature__ = signature.replace(parameters=parameters)
        found.append(one)
    return found
