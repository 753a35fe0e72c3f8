"""Commands on what is stored: report, history, compare, merge, import."""

from __future__ import annotations

import argparse
import gc
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import text
from bench.cli.arguments import Command, names_of
from bench.cli.output import complain, print_json, show

MANY = 2000  # records: beyond, a run reports on its own specs
SELDOM = 1_000_000  # new objects after which garbage is looked for while a report is written


def _report_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("results"),
                         help="folder of the store and the report")
    command.add_argument(
        "--baseline", metavar="a,b", help="speed-ups are over the best of these on each spec; peers: all"
    )


def report(arguments: argparse.Namespace) -> int:
    from bench.store import Store

    with Store(arguments.out, create=False) as store:
        page, _, against = write_report(store, arguments.out, names_of(arguments.baseline))
    from reports.tables import to_dicts
    from reports.versus import versus_text

    if arguments.json:
        return print_json({"report": str(page), "versus": to_dicts(against)})
    if len(against):
        show(f"{versus_text(against)}\n")
    show(page)
    return 0


REPORT = Command("report", "HTML, Markdown, CSV and plots from what is stored", _report_arguments, report)


def write_report(
    store: Any, out: Path, baseline: Sequence[str], command: str = "", specs: Collection[str] | None = None
) -> tuple[Path, Any, Any]:
    """Write the report of everything in the store; the page's path, the frame behind it, and its rows of
    ``versus``.

    Of a large store only of ``specs``, if they are given: all of it would take longer than what was measured.
    """
    total = store.count()
    if total <= MANY:
        specs = None
    with _uncollected():
        from bench.regret import Regret
        from bench.versus import wanted, works
        from reports.findings.frame import to_frame
        from reports.findings.networks import in_network_order
        from reports.findings.versus import versus
        from reports.page import Options, write_frame

        picker = Regret()
        frame = to_frame(picker.watch(store.stream(brief=True, specs=specs)))
        rows = picker.rows()
    del picker
    if "peers" in baseline:
        peers = sorted(set(frame.loc[(frame["family"] == "peer") & (frame["launch_count"] > 0), "algorithm"]))
        if not peers:
            raise ValueError("--baseline peers: no peer was measured, see convbench list")
        baseline = [*(name for name in baseline if name != "peers"), *peers]
    networks, targets = wanted(store.asked(), set(frame["spec"]))
    rivals = works() if targets else ()
    frame = in_network_order(frame, networks)
    options = Options(baseline, rows, command, networks, rivals, total)
    with _seldom_collected():
        page = write_frame(frame, store.machines(), out / "report", options)
    return page, frame, versus(frame, rivals, store.machines())


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing in a store or in a module refers to itself and goes: looking for such garbage among millions of
    objects takes a fifth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it looked for among these later
        gc.enable()


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Of what a report is made of, only its pictures refer to themselves."""
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.freeze()  # as above: else all of it would be looked at now, and when the process ends
        gc.set_threshold(*before)


def _compare_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("old", type=Path, metavar="OLD", help="folder of a store")
    command.add_argument("new", type=Path, metavar="NEW", help="folder of a store")


def compare(arguments: argparse.Namespace) -> int:
    from bench.compare import compare_medians
    from bench.store import Store

    with Store(arguments.old, create=False) as old, Store(arguments.new, create=False) as new, _uncollected():
        found = compare_medians(old.medians(), new.medians())
        apart = "" if found.changes else _apart(old.records(brief=True), new.records(brief=True))
    verdicts = Counter(c.verdict for c in found.changes)
    counts = {verdict: verdicts[verdict] for verdict in ("slower", "faster", "same", "undecided")}
    if arguments.json:
        print_json({**asdict(found), "counts": counts})
    else:
        place = {verdict: at for at, verdict in enumerate(counts)}
        order = sorted(found.changes, key=lambda c: (place[c.verdict], -abs(math.log(c.ratio))))
        rows = [(c.spec, c.algorithm, str(c.threads), text.seconds(c.old_s), text.seconds(c.new_s),
                 f"{c.ratio:.3f} {c.low:.3f}-{c.high:.3f}", c.verdict) for c in order]
        show(text.table(("spec", "algorithm", "threads", "old", "new", "new/old", "verdict"), rows))
        words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        show(
            f"{words}; {found.only_old} only in the old, {found.only_new} only in the "
            f"new\n{found.noise_text()}"
        )
    if not found.changes:
        complain(f"nothing was compared: {apart}")
        return 2
    return 1 if counts["slower"] else 0


COMPARE = Command(
    "compare", "two stores: faster, slower, same or undecided; exit 1 when something became slower",
    _compare_arguments, compare,
)  # fmt: skip


def _apart(before: Sequence[Any], after: Sequence[Any]) -> str:
    """Why two stores have no case in common."""
    times = [[r for r in records if r.origin == "convbench" and r.launches] for records in (before, after)]
    for name, records in zip(("old", "new"), times, strict=True):
        if not records:
            return f"the {name} store holds no times of convbench's own, see convbench run"
    parts = {"machine": "machine", "spec": "spec", "algorithm": "algorithm", "threads": "number of threads",
             "cold": "state of the caches"}  # fmt: skip
    for part, words in parts.items():
        old, new = ({getattr(record, part) for record in records} for records in times)
        if not old & new:
            seen = [", ".join(sorted(map(str, values))[:3]) for values in (old, new)]
            return f"the stores share no {words} ({seen[0]} and {seen[1]})"
    return ("the stores share no case: the same spec, algorithm, threads and machine, with cold caches or "
            "without, and the same tunables where --tune has measured several")  # fmt: skip


def _merge_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("merged", type=Path, metavar="OUT", help="folder of the store that receives")
    command.add_argument("--teach", action="store_true", help="the picker learns from what was merged")
    command.add_argument("folders", type=Path, metavar="IN", nargs="+", help="folders of stores")


def teach(store: Any) -> None:
    """What a store holds of our own algorithms becomes wisdom, of each machine its own."""
    from algos import wisdom
    from algos.host import fingerprint
    from bench.lessons import REMEMBERED, disturbed, known

    own = fingerprint()["id"]
    wisdom.describe({name: about for name, about in store.machines().items() if name != own})
    wisdom.remember(known(record) for record in store.stream(brief=True)
                    if record.origin == "convbench" and not record.cold and record.status in REMEMBERED
                    and record.algorithm != "auto" and not disturbed(record))  # fmt: skip


def merge(arguments: argparse.Namespace) -> int:
    from bench.store import FILE_NAME, Store

    with ExitStack() as opened:
        stores = {
            str(folder): opened.enter_context(Store(folder, create=False)) for folder in arguments.folders
        }
        if not any(store.count() for store in stores.values()):
            raise ValueError(f"nothing to merge: no records in {', '.join(stores)}")
        is_new = not (arguments.merged / FILE_NAME).exists()
        merged = opened.enter_context(Store(arguments.merged))
        try:
            with merged.transaction():  # all of them or none
                asked = [store.asked() for store in stores.values()]
                if None not in asked:
                    merged.ask(name for names in asked for name in names or ())
                counts = {
                    name: merged.merge(store.machines().values(), store.stream())
                    for name, store in stores.items()
                }
        except BaseException:
            if is_new:
                merged.remove()
            raise
        held = merged.count()
        if arguments.teach:
            teach(merged)
    if arguments.json:
        return print_json({"read": counts, "held": held, "store": str(merged.path)})
    show("\n".join(f"{count} records from {folder}" for folder, count in counts.items()))
    show(f"{held} records in {merged.path}")
    return 0


MERGE = Command(
    "merge", "add the records of several stores to one; machines stay apart",
    _merge_arguments, merge,
)  # fmt: skip


def _import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE.json")
    command.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of the store and the report"
    )


def import_records(arguments: argparse.Namespace) -> int:
    from bench.exchange import ORIGIN, from_pytest_benchmark
    from bench.store import Store

    machine, records, left_out = from_pytest_benchmark(arguments.file)
    with Store(arguments.out) as store:
        store.put_machine(machine)
        for record in records:
            store.put(record)
        page, *_ = write_report(store, arguments.out, ())
    if arguments.json:
        return print_json(
            {"imported": len(records), "left_out": left_out, "origin": ORIGIN, "report": str(page)}
        )
    words = f"{len(records)} record{'s' * (len(records) != 1)} imported, tagged {ORIGIN}"
    show(f"{words}; {left_out} left out: their group is no spec" if left_out else words)
    show(f"report: {page}")
    return 0


IMPORT = Command(
    "import", "records of pytest-benchmark: tagged, shown, never compared or picked from",
    _import_arguments, import_records,
)  # fmt: skip


def _history_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="SUITE|SPEC|FILE.csv")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of the store")
    command.add_argument("--algorithms", metavar="a,b", help="only these")
    command.add_argument(
        "--picture", type=Path, metavar="FOLDER", help="where the picture goes; report in the store's folder"
    )


def history(arguments: argparse.Namespace) -> int:
    from bench.files import write
    from bench.store import Store
    from bench.suites import resolve
    from reports.findings.histories import histories
    from reports.history import EMPTY, history_dicts, history_pictures, history_table

    specs, _ = resolve([arguments.target], None)
    with Store(arguments.out, create=False) as store:
        machines = store.machines()
        records = store.records(brief=True, specs=map(str, specs))
    found = histories(records, names_of(arguments.algorithms))
    if not found:
        complain(EMPTY)
        return 2
    families = {record.algorithm: record.family for record in records}
    files = []
    for picture in history_pictures(found, families, machines):
        for suffix, data in ((".png", picture.png), (".svg", picture.svg)):
            files.append((arguments.picture or arguments.out / "report") / f"{picture.name}{suffix}")
            write(files[-1], data)
    if arguments.json:
        return print_json({"cases": history_dicts(found), "pictures": list(map(str, files))})
    show(history_table(found).text())
    changes = [
        point.verdict
        for points in found.values()
        for point in points
        if point.verdict in ("faster", "slower")
    ]
    show(f"\n{changes.count('faster')} faster and {changes.count('slower')} slower, beyond the noise; each "
         f"point is judged against the one before it\n{files[0]}")  # fmt: skip
    return 0


HISTORY = Command(
    "history", "a case's time over the builds and days in a store, and the changes beyond the noise",
    _history_arguments, history,
)  # fmt: skip
