"""Commands that compute: check and run."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import mood, seal, text
from bench.cli.arguments import (
    Command,
    algorithms_of,
    on_cluster,
    specs_of,
    threads_of,
    to_count,
    to_seconds,
    to_share,
)
from bench.cli.networks import in_sequence
from bench.cli.output import Bar, complain, print_json, show
from bench.cli.storing import write_report

FAILED = ("wrong", "crashed", "timeout", "error")
GO_ON = "run the same command again, without --fresh, to go on"
MOST_CASES = 500_000  # a day's work and a gigabyte of records


def _targets(command: argparse.ArgumentParser) -> None:
    """What is checked or measured."""
    command.add_argument("targets", nargs="*", metavar="SUITE|SPEC|FILE.csv")
    command.add_argument("--sizes", metavar="64,256", help="sweep: sizes of the picture")
    command.add_argument("--kernels", metavar="3,7", help="sweep: sizes of the kernel")
    command.add_argument(
        "--spec", dest="template", metavar="TEMPLATE", help="sweep: everything else, as a spec"
    )
    command.add_argument(
        "--batch", type=to_count, metavar="N", help="every suite, spec and row at this batch"
    )
    command.add_argument(
        "--algorithms", metavar="a,b", help="only these; own: all of ours, peers: all others"
    )
    command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")


@seal.closed("bench.runner")
def check(arguments: argparse.Namespace) -> int:
    from bench.cases import cases_of
    from bench.runner import Runner

    specs, settings = specs_of(arguments)
    wanted, threads = algorithms_of(arguments), threads_of(arguments.threads)
    _bounded(specs, wanted, threads)
    with Bar() as progress:
        records = Runner(settings, None, progress).run(cases_of(specs, wanted, threads, settings)).records
    failed = [record for record in records if record.status in FAILED]
    checked = [record for record in records if record.status in ("ok", *FAILED)]
    if arguments.json:
        names = ("spec", "algorithm", "threads", "status", "reason", "error_ratio", "max_error")
        print_json([{name: getattr(record, name) for name in names} for record in records])
    else:
        rows = [
            (
                r.spec,
                r.algorithm,
                r.status,
                "-" if r.error_ratio is None else f"{r.error_ratio:.2g}",
                r.reason,
            )
            for r in records
            if r.status not in ("unsupported", "unavailable") or arguments.algorithms or not checked
        ]
        show(text.table(("spec", "algorithm", "verdict", "error/bound", "reason"), rows))
        show(
            f"{len(checked) - len(failed)} ok, {len(failed)} failed, {len(records) - len(checked)} not "
            "checked"
        )
    if not checked:
        return _nothing("checked", records)
    return 1 if failed else 0


CHECK = Command("check", "correctness only", _targets, check)


def _run_arguments(command: argparse.ArgumentParser) -> None:
    _targets(command)
    command.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of the store and the report"
    )
    command.add_argument(
        "--budget", type=to_seconds, metavar="SECONDS", help="stop after so long; resume later"
    )
    command.add_argument("--launches", type=to_count, metavar="N", help="fresh processes per case")
    command.add_argument(
        "--decide", type=to_share, metavar="3%", help="launches until leads of so much are known, up to 16"
    )
    command.add_argument("--cold", action="store_true", help="flush the caches before every single call")
    command.add_argument("--fresh", action="store_true", help="measure again what stands in the store")
    command.add_argument(
        "--tune", action="store_true", help="try other tunables too, and remember those that are faster"
    )
    command.add_argument(
        "--in-sequence", metavar="NETWORK", help="its layers as they follow each other, and each alone"
    )
    on_cluster(command)
    command.add_argument("--pool", action="store_true", help="machines of one kind count as one")


def run(arguments: argparse.Namespace) -> int:
    if arguments.in_sequence is None:
        if arguments.pool and arguments.scheduler is None and arguments.dask is None:
            raise ValueError("--pool is about the machines of a cluster: give --scheduler too")
        return measured(arguments)
    if arguments.targets or arguments.sizes or arguments.kernels:
        raise ValueError("--in-sequence measures a network by itself: leave other targets out")
    return in_sequence(arguments)


@seal.closed("bench.runner")
def measured(arguments: argparse.Namespace) -> int:
    """What the targets name, into the store and the report."""
    from algos.host import fingerprint
    from bench.calibrate import learn
    from bench.cases import cases_of
    from bench.peaks import peaks
    from bench.pool import measuring
    from bench.runner import Runner
    from bench.store import Store, StoreError
    from bench.suites import suites

    specs, settings = specs_of(arguments)
    settings = replace(
        settings, cold=arguments.cold, fresh=arguments.fresh, run_budget_s=arguments.budget,
        launches=arguments.launches or settings.launches, tune=arguments.tune, decide=arguments.decide,
    )
    wanted, threads = algorithms_of(arguments), threads_of(arguments.threads)
    _bounded(specs, wanted, threads)
    with Store(arguments.out) as store:
        store.ask(name for name in arguments.targets if name in suites())
        with Bar() as progress, _controller(arguments, settings, store, wanted, progress) as controller:
            if not isinstance(controller, Runner):
                run_all = partial(controller.run, specs, threads)
            else:
                about = fingerprint()
                with measuring():
                    store.put_machine({**about, "peaks": peaks(about["id"])})
                run_all = partial(controller.run, cases_of(specs, wanted, threads, settings))
                warn_if_busy()
            try:
                outcome = run_all()
            except KeyboardInterrupt:
                done = sum(len(record.launches) for record in controller.outcome.records)
                raise KeyboardInterrupt(f"{done} launches are stored in {store.path}; {GO_ON}") from None
            except StoreError:
                _told(controller.outcome.records, arguments)
                raise
        learn(record for record in outcome.records if record.machine == fingerprint()["id"])
        if not any(record.launches or record.status != "ok" for record in outcome.records):
            return _nothing("measured", outcome.records)  # the budget left no time for the first one
        command, asked = "convbench " + shlex.join(sys.argv[1:]), set(map(str, specs))
        page, frame, against = write_report(store, arguments.out, (), command, asked)
    return _answer(arguments, outcome, page, frame, against)


RUN = Command("run", "check, measure, store and report", _run_arguments, run)


@contextmanager
def _controller(
    arguments: argparse.Namespace, settings: Any, store: Any, algorithms: Sequence[Any], progress: Any
) -> Iterator[Any]:
    """What decides which launches are missing: with this machine's processes, or with those of a cluster."""
    from bench.runner import Runner

    if arguments.scheduler is None and arguments.dask is None:
        yield Runner(settings, store, progress)
        return
    from algos.registry import variant_name
    from bench.cluster import Sweep, connected
    from bench.machines import spread_lines

    with connected(arguments.scheduler, arguments.dask or 0) as client:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        names = [variant_name(algorithm) for algorithm in algorithms]
        sweep = Sweep(client, settings, store, names, progress, arguments.pool)
        yield sweep
        for line in spread_lines(sweep.machines.values()):
            print(line, file=sys.stderr)


def warn_if_busy() -> None:
    """One line where others want the cores, before anything is measured."""
    if (load := mood.load_now()) >= mood.BUSY:
        complain(f"the machine is busy, {load:.1f} other tasks a core want to run: it will take longer and "
                 "more will stay undecided than on a calm one")  # fmt: skip


def _answer(arguments: argparse.Namespace, outcome: Any, page: Any, frame: Any, against: Any) -> int:
    """Print what a run found; its exit code."""
    from bench.tuning import own_tunables, remember
    from bench.versus import wanted
    from reports.findings.networks import layer_names
    from reports.findings.tunings import tunings
    from reports.tables import to_dicts, winners_dicts, winners_text
    from reports.tuning import tunings_table
    from reports.versus import versus_text

    keys = {(record.spec, record.threads) for record in outcome.records}
    chosen = frame[[(s, t) in keys for s, t in zip(frame["spec"], frame["threads"], strict=True)]]
    tuned = tunings(chosen, own_tunables()) if arguments.tune else []
    remember(tuned, outcome.records)
    if arguments.json:
        print_json(
            {
                "winners": winners_dicts(chosen),
                "versus": to_dicts(against),
                "tuned": [t._asdict() for t in tuned],
                "shares": outcome.spent.shares(),
                "wall_s": outcome.wall_s,
                "measured": outcome.measured,
                "complete": outcome.complete,
                "report": str(page),
            }
        )
    else:
        networks, _ = wanted(arguments.targets, ())
        show(winners_text(chosen, layer_names(networks)))
        if arguments.tune:
            show(f"\n{tunings_table(tuned).text()}")
        if "versus" in arguments.targets:
            show(f"\n{versus_text(against)}")
        show(f"\nreport: {page}")
        if not outcome.complete:
            show(f"the budget ended the run: {GO_ON}")
    if any(record.status == "wrong" for record in outcome.records):
        return 1
    return 0 if any(record.launches for record in outcome.records) else _nothing("measured", outcome.records)


def _told(records: Sequence[Any], arguments: argparse.Namespace) -> None:
    """What was measured before the store was lost, which holds none of it."""
    from reports.findings.frame import to_frame
    from reports.tables import winners_dicts, winners_text

    if measured := [record for record in records if record.launches]:
        frame = to_frame(measured)
        if arguments.json:
            print_json({"winners": winners_dicts(frame), "complete": False})
        else:
            show(winners_text(frame))


def _nothing(done: str, records: Sequence[Any]) -> int:
    """Nothing was ``done``: say so with the reasons that the cases give; the exit code."""
    reasons = Counter(f"{record.status}: {record.reason}" for record in records if record.status != "ok")
    words = (
        "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        or "the budget ended the run first"
    )
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    complain(f"nothing was {done}: {words}{more}; see convbench list SPEC")
    return 2


def _bounded(specs: Sequence[Any], algorithms: Sequence[Any], threads: Sequence[int]) -> None:
    """Raise ValueError for more cases than could be held, before any is made."""
    count = len(specs) * len(algorithms) * len(threads)
    if count > MOST_CASES:
        raise ValueError(f"{len(specs):,} specs with {len(algorithms)} algorithms are {count:,} cases: take "
                         f"at most {MOST_CASES:,} at once, by fewer specs or --algorithms a,b")  # fmt: skip
