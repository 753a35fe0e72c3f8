"""The timer on a clock that only the calls move: what a sample is, what is inside
it, and when there are enough of them.
"""

from __future__ import annotations

import gc

import pytest

from bench import timing
from bench.timing import MOST_SAMPLES, Budget, pilot, take, warm_up

CALL_S = 3e-3


class Clock:
    """Stands still but for calls, and for what the device and the caches take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pending_s: float = 0.0) -> None:
        self.now_s, self.calls, self.flushed, self.pending_s, self.left_s = 0.0, 0, 0, pending_s, 0.0
        self.collecting = False
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now_s)

    def call(self) -> int:
        self.collecting |= gc.isenabled()
        self.now_s += CALL_S
        self.calls += 1
        self.left_s += self.pending_s  # what the device still has to do
        return self.calls

    def synchronize(self) -> None:
        self.now_s, self.left_s = self.now_s + self.left_s, 0.0

    def flush(self) -> None:
        self.now_s += 1.0
        self.flushed += 1


@pytest.mark.parametrize("loops", [1, 7])
def test_samples_are_seconds_of_one_call(loops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    samples, last = take(clock.call, clock.synchronize, loops, 4)
    assert samples == pytest.approx([CALL_S] * 4)
    assert clock.calls == last == 4 * loops
    assert gc.isenabled() and not clock.collecting


def test_what_the_device_still_does_belongs_to_the_call_that_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, pending_s=0.5)
    clock.left_s = 9.0  # of somebody before
    assert take(clock.call, clock.synchronize, 2, 3)[0] == pytest.approx([CALL_S + 0.5] * 3)


def test_emptying_the_caches_is_outside_the_clock_and_before_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    samples, _ = take(clock.call, clock.synchronize, 1, 5, clock.flush)
    assert samples == pytest.approx([CALL_S] * 5) and clock.flushed == clock.calls == 5


def test_a_pilot_says_how_many_calls_make_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    call_s, loops = pilot(clock.call, clock.synchronize, Budget(sample_s=10 * CALL_S), cold=False)
    assert call_s == pytest.approx(CALL_S) and loops in (10, 11)
    assert pilot(clock.call, clock.synchronize, Budget(sample_s=10 * CALL_S), cold=True)[1] == 1
    assert pilot(clock.call, clock.synchronize, Budget(sample_s=CALL_S / 10), cold=False)[1] == 1


def test_warming_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    warm_up(clock.call)
    assert clock.calls == -(-timing.WARM_UP_S // CALL_S)


def test_a_turn_is_as_long_as_its_share() -> None:
    budget = Budget(turn_s=0.02)
    assert [budget.chunk(call_s, 2) for call_s in (1e-6, 4e-3, 1.0)] == [MOST_SAMPLES, 2, 1]
