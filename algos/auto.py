"""The picker: the fastest algorithm that is right for a spec, and why; itself an algorithm named "auto".

It ranks every candidate by its expected time, measured on this machine and build when it was, else estimated,
and names the reason for each one that it leaves out. Nothing that gave a wrong result here is ever picked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from algos import wisdom
from algos.build import build_of
from algos.contract import LAYOUTS, Algorithm, Cost, relaid_s
from algos.engine.threads import checked_threads
from algos.estimate import DOUBT, Estimate, Knowledge, Source
from algos.grammar import checked_int, shown
from algos.host import available_memory, fingerprint, ids_by_cores, usable_cores
from algos.lower.chain import Chain, chain, plain
from algos.spec import ConvSpec, SpecError

ROUNDOFF_CLASSES = ("componentwise", "lowrank")  # bounded element by element, and one NaN stays local
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Candidate:
    """One algorithm in the ranking.

    Attributes
    ----------
    algorithm : str
    expected_s : float or None
        Seconds per call, the share of prepare and of compiling included; None when excluded.
    run_s, prepare_s : float or None
    source : "measured", "nearest", "model" or ""
        Empty when excluded.
    workspace_bytes : int or None
    excluded : str
        Why it is out of the question; empty for one that is ranked.
    compile_s : float
        What the first plan takes beside ``prepare_s`` for want of compiled code, which later ones find.
    via : str
        How the problem becomes one that it solves; empty where it solves it itself.
    """

    algorithm: str
    expected_s: float | None = None
    run_s: float | None = None
    prepare_s: float | None = None
    source: Source | Literal[""] = ""
    workspace_bytes: int | None = None
    excluded: str = ""
    compile_s: float = 0.0
    via: str = ""


@dataclass(frozen=True)
class Choice:
    """The answer of ``pick``.

    Attributes
    ----------
    algorithm : str
        Its name, with the tunables that differ from its own where ``convbench run --tune`` found better ones.
    source : str
        Where the winner's time comes from: "measured", "nearest" or "model".
    expected_s : float
        Seconds per call.
    reason : str
        One line.
    candidates : tuple of Candidate
        Best first, the excluded ones last.
    """

    algorithm: str
    source: str
    expected_s: float
    reason: str
    candidates: tuple[Candidate, ...]


def pick(
    spec: ConvSpec | str,
    *,
    threads: int | None = None,
    max_workspace_bytes: int | None = None,
    calls: int | None = None,
    device: str | None = None,
    accuracy: str | None = None,
    peers: bool = False,
    layout: str = "nchw",
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

    Raises
    ------
    ValueError
        When a parameter is not valid, or when no algorithm is left, with the reasons.
    """
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
    count = checked_threads(threads)
    knowledge = known()
    free = _free_memory(spec)

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
        if max_workspace_bytes is not None and needed > max_workspace_bytes:
            return f"needs {needed:,} bytes of workspace, the limit is {max_workspace_bytes:,}"
        if way.algorithm.device == "cpu" and needed > free:
            return f"needs {needed:,} bytes of workspace, " + (
                f"{free:,} are free"
                if free
                else f"operands and result fill the memory with {spec.min_bytes:,}"
            )
        return _distrust(way, knowledge, count)

    found = [a for a in registry().values() if not isinstance(a, Auto)]
    choice = choose(spec, found, knowledge, threads=count, calls=calls, unwanted=unwanted, why_not=why_not,
                    layout=layout)  # fmt: skip
    return (
        replace(choice, reason=choice.reason + _measured_with_others())
        if choice.source == "model"
        else choice
    )


class _Ranked(NamedTuple):
    """An algorithm that was not left out."""

    name: str  # with its tunables
    way: Chain
    estimate: Estimate
    expected_s: float

    def candidate(self, threads: int) -> Candidate:
        of, way = self.estimate, self.way
        return Candidate(self.name, self.expected_s, of.run_s, of.prepare_s, of.source,
                         way.workspace_bytes(threads), compile_s=of.compile_s, via=way.words)  # fmt: skip


@lru_cache(maxsize=1 << 12)
def _left_out(name: str, reason: str) -> Candidate:
    """Most are left out for the same reason again and again."""
    return Candidate(name, excluded=reason)


def _counted(estimate: Estimate, way: Chain, layout: str) -> Estimate:
    """With what copies between memory orders and compiling add."""
    if copies := relaid_s(way.spec, way.algorithm, layout):
        estimate = replace(estimate, run_s=estimate.run_s + copies)
    if seconds := way.compiling_s():
        estimate = replace(estimate, compile_s=seconds)
    return estimate


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
) -> Choice:
    """Rank ``found`` on ``spec`` by what ``knowledge`` says of their times.

    ``unwanted`` excludes before an algorithm is asked whether it is available, which may start a probe;
    ``why_not`` after.
    """
    from algos.registry import refusal, variant_name

    ranked: list[_Ranked] = []
    excluded: list[Candidate] = []
    unwise: list[tuple[_Ranked, str]] = []  # they take the place of better ones where there are none
    for base in found:
        name = base.name
        try:
            algorithm = knowledge.tuned(base, spec, threads)
            name = variant_name(algorithm, base)
            reason = unwanted(algorithm) or refusal(algorithm) or refusal(algorithm, spec)
            if not reason:
                way = chain(algorithm, spec, threads)
                reason = why_not(way)
            if not reason:
                estimate = _counted(knowledge.estimate(way, threads), way, layout)
                one = _Ranked(name, way, estimate, estimate.expected_s(calls))
                if doubt := way.unwise:
                    unwise.append((one, doubt))
                else:
                    ranked.append(one)
        except (Exception, SystemExit) as error:  # of one algorithm: the others can still be ranked
            reason = f"breaks the contract: {type(error).__name__}: {error}"
        if reason:
            excluded.append(_left_out(name, reason))
    if ranked:
        excluded += [_left_out(one.name, doubt) for one, doubt in unwise]
    else:
        ranked = [one for one, _ in unwise]
    if not ranked:
        reasons = "; ".join(f"{c.algorithm}: {c.excluded}" for c in excluded[:3])
        raise SpecError(f"no algorithm can compute {spec}: {reasons}; see convbench list '{spec}'")
    ranked.sort(key=lambda one: one.expected_s * DOUBT[one.estimate.source])
    candidates = tuple([one.candidate(threads) for one in ranked])
    reason, best = _reason(ranked, layout), candidates[0]
    assert best.source and best.expected_s is not None
    choice = Choice(best.algorithm, best.source, best.expected_s, reason, (*candidates, *excluded))
    if calls == 1 and (later := pays_off(choice)):
        choice = replace(choice, reason=f"{reason}; after {later[0]} single calls compiling {later[1]} pays")
    return choice


def pays_off(choice: Choice) -> tuple[int, str] | None:
    """After how many calls, each with its own prepare, another algorithm would have saved what compiling it
    takes; its name.

    Who compiles then has lost at most as much as by compiling at once, and as much as by never compiling: the
    best rule for one who cannot know how many calls will come.
    """
    chosen, *others = [c for c in choice.candidates if not c.excluded]
    later = min((c for c in others if c.compile_s > chosen.compile_s), key=_call_s, default=None)
    saved = _call_s(chosen) - _call_s(later) if later else 0.0
    return (math.ceil(later.compile_s / saved), later.algorithm) if later and saved > 0 else None


def _call_s(candidate: Candidate) -> float:
    """Of a call that prepares, with compiled code, as much as its source is to be doubted."""
    assert candidate.run_s is not None and candidate.prepare_s is not None and candidate.source
    return (candidate.run_s + candidate.prepare_s) * DOUBT[candidate.source]


def known() -> Knowledge:
    """What this machine knows now about the present build."""
    return _knowledge(wisdom.memory(fingerprint()["id"]))


def _measured_with_others() -> str:
    """That this machine was measured with another number of cores, which says little of what it does with
    these.
    """
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
        _last = memory, Knowledge(memory, registry(), build_of)
    return _last[1]


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


def _reason(ranked: list[_Ranked], layout: str) -> str:
    """Why the first of them is."""
    (name, way, first, expected_s), others, best = ranked[0], ranked[1:], ranked[0].way.algorithm
    text = "tuned, " if name != best.name else ""
    text += {"measured": "measured fastest", "nearest": "expected fastest", "model": "modelled fastest"}[
        first.source
    ]
    if first.detail:
        text += f" ({first.detail})"
    if others:
        second = others[0]
        text += _against(second.way.algorithm.name, first, second.estimate, second.expected_s / expected_s)
    unmeasured = sum([one.estimate.source != "measured" for one in ranked])
    if first.source == "measured" and unmeasured:
        text += f"; {unmeasured} candidate{'s' if unmeasured > 1 else ''} not measured on this spec"
    if way.words:
        text += f"; {way.words}"
    if copies := relaid_s(way.spec, best, layout):
        text += f"; {copies * 1e6:.0f} us of it copy between {layout.upper()} and {best.layout.upper()}"
    if caveat := getattr(best, "caveat", None):
        text += "".join(f"; {said}" for said in dict.fromkeys(map(caveat, way.leaves)))
    return text


def _against(name: str, first: Estimate, second: Estimate, ratio: float) -> str:
    """What may be said of the second, ``ratio`` times as slow: of measured ones no more than their turns
    showed.
    """
    if first.known is None or second.known is None:
        return (
            f", {ratio:.2f} x faster than {name}" if ratio >= 1 else f"; {name} is only guessed to be faster"
        )
    lead, other = first.known, second.known
    if lead.verdict == "fastest" and other.verdict and other.run_s:
        ends = f"{other.low:.2f} to {other.high:.2f}"
        if other.verdict == "slower":
            return f", {max(other.run_s / lead.run_s, other.low):.2f} x ({ends}) faster than {name}"
        if other.verdict == "same":
            return f"; {name} is the same within 5%"
        return f"; undecided whether {name} is slower ({ends})"
    if lead.verdict in ("same", "undecided") and other.verdict:
        return f"; not told apart from {name}"
    return f"; {name} took {ratio:.2f} times as long, not in turns with it"


def _free_memory(spec: ConvSpec) -> int:
    return max(0, int(available_memory() * MEMORY_SHARE) - spec.min_bytes)


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
