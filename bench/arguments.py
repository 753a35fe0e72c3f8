"""The arguments of the command line, and their errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from bench import text


class Usage(argparse.ArgumentParser):
    """One line for bad usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {text.printable(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser(known: Iterable[str]) -> Usage:
    """Every command of ``known`` has its arguments here; the chosen name arrives as ``command``."""
    top = Usage(prog="convbench", description="Every way to compute a convolution: checked, measured, and the fastest picked.")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="print JSON")
        return command

    listing = add("list", "the algorithms: what they are, and available or why not")
    listing.add_argument("spec", nargs="?", metavar="SPEC", help="say which of them support it, or why not")
    add("suites", "the suites: what is in them and where their figures come from")

    for name, about in (("check", "correctness only"), ("run", "check, measure, store and report")):
        command = add(name, about)
        command.add_argument("targets", nargs="*", metavar="SUITE|SPEC|FILE.csv")
        command.add_argument("--sizes", metavar="64,256", help="sweep: sizes of the picture")
        command.add_argument("--kernels", metavar="3,7", help="sweep: sizes of the kernel")
        command.add_argument("--spec", dest="template", metavar="TEMPLATE", help="sweep: everything else, as a spec")
        command.add_argument("--batch", type=_count, metavar="N", help="every suite, spec and row at this batch")
        command.add_argument("--algorithms", metavar="a,b", help="only these")
        command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store and the report")
    command.add_argument("--budget", type=_seconds, metavar="SECONDS", help="stop after so long; resume later")
    command.add_argument("--launches", type=_count, metavar="N", help="fresh processes per case")
    command.add_argument("--cold", action="store_true", help="flush the caches before every single call")
    command.add_argument("--fresh", action="store_true", help="measure again what stands in the store")

    command = add("report", "HTML, Markdown, CSV and plots from what is stored")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store and the report")
    command.add_argument("--baseline", metavar="a,b", help="speed-ups are over the best of these on each spec")

    command = add("pick", "the fastest correct algorithm for a spec, and why")
    command.add_argument("spec", metavar="SPEC")
    command.add_argument("--max-workspace", type=_bytes, metavar="64MiB", help="leave out what needs more memory")
    command.add_argument("--calls", type=_count, metavar="N", help="share prepare over so many calls")
    command.add_argument("--threads", metavar="N")
    command.add_argument("--peers", action="store_true", help="rank other people's libraries too")
    command.add_argument("--measure", action="store_true", help="measure every candidate now, then pick")

    command = add("compare", "two stores: faster, slower, same or undecided; exit 1 when something became slower")
    command.add_argument("old", type=Path, metavar="OLD", help="folder of a store")
    command.add_argument("new", type=Path, metavar="NEW", help="folder of a store")

    command = add("merge", "add the records of several stores to one; machines stay apart")
    command.add_argument("merged", type=Path, metavar="OUT", help="folder of the store that receives")
    command.add_argument("folders", type=Path, metavar="IN", nargs="+", help="folders of stores")

    command = add("import", "records of pytest-benchmark: tagged, shown, never compared or picked from")
    command.add_argument("file", type=Path, metavar="FILE.json")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store and the report")
    assert set(commands.choices) == set(known)
    return top


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < len(value) < 10 and int(value)):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds")
    return number


def _bytes(value: str) -> int:
    try:
        return text.parse_size(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
