"""Numba with a disk cache that never serves old code: its folder is named by a hash of all sources and versions.

Numba's own cache watches only the function's file and ignores jit flags, so an edited helper or another flag set would be
answered with the old machine code. Hence one function per flag set, and one folder per state of the sources.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config as numba_config
from numba.core.caching import NullCache

from algos.engine.simd import simd
from algos.machine import cache_base

ROOT = Path(__file__).parents[1]
KEPT_S = 30 * 86_400
config: Any = numba_config  # its attributes come from the environment


@cache
def cache_folder() -> Path | None:
    """Where compiled code of these sources and versions lives; None when nothing can be written there."""
    digest = hashlib.sha256(f"{sys.version}|{numba.__version__}|{llvmlite.__version__}|{simd()}".encode())
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(path.read_bytes())
    flags = "boundscheck" if config.BOUNDSCHECK else "plain"
    folder = cache_base() / "numba" / f"{digest.hexdigest()[:16]}-{flags}"
    try:
        if not folder.exists():
            _forget_old(folder.parent)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def _forget_old(base: Path) -> None:
    """Remove the code of sources that nobody has compiled for a month."""
    for folder in base.glob("*"):
        if time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def compiled(**flags: Any) -> Callable[[Callable], Any]:
    """``numba.njit(nogil=True, cache=True)`` with this project's cache folder and any further flags.

    The cache lives in a private folder; a damaged entry is cleared and compiled anew.
    """

    def decorate(function: Callable) -> Any:
        folder = cache_folder()
        if folder is None:
            return numba.njit(nogil=True, **flags)(function)
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder)  # read once, when the dispatcher is made
        try:
            dispatcher = numba.njit(nogil=True, cache=True, **flags)(function)
        finally:
            config.CACHE_DIR = before
        return dispatcher

    return decorate


def compile_for(dispatcher: Any, *arguments: Any) -> None:
    """Compile (or load) the specialisation for ``arguments`` without running it, surviving a damaged cache.

    Asking again costs microseconds: Numba's own look-up of the arguments' types costs hundreds.
    """
    key = (dispatcher, *map(_kind, arguments))
    if key in _done:
        return
    signature = tuple(numba.typeof(a) for a in arguments)
    try:
        dispatcher.compile(signature)
    except OSError:  # no room for the cache: compile for this process alone
        dispatcher._cache = NullCache()
        dispatcher.compile(signature)
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, IndexError):
        folder = cache_folder()
        if folder is None:
            raise
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        dispatcher.compile(signature)
    _done.add(key)


_done: set[tuple] = set()


def _kind(argument: Any) -> Any:
    """What Numba specialises on, for the arguments that this project's functions take."""
    if isinstance(argument, np.ndarray):
        flags = argument.flags
        return argument.dtype, argument.ndim, flags.c_contiguous, flags.aligned, flags.writeable
    if isinstance(argument, tuple):
        return len(argument)
    return type(argument)
