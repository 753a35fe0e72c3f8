"""What a measuring process holds of one case: its plan, its operands and its turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from random import Random
from typing import TYPE_CHECKING, Any

from bench import perf_counter

if TYPE_CHECKING:
    from algos.spec import ConvSpec

PREPARE_REPEATS, PREPARE_BUDGET_S = 5, 0.02
# Calls after the last sample: what goes wrong now and then shows in one of them
LEAST_LATE, MOST_LATE, LATE_S = 2, 50, 0.01
COLD_FACTOR = 10.0  # a first call takes longer than the steady ones by less than this
PAGE, LINE = 4096, 64
LONGEST_MOVE_S = 0.02  # of a prepare
LEAST_BURN_S = 1e-6


class Opened:
    """A case that was opened: its arrays, its plan, its loops."""

    def __init__(self, request: dict[str, Any]) -> None:
        from algos.host import caches
        from algos.registry import get
        from algos.spec import ConvSpec
        from bench.judged import Judged
        from bench.timing import Budget, cache_flusher, device_cache_flusher, pilot

        self.spec = ConvSpec.parse(request["spec"])
        self.algorithm = get(request["algorithm"])
        self.threads: int = request["threads"]
        self.judged = Judged(self.algorithm, self.threads)
        self.budget = Budget(**request["budget"])
        self.cold: bool = request["cold"]
        self.flush = None
        if self.cold:
            on_device = self.algorithm.device == "cuda"
            self.flush = (
                device_cache_flusher(self.algorithm.to_device) if on_device else cache_flusher(caches()["L3"])
            )
        self.operands, self.weights, self.bias, self.h2d_s = self._arrays(request["seed"])
        self.seed, self.launch, self.moves = request["seed"], request["launch"], Random(request["launch"])
        self.cell = self._changing()
        start = perf_counter()
        self.plan = self._prepare()
        self.algorithm.synchronize()
        self.prepare_cold_s = perf_counter() - start
        self.burn: float | None = request.get("burn")
        self.call = self._caller()
        start = perf_counter()
        result = self.call()
        self.algorithm.synchronize()
        self.first_run_s = perf_counter() - start
        self.last: tuple[float | None, Any] = (None, None)
        self.d2h_s = None
        if self.algorithm.device == "cuda":
            start = perf_counter()
            self.algorithm.to_host(result)
            self.d2h_s = perf_counter() - start
        self.prepare_s = self._prepare_s() if request["timed"] else self.prepare_cold_s
        self.call_s, self.loops = self.first_run_s, 1
        # Perhaps only because it was the first
        if request["slow_s"] < self.first_run_s < COLD_FACTOR * request["slow_s"]:
            start = perf_counter()
            self.call()
            self.algorithm.synchronize()
            self.call_s = perf_counter() - start
        if request["timed"] and self.call_s <= request["slow_s"]:
            self.call_s, self.loops = pilot(self.call, self.algorithm.synchronize, self.budget, self.cold)

    def _arrays(self, seed: int) -> tuple[list[Any], Any, Any, float | None]:
        """Operands in the algorithm's memory order and on its device; the
        conversion is not timed, the transfer apart.
        """
        from algos.door import in_layout

        made = _operands(self.spec, seed)
        arrays = [in_layout(a, self.algorithm.layout) for a in made.call]
        weights = made.w if self.spec.direction != "weight_gradient" else None
        if self.algorithm.device != "cuda":
            return arrays, weights, made.bias, None
        self.algorithm.to_device(arrays[0])  # the first transfer also wakes the driver
        self.algorithm.synchronize()
        start = perf_counter()
        moved = [self.algorithm.to_device(a) for a in arrays]
        self.algorithm.synchronize()
        return moved, weights, made.bias, perf_counter() - start

    def _prepare_s(self) -> float:
        """Median of some repetitions."""
        times: list[float] = []
        while not times or (len(times) < PREPARE_REPEATS and sum(times) < PREPARE_BUDGET_S):
            start = perf_counter()
            self._prepare()
            self.algorithm.synchronize()
            times.append(perf_counter() - start)
        return statistics.median(times)

    def _prepare(self) -> Any:
        from algos.plans import prepared

        return prepared(self.spec, self.weights, self.algorithm, self.threads, bias=self.bias)

    def _caller(self) -> Callable[[], Any]:
        plan = self.plan if self.burn is None else burning(self.plan, self.burn)
        return caller(plan, self.operands, self.cell)

    def _changing(self) -> memoryview | None:
        """The element, or its real part, that every call finds changed, so that no result can be remembered;
        None on a device.
        """
        from algos.dtypes import real
        from bench.trials import changing

        element, part = changing(self.spec, self.seed, self.launch), real(self.spec.in_dtype)
        if element is None or self.algorithm.device != "cpu" or part.itemsize < 4:
            return None
        *outer, last = element
        return memoryview(self.operands[0][(*outer, slice(last, last + 1))].view(part)[:1])

    def opened(self) -> dict[str, Any]:
        return {
            "prepare_cold_s": self.prepare_cold_s,
            "prepare_s": self.prepare_s,
            "first_run_s": self.first_run_s,
            "h2d_s": self.h2d_s,
            "d2h_s": self.d2h_s,
            "call_s": self.call_s,
            "loops": self.loops,
        }

    def move(self) -> None:
        """Lie elsewhere from now on: where operands, workspace and packed weights lie decides speed, by luck.
        """
        if self.algorithm.device == "cpu" and self.prepare_s < LONGEST_MOVE_S:
            self.last, self.plan = (None, None), None
            self.operands = [_elsewhere(a, self.moves.randrange(PAGE // LINE) * LINE) for a in self.operands]
            self.cell = self._changing()
            self.plan = self._prepare()
            self.call = self._caller()

    def warm(self, move: bool) -> dict[str, Any]:
        """The uncounted calls at the beginning of a turn."""
        from bench.timing import LONGEST_WARM_UP_S, warm_up

        if move:
            self.move()
        if self.call_s < LONGEST_WARM_UP_S and self.flush is None:
            warm_up(self.call)
        return {}

    def sample(self) -> dict[str, Any]:
        """The counted ones: nothing else happens between the controller's question and the answer."""
        from bench.timing import take

        count = 1 if self.cold else self.budget.chunk(self.call_s, self.loops)
        self.last = (None, None)
        samples, result = take(self.call, self.algorithm.synchronize, self.loops, count, self.flush)
        self.last = (self._value(), result)
        return {"samples_s": samples}

    def rest(self) -> dict[str, Any]:
        from algos.engine.quiet import quieten

        quieten()
        return {}

    def _value(self) -> float | None:
        """What the changing element holds now."""
        return None if self.cell is None else float(self.cell[0])

    def late(self, points: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the last of the timed calls gave at ``points``, and a few calls
        more, each with its changing element.
        """
        import numpy as np

        at = tuple(np.array(points, np.int64).T)
        calls: list[tuple[float | None, list[float | None]]] = []
        value, result = self.last
        end = perf_counter() + LATE_S
        while True:
            on_host = result if self.algorithm.device == "cpu" else self.algorithm.to_host(result)
            found = np.asarray(on_host)[at]
            found = found.astype(np.complex128 if found.dtype.kind == "c" else np.float64).view(np.float64)
            calls.append((value, [float(v) if np.isfinite(v) else None for v in found]))
            if len(calls) > (LEAST_LATE if perf_counter() > end else MOST_LATE):
                return {"calls": calls}
            result = self.call()
            self.algorithm.synchronize()
            value = self._value()


def caller(plan: Callable[..., Any], operands: Sequence[Any], cell: memoryview | None) -> Callable[[], Any]:
    """A call of the plan that finds one element of its first operand changed: that costs some 50 ns."""
    if cell is None:
        return lambda: plan(*operands)
    draw: Callable[[], Any] = (
        Random(0).random if cell.format in ("f", "d") else partial(Random(0).randrange, 8)
    )

    def call() -> Any:
        cell[0] = draw()
        return plan(*operands)

    return call


def _elsewhere(array: Any, offset: int) -> Any:
    """A copy in fresh memory, ``offset`` bytes behind the beginning of a page; its axes lie in the same
    order.
    """
    import numpy as np

    room = np.empty(array.nbytes + PAGE + offset, np.uint8)
    start = -room.ctypes.data % PAGE + offset
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    flat = room[start : start + array.nbytes].view(array.dtype).reshape([array.shape[axis] for axis in order])
    copy = flat.transpose(np.argsort(order))
    copy[...] = array
    return copy


def burning(plan: Callable[..., Any], share: float) -> Callable[..., Any]:
    """The plan, and ``share`` of each call's time wasted after it: a slowdown that is known.

    What short calls owe is saved up until it can be read off the clock. Without a share it costs the same as
    with one: 0.2 us, of which nothing is wasted, so that 5% of a call of 5 us are 4.8% of what is timed.
    """
    owed = 0.0

    def run(*operands: Any) -> Any:
        nonlocal owed
        start = perf_counter()
        result = plan(*operands)
        now = perf_counter()
        owed += share * (now - start)
        if owed > LEAST_BURN_S:
            end = now + owed
            while now < end:
                now = perf_counter()
            owed = max(end - now, -LEAST_BURN_S)  # paid back, but for what the system took while it burnt
        return result

    return run


@lru_cache(maxsize=1)
def _operands(spec: ConvSpec, seed: int) -> Any:
    """Shared by the algorithms that are measured on one spec; plans leave them unchanged, which the check
    proves.
    """
    from bench.data import operands

    return operands(spec, seed)


def finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity; the largest number stands for both."""
    if value is None or abs(value) <= sys.float_info.max:
        return None if value is None else float(value)
    return sys.float_info.max
