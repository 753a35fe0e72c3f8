"""Figures and tables as text for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import repeat

UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9,
         "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def seconds(value: float | None) -> str:
    """Three significant digits with a unit: ``412 us``; ``-`` where there is no figure."""
    if value is None or not math.isfinite(value):
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= factor * 0.9995:
            return f"{three_digits(value / factor)} {unit}"
    return f"{three_digits(value / 1e-9)} ns"


def size(value: float | None) -> str:
    """Three significant digits with a binary unit: ``1.50 MiB``; ``-`` where there is no figure."""
    if value is None or not math.isfinite(value):
        return "-"
    number, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if number < 999.5:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} B" if unit == "B" else f"{three_digits(number)} {unit}"


def three_digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if 1 <= value < 9.995:  # nearly all are within these, told without writing them twice
        return f"{value:.2f}"
    if 10 <= value < 99.95:
        return f"{value:.1f}"
    if 100 <= value < 999.5:
        return f"{value:.0f}"
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return "%.*f" % (max(2 - exponent, 0), value)  # noqa: UP031  # in half the time


def via(name: str, words: str) -> str:
    """An algorithm's name, with how the problem became one that it solves where it does not solve it itself.
    """
    return f"{name} via {words}" if words else name


def parse_size(text: str) -> int:
    """Bytes from ``64MiB``, ``2 GB`` or ``4096``.

    Raises
    ------
    ValueError
        With what is allowed.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})", text, re.ASCII)
    if not match or match[2].upper() not in UNITS:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with KiB, MiB or GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def printable(text: object) -> str:
    """Without control characters, which could drive the terminal."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned on the left, separated by two spaces; the last one is as wide as it likes."""
    columns = [[*map(printable, column)] for column in zip(header, *rows, strict=True)]
    aligned = [map(str.ljust, cells, repeat(max(map(len, cells)))) for cells in columns]
    return "\n".join([line.rstrip() for line in map("  ".join, zip(*aligned, strict=True))])
