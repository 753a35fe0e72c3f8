"""Whether anybody replaced a part of the judge, of the clock or of NumPy in this process.

Code from outside is imported into the controller and into workers. What it puts elsewhere while it is
imported is put back; what it replaces later is its own fault, since nothing found in that process can be
trusted any more.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

STOOD_ON = ("builtins", "gc", "json", "math", "numpy", "os", "statistics", "time")
# (module, class or nothing, name) -> owner, what it holds, value, its code
_before: dict[tuple[str, str, str], tuple[Any, Any, Any, Any]] = {}


def close() -> None:
    """Remember everything that can be called in the judge's modules and in those that they stand on."""
    for module, contents in list(sys.modules.items()):
        if module not in STOOD_ON and module.partition(".")[0] != "bench":
            continue
        for name, value in list(vars(contents).items()):
            if isinstance(value, type) and value.__module__ == module and module not in STOOD_ON:
                held = vars(value)
                for method, function in list(held.items()):
                    _before.setdefault((module, name, method), (value, held, function, _code(function)))
            if callable(value):
                _before.setdefault((module, "", name), (contents, vars(contents), value, _code(value)))


@contextlib.contextmanager
def closed(module: str) -> Iterator[None]:
    """For the length of a command that judges by ``module``; before anything from outside is imported."""
    import_module(module)  # what is not loaded cannot be remembered
    close()
    try:
        yield
    finally:
        _before.clear()


def broken() -> list[str]:
    """Names of what is another now."""
    return [".".join(filter(None, name)) for name in _different()]


def insist() -> None:
    """Raise ValueError when something is another now."""
    if names := broken():
        raise ValueError(
            f"an algorithm from outside replaced {', '.join(names[:3])} in the process that decides: "
            "nothing more is kept, leave it out of CONVBENCH_PATH"
        )


def mend() -> None:
    """Put back what was there."""
    for module, kind, name in _different():
        owner, _, value, code = _before[module, kind, name]
        setattr(owner, name, value)
        if code is not None:
            value.__code__ = code


def _different() -> list[tuple[str, str, str]]:
    return [key for key, (_, held, value, code) in _before.items()
            if held.get(key[2]) is not value or (code is not None and value.__code__ is not code)]


def _code(function: Any) -> Any:
    return function.__code__ if isinstance(function, FunctionType) else None
