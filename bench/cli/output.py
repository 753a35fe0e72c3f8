"""What a command says: data to stdout, the rest to stderr, in whatever characters these can show."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from bench.text import printable


def open_streams() -> None:
    """Give closed standard streams a place, and every character something that it is shown as.

    Files that are opened later must not take the streams' numbers; a folder's name may hold what the encoding of the
    streams does not.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open to the end
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a notebook's stream takes everything
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(text: object) -> None:
    """Print ``text`` as data, line by line without what could drive the terminal."""
    print("\n".join(printable(line) for line in str(text).split("\n")))


def complain(message: object) -> None:
    """One line on stderr."""
    print(f"convbench: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))
    return 0


class Bar:
    """A progress bar on stderr, on a terminal only, drawn between samples and never by a thread."""

    def __enter__(self) -> Any:
        from tqdm import tqdm

        from bench.runner import Progress

        tqdm.monitor_interval = 0
        self._bar = tqdm(file=sys.stderr, disable=not sys.stderr.isatty(), unit="case", mininterval=0, leave=False)

        def advance(done: int, label: str) -> None:
            if self._bar.total != progress.total:
                self._bar.total = progress.total
            self._bar.set_description_str(printable(label)[:48], refresh=False)
            self._bar.update(done)

        progress = Progress(advance=advance)
        return progress

    def __exit__(self, *ignored: object) -> None:
        self._bar.close()
