"""Records -> a tidy DataFrame: a row per record, with its times, its spec's
figures and what to make of its phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from algos.dtypes import kind
from algos.spec import ConvSpec, SpecError
from bench.oracle import reduction
from bench.record import Record
from bench.turns import by_length, taken

GROUP = ["machine", "threads", "cold"]  # times from different groups are never compared
PROBLEM = [*GROUP, "spec"]

# A first run beyond both, and beyond fresh memory, was prepare's work
FIRST_RUN_RATIO, FIRST_RUN_S = 5.0, 1e-2
FRESH_BYTE_S = 2.5e-9  # the slowest page faults seen: 25 ms for a fresh output of 13 MB


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record: its fields, the spec's figures and the times in seconds.

    Columns beyond the record's and the spec's: ``median_s`` (median of the launches' medians), ``low_s`` and
    ``high_s`` (their range), ``launch_count``, ``sample_count``, ``loops``, ``prepare_cold_s``,
    ``prepare_s``, ``first_run_s``, ``h2d_s``, ``d2h_s``, ``workspace_seen_bytes``, ``gflops`` (of the
    definition's operations), ``noise`` (relative standard deviation between launches), ``prepare_cheats``,
    ``launch_medians_s``, ``launches`` (as ``bench.noise`` compares them), ``left_out`` (share of the turns
    that were disturbed), ``steal``, ``load``, ``loop`` (the machine's mood, see ``bench.record.Launch``; NaN
    where it is not known), ``started``, ``superseded`` (a later build was measured) and ``competes``.
    """
    specs: dict[str, int] = {}
    places, own, times = [], [], _Times()
    for record in records:
        places.append(specs.setdefault(record.spec, len(specs)))
        own.append(_OWN(record))
        times.add(record)
    records_own = pd.DataFrame(dict(zip(_OWN_NAMES, zip(*own, strict=True), strict=True)) if own else
                               dict.fromkeys(_OWN_NAMES, ()))  # fmt: skip
    del own
    of_specs = pd.DataFrame([_spec_columns(spec) for spec in specs] or [_spec_columns(_NOTHING.spec)]).iloc[
        places
    ]
    of_specs = of_specs.reset_index(drop=True)
    table = pd.concat([records_own, of_specs, pd.DataFrame(times.columns(records_own, of_specs))], axis=1)
    if len(table):
        for name in ("max_error", "error_ratio", "workspace_bytes"):
            table[name] = table[name].astype(float)  # None becomes NaN, also where every one is None
        newest = ~table.duplicated(["spec", "algorithm", "tunables", *GROUP, "origin"], keep="last")
        table["superseded"] = ~newest
        table["competes"] = (
            newest
            & (table["status"] == "ok")
            & (table["launch_count"] > 0)
            & (table["origin"] == "convbench")
            & (table["family"] != "auto")
            & (table["algorithm"] != "auto")
        )
    else:
        table["superseded"] = table["competes"] = pd.Series(dtype=bool)
    return table


_NOTHING = Record("1x1x1x1,1x1x1x1", "", 1, "", "", "error", "placeholder")
_OWN_NAMES = tuple(f.name for f in fields(Record) if f.name != "launches")
_OWN = attrgetter(*_OWN_NAMES)


_LAUNCH_NAMES = ("median_s", "prepare_cold_s", "prepare_s", "first_run_s", "h2d_s", "d2h_s",
                 "workspace_seen_bytes", "sample_count", "loops", "steal", "load", "loop")  # fmt: skip
_LAUNCH = attrgetter(*_LAUNCH_NAMES)
BLOCK = 1 << 14  # launches that lie in tuples at a time


class _Times:
    """What launches say, record after record: gathered in arrays, and summed up of all records at once."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._blocks: list[np.ndarray] = []
        self._figures: list[tuple[Any, ...]] = []
        self._lists: dict[str, list[Any]] = {"launches": [], "left_out": [], "started": []}

    def add(self, record: Record) -> None:
        self._counts.append(len(record.launches))
        self._figures += map(_LAUNCH, record.launches)
        if len(self._figures) > BLOCK:
            self._pack()
        values = taken(record), _left_out(record), min([x.started for x in record.launches], default="")
        for column, value in zip(self._lists.values(), values, strict=True):
            column.append(value)

    def _pack(self) -> None:
        self._blocks.append(np.array(self._figures, float).reshape(-1, len(_LAUNCH_NAMES)))  # None is NaN
        self._figures.clear()

    def columns(self, own: pd.DataFrame, specs: pd.DataFrame) -> dict[str, Any]:
        """See ``to_frame``."""
        self._pack()
        counts, figures = np.array(self._counts, int), np.concatenate(self._blocks)
        found: dict[str, Any] = dict.fromkeys(("median_s", "low_s", "high_s"))
        found["launch_count"] = counts
        found |= {name: np.zeros(len(counts), int) for name in ("sample_count", "loops")}
        for name in ("prepare_cold_s", "prepare_s", "first_run_s", "h2d_s", "d2h_s", "workspace_seen_bytes",
                     "gflops", "noise"):  # fmt: skip
            found[name] = None
        found["prepare_cheats"] = np.zeros(len(counts), bool)
        found["launch_medians_s"] = np.full(len(counts), "", object)
        found |= dict.fromkeys(("launches", "left_out", "steal", "load", "loop", "started")) | self._lists
        for name in [name for name, column in found.items() if column is None]:
            found[name] = np.full(len(counts), math.nan)
        fresh = np.nan_to_num(specs["output_bytes"].to_numpy(float))[: len(counts)]
        fresh = fresh + np.nan_to_num(own["workspace_bytes"].to_numpy(float))
        for rows, places in by_length(counts):
            if places.shape[1]:
                of = dict(zip(_LAUNCH_NAMES, np.moveaxis(figures[places], 2, 0), strict=True))
                for name, column in _summed_up(of, fresh[rows]).items():
                    found[name][rows] = column
        median, flops = found["median_s"], specs["flops"].to_numpy(float)[: len(counts)]
        found["gflops"] = np.divide(flops, median, out=np.full(len(counts), math.nan), where=median > 0) / 1e9
        return found


def _summed_up(of: dict[str, np.ndarray], fresh: np.ndarray) -> dict[str, Any]:
    """Of records with as many launches each: what all launches say, by the names of columns."""
    medians, first = of["median_s"], of["first_run_s"]
    allowed_s = FIRST_RUN_S + FRESH_BYTE_S * fresh[:, None]
    # Not by page faults, and not once by bad luck
    cheats = (first > FIRST_RUN_RATIO * medians) & (first - medians > allowed_s)
    found = {
        "median_s": np.median(medians, axis=1), "low_s": medians.min(axis=1), "high_s": medians.max(axis=1),
        "sample_count": of["sample_count"].sum(axis=1), "loops": of["loops"].max(axis=1),
        # Compiled once, in one of the launches
        "prepare_cold_s": of["prepare_cold_s"].max(axis=1), "prepare_cheats": cheats.all(axis=1),
        "workspace_seen_bytes": _known(np.nanmax, of["workspace_seen_bytes"]),
        "launch_medians_s": [" ".join([f"{m:.6g}" for m in row]) for row in medians.tolist()],
    }  # fmt: skip
    found |= {name: _known(np.nanmedian, of[name]) for name in ("prepare_s", "first_run_s", "h2d_s", "d2h_s")}
    found |= {name: _known(np.nanmean, of[name]) for name in ("steal", "load", "loop")}
    if medians.shape[1] > 1:
        logs = np.log(np.where(medians > 0, medians, math.nan))
        found["noise"] = logs.std(axis=1, ddof=1)
    return found


def _known(statistic: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
    """Row by row what ``statistic`` says of those that are known; NaN where none is."""
    found, known = np.full(len(values), math.nan), ~np.isnan(values).all(axis=1)
    if known.any():
        found[known] = statistic(values[known], axis=1)
    return found


def _left_out(record: Record) -> float:
    turns = sum([_rounds(launch.turns) for launch in record.launches])
    return sum([len(launch.disturbed) for launch in record.launches]) / turns if turns else math.nan


@lru_cache(maxsize=1 << 12)
def _rounds(turns: tuple[int, ...]) -> int:
    return sum(map(bool, turns))


@cache
def _spec_columns(text: str) -> dict[str, Any]:
    """Figures of the spec that ``text`` names; all unknown where an imported name is no spec."""
    try:
        spec = ConvSpec.parse(text)
    except SpecError:
        return {
            **dict.fromkeys(_spec_columns(_NOTHING.spec), math.nan),
            "size": "",
            "kernel": "",
            "direction": "",
            "sweep": "",
            "problem": "",
            "valid": False,
        }
    padding = _padding_name(spec)
    described = f"batch {spec.batch}, {spec.in_channels} to {spec.out_channels} channels"
    options = {
        "groups": (spec.groups, 1),
        "stride": (_times(spec.stride), _times((1,) * spec.ndim)),
        "padding": (padding, None),
        "dilation": (_times(spec.dilation), _times((1,) * spec.ndim)),
        "rank": (spec.rank, None),
    }
    plain = {
        "dtype": (spec.dtype, None),
        "mode": (spec.padding_mode, "zeros"),
        "direction": (spec.direction, "forward"),
    }
    parts = [
        f"{spec.ndim}-D",
        described if (spec.batch, spec.in_channels, spec.out_channels) != (1, 1, 1) else "pictures",
    ]
    parts += [f"{name} {value}" for name, (value, default) in options.items() if value not in (default, None)]
    parts += [str(value) for value, default in plain.values() if value != default]
    parts += ["flip"] * spec.flip + ["bias"] * spec.bias
    parts += [spec.activation] * (spec.activation != "none")
    parts += ["zero points {} and {}".format(*spec.zero_points)] * any(spec.zero_points)
    typical = math.sqrt(max(reduction(spec), 1)) * (2 if kind(spec.in_dtype) == "c" else 1)
    return {
        "batch": spec.batch, "channels": spec.in_channels, "out_channels": spec.out_channels,
        "size": _times(spec.size), "height": spec.size[-2] if spec.ndim > 1 else 1, "width": spec.size[-1],
        "side": math.prod(spec.size) ** (1 / spec.ndim), "kernel": _times(spec.kernel),
        "kernel_side": math.prod(spec.kernel) ** (1 / spec.ndim), "stride": _times(spec.stride),
        "padding": padding, "dilation": _times(spec.dilation), "groups": spec.groups,
        "rank": spec.rank or math.nan, "dtype": spec.dtype, "padding_mode": spec.padding_mode,
        "direction": spec.direction, "flip": spec.flip, "ndim": spec.ndim, "macs": spec.macs,
        "flops": spec.flops, "min_bytes": spec.min_bytes, "reduction": spec.reduction_length,
        "output_bytes": math.prod(spec.result_shape) * spec.result_dtype.itemsize, "typical": typical,
        "problem": str(spec.with_(dtype="float32", zero_points=(0, 0))),
        "sweep": ", ".join(parts[1:] if spec.ndim == 2 else parts), "valid": True,
    }  # fmt: skip


def direction_of(spec: str) -> str:
    """In words; empty where the name is no spec."""
    return str(_spec_columns(spec)["direction"]).replace("_", " ")


def _padding_name(spec: ConvSpec) -> str:
    """One word for what grows with the kernel along a sweep: same (also half the
    kernel on either side), valid, full.
    """
    half = tuple(((extent - 1) // 2,) * 2 for extent in spec.kernel_extent)
    if spec.padding == half or spec.padding == spec.with_(padding="same", padding_mode="zeros").padding:
        return "same"
    if not any(map(any, spec.padding)):
        return "valid"
    if spec.padding == tuple((extent - 1,) * 2 for extent in spec.kernel_extent):
        return "full"
    return _times(spec.padding)


def _times(values: Sequence[Any]) -> str:
    return "x".join(f"{v[0]}:{v[1]}" if isinstance(v, tuple) else str(v) for v in values)


class Row:
    """One row of a table, its columns as attributes; a column is read when the first row is asked for it."""

    __slots__ = ("_at", "_columns")

    def __init__(self, columns: _Columns, at: int) -> None:
        self._columns, self._at = columns, at

    def __getattr__(self, name: str) -> Any:
        return self._columns[name][self._at]


class _Columns(dict):
    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def __missing__(self, name: str) -> list[Any]:
        if name not in self._table.columns:
            raise AttributeError(f"no column is named {name!r}")
        return self.setdefault(name, self._table[name].tolist())


def tuples(table: pd.DataFrame) -> list[Any]:
    """Rows with the columns as attributes; for many small tables cheaper than ``itertuples`` (a class each).
    """
    columns = _Columns(table)
    return [Row(columns, at) for at in range(len(table))]


def groups(
    table: pd.DataFrame, by: Sequence[str], names: Sequence[str] = ()
) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Rows as ``tuples`` gives them, or plain tuples of the columns ``names``, with equal ones in the columns
    ``by`` together, in order of their first occurrence.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    keys, rows = (zip(*(table[name].tolist() for name in some), strict=True) for some in (by, names))
    for key, row in zip(keys, rows if names else tuples(table), strict=True):
        found.setdefault(key, []).append(row)
    yield from found.items()
