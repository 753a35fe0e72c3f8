"""Records -> a tidy DataFrame: a row per record, with its times, its spec's
figures and what to make of its phases.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from algos.spec import ConvSpec, SpecError
from bench.record import Record
from bench.turns import taken

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
    places, rows = [], []
    for record in records:
        places.append(specs.setdefault(record.spec, len(specs)))
        rows.append((*_OWN(record), *_times_of(record).values()))
    columns = (*_OWN_NAMES, *_times_of(_NOTHING))
    own = dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(columns, ())
    del rows
    of_specs = pd.DataFrame([_spec_columns(spec) for spec in specs] or [_spec_columns(_NOTHING.spec)]).iloc[
        places
    ]
    table = pd.DataFrame(own)
    table = pd.concat(
        [table[list(_OWN_NAMES)], of_specs.reset_index(drop=True), table[list(columns[len(_OWN_NAMES) :])]],
        axis=1,
    )
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


def _times_of(record: Record) -> dict[str, Any]:
    launches, spec = record.launches, _spec_columns(record.spec)
    medians = [launch.median_s for launch in launches]
    median = statistics.median(medians) if medians else math.nan

    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values) if values else math.nan

    def middle(name: str) -> float:
        values = [value for launch in launches if (value := getattr(launch, name)) is not None]
        return statistics.median(values) if values else math.nan

    return dict(
        median_s=median,
        low_s=min(medians, default=math.nan),
        high_s=max(medians, default=math.nan),
        launch_count=len(launches),
        sample_count=sum(launch.sample_count for launch in launches),
        loops=max((launch.loops for launch in launches), default=0),
        # Compiled once, in one of the launches
        prepare_cold_s=max((x.prepare_cold_s for x in launches), default=math.nan),
        **{name: middle(name) for name in ("prepare_s", "first_run_s", "h2d_s", "d2h_s")},
        workspace_seen_bytes=max(
            (b for x in launches if (b := x.workspace_seen_bytes) is not None), default=math.nan
        ),
        gflops=spec["flops"] / median / 1e9 if median > 0 else math.nan,
        noise=_spread(medians) if len(medians) > 1 and min(medians) > 0 else math.nan,
        prepare_cheats=_cheats(record, spec["output_bytes"]),
        launch_medians_s=" ".join(f"{m:.6g}" for m in medians),
        launches=taken(record),
        left_out=_left_out(record),
        **{
            name: mean([v for x in launches if (v := getattr(x, name)) is not None])
            for name in ("steal", "load", "loop")
        },
        started=min((launch.started for launch in launches), default=""),
    )


def _spread(times: Sequence[float]) -> float:
    """Relative standard deviation."""
    logs = [math.log(time) for time in times]
    mean = math.fsum(logs) / len(logs)
    return math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1))


def _left_out(record: Record) -> float:
    turns = sum(sum(map(bool, launch.turns)) for launch in record.launches)
    return sum(len(launch.disturbed) for launch in record.launches) / turns if turns else math.nan


def _cheats(record: Record, output_bytes: float) -> bool:
    """Whether in every launch the first run did far more than a run: not by
    page faults, and not once by bad luck.
    """
    if not record.launches:
        return False
    fresh = np.nan_to_num(output_bytes) + (record.workspace_bytes or 0)
    allowed_s = FIRST_RUN_S + FRESH_BYTE_S * float(fresh)
    return all(
        launch.first_run_s > FIRST_RUN_RATIO * launch.median_s
        and launch.first_run_s - launch.median_s > allowed_s
        for launch in record.launches
    )


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
    parts += ["flip"] * spec.flip
    return {
        "batch": spec.batch, "channels": spec.in_channels, "out_channels": spec.out_channels,
        "size": _times(spec.size), "height": spec.size[-2] if spec.ndim > 1 else 1, "width": spec.size[-1],
        "side": math.prod(spec.size) ** (1 / spec.ndim), "kernel": _times(spec.kernel),
        "kernel_side": math.prod(spec.kernel) ** (1 / spec.ndim), "stride": _times(spec.stride),
        "padding": padding, "dilation": _times(spec.dilation), "groups": spec.groups,
        "rank": spec.rank or math.nan, "dtype": spec.dtype, "padding_mode": spec.padding_mode,
        "direction": spec.direction, "flip": spec.flip, "ndim": spec.ndim, "macs": spec.macs,
        "flops": spec.flops, "min_bytes": spec.min_bytes, "reduction": spec.reduction_length,
        "output_bytes": math.prod(spec.result_shape) * spec.out_dtype.itemsize,
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
    if spec.padding in (half, spec.with_(padding="same", padding_mode="zeros").padding):
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


def groups(table: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Rows as ``tuples`` gives them, with equal ones in the columns ``by`` together,
    in order of their first occurrence.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    keys = zip(*(table[name].tolist() for name in by), strict=True)
    for key, row in zip(keys, tuples(table), strict=True):
        found.setdefault(key, []).append(row)
    yield from found.items()
