"""What the picker answers: the winner at once, the whole ranking and the reasons when they are asked for.

Who plans wants a name, in microseconds; workspaces of candidates that did not win, and words about them, take
most of a pick.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

from algos.contract import relaid_s
from algos.estimate import DOUBT, Estimate, Source
from algos.lower.chain import Chain


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
    low_s, high_s : float or None
        Between which ``run_s`` lies, most likely: of a measured one as its turns with the fastest showed, of
        an estimate as estimates usually are off. None where nobody can tell.
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
    low_s: float | None = None
    high_s: float | None = None


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
        One line; found out when it is asked for.
    candidates : tuple of Candidate
        Best first, the excluded ones last; found out when they are asked for.
    """

    algorithm: str
    source: str
    expected_s: float
    reason: str
    candidates: tuple[Candidate, ...]

    def __getattr__(self, name: str) -> Any:
        """The last two, which instances that the picker makes have not at first."""
        later = self.__dict__.get("_later")
        if later is None or name not in later:
            raise AttributeError(f"a Choice has no attribute {name!r}")
        found = self.__dict__[name] = later[name]()
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Ranked(NamedTuple):
    """An algorithm that could be right for a spec."""

    name: str  # with its tunables
    way: Chain
    estimate: Estimate
    expected_s: float

    def candidate(self, threads: int, best_s: float) -> Candidate:
        """``best_s`` is the time of the fastest measured one, to which the intervals of turns refer."""
        of, way = self.estimate, self.way
        low, high = of.interval(best_s)
        return Candidate(self.name, self.expected_s, of.run_s, of.prepare_s, of.source,
                         way.workspace_bytes(threads), "", of.compile_s, way.words, low, high)  # fmt: skip


@lru_cache(maxsize=1 << 12)
def left_out(name: str, reason: str) -> Candidate:
    """Most are left out for the same reason again and again."""
    return Candidate(name, excluded=reason)


@dataclass
class Ranking:
    """Who could be right, by expected time, and what speaks against some of them.

    Parameters
    ----------
    ranked : list of Ranked
        Best first.
    excluded : list of (str, str)
        Names, and why they were not ranked.
    why_not : callable
        Why one that is ranked is out of the question after all, or "": asked of the best until there is none,
        of the others when somebody wants to know.
    rest : callable
        The same of those that nobody looked at so far: they are slower.
    """

    ranked: list[Ranked]
    excluded: list[tuple[str, str]]
    why_not: Callable[[Chain], str]
    threads: int
    layout: str
    rest: Callable[[], tuple[list[Ranked], list[tuple[str, str]]]] = lambda: ([], [])

    @cached_property
    def first(self) -> Ranked:
        """The best one that nothing speaks against.

        Raises
        ------
        StopIteration
            Where there is none.
        """
        return next(one for one in self.ranked if not self.against(one))

    def against(self, one: Ranked) -> str:
        """What speaks against it, or ""."""
        try:
            return self.why_not(one.way)
        except (Exception, SystemExit) as error:  # of one algorithm: the others can still be ranked
            return broken(error)

    @cached_property
    def _judged(self) -> tuple[list[Ranked], list[Candidate], list[tuple[str, str]]]:
        kept: list[Ranked] = []
        candidates: list[Candidate] = []
        out: list[tuple[str, str]] = []
        more, out_of_more = self.rest()
        best_s = next((one.estimate.run_s for one in self.ranked
                       if one.estimate.known and one.estimate.known.verdict == "fastest"), 0.0)  # fmt: skip
        for one in (*self.ranked, *more):
            if not (reason := self.against(one)):
                try:
                    candidates.append(one.candidate(self.threads, best_s))
                    kept.append(one)
                except (Exception, SystemExit) as error:
                    reason = broken(error)
            if reason:
                out.append((one.name, reason))
        return kept, candidates, [*self.excluded, *out_of_more, *out]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        _, candidates, out = self._judged
        return (*candidates, *(left_out(*pair) for pair in out))

    @property
    def reason(self) -> str:
        """Why the first of them is."""
        (name, way, first, expected_s), *others = self._judged[0]
        best = way.algorithm
        text = "tuned, " if name != best.name and not best.operands else ""
        text += {"measured": "measured fastest", "nearest": "expected fastest", "model": "modelled fastest"}[
            first.source
        ]
        if first.detail:
            text += f" ({first.detail})"
        if others:
            second = others[0]
            text += _against(second.name, first, second.estimate, second.expected_s / expected_s)
        unmeasured = sum([one.estimate.source != "measured" for one in others])
        if first.source == "measured" and unmeasured:
            text += f"; {unmeasured} candidate{'s' if unmeasured > 1 else ''} not measured on this spec"
        if way.words:
            text += f"; {way.words}"
        if copies := relaid_s(way.spec, best, self.layout):
            layouts = f"{self.layout.upper()} and {best.layout.upper()}"
            text += f"; {copies * 1e6:.0f} us of it copy between {layouts}"
        if caveat := getattr(best, "caveat", None):
            text += "".join(f"; {said}" for said in dict.fromkeys(map(caveat, way.leaves)))
        return text


def chosen(ranking: Ranking, calls: int | None, notes: Callable[[Choice], str]) -> Choice:
    """The first of a ranking; ``notes`` are added to its reason.

    Raises
    ------
    StopIteration
        Where something speaks against each.
    """
    name, _, estimate, expected_s = ranking.first

    def reason() -> str:
        text = ranking.reason
        if calls == 1 and (later := pays_off(choice)):
            text += f"; after {later.calls} single calls compiling {later.algorithm} pays"
        return text + notes(choice)

    choice = object.__new__(Choice)
    choice.__dict__.update(
        algorithm=name, source=estimate.source, expected_s=expected_s,
        _later={"reason": reason, "candidates": lambda: ranking.candidates},
    )  # fmt: skip
    return choice


def broken(error: BaseException) -> str:
    return f"breaks the contract: {type(error).__name__}: {' '.join(str(error).split())}"


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
            middle = math.sqrt(other.low * other.high)  # of turns; times of calls would say something else
            return f", {middle:.2f} x ({ends}) faster than {name}"
        if other.verdict == "same":
            return f"; {name} is the same within 5%"
        return f"; undecided whether {name} is slower ({ends})"
    if lead.verdict in ("same", "undecided") and other.verdict:
        return f"; not told apart from {name}"
    return f"; {name} took {ratio:.2f} times as long, not in turns with it"


class Later(NamedTuple):
    """An algorithm for which code must be compiled first: after how many calls that pays, and what it saves
    each.
    """

    calls: int
    algorithm: str
    saved_s: float


def pays_off(choice: Choice) -> Later | None:
    """What would have saved single calls, each with its own prepare, as much as compiling it takes.

    Who compiles then has lost at most as much as by compiling at once, and as much as by never compiling: the
    best rule for one who cannot know how many calls will come.
    """
    best, *others = [c for c in choice.candidates if not c.excluded]
    later = min((c for c in others if c.compile_s > best.compile_s), key=_call_s, default=None)
    saved = _call_s(best) - _call_s(later) if later else 0.0
    return Later(math.ceil(later.compile_s / saved), later.algorithm, saved) if later and saved > 0 else None


def _call_s(candidate: Candidate) -> float:
    """Of a call that prepares, with compiled code, as much as its source is to be doubted."""
    assert candidate.run_s is not None and candidate.prepare_s is not None and candidate.source
    return (candidate.run_s + candidate.prepare_s) * DOUBT[candidate.source]
