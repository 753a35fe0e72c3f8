"""Commands that answer without measuring: list, suites, pick."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from algos.choice import Choice
from algos.contract import LAYOUTS
from algos.lower.search import chain, unsupported
from algos.spec import ConvSpec
from bench import text
from bench.cli.arguments import Command, names_of, threads_of, to_count, to_size, to_span
from bench.cli.output import Bar, print_json, show

WORTH = 0.8  # times the time: what is faster by less is not mentioned


def _list_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("spec", nargs="?", metavar="SPEC", help="say which of them support it, or why not")


def list_algorithms(arguments: argparse.Namespace) -> int:
    from algos.registry import refusal, registry

    spec = ConvSpec.parse(arguments.spec) if arguments.spec else None
    rows = []
    for algorithm in registry().values():
        missing = refusal(algorithm)
        row = {name: getattr(algorithm, name) for name in ("name", "family", "device", "runtime", "accuracy")}
        row |= {"available": missing is None, "why": missing or ""}
        if spec:
            reason = missing or refusal(algorithm, spec)
            via = "" if reason else chain(algorithm, spec).words
            row |= {"supported": reason is None, "why": reason or "", "via": via}
        rows.append(row)
    if arguments.json:
        return print_json(rows)
    words = [_yes_or_no(row) for row in rows]
    header = ("name", "family", "device", "runtime", "accuracy", "supported" if spec else "available")
    show(text.table(header, [(*list(row.values())[:5], word) for row, word in zip(rows, words, strict=True)]))
    return 0


def _yes_or_no(row: dict[str, Any]) -> str:
    if row.get("supported", row["available"]):
        return f"yes, via {via}" if (via := row.get("via")) else "yes"
    return f"{'no' if row['available'] else 'unavailable'}: {row['why']}"


LIST = Command(
    "list", "the algorithms: what they are, and available or why not",
    _list_arguments, list_algorithms,
)  # fmt: skip


def list_suites(arguments: argparse.Namespace) -> int:
    from bench.suites import suites

    rows: list[dict[str, Any]] = []
    for suite in suites().values():
        specs = {layer.spec for layer in suite.layers}
        rows.append({"name": suite.name, "specs": len(specs), "macs": suite.macs, "about": suite.about,
                     "source": suite.source})
    if arguments.json:
        return print_json(rows)
    cells = [(r["name"], str(r["specs"]), f"{r['macs'] / 1e9:.4g} G", r["about"], r["source"]) for r in rows]
    show(text.table(("name", "specs", "multiply-adds per image", "what", "source"), cells))
    return 0


SUITES = Command(
    "suites", "the suites: what is in them and where their figures come from",
    lambda command: None, list_suites,
)  # fmt: skip


def _pick_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("spec", metavar="SPEC")
    command.add_argument("--max-workspace", type=to_size, metavar="64MiB",
                         help="leave out what needs more memory")
    command.add_argument("--calls", type=to_count, metavar="N", help="share prepare over so many calls")
    command.add_argument("--threads", metavar="N")
    command.add_argument("--peers", action="store_true", help="rank other people's libraries too")
    command.add_argument("--layout", choices=LAYOUTS, default="nchw",
                         help="how the channels of the arrays lie: nhwc, those of a pixel together")
    command.add_argument("--algorithms", metavar="a,b", help="rank only these")
    command.add_argument("--max-error", type=float, metavar="1e-5",
                         help="leave out what may be off by more of the largest output")
    command.add_argument("--why", action="store_true", help="show what was left out, and why")
    command.add_argument("--budget", type=to_span, metavar="50ms",
                         help="let those take turns for so long that estimates cannot tell apart")
    command.add_argument("--measure", action="store_true", help="measure every candidate now, then pick")


def pick(arguments: argparse.Namespace) -> int:
    import algos
    from algos.plans import prepared
    from algos.tune import tune
    from bench.pool import measuring

    spec = ConvSpec.parse(arguments.spec)
    threads = threads_of(arguments.threads)[0] if arguments.threads else None
    if len(threads_of(arguments.threads)) > 1:
        raise ValueError(f"--threads {arguments.threads}: pick answers for one number of threads")
    if arguments.measure:
        _measure(spec, arguments)
    options: dict[str, Any] = {
        "threads": threads, "max_workspace_bytes": arguments.max_workspace, "peers": arguments.peers,
        "layout": arguments.layout, "algorithms": names_of(arguments.algorithms) or None,
        "max_error": arguments.max_error,
    }  # fmt: skip
    if arguments.budget:
        with measuring():
            tune(spec, arguments.budget, prepared, calls=arguments.calls, **options)
    choice = algos.pick(spec, calls=arguments.calls, **options)
    if arguments.json:
        return print_json({"spec": str(spec), **asdict(choice)})
    show(f"{answer(choice)}\n{choice.reason}")
    for line in better(spec, choice, arguments.calls, options):
        show(f"- {line}")
    ranked = [c for c in choice.candidates if not c.excluded]
    rows = [
        (
            text.via(c.algorithm, c.via),
            text.seconds(c.expected_s),
            text.seconds(c.run_s),
            text.seconds((c.prepare_s or 0) + c.compile_s),
            c.source,
            text.size(c.workspace_bytes),
        )
        for c in ranked
    ]
    header = ("algorithm", "expected per call", "run", "prepare", "source", "workspace")
    show(f"\n{text.table(header, rows)}")
    excluded = [(c.algorithm, c.excluded) for c in choice.candidates if c.excluded]
    if excluded and arguments.why:
        show("\n" + text.table(("excluded", "because"), excluded))
    elif excluded:
        show(f"\n{len(excluded)} others are left out: --why says why")
    if words := spec.unread_text():
        show(f"\nnote: the stride does not fit, {words}")
    return 0


def answer(choice: Choice) -> str:
    """One plain line."""
    best = choice.candidates[0]
    how = {"measured": "measured on this machine", "nearest": "estimated from a shape near it",
           "model": "estimated"}[choice.source]  # fmt: skip
    if choice.source != "measured" and best.low_s and best.high_s:
        how += f": {text.seconds(best.low_s)} to {text.seconds(best.high_s)}"
    return f"{choice.algorithm}: about {text.seconds(choice.expected_s)} a call, {how}"


def better(spec: ConvSpec, choice: Choice, calls: int | None, options: dict[str, Any]) -> Iterator[str]:
    """What the caller could do for a faster algorithm, or a surer answer."""
    import algos
    from algos.fitted import is_calibrated

    if calls is not None and (many := algos.pick(spec, **options)).expected_s < WORTH * choice.expected_s:
        yield f"with a plan for many calls {many.algorithm} takes {text.seconds(many.expected_s)} each"
    if spec.ndim == 2 and spec.rank is None and min(spec.kernel) > 1 and spec.direction != "weight_gradient":
        with contextlib.suppress(ValueError):  # those asked for may solve the spec, and not this one
            ranked = algos.pick(spec.with_(rank=1), calls=calls, **options)
            if ranked.expected_s < WORTH * choice.expected_s:
                yield (f"if each kernel is an outer product (rank1), {ranked.algorithm} takes "
                       f"{text.seconds(ranked.expected_s)}")  # fmt: skip
    if choice.source != "measured":
        yield "the same with --budget 50ms lets the best take turns, with --measure all, and remembers"
        if not is_calibrated():
            yield "convbench calibrate, a minute once, makes estimates of all shapes those of this machine"


PICK = Command("pick", "the fastest correct algorithm for a spec, and why", _pick_arguments, pick)


def _measure(spec: ConvSpec, arguments: argparse.Namespace) -> None:
    """Measure every candidate now; the machine remembers."""
    from algos.registry import registry
    from bench.cases import Settings, cases_of
    from bench.runner import Runner
    from bench.store import Store

    most, (threads,) = arguments.max_workspace, threads_of(arguments.threads)
    found = [
        a for a in registry().values()
        if a.family != "auto" and (arguments.peers or a.family != "peer")
        and (most is None or unsupported(a, spec) or chain(a, spec, threads).workspace_bytes(threads) <= most)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store, Bar() as progress:
        Runner(Settings(), store, progress).run(
            cases_of([spec], found, threads_of(arguments.threads), Settings())
        )
