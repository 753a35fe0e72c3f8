"""convbench: one function per command. Data goes to stdout, progress and errors to stderr.

Exit codes: 0 fine, 1 a wrong result or a regression, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, TextIO

from algos.spec import ConvSpec
from bench import text
from bench.arguments import algorithms_of, names_of, parser, specs_of, threads_of

FAILED = ("wrong", "crashed", "timeout", "error")
GO_ON = "run the same command again, without --fresh, to go on"
READABLE = 10**8  # rows and columns never read are worked out for sizes and taps up to this product


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_streams()
    arguments = parser(COMMANDS).parse_args(argv)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()  # a full disk shows here
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout has seen enough
        _silence(sys.stdout)
        return 0
    except Exception as error:
        with suppress(OSError):
            sys.stdout.flush()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _silence(sys.stdout)  # or Python would complain once more at its end
        if os.environ.get("CONVBENCH_DEBUG"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError) and type(error).__name__ != "StoreError":
            message = f"unexpected {type(error).__name__}: {message} (set CONVBENCH_DEBUG=1 for the traceback)"
        print(f"convbench: {text.printable(message)}", file=sys.stderr)
        return 2


def _open_streams() -> None:
    """Give closed standard streams a place: files opened later must not take their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open to the end


def _silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # unwinds, so that the workers are ended


# ---- commands ---------------------------------------------------------------------------------------------------


def list_algorithms(arguments: argparse.Namespace) -> int:
    from algos.registry import refusal, registry

    spec = ConvSpec.parse(arguments.spec) if arguments.spec else None
    rows = []
    for algorithm in registry().values():
        missing = refusal(algorithm)
        row = {name: getattr(algorithm, name) for name in ("name", "family", "device", "runtime", "accuracy")}
        row |= {"available": missing is None, "why": missing or ""}
        if spec:
            reason = missing or refusal(algorithm, spec.received())
            row |= {"supported": reason is None, "why": reason or ""}
        rows.append(row)
    if arguments.json:
        return _print_json(rows)
    words = [
        "yes" if row.get("supported", row["available"]) else f"{'no' if row['available'] else 'unavailable'}: {row['why']}"
        for row in rows
    ]
    header = ("name", "family", "device", "runtime", "accuracy", "supported" if spec else "available")
    print(text.table(header, [(*list(row.values())[:5], word) for row, word in zip(rows, words, strict=True)]))
    return 0


def list_suites(arguments: argparse.Namespace) -> int:
    from bench.suites import suites

    rows: list[dict[str, Any]] = []
    for suite in suites().values():
        specs = {layer.spec for layer in suite.layers}
        rows.append({"name": suite.name, "specs": len(specs), "macs": suite.macs, "about": suite.about, "source": suite.source})
    if arguments.json:
        return _print_json(rows)
    cells = [(r["name"], str(r["specs"]), f"{r['macs'] / 1e9:.4g} G", r["about"], r["source"]) for r in rows]
    print(text.table(("name", "specs", "multiply-adds per image", "what", "source"), cells))
    return 0


def check(arguments: argparse.Namespace) -> int:
    from bench.cases import cases_of
    from bench.runner import Runner

    specs, settings = specs_of(arguments)
    cases = cases_of(specs, algorithms_of(arguments), threads_of(arguments.threads), settings)
    with _bar() as progress:
        records = Runner(settings, None, progress).run(cases).records
    failed = [record for record in records if record.status in FAILED]
    if arguments.json:
        names = ("spec", "algorithm", "threads", "status", "reason", "error_ratio", "max_error")
        _print_json([{name: getattr(record, name) for name in names} for record in records])
    else:
        rows = [
            (r.spec, r.algorithm, r.status, "-" if r.error_ratio is None else f"{r.error_ratio:.2g}", r.reason)
            for r in records if r.status not in ("unsupported", "unavailable") or arguments.algorithms
        ]
        print(text.table(("spec", "algorithm", "verdict", "error/bound", "reason"), rows))
        print(f"{sum(r.status == 'ok' for r in records)} ok, {len(failed)} failed, {len(records)} in all")
    return 1 if failed else 0


def run(arguments: argparse.Namespace) -> int:
    from algos import machine
    from bench.cases import cases_of
    from bench.peaks import peaks
    from bench.pool import measuring
    from bench.runner import Runner
    from bench.store import Store
    from bench.tuning import own_tunables, remember

    specs, settings = specs_of(arguments)
    settings = replace(
        settings, cold=arguments.cold, fresh=arguments.fresh, run_budget_s=arguments.budget,
        launches=arguments.launches or settings.launches, tune=arguments.tune,
    )
    wanted = algorithms_of(arguments)
    with Store(arguments.out) as store:
        about = machine.fingerprint()
        with measuring():
            store.put_machine({**about, "peaks": peaks(about["id"])})
        cases = cases_of(specs, wanted, threads_of(arguments.threads), settings)
        with _bar() as progress:
            runner = Runner(settings, store, progress)
            try:
                outcome = runner.run(cases)
            except KeyboardInterrupt:
                done = sum(len(record.launches) for record in runner.outcome.records)
                print(f"interrupted: {done} launches are stored in {store.path}; {GO_ON}", file=sys.stderr)
                raise
        page, frame, against = _report(store, arguments.out, (), "convbench " + shlex.join(sys.argv[1:]))
    from reports.tables import to_dicts, winners_dicts, winners_text
    from reports.tuning import tunings, tunings_table
    from reports.versus import versus_text

    keys = {(record.spec, record.threads) for record in outcome.records}
    chosen = frame[[(s, t) in keys for s, t in zip(frame["spec"], frame["threads"], strict=True)]]
    tuned = tunings(chosen, own_tunables()) if arguments.tune else []
    remember(tuned, outcome.records)
    if arguments.json:
        _print_json({"winners": winners_dicts(chosen), "versus": to_dicts(against), "tuned": [t._asdict() for t in tuned],
                     "shares": outcome.spent.shares(), "wall_s": outcome.spent.total, "measured": outcome.measured,
                     "complete": outcome.complete, "report": str(page)})
    else:
        print(winners_text(chosen))
        if arguments.tune:
            print(f"\n{tunings_table(tuned).text()}")
        if "versus" in arguments.targets:
            print(f"\n{versus_text(against)}")
        print(f"\nreport: {page}")
        if not outcome.complete:
            print(f"the budget ended the run: {GO_ON}")
    return 1 if any(record.status == "wrong" for record in outcome.records) else 0


def report(arguments: argparse.Namespace) -> int:
    from bench.store import Store

    with Store(arguments.out, create=False) as store:
        page, _, against = _report(store, arguments.out, names_of(arguments.baseline))
    from reports.tables import to_dicts
    from reports.versus import versus_text

    if arguments.json:
        return _print_json({"report": str(page), "versus": to_dicts(against)})
    if len(against):
        print(f"{versus_text(against)}\n")
    print(page)
    return 0


def pick(arguments: argparse.Namespace) -> int:
    import algos

    spec = ConvSpec.parse(arguments.spec)
    threads = threads_of(arguments.threads)[0] if arguments.threads else None
    if len(threads_of(arguments.threads)) > 1:
        raise ValueError(f"--threads {arguments.threads}: pick answers for one number of threads")
    if arguments.measure:
        _measure(spec, arguments)
    choice = algos.pick(spec, threads=threads, max_workspace_bytes=arguments.max_workspace, calls=arguments.calls,
                        peers=arguments.peers)
    if arguments.json:
        return _print_json({"spec": str(spec), **asdict(choice)})
    print(f"{choice.algorithm}\n{choice.reason}\n")
    ranked = [c for c in choice.candidates if not c.excluded]
    rows = [(c.algorithm, text.seconds(c.expected_s), text.seconds(c.run_s), text.seconds(c.prepare_s), c.source,
             text.size(c.workspace_bytes)) for c in ranked]
    print(text.table(("algorithm", "expected per call", "run", "prepare", "source", "workspace"), rows))
    if excluded := [(c.algorithm, c.excluded) for c in choice.candidates if c.excluded]:
        print("\n" + text.table(("excluded", "because"), excluded))
    if max(spec.padded_size) * max(spec.kernel) <= READABLE and (words := spec.unread_text()):
        print(f"\nnote: the stride does not fit, {words}")
    return 0


def _measure(spec: ConvSpec, arguments: argparse.Namespace) -> None:
    """Measure every candidate now; the machine remembers."""
    from algos.registry import registry
    from bench.cases import Settings, cases_of
    from bench.runner import Runner
    from bench.store import Store

    found = [a for a in registry().values() if a.family != "auto" and (arguments.peers or a.family != "peer")]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store, _bar() as progress:
        Runner(Settings(), store, progress).run(cases_of([spec], found, threads_of(arguments.threads), Settings()))


def compare(arguments: argparse.Namespace) -> int:
    from bench.compare import compare as judge
    from bench.store import Store

    with Store(arguments.old, create=False) as old, Store(arguments.new, create=False) as new:
        found = judge(old.records(), new.records())
    counts = {v: sum(c.verdict == v for c in found.changes) for v in ("slower", "faster", "same", "undecided")}
    if arguments.json:
        _print_json({**asdict(found), "counts": counts})
    else:
        order = sorted(found.changes, key=lambda c: (list(counts).index(c.verdict), -abs(math.log(c.ratio))))
        rows = [(c.spec, c.algorithm, str(c.threads), text.seconds(c.old_s), text.seconds(c.new_s),
                 f"{c.ratio:.3f} +- {c.error:.3f}", c.verdict) for c in order]
        print(text.table(("spec", "algorithm", "threads", "old", "new", "new/old", "verdict"), rows))
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), end="")
        print(f"; {found.only_old} only in the old, {found.only_new} only in the new\n{found.noise_text()}")
    return 1 if counts["slower"] else 0


def merge(arguments: argparse.Namespace) -> int:
    from bench.store import Store

    with ExitStack() as opened:
        stores = [opened.enter_context(Store(folder, create=False)) for folder in arguments.folders]
        read = [(store.machines().values(), store.records()) for store in stores]  # all of them, before anything is written
    with Store(arguments.merged) as merged:
        for machines, records in read:
            merged.merge(machines, records)
        held = len(merged.records())
    counts = {str(folder): len(records) for folder, (_, records) in zip(arguments.folders, read, strict=True)}
    if arguments.json:
        return _print_json({"read": counts, "held": held, "store": str(merged.path)})
    print("\n".join(f"{count} records from {text.printable(folder)}" for folder, count in counts.items()))
    print(f"{held} records in {merged.path}")
    return 0


def import_records(arguments: argparse.Namespace) -> int:
    from bench.exchange import ORIGIN, from_pytest_benchmark
    from bench.store import Store

    machine, records, left_out = from_pytest_benchmark(arguments.file)
    with Store(arguments.out) as store:
        store.put_machine(machine)
        for record in records:
            store.put(record)
        page, *_ = _report(store, arguments.out, ())
    if arguments.json:
        return _print_json({"imported": len(records), "left_out": left_out, "origin": ORIGIN, "report": str(page)})
    words = f"{len(records)} record{'s' * (len(records) != 1)} imported, tagged {ORIGIN}"
    print(f"{words}; {left_out} left out: their group is no spec" if left_out else words)
    print(f"report: {page}")
    return 0


# ---- shared by commands -----------------------------------------------------------------------------------------


def _report(store: Any, out: Path, baseline: Sequence[str], command: str = "") -> tuple[Path, Any, Any]:
    """Write the report of everything in the store; the page's path, the frame behind it, and its rows of ``versus``."""
    from bench.regret import regret
    from bench.suites import networks
    from bench.versus import works
    from reports.frame import to_frame
    from reports.page import write_report
    from reports.versus import versus

    records = store.records()
    rows = regret(records)
    if "peers" in baseline:
        peers = sorted({record.algorithm for record in records if record.family == "peer" and record.launches})
        if not peers:
            raise ValueError("--baseline peers: no peer was measured, see convbench list")
        baseline = [*(name for name in baseline if name != "peers"), *peers]
    page = write_report(records, store.machines(), out / "report", baseline=baseline, regret=rows, command=command,
                        networks=networks(), works=works())  # fmt: skip
    frame = to_frame(records)
    return page, frame, versus(frame, works(), store.machines())


class _bar:
    """A progress bar on stderr, on a terminal only, drawn between samples and never by a thread."""

    def __enter__(self) -> Any:
        from tqdm import tqdm

        from bench.runner import Progress

        tqdm.monitor_interval = 0
        self._bar = tqdm(file=sys.stderr, disable=not sys.stderr.isatty(), unit="case", mininterval=0, leave=False)

        def advance(done: int, label: str) -> None:
            if self._bar.total != progress.total:
                self._bar.total = progress.total
            self._bar.set_description_str(text.printable(label)[:48], refresh=False)
            self._bar.update(done)

        progress = Progress(advance=advance)
        return progress

    def __exit__(self, *ignored: object) -> None:
        self._bar.close()


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, allow_nan=False, default=str))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_algorithms,
    "suites": list_suites,
    "check": check,
    "run": run,
    "report": report,
    "pick": pick,
    "compare": compare,
    "merge": merge,
    "import": import_records,
}
