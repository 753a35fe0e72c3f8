"""BLAS held to a plan's threads: per call, from any thread, given back, and never
in the way of the user's own limits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import algos
from algos.engine import blas
from algos.engine.blas import blas_limit
from algos.engine.threads import blas_limit as shared_limit
from algos.engine.threads import share
from tests.conftest import HUNG_S

X, W = np.ones((1, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32)
Found = TypeVar("Found")


def counts() -> set[int]:
    """What a user reads."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def real() -> set[int]:
    """What BLAS really runs with."""
    return {library.get() for library in blas._libraries.values()}


def elsewhere(question: Callable[[], Found]) -> Found:
    """Its answer from another thread."""
    answers: list[Found] = []
    thread = threading.Thread(target=lambda: answers.append(question()))
    thread.start()
    thread.join(60)
    return answers[0]


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    """BLAS runs with three threads, more or fewer than there are cores; afterwards it does so again."""
    blas.find_blas()
    before = {library: library.get() for library in blas._libraries.values()}
    if not before:
        pytest.skip("no OpenBLAS whose threads belong to the process")
    for library in before:
        library._set(3)
    yield
    after = counts(), real()
    for library, count in before.items():
        library._set(count)
    assert after == ({3}, {3})


def convolve() -> None:
    algos.conv2d(X, W, padding=1, threads=1, algorithm="im2col_gemm")


def limited() -> set[int]:
    with threadpool_limits(1, user_api="blas"):
        assert counts() == {1}
        return real()


def held() -> set[int]:
    with blas_limit(1):
        assert counts() == {1}
        return real()


def test_a_limit_holds_inside_its_block_from_any_thread() -> None:
    assert shared_limit is blas_limit
    assert held() == elsewhere(held) == held() == {1}
    assert real() == {3}


def test_after_our_calls_a_user_can_limit_blas_from_another_thread() -> None:
    convolve()
    assert elsewhere(limited) == limited() == {1}
    elsewhere(convolve)
    assert elsewhere(limited) == limited() == {1}


def test_calls_at_once_hold_the_smallest_and_give_back_what_was() -> None:
    with blas_limit(2):
        assert real() == {2}
        with blas_limit(1):
            assert real() == {1}
        assert real() == {2}
        assert elsewhere(held) == {1} and real() == {2}

    threads = [threading.Thread(target=convolve) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert real() == {3}


class User:
    """A thread that limits BLAS until ``end``."""

    def __init__(self, threads: int) -> None:
        self.begun, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.limit, args=(threads,))
        self.thread.start()
        assert self.begun.wait(60)

    def limit(self, threads: int) -> None:
        with threadpool_limits(threads, user_api="blas"):
            self.begun.set()
            self.over.wait(60)

    def end(self) -> None:
        self.over.set()
        self.thread.join(60)


@pytest.mark.parametrize("count", [1, 2])
def test_a_user_s_limit_that_begins_during_a_call_outlives_it(count: int) -> None:
    with blas_limit(2):
        user = User(count)
        assert real() == {count}
    assert counts() == real() == {count}
    user.end()
    assert real() == {3}


@pytest.mark.parametrize("count", [1, 2])
def test_a_user_s_limit_that_ends_during_a_call_gives_back_what_the_user_had(count: int) -> None:
    with blas_limit(1):
        user = User(count)
        assert elsewhere(counts) == {count} and real() == {1}
        user.end()
        assert elsewhere(counts) == {3} and real() == {1}
    assert real() == {3}


def test_a_user_s_limit_around_calls_of_other_threads_is_kept() -> None:
    user = User(2)
    assert elsewhere(held) == held() == {1} and real() == {2}
    with blas_limit(1):
        user.end()
        assert real() == {1}
    assert real() == {3}


def test_a_limit_that_a_call_sets_inside_ends_with_it() -> None:
    with blas_limit(2):
        threadpool_limits(1, user_api="blas")
        assert counts() == real() == {1}
    assert real() == {3}


def test_no_call_raises_blas_above_what_the_user_set() -> None:
    with threadpool_limits(1, user_api="blas"), blas_limit(2):
        assert real() == {1}


def test_a_plan_s_threads_hold_whenever_it_is_called() -> None:
    """Made while BLAS happened to have its number of threads, called when it has not."""
    seen: list[set[int]] = []

    class Looks(algos.contract.Algorithm):  # type: ignore[name-defined]
        support = algos.Support()

        def prepare(
            self, spec: algos.ConvSpec, weights: np.ndarray, threads: int = 1
        ) -> Callable[..., np.ndarray]:
            def run(x: np.ndarray) -> np.ndarray:
                seen.append(counts())
                return np.zeros(spec.output_shape, np.float32)

            return run

        def workspace_bytes(self, spec: algos.ConvSpec, threads: int = 1) -> int:
            return 0

    spec = algos.ConvSpec.parse("1x8x16x16,8x8x3x3,p1")
    with threadpool_limits(1, user_api="blas"):
        plan = algos.plans.prepared(spec, W, Looks(name="looks", family="direct"), 1)
    plan(X)
    elsewhere(lambda: plan(X))
    assert seen == [{1}, {1}]


def test_what_is_set_past_threadpoolctl_during_a_call_stays() -> None:
    with blas_limit(1):
        for library in blas._libraries.values():
            library._set(2)
    assert real() == {2}
    for library in blas._libraries.values():
        library._set(3)


def test_an_error_gives_blas_back() -> None:
    with pytest.raises(KeyboardInterrupt), blas_limit(1):
        raise KeyboardInterrupt
    assert real() == {3}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_during_another_thread_s_call_is_free_of_it() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with blas_limit(1):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    child = os.fork()
    if not child:
        os._exit(0 if real() == {3} and held() == {1} else 1)
    leave.set()
    thread.join(60)
    assert os.waitpid(child, 0)[1] == 0


class OfAThread:
    """A library as MKL is: every thread has a number of its own."""

    def __init__(self) -> None:
        self.threads = threading.local()

    def get_num_threads(self) -> int:
        return getattr(self.threads, "count", 8)

    def set_num_threads(self, count: int) -> None:
        self.threads.count = count


def test_helpers_hold_a_library_whose_limit_belongs_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OfAThread()
    monkeypatch.setattr(blas, "_others", [library])
    monkeypatch.setattr(blas, "_modules", len(sys.modules))
    meeting = threading.Barrier(2)
    seen: list[int] = []

    def job(first: int, last: int) -> None:
        meeting.wait(60)
        seen.append(library.get_num_threads())

    with blas_limit(1):
        share(job, 2, 2)
    share(job, 2, 2)
    assert seen == [1, 1, 8, 8]


STARTED = """
import numpy, threadpoolctl, algos
from algos.engine import blas
from algos.engine.threads import checked_threads
blas.find_blas()
real = lambda: [library.get() for library in blas._libraries.values()]
algos.conv2d(numpy.ones((1, 8, 16, 16)), numpy.ones((8, 8, 3, 3)), algorithm="im2col_gemm")
with blas.blas_limit(2):
    by_number = real()
with threadpoolctl.threadpool_limits(1):
    pass
print(checked_threads(None), real(), by_number)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a second core")
def test_omp_num_threads_is_a_default_that_threads_by_number_overrule(environment: dict[str, str]) -> None:
    one = {**environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STARTED], env=one, capture_output=True, text=True, timeout=HUNG_S
    )
    assert done.stdout.split("\n")[0] == "1 [1] [2]", done.stderr
