"""Two versions of code in the same launches, turn by turn: faster, slower, the same, or undecided.

Two runs hours apart are two moods of a machine; turns that alternate within a launch are one. So both sides
of a pair are opened, checked and timed together, and the noise model sees what one gained on the other in
each launch. After 3, 5, 8, ... launches it is looked whether a pair is decided, and those that are cost no
more time. Looking often finds by chance what is not there: each look may spend a share of the false
discoveries (Lan and DeMets 1983, the spending function of O'Brien and Fleming), and all shares together stay
below what ``bench.noise`` allows a table.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from algos.contract import Algorithm
from algos.grammar import shown
from algos.spec import ConvSpec
from algos.wisdom import Known
from bench import perf_counter
from bench.cases import Case, Settings
from bench.launching import Launching
from bench.noise import FALSE_DISCOVERIES, Model, Ratio, Verdict, judged
from bench.outcome import Progress
from bench.pool import Place, Pool
from bench.record import Record
from bench.runner import Runner
from bench.sides import Side, SideError, roster
from bench.store import Store
from bench.turns import taken

LAUNCHES = 8
LOOKS = (3, 5, 8, 13, 21, 34, 55)
# By all looks together: half of what a table is allowed, for pairs whose noise differs more than a model of
# all can tell (at three quarters, 2.8% of twins in a simulation).
FALSE_ALARMS = 0.5 * FALSE_DISCOVERIES
THRESHOLD = 0.05
MARKS = ("old", "new")
HERE = Side("here")
FAILED = ("wrong", "crashed", "timeout", "error")


# ---- when to look, and what to believe then ---------------------------------------------------


def levels(launches: int, rate: float = FALSE_ALARMS) -> dict[int, float]:
    """What each look may spend of the rate of false alarms, by its number of launches."""
    looks = [*(n for n in LOOKS if n < launches), launches]
    errors = statistics.NormalDist().inv_cdf(1 - rate / 2)
    spent = [math.erfc(errors / math.sqrt(2 * n / launches)) for n in looks]
    return {n: after - before for n, before, after in zip(looks, [0.0, *spent], spent, strict=False)}


# ---- who meets whom ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Entrant(Algorithm):
    """One side's algorithm as the controller knows it, which cannot import two versions of ``algos``.

    ``name`` is what that side's ``get`` knows it by. With ``burn`` a known share of every call is wasted.
    """

    side: Side = HERE
    mark: str = ""
    source: str = ""
    burn: float | None = None

    def tunables(self) -> dict[str, Any]:
        return {}  # they are in the name


class Pair(NamedTuple):
    """One algorithm on one spec with a number of threads, on both sides."""

    spec: str
    algorithm: str
    threads: int
    old: Case
    new: Case

    @property
    def alike(self) -> bool:
        """Whether they are versions of one algorithm."""
        return self.old.algorithm.name.partition(":")[0] == self.new.algorithm.name.partition(":")[0]


class Unpaired(NamedTuple):
    """What cannot be compared: what keeps each side from it, status and reason; empty where nothing does."""

    spec: str
    algorithm: str
    threads: int
    old: str
    new: str

    @property
    def failed(self) -> bool:
        """Whether a side is wrong, or the new one fails in another way."""
        return "wrong" in (_status(self.old), _status(self.new)) or _status(self.new) in FAILED

    @property
    def one_sided(self) -> bool:
        """Whether the sides differ in what they can do, or one fails: a reader wants to know."""
        return self.failed or not (self.old and self.new)


def _status(words: str) -> str:
    return words.partition(":")[0]


def pairs_of(
    sides: tuple[Side, Side], specs: Sequence[ConvSpec], names: Sequence[str] | None, threads: Sequence[int],
    settings: Settings,
) -> tuple[list[Pair], list[Unpaired]]:
    """Cases of both sides by the name of the algorithm, whatever its tunables; and what cannot be paired.

    Raises
    ------
    SideError
        Where a side's code cannot be driven from here, and for a name that neither side knows.
    """
    versus = " -> ".join(dict.fromkeys(side.algorithm for side in sides))  # of two algorithms
    entries = [roster(side, specs, names, threads, settings.slow_s) for side in sides]
    known = {name for entry in (*entries[0], *entries[1]) for name in (entry["algorithm"], entry["variant"])}
    if unknown := [name for name in names or () if name not in {*known, "own", "peers"}]:
        raise SideError(f"no algorithm of either side is named {shown(unknown[0])}: see convbench list")
    old, new = ({_key(entry, versus): entry for entry in listed} for listed in entries)
    pairs, unpaired = [], []
    for key in dict.fromkeys((*old, *new)):
        lacks = [_lack(side, found.get(key)) for side, found in zip(sides, (old, new), strict=True)]
        if any(lacks):
            unpaired.append(Unpaired(*key, *lacks))
        else:
            cases = [case_of(sides[i], (old, new)[i][key], MARKS[i], key[1]) for i in range(2)]
            pairs.append(Pair(*key, *cases))
    return pairs, unpaired


def _key(entry: dict[str, Any], versus: str) -> tuple[str, str, int]:
    name = entry["algorithm"] if entry["chosen"] else entry["variant"]
    return entry["spec"], versus or name, entry["threads"]


def _lack(side: Side, entry: dict[str, Any] | None) -> str:
    """What keeps a side from a case, or nothing."""
    if entry is None:
        return f"absent: not in {side.text}"
    return "" if entry["status"] == "ok" else f"{entry['status']}: {entry['reason']}"


def case_of(side: Side, entry: dict[str, Any], mark: str, label: str, burn: float | None = None) -> Case:
    """A case that the runner measures; label and mark keep its records apart from those of others."""
    known = {f.name: entry[f.name] for f in fields(Record) if f.name in entry and f.name != "launches"}
    record = Record(**{**known, "algorithm": f"{label}@{mark}", "chosen": ""})
    base = {name: known[name] for name in ("family", "device", "runtime", "layout", "accuracy")}
    entrant = Entrant(entry["variant"], **base, side=side, mark=mark, source=entry["source"], burn=burn)
    return Case(ConvSpec.parse(entry["spec"]), entrant, record, rivals=label)


# ---- measuring --------------------------------------------------------------------------------


class _Apart(Pool):
    """Workers of two sides, which share no process whatever their algorithms have in common."""

    def place(self, algorithm: Algorithm) -> Place:
        assert isinstance(algorithm, Entrant)
        return Place(algorithm.source, algorithm.side.code, algorithm.mark)


class _Burning(Launching):
    """Launches in which a share of the time may be burnt."""

    def _ask(self, state: Any, timeout_s: float, **request: Any) -> dict[str, Any] | None:
        if request["do"] == "open":
            request["burn"] = state.case.algorithm.burn
        return super()._ask(state, timeout_s, **request)


class _Turns(Runner):
    """Measures both sides of every pair in the same launches; the machine learns nothing from it."""

    def __init__(self, settings: Settings, store: Store, progress: Progress | None) -> None:
        super().__init__(settings, store, progress, _Apart(), _Burning)

    def _teach(self, more: Iterable[Known] = ()) -> None:
        pass


class Met(NamedTuple):
    """A pair that was measured; about so many launches are ``needed`` to decide what is undecided."""

    pair: Pair
    ratio: Ratio
    verdict: Verdict
    needed: int
    old_s: float
    new_s: float


@dataclass
class Result:
    """What a duel found.

    Attributes
    ----------
    met : list of Met
    unpaired : list of Unpaired
        What failed when it was checked or measured.
    missing : list of Pair
        What the budget left no time for.
    """

    met: list[Met]
    unpaired: list[Unpaired]
    missing: list[Pair]


@dataclass(frozen=True)
class Rule:
    """When a pair is decided.

    Attributes
    ----------
    launches : int
        The most; fewer where all is decided before.
    threshold : float
        A pair is the same when the whole interval of its ratio lies within it.
    apart : bool
        Each pair is judged as if it were the only one, instead of all as one table.
    """

    launches: int = LAUNCHES
    threshold: float = THRESHOLD
    apart: bool = False


Records = dict[tuple, Record]
Measure = Callable[[int, list[Pair]], tuple[Records, bool]]


def fight(
    pairs: Sequence[Pair], settings: Settings, rule: Rule = Rule(), progress: Progress | None = None
) -> Result:
    """Measure until every pair is decided, or launches or the budget of all looks are used up."""
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:

        def measure(launches: int, active: list[Pair]) -> tuple[Records, bool]:
            budget_s = settings.run_budget_s
            left_s = None if budget_s is None else budget_s - (perf_counter() - started)
            now = replace(settings, launches=launches, run_budget_s=left_s, race=False)
            cases = [case for pair in active for case in (pair.old, pair.new)]
            outcome = _Turns(now, store, progress).run(cases)
            return {record.key: record for record in store.records()}, outcome.complete

        return judge(pairs, measure, rule)


def judge(pairs: Sequence[Pair], measure: Measure, rule: Rule = Rule()) -> Result:
    """Look after 3, 5, 8, ... launches; ``measure`` brings those pairs there that are still open.

    It returns all records so far by key, and whether it had the time for all.
    """
    active, result = list(pairs), Result([], [], [])
    for launches, level in levels(rule.launches).items():
        records, complete = measure(launches, active)
        result.unpaired += [lost for pair in active if (lost := _lost(pair, records))]
        gone = {lost[:3] for lost in result.unpaired}
        decided = {one.pair: one for one in result.met if one.verdict != "undecided"}
        sides = {pair: both for pair in pairs if pair[:3] not in gone and (both := _sides(pair, records))}
        result.met = [decided.get(one.pair, one) for one in _looked(sides, level, rule)]
        done = {one.pair for one in result.met if one.verdict != "undecided"}
        active = [pair for pair in active if pair[:3] not in gone and pair not in done]
        if not (active and complete):
            break
    seen = {one.pair for one in result.met}
    result.missing = [pair for pair in active if pair not in seen]
    return result


def _lost(pair: Pair, records: Records) -> Unpaired | None:
    """The pair as one that cannot be compared, where a side has failed."""
    sides = [records.get(case.record.key, case.record) for case in (pair.old, pair.new)]
    words = ["" if record.status == "ok" else f"{record.status}: {record.reason}" for record in sides]
    return Unpaired(*pair[:3], *words) if any(words) else None


def _sides(pair: Pair, records: Records) -> list[Record]:
    """Both records of a pair; none before both were measured."""
    both = [records.get(case.record.key, case.record) for case in (pair.old, pair.new)]
    return both if all(record.launches for record in both) else []


def _looked(sides: dict[Pair, list[Record]], level: float, rule: Rule) -> list[Met]:
    """Every pair as one look sees it, by a model of the noise of all with as many threads."""
    launches = {pair: (taken(both[0]), taken(both[1])) for pair, both in sides.items()}
    models = {
        threads: Model.of([both for pair, both in launches.items() if pair.threads == threads])
        for threads in {pair.threads for pair in sides}
    }
    same = math.log1p(rule.threshold)
    ratios = [
        models[pair.threads].compare(old, new, same, pair.alike) for pair, (old, new) in launches.items()
    ]
    tables = [[ratio] for ratio in ratios] if rule.apart else [ratios]
    verdicts = [verdict for table in tables for verdict in judged(table, level)]
    found = []
    for (pair, both), ratio, verdict in zip(sides.items(), ratios, verdicts, strict=True):
        needed = ratio.launches if verdict != "undecided" else models[pair.threads].launches_for(ratio, same)
        found.append(Met(pair, ratio, verdict, needed, *(record.median_s or 0.0 for record in both)))
    return found
