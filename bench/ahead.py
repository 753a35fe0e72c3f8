"""Compiling before anything is measured, on all cores: a kernel keeps one core busy, and a launch would open
one case after the other.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from algos.engine.kept import LOAD_S
from algos.host import usable_cores
from algos.lower.search import chain
from bench import perf_counter
from bench.cases import Case, Settings
from bench.launching import opening
from bench.pool import Worker, WorkerFailed, measuring

WORTH_S = 4.0  # of compiling: less is done while cases are opened


def lacking(cases: Iterable[Case]) -> list[tuple[float, Case]]:
    """Cases that between them need all code which is not compiled yet, and seconds, in their order."""
    found: dict[frozenset, tuple[float, Case]] = {}
    for case in cases:
        if case.record.status != "ok" or case.algorithm.device != "cpu":
            continue
        way = chain(case.algorithm, case.spec, case.record.threads)
        if (seconds := way.compiling_s()) <= LOAD_S:
            continue
        code = frozenset((way.algorithm.name, way.algorithm.specialised(leaf)) for leaf in way.leaves)
        if code not in found or case.spec.macs < found[code][1].spec.macs:
            found[code] = seconds, case
    return [*found.values()]


def compile_ahead(cases: Iterable[Case], settings: Settings, tell: Callable[[str], None]) -> None:
    """Have processes of their own compile what ``cases`` lack, where that is worth it and can be kept, for
    half of the run's budget at most: all of it, what takes long first, or what the first ones need. What
    fails shows when it is measured.
    """
    crew, limit_s = usable_cores(), math.inf if settings.run_budget_s is None else settings.run_budget_s / 2
    found = lacking(cases) if crew > 1 else []
    if (total_s := sum(seconds for seconds, _ in found)) < WORTH_S or not _kept():
        return
    end = perf_counter() + limit_s
    if total_s < crew * limit_s:
        found.sort(key=lambda one: -one[0])
    todo: SimpleQueue[Case] = SimpleQueue()
    for _, case in found:
        todo.put(case)
    workers: list[Worker] = []
    telling = threading.Lock()

    def work() -> None:
        worker: Worker | None = None
        with contextlib.suppress(Empty):
            while perf_counter() < end:
                case = todo.get_nowait()
                if worker is None or not worker.running:
                    worker = Worker(case.record.threads)
                    workers.append(worker)
                with telling:
                    tell(f"{case.spec} {case.algorithm.name}, compiling")
                with contextlib.suppress(WorkerFailed):
                    worker.ask(settings.answer_s, case=0, **opening(case, settings, 0, timed=False))
                    worker.ask(settings.answer_s, case=0, do="close")

    with measuring(), ThreadPoolExecutor(crew) as pool:
        try:
            for done in [pool.submit(work) for _ in range(crew)]:
                done.result()
        finally:
            with contextlib.suppress(Empty):
                while todo.get_nowait():  # somebody interrupts
                    pass
            for worker in workers:
                worker.end()


def _kept() -> bool:
    """Whether compiled code stays on the disk."""
    from algos.engine.jit import cache_folder  # with the compiler, which a controller does without

    return cache_folder() is not None
