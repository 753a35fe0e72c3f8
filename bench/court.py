"""The judge's side of a check: orders to whoever runs the algorithm, the arena shared
with it, and what no result may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from algos.dtypes import kind
from algos.spec import ConvSpec
from bench.arena import Arena, room, shared_file
from bench.data import Operands
from bench.judged import Judged, overlapping
from bench.trial import Judgeable, Trial

# Calls of the same plan: all where one is short, a few where it takes less than AGAIN_S; MORE_THAN_A_RING
# at least of one whose results somebody else still refers to, so that a ring of fewer buffers is found
AGAIN, SHORT_S, AGAIN_S, MORE_THAN_A_RING = 50, 0.0003, 0.006, 5
WORKSPACE_FACTOR, WORKSPACE_SLACK = 2, 1 << 20  # how far a run may exceed its prediction
HELD_SLACK = 1 << 16  # bytes of a result's buffer beyond twice its own: to align it
POISON = {"f": math.nan, "c": math.nan, "i": 113, "u": 113}


class WrongResultError(Exception):
    """Carries a reason, and the figures known when it was found, to the verdict."""

    def __init__(self, reason: str, **figures: Any) -> None:
        super().__init__(reason)
        self.figures = figures


class Obeys(Protocol):
    """Whoever runs the algorithm: in this process or in another one."""

    def obey(self, order: str, **details: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Described:
    """What a judge must know of an algorithm that ``obey`` has carried out orders."""

    name: str
    family: str
    accuracy: str
    obey: Callable[..., dict[str, Any]] = field(repr=False)
    seen: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def transforms(self, spec: ConvSpec) -> Any:
        """The matrices of a Winograd algorithm for a problem that it solves itself; None where it shows none.
        """
        return self._asked("matrices", spec)["transforms"]

    def lowered(self, spec: ConvSpec) -> tuple[str, ...]:
        """The lowerings through which it solves ``spec``."""
        return tuple(self._asked("chain", spec)["names"])

    def _asked(self, order: str, spec: ConvSpec) -> dict[str, Any]:
        key = order, str(spec)
        if key not in self.seen:
            self.seen[key] = self.obey(order, spec=str(spec))
        return self.seen[key]


class Court:
    """The judged, and the arena that it shares with the judge; one plan at a time."""

    def __init__(self, judged: Obeys, algorithm: Judgeable) -> None:
        self.judged, self.algorithm = judged, algorithm
        self._arena: Arena | None = None
        self._size = 0
        self._last: Sitting | None = None

    def prepare(self, trial: Trial, beside: bool = False) -> Sitting:
        """A plan of the judged for the trial's weights and bias; the one before is given up, or stays
        ``beside`` it.
        """
        self._last = Sitting(self, trial, beside)
        return self._last

    def back_to(self, sitting: Sitting) -> None:
        """Go on with the plan that stayed beside the last one."""
        sitting.due = {"order": "return"}
        self._last = sitting

    def arena(self, size: int) -> Arena:
        """An empty one of at least ``size`` bytes."""
        if self._arena is None or self._size < size:
            self._size = -(-size // (1 << 16)) << 16
            if isinstance(self.judged, Judged):
                self._arena = Arena(self._size)
                self.judged.share(self._arena)
            else:
                with shared_file(self._size) as (file, path):
                    self._arena = Arena(self._size, file)
                    self.judged.obey("map", path=path, size=self._size)
        self._arena.clear()
        return self._arena

    def traced(self, trial: Trial) -> tuple[int | None, np.ndarray | None]:
        """Bytes that prepare and a run took, held against the prediction, and what it gave; the trial is of
        the last spec.

        None where nobody can tell.
        """
        assert self._last is not None
        found = self.judged.obey("trace", **self._last.traceable(trial))
        seen, predicted = found["seen"], found["predicted"]
        ours = self.algorithm.family != "peer"
        if ours and seen is not None and seen > WORKSPACE_FACTOR * predicted + WORKSPACE_SLACK:
            raise WrongResultError(f"it took {seen:,} bytes of workspace and predicts {predicted:,}")
        if seen is None:
            return None, None
        result = self._last.traced_result
        if ours and found["growth"]:
            raise WrongResultError(f"every call keeps {found['growth']:,} bytes more")
        return seen, result


class Sitting:
    """One prepared trial: every operand at one address, overwritten in place from call to call."""

    def __init__(self, court: Court, trial: Trial, beside: bool) -> None:
        self._judged, self._trial = court.judged, trial
        spec, data = trial.spec, trial.data
        arrays = [(a.shape, a.dtype) for a in data.call]
        # Those of a plan beside it stay
        fixed = [(a.shape, a.dtype) for a in (data.w, data.bias) if a is not None]
        results = [(spec.result_shape, trial.dtype)] * 3
        self._arena = court.arena(room([*arrays, *fixed, *fixed, *results]))
        self._operands = [self._arena.take(*a) for a in arrays]
        self._out, *self._results = (self._arena.take(*r) for r in results)
        slots = iter([[self._arena.take(*a) for a in fixed] for _ in range(2)][beside])
        self._w, self._bias = (None if a is None else next(slots) for a in (data.w, data.bias))
        self._fix(data)
        self.took_s, self._referred = 0.0, False
        # What goes before the next call, in one order with it
        prepare = {"order": "prepare", "spec": str(spec), "beside": beside, **self._fixed}
        self.due: dict[str, Any] | None = prepare

    @property
    def _fixed(self) -> dict[str, Any]:
        """What is given once, as an order names it."""
        return {"w": self._w and self._w.text, "bias": self._bias and self._bias.text}

    def _fix(self, data: Operands) -> None:
        for slot, values in ((self._w, data.w), (self._bias, data.bias)):
            if slot is not None:
                self._arena.view(slot)[...] = values

    def refuses(self) -> bool:
        """Whether a call with the operands of the trial, or preparing for it, raises an OverflowError."""
        self._lay(self._trial.data.call)
        facts = self._judged.obey("beyond", spec=str(self._trial.spec),
                                  operands=[o.text for o in self._operands], **self._fixed)  # fmt: skip
        return bool(facts["raised"])

    def traceable(self, trial: Trial) -> dict[str, Any]:
        """An order to prepare and run ``trial`` in the place of this one."""
        self._lay(trial.data.call)
        self._fix(trial.data)
        return {"spec": str(self._trial.spec), **self._fixed,
                "operands": [o.text for o in self._operands], "result": self._results[0].text}  # fmt: skip

    @property
    def traced_result(self) -> np.ndarray:
        return self._arena.view(self._results[0])

    def call(
        self, operands: Sequence[np.ndarray], place: int = 0, out: bool = False, watch: bool = False,
        after: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """The result of one call, in one of two places that later calls overwrite;
        WrongResultError for what is no result.

        ``after`` another one, whose result is ``before`` as it looks then.
        """
        self._lay(operands)
        target = self._arena.view(self._out)
        target[...] = POISON[kind(target.dtype)]
        due, self.due = self.due, None
        facts = self._judged.obey(
            "call", operands=[o.text for o in self._operands], result=self._results[place].text, due=due,
            out=self._out.text if out else None, watch=watch, before=self._out.text if after else None,
        )
        self.took_s = facts["took_s"]
        self._referred |= facts["referred"]
        self._regular(facts, out)
        self._untouched(operands)
        return target if out else self._arena.view(self._results[place])

    def again(self) -> list[np.ndarray]:
        """After a call on other operands: results of up to ``AGAIN`` calls with those of the trial, one that
        is unlike the first, if any is, and the last.
        """
        operands, results = ([slot.text for slot in slots] for slots in (self._operands, self._results))
        facts = self._judged.obey("remembers", operands=operands, short=self.took_s <= SHORT_S)
        if facts["remembered"]:
            raise WrongResultError(
                "calls on operands seen before take a fraction of the time: results are remembered"
            )
        self.took_s = facts["took_s"]
        if self.took_s > AGAIN_S and not self._referred:
            return []
        self._lay(self._trial.data.call)
        facts = self._judged.obey(
            "again", operands=operands, results=results, most=AGAIN, every=self.took_s <= SHORT_S,
            least=MORE_THAN_A_RING if self._referred else 1,
        )
        if facts["left_over"]:
            raise WrongResultError("threads that a call started outlive it")
        if facts["grown"]:
            raise WrongResultError(f"calls leave {' and '.join(facts['grown'])} behind")
        self._unchanged(facts)
        if overlapping(facts["spans"]):
            raise WrongResultError("results of several calls share memory: a buffer is reused")
        return [self._arena.view(r) for r in self._results]

    def _lay(self, operands: Sequence[np.ndarray]) -> None:
        for slot, values in zip(self._operands, operands, strict=True):
            self._arena.view(slot)[...] = values

    @staticmethod
    def _unchanged(facts: dict[str, Any]) -> None:
        if facts["changed"]:
            raise WrongResultError(f"it changed {' and '.join(facts['changed'])} of the process")

    @property
    def before(self) -> np.ndarray:
        """What the result before the last one looks like after it."""
        return self._arena.view(self._out)

    def _regular(self, facts: dict[str, Any], out: bool) -> None:
        spec, dtype = self._trial.spec, self._trial.dtype
        if out and not facts["out"]:
            raise WrongResultError("a call with out= returned another array")
        if not facts["array"]:
            raise WrongResultError(f"the result is a {facts['kind']}, not an array of NumPy's")
        if tuple(facts["shape"]) != spec.result_shape:
            raise WrongResultError(f"the result has shape {tuple(facts['shape'])}, not {spec.result_shape}")
        if np.dtype(facts["dtype"]) != dtype:
            raise WrongResultError(f"the result is {np.dtype(facts['dtype'])}, not {dtype}")
        if facts["inside"]:
            raise WrongResultError("the result lies in the memory of an operand")
        if facts["held"] > 2 * math.prod(spec.result_shape) * dtype.itemsize + HELD_SLACK:
            raise WrongResultError(
                f"the result is part of a buffer of {facts['held']:,} bytes, which it keeps alive"
            )
        self._unchanged(facts)
        if facts["written"]:
            raise WrongResultError("the plan wrote to an operand, if only for a while")
        if not facts["writable"]:
            raise WrongResultError("the result is read-only")
        if not facts["ordered"]:
            raise WrongResultError("the result is not contiguous in the order of its layout")
        if facts.get("moved"):
            raise WrongResultError("the result still changed after the call had returned")
        if facts.get("busy"):
            raise WrongResultError("threads still work after the call has returned")

    def _untouched(self, operands: Sequence[np.ndarray]) -> None:
        """Operands and weights hold what they held, and nobody wrote beside an array."""
        named = [*zip(("first operand", "second operand"), self._operands, operands, strict=False)]
        data = self._trial.data
        named += [(name, slot, values) for name, slot, values in
                  (("weights", self._w, data.w), ("bias", self._bias, data.bias))
                  if slot is not None and values is not None]  # fmt: skip
        for name, slot, values in named:
            if not np.array_equal(bits(self._arena.view(slot)), bits(values)):
                raise WrongResultError(f"the plan changed its {name}")
        if not all(self._arena.intact(slot) for slot in (*(slot for _, slot, _ in named), self._out)):
            raise WrongResultError("the plan wrote beside an array that it was given")


def bits(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)
