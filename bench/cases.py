"""What will be measured: every spec with every algorithm and number of threads,
those that cannot run with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import index

from algos import auto
from algos.auto import MEMORY_SHARE, PLENTY
from algos.contract import Algorithm, said
from algos.estimate import tunables_text
from algos.host import available_memory, recent_memory
from algos.lower.search import chain, unsupported
from algos.registry import get
from algos.spec import ConvSpec
from bench.record import Record
from bench.text import printable
from bench.timing import Budget

LAUNCHES, MOST_LAUNCHES = 3, 16
ANSWER_S = 60.0  # what any step may take beyond what its calls are known to take
HOPELESS = 5.0  # times over the limit, by the cost model: not even tried


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes
    ----------
    launches : int
    budget : Budget
        Per case and launch.
    slow_s : float
        A case whose first call takes longer is ``too_slow``.
    answer_s : float
        Time-out of one step of a worker, beyond what its calls are known to take.
    run_budget_s : float or None
        Of the whole run; it ends between two specs.
    decide : float or None
        Further launches of what is undecided, until every lead beyond this share of the time is known or
        ``MOST_LAUNCHES`` were taken.
    race : bool
        Who is surely behind leaves early, and all do once their ratios are known.
    cold, fresh, settled : bool
        Flush caches between single calls; measure again what stands in the store; leave alone what failed
        before, and may no longer fail.
    named : tuple of str
        Algorithms that were asked for by name: they are measured even where they are not worth it.
    tune : bool
        Measure the alternatives of each algorithm too.
    concerns : callable or None
        Whether an algorithm is measured on a spec; None for all on all.
    seed : int
    """

    launches: int = LAUNCHES
    budget: Budget = field(default_factory=Budget)
    slow_s: float = 10.0
    answer_s: float = ANSWER_S
    run_budget_s: float | None = None
    decide: float | None = None
    race: bool = True
    cold: bool = False
    fresh: bool = False
    settled: bool = False
    tune: bool = False
    named: tuple[str, ...] = ()
    concerns: Callable[[ConvSpec, Algorithm], bool] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One algorithm on one spec with a number of threads; ``record`` is what stands in the store so far.

    Cases of equal ``rivals`` are measured against each other, where spec and threads are equal too.
    """

    spec: ConvSpec
    algorithm: Algorithm  # the chosen one where the record is auto's
    record: Record
    rivals: str = ""


Stamp = Callable[[Algorithm], tuple[str, str]]


def stamp(algorithm: Algorithm) -> tuple[str, str]:
    """The machine and the build that records of ``algorithm`` belong to."""
    from algos.build import build_of
    from algos.host import fingerprint

    return fingerprint()["id"], build_of(algorithm)


def cases_of(
    specs: Iterable[ConvSpec],
    algorithms: Sequence[Algorithm],
    threads: Sequence[int],
    settings: Settings,
    stamp: Stamp = stamp,
) -> list[Case]:
    """Every case, those that cannot run among them, with the reason in their record."""
    return [
        _case(spec, variant, count, settings, stamp)
        for count in dict.fromkeys(threads)
        for spec in dict.fromkeys(specs)
        for algorithm in algorithms
        if settings.concerns is None or settings.concerns(spec, algorithm)
        for variant in (algorithm, *(_alternatives(algorithm, spec, count) if settings.tune else ()))
    ]


def _alternatives(algorithm: Algorithm, spec: ConvSpec, threads: int) -> list[Algorithm]:
    """Those that differ in tunables only; none where the algorithm cannot be asked, which its own case
    reports.
    """
    try:
        if algorithm.unavailable() or unsupported(algorithm, spec):
            return []
        leaves = dict.fromkeys(chain(algorithm, spec, threads).leaves)
        found = [other for leaf in leaves for other in algorithm.alternatives(leaf, threads)]
    except Exception:
        return []
    return [
        other
        for other in dict.fromkeys(found)
        if type(other) is type(algorithm) and other.name == algorithm.name
    ]


def _case(spec: ConvSpec, algorithm: Algorithm, threads: int, settings: Settings, stamp: Stamp) -> Case:
    """What ``algorithm`` says of the case; one that breaks its contract costs its own cases only."""
    try:
        return _asked(spec, algorithm, threads, settings, stamp)
    except (Exception, SystemExit) as error:
        reason = printable(f"breaks the contract: {type(error).__name__}: {' '.join(str(error).split())}")[
            :300
        ]
        record = Record(
            str(spec), algorithm.name, threads, *stamp(algorithm), "error", reason, cold=settings.cold
        )
        return Case(spec, algorithm, record)


def _asked(spec: ConvSpec, algorithm: Algorithm, threads: int, settings: Settings, stamp: Stamp) -> Case:
    status, reason, chosen, workspace, via = "ok", "", "", None, ""
    actual = algorithm
    if reason := said(algorithm.unavailable) or "":
        status = "unavailable"
    elif algorithm.name == "auto":
        try:
            chosen = auto.pick(spec, threads=threads, device="cpu").algorithm
            actual = get(chosen)
        except ValueError as error:
            status, reason = "unsupported", str(error)
    elif reason := unsupported(algorithm, spec) or _unwise(algorithm, spec, threads, settings):
        status = "unsupported"
    if status == "ok":
        way = chain(actual, spec, threads)
        via = way.words
        workspace = index(way.workspace_bytes(threads))
        if not 0 <= workspace < 1 << 62:
            raise ValueError(f"workspace_bytes is {workspace}")
        if reason := _too_large(spec, actual, workspace):
            status = "too_large"
        elif (expected_s := way.seconds(threads)) > HOPELESS * settings.slow_s:
            status, reason = "too_slow", f"expected to take {expected_s:.2g} s a call, {limit_text(settings)}"
    record = Record(
        str(spec),
        algorithm.name,
        threads,
        *stamp(actual),
        status,
        printable(reason),
        tunables=tunables_text(algorithm),
        cold=settings.cold,
        family=algorithm.family,
        device=actual.device,
        runtime=actual.runtime,
        layout=actual.layout,
        accuracy=actual.accuracy,
        chosen=chosen,
        workspace_bytes=workspace,
        via=via,
    )
    return Case(spec, actual, record)


def _unwise(algorithm: Algorithm, spec: ConvSpec, threads: int, settings: Settings) -> str:
    """Why it is not worth measuring, unless it was asked for by name."""
    return "" if algorithm.name in settings.named else chain(algorithm, spec, threads).unwise or ""


def _too_large(spec: ConvSpec, algorithm: Algorithm, workspace: int) -> str:
    """Why the case doesn't fit in memory, by prediction, before anything is allocated."""
    if algorithm.device != "cpu":
        return ""  # the device's own allocator answers in the worker
    needed = workspace + spec.min_bytes
    if needed / MEMORY_SHARE + PLENTY < recent_memory():
        return ""
    free = int(available_memory() * MEMORY_SHARE)
    return (
        f"needs {needed:,} bytes, {workspace:,} of them workspace; {free:,} are free" if needed > free else ""
    )


def limit_text(settings: Settings) -> str:
    """How a reason ends that depends on ``slow_s``."""
    return f"the limit is {settings.slow_s:g} s"
