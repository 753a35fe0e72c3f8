"""Finds the algorithms: every module in cpu/, gpu/ and peers/, and every file in the folders of
CONVBENCH_PATH.

A module ends with ``ALGORITHMS = [...]``; nothing else registers it. A module whose third-party import is
missing becomes an unavailable entry that says so; any other error in it is a bug and propagates. From a file
of CONVBENCH_PATH it becomes an unavailable entry with file and line, so that the others work meanwhile;
commands that would use it refuse to (``usable``).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from algos.contract import ACCURACIES, FAMILIES, Algorithm, said
from algos.engine.threads import once
from algos.grammar import meant, shown
from algos.host import LIBRARIES
from algos.lower.search import unsupported
from algos.spec import ConvSpec

PACKAGES = ("cpu", "gpu", "peers")
ROOT = Path(__file__).parent
_outside: dict[str, str] = {}  # the file from outside that lists an algorithm, by name
ALLOWED = {"family": FAMILIES, "accuracy": ACCURACIES, "device": ("cpu", "cuda"), "runtime": tuple(LIBRARIES),
           "layout": ("nchw", "nhwc")}  # fmt: skip


@dataclass(frozen=True)
class Missing(Algorithm):
    """Stands for a module that could not be imported, so that ``list`` can say why; ``file`` is one from
    outside, ``broken`` by an error of its own.
    """

    reason: str = ""
    file: str = ""
    broken: bool = False

    def unavailable(self) -> str:
        return self.reason

    def unsupported(self, spec: ConvSpec) -> str:
        return self.reason

    def tunables(self) -> dict[str, Any]:
        return {}

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 0


@once
def registry() -> dict[str, Algorithm]:
    """All algorithms by name, in order of family folder and file name.

    Raises
    ------
    ValueError
        For a duplicate name, an unknown family, accuracy, device, runtime or layout, and for a folder of
        CONVBENCH_PATH that does not exist.
    """
    found: dict[str, Algorithm] = {}
    _outside.clear()
    entries = [entry for path in _files() for entry in _load(path)]
    for algorithm, source in sorted(
        entries, key=lambda entry: isinstance(entry[0], Missing) and bool(entry[0].file)
    ):
        while isinstance(algorithm, Missing) and algorithm.name in found:  # the name of a file is nobody's
            algorithm = replace(algorithm, name=f"{algorithm.name}_")
        _validate(algorithm, source)
        if algorithm.name in found:
            raise ValueError(f"two algorithms are named {algorithm.name!r}: rename the one in {source}")
        found[algorithm.name] = algorithm
        if not isinstance(algorithm, Missing) and not Path(source).is_relative_to(ROOT):
            _outside[algorithm.name] = os.path.abspath(source)  # its class may stand in another module
    return found


def _validate(algorithm: Any, source: str) -> None:
    """Raise ValueError for what is no algorithm, with the file that it stands in."""
    if not isinstance(algorithm, Algorithm):
        raise ValueError(
            f"ALGORITHMS in {source} holds {algorithm!r}, not an Algorithm: end it with [YourAlgorithm()]"
        )
    if not (isinstance(algorithm.name, str) and algorithm.name.isidentifier()):
        raise ValueError(f"algorithm name {algorithm.name!r} in {source} must be a Python identifier")
    for field, known in ALLOWED.items():
        if getattr(algorithm, field) not in known:
            raise ValueError(
                f"{field} {getattr(algorithm, field)!r} of {algorithm.name} in {source} is not one of "
                f"{', '.join(known)}"
            )
    try:
        hash(algorithm)
    except TypeError as error:
        raise ValueError(
            f"{algorithm.name} in {source} must be a frozen dataclass with hashable fields: {error}"
        ) from None


def refusal(algorithm: Algorithm, spec: ConvSpec | None = None) -> str | None:
    """Why it is unavailable, or does not support ``spec``; an algorithm that cannot
    even say that is out of the question.
    """
    try:
        return said(algorithm.unavailable) if spec is None else unsupported(algorithm, spec)
    except (Exception, SystemExit) as error:
        return f"breaks the contract: {type(error).__name__}: {' '.join(str(error).split())}"


def get(name: str) -> Algorithm:
    """The algorithm of that name; ``winograd_f4:block_bytes=524288`` is one with other tunables than its own.

    Raises
    ------
    ValueError
        With the names that exist, of algorithms or of tunables.
    """
    found = registry()
    if isinstance(name, str) and ":" in name:
        base, _, tunables = name.partition(":")
        return _variant(get(base), tunables)
    if not isinstance(name, str) or name not in found:
        text = name if isinstance(name, str) else shown(name)  # str() of a number refuses thousands of digits
        raise ValueError(f"no algorithm is named {shown(name)}: {_advice(text, found)}")
    return found[name]


def _advice(name: str, found: dict[str, Algorithm]) -> str:
    """What an unknown name may stand for: an algorithm of a file that was not
    loaded, or one with a similar name.
    """
    lost = [a for a in found.values() if isinstance(a, Missing) and a.file]
    if named := [
        a
        for a in lost
        if re.search(rf"[\"']{re.escape(name)}[\"']", Path(a.file).read_text(errors="replace"))
    ]:
        return f"it stands in a file that could not be loaded: {named[0].reason}"
    advice = meant(name, found, "use a name that convbench list prints")
    return advice + "".join(f"; a file could not be loaded: {a.reason}" for a in lost)


@cache
def _variant(base: Algorithm, text: str) -> Algorithm:
    own = base.tunables()
    values: dict[str, Any] = {}
    for part in text.split(":"):
        key, _, value = part.partition("=")
        if rounded := [one for one in base.rounded() if part == f"operands={one.operands}"]:
            base = rounded[0]
            continue
        if key not in own:
            advice = meant(key, own, f"it has {', '.join(own) or 'none'}")
            raise ValueError(f"{base.name} has no tunable {key!r}: {advice}")
        try:
            values[key] = value if isinstance(own[key], str) else json.loads(value)
        except ValueError:
            raise ValueError(
                f"tunable {key} of {base.name} is {value!r}: write it like {own[key]!r}"
            ) from None
        if type(values[key]) is not type(own[key]):
            raise ValueError(f"tunable {key} of {base.name} is {value!r}: write it like {own[key]!r}")
        if not isinstance(own[key], str) and values[key] < 0:
            raise ValueError(f"tunable {key} of {base.name} is {value!r}: use 0 or more")
    return replace(base, **values)


def variant_name(algorithm: Algorithm, base: Algorithm | None = None) -> str:
    """What ``get`` knows it by: its name, and each tunable that differs from
    those of ``base``, the registered one.
    """
    base = base or registry().get(algorithm.name, algorithm)
    if algorithm is base:
        return algorithm.name
    own = base.tunables()
    differing = {key: value for key, value in algorithm.tunables().items() if value != own.get(key)}
    text = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differing.items()
    )
    return ":".join((algorithm.name, *text))


def algorithms(spec: ConvSpec | str | None = None) -> list[Algorithm]:
    """Every algorithm that can be listed, or those available and solving ``spec`` in some way."""
    if spec is None:
        return list(registry().values())
    asked = ConvSpec.of(spec)
    return [a for a in registry().values() if refusal(a) is None and refusal(a, asked) is None]


def usable(chosen: Sequence[Algorithm]) -> Sequence[Algorithm]:
    """``chosen``, where no file of theirs is broken.

    Raises
    ------
    ValueError
        With the file and what is wrong with it.
    """
    for algorithm in chosen:
        if isinstance(algorithm, Missing) and algorithm.broken:
            raise ValueError(algorithm.reason)
    return chosen


def is_external(algorithm: Algorithm) -> bool:
    """Whether it comes from a folder of CONVBENCH_PATH rather than from this distribution."""
    return bool(source_of(algorithm))


def source_of(algorithm: Algorithm) -> str:
    """The file that lists an algorithm from outside; empty for those of this distribution."""
    registry()
    return _outside.get(algorithm.name, "")


EXTERNAL_PREFIX = "convbench_path_"


def _files() -> list[Path]:
    places = [ROOT / package for package in PACKAGES]
    for text in filter(None, os.environ.get("CONVBENCH_PATH", "").split(os.pathsep)):
        place = Path(text).expanduser()
        if not place.is_dir() and not (place.suffix == ".py" and place.is_file()):
            raise ValueError(
                f"CONVBENCH_PATH names {text!r}, which is no folder and no Python file: correct or unset it"
            )
        places.append(place)
    files = [
        path for place in places for path in ([place] if place.is_file() else sorted(place.glob("*.py")))
    ]
    return [*(path for path in files if not path.name.startswith("_")), ROOT / "auto.py"]


def _load(path: Path) -> list[tuple[Algorithm, str]]:
    inside = path.is_relative_to(ROOT)
    try:
        if inside:
            module = importlib.import_module(
                ".".join(("algos", *path.relative_to(ROOT).with_suffix("").parts))
            )
        else:
            module = _import_file(path)
    except ModuleNotFoundError as error:
        if _is_ours(error):
            raise
        return [(_missing(path, str(error.name), inside), str(path))]
    except _BrokenFileError as error:
        return [(Missing(_name(path), "direct", reason=str(error), file=str(path), broken=True), str(path))]
    listed = getattr(module, "ALGORITHMS", None)
    if listed is None:
        raise ValueError(f"{path} defines no ALGORITHMS: end it with ALGORITHMS = [YourAlgorithm()]")
    if not isinstance(listed, list | tuple):
        raise ValueError(
            f"ALGORITHMS in {path} is {listed!r}, not a list: end it with ALGORITHMS = [YourAlgorithm()]"
        )
    return [(algorithm, str(path)) for algorithm in listed]


def _missing(path: Path, module: str, inside: bool) -> Missing:
    """The entry of a file that imports what is not there, named like the file: it could not say its own
    names.
    """
    package = module.partition(".")[0]
    # A part that another version has, or the whole
    absent = module if importlib.util.find_spec(package) else package
    family = "peer" if path.parent.name == "peers" else "direct"
    if inside:
        return Missing(path.stem, family, reason=f"{absent} is not installed")
    reason = f"{absent} is not installed, which {path} imports"
    return Missing(_name(path), family, reason=reason, file=str(path))


def _name(path: Path) -> str:
    """That of a file, as an algorithm may be called."""
    return re.sub(r"\W|^(?=\d)", "_", path.stem)


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in ("", "algos", "bench", "reports")


def _import_file(path: Path) -> ModuleType:
    """A file outside the package, under a name of its own so that equal stems in two folders stay apart."""
    name = EXTERNAL_PREFIX + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12] + "_" + path.stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with redirect_stdout(sys.stderr):  # stdout is for data
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt) or (
            isinstance(error, ModuleNotFoundError) and not _is_ours(error)
        ):
            raise
        raise _BrokenFileError(f"{path} cannot be imported: {_told(error, path)}") from error
    return module


class _BrokenFileError(Exception):
    """A file from outside raised, other than for want of a package."""


def _told(error: BaseException, path: Path) -> str:
    """The error in one line, with that of the file."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return text if isinstance(error, SyntaxError) or not lines else f"{text} (line {lines[-1]})"
