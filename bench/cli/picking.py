"""Commands about the picker: what it knows of this machine."""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench import perf_counter
from bench.cli.arguments import Command, to_count, to_seconds
from bench.cli.output import Bar, complain, print_json, show

SHAPES_SHARE = 1 / 3
TURNS = 10  # of a problem that is judged, in two halves


def _calibrate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--budget", type=to_seconds, metavar="SECONDS",
                         help="of all that it does; 55 by default")
    command.add_argument("--problems", type=to_count, metavar="N", help="100 by default")
    command.add_argument("--times", type=Path, metavar="FILE",
                         help="keep the times there, and go on with those that lie there")
    command.add_argument("--shapes", action=argparse.BooleanOptionalAction, default=True,
                         help="which shape of the microkernels is the fastest here, first, for a third of "
                              "the budget at most")
    command.add_argument("--row", action="store_true",
                         help="for maintainers: make this machine's row of those that ship with the package")


def calibrate(arguments: argparse.Namespace) -> int:
    from algos.fitted import NONE, PRIORS, keep, path, prior
    from algos.host import fingerprint
    from bench import calibrate as own

    try:
        keep({})  # where nothing can be kept it is said before the minute
    except OSError as error:
        raise ValueError(f"a calibration cannot be kept ({error.strerror}): set CONVBENCH_DATA to a folder "
                         "that may be written") from None  # fmt: skip
    found = own.read(arguments.times) if arguments.times else []
    about = fingerprint()
    start = NONE if arguments.row else prior(about)
    budget_s = own.BUDGET_S if arguments.budget is None else arguments.budget
    end = perf_counter() + budget_s
    learnt = _shapes(budget_s * SHAPES_SHARE) if arguments.shapes else {}
    try:
        left = _measure(arguments, found, end)
    except (KeyboardInterrupt, SystemExit) as end:  # what was measured still counts
        kept = not arguments.row and own.remember_more(found, about, start)
        if isinstance(end, SystemExit):
            raise
        if kept:
            raise KeyboardInterrupt(f"what {len(found)} problems taught is kept") from None
        raise
    if not found:
        complain("nothing was measured: the budget ended first")
        return 2
    fit = own.fitted(found, about, start)
    if arguments.row:
        own.ship(fit)
    else:
        own.remember(fit)
    row: dict[str, Any] = {"problems": len(found), "times": sum(len(t.seconds) for t in found),
                           "error": fit.error, "error_before": own.off(found, start),
                           "left": left, "stored": str(PRIORS if arguments.row else path()),
                           "shapes": learnt}  # fmt: skip
    if arguments.json:
        return print_json(row)
    if learnt:
        show("microkernels, time over that of the first shape: "
             + ", ".join(f"{shape} {ratio:.2f}" for shape, ratio in learnt.items()))  # fmt: skip
    gained = f"now by {factor(fit.error)} on problems that it has not seen"
    if fit.error >= row["error_before"]:
        gained = "and what it goes by was as good as these tell"
    show(f"{row['times']} times of {row['problems']} problems: the model was off by a factor of "
         f"{factor(row['error_before'])}, {gained}\nstored in {row['stored']}")  # fmt: skip
    if left:
        show(f"the budget ended before {left} more problems: the same command again finds code compiled and "
             "gets further")  # fmt: skip
    return 0


def _shapes(compiling_s: float) -> dict[str, float]:
    """Times of the microkernels' shapes; what is measured from then on uses the fastest."""
    from bench.pool import measuring
    from bench.shapes import learn

    with measuring():
        return {str(shape): ratio for shape, ratio in learn(compiling_s).items()}


def _measure(arguments: argparse.Namespace, found: list[Any], end: float) -> int:
    """Add to ``found`` what can be measured until ``end``; how many problems are left."""
    from bench import calibrate as own
    from bench.cli.measuring import warn_if_busy
    from bench.pool import measuring
    from bench.space import PROBLEMS, space

    known = {(times.spec, times.threads) for times in found}
    asked = [problem for problem in space(arguments.problems or PROBLEMS, arguments.row)
             if problem not in known]  # fmt: skip
    warn_if_busy()
    with Bar() as progress:
        progress.total = len(asked)
        ready = own.compiled(asked, end - perf_counter(), arguments.row, partial(progress.advance, 0))
        with measuring():
            for times in own.measure(ready, end - perf_counter(), every=arguments.row):
                found.append(times)
                if arguments.times:
                    with arguments.times.open("a") as file:
                        file.write(own.line_of(times) + "\n")
                progress.advance(1, str(times.spec))
    return len(asked) - progress.done


def _regret_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("targets", nargs="*", metavar="SUITE|SPEC|FILE.csv",
                         help="measure these now; without, what --out holds is judged")
    command.add_argument("--batch", type=to_count, metavar="N", help="every spec at this batch")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store")
    command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument("--budget", type=to_seconds, default=300.0, metavar="SECONDS", help="300 by default")
    command.add_argument("--tuned", metavar="50ms", help="also after turns on doubt for so long, ties as 1")


def regret(arguments: argparse.Namespace) -> int:
    from algos import wisdom
    from algos.host import fingerprint
    from bench import text
    from bench.regret_by import rows

    if arguments.tuned and not arguments.targets:
        raise ValueError("--tuned measures: name a suite or specs")
    cases = _measured(arguments) if arguments.targets else _stored(arguments.out)
    if not cases:
        complain("there is nothing to judge by: name a suite or specs, or give the folder of a store in "
                 "which two algorithms were measured in two launches")  # fmt: skip
        return 2
    found = list(rows(cases, wisdom.recall(fingerprint()["id"])))
    if arguments.json:
        return print_json(found)
    header = ("by", "problems", "picked by", "number", "mean", "95th percentile", "worst", "on")
    cells = [(row["split"] if row["group"] else "", row["group"] or "all", row["source"], str(row["specs"]),
              f"{row['mean']:.3f}", f"{row['p95']:.2f}", f"{row['worst']:.2f}", row["worst_spec"])
             for row in found]  # fmt: skip
    show("Time of the picked algorithm over that of the best, as told by other turns than who is the best.\n")
    show(text.table(header, cells))
    return 0


def _measured(arguments: argparse.Namespace) -> list[Any]:
    from algos.tune import span_s
    from bench.calibrate import measure
    from bench.cli.arguments import threads_of
    from bench.cli.measuring import warn_if_busy
    from bench.pool import measuring
    from bench.regret_by import Timed
    from bench.suites import resolve

    tune_s = span_s(arguments.tuned) if arguments.tuned else 0.0
    specs, _ = resolve(arguments.targets, arguments.batch)
    asked = [(spec, threads) for spec in dict.fromkeys(specs) for threads in threads_of(arguments.threads)]
    warn_if_busy()
    found = []
    with measuring(), Bar() as progress:
        progress.total = len(asked)
        for times in measure(asked, arguments.budget, TURNS, tune_s, every=True):
            found.append(Timed(times.spec, times.threads, times.halves, times.tuned))
            progress.advance(1, str(times.spec))
    if len(found) < len(asked):
        complain(f"the budget ended after {len(found)} of {len(asked)} problems")
    return [case for case in found if case.halves[0]]


def _stored(folder: Path) -> list[Any]:
    from bench.regret import Regret
    from bench.store import Store

    found = Regret()
    with Store(folder, create=False) as store:
        for _ in found.watch(store.stream(brief=True)):
            pass
    return list(found.cases())


REGRET = Command("regret", "how far the picker's choices are from the best, by what it goes by",
                 _regret_arguments, regret)  # fmt: skip


def _wisdom_arguments(command: argparse.ArgumentParser) -> None:
    parts = command.add_subparsers(required=True, metavar="export|import|show|forget", dest="what")
    export = parts.add_parser("export", help="write what this machine knows, as JSON")
    export.add_argument("file", type=Path, metavar="FILE.json")
    take_in = parts.add_parser("import", help="take in such a file; another machine's is a prior only")
    take_in.add_argument("file", type=Path, metavar="FILE.json")
    shown = parts.add_parser("show", help="what is known, by machine, or of a spec")
    shown.add_argument("spec", nargs="?", metavar="SPEC")
    forget = parts.add_parser("forget", help="forget a spec, a machine, or all")
    forget.add_argument("spec", nargs="?", metavar="SPEC")
    forget.add_argument("--machine", metavar="ID", default="", help="what is known of this machine")
    forget.add_argument("--all", action="store_true", help="everything, the calibration too")
    for part in (export, take_in, shown, forget):
        part.add_argument("--json", action="store_true", help="print JSON")


def wisdom(arguments: argparse.Namespace) -> int:
    return {"export": _export, "import": _import, "show": _show, "forget": _forget}[arguments.what](arguments)


def _export(arguments: argparse.Namespace) -> int:
    from bench.wisdom_file import exported, save

    found = exported()
    save(arguments.file, found)
    return _counted(found, f"to {arguments.file}", arguments)


def _import(arguments: argparse.Namespace) -> int:
    from bench.wisdom_file import load, taken_in

    found = load(arguments.file)
    taken_in(found)
    return _counted(found, f"from {arguments.file}", arguments)


def _counted(found: dict[str, Any], where: str, arguments: argparse.Namespace) -> int:
    counts = {name: len(found[name]) for name in ("entries", "machines", "calibrations")}
    if arguments.json:
        return print_json(counts)
    show(f"{', '.join(f'{count} {name}' for name, count in counts.items())} {where}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from algos import wisdom as known
    from algos.fitted import calibrations, is_calibrated
    from algos.host import fingerprint
    from algos.spec import ConvSpec
    from bench import text
    from bench.wisdom_file import own_facts

    own = fingerprint()["id"]
    if arguments.spec:
        spec = str(ConvSpec.parse(arguments.spec))
        entries = [e for one in sorted(known.machines()) for e in known.memory(one).on([spec])]
        if arguments.json:
            return print_json([asdict(entry) for entry in entries])
        cells = [("this" if e.machine == own else e.machine, _with_tunables(e), str(e.threads), e.status,
                  text.seconds(e.run_s) if e.run_s else "-", e.verdict or "-", e.reason)
                 for e in sorted(entries, key=lambda e: (e.machine != own, e.threads, e.run_s))]  # fmt: skip
        show(text.table(("machine", "algorithm", "threads", "status", "run", "verdict", "reason"), cells))
        return 0
    facts = {**known.facts(), own: own_facts()}
    rows = []
    for one in sorted({*known.machines(), *calibrations(), own}, key=lambda one: (one != own, one)):
        held = known.recall(one)
        about = facts.get(one, {})
        rows.append({"machine": one, "this": one == own, "cpu": about.get("cpu", "unknown"),
                     "cores": about.get("cores"), "specs": len({entry.spec for entry in held}),
                     "entries": len(held),
                     "calibrated": is_calibrated() if one == own else one in calibrations()})  # fmt: skip
    if arguments.json:
        return print_json(rows)
    table = [(f"{row['machine']}{' (this)' if row['this'] else ''}", row["cpu"], str(row["cores"] or "-"),
              str(row["specs"]), str(row["entries"]), "yes" if row["calibrated"] else "no")
             for row in rows]  # fmt: skip
    show(text.table(("machine", "processor", "cores", "specs", "entries", "calibrated"), table))
    show(f"in {known.path()}")
    return 0


def _with_tunables(entry: Any) -> str:
    """The algorithm of an entry, as ``pick`` names it."""
    from algos.registry import registry

    own = registry()[entry.algorithm].tunables() if entry.algorithm in registry() else {}
    told: dict[str, Any] = {}
    with suppress(ValueError, TypeError):  # imported, from who knows where
        told = dict(json.loads(entry.tunables))
    other = (f"{name}={value}" for name, value in told.items() if own.get(name) != value)
    return ":".join([entry.algorithm, *other])


def _forget(arguments: argparse.Namespace) -> int:
    from algos import fitted
    from algos import wisdom as known
    from algos.spec import ConvSpec

    if not (arguments.spec or arguments.machine or arguments.all):
        raise ValueError("forget what? name a spec, --machine ID or --all")
    spec = str(ConvSpec.parse(arguments.spec)) if arguments.spec else ""
    try:
        count = known.forget(arguments.machine, spec)
    except sqlite3.Error as error:
        raise ValueError(f"{known.path()} cannot be changed ({error}): delete it to forget all") from None
    if arguments.all:
        fitted.path().unlink(missing_ok=True)
        fitted.anew()
    if arguments.json:
        return print_json({"forgotten": count})
    show(f"{count} entries are forgotten")
    return 0


WISDOM = Command("wisdom", "what the picker remembers: export, import, show, forget",
                 _wisdom_arguments, wisdom)  # fmt: skip


def factor(error: float) -> str:
    """Of the standard deviation of a logarithm."""
    return f"{math.exp(error):.2f}"


CALIBRATE = Command("calibrate", "a minute of small problems: how fast each algorithm is on this machine",
                    _calibrate_arguments, calibrate)  # fmt: skip
