"""Records of other tools: pytest-benchmark's JSON becomes tagged records, shown
in reports and used for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from algos.spec import ConvSpec, SpecError
from bench.record import Launch, Record
from bench.text import printable

ORIGIN = "pytest-benchmark"


def from_pytest_benchmark(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """The machine, the records, and how many benchmarks were left out because their group names no spec.

    A benchmark is taken when its group, or the part of its parameters before the last ``-``, is a spec's
    text; the algorithm is ``extra_info["algorithm"]``, or what follows.

    Raises
    ------
    ValueError
        For a file that is no pytest-benchmark JSON, or holds no such benchmark.
    """
    try:
        content = json.loads(path.read_bytes())  # UTF-8, UTF-16 or UTF-32, with a byte-order mark or not
        benchmarks, info = content["benchmarks"], content["machine_info"]
        machine = _machine(info)
        records = [
            record for entry in benchmarks if (record := _record(entry, machine["id"], content)) is not None
        ]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{path} is no pytest-benchmark JSON file ({why})") from None
    if not records:
        raise ValueError(f"{path} holds no benchmark whose group is a spec like 1x1x64x64,1x1x3x3,p1")
    return machine, records, len(benchmarks) - len(records)


def _machine(info: dict[str, Any]) -> dict[str, Any]:
    cpu = info.get("cpu") or {}
    cores = cpu.get("count")
    described = {"cpu": str(cpu.get("brand_raw", "unknown")), "cores": cores if type(cores) is int else None,
                 "arch": str(info.get("machine", "")),
                 "system": str(info.get("system", "")), "python": str(info.get("python_version", ""))}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    return {"id": f"imported-{digest}", **described}


def _record(entry: dict[str, Any], machine: str, content: dict[str, Any]) -> Record | None:
    parameters, _, last = str(entry.get("param") or "").rpartition("-")
    extra = entry.get("extra_info") or {}
    for text in (entry.get("group"), parameters):
        try:
            spec = ConvSpec.parse(text or "")
        except SpecError:
            continue
        stats = entry["stats"]
        samples = stats.get("data") or [stats["median"]]
        if not isinstance(samples, list):
            raise ValueError(f"benchmark {entry.get('name')}: its data are no list of times")
        started = printable(str(entry.get("datetime") or content.get("datetime") or ""))
        launch = Launch(0, started, tuple(samples), stats.get("iterations") or 1, 0.0, 0.0, 0.0)
        name, threads = (
            printable(str(extra.get("algorithm") or last or entry["name"])),
            extra.get("threads") or 0,
        )
        return Record(str(spec), name, threads, machine, "", "ok", origin=ORIGIN, launches=(launch,))
    return None
