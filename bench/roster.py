"""What one side of a duel has to say of its cases, in a process that runs that side's ``algos``."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from algos.registry import get, is_external, registry, source_of, variant_name
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of


def main() -> None:
    """A request in JSON on stdin; on stdout every case that this code knows."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        json.dump(cases(request), answers, allow_nan=False)


def cases(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of each case's record, with the ``variant`` that ``get`` knows, and its ``source``."""
    settings = Settings(slow_s=request["slow_s"])
    specs = [spec for text in request["specs"] if (spec := _known(text)) is not None]
    chosen = _chosen(request["names"], request["plugins"])
    # Sides are told apart by their names, and older code may say its build elsewhere.
    found = cases_of(specs, chosen, request["threads"], settings, stamp=lambda _: ("", ""))
    return [
        {**asdict(case.record), "variant": variant_name(case.algorithm), "source": source_of(case.algorithm)}
        for case in found
    ]


def _known(text: str) -> ConvSpec | None:
    """Older code may not know what a newer spec says: then it has no such case."""
    try:
        return ConvSpec.parse(text)
    except ValueError:
        return None


def _chosen(names: list[str] | None, plugins: bool) -> list[Any]:
    """The named algorithms that exist here; without names all of ours, or of the plug-ins."""
    every = list(registry().values())
    kinds = {"own": [a for a in every if a.family not in ("peer", "auto")],
             "peers": [a for a in every if a.family == "peer"]}  # fmt: skip
    if names is None:
        broken = [a for a in every if getattr(a, "broken", False)]  # which older code does not list
        return [a for a in every if is_external(a)] + broken if plugins else kinds["own"]
    found: list[Any] = []
    for name in names:
        with suppress(ValueError):  # an unknown one: the other side may have it
            found += kinds[name] if name in kinds else [get(name)]
    return list(dict.fromkeys(found))
