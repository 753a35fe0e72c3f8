"""What the arguments of all commands share: a parser with errors in one line, kinds of values, what they
name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

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
            advice = (
                meant(name, options, "it has " + ", ".join(options)) if name.startswith("-") else "give fewer"
            )
            self.error(f"unknown {'option' if name.startswith('-') else 'argument'} {rest[0]!r}: {advice}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(action.choices)
            raise argparse.ArgumentError(
                action, f"{value!r} is none: {meant(value, names, 'use ' + ', '.join(names))}"
            )


class Command(NamedTuple):
    """A command: what it is, what adds its arguments, and what runs it, returning the exit code."""

    name: str
    about: str
    add_to: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def parser(known: Iterable[Command]) -> Usage:
    """Of all of them; the name of the chosen one arrives as ``command``."""
    top = Usage(
        prog="convbench",
        description="Every way to compute a convolution: checked, measured, and the fastest picked.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in known:
        own = commands.add_parser(
            command.name, help=command.about, description=command.about, allow_abbrev=False
        )
        own.add_argument("--json", action="store_true", help="print JSON")
        command.add_to(own)
    return top


# ---- kinds of values ---------------------------------------------------------------------------------------


def to_count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < len(value) < 10 and int(value)):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def to_share(value: str) -> float:
    """3% or 0.03 as 0.03."""
    try:
        number = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        number = -1.0
    if not 0.001 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no share from 0.1% to 99%, like 3%")
    return number


def to_seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds")
    return number


def to_span(value: str) -> float:
    """50ms, 2s or 0.05 as seconds."""
    from algos.tune import span_s

    try:
        return span_s(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_size(value: str) -> int:
    try:
        return text.parse_size(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_local(value: str) -> int:
    """local:4 as 4."""
    kind, _, count = value.partition(":")
    if kind != "local":
        raise argparse.ArgumentTypeError(f"{value!r} is not local:N, like local:4")
    return to_count(count)


def on_cluster(command: argparse.ArgumentParser) -> None:
    """Where a command runs that can run on many machines."""
    where = command.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="tcp://HOST:8786", help="on the machines of a Dask cluster")
    where.add_argument("--dask", type=to_local, metavar="local:N", help="on N Dask workers of this machine")


# ---- what they name ----------------------------------------------------------------------------------------


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
        raise ValueError(
            "--spec is the template of a sweep: give --sizes and --kernels too, or the spec by itself"
        )
    if not specs:
        raise ValueError(
            "nothing to do: name a suite (convbench suites), a spec or a CSV file, or use --sizes and "
            "--kernels"
        )
    named = tuple(name.partition(":")[0] for name in names_of(arguments.algorithms))
    return list(dict.fromkeys(specs)), replace(settings, named=named)


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
    from algos.registry import get, registry, usable
    from bench.suites import suited

    every = list(registry().values())
    if arguments.algorithms is None:
        return list(usable(suited(arguments.targets, every)))
    kinds = {
        "own": [a for a in every if a.family not in ("peer", "auto")],
        "peers": [a for a in every if a.family == "peer"],
    }
    found: list[Any] = []
    for name in names_of(arguments.algorithms):
        found += suited(arguments.targets, kinds[name]) if name in kinds else [get(name)]
    if not found:
        raise ValueError("--algorithms names none: write --algorithms a,b, with names from convbench list")
    return list(dict.fromkeys(usable(found)))


def threads_of(values: str | None) -> list[int]:
    from algos.engine.threads import checked_threads

    counts = []
    for entry in values.split(",") if values else [None]:
        if entry is not None and not (entry.isascii() and entry.isdigit() and len(entry) < 10):
            raise ValueError(f"threads {entry!r} is not a whole number: write --threads 1,2")
        counts.append(checked_threads(None if entry is None else int(entry)))
    return counts
