"""Specs from the CSV files of other people: any common encoding and delimiter, read row by row, each spec
once.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from algos.grammar import shown
from algos.spec import ConvSpec

MOST_SPECS = 100_000  # different ones: days of measuring
LAYER = ("N", "Cin", "H", "W", "Cout", "KH", "KW", "stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w",
         "groups")
DELIMITERS = (",", ";", "\t", "|")
MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
         (b"\xfe\xff", "utf-16"))  # fmt: skip


def read_csv(path: Path) -> list[ConvSpec]:
    """The different specs of a file with a column ``spec``, or with the columns of ``bench/workloads/*.csv``.

    Columns are found by their names, in whatever case and order; others are left alone. The encoding may be
    UTF-8, UTF-16, UTF-32 or one of 8 bits, the delimiter a comma, a semicolon, a tab or a bar.

    Raises
    ------
    ValueError
        With the file and line of what is wrong, or with the columns that were found.
    """
    specs: dict[ConvSpec, None] = {}
    try:
        with open(path, newline="", encoding=_encoding(path), errors="replace") as file:
            names, delimiter, skipped = _header(file, path)
            spec_of, at = _columns(names, path)
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            seen: set[tuple[str, ...]] = set()
            for row in rows:
                if len(row) > len(names) and delimiter == "," and at == [len(names) - 1]:
                    row[at[0] :] = [",".join(row[at[0] :])]  # a spec at the end of its row needs no quotes
                cells = tuple(row[i].strip() if i < len(row) else "" for i in at)
                if cells in seen or not any(cell.strip() for cell in row):
                    continue
                seen.add(cells)
                try:
                    specs[spec_of(cells)] = None
                except ValueError as error:
                    quotes = ": put the spec in quotes" if len(row) > len(names) else ""
                    raise ValueError(f"{path} line {skipped + rows.line_num}: {error}{quotes}") from None
                if len(seen) > MOST_SPECS:
                    raise ValueError(
                        f"{path} holds more than {MOST_SPECS:,} different specs: split it into several files"
                    )
    except (OSError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not specs:
        raise ValueError(f"{path} holds no specs, only a header: write one spec on each line below it")
    return list(specs)


def _encoding(path: Path) -> str:
    """By the byte-order mark or the zeros of the first characters; what is not
    ASCII in 8 bits is no part of a spec.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    if start[:1] == b"\0":
        return "utf-16-be"
    return "utf-16-le" if start[1:2] == b"\0" else "utf-8-sig"


def _header(file: TextIO, path: Path) -> tuple[list[str], str, int]:
    """The names of the columns in lower case, the delimiter that gives the ones
    looked for, and the lines up to there.
    """
    delimiters: tuple[str, ...] = DELIMITERS
    for count, line in enumerate(file, 1):
        if match := re.fullmatch(r"\"?sep=(.)\"?\s*", line):  # what spreadsheets write for each other
            delimiters = (match[1],)
        elif line.strip():
            splits = [(next(csv.reader([line], delimiter=d, skipinitialspace=True)), d) for d in delimiters]
            found = [([" ".join(name.split()).lower() for name in names], d) for names, d in splits]
            names, delimiter = max(
                found, key=lambda split: ("spec" in split[0], "cin" in split[0], len(split[0]))
            )
            return names, delimiter, count
    raise ValueError(f"{path} holds no specs: give it a column named spec")


def _columns(names: list[str], path: Path) -> tuple[Callable[[tuple[str, ...]], ConvSpec], list[int]]:
    """What makes a spec of the cells that matter, and where these stand."""
    wanted = ("spec",) if "spec" in names or "cin" not in names else LAYER
    if missing := [name for name in wanted if name.lower() not in names]:
        found = ", ".join(shown(name) for name in names[:20])
        raise ValueError(
            f"{path} has no column {', '.join(missing)}: it has {found}; give it a column named spec"
        )
    if twice := [name for name in wanted if names.count(name.lower()) > 1]:
        raise ValueError(f"{path} has two columns named {twice[0]}: leave one of them")
    at = [names.index(name.lower()) for name in wanted]
    if wanted == ("spec",):
        return lambda cells: ConvSpec.parse(cells[0]), at
    return lambda cells: layer_spec(dict(zip(LAYER, cells, strict=True))), at


def layer_spec(row: Mapping[str, str]) -> ConvSpec:
    """One row of a table of layers: N, Cin, H, W, Cout, KH, KW, strides, pads,
    dilations, groups; 1-D where H is 1.
    """

    def number(name: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}(\.0*)?", row[name], re.ASCII):
            raise ValueError(f"{name} is {shown(row[name])}: write a whole number")
        return int(row[name].partition(".")[0])

    flat = number("H") == 1 != number("W")
    n = lambda *names: tuple(number(name) for name in (names[1:] if flat else names))  # noqa: E731
    padding = tuple((pad, pad) for pad in n("pad_h", "pad_w"))
    return ConvSpec(
        number("N"), number("Cin"), n("H", "W"), number("Cout"), n("KH", "KW"),
        n("stride_h", "stride_w"), padding, n("dil_h", "dil_w"), number("groups"),
    )
