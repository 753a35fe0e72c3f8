"""Commands that hold two versions of code, or identical ones, against each other in the same launches:
duel and twins."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from bench import text
from bench.cli.arguments import Command, names_of, threads_of, to_count, to_seconds, to_share
from bench.cli.output import Bar, complain, print_json, show

VERDICTS = ("slower", "faster", "same", "undecided")


def _duel_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "old", metavar="OLD", help="git revision, checkout, folder or file of algorithms, or an algorithm"
    )
    command.add_argument("new", metavar="NEW", help="the same; it is judged against OLD")
    command.add_argument("targets", nargs="+", metavar="SUITE|SPEC|FILE.csv")
    command.add_argument(
        "--algorithms", metavar="a,b", help="only these; all of ours, or all of the folder, by default"
    )
    command.add_argument("--threads", metavar="1,2", help="numbers of threads; the usable cores by default")
    command.add_argument(
        "--launches", type=to_count, metavar="N", help="fresh processes per side at most (8)"
    )
    command.add_argument(
        "--threshold", type=to_share, default=0.05, metavar="5%%", help="the slowdown that matters"
    )
    command.add_argument(
        "--budget", type=to_seconds, metavar="SECONDS", help="stop after so long; what is open is undecided"
    )
    command.add_argument(
        "--allow-undecided", action="store_true", help="exit 0 where nothing slower was found"
    )


def duel(arguments: argparse.Namespace) -> int:
    from bench.duel import LAUNCHES, Rule, fight, pairs_of
    from bench.sides import resolve
    from bench.suites import resolve as resolve_targets

    sides = resolve(arguments.old, arguments.new)
    names = names_of(arguments.algorithms) or None
    if sides[0].algorithm and names:
        raise ValueError(f"--algorithms: {arguments.old} and {arguments.new} are the algorithms that meet")
    specs, settings = resolve_targets(arguments.targets)
    settings = replace(settings, run_budget_s=arguments.budget)
    pairs, unpaired = pairs_of(sides, specs, names, threads_of(arguments.threads), settings)
    with Bar() as progress:
        rule = Rule(arguments.launches or LAUNCHES, arguments.threshold)
        found = fight(pairs, settings, rule, progress)
    unpaired += found.unpaired
    most = 1 + arguments.threshold
    slower = [one for one in found.met if one.verdict == "slower" and one.ratio.high >= most]
    if arguments.json:
        lists = {"unpaired": [u._asdict() for u in unpaired if u.one_sided or not pairs],
                 "unmeasured": [pair[:3] for pair in found.missing]}  # fmt: skip
        print_json({"cases": [_row(one) for one in found.met], **lists, "beyond_threshold": len(slower)})
    else:
        _show(
            found,
            unpaired,
            f"{len(slower)} of these by {arguments.threshold:.3g} or more, as their intervals allow",
        )
    if slower or any(u.failed for u in unpaired):
        return 1
    if not found.met and not found.missing:
        return _nothing(arguments, unpaired)
    undecided = bool(found.missing) or any(one.verdict == "undecided" for one in found.met)
    return 3 if undecided and not arguments.allow_undecided else 0


DUEL = Command(
    "duel", "two versions of code in the same launches; exit 1 on a slowdown, 3 when undecided",
    _duel_arguments, duel,
)  # fmt: skip


def _row(one: Any) -> dict[str, Any]:
    ratio = one.ratio
    about = {"spec": one.pair.spec, "algorithm": one.pair.algorithm, "threads": one.pair.threads}
    found = {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "verdict": one.verdict}
    spent = {"launches": ratio.launches, "needed": one.needed, "old_s": one.old_s, "new_s": one.new_s}
    return {**about, **found, **spent}


def _show(found: Any, unpaired: Sequence[Any], beyond: str) -> None:
    from algos.host import fingerprint
    from bench.twins import NOT_MEASURED, rates

    rows = []
    for one in sorted(found.met, key=lambda one: (VERDICTS.index(one.verdict), -abs(one.ratio.ratio - 1))):
        ratio = one.ratio
        more = f": about {one.needed} launches would tell" if one.verdict == "undecided" else ""
        rows.append((
            one.pair.spec, one.pair.algorithm, str(one.pair.threads), text.seconds(one.old_s),
            text.seconds(one.new_s), f"{ratio.ratio:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}",
            str(ratio.launches), one.verdict + more,
        ))  # fmt: skip
    header = ("spec", "algorithm", "threads", "old", "new", "new/old", "interval", "launches", "verdict")
    if rows:
        show(text.table(header, rows) + "\n")
    if lost := [u for u in unpaired if u.one_sided]:
        cells = [(u.spec, u.algorithm, str(u.threads), u.old or "ok", u.new or "ok") for u in lost]
        show(text.table(("not compared", "algorithm", "threads", "old", "new"), cells) + "\n")
    counts = Counter(one.verdict for one in found.met)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    show(words.replace("slower", f"slower ({beyond})", 1))
    if found.missing:
        show(f"the budget ended the duel before {len(found.missing)} pairs were measured")
    known = rates(fingerprint()["id"])
    show(known.text() if known else NOT_MEASURED)


def _nothing(arguments: argparse.Namespace, unpaired: Sequence[Any]) -> int:
    """Nothing was paired: say so, with the reasons of either side; the exit code."""
    sides = [(name, words) for u in unpaired for name, words in (("old", u.old), ("new", u.new)) if words]
    reasons = Counter(f"{name} is {words}" for name, words in sides)
    why = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(3))
    what = f"nothing was paired between {arguments.old} and {arguments.new}"
    complain(f"{what}: {why or 'neither side has an algorithm for these specs'}; see convbench list SPEC")
    return 2


def _twins_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pairs", type=to_count, default=24, metavar="N", help="so many of either (24)")
    command.add_argument(
        "--neighbour", action="store_true", help="beside a process that uses one core half of the time"
    )
    command.add_argument(
        "--budget", type=to_seconds, metavar="SECONDS", help="begin no further twelve pairs after so long"
    )


def twins(arguments: argparse.Namespace) -> int:
    from algos.engine.threads import checked_threads
    from algos.host import fingerprint
    from bench.cases import Settings
    from bench.twins import counted, pairs, rates, remember, run

    planted = pairs(arguments.pairs, range(1, min(2, checked_threads(None)) + 1), Settings())
    identity = fingerprint()["id"]
    met: list[Any] = []
    failed: list[Any] = []
    with Bar() as progress:
        for found in run(planted, Settings(), arguments.neighbour, arguments.budget, progress):
            remember(identity, counted(planted, found.met), arguments.neighbour)
            met += found.met
            failed += found.unpaired
    if not met:
        why = failed[0].new or failed[0].old if failed else "see convbench list"
        complain(f"no twins were measured: {why}")
        return 2
    now, known = counted(planted, met), rates(identity, arguments.neighbour)
    left = len(planted) - len(met)
    if arguments.json:
        every = [{**_row(one), "planted": planted[one.pair]} for one in met]
        return print_json({
            "machine": identity, "neighbour": arguments.neighbour, "now": [asdict(rate) for rate in now],
            "known": [asdict(rate) for rate in known.rates] if known else [], "pairs": every,
            "unmeasured": left, "failed": [u._asdict() for u in failed],
        })  # fmt: skip
    rows = []
    for rate in now:
        counts = (rate.pairs, rate.slower, rate.faster, rate.same, rate.undecided)
        mean = f"{rate.launches / rate.pairs:.1f}"
        rows.append((f"{rate.share:.0%}" if rate.share else "twins", *map(str, counts), mean))
    show(text.table(("planted", "pairs", "slower", "faster", "same", "undecided", "launches each"), rows))
    for one in met:
        if one.verdict in ("slower", "faster") and not planted[one.pair]:
            where = f"{one.pair.algorithm} on {one.pair.spec}, {one.pair.threads} threads"
            show(f"false alarm: {where}: {one.ratio.ratio:.3f}, {one.ratio.low:.3f} to {one.ratio.high:.3f}")
    if left:
        show(f"not measured: {left} pairs")
    if known:
        show(known.text())
    return 0


TWINS = Command(
    "twins", "how far verdicts can be trusted here: identical code, and slowdowns that are known",
    _twins_arguments, twins,
)  # fmt: skip
