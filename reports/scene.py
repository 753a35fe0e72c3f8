"""What the pictures of one (machine, threads, cold) share: rows, colours, captions, and how they are paged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from algos.registry import registry
from bench.text import seconds
from reports.findings import ranking
from reports.findings.advice import MOST_LINES, standouts
from reports.findings.frame import GROUP
from reports.findings.networks import Networks, layer_names, without_batch
from reports.style import Style, clean, faded, machine_text, styles

PAGES = 5  # the most figures of one kind
MANY = 20_000  # rows: beyond, pictures can show a small part only, and there is one of a kind
WARM = "steady state, prepared weights, fresh output array, caches warm, transfers excluded"
COLD = "single calls after the caches were flushed, prepared weights, fresh output array, transfers excluded"
Drawn = tuple[str, str, str, str, Figure]  # name, title, reading, what is seen, figure


@dataclass(frozen=True)
class Picture:
    """One finished figure.

    Attributes
    ----------
    name : str
        File name without extension: letters, digits, dots and dashes.
    title, reading, seen : str
        What it shows, how to read it, and what there is to see: its text for who cannot see it.
    section : str
        Machine and threads.
    png, svg : bytes
    """

    name: str
    title: str
    reading: str
    seen: str
    section: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Scene:
    """What the figures of one (machine, threads, cold) share.

    Attributes
    ----------
    section, suffix, caption : str
        Heading, end of file names, small print.
    machine : str
    threads : int
    cold : bool
    about : dict
        The machine's description.
    styles : dict
        How every algorithm of the report looks.
    rows, winners, speed : DataFrame
        ``ranked`` with auto, ``winners`` and ``speed_ups`` of this group.
    baseline : str
        Words for what the speed-ups are over.
    layers : dict
        Spec without its batch -> name of the layer.
    direction : str
        In words, where the scene is of one, and not of forward problems alone.
    """

    section: str
    suffix: str
    caption: str
    machine: str
    threads: int
    cold: bool
    about: dict[str, Any]
    styles: dict[str, Style]
    rows: pd.DataFrame
    winners: pd.DataFrame
    speed: pd.DataFrame
    baseline: str
    layers: dict[str, str] = field(default_factory=dict)
    direction: str = ""

    def by_direction(self) -> list[Scene]:
        """One for each direction, which its heading, file names and small print name; the scene itself where
        all is forward.
        """
        found = dict.fromkeys(self.winners["direction"])
        return [self] if set(found) <= {"forward"} else [self._only(direction) for direction in found]

    def _only(self, direction: str) -> Scene:
        words = direction.replace("_", " ") or "unknown direction"
        rows, best, speed = (
            table[table["direction"] == direction] for table in (self.rows, self.winners, self.speed)
        )
        return replace(
            self, section=f"{self.section}, {words}", suffix=f"{self.suffix}-{words.replace(' ', '-')}",
            caption=f"{words}; {self.caption}", rows=rows, winners=best, speed=speed, direction=words,
        )  # fmt: skip

    @property
    def own_rows(self) -> pd.DataFrame:
        """Without auto, which is a choice and no algorithm."""
        return self.rows[self.rows["competes"].astype(bool)]

    def names(self, rows: pd.DataFrame) -> list[str]:
        """Algorithms present in ``rows``, in the order of the styles."""
        present = set(rows["algorithm"])
        return [name for name in self.styles if name in present]

    def looks(self, rows: pd.DataFrame, lead: Sequence[str] = ()) -> tuple[list[str], dict[str, Style]]:
        """Who stands out among ``rows`` (``lead`` first), in the order of the
        styles, and how all look: the others grey.
        """
        chosen = [*lead, *(name for name in standouts(rows, self.winners) if name not in lead)][: MOST_LINES]
        names = [name for name in self.names(rows) if name in chosen]
        return names, {name: style if name in chosen else faded(style) for name, style in self.styles.items()}

    def case(self, spec: str) -> str:
        """The layer's name with its spec, or the spec."""
        name = self.layers.get(without_batch(spec))
        return f"{clean(name)}: {spec}" if name else spec

    def place(self, row: Any) -> str:
        """Where something is seen, in few words: the layer's name, or sizes."""
        return self.layers.get(without_batch(row.spec)) or f"{row.size}, kernel {row.kernel}"


def scenes(
    frame: pd.DataFrame, machines: dict[str, dict], baseline: Sequence[str], networks: Networks = ()
) -> Iterator[Scene]:
    """One for every (machine, threads, cold) in which something has a time.

    Raises
    ------
    ValueError
        When a baseline was not measured.
    """
    rows = ranking.ranked(frame, with_auto=True)
    speed, label = ranking.speed_ups(frame, baseline)
    best = ranking.winners(frame)
    look = styles(_families(rows))
    layers = layer_names(networks)
    several = {name: rows[name].nunique() > 1 for name in GROUP}
    for key in dict.fromkeys(best[GROUP].itertuples(index=False, name=None)):
        machine, threads, cold = key
        mine = [_of(table, key) for table in (rows, best, speed)]
        about = machine_text(machine, machines)
        plural = f"{threads} thread{'s' if threads != 1 else ''}"
        launches = sorted(set(mine[0]["launch_count"]))
        counted = f"{launches[0]} to {launches[-1]}" if len(launches) > 1 else str(launches[0])
        suffix = (f"-{machine}" if several["machine"] else "") + f"-t{threads}" + ("-cold" if cold else "")
        yield Scene(
            section=f"{about}{f' ({clean(machine)})' if several['machine'] else ''}, "
                    f"{plural}{', cold caches' if cold else ''}",
            suffix=suffix,
            caption=f"{about}; {plural}; {counted} launch{'es' if launches[-1] > 1 else ''}; clock: "
                    f"{COLD if cold else WARM}",
            machine=machine, threads=int(threads), cold=bool(cold), about=machines.get(machine, {}),
            styles=look, rows=mine[0], winners=mine[1], speed=mine[2], baseline=label, layers=layers,
        )  # fmt: skip


def _of(table: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    """The rows of one group; the table itself where it has no others, which may be large."""
    here = (table[GROUP] == list(key)).all(axis=1)
    return table if here.all() else table[here]


def _families(rows: pd.DataFrame) -> dict[str, str]:
    """Of every algorithm; what only ``auto`` ran has the family that the registry knows."""
    found = dict(zip(rows["algorithm"], rows["family"], strict=True))
    unknown = [name for name, family in found.items() if family == "auto" != name]
    return found | {name: registry()[name].family for name in unknown if name in registry()}


def pages(
    scene: Scene, values: list[str], size: int, what: str, notes: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """``values`` in portions with the end of their file names; what is left out is said in ``notes``."""
    found = [values[i : i + size] for i in range(0, len(values), size)]
    most = PAGES if len(scene.rows) <= MANY else 1
    if len(found) > most:
        notes.append(f"Pictures show {size * most} of {len(values)} {what}; the table below has all of them.")
    for index, page in enumerate(found[:most]):
        yield (f"-page{index + 1}" if len(found) > 1 else ""), page


def tick(value_s: float) -> str:
    """1 ms, not 1.00 ms, and 1.5 s."""
    return re.sub(r"(\.\d*?)0+ ", r"\1 ", seconds(value_s)).replace(". ", " ")
