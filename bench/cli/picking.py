"""Commands about the picker: what it knows of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cli.arguments import Command, to_count, to_seconds
from bench.cli.output import Bar, complain, print_json, show

TURNS = 10  # of a problem that is judged, in two halves


def _calibrate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--budget", type=to_seconds, metavar="SECONDS", help="55 by default")
    command.add_argument("--problems", type=to_count, metavar="N", help="100 by default")
    command.add_argument("--times", type=Path, metavar="FILE",
                         help="keep the times there, and go on with those that lie there")
    command.add_argument("--row", action="store_true",
                         help="for maintainers: make this machine's row of those that ship with the package")


def calibrate(arguments: argparse.Namespace) -> int:
    from algos.fitted import NONE, PRIORS, prior
    from algos.host import fingerprint
    from bench import calibrate as own
    from bench.cli.measuring import warn_if_busy
    from bench.pool import measuring

    count = arguments.problems or own.PROBLEMS
    found = own.read(arguments.times) if arguments.times else []
    warn_if_busy()
    with measuring(), Bar() as progress:
        budget = own.BUDGET_S if arguments.budget is None else arguments.budget
        known = {(times.spec, times.threads) for times in found}
        asked = [problem for problem in own.space(count) if problem not in known]
        progress.total = len(asked)
        for times in own.measure(asked, budget):
            found.append(times)
            if arguments.times:
                with arguments.times.open("a") as file:
                    file.write(own.line_of(times) + "\n")
            progress.advance(1, str(times.spec))
    if not found:
        complain("nothing was measured: the budget ended first")
        return 2
    about = fingerprint()
    start = NONE if arguments.row else prior(about)
    fit = own.fitted(found, about, start)
    if arguments.row:
        own.ship(fit)
    else:
        own.remember(fit)
    where = PRIORS if arguments.row else own.path()
    row: dict[str, Any] = {"problems": len(found), "times": sum(len(t.seconds) for t in found),
                           "error": fit.error, "error_before": own.off(found, start), "stored": str(where)}
    if arguments.json:
        return print_json(row)
    show(f"{row['times']} times of {row['problems']} problems: the model was off by a factor of "
         f"{factor(row['error_before'])}, now by {factor(row['error'])} on problems that it has not seen\n"
         f"stored in {where}")  # fmt: skip
    return 0


def _regret_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("targets", nargs="*", metavar="SUITE|SPEC|FILE.csv",
                         help="measure these now; without, what --out holds is judged")
    command.add_argument("--batch", type=to_count, metavar="N", help="every spec at this batch")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store")
    command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument("--budget", type=to_seconds, default=300.0, metavar="SECONDS", help="300 by default")


def regret(arguments: argparse.Namespace) -> int:
    from algos import wisdom
    from algos.host import fingerprint
    from bench import text
    from bench.regret_by import rows

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
    from bench.calibrate import measure
    from bench.cli.arguments import threads_of
    from bench.cli.measuring import warn_if_busy
    from bench.pool import measuring
    from bench.regret_by import Timed
    from bench.suites import resolve

    specs, _ = resolve(arguments.targets, arguments.batch)
    asked = [(spec, threads) for spec in dict.fromkeys(specs) for threads in threads_of(arguments.threads)]
    warn_if_busy()
    found = []
    with measuring(), Bar() as progress:
        progress.total = len(asked)
        for times in measure(asked, arguments.budget, TURNS):
            found.append(Timed(times.spec, times.threads, times.halves))
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


def factor(error: float) -> str:
    """Of the standard deviation of a logarithm."""
    return f"{2.718281828459045**error:.2f}"


CALIBRATE = Command("calibrate", "a minute of small problems: how fast each algorithm is on this machine",
                    _calibrate_arguments, calibrate)  # fmt: skip
