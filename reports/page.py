"""The report: a folder with one self-contained page, the same in Markdown, the records as CSV, the pictures
as files.

Nothing that was measured or imported is trusted: every text is escaped for where it stands, and the page's
policy forbids anything from the network.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from bench.files import write
from bench.record import Record
from bench.text import seconds, size
from reports import tables
from reports.cells import Cell, Table, markdown_text
from reports.findings.frame import to_frame
from reports.findings.networks import Networks, in_network_order, layer_names
from reports.findings.ranking import noise_rows, winners
from reports.findings.versus import versus
from reports.plots import pictures
from reports.scene import COLD, WARM, Picture
from reports.spreadsheet import csv_parts, to_csv
from reports.style import clean, machine_text
from reports.versus import versus_table
from reports.words import calm, false_alarms, in_short

if TYPE_CHECKING:
    from bench.versus import Work

TEMPLATES = Path(__file__).parent / "templates"
TABLES = ("winners", "versus", "calls", "auto", "regret", "records", "exclusions")
SHOWN = 500  # rows of a table that are shown at a time
# Of the rows in a script, and of the pictures within the page
SCRIPT_BYTES, EMBEDDED_BYTES = 1_500_000, 1_000_000
PAGE, MARKDOWN, CSV, VERSUS_CSV = "index.html", "report.md", "records.csv", "versus.csv"
SECTIONS = (("winners", "Winners"), ("plots", "Pictures"), ("versus", "Versus"), ("calls", "Calls"),
            ("auto", "auto"), ("regret", "Regret"), ("records", "All records"), ("excluded", "Excluded"),
            ("machine", "Machine"), ("method", "How times were taken"),
            ("reproduce", "Reproduce"))  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a report is to show beside the records.

    Attributes
    ----------
    baseline : sequence of str
        Algorithms whose best is the baseline of the speed-up; see ``reports.findings.ranking.speed_ups`` for
        the default.
    regret : list of dict or None
        Rows with source, specs, geometric_mean, worst, worst_spec.
    command : str
        The command line that measured, shown as the way to make the report again.
    networks : sequence of (name, layers)
        Those asked for. Each layer is its name, its spec's text at any batch, and how often it occurs; a
        network is drawn where the records hold most of its layers at one batch. Tables and pictures have
        their layers in this order.
    works : sequence of bench.versus.Work
        What our algorithms are set against others on; none where that was not asked for.
    of : int
        How many records the store holds, where those of the report are but a part.
    """

    baseline: Sequence[str] = ()
    regret: list[dict[str, Any]] | None = None
    command: str = ""
    networks: Networks = ()
    works: Sequence[Work] = ()
    of: int = 0


Machines = dict[str, dict[str, Any]]  # descriptions by id, as ``Store.machines`` gives them


def write_report(
    records: Sequence[Record], machines: Machines, folder: Path, options: Options = Options()
) -> Path:
    """``write_frame`` of records."""
    return write_frame(to_frame(records), machines, folder, options)


def write_frame(frame: pd.DataFrame, machines: Machines, folder: Path, options: Options) -> Path:
    """Write the whole report into ``folder``, each file complete or not at all; the path of its page.

    ``folder`` is made when missing, and files of an earlier report in it are replaced.

    Raises
    ------
    ValueError
        When there is nothing to report, or a baseline was not measured; one line.
    OSError
        When a file cannot be written.
    """
    if frame.empty:
        raise ValueError(tables.NOTHING)
    frame = in_network_order(frame, options.networks)
    shown, left_out = pictures(frame, machines, options.baseline, options.networks)
    against = versus(frame, options.works, machines)
    folder = Path(folder)
    context = _context(frame, machines, shown, options) | {"left_out": left_out}
    context |= {
        "versus": versus_table(against),
        "sections": [s for s in SECTIONS if s[0] != "versus" or len(against)],
    }
    environment = _environment()
    if len(frame) < options.of:
        context["summary"].append(
            f"These are the specs that were measured last: {len(frame):,} of {options.of:,} records in the "
            "store. `convbench report` shows all."
        )
    context |= {name: _paged(folder, name, context[name]) for name in TABLES}
    # Files beside the page are let in where there are any: 'self' from a server, file: from a folder.
    outside = context["embedded"] < len(shown) or any(context[name].files for name in TABLES)
    context["beside"] = Markup(" 'self' file:" if outside else "")
    for picture in shown:
        write(folder / f"{picture.name}.png", picture.png)
        write(folder / f"{picture.name}.svg", picture.svg)
    write(folder / CSV, (part.encode("utf-8", "replace") for part in csv_parts(frame)))
    if len(against):
        write(folder / VERSUS_CSV, to_csv(against).encode("utf-8", "replace"))
    for name in (MARKDOWN, PAGE):  # the page last: where it stands, everything stands
        text = environment.get_template(f"{name}.j2").render(context)
        write(folder / name, text.encode("utf-8", "replace"))
    return folder / PAGE


_encoded = json.JSONEncoder(separators=(",", ":")).encode


class Paged(NamedTuple):
    """A table as the page shows it: the first rows within it, the others in
    ``files`` scripts, loaded on demand.
    """

    table: Table
    first: Sequence[Sequence[Cell]]
    total: int
    files: int


def _paged(folder: Path, name: str, table: Table) -> Paged:
    """Write the scripts of a table with many rows; those of an earlier report are gone then."""
    files, size = 0, 0
    rows: list[str] = []

    def file() -> None:
        nonlocal files, size
        files += 1
        lines = ",\n".join(rows)
        script = f'convbenchRows("{name}", {files}, [\n{lines}\n]);\n'
        write(folder / f"{name}-{files}.js", script.encode("ascii"))
        rows.clear()
        size = 0

    for cells in islice(table.rows, SHOWN, None):
        rows.append(_encoded([*map(_data, cells)]))
        size += len(rows[-1])
        if size > SCRIPT_BYTES:
            file()
    if rows:
        file()
    for old in folder.glob(f"{name}-*.js"):
        if (number := old.stem.removeprefix(f"{name}-")).isdigit() and int(number) > files:
            old.unlink()
    return Paged(table, table.rows[:SHOWN], len(table.rows), files)


def _data(cell: Cell) -> Any:
    """Its text, and what it is sorted by where that is a number; null stands for infinity, which JSON lacks.
    """
    text, key = cell
    if isinstance(key, str):
        return text
    return cell if math.isfinite(key) else (text, None)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        md=lambda text: Markup(markdown_text(text)),
        raw=Markup,  # only for text that is ours or escaped already: style, script and Markdown tables
        code=lambda text: Markup(str(text).replace("\n", "\n    ")),
        base64=lambda data: base64.b64encode(data).decode("ascii"),
    )
    return environment


def _context(
    frame: pd.DataFrame, machines: Machines, shown: list[Picture], options: Options
) -> dict[str, Any]:
    layers = layer_names(options.networks)
    present = [identity for identity in machines if identity in set(frame["machine"])]
    present += [identity for identity in frame["machine"].unique() if identity not in machines]
    best = tables.winners_table(frame, layers)
    return {
        "calm": calm(frame),
        "false_alarms": false_alarms(present),
        "in_short": in_short(frame),
        "summary": _summary(frame, machines, present),
        "winners": best,
        "reading": [
            text
            for text, column in (
                (tables.VERDICTS, "next"),
                (tables.MARGIN, "margin"),
                (tables.VS_PEER, "vs peer"),
                (tables.AUTO, "auto"),
                (tables.DIRECTION, "direction"),
            )
            if column in best.columns
        ],
        "noise": [
            f"Noise ({_group_text(row, len(present) > 1)}): {row['text']}" for row in noise_rows(frame)
        ],
        "pictures": shown,
        "embedded": sum(
            size < EMBEDDED_BYTES for size in accumulate(len(picture.svg) * 4 // 3 for picture in shown)
        ),
        "most": SHOWN,
        "calls": tables.calls_table(frame, layers),
        "auto": tables.auto_table(frame, layers),
        "regret": tables.regret_table(options.regret),
        "records": tables.records_table(frame, layers),
        "exclusions": tables.exclusions_table(frame),
        "machines": [
            {
                "title": f"{machine_text(i, machines)} ({clean(i) or 'no id'})",
                "facts": _facts(machines.get(i, {})),
            }
            for i in present
        ],
        "method": _method(frame),
        "reproduce": _reproduce(frame, options.command),
        "style": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
        "script": (TEMPLATES / "page.js").read_text(encoding="utf-8"),
    }


def _group_text(row: dict[str, Any], several: bool) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
    return f"{row['machine'] + ', ' if several else ''}{threads}{', cold caches' if row['cold'] else ''}"


def _summary(frame: pd.DataFrame, machines: Machines, present: list[str]) -> list[str]:
    started = [text for text in frame["started"] if text]
    measured = frame[frame["launch_count"] > 0]
    launches = sorted(set(measured["launch_count"]))
    lines = [
        "; ".join(machine_text(identity, machines) for identity in present),
        f"{measured['spec'].nunique()} specs, {measured['algorithm'].nunique()} algorithms with times, "
        f"{len(frame)} records"
        + (f", {_range(launches)} launch{'es' if launches[-1] > 1 else ''} each" if launches else "")
        + f", threads {', '.join(str(t) for t in sorted(set(frame['threads'])))}"
        + (
            f", measured {' to '.join(dict.fromkeys([min(started)[:10], max(started)[:10]]))} (UTC)"
            if started
            else ""
        ),
    ]
    wrong = sorted(
        set(frame.loc[(frame["status"] == "wrong") & ~frame["superseded"].astype(bool), "algorithm"])
    )
    if wrong:
        lines.append(f"Wrong results, therefore not timed: {', '.join(wrong)}; see what was excluded.")
    return [clean(line) for line in lines]


def _range(values: Collection[int]) -> str:
    """3, or 2 to 5."""
    return " to ".join(str(v) for v in dict.fromkeys([min(values), max(values)]))


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    """What the machine's description says, in words."""
    facts = []
    for name, value in about.items():
        if name == "peaks" and isinstance(value, dict):
            facts += _peak_facts(value)
        elif name == "caches_bytes" and isinstance(value, dict):
            facts.append(("caches", ", ".join(f"{k} {size(v)}" for k, v in value.items())))
        elif name.endswith("_bytes") and isinstance(value, int):
            facts.append((name.removesuffix("_bytes"), size(value)))
        elif isinstance(value, dict):
            facts.append((name, ", ".join(f"{k} {v}" for k, v in value.items())))
        elif value not in ("", None):
            facts.append((name, str(value)))
    return [(clean(name), clean(value)) for name, value in facts] or [
        ("description", "not stored with these records")
    ]


def _peak_facts(peaks: dict[str, Any]) -> list[tuple[str, str]]:
    """Measured peaks in words, whatever else the description holds."""
    kinds = (("flops_per_s", "GFLOP/s"), ("bytes_per_s", "GB/s"))
    facts = []
    for kind, unit in kinds:
        rates = peaks.get(kind)
        for name, by_threads in rates.items() if isinstance(rates, dict) else ():
            if isinstance(by_threads, dict):
                parts = [f"{v / 1e9:.3g} {unit} with {t} thread{'s' if str(t) != '1' else ''}"
                         for t, v in by_threads.items() if isinstance(v, int | float)]  # fmt: skip
                facts.append((f"peak {'copy in ' if unit == 'GB/s' else ''}{name}", ", ".join(parts)))
    return facts


def _method(frame: pd.DataFrame) -> list[str]:
    """What the clock includes, in the reader's words; only what applies to these records."""
    samples = frame.loc[frame["sample_count"] > 0]
    lines = ["Every result was checked against the definition in float64 first; a wrong one is never timed."]
    if (~frame["cold"].astype(bool)).any():
        lines.append(f"Time: {WARM}.")
    if frame["cold"].astype(bool).any():
        lines.append(f"Time with cold caches: {COLD}.")
    lines.append("A launch is a fresh process; algorithms take turns in random order.")
    if len(samples):
        lines.append(
            "The time shown is the median over launches of each launch's median sample; a sample is the mean "
            f"of as many calls as its loops say (here {_range(samples['sample_count'])} samples per record)."
        )
    lines += [
        "Prepare is the one-off work for a spec and its weights; first prepare includes compilation, or "
        "loading what was compiled; first run is the first call. A first run far above the rest, in every "
        "launch, is flagged.",
        "GFLOP/s counts the definition's operations, 2 for each multiply-add, whatever the algorithm really "
        "does.",
        "error/bound is the largest share of the algorithm's error bound that a checked output used up; "
        "below 1 is right.",
        "Records imported from another tool are shown and tagged; they neither win nor tie.",
    ]
    return lines


def _reproduce(frame: pd.DataFrame, command: str) -> str:
    best = winners(frame)
    row = best.iloc[0] if len(best) else frame.iloc[0]
    name = row["winner"] if len(best) else row["algorithm"]
    lines = ["# one row: its spec and its algorithm", "convbench run 'SPEC' --algorithms NAME", ""]
    lines += ["# such as" + (f" ({seconds(row['median_s'])} here)" if len(best) else "")]
    threads = f" --threads {row['threads']}" if frame["threads"].nunique() > 1 else ""
    lines += [f"convbench run {_quoted(row['spec'])} --algorithms {_quoted(name)}{threads}"]
    if command:
        lines += ["", "# everything", clean(command)]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """For a shell; specs always in quotes, since some hold > and :."""
    quoted = shlex.quote(clean(text))
    return quoted if quoted.startswith("'") or text.isidentifier() else f"'{quoted}'"
