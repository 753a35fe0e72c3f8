"""Helpers that listen: jobs are done once and in full, with help or without, from
several threads, after sleep and at exit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from algos import ConvSpec, get
from algos.engine import relay
from algos.engine.jit import compiled, linked
from algos.engine.relay import ASLEEP, Helpers, fork, helpers, pause
from algos.engine.threads import usable_cores
from tests.conftest import HUNG_S

SPEC = ConvSpec.parse("1x64x60x60,64x1x3x3,p1")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper, even where one core is all there is."""
    monkeypatch.setattr(relay, "usable_cores", lambda: 2)
    made = Helpers()
    monkeypatch.setattr("algos.cpu._compiled.helpers", lambda: made)


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(SPEC.input_shape, np.float32), rng.random(SPEC.weight_shape, np.float32)


def test_plans_called_from_several_threads_at_once(two_cores: None) -> None:
    wrong: list[int] = []

    def call(seed: int) -> None:
        x, w = operands(seed)
        right = get("depthwise").prepare(SPEC, w, 1)(x)
        plan = get("depthwise").prepare(SPEC, w, 2)
        wrong.extend(seed for _ in range(50) if not np.array_equal(plan(x), right))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_helpers_sleep_when_nothing_comes_and_wake_again(two_cores: None) -> None:
    x, w = operands(0)
    plan = get("depthwise").prepare(SPEC, w, 2)
    right = plan(x)
    crew = sys.modules["algos.cpu._compiled"].helpers()
    end = time.monotonic() + HUNG_S
    while crew.boxes[0, 0] != ASLEEP and time.monotonic() < end:
        time.sleep(0.01)
    assert crew.boxes[0, 0] == ASLEEP
    np.testing.assert_array_equal(plan(x), right)
    crew.end()
    assert not any(thread.is_alive() for thread in crew._threads)
    np.testing.assert_array_equal(plan(x), right)  # without any helper


def test_one_set_of_helpers_for_the_process() -> None:
    assert helpers() is helpers()
    assert helpers().hire(1000) == helpers().limit < 63


@linked()
def mark(slots, turns, slot, first, last):
    total = 0.0
    for i in range(turns):
        total += 1.0 / (i + 1)
    for item in range(first, last):
        slots[item] += slot + 1 if total > 0 else 0


@compiled()
def mark_all(slots, turns, job):
    fork(mark, (slots, turns), job)


@compiled()
def mark_often(slots, job, calls):
    for _ in range(calls):
        fork(mark, (slots, 1), job)
        for _ in range(60):
            pause()


@pytest.mark.parametrize("hands", [0, 1, 2])
def test_every_chunk_is_done_once_whoever_does_it(hands: int) -> None:
    crew = Helpers()
    crew.limit, crew.boxes = 2, np.zeros((2, relay.BOX), np.int64)
    for items, chunks in ((1, 1), (2, 2), (7, 7), (100, 100), (100, 7), (7, 1)):
        slots, job = np.zeros(items, np.int64), crew.job(items, hands + 1)
        job[relay.CHUNKS] = chunks
        for turns in (1, 1000, 1):
            slots[:] = 0
            crew.wake(hands)
            mark_all(slots, turns, job)
            assert set(slots) <= set(range(1, hands + 2)) and job[relay.NEXT] & 0xFFFFFFFF >= 1
    crew.end()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or usable_cores() < 2,
                    reason="needs a second core, and a say in it")
def test_a_helper_wakes_on_another_core_than_the_caller() -> None:
    """On the caller's it would take the time that it is to save, for as long as nobody moves it."""
    crew = Helpers()
    crew.limit, crew.boxes = 1, np.zeros((1, relay.BOX), np.int64)
    crew.hire(1)
    allowed = os.sched_getaffinity(0)
    try:
        for core in sorted(allowed)[:2] * 2:
            os.sched_setaffinity(0, {core})
            os.sched_setaffinity(0, allowed)  # free again, but it has just been there
            while crew.boxes[0, 0] != ASLEEP:
                time.sleep(0.001)
            crew.wake(1)
            (avoided,) = allowed - os.sched_getaffinity(crew._threads[0].native_id or 0)
            assert avoided == crew._avoided[0]
    finally:
        os.sched_setaffinity(0, allowed)
    crew.end()


def test_a_helper_that_wakes_late_still_joins_a_long_job() -> None:
    crew = Helpers()
    crew.limit, crew.boxes = 1, np.zeros((1, relay.BOX), np.int64)
    slots, job = np.zeros(64, np.int64), crew.job(64, 2)
    job[relay.CHUNKS] = 64
    end = time.monotonic() + HUNG_S
    while 2 not in slots and time.monotonic() < end:
        while crew.boxes[0, 0] != ASLEEP and time.monotonic() < end:
            time.sleep(0.001)
        crew.wake(1)
        mark_all(slots, 1_000_000, job)  # some 0.1 s, hundreds of times what waking takes
    assert 2 in slots and 0 not in slots
    crew.end()


EXIT = """
import numpy as np
from algos import ConvSpec, get
spec = ConvSpec.parse("1x64x60x60,64x1x3x3,p1")
plan = get("depthwise").prepare(spec, np.ones(spec.weight_shape, np.float32), 2)
for _ in range(20):
    y = plan(np.ones(spec.input_shape, np.float32))
print(y[0, 0, 30, 30])
"""


def test_exit_while_helpers_listen() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=HUNG_S)
        assert (done.returncode, done.stdout, done.stderr) == (0, "9.0\n", "")


TAKEN_BACK = """
import os, threading, time
import numpy as np
from algos.engine.relay import BOX, BOXES, CHUNKS, HELPERS, ITEMS, WORDS, listen
from tests.test_relay import mark_often

boxes, slots, job = np.zeros((1, BOX), np.int64), np.zeros(3, np.int64), np.zeros(WORDS, np.int64)
job[CHUNKS] = job[ITEMS] = 3
job[BOXES], job[HELPERS] = boxes.ctypes.data, 1
mark_often(slots, job, 1)
listen(boxes, 0, 1)

def wake_and_sleep():
    while True:
        listen(boxes, 0, 1)

threading.Thread(target=wake_and_sleep, daemon=True).start()
end = time.monotonic() + 2
while time.monotonic() < end:
    slots[:] = 0
    mark_often(slots, job, 10_000)
    assert slots.all()
os._exit(0)
"""


def test_a_helper_never_takes_a_job_that_its_owner_took_back() -> None:
    """It used to read address 0 when it woke in the very moment in which a job ended."""
    done = subprocess.run([sys.executable, "-c", TAKEN_BACK], capture_output=True, text=True, timeout=HUNG_S)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_cannot_start_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Helpers()
    crew.limit = 1
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread,
            "start",
            lambda self: (_ for _ in ()).throw(RuntimeError("can't start new thread")),
        )
        with pytest.raises(RuntimeError, match="can't start"):
            crew.hire(1)
    assert crew.hire(1) == 1 and crew._threads[0].is_alive()
    crew.end()


FORKED = """
import os, time
import numpy as np
from algos import ConvSpec, get
from algos.engine.relay import ASLEEP, helpers
spec = ConvSpec.parse("1x64x60x60,64x1x3x3,p1")
plan = get("depthwise").prepare(spec, np.ones(spec.weight_shape, np.float32), 2)
x = np.ones(spec.input_shape, np.float32)
plan(x)
crew = helpers()
thread = crew._threads[0].native_id
while crew.boxes[0, 0] != ASLEEP:
    time.sleep(0.001)
os.sched_setaffinity(thread, os.sched_getaffinity(0))
crew._avoided[0] = -1
if (child := os.fork()) == 0:
    os._exit(0 if plan(x)[0, 0, 30, 30] == 9 else 1)
print(os.waitpid(child, 0)[1], os.sched_getaffinity(thread) == os.sched_getaffinity(0))
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or usable_cores() < 2, reason="needs a second core, and a say in it"
)
def test_a_forked_child_leaves_its_parents_threads_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=HUNG_S
    )
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr
