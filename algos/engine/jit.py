"""Numba with a disk cache that never serves old code: its folder is named by a hash of all sources and
versions.

Numba's own cache watches only the function's file and ignores jit flags, so an edited helper or another flag
set would be answered with the old machine code. Hence one function per flag set, and one folder per state of
the sources.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
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
from numba.core.caching import FunctionCache
from numba.core.sigutils import normalize_signature
from numba.np import linalg

from algos.engine.linking import Linking
from algos.engine.target import kind
from algos.host import cache_base, forgetful


def _import_without_blas() -> None:
    """Import ``numba.np.arraymath``, which loads SciPy's BLAS only to know that there is one: a quarter of a
    second.

    SciPy is required here, and whatever Numba compiles with its BLAS loads it then.
    """
    ensure_blas = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        from numba.np import arraymath
    finally:
        linalg.ensure_blas = ensure_blas
    arraymath.ensure_blas = ensure_blas


_import_without_blas()

ROOT = Path(__file__).parents[1]
KEPT_S = 30 * 86_400
config: Any = numba_config  # its attributes come from the environment


@cache
def cache_folder() -> Path | None:
    """Where compiled code of these sources and versions lives; None when nothing can be written there."""
    digest = hashlib.sha256(f"{sys.version}|{numba.__version__}|{llvmlite.__version__}|{kind()}".encode())
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(path.read_bytes())
    flags = "boundscheck" if config.BOUNDSCHECK else "plain"
    try:
        folder = cache_base() / "numba" / f"{digest.hexdigest()[:16]}-{flags}"
        if not folder.exists():
            _forget_old(folder.parent)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        forgetful(error)
        return None


def _forget_old(base: Path) -> None:
    """Remove the code of sources that nobody has compiled for a month."""
    for folder in base.glob("*"):
        if time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def disabled() -> str | None:
    """Why nothing can be compiled, or None."""
    return (
        "NUMBA_DISABLE_JIT is set, which turns compiled loops into Python's: unset it"
        if config.DISABLE_JIT
        else None
    )


class _Cache(FunctionCache):
    """Numba's cache of one function as a help, never a condition: damaged, it is
    removed; on a full disk, left as it is.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            # Two processes that save at once may give two signatures one file.
            return found if found is None or found.signature.args == normalize_signature(sig)[0] else None
        except Exception:  # damaged pickles raise whatever their bytes ask for
            for path in Path(self.cache_path).glob(f"{glob.escape(self._impl.filename_base)}.*"):
                path.unlink(missing_ok=True)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def compiled(**flags: Any) -> Callable[[Callable], Any]:
    """``numba.njit(nogil=True)`` with any further flags, cached in this project's private folder."""

    def decorate(function: Callable) -> Any:
        # Called from Python or not at all
        dispatcher = numba.njit(nogil=True, no_cfunc_wrapper=True, **flags)(function)
        folder = cache_folder()
        if folder is None or config.DISABLE_JIT:
            return dispatcher
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder)  # read once, when the cache is made
        try:
            dispatcher._cache = _Cache(function)
        finally:
            config.CACHE_DIR = before
        return dispatcher

    return decorate


def linked(**flags: Any) -> Callable[[Callable], Any]:
    """For functions that compiled code alone calls, which takes half as long to compile as if each were
    ``compiled``.

    A call from Python is a TypeError.
    """
    return numba.njit(nogil=True, pipeline_class=Linking, **flags)


def compile_for(dispatcher: Any, *arguments: Any) -> Callable[..., Any]:
    """Compile (or load) the specialisation for ``arguments`` without running it: what is returned runs it
    for arguments of the same types, at which it does not look again.

    Asking again costs microseconds: Numba's own look-up of the arguments' types costs hundreds.
    """
    key = (dispatcher, *map(_kind, arguments))
    if key not in _done:
        _done[key] = dispatcher.compile(tuple(numba.typeof(a) for a in arguments))
    return _done[key]


_done: dict[tuple, Callable[..., Any]] = {}


def _kind(argument: Any) -> Any:
    """What Numba specialises on, for the arguments that this project's functions take."""
    if isinstance(argument, np.ndarray):
        flags = argument.flags
        return argument.dtype, argument.ndim, flags.c_contiguous, flags.aligned, flags.writeable
    if isinstance(argument, tuple):  # its length is part of its type
        return tuple(map(_kind, argument))
    return type(argument)
