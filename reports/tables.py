"""The frame's answers as tables: aligned text for a terminal, Markdown, rows for the page, dicts for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import pandas as pd

from bench.text import seconds, size, three_digits, via
from reports.cells import Cell, Made, Table
from reports.findings.costs import break_even
from reports.findings.excluded import excluded
from reports.findings.frame import GROUP, PROBLEM, direction_of, tuples
from reports.findings.networks import without_batch
from reports.findings.ranking import auto_results, models, ranked, winners
from reports.style import clean, ratio_text
from reports.words import SENSIBLE, stretches_text

LINE = 118  # characters of a line on a terminal
NOTHING = "nothing measured yet: run `convbench run quick` first"
NO_REGRET = "Not computed for this report: it needs measured records of this machine, see `convbench report`."


def _table(rows: list[dict[str, Any]], figures: Sequence[str] = (), empty: str = "None.") -> Table:
    columns = tuple(rows[0]) if rows else ()
    return Table(columns, tuple(tuple(Cell.of(v) for v in row.values()) for row in rows), frozenset(figures),
                 empty)


def _time(value: float) -> Cell:
    return Cell(seconds(value), value if math.isfinite(value) else math.inf)


def _ratio(ratio: float) -> Cell:
    return Cell(ratio_text(ratio), ratio if math.isfinite(ratio) else math.inf)


def _group_columns(frame: pd.DataFrame) -> list[str]:
    """Those of machine, threads and cold that differ within the frame; the others are said once."""
    return [name for name in GROUP if frame[name].nunique() > 1]


def _group_cells(row: Any, names: list[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name in names:
        value = getattr(row, name)
        cells["caches" if name == "cold" else name] = (
            ("cold" if value else "warm") if name == "cold" else value
        )
    return cells


# ---- winners -----------------------------------------------------------------------------------------------


Layers = Mapping[str, str]  # spec without its batch -> name of the layer


def _spec_cells(frame: pd.DataFrame, layers: Layers, wide: bool = True) -> Callable[[str], dict[str, Any]]:
    """What makes the cells of a spec: the spec, behind the name of its layer where one of the specs has one,
    and, if ``wide``, before its direction where one is not forward.
    """
    directed = wide and bool((~frame["direction"].isin(("forward", ""))).any())

    def cells(spec: str) -> dict[str, Any]:
        name = {"layer": layers.get(without_batch(spec), "-")} if layers else {}
        return {**name, "spec": spec, **({"direction": direction_of(spec)} if directed else {})}

    return cells


def _words(frame: pd.DataFrame) -> Callable[[Any, str], str]:
    """What says how a problem, that of a row, became one that the algorithm of a name solves."""
    rows = ranked(frame)
    found = {(*(getattr(row, name) for name in PROBLEM), row.algorithm): row.via
             for row in tuples(rows[rows["via"] != ""])}  # fmt: skip
    return lambda row, name: found.get((*(getattr(row, n) for n in PROBLEM), name), "")


def winners_table(frame: pd.DataFrame, layers: Layers = MappingProxyType({}), wide: bool = True) -> Table:
    """Per spec: the fastest, its time, the verdict, who comes next or ties, the margin, our best over the
    best peer's, auto's result; unless ``wide``, a verdict that there is no winner stands before who ties, and
    neither a column for the direction, in which the spec ends, nor how it was lowered is there.
    """
    found = winners(frame)
    varying = _group_columns(frame)
    autos = {tuple(getattr(a, n) for n in PROBLEM): a for a in tuples(auto_results(frame))}
    peers = set(frame.loc[frame["family"] == "peer", "algorithm"])
    mark = lambda name: f"{name} (peer)" if name in peers else name  # noqa: E731
    spec_cells, words = _spec_cells(frame, layers, wide), _words(frame)
    rows = []
    for row in tuples(found):
        auto = autos.get(tuple(getattr(row, n) for n in PROBLEM))
        cells = {**spec_cells(row.spec), **_group_cells(row, varying)}
        cells["fastest"] = via(mark(row.winner), words(row, row.winner) if wide else "")
        cells["time"] = _time(row.median_s)
        rivals = ", ".join(map(mark, row.tied[1:])) if row.tie else mark(row.runner_up) or "-"
        if wide:
            cells |= {"verdict": row.verdict, "next": rivals}
        else:
            cells["next"] = f"{row.verdict}: {rivals}" if row.tie else rivals
        cells["margin"] = _margin(row)
        if peers:
            cells["vs peer"] = _ratio(row.own_over_peer)
        if autos:
            other = f" {auto.chosen}" if auto and auto.chosen not in row.tied else ""
            cells["auto"] = Cell(f"{ratio_text(auto.ratio)}{other}", auto.ratio) if auto else "-"
        rows.append(cells)
    return _table(rows, ("time", "margin", "vs peer", "threads"), "No algorithm has a time yet.")


def _margin(row: Any) -> Cell:
    """The nearest rival's time over the fastest's, with its interval."""
    if not row.runner_up:
        return Cell("only one", 0.0)
    return Cell(f"{ratio_text(row.ratio)} {three_digits(row.low)}-{three_digits(row.high)}", row.ratio)


VERDICTS = ("A winner is surely faster than everybody else; same: those named next were shown to be within "
            "5% of it; undecided: the noise does not tell; alone: nobody else competes. Of the winners that "
            "a table names 2% may be wrong.")  # fmt: skip
MARGIN = "margin: how many times as long the nearest other takes, and its 98% interval."
VS_PEER = "vs peer: the time of the best peer, somebody else's library, over that of the best of ours."
DIRECTION = ("direction: forward, the gradient of the input (which is also what a transposed convolution "
             "computes), or that of the weights; via: how the problem became one that the algorithm solves, "
             "which is within its time.")  # fmt: skip
AUTO = ("auto, the automatic choice: its time over that of the best of ours, and what it chose where that is "
        "surely slower.")  # fmt: skip


def winners_text(frame: pd.DataFrame, layers: Layers = MappingProxyType({})) -> str:
    """The winners for the terminal, with what decides a tie; one clear line when nothing was measured.

    Layers have their names before their specs, where there are some.
    """
    if frame.empty:
        return NOTHING
    named = {without_batch(spec) for spec in frame["spec"]} & layers.keys()
    table = winners_table(frame, layers if named else MappingProxyType({}), wide=False)
    if not table.rows:
        return f"No algorithm has a time yet: {_status_counts(frame)}."
    lines = [table.text(LINE), "", *textwrap.wrap(VERDICTS, LINE), MARGIN]
    if (more := winners(frame)["needed"].max()) == more:
        lines.append(
            f"About {int(more)} launches would decide what is undecided: --launches {int(more)}."
            if more <= SENSIBLE
            else f"What is undecided would take over {SENSIBLE} launches: measure when the machine is calm."
        )
    lines += [text for column, text in (("vs peer", VS_PEER), ("auto", AUTO)) if column in table.columns]
    groups = models(frame)
    for (machine, threads, cold), value in groups.items():
        where = f"{machine}, " if len({key[0] for key in groups}) > 1 else ""
        where += f"{threads} thread{'s' if threads != 1 else ''}{', cold caches' if cold else ''}"
        lines += textwrap.wrap(clean(f"Noise ({where}): {value.text()}"), LINE)
    flagged = sorted(set(frame.loc[frame["prepare_cheats"].astype(bool), "algorithm"]))
    if flagged:
        lines.append("First run far above the steady state, prepare left work undone: "
                     f"{', '.join(map(clean, flagged))}.")
    return "\n".join(lines)


def winners_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """``winners`` as JSON-ready dicts: plain Python values, None where there is no figure."""
    return to_dicts(winners(frame))


def to_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON-ready dicts: plain Python values, None where there is no figure."""

    def value(item: Any) -> Any:
        item = item.item() if hasattr(item, "item") else item
        if isinstance(item, tuple):
            return list(item)
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return [{str(k): value(v) for k, v in row.items()} for row in table.to_dict("records")]


def _status_counts(frame: pd.DataFrame) -> str:
    return ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())


# ---- the other tables --------------------------------------------------------------------------------------


def records_table(frame: pd.DataFrame, layers: Layers = MappingProxyType({})) -> Table:
    """Every measured record, the fastest of each spec first; imported and outdated ones tagged."""
    varying = _group_columns(frame) or ["threads"]
    tuned = bool((frame["tunables"] != "{}").any())
    fastest = {tuple(getattr(w, n) for n in PROBLEM): w.median_s for w in tuples(winners(frame))}
    of_spec = lru_cache(maxsize=1 << 10)(_spec_cells(frame, layers))
    places = {spec: at for at, spec in enumerate(frame["spec"].unique())}
    keys = frame[[*GROUP, "median_s"]].assign(place=frame["spec"].map(places)).reset_index(drop=True)
    keys = keys[(frame["launch_count"] > 0).to_numpy()]
    order = keys.sort_values(["place", *GROUP, "median_s"], kind="stable").index.tolist()

    def columns(places: Sequence[int]) -> dict[str, list[Cell]]:
        part = frame.iloc[list(places)]
        of = {name: part[name].tolist() for name in part if name != "launches"}
        keys = zip(*(of[name] for name in PROBLEM), strict=True)
        best = [fastest.get(key, math.nan) for key in keys]
        found = _columns([of_spec(spec) for spec in of["spec"]])
        found |= _columns([_group_cells(row, varying) for row in tuples(part)])
        found["algorithm"] = _texts(map(via, of["algorithm"], of["via"]))
        if tuned:
            found["tunables"] = _texts("" if text == "{}" else text for text in of["tunables"])
        of_best = [time / least if origin == "convbench" else math.nan
                   for time, least, origin in zip(of["median_s"], best, of["origin"], strict=True)]
        found |= {
            "family": _texts(of["family"]), "time": _figures(seconds, of["median_s"]),
            "of best": _figures(ratio_text, of_best), "launches": _launches(of),
            "GFLOP/s": _figures(lambda rate: f"{rate:.3g}", of["gflops"]),
            "prepare": _figures(seconds, of["prepare_s"]),
            "first prepare": _figures(seconds, of["prepare_cold_s"]),
            "first run": _figures(seconds, of["first_run_s"]),
            "workspace": _figures(size, of["workspace_bytes"]),
            "error/bound": _figures(lambda share: f"{share:.2g}", of["error_ratio"]),
            "notes": _texts(map(_notes, *(of[name] for name in NOTED))),
        }  # fmt: skip
        return found

    titles = tuple(columns(order[:1])) if len(order) else ()
    figures = ("threads", "time", "of best", "GFLOP/s", "prepare", "first prepare", "first run", "workspace",
               "error/bound")  # fmt: skip
    rows = Made(lambda places: zip(*columns(places).values(), strict=True), order)
    return Table(titles, rows, frozenset(figures), "No algorithm has a time yet.")


NOTED = ("chosen", "origin", "superseded", "prepare_cheats")


@lru_cache(maxsize=1 << 10)
def _notes(chosen: str, origin: str, superseded: bool, cheats: bool) -> str:
    notes = (f"chose {chosen}" if chosen else "", f"imported from {origin}" if origin != "convbench" else "",
             "older build" if superseded else "", "first run far above the rest" if cheats else "")
    return "; ".join(filter(None, notes))


def _launches(of: Mapping[Any, list[Any]]) -> list[Cell]:
    """How many there are, and from what to what their times go."""
    columns = (of[name] for name in ("launch_count", "low_s", "high_s", "noise"))
    return [
        Cell(f"{count}: {seconds(low)} to {seconds(high)}", noise if noise == noise else math.inf)
        if count > 1 else Cell("1", math.inf)
        for count, low, high, noise in zip(*columns, strict=True)
    ]  # fmt: skip


def _texts(texts: Iterable[str]) -> list[Cell]:
    return list(map(_text, texts))


@lru_cache(maxsize=1 << 12)
def _text(text: str) -> Cell:
    return Cell.of(text)


def _figures(text: Callable[[float], str], values: Sequence[float]) -> list[Cell]:
    return [Cell(text(v), v) if math.isfinite(v) else _NO_FIGURE for v in values]


_NO_FIGURE = Cell("-", math.inf)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Cell]]:
    """Of rows with equal names."""
    return {name: [Cell.of(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def exclusions_table(frame: pd.DataFrame) -> Table:
    """What has no time and why, one row for each status and reason; reasons
    that differ in figures only are one.
    """
    varying = [name for name in _group_columns(frame) if name != "cold"]
    rows = [
        {
            "algorithms": ", ".join(one.algorithms),
            **one.where,
            "status": one.status,
            "reason": one.reason + (" (figures differ by spec)" if one.several else ""),
            "specs": len(one.specs),
            "such as": one.specs[0],
        }
        for one in excluded(frame, varying)
    ]
    return _table(rows, ("specs", "threads"), "Every algorithm was measured on every spec.")


def auto_table(frame: pd.DataFrame, layers: Layers = MappingProxyType({})) -> Table:
    """What ``auto`` chose, against the fastest of our own algorithms and
    against its own choice called by name.
    """
    rows = []
    varying, spec_cells, words = _group_columns(frame), _spec_cells(frame, layers), _words(frame)
    for row in tuples(auto_results(frame)):
        rows.append(
            {
                **spec_cells(row.spec),
                **_group_cells(row, varying),
                "auto chose": via(row.chosen, words(row, row.chosen)),
                "auto": _time(row.auto_s),
                "best of ours": via(row.best, words(row, row.best)) or "-",
                "best time": _time(row.best_s),
                "auto/best": _ratio(row.ratio),
                "verdict": _auto_verdict(row),
                "auto/its choice": _ratio(row.chosen_ratio),
            }
        )
    return _table(
        rows, ("auto", "best time", "auto/best", "auto/its choice", "threads"), "auto was not measured."
    )


def _auto_verdict(row: Any) -> str:
    if not row.best:
        return "-"
    return "chose the best" if row.chosen == row.best else "slower" if row.behind else "not surely slower"


def calls_table(frame: pd.DataFrame, layers: Layers = MappingProxyType({})) -> Table:
    """Who takes least for one call, prepare included, and from how many calls on somebody else does."""
    varying, spec_cells, words = _group_columns(frame), _spec_cells(frame, layers), _words(frame)
    rows = []
    for row in tuples(break_even(frame)):
        last, changes = row.stretches[-1], len(row.stretches) > 1
        rows.append(
            {
                **spec_cells(row.spec),
                **_group_cells(row, varying),
                "for one call": via(row.stretches[0].algorithm, words(row, row.stretches[0].algorithm)),
                "for many calls": via(last.algorithm, words(row, last.algorithm)) if changes else "the same",
                "from": Cell(f"{last.calls:,}" if changes else "-", last.calls),
                "on the way": stretches_text(row.stretches[:-1]) if len(row.stretches) > 2 else "-",
            }
        )
    return _table(rows, ("from", "threads"), "No algorithm has a time yet.")


def regret_table(regret: Sequence[dict[str, Any]] | None) -> Table:
    """The picker's regret, time(picked) / time(best), by the source of its answer."""
    rows: list[dict[str, Any]] = []
    for entry in regret or ():
        mean, worst = (float(entry.get(name) or math.nan) for name in ("geometric_mean", "worst"))
        rows.append(
            {
                "source": entry.get("source", "-"),
                "specs": entry.get("specs", 0),
                "geometric mean": _ratio(mean),
                "worst": _ratio(worst),
                "worst spec": (entry.get("worst_spec") if worst > 1 or math.isnan(worst) else "") or "-",
            }
        )
    return _table(
        rows, ("specs", "geometric mean", "worst"), NO_REGRET if regret is None else "No spec to judge it on."
    )
