"""The two sides of a duel: what OLD and NEW on the command line stand for, and the code that each side's
processes run.

A side is a git revision, a folder with a checkout, a folder or file of algorithms as in CONVBENCH_PATH, or
the name of an algorithm. Only ``algos/`` comes from a side: what measures and judges is this ``bench/``,
the same for both. Code of revisions and checkouts is copied to the cache folder, by commit or by content,
so that an edit in between changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algos.grammar import shown
from algos.host import cache_base
from algos.registry import get
from bench.processes import code_environment
from bench.text import printable

KEPT_S = 30 * 86_400  # code that no duel has used for so long is removed
ROSTER_S = 600.0
PACKAGE = "algos"


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes
    ----------
    text : str
        As it was given.
    code : str
        The folder whose ``algos`` it runs; empty for the one that runs here.
    plugins : str or None
        Its CONVBENCH_PATH; None for the user's own.
    algorithm : str
        The only one that competes; empty for all that both sides have.
    """

    text: str
    code: str = ""
    plugins: str | None = None
    algorithm: str = ""


class SideError(ValueError):
    """A side's code cannot be found, or not be driven by this ``bench``."""


def resolve(old: str, new: str) -> tuple[Side, Side]:
    """What OLD and NEW stand for: a path that exists, else the name of an algorithm, else a git revision.

    Raises
    ------
    SideError
        With what was looked for; also where an algorithm is to meet something else.
    """
    sides = _side(old), _side(new)
    if bool(sides[0].algorithm) != bool(sides[1].algorithm):
        name, other = (old, new) if sides[0].algorithm else (new, old)
        raise SideError(
            f"{shown(name)} is an algorithm and {shown(other)} is none: give two algorithms, or two versions "
            f"of code and --algorithms {name}"
        )
    return sides


def _side(text: str) -> Side:
    place = Path(text).expanduser()
    if place.exists():
        return _folder(text, place.resolve())
    try:
        get(text)
    except ValueError as error:
        unknown = error
    else:
        return Side(text, algorithm=text)
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    if commit is None:
        if ":" in text:  # perhaps an algorithm with other tunables
            raise SideError(str(unknown))
        raise SideError(
            f"{shown(text)} is no folder or file, no algorithm, and no git revision in the current folder"
        )
    return _revision(text, commit.decode().strip())


def _folder(text: str, place: Path) -> Side:
    if (place / PACKAGE / "contract.py").is_file():
        return Side(text, _checkout(place / PACKAGE))
    if place.suffix == ".py" or (place.is_dir() and any(place.glob("*.py"))):
        return Side(text, plugins=str(place))
    raise SideError(f"{text} holds neither {PACKAGE}/ nor Python files with algorithms")


def _checkout(package: Path) -> str:
    files = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(package)}|{path.stat().st_size}|".encode() + path.read_bytes())
    ignored = shutil.ignore_patterns("__pycache__")
    return _kept(
        digest.hexdigest()[:16], lambda folder: shutil.copytree(package, folder / PACKAGE, ignore=ignored)
    )


def _revision(text: str, commit: str) -> Side:
    """The code at a commit of the current folder's repository: a version of ``algos``, or of plug-ins."""
    top = Path((_git("rev-parse", "--show-toplevel") or b".").decode().strip()).resolve()
    if _holds(top, commit, f"{PACKAGE}/contract.py"):
        return Side(text, _kept(commit, lambda folder: _extract(top, commit, [PACKAGE], folder)))
    named = [
        Path(p).expanduser().resolve() for p in os.environ.get("CONVBENCH_PATH", "").split(os.pathsep) if p
    ]
    inside = [p.relative_to(top) for p in named if p.is_relative_to(top)] or [Path.cwd().relative_to(top)]
    places = [str(p) for p in inside if _holds(top, commit, "" if p == Path() else str(p))]
    if not places:
        raise SideError(f"{text} holds neither {PACKAGE}/ nor what CONVBENCH_PATH names")
    key = f"{commit}-{hashlib.sha256(os.pathsep.join(places).encode()).hexdigest()[:8]}"
    folder = _kept(key, lambda folder: _extract(top, commit, places, folder))
    return Side(text, plugins=os.pathsep.join(str(Path(folder) / p) for p in places))


def _holds(top: Path, commit: str, path: str) -> bool:
    return _git("-C", str(top), "cat-file", "-e", f"{commit}:{path}") is not None


def _git(*arguments: str) -> bytes | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _extract(top: Path, commit: str, places: Sequence[str], folder: Path) -> None:
    archive = _git("-C", str(top), "archive", "--format=tar", commit, "--", *places)
    if archive is None:
        raise SideError(f"git archive {commit} failed in {top}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def _kept(key: str, fill: Callable[[Path], Any]) -> str:
    """The folder of the cache under ``key``, filled once; complete or not there at all."""
    base = cache_base() / "code"
    folder = base / key
    base.mkdir(parents=True, exist_ok=True)
    for other in base.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(dir=base, prefix=".new-"))
        try:
            fill(made)
            with suppress(OSError):  # somebody else has made it in the meantime
                os.rename(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    os.utime(folder)
    return str(folder)


# ---- who competes ---------------------------------------------------------------------------


def roster(
    side: Side, specs: Iterable[object], names: Sequence[str] | None, threads: Sequence[int], slow_s: float
) -> list[dict[str, Any]]:
    """What ``side``'s code says of every case: the fields of a record, with ``variant`` and ``source``.

    Raises
    ------
    SideError
        Where its code cannot be driven by this ``bench``.
    """
    request = {
        "specs": [str(spec) for spec in specs],
        "names": [side.algorithm] if side.algorithm else names,
        "plugins": side.plugins is not None,
        "threads": list(threads),
        "slow_s": slow_s,
    }
    environment = {**os.environ, **code_environment(side.code)}
    if side.plugins is not None:
        environment["CONVBENCH_PATH"] = side.plugins
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from bench.roster import main; main()"], env=environment,
        input=json.dumps(request).encode(), capture_output=True, timeout=ROSTER_S, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        why = printable(lines[-1].strip() if lines else f"it ended with status {done.returncode}")[:300]
        raise SideError(
            f"{side.text} cannot be driven by the bench/ of this convbench ({why}): measure each version "
            "with its own convbench run, and compare the stores"
        )
    return json.loads(done.stdout)
