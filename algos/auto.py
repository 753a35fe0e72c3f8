"""The picker: the fastest algorithm that is right for a spec, and why; itself an algorithm named "auto".

It ranks every candidate by its expected time, measured on this machine and build when it was, else estimated,
and names the reason for each one that it leaves out. Nothing that gave a wrong result here is ever picked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from algos import wisdom
from algos.accuracy import error_bound
from algos.build import build_of
from algos.choice import Candidate, Choice, Ranked, Ranking, broken, chosen
from algos.contract import LAYOUTS, Algorithm, Cost, relaid_s
from algos.engine.kept import compiled_count
from algos.engine.threads import Threads, checked_threads
from algos.estimate import DOUBT, Knowledge
from algos.fitted import fit_of_machine, unlike
from algos.grammar import checked_int, shown
from algos.host import available_memory, fingerprint, ids_by_cores, recent_memory, usable_cores
from algos.lower.chain import Chain
from algos.lower.search import chain, way_or_reason
from algos.lower.tree import plain
from algos.neighbours import rough
from algos.spec import ConvSpec, SpecError

__all__ = ["Auto", "Candidate", "Choice", "choose", "known", "pick"]

ROUNDOFF_CLASSES = ("componentwise", "lowrank")  # bounded element by element, and one NaN stays local
MEMORY_SHARE = 0.8
CHOICES = 1 << 9  # that are remembered, each with the ranking that it can tell of: some 45 KB
KINDS = 1 << 12  # of questions that are alike
HOPELESS = 6.0  # times as long as the best one, as far as that is known: not asked on specs alike
# Of these, options that are equal and of equal type are the same
PLAIN = frozenset((int, float, str, bool, type(None), ConvSpec))


def pick(
    spec: ConvSpec | str,
    *,
    threads: Threads = None,
    max_workspace_bytes: int | None = None,
    calls: int | None = None,
    device: str | None = None,
    accuracy: str | None = None,
    peers: bool = False,
    layout: str = "nchw",
    algorithms: Sequence[str] | None = None,
    max_error: float | None = None,
) -> Choice:
    """The fastest algorithm that is right for ``spec`` on this machine.

    Parameters
    ----------
    spec : ConvSpec or str
    threads : int, optional
        The usable cores when left out.
    max_workspace_bytes : int, optional
        Leaves out what needs more beside its operands.
    calls : int, optional
        Shares prepare, and compiling where it has yet to be done, over so many calls; without it only the run
        counts.
    device : {"cpu", "cuda"}, optional
        Any when left out.
    accuracy : {"componentwise"}, optional
        Leaves out FFT and Winograd, whose errors follow the largest values and whose NaNs spread.
    peers : bool
        Ranks other people's libraries as well.
    layout : {"nchw", "nhwc"}
        How the channels of the arrays lie; what the copies to and from an algorithm's own order take is
        counted.
    algorithms : sequence of str, optional
        Names; ranks only these.
    max_error : float, optional
        Leaves out those whose largest error may be more, relative to the largest output (``error_bound`` in
        ``algos/accuracy.py``).

    Raises
    ------
    ValueError
        When a parameter is not valid, or when no algorithm is left, with the reasons.
    """
    named = None if algorithms is None else ",".join(map(_name, algorithms))
    options = threads, max_workspace_bytes, calls, device, accuracy, bool(peers), layout, named, max_error
    kinds = (type(spec), *map(type, options))
    if not PLAIN.issuperset(kinds):
        return _picked(spec, *options)[0]
    cores = checked_threads(threads) if threads is None or isinstance(threads, str) else 0
    state = wisdom.memory(fingerprint()["id"]), cores, calls and compiled_count()
    key = spec, options, kinds
    known_as, choice, needed = _choices.get(key, (None, None, 0))
    if choice is None or known_as != state or needed > recent_memory():
        choice, needed = _picked(spec, *options)
        if len(_choices) >= CHOICES:
            _choices.clear()
        _choices[key] = state, choice, needed
    return choice


# What was picked, and what it depends on beside the question: what is known, the cores, what is compiled
# where that counts, and the bytes that must be free; infinitely many where an algorithm was left out for it.
_choices: dict[Any, tuple[Any, Choice, float]] = {}


def _picked(
    spec: ConvSpec | str, threads: Threads, max_workspace_bytes: int | None, calls: int | None,
    device: str | None, accuracy: str | None, peers: bool, layout: str, named: str | None,
    max_error: float | None,
) -> tuple[Choice, float]:  # fmt: skip
    """The choice, and the bytes of memory that must be free for it to stand."""
    from algos.registry import registry

    spec = ConvSpec.of(spec)
    calls = None if calls is None else checked_int("calls", calls, least=1)
    if max_workspace_bytes is not None:
        max_workspace_bytes = checked_int("max_workspace_bytes", max_workspace_bytes, least=0)
    for name, value, known_values in (
        ("device", device, ("cpu", "cuda")),
        ("accuracy", accuracy, ("componentwise",)),
        ("layout", layout or "", LAYOUTS),
    ):
        if value is not None and (not isinstance(value, str) or value not in known_values):
            raise SpecError(f"{name} is {shown(value)}: use {', '.join(map(repr, known_values))} or None")
    if max_error is not None and (
        isinstance(max_error, bool)
        or not isinstance(max_error, int | float)
        or not 0 < max_error < float("inf")
    ):
        raise SpecError(f"max_error is {shown(max_error)}: give a number above 0, like 1e-5")
    count = checked_threads(threads)
    knowledge = known()
    needs: list[float] = [spec.min_bytes]

    def unwanted(algorithm: Algorithm) -> str:
        if algorithm.family == "peer" and not peers:
            return "a peer: ranked on request only"
        if device is not None and algorithm.device != device:
            return f"runs on {algorithm.device}, asked for {device}"
        if accuracy is not None and algorithm.accuracy not in ROUNDOFF_CLASSES:
            return f"its error is bounded {algorithm.accuracy}, asked for {accuracy}"
        return ""

    def why_not(way: Chain) -> str:
        needed = way.workspace_bytes(count)
        needs.append(needed + spec.min_bytes)
        if max_workspace_bytes is not None and needed > max_workspace_bytes:
            return f"needs {needed:,} bytes of workspace, the limit is {max_workspace_bytes:,}"
        if way.algorithm.device == "cpu" and (reason := _too_large(needed, spec)):
            needs.append(float("inf"))
            return reason
        if max_error is not None and (error := error_bound(way)) > max_error:
            return f"its error may reach {error:.1g} of the largest output, asked for {max_error:.1g}"
        return _distrust(way, knowledge, count)

    found = [a for a in registry().values() if not isinstance(a, Auto)]
    if max_error is not None and spec.dtype == "float32":
        found += [other for a in found for other in a.rounded()]
    if named is not None:
        found = [a for a in found if a.name in named.split(",")]
    choice = choose(spec, found, knowledge, threads=count, calls=calls, unwanted=unwanted, why_not=why_not,
                    layout=layout, notes=_measured_with_others,
                    alike=(rough(spec), count, calls, device, accuracy, peers, layout, named))  # fmt: skip
    return choice, max(needs) / MEMORY_SHARE + PLENTY


def _name(name: str) -> str:
    from algos.registry import get

    return get(name).name


PLENTY = 1 << 28  # free bytes beyond what is needed, with which nobody has to look twice


def _too_large(needed: int, spec: ConvSpec) -> str:
    """Why a workspace of so many bytes has no place, or ""; where memory may be short it is looked at anew.
    """
    if (needed + spec.min_bytes) / MEMORY_SHARE + PLENTY < recent_memory():
        return ""
    free = max(0, int(available_memory() * MEMORY_SHARE) - spec.min_bytes)
    if needed <= free:
        return ""
    return f"needs {needed:,} bytes of workspace, " + (
        f"{free:,} are free" if free else f"operands and result fill the memory with {spec.min_bytes:,}"
    )


def choose(
    spec: ConvSpec,
    found: list[Algorithm],
    knowledge: Knowledge,
    *,
    threads: int,
    calls: int | None = None,
    unwanted: Callable[[Algorithm], str] = lambda algorithm: "",
    why_not: Callable[[Chain], str] = lambda way: "",
    layout: str = "nchw",
    notes: Callable[[Choice], str] = lambda choice: "",
    alike: Hashable = None,
) -> Choice:
    """Rank ``found`` on ``spec`` by what ``knowledge`` says of their times.

    ``unwanted`` excludes before an algorithm is asked whether it is available, which may start a probe;
    ``why_not`` after, and of who is not the best only when somebody wants to know; ``notes`` likewise adds
    to the reason. Who was hopeless on a spec of the same ``alike`` is ranked only then, too.
    """
    asked = _Asked(spec, knowledge, threads, calls, unwanted, layout)
    hopeless = knowledge.hopeless.get(alike, frozenset())
    later = [base for base in found if base.name in hopeless]
    ranked, unwise, excluded = asked.rank([base for base in found if base.name not in hopeless])
    if alike is not None and alike not in knowledge.hopeless and ranked:
        limit = HOPELESS * _doubted_s(ranked[0])
        if len(knowledge.hopeless) >= KINDS:
            knowledge.hopeless.clear()
        knowledge.hopeless[alike] = frozenset(one.way.algorithm.name for one in ranked
                                              if _doubted_s(one) > limit and not one.way.algorithm.operands)

    def rest() -> tuple[list[Ranked], list[tuple[str, str]]]:
        more, doubtful, out = asked.rank(later)
        return more, [*out, *((one.name, doubt) for one, doubt in (*unwise, *doubtful))]

    with suppress(StopIteration):
        return chosen(Ranking(ranked, excluded, why_not, threads, layout, rest), calls, notes)
    ranked, unwise, excluded = asked.rank(found)
    out = [*excluded]
    for some in (ranked, [one for one, _ in unwise]):  # these are better than none
        ranking = Ranking(some, out, why_not, threads, layout)
        with suppress(StopIteration):
            return chosen(ranking, calls, notes)
        out = [*((one.name, ranking.against(one)) for one in some), *out]  # what a limit says first
    words = "; ".join(f"{name}: {reason}" for name, reason in out[:3])
    raise SpecError(f"no algorithm can compute {spec}: {words}; see convbench list '{spec}'")


class _Asked(NamedTuple):
    """What is asked, of some algorithms at a time."""

    spec: ConvSpec
    knowledge: Knowledge
    threads: int
    calls: int | None
    unwanted: Callable[[Algorithm], str]
    layout: str

    def rank(
        self, found: Iterable[Algorithm]
    ) -> tuple[list[Ranked], list[tuple[Ranked, str]], list[tuple[str, str]]]:
        """Who could be right, best first; those that are better than none, with what speaks against them; the
        others, with why not.
        """
        from algos.registry import refusal, variant_name

        spec, knowledge, threads, calls, unwanted, layout = self
        known_here = knowledge.knows(spec)
        ranked: list[Ranked] = []
        unwise: list[tuple[Ranked, str]] = []
        excluded: list[tuple[str, str]] = []
        for base in found:
            name = variant_name(base) if base.operands else base.name
            try:
                if not (reason := unwanted(base) or refusal(base) or ""):
                    algorithm = base
                    if known_here:
                        algorithm = knowledge.tuned(base, spec, threads)
                        name = variant_name(algorithm, None if base.operands else base)
                    way = way_or_reason(algorithm, spec, threads)
                    if isinstance(way, str):
                        reason = way
                    else:
                        estimate = knowledge.estimate(way, threads, known_here)
                        if copies := relaid_s(spec, algorithm, layout):
                            estimate = estimate._replace(run_s=estimate.run_s + copies)
                        one = Ranked(name, way, estimate, estimate.expected_s(calls))
                        if doubt := way.unwise:
                            unwise.append((one, doubt))
                        else:
                            ranked.append(one)
            except (Exception, SystemExit) as error:  # of one algorithm: the others can still be ranked
                reason = broken(error)
            if reason:
                excluded.append((name, reason))
        ranked.sort(key=_doubted_s)
        unwise.sort(key=lambda pair: _doubted_s(pair[0]))
        return ranked, unwise, excluded


def _doubted_s(one: Ranked) -> float:
    return one.expected_s * DOUBT[one.estimate.source]


def known() -> Knowledge:
    """What this machine knows now about the present build."""
    return _knowledge(wisdom.memory(fingerprint()["id"]))


def _measured_with_others(choice: Choice) -> str:
    """That this machine was measured with another number of cores, which says little of what it does with
    these.
    """
    if choice.source != "model":
        return ""
    by_cores = ids_by_cores() if (measured := wisdom.machines()) else {}
    counts = sorted(cores for identity, cores in by_cores.items() if identity in measured)
    return (
        f"; measured for {' and '.join(map(str, counts))} cores, you have {usable_cores()}" if counts else ""
    )


_last: tuple[wisdom.Memory, Knowledge] | None = None


def _knowledge(memory: wisdom.Memory) -> Knowledge:
    """One for each state of the wisdom (``memory`` returns the same object until something is remembered)."""
    global _last
    from algos.registry import registry

    if _last is None or _last[0] is not memory:
        elsewhere = _elsewhere()
        _last = memory, Knowledge(memory, registry(), build_of, fit_of_machine(), *elsewhere)
    return _last[1]


def _elsewhere() -> tuple[Knowledge | None, str]:
    """What was imported of the machine that is most like this one, and which that is."""
    from algos.registry import registry

    mine, others = fingerprint(), wisdom.facts()
    known = wisdom.machines() - {mine["id"]}
    if not (named := [identity for identity in others if identity in known]):
        return None, ""
    best = min(named, key=lambda identity: unlike(mine, others[identity]))
    its = others[best]
    whose = f"by another machine, with {its.get('cores')} cores, you have {mine['cores']}"
    if its.get("cores") == mine["cores"]:
        whose = f"by another machine, {its.get('cpu')}"
    return Knowledge(wisdom.memory(best), registry(), build_of, fit_of_machine()), whose


def _distrust(way: Chain, knowledge: Knowledge, threads: int) -> str:
    """Why measurements speak against it."""
    from algos.registry import is_external

    algorithm, spec = way.algorithm, way.spec
    if wrong := knowledge.wrong(way):
        return f"wrong on {wrong.spec}: {wrong.reason}"
    entry = knowledge.measured(algorithm, spec, threads)
    if entry is not None and entry.status not in ("ok", "unsupported", "unavailable", "too_large"):
        return f"{entry.status} when measured: {entry.reason}"
    here = entry is not None and entry.status == "ok" and entry.spec in (str(spec), str(plain(spec)))
    if is_external(algorithm) and not here:  # right elsewhere proves nothing
        return f"never checked on this spec: convbench run '{spec}' --algorithms {algorithm.name}"
    return ""



@dataclass(frozen=True)
class Auto(Algorithm):
    """Delegates to whatever ``pick`` names for the spec."""

    name: str = "auto"
    family: str = "auto"

    def unsupported(self, spec: ConvSpec) -> str | None:
        try:
            pick(spec, device="cpu")
        except ValueError as error:
            return str(error)
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return self._chosen(spec, threads).workspace_bytes(threads)

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        return self._chosen(spec, threads).prepare(weights, threads)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        return self._chosen(spec, threads).cost(threads)

    def _chosen(self, spec: ConvSpec, threads: int) -> Chain:
        from algos.registry import get

        return chain(get(pick(spec, threads=threads, device="cpu").algorithm), spec, threads)


ALGORITHMS = [Auto()]
