"""Which machine code this machine keeps, so that the picker counts compiling where it would really be done.

Numba can tell only with the arguments of a call at hand. Here the first plan of each specialisation leaves an
empty file beside Numba's own, in the folder that is named by the sources, so that the answer is as old as the
code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algos.contract import Algorithm
    from algos.spec import ConvSpec

LOAD_S = 0.05  # to read code from the disk, once in a process

Key = tuple[Any, ...]

_here: set[Key] = set()  # compiled or loaded in this process
_on_disk: set[Key] = set()
_missed: dict[Key, float] = {}  # seconds that calls would have saved


def compiling_s(algorithm: Algorithm, spec: ConvSpec) -> float:
    """Seconds that the next plan for ``spec`` compiles, or loads what was
    compiled; 0 in a process that has its code.
    """
    seconds = algorithm.compile_s(spec)
    if not seconds or (key := _key(algorithm, spec)) in _here:
        return 0.0
    if key not in _on_disk:
        if not os.path.exists(_path(key)):
            return seconds
        _on_disk.add(key)
    return min(LOAD_S, seconds)


def compiled_now(algorithm: Algorithm, spec: ConvSpec) -> None:
    """A plan for ``spec`` was prepared."""
    if not algorithm.compile_s(spec) or (key := _key(algorithm, spec)) in _here:
        return
    _here.add(key)
    with contextlib.suppress(OSError):
        open(_path(key), "a").close()


def missed(algorithm: Algorithm, spec: ConvSpec, saved_s: float) -> bool:
    """A call did without the code of a plan for ``spec``, which would have saved it so much: whether calls of
    all shapes that share the code have missed what compiling or loading takes.
    """
    key = _key(algorithm, spec)
    _missed[key] = _missed.get(key, 0.0) + saved_s
    return _missed[key] >= compiling_s(algorithm, spec)


def compiled_count() -> int:
    """How much this process has compiled or loaded, which grows and nothing else."""
    return len(_here)


def _key(algorithm: Algorithm, spec: ConvSpec) -> Key:
    kind = type(algorithm)
    key = (kind.__module__, kind.__qualname__, *algorithm.specialised(spec))
    if kind.__module__.startswith("algos."):
        return key
    from algos.build import build_of

    return (*key, build_of(algorithm))  # the folder is named by our sources alone


@lru_cache(maxsize=4096)
def _path(key: Key) -> str:
    """Empty, which is no file, where nothing can be kept."""
    from algos.engine.jit import cache_folder

    folder = cache_folder()
    return (
        f"{folder}/{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.kept" if folder else ""
    )
