"""The build that a record belongs to: what the code of its algorithm was.

That is every module of ``algos`` that the algorithm's own file imports, at its head or in a function, and
what those import in turn, with the versions of its runtime's libraries: an edit of another family, or of a
text, leaves its records as they are.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from algos.host import LIBRARIES, every_library, version

if TYPE_CHECKING:
    from algos.contract import Algorithm

ROOT = Path(__file__).parent
# What all algorithms are written against
SHARED = {str(ROOT / f"{name}.py") for name in ("contract", "spec", "grammar")}
# A whole file takes milliseconds to parse; only its imports are, and what is imported for types alone is
# skipped.
FOR_TYPES = re.compile(r"^if (?:typing\.)?TYPE_CHECKING:\n(?:(?:[ \t][^\n]*)?\n)+", re.MULTILINE)
IMPORT = re.compile(r"import\b[^\n(]*(?:\((?:#[^\n]*|[^)#])*\))?")


@cache
def build_of(algorithm: Algorithm) -> str:
    """Names the code that an algorithm runs: an edit of it makes records stale."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in type(algorithm).__mro__]
    for content in sorted(_digest(file) for file in _reached({file for file in files if file})):
        digest.update(content)
    if algorithm.runtime == "numba":
        from algos.engine.target import candidates, shape  # loads the compiler

        if shape() != candidates()[0]:
            digest.update(str(shape()).encode())
    for name in LIBRARIES.get(algorithm.runtime, every_library()):
        digest.update(f"{name}={version(name)}".encode())
    return digest.hexdigest()[:12]


@cache
def lowering_code() -> str:
    """Names the code that lowers problems: an edit of it makes stale what came about through it."""
    files = sorted(map(str, (ROOT / "lower").glob("*.py")))
    return hashlib.sha256(b"".join(map(_digest, files))).hexdigest()[:12]


def _reached(files: set[str]) -> set[str]:
    """``files`` and all that they import of ``algos``, in any number of steps."""
    found: set[str] = set()
    while files := files - found - SHARED:
        found |= files
        files = {path for file in files for _, path in imports(file)}
    return found


@cache
def _digest(file: str) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()


@cache
def imports(file: str) -> tuple[tuple[str, str], ...]:
    """What a file imports of ``algos``, anywhere in it but for types: (name, file that it stands in)."""
    text = FOR_TYPES.sub("", Path(file).read_text("utf-8").replace("\\\n", " "))
    found: list[tuple[str, str]] = []
    for match in IMPORT.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        statement = re.split("[:;]", line)[-1].lstrip() + match[0]
        if ROOT.name in statement or statement.startswith("from ."):
            with suppress(SyntaxError):  # prose
                for node in ast.parse(statement).body:
                    found += (
                        (name.rpartition(".")[2], path)
                        for name in named(file, node)
                        for path in files_of(name)
                    )
    return tuple(found)


def named(file: str, node: ast.stmt) -> Iterator[str]:
    """``algos.engine.jit.compiled`` for what a statement in ``file`` imports from there."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = Path(file).parents[node.level - 1] if node.level else ROOT
        if above.is_relative_to(ROOT):  # what other packages import from themselves is theirs
            parts = above.relative_to(ROOT.parent).parts if node.level else ()
            yield from (".".join((*parts, *filter(None, [node.module]), alias.name)) for alias in node.names)


@cache
def files_of(name: str) -> tuple[str, ...]:
    """The file that a name stands in; of one that a package passes on, the file that the package has it from.
    """
    if name.partition(".")[0] != ROOT.name:
        return ()
    own = os.path.join(ROOT.parent, *name.split("."))
    for file in (f"{own}.py", f"{own}/__init__.py"):
        if os.path.isfile(file):
            return (file,)
    place, _, last = name.rpartition(".")
    if place and os.path.isfile(package := f"{os.path.dirname(own)}/__init__.py"):
        return tuple(file for passed, file in imports(package) if passed == last) or (package,)
    return files_of(place)
