"""Machines of one kind, as their descriptions tell them, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def spread_lines(machines: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each kind: how many machines, and how far their peaks are apart."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for about in machines:
        kinds.setdefault(about["kind"], []).append(about)
    found = []
    for kind, alike in kinds.items():
        about = alike[0]
        line = f"{len(alike)} x {about['cpu']}, {about['cores']} cores ({kind})"
        words = [f"{worst - 1:.1%} {what}" for what, worst in _apart(alike).items()]
        found.append(f"{line}: they differ by {', '.join(words)}" if words else line)
    return found


def _apart(alike: list[Mapping[str, Any]]) -> dict[str, float]:
    """The fastest over the slowest machine, where their figures differ most, in arithmetic and in copying."""
    found = {}
    for what, name in (("in arithmetic", "flops_per_s"), ("in copying", "bytes_per_s")):
        figures = [dict(_leaves(about.get("peaks", {}).get(name, {}))) for about in alike]
        common = set(figures[0]).intersection(*figures[1:])
        if len(alike) > 1 and common:
            columns = [[figure[key] for figure in figures] for key in common]
            found[what] = max(max(c) / min(c) for c in columns)
    return found


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], float]]:
    """The numbers of nested mappings above zero."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(tree, (int, float)) and tree > 0:
        yield path, float(tree)
