"""The arguments of the command line, what they name, and their errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from algos.grammar import meant
from algos.spec import ConvSpec
from bench import text


class Usage(argparse.ArgumentParser):
    """One line for bad usage, with what was meant and the help of the command that was asked for."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {text.printable(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What is left over is a mistake of this command, not of the one above that would be told of it."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            name = rest[0].partition("=")[0]
            advice = meant(name, options, "it has " + ", ".join(options)) if name.startswith("-") else "give fewer"
            self.error(f"unknown {'option' if name.startswith('-') else 'argument'} {rest[0]!r}: {advice}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is none: {meant(value, names, 'use ' + ', '.join(names))}")


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
        command.add_argument("--algorithms", metavar="a,b", help="only these; own: all of ours, peers: all others")
        command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store and the report")
    command.add_argument("--budget", type=_seconds, metavar="SECONDS", help="stop after so long; resume later")
    command.add_argument("--launches", type=_count, metavar="N", help="fresh processes per case")
    command.add_argument("--decide", type=_share, metavar="3%", help="launches until leads of so much are known, up to 16")
    command.add_argument("--cold", action="store_true", help="flush the caches before every single call")
    command.add_argument("--fresh", action="store_true", help="measure again what stands in the store")
    command.add_argument("--tune", action="store_true", help="try other tunables too, and remember those that are faster")

    command = add("report", "HTML, Markdown, CSV and plots from what is stored")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store and the report")
    command.add_argument("--baseline", metavar="a,b", help="speed-ups are over the best of these on each spec; peers: all")

    command = add("history", "a case's time over the builds and days in a store, and the changes beyond the noise")
    command.add_argument("target", metavar="SUITE|SPEC|FILE.csv")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store")
    command.add_argument("--algorithms", metavar="a,b", help="only these")
    command.add_argument("--picture", type=Path, metavar="FOLDER", help="where the picture goes; report in the store's folder")

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

    command = add("duel", "two versions of code in the same launches; exit 1 on a slowdown, 3 when undecided")
    command.add_argument("old", metavar="OLD", help="git revision, checkout, folder or file of algorithms, or an algorithm")
    command.add_argument("new", metavar="NEW", help="the same; it is judged against OLD")
    command.add_argument("targets", nargs="+", metavar="SUITE|SPEC|FILE.csv")
    command.add_argument("--algorithms", metavar="a,b", help="only these; all of ours, or all of the folder, by default")
    command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument("--launches", type=_count, metavar="N", help="fresh processes per side at most (8)")
    command.add_argument("--threshold", type=_share, default=0.05, metavar="5%%", help="the slowdown that matters")
    command.add_argument("--budget", type=_seconds, metavar="SECONDS", help="stop after so long; what is open is undecided")
    command.add_argument("--allow-undecided", action="store_true", help="exit 0 where nothing slower was found")

    command = add("twins", "how far verdicts can be trusted here: identical code, and slowdowns that are known")
    command.add_argument("--pairs", type=_count, default=24, metavar="N", help="so many of either (24)")
    command.add_argument("--neighbour", action="store_true", help="beside a process that uses one core half of the time")
    command.add_argument("--budget", type=_seconds, metavar="SECONDS", help="begin no further twelve pairs after so long")

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


def _share(value: str) -> float:
    """3% or 0.03 as 0.03."""
    try:
        number = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        number = -1.0
    if not 0.001 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no share from 0.1% to 99%, like 3%")
    return number


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


# ---- what they name ---------------------------------------------------------------------------------------------


def specs_of(arguments: argparse.Namespace) -> tuple[list[ConvSpec], Any]:
    """The specs that the targets and the sweep name, and how to measure them."""
    from bench.suites import resolve
    from bench.work import sweep

    specs, settings = resolve(arguments.targets, arguments.batch)
    if arguments.sizes or arguments.kernels:
        if not (arguments.sizes and arguments.kernels):
            raise ValueError("a sweep needs both --sizes and --kernels, like --sizes 64,256 --kernels 3,7")
        template = (arguments.template,) if arguments.template else ()
        specs += sweep(shapes_of(arguments.sizes), shapes_of(arguments.kernels), *template)
    elif arguments.template:
        raise ValueError("--spec is the template of a sweep: give --sizes and --kernels too, or the spec by itself")
    if not specs:
        raise ValueError("nothing to do: name a suite (convbench suites), a spec or a CSV file, or use --sizes and --kernels")
    return list(dict.fromkeys(specs)), settings


def shapes_of(values: str) -> list[tuple[int, ...]]:
    """``64,256,640x480`` -> tuples of one number, or one per axis."""
    shapes = []
    for entry in values.split(","):
        parts = entry.split("x")
        if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            raise ValueError(f"{entry!r} is not a size: write whole numbers like 64,256 or 640x480")
        shapes.append(tuple(map(int, parts)))
    return shapes


def names_of(values: str | None) -> list[str]:
    return [name for name in (values or "").split(",") if name]


def algorithms_of(arguments: argparse.Namespace) -> list[Any]:
    """The named algorithms; all, or all of a kind, that the targets are meant for."""
    from algos.registry import get, registry
    from bench.suites import suited

    every = list(registry().values())
    if arguments.algorithms is None:
        return suited(arguments.targets, every)
    kinds = {"own": [a for a in every if a.family not in ("peer", "auto")], "peers": [a for a in every if a.family == "peer"]}
    found: list[Any] = []
    for name in names_of(arguments.algorithms):
        found += suited(arguments.targets, kinds[name]) if name in kinds else [get(name)]
    if not found:
        raise ValueError("--algorithms names none: write --algorithms a,b, with names from convbench list")
    return list(dict.fromkeys(found))


def threads_of(values: str | None) -> list[int]:
    from algos.functional import checked_threads

    counts = []
    for entry in values.split(",") if values else [None]:
        if entry is not None and not (entry.isascii() and entry.isdigit() and len(entry) < 10):
            raise ValueError(f"threads {entry!r} is not a whole number: write --threads 1,2")
        counts.append(checked_threads(None if entry is None else int(entry)))
    return counts
