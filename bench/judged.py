"""The judged side of a check: runs an algorithm as it is told, reports what it saw, and decides nothing.

Orders and answers are plain JSON; arrays lie in an arena that the judge lays out, so that the verdict can be
found in another process than the one in which the algorithm ran. ``bench.check`` gives the orders.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import process_time, sleep
from typing import Any

import numpy as np

from algos.contract import Algorithm
from algos.dtypes import whole
from algos.engine.memory import rooms
from algos.engine.quiet import running
from algos.lower.search import chain, unsupported
from algos.plans import Plan, prepared
from algos.spec import ConvSpec
from bench import perf_counter
from bench.arena import Apart, Arena, Slot
from bench.surroundings import Surroundings

# How long after a call it is watched whether anything still works for it
WATCH_S, LONGEST_WATCH_S = 0.005, 0.1
BUSY_S = 0.001  # of CPU time in it; threads that only wait take none
MOST_STARTS = 3
MANY = 10  # calls, after which it is tried beside another plan
# Of calls beside those of another plan in a thread, and of whole ones between two lines
TOGETHER_S, BETWEEN_S = 0.0005, 0.003
WAITED_S = 0.05  # for one of them at most
LINES, LONGER = 16, 5  # so many lines, where that takes no longer than some times of what is meant for all
FEW_S, MORE_S = 0.006, 0.002  # of calls again where not all are made: for the first few, and for more
# Rounds of calls on operands that are new, on the same but for one element, and on the very same; more until
# it is decided
ROUNDS, SURE_ROUNDS, MOST_ROUNDS = 5, 15, 25
REMEMBERED, REMEMBERED_S = 3.0, 20e-6  # how much longer the new ones take when results are remembered
TRACED = ("numpy", "numba")  # runtimes whose arrays are NumPy's, which tells tracemalloc
LONGEST_S = 1.0  # of calls again, where a busy machine gives fewer of the processor
KEPT_BYTES = 64 << 20  # of results that are held while a plan is called again
# Calls after which a plan holds no more than before, where they take no longer in all
GROWING, GROWING_S = 4, 0.02
DOUBTS, DOUBTFUL = 2, 4  # calls more where one took at most so many times as long
LEAST_GROWTH = 4096  # bytes a call; less may be objects of Python that anybody made meanwhile


class Judged:
    """An algorithm that does what a judge orders.

    Parameters
    ----------
    algorithm : Algorithm
    threads : int
    """

    def __init__(self, algorithm: Algorithm, threads: int) -> None:
        self._algorithm, self._threads = algorithm, threads
        self._arena: Arena | None = None
        self._plan: Plan | None = None
        self._spec, self._best_s = "", math.inf  # of the processor for one call, at best
        self._earlier: list[Plan] = []
        self._weights: list[np.ndarray] = []  # and bias of the plan, where the judge laid them
        self._kept: list[np.ndarray] = []
        self._surroundings = Surroundings()
        self._strangers = threading.enumerate()  # threads that cannot be the algorithm's

    def obey(self, order: str, **details: Any) -> dict[str, Any]:
        """Carry out one order; whatever the algorithm raises propagates."""
        return getattr(self, f"_{order}")(**details)

    def share(self, arena: Arena) -> None:
        """Use an arena of the same process."""
        self._arena = arena

    def _map(self, path: str, size: int) -> dict[str, Any]:
        """Map the judge's arena."""
        file = os.open(path, os.O_RDWR)
        try:
            self._plan, self._earlier, self._weights, self._kept, self._arena = None, [], [], [], None
            self._arena = Arena(size, file)
        finally:
            os.close(file)
        return {}

    def _supports(self, spec: str) -> dict[str, Any]:
        return {"supported": unsupported(self._algorithm, ConvSpec.parse(spec)) is None}

    def _chain(self, spec: str) -> dict[str, Any]:
        """The lowerings through which it solves a problem."""
        return {"names": chain(self._algorithm, ConvSpec.parse(spec), self._threads).names}

    def _matrices(self, spec: str) -> dict[str, Any]:
        """The matrices of a Winograd algorithm, their fractions as text; None where it exposes none."""
        if not hasattr(self._algorithm, "transforms"):
            return {"transforms": None}
        found = self._algorithm.transforms(ConvSpec.parse(spec))
        return {
            "transforms": [[[[str(v) for v in row] for row in matrix] for matrix in axis] for axis in found]
        }

    def _prepare(
        self, spec: str, w: list[Any] | None, bias: list[Any] | None, beside: bool
    ) -> dict[str, Any]:
        """A plan; with ``beside`` the one before stays, to be called again."""
        self._kept.clear()
        self._earlier = [self._plan] if beside and self._plan is not None else []
        if self._earlier:
            self._surroundings.undo()
        self._plan = None
        self._weights = [self._view(a) for a in (w, bias) if a is not None]
        self._plan = self._planned(ConvSpec.parse(spec), w, bias)
        if spec != self._spec:
            self._spec, self._best_s = spec, math.inf
        return {}

    def _planned(self, spec: ConvSpec, w: list[Any] | None, bias: list[Any] | None) -> Plan:
        weights, added = (None if a is None else self._view(a) for a in (w, bias))
        return prepared(spec, weights, self._algorithm, self._threads, bias=added)

    def _beyond(
        self, spec: str, w: list[Any] | None, bias: list[Any] | None, operands: list[Any]
    ) -> dict[str, Any]:
        """Whether sums that do not fit their type are refused."""
        self._plan, self._earlier = None, []
        try:
            self._planned(ConvSpec.parse(spec), w, bias)(*map(self._view, operands))
        except OverflowError:
            return {"raised": True}
        return {"raised": False}

    def _return(self) -> dict[str, Any]:
        """Go on with the plan that stayed; the last one stays beside it."""
        assert self._plan is not None
        self._kept.clear()
        self._plan, self._earlier = self._earlier[0], [self._plan]
        return {}

    def _call(
        self, operands: list[Any], result: list[Any], out: list[Any] | None, watch: bool,
        before: list[Any] | None, due: dict[str, Any] | None,
    ) -> dict[str, Any]:  # fmt: skip
        """One call, after the order that is ``due``; its result is copied to ``result`` at once, kept, and
        described.

        What the one before it looks like then is copied to ``before`` if given, and none is kept any longer.
        """
        if due is not None:
            self.obey(**due)
        assert self._plan is not None
        assert self._arena is not None
        memory: Arena | Apart = self._arena
        if watch:
            with contextlib.suppress(OSError, ValueError):  # no room for it
                memory = self._arena.apart()
        given = [memory.view(Slot.of(o)) for o in operands]
        target = None if out is None else self._view(out)
        start = process_time()
        y = self._plan(*given) if target is None else self._plan(*given, out=target)
        self._best_s = min(self._best_s, process_time() - start)
        busy = _busy_seconds(self._own_threads()) if watch else {}  # at once: who works on may be done soon
        facts: dict[str, Any] = {
            "out": y is target,
            "kind": f"{type(y).__module__}.{type(y).__name__}",
            "array": False,
            "took_s": self._best_s,
            "referred": target is None and _referred(_references(y)),
        }
        y = self._on_host(y)
        if type(y) is not np.ndarray:  # one that computes when it is looked at is none either
            return facts
        held = y
        while isinstance(held.base, np.ndarray):
            held = held.base
        facts |= {
            "array": True,
            "shape": list(y.shape),
            "dtype": y.dtype.name if y.dtype.isnative else y.dtype.str,
            "writable": bool(y.flags.writeable),
            "ordered": self._ordered(y),
            "inside": any(np.may_share_memory(y, a) for a in (*given, *self._weights)),
            "held": 0 if y is target else held.nbytes,
            "changed": self._surroundings.changed(),
            "written": isinstance(memory, Apart) and memory.written(),
        }
        copy = self._view(result)
        if y.shape == copy.shape and y.dtype == copy.dtype:
            copy[...] = y
            if watch:
                facts |= self._watched(y, copy, busy)
        self._kept.append(y)
        if before is not None:
            self._view(before)[...] = self._kept[0]
            self._kept.clear()
        return facts

    def _on_host(self, y: Any) -> Any:
        """A result of a device brought here; on the CPU it is what it is."""
        return (
            y if self._algorithm.device == "cpu" or isinstance(y, np.ndarray) else self._algorithm.to_host(y)
        )

    def _ordered(self, y: np.ndarray) -> bool:
        """Whether elements lie as the algorithm's layout says; rows of an array
        without channels-last are fine as well.
        """
        return bool(
            y.flags.c_contiguous
            or (self._algorithm.layout == "nhwc" and np.moveaxis(y, 1, -1).flags.c_contiguous)
        )

    def _own_threads(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in self._strangers]

    def _watched(self, y: np.ndarray, copy: np.ndarray, before: dict[int, float]) -> dict[str, Any]:
        """What still happens after a call has returned, ``before`` which its threads had worked so long."""
        own, start, busy, moving, seen = self._own_threads(), perf_counter(), False, True, before
        # A helper that was woken too late finds nothing to do, once a busy machine lets it run
        while moving and not busy and perf_counter() - start < LONGEST_WATCH_S:
            sleep(WATCH_S)
            now = _busy_seconds(own)
            busy = any(seconds - before.get(name, seconds) > BUSY_S for name, seconds in now.items())
            # One that waits for the interpreter does not run, and has worked a little
            moving = any(running(thread.native_id) for thread in own) or any(
                seconds > seen.get(name, seconds) for name, seconds in now.items()
            )
            seen = now
        same = np.array_equal(y, copy, equal_nan=not whole(y.dtype))
        return {"busy": busy, "moved": not same}

    def _again(
        self, operands: list[Any], results: list[Any], most: int, every: bool, least: int
    ) -> dict[str, Any]:
        """Call again, ``most`` times or, unless ``every`` one, some milliseconds but ``least`` times, and
        beside another plan.

        All results are held where memory allows. Two are copied to ``results``: one that differs from the
        first, if any does, and the last.
        """
        assert self._plan is not None
        given, targets = [self._view(o) for o in operands], [self._view(r) for r in results]
        first: Any = None
        leaving, made, held = 0, 0, self._surroundings.held()
        end, spent_s = perf_counter() + LONGEST_S, 0.0
        while made < most and perf_counter() < end and (every or made < least or _worthwhile(made, spent_s)):
            start = process_time()
            alive = set(sys._current_frames())
            y = self._plan(*given)
            leaving += not set(sys._current_frames()) <= alive
            made, spent_s = made + 1, spent_s + process_time() - start
            if first is None:
                first = other = y
            elif other is first and self._algorithm.device == "cpu" and not np.array_equal(y, first):
                other = y
            if (len(self._kept) + 1) * y.nbytes <= KEPT_BYTES:
                self._kept.append(y)
        if self._algorithm.device == "cpu":
            with ThreadPoolExecutor(1) as helper:
                elsewhere = helper.submit(self._plan, *given).result()
            if other is first and not np.array_equal(elsewhere, first):
                other = elsewhere
            if made >= MANY:
                y = self._together(given, first)
        for result, target in zip((other, y), targets, strict=True):
            target[...] = self._on_host(result)
        grown = {
            what: n
            for what, n in self._surroundings.held().items()
            if MOST_STARTS < n - held[what] > made / 2
        }
        spans = [_span(y) for y in self._kept if isinstance(y, np.ndarray)]
        left_over = leaving > MOST_STARTS and 2 * leaving > made  # a pool may grow in some of the first calls
        return {
            "left_over": left_over,
            "grown": [*grown],
            "spans": spans,
            "changed": self._surroundings.changed(),
        }

    def _together(self, operands: list[np.ndarray], first: Any) -> Any:
        """The result of a call while the plan beside this one works on other operands in a thread, unlike
        ``first`` if any is.

        First whole calls of that one come between lines of the algorithm's Python, then both go on at once.
        """
        assert self._plan is not None
        beside, others, over = self._earlier[0], [np.flip(a).copy() for a in operands], threading.Event()
        own = os.path.dirname(sys.modules[type(self._algorithm).__module__].__file__ or "")
        met: set[tuple[Any, int]] = set()
        call: Future[Any]

        def entered(frame: Any, event: str, argument: Any) -> Any:
            return passed if os.path.dirname(frame.f_code.co_filename) == own else None

        def passed(frame: Any, event: str, argument: Any) -> Any:
            nonlocal call
            place = (frame.f_code, frame.f_lineno)
            if place not in met and call.done() and process_time() < lines_end[len(met) < LINES]:
                met.add(place)
                call = helper.submit(beside, *others)
                wait([call], WAITED_S)  # it may wait for this one
            return passed

        def disturb() -> None:
            while not over.is_set():
                beside(*others)

        with ThreadPoolExecutor(1) as helper:
            call = helper.submit(beside, *others)
            wait([call], WAITED_S)
            lines_end = [process_time() + BETWEEN_S * most for most in (1, LONGER)]
            traced = sys.gettrace()
            try:
                sys.settrace(entered)
                y = self._plan(*operands)
                sys.settrace(traced)
                loop = helper.submit(disturb)
                end = perf_counter() + TOGETHER_S
                while np.array_equal(y, first) and perf_counter() < end:
                    y = self._plan(*operands)
            finally:
                sys.settrace(traced)
                over.set()
            for done in (call, loop):
                done.result()
        return y

    def _remembers(self, operands: list[Any], short: bool) -> dict[str, Any]:
        """Whether a call is far faster on operands that the call before has seen, or all but one element of
        them.

        Of calls that are not ``short`` the last one was new, and one of each other kind follows where that
        decides it. Leaves the operands as they were.
        """
        assert self._plan is not None
        given = [self._view(o) for o in operands]
        first = given[0].reshape(-1)  # a view: slots are contiguous
        if not first.size:
            return {"remembered": False, "took_s": self._best_s}
        original, least, largest = first.copy(), first.min(), first.max()
        times: tuple[list[float], ...] = ([] if short else [self._best_s], [], [])
        remembered: bool | None = None
        while remembered is None:
            made = len(times[1])
            for seen in times:
                if len(seen) > made:  # the last one
                    continue
                # Rolled anew every time: caches and waiting helpers are alike
                first[...] = np.roll(original, made + short)
                if seen is not times[0]:  # within the range that sums allow
                    at = made % first.size
                    first[at] = least if first[at] == largest else largest
                start, busy = perf_counter(), process_time()
                self._plan(*given)
                busy_s = process_time() - busy
                seen.append(min(busy_s, perf_counter() - start))  # waiting for a processor is nobody's work
                self._best_s = min(self._best_s, busy_s)
            remembered = _remembered(times, ROUNDS if short else 1)
        first[...] = original
        return {"remembered": remembered, "took_s": self._best_s}

    def _trace(
        self, spec: str, w: list[Any] | None, bias: list[Any] | None, operands: list[Any], result: list[Any]
    ) -> dict[str, Any]:
        """Peak bytes of prepare and one run, without operands and result, and what the algorithm predicts.

        ``growth`` is what a plan holds more after each call; the first one's result is copied to ``result``.
        """
        problem, algorithm = ConvSpec.parse(spec), self._algorithm
        threads = self._threads
        predicted = chain(algorithm, problem, threads).workspace_bytes(threads) if problem.batch else 0
        if algorithm.runtime not in TRACED:
            return {"seen": None, "predicted": predicted}
        self._plan, self._earlier = None, []
        self._kept.clear()
        given = [self._view(o) for o in operands]
        rooms.clear()  # what was kept of other plans would not be seen
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            plan = self._planned(problem, w, bias)
            y = self._clocked(plan, given)
            seen = tracemalloc.get_traced_memory()[1] - before - int(y.nbytes)
            self._view(result)[...] = y
            growth, shortest_s = 0, GROWING_S / (3 * GROWING)
            for _ in range(DOUBTS):  # a busy machine makes short calls long
                if shortest_s <= self._best_s < DOUBTFUL * shortest_s:
                    self._clocked(plan, given)
            if self._best_s < shortest_s:
                for _ in range(GROWING):  # what is made once is there after these
                    plan(*given)
                # What somebody else made meanwhile is not made again
                growth = _growth(plan, given) and _growth(plan, given)
        finally:
            tracemalloc.stop()
        return {"seen": max(0, seen), "predicted": predicted, "growth": growth}

    def _clocked(self, plan: Plan, operands: list[np.ndarray]) -> Any:
        """The result of a call, whose time is remembered if it is the shortest."""
        start = process_time()
        y = plan(*operands)
        self._best_s = min(self._best_s, process_time() - start)
        return y

    def _view(self, text: list[Any]) -> np.ndarray:
        assert self._arena is not None
        return self._arena.view(Slot.of(text))


def _references(y: Any) -> list[int]:
    """To a result, and to whatever its memory lies in."""
    found = []
    while y is not None:
        found.append(sys.getrefcount(y))
        y = getattr(y, "base", None)
    return found


def _alone() -> list[int]:
    y = np.empty(2)[:1]
    return _references(y)


ALONE = _alone()  # a result that nobody else refers to


def _referred(references: list[int]) -> bool:
    """Whether somebody beside its one owner refers to a result or its memory, as to a buffer that is reused.
    """
    first, *others = references
    return first > ALONE[0] or any(count > ALONE[1] for count in others)


def _worthwhile(made: int, spent_s: float) -> bool:
    """Whether to call once more after so many calls and seconds."""
    return spent_s < (FEW_S if made <= MOST_STARTS + 1 else MORE_S)


def _remembered(times: Sequence[list[float]], rounds: int) -> bool | None:
    """Whether the first of the seconds are far longer than all the others; None if more rounds must tell.

    A neighbour makes calls longer, never shorter: the shortest new one stands against the shortest of the
    others to acquit, against half of them to convict, over so many rounds that no pattern of interruptions
    lasts.
    """
    new, *others = times
    if len(new) < rounds:
        return None

    def longer(share: float) -> bool:
        return min(new) > REMEMBERED * min(sorted(t)[int(share * len(t))] for t in others) + REMEMBERED_S

    if not longer(0.0) or len(new) == MOST_ROUNDS:
        return False
    return True if len(new) >= SURE_ROUNDS and longer(0.5) else None


def _growth(plan: Plan, operands: list[np.ndarray]) -> int:
    """Bytes that a plan holds more after each call; 0 for what may be anybody's. Memory is being traced."""
    before, nbytes = tracemalloc.get_traced_memory()[0], 0
    for _ in range(GROWING):
        nbytes = plan(*operands).nbytes
    most = max(nbytes // 2, LEAST_GROWTH)
    if tracemalloc.get_traced_memory()[0] - before > GROWING * most:
        gc.collect()  # what refers to itself is not kept for ever
    growth = (tracemalloc.get_traced_memory()[0] - before) // GROWING
    return growth if growth > most else 0


def _span(y: np.ndarray) -> list[int]:
    """First and last address of an array's elements."""
    low, high = np.lib.array_utils.byte_bounds(y)
    return [int(low), int(high)]


def _busy_seconds(threads: list[threading.Thread]) -> dict[int, float]:
    """CPU seconds of each; none where the system does not say."""
    found = {}
    for thread in threads:
        if thread.native_id is not None:
            with contextlib.suppress(AttributeError, OSError):  # no such clocks here, or it has ended
                # Linux's clock of a thread, by number: pthread_getcpuclockid of one that has just ended may
                # crash.
                found[thread.native_id] = time.clock_gettime(~thread.native_id << 3 | 6)
    return found


def overlapping(spans: list[list[int]]) -> bool:
    """Whether two of the arrays that were held at once shared memory."""
    end = -math.inf
    for low, high in sorted(spans):
        if high > low and low < end:
            return True
        end = max(end, high)
    return False
