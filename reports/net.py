"""What was measured of one network, as text, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.networks.measured import BEST, TORCH, Layer, Measured
from bench.text import seconds, size
from reports.style import ratio_text
from reports.tables import Cell, Table

COLUMNS = ("layer", "kind", "result", "parameters", "multiply-adds", "time", "share", "alone", "algorithm",
           "speed-up")  # fmt: skip
FIGURES = frozenset({"parameters", "multiply-adds", "time", "share", "alone", "speed-up"})


def layer_table(found: Measured) -> Table:
    """A row for each layer, in the network's order; speed-up over the fastest algorithm throughout."""
    total = sum(layer.seconds for layer in found.layers)
    return Table(COLUMNS, [tuple(map(Cell.of, _cells(layer, total))) for layer in found.layers], FIGURES)


def _cells(layer: Layer, total: float) -> tuple[Any, ...]:
    gained = ratio_text(layer.baseline_s / layer.seconds) if layer.baseline_s else ""
    return (
        layer.name, layer.op.replace("_", " "), layer.shape,
        f"{layer.parameters:,}" if layer.parameters else "", f"{layer.macs:,}" if layer.macs else "",
        seconds(layer.seconds), f"{layer.seconds / total:.1%}", seconds(layer.alone_s), layer.algorithm,
        gained,
    )  # fmt: skip


def sequence_table(found: Measured) -> Table:
    """Every layer alone and in sequence, side by side."""
    columns = ("layer", "algorithm", "alone", "in sequence", "in sequence / alone")
    rows = [
        (layer.name, layer.algorithm, seconds(layer.alone_s), seconds(layer.seconds),
         ratio_text(layer.seconds / layer.alone_s))
        for layer in found.layers
    ]  # fmt: skip
    return Table(columns, [tuple(map(Cell.of, row)) for row in rows], frozenset(columns[2:]))


def way_table(found: Measured) -> Table:
    rows = [(w.name, seconds(w.seconds), ratio_text(w.ratio), f"{w.error:.1e}") for w in found.ways]
    columns = ("way", "time", "times the best", "error")
    return Table(columns, [tuple(map(Cell.of, row)) for row in rows], frozenset(columns[1:]))


def summary(found: Measured) -> str:
    """What it comes to, in lines."""
    best, torch = found.way(BEST), found.torch
    assert best is not None
    lines = [f"{found.name}, batch {found.batch}, {found.threads} thread{'s' * (found.threads > 1)}: "
             f"{seconds(best.seconds)} with the best algorithm for each layer"]  # fmt: skip
    if torch is not None:
        form = torch.name.removeprefix(TORCH)
        time = seconds(torch.seconds)
        lines.append(f"{torch.ratio:.2f}x as fast as PyTorch at its best here ({form}, {time})")
    lines += [sequence_text(found), choice_text(found), layout_text(found), memory_text(found)]
    lines += [f"not measured: {name}: {reason}" for name, reason in found.missing.items()]
    return "\n".join(lines)


def sequence_text(found: Measured) -> str:
    alone = sum(layer.alone_s for layer in found.layers)
    share = found.sequence_s / found.whole_s
    return (f"layers in sequence add up to {seconds(found.sequence_s)}, {share:.2f} of end to end; "
            f"called alone to {seconds(alone)}")  # fmt: skip


def choice_text(found: Measured) -> str:
    auto = found.way("auto")
    differ = sum(found.chosen["greedy"][layer] != name for layer, name in found.chosen["algorithms"].items())
    of = len(found.chosen["algorithms"])
    text = f"chosen in sequence, {differ} of {of} layers differ from what auto picks for each alone"
    return text if auto is None else f"{text}, which takes {ratio_text(auto.ratio)} the time"


def layout_text(found: Measured) -> str:
    order = found.chosen["layouts"]
    if order["bound"]:
        return ("memory order: no conversion pays: no layer is faster with its channels together, even where "
                "its arrays lie so already")  # fmt: skip
    gain = 1 - order["seconds"] / order["greedy_s"]
    if not order["channels_last"]:
        return "memory order: no conversion pays, by the least cut over the costs of copies"
    layers = ", ".join(order["channels_last"][:4])
    return f"memory order: {layers} with channels together would gain at most {gain:.1%}, copies counted"


def memory_text(found: Measured) -> str:
    chosen = found.chosen
    return (f"results take {size(chosen['arena_bytes'])} of memory, "
            f"{size(chosen['apart_bytes'])} if none were reused")  # fmt: skip


def to_csv(found: Measured) -> str:
    """The layers, in seconds."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(asdict(found.layers[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(layer) for layer in found.layers)
    return stream.getvalue()


def to_dict(found: Measured) -> dict[str, Any]:
    return asdict(found)


def to_latex(found: Measured) -> str:
    """A ``tabular`` of the layers."""
    table = layer_table(found)
    columns = "".join("r" if column in FIGURES else "l" for column in table.columns)
    rows: Sequence[Sequence[str]] = [table.columns, *([cell.text for cell in row] for row in table.rows)]
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", end])


def _escaped(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return text.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
