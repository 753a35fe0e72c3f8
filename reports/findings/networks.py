"""Whole networks: the time of all layers, each as often as it occurs, with one algorithm or with the best of
each layer.

Layers at another batch than their suite's count too, as long as all are at the same one. An algorithm that
has no time for a layer is given the best of the others there, and the bar says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.findings.frame import tuples

# Name, (layer, spec at any batch, how often it occurs)
Networks = Sequence[tuple[str, Sequence[tuple[str, str, int]]]]
LEAST_SHARE = 0.75  # of the layers, to call it the network
LEAST_OWN = 0.5  # of the measured layers, for a bar of one's own
BEST, BEST_OWN, AUTO = "best per layer", "best of ours per layer", "auto"
MIXED = (BEST, BEST_OWN, AUTO)


@dataclass(frozen=True)
class Bar:
    """A network computed in one way.

    Attributes
    ----------
    name : str
        The algorithm, or ``BEST``, ``BEST_OWN`` or ``AUTO``, whose parts name what it chose.
    parts : tuple of (layer, algorithm, seconds)
        Of every measured layer all its occurrences.
    own : int
        Layers, of all occurrences, that are not borrowed from the best of the others.
    total : int
        Layers measured, counting occurrences.
    """

    name: str
    parts: tuple[tuple[str, str, float], ...]
    own: int
    total: int

    @property
    def time_s(self) -> float:
        return sum(part[2] for part in self.parts)


@dataclass(frozen=True)
class Network:
    """A network at one batch and what is known of it: its bars, the best first, and how many layers have no
    time.
    """

    name: str
    batch: int
    bars: tuple[Bar, ...]
    missing: int
    layers: int


def networks_of(rows: pd.DataFrame, networks: Networks) -> list[Network]:
    """The networks of which enough layers were measured; ``rows`` are ``ranked`` with auto."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    autos: dict[tuple[str, str], tuple[str, float]] = {}
    asked = {spec.partition("x")[2] for _, layers in networks for _, spec, _ in layers}
    for row in tuples(rows):
        batch, _, rest = row.spec.partition("x")
        if rest not in asked:
            continue
        if row.competes:
            times.setdefault((batch, rest), {})[row.algorithm] = row.median_s
        else:
            autos[batch, rest] = row.chosen.partition(":")[0], row.median_s
    peers = set(rows.loc[rows["family"] == "peer", "algorithm"])
    found = []
    for name, layers in networks:
        wanted = [(layer, spec.partition("x")[2], count) for layer, spec, count in layers]
        total = sum(count for _, _, count in wanted)
        for batch in sorted({batch for batch, _ in times}, key=int):
            known = [
                (layer, times[batch, rest], count) for layer, rest, count in wanted if (batch, rest) in times
            ]
            measured = sum(count for _, _, count in known)
            if measured and measured >= LEAST_SHARE * total and len({rest for _, rest, _ in wanted}) > 1:
                chosen = [
                    (layer, autos.get((batch, rest)), count)
                    for layer, rest, count in wanted
                    if (batch, rest) in times
                ]
                bars = sorted(
                    (*_bars(known, peers), *_auto_bar(chosen)), key=lambda bar: bar.name not in MIXED
                )
                found.append(Network(name, int(batch), tuple(bars), total - measured, total))
    return found


def _bars(known: list[tuple[str, dict[str, float], int]], peers: set[str]) -> tuple[Bar, ...]:
    """The best per layer, of ours too where peers would win some; then every
    algorithm that does enough by itself.
    """
    total = sum(count for *_, count in known)

    def bar(name: str, allowed: set[str], fallback: set[str]) -> Bar:
        parts, own = [], 0
        for layer, times, count in known:
            inside = {n: t for n, t in times.items() if n in allowed}
            own += count if inside else 0
            inside = inside or {n: t for n, t in times.items() if n in fallback} or times
            best = min(inside, key=lambda n: inside[n])
            parts.append((layer, best, inside[best] * count))
        return Bar(name, tuple(parts), own, total)

    everybody = {name for _, times, _ in known for name in times}
    ours = everybody - peers
    singles = [bar(name, {name}, ours) for name in everybody]
    singles = sorted((b for b in singles if b.own >= LEAST_OWN * total), key=lambda b: (b.time_s, b.name))
    best = [bar(BEST, everybody, everybody)]
    if ours and any(part[1] in peers for part in best[0].parts):
        best.append(bar(BEST_OWN, ours, ours))
    return (*best, *singles)


def _auto_bar(chosen: list[tuple[str, tuple[str, float] | None, int]]) -> list[Bar]:
    """What ``auto`` ran, where it ran every layer."""
    parts = [(layer, run[0], run[1] * count) for layer, run, count in chosen if run is not None]
    total = sum(count for *_, count in chosen)
    return [Bar(AUTO, tuple(parts), total, total)] if len(parts) == len(chosen) else []


# ---- layers ------------------------------------------------------------------------------------------------


def layer_names(networks: Networks) -> dict[str, str]:
    """Spec without its batch -> the layer's name, with its network's before it where there are several
    networks.
    """
    several = len(networks) > 1
    names: dict[str, str] = {}
    for network, layers in networks:
        for layer, spec, count in layers:
            named = f"{network} {layer}" if several else layer
            names.setdefault(without_batch(spec), named + (f" x{count}" if count > 1 else ""))
    return names


def without_batch(spec: str) -> str:
    return spec.partition("x")[2]


def in_network_order(frame: pd.DataFrame, networks: Networks) -> pd.DataFrame:
    """The records with the layers of networks in their order, the others before them as they were."""
    places = {spec: at for at, spec in enumerate(layer_names(networks))}
    if not places or frame.empty:
        return frame
    order = [places.get(without_batch(spec), -1) for spec in frame["spec"]]
    if order == sorted(order):
        return frame
    return frame.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
