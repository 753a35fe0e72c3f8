"""A table as rows of cells, each with its text and what it is sorted by; as aligned text and as Markdown."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reports.style import clean, short

PART = 5000  # rows that are made text together
SHORTEST = 11  # characters of a column that gives way


class Cell(NamedTuple):
    """What is shown, and what it is sorted by."""

    text: str
    key: float | str

    @classmethod
    def of(cls, value: Any) -> Cell:
        """Text as it is, whole numbers with their value as key."""
        if isinstance(value, Cell):
            # NaN sorts nowhere
            return cls(clean(value.text), math.inf if value.key != value.key else value.key)
        if isinstance(value, float) and math.isnan(value):
            return cls("-", math.inf)
        return cls(clean(value), value if isinstance(value, int | float) else clean(value))


class Made(Sequence[tuple[Cell, ...]]):
    """``make(items)`` of some items, each time that they are asked for: cells of many rows are not held
    together.
    """

    def __init__(
        self, make: Callable[[Sequence[Any]], Iterable[tuple[Cell, ...]]], items: Sequence[Any]
    ) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, at: Any) -> Any:
        return tuple(self._make(self._items[at])) if isinstance(at, slice) else self[at : at + 1 or None][0]

    def __iter__(self) -> Iterator[tuple[Cell, ...]]:
        for start in range(0, len(self), PART):
            yield from self[start : start + PART]


@dataclass(frozen=True)
class Table:
    """Titles, rows of cells, and which columns are figures (right-aligned).

    Attributes
    ----------
    columns : tuple of str
    rows : sequence of tuples of Cell
        Made when they are asked for where they may be many.
    figures : frozenset of str
    empty : str
        What is said when there are no rows.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    figures: frozenset[str] = frozenset()
    empty: str = "None."

    def text(self, most: int | None = None) -> str:
        """Aligned columns; in lines of at most ``most`` characters if shorter text can do it, but specs, or
        the first column where there is none, are whole.
        """
        if not self.rows:
            return self.empty
        cells = [self.columns, *(tuple(cell.text for cell in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        whole = self.columns.index("spec") if "spec" in self.columns else 0
        elastic = [i for i, column in enumerate(self.columns) if i != whole and column not in self.figures]
        while most and elastic and sum(widths) + 2 * len(widths) - 2 > most:
            widest = max(elastic, key=lambda i: widths[i])
            if widths[widest] <= SHORTEST:
                break
            widths[widest] -= 1
        lines = []
        for row in cells:
            parts = [
                text.rjust(width) if column in self.figures else short(text, width).ljust(width)
                for text, width, column in zip(row, widths, self.columns, strict=True)
            ]
            lines.append("  ".join(parts).rstrip())
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def markdown(self, most: int | None = None) -> str:
        """A GitHub table of at most so many rows; every cell is escaped."""
        if not self.rows:
            return markdown_text(self.empty)
        marks = ["---:" if column in self.figures else "---" for column in self.columns]
        lines = [self.columns, marks,
                 *([markdown_text(cell.text) for cell in row] for row in self.rows[:most])]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        left = len(self.rows) - len(self.rows[:most])
        return f"{text}\n\nAnd {left:,} more rows: see the page." if left else text


def markdown_text(text: object) -> str:
    """One Markdown cell: pipes, markup, HTML and line ends are shown as text.
    Underscores inside words are harmless.
    """
    line = html.escape(clean(text), quote=False)
    line = re.sub(r"([\\`*|\[\]~])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
