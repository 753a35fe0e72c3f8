"""What a command says: data to stdout, the rest to stderr, in whatever characters these can show."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from bench import perf_counter
from bench.text import printable

if TYPE_CHECKING:
    from bench.outcome import Progress

LINE_S = 30.0  # between two lines of progress


def open_streams() -> None:
    """Give closed standard streams a place, and every character something that it is shown as.

    Files that are opened later must not take the streams' numbers; a folder's name may hold what the encoding
    of the streams does not.
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
    """Progress on stderr: a bar on a terminal, elsewhere a line every ``LINE_S``; made
    between samples, never by a thread.
    """

    def __enter__(self) -> Any:
        from tqdm import tqdm

        from bench.outcome import Progress

        tqdm.monitor_interval = 0
        drawn = sys.stderr.isatty()
        self._bar = tqdm(file=sys.stderr, disable=not drawn, unit="case", mininterval=0, leave=False)
        self._started = perf_counter()
        self._next_s = self._started + LINE_S

        def advance(done: int, label: str) -> None:
            progress.done += done
            if not drawn:
                self._line(progress, label)
                return
            if self._bar.total != progress.total:
                self._bar.total = progress.total
            self._bar.set_description_str(printable(label)[:48], refresh=False)
            self._bar.update(done)

        progress = Progress(advance=advance)
        return progress

    def _line(self, progress: Progress, label: str) -> None:
        now = perf_counter()
        if now < self._next_s:
            return
        self._next_s = now + LINE_S
        spent_s = now - self._started
        done, total = progress.done, progress.total
        left = f"about {_span(spent_s * (total - done) / done)} left" if done else "time left not known yet"
        print(f"{done} of {total} cases in {_span(spent_s)}, {left}; now {printable(label)}", file=sys.stderr,
              flush=True)  # fmt: skip

    def __exit__(self, *ignored: object) -> None:
        self._bar.close()


def _span(span_s: float) -> str:
    """40 s, 12 min, 3.2 h."""
    return (
        f"{span_s:.0f} s"
        if span_s < 100
        else f"{span_s / 60:.0f} min"
        if span_s < 6000
        else f"{span_s / 3600:.1f} h"
    )
