"""How good the picker is: time(picked) / time(best) over what a store holds, each spec left out in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from algos import machine
from algos.auto import choose
from algos.estimate import Knowledge, tunables_text
from algos.registry import registry
from algos.spec import ConvSpec
from bench.lessons import known
from bench.record import Record

SOURCES = ("measured", "nearest", "model")
MOST = 200  # specs that are judged, evenly spread over those that could be; the others still teach


def regret(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per source: specs, geometric mean and worst of time(picked) / time(best), and the spec of the worst.

    measured picks by the first launch and is judged by the others; nearest picks without the spec's own records; model
    picks without any record. Only this machine's own algorithms of the present build count, on specs where two were
    measured, and of many such specs ``MOST``.
    """
    identity, found = machine.fingerprint()["id"], registry()
    present = {
        (name, machine.build(algorithm), tunables_text(algorithm))
        for name, algorithm in found.items()
        if algorithm.family not in ("peer", "auto") and algorithm.unavailable() is None
    }
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if (
            record.launches and record.machine == identity and not record.cold and record.origin == "convbench"
            and (record.algorithm, record.build, record.tunables) in present
        ):  # fmt: skip
            groups.setdefault((record.spec, record.threads), []).append(record)
    groups = {key: group for key, group in groups.items() if len(group) > 1}
    every = Knowledge((known(record) for group in groups.values() for record in group), found, machine.build)
    groups = dict(list(groups.items())[:: -(-len(groups) // MOST) or 1])
    rows = []
    for source in SOURCES:
        ratios: dict[tuple[str, int], float] = {}
        for (text, threads), group in groups.items():
            judged, knowledge = group, every.left_out(text)
            if source == "measured":
                if any(len(record.launches) < 2 for record in group):
                    continue
                first = (known(replace(record, launches=record.launches[:1])) for record in group)
                knowledge = Knowledge(first, found, machine.build)
                judged = [replace(record, launches=record.launches[1:]) for record in group]
            elif source == "model":
                knowledge = Knowledge((), found, machine.build)
            candidates = [found[record.algorithm] for record in group]
            choice = choose(ConvSpec.parse(text), candidates, knowledge, threads=threads)
            times = {record.algorithm: record.median_s or math.inf for record in judged}
            if source == "nearest" and choice.source != "nearest":
                continue
            ratios[text, threads] = times[choice.algorithm] / min(times.values())
        worst = max(ratios, key=lambda key: ratios[key], default=("", 0))
        rows.append({
            "source": source,
            "specs": len(ratios),
            "geometric_mean": math.exp(sum(map(math.log, ratios.values())) / len(ratios)) if ratios else None,
            "worst": ratios.get(worst),
            "worst_spec": worst[0],
        })
    return rows
