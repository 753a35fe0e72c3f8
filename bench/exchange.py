"""Records of other tools: pytest-benchmark's JSON becomes tagged records, shown in reports and used for nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from algos.spec import ConvSpec, SpecError
from bench.record import Launch, Record
from bench.text import printable

ORIGIN = "pytest-benchmark"


def from_pytest_benchmark(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """The machine, the records, and how many benchmarks were left out because their group names no spec.

    A benchmark is taken when its group, or the part of its parameters before the last ``-``, is a spec's text; the
    algorithm is ``extra_info["algorithm"]``, or what follows.

    Raises
    ------
    ValueError
        For a file that is no pytest-benchmark JSON, or holds no such benchmark.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        benchmarks, info = content["benchmarks"], content["machine_info"]
        machine = _machine(info)
        records = [record for entry in benchmarks if (record := _record(entry, machine["id"], content)) is not None]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no pytest-benchmark JSON file ({type(error).__name__}: {error})") from None
    if not records:
        raise ValueError(f"{path} holds no benchmark whose group is a spec like 1x1x64x64,1x1x3x3,p1")
    return machine, records, len(benchmarks) - len(records)


def _machine(info: dict[str, Any]) -> dict[str, Any]:
    cpu = info.get("cpu") or {}
    described = {"cpu": str(cpu.get("brand_raw", "unknown")), "cores": cpu.get("count"), "arch": str(info.get("machine", "")),
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
        samples = tuple(float(s) for s in stats.get("data") or [stats["median"]])
        if not samples or not all(math.isfinite(s) and s >= 0 for s in samples):
            raise ValueError(f"benchmark {entry.get('name')} has samples that are no times")
        threads = extra.get("threads")
        launch = Launch(0, printable(str(entry.get("datetime") or content.get("datetime") or "")), samples,
                        int(stats.get("iterations") or 1), 0.0, 0.0, 0.0)  # fmt: skip
        name = printable(str(extra.get("algorithm") or last or entry["name"]))
        return Record(str(spec), name, threads if isinstance(threads, int) else 0, machine, "", "ok", origin=ORIGIN,
                      launches=(launch,))  # fmt: skip
    return None
