"""What stands in place of CuPy where there is no GPU: arrays of NumPy's that, as CuPy's do, refuse to meet
NumPy's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from algos.gpu import _cupy
from algos.gpu._cupy import MIDDLING


class ndarray(np.ndarray):
    """In the memory of a device that is pretended."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        taken = [bare(a) for a in inputs]
        if out is None:
            return there(getattr(ufunc, method)(*taken, **options))
        getattr(ufunc, method)(*taken, out=tuple(bare(a) for a in out), **options)
        return out[0]

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, options: Any) -> Any:
        if function is np.shares_memory:  # the door asks of NumPy's arrays alone
            return False
        return there(function(*map(bare, arguments), **{name: bare(a) for name, a in options.items()}))

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(at, bare(value))

    def get(self) -> np.ndarray:
        return np.array(self.view(np.ndarray), copy=True, order="K")


ndarray.__module__ = "cupy"


def bare(a: Any) -> Any:
    """What NumPy computes with; an array of the host's own is refused, as CuPy does."""
    if isinstance(a, ndarray):
        return a.view(np.ndarray)
    if isinstance(a, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}")
    return type(a)(map(bare, a)) if type(a) in (list, tuple) else a


def there(made: Any) -> Any:
    """What was computed, on the device: also single numbers."""
    return np.asarray(made).view(ndarray) if isinstance(made, np.ndarray | np.generic) else made


def like(module: ModuleType) -> Any:
    """The functions of a module, which take and give arrays of the device."""

    class Functions(ModuleType):
        def __getattr__(self, name: str) -> Any:
            found = getattr(module, name)
            if isinstance(found, ModuleType):
                return like(found)
            # Universal functions ask their operands, and types compute nothing
            return moved(found) if callable(found) and not isinstance(found, type | np.ufunc) else found

    return Functions(module.__name__)


def moved(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        made = function(*map(bare, arguments), **{name: bare(a) for name, a in options.items()})
        out = options.get("out")
        return there(made) if out is None else out

    return call


def cupy() -> Any:
    """The module."""
    made = like(np)
    made.__dict__.update(
        __name__="cupy", ndarray=ndarray,
        asarray=lambda a, dtype=None: np.array(a, dtype, copy=None if isinstance(a, ndarray) else True,
                                               order="C").view(ndarray),
        asnumpy=lambda a: a.get(),
    )  # fmt: skip
    return made


@contextmanager
def pretended() -> Iterator[Any]:
    """``import cupy`` gives it, and nobody asks the machine for a GPU."""
    module = cupy()
    with mock.patch.dict("sys.modules", cupy=module), mock.patch.object(_cupy, "device", lambda: MIDDLING):
        yield module
