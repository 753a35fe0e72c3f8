"""Wisdom that travels: what machines have learnt, as JSON that a person can read and a container can carry.

    {"format": "convbench wisdom", "version": 1,
     "machines": {ID: {"cpu": ..., "cores": ..., ...}},
     "calibrations": {ID: {...}},
     "entries": [{"machine": ID, "build": ..., "spec": ..., "algorithm": ..., "run_s": ..., ...}, ...]}

An entry is one of ``algos.wisdom.Known``; what is at its default is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from algos import fitted, wisdom
from algos.host import fingerprint
from algos.spec import ConvSpec
from algos.wisdom import Known
from bench.files import write

FORMAT, VERSION = "convbench wisdom", 1
FACTS = ("cpu", "cores", "simd", "caches_bytes", "system", "arch", "gpu")
_TYPES = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Known)}
_DEFAULTS = {field.name: field.default for field in fields(Known)}


def exported(machine: str = "") -> dict[str, Any]:
    """What is known of all machines, or of one."""
    asked = [one for one in sorted(wisdom.machines()) if machine in ("", one)]
    entries = [entry for one in asked for entry in wisdom.recall(one)]
    facts = {**wisdom.facts(), fingerprint()["id"]: own_facts()}
    known = {entry.machine for entry in entries} | set(fitted.calibrations())
    return {
        "format": FORMAT, "version": VERSION,
        "machines": {one: facts.get(one, {}) for one in sorted(known) if machine in ("", one)},
        "calibrations": {one: fit.row() for one, fit in fitted.calibrations().items()
                         if machine in ("", one)},
        "entries": [{name: value for name, value in asdict(entry).items() if value != _DEFAULTS[name]}
                    for entry in entries],
    }  # fmt: skip


def own_facts() -> dict[str, Any]:
    return {name: value for name, value in fingerprint().items() if name in FACTS}


def text_of(found: dict[str, Any]) -> str:
    """JSON with an entry a line."""
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in found["entries"])
    head = json.dumps({name: value for name, value in found.items() if name != "entries"}, indent=1)
    return f'{head[:-2]},\n "entries": [\n{lines}\n ]\n}}\n'


def save(file: Path, found: dict[str, Any]) -> None:
    write(file, text_of(found).encode())


def load(file: Path) -> dict[str, Any]:
    """The content of an exported file, checked.

    Raises
    ------
    ValueError
        For another file, or one of a later version.
    """
    try:
        found = json.loads(file.read_bytes())
        if found["format"] != FORMAT:
            raise ValueError("another format")
        version = found["version"]
        entries = [_entry(entry) for entry in found["entries"]]
        machines = {str(name): dict(about) for name, about in found["machines"].items()}
        calibrations = {str(name): fitted.Fit.read(row).row() for name, row in found["calibrations"].items()}
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{file} is no file that convbench wisdom export wrote ({why})") from None
    if version != VERSION:
        raise ValueError(f"{file} is of version {version}, this convbench reads {VERSION}: use a later one")
    return {"machines": machines, "calibrations": calibrations, "entries": entries}


def _entry(row: dict[str, Any]) -> Known:
    if unknown := row.keys() - _TYPES.keys():
        raise ValueError(f"an entry has {', '.join(sorted(unknown))}")
    entry = Known(**{name: _TYPES[name](value) for name, value in row.items()})
    times = entry.run_s, entry.prepare_s, entry.low, entry.high
    if not all(math.isfinite(time) and time >= 0 for time in times) or entry.threads < 1:
        raise ValueError(f"an entry of {entry.spec} has impossible numbers")
    ConvSpec.parse(entry.spec)
    return entry


def taken_in(found: dict[str, Any]) -> None:
    """Remember it; of another machine it is a prior, and nothing more."""
    own = fingerprint()["id"]
    wisdom.describe({name: about for name, about in found["machines"].items() if name != own})
    if rows := {name: row for name, row in found["calibrations"].items()
                if name != own or not fitted.is_calibrated()}:  # fmt: skip
        fitted.keep(rows)
    wisdom.remember(found["entries"])
    wisdom.recall_anew()
