"""Any legal spec is answered at once: what algorithms say of a problem never grows with the problem's
numbers.
"""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from algos import Algorithm, ConvSpec, algorithms
from algos.engine.blocks import Axis
from algos.engine.windows import pairs_inside, reach
from algos.lower.tree import plain
from tests.extremes import extreme_specs

SLOWEST_S, MOST_BYTES = 0.02, 1 << 20  # of the process's own time, and of Python's memory
# Took seconds and gigabytes
SEEN = ["1x1x100000000,1x1x1,s1000", "8x156x219047491,3198x2x74291036,p61491804466"]


def questions(algorithm: Algorithm, spec: ConvSpec) -> Iterable[tuple[str, Callable[[], Any]]]:
    """All that the picker and the command line ask before anything is computed."""
    yield "unsupported", lambda: algorithm.unsupported(spec)
    if algorithm.unsupported(spec) is None:
        for threads in (1, 64):
            yield "workspace_bytes", lambda t=threads: algorithm.workspace_bytes(spec, t)
            yield "cost", lambda t=threads: algorithm.cost(spec, t).seconds(t)
            yield "alternatives", lambda t=threads: algorithm.alternatives(spec, t)


OURS = [a for a in algorithms() if a.family != "auto"]


def slow(specs: Iterable[ConvSpec]) -> list[str]:
    """Every question that took too long, of specs that nothing remembers; a
    neighbour's load may strike once, not twice.
    """
    found = []
    gc.collect()
    gc.disable()
    try:
        for spec in specs:
            for algorithm in OURS:
                spent = spent_s(algorithm, plain(spec))
                if any(s > SLOWEST_S for s in spent.values()):
                    again = spent_s(algorithm, plain(spec.with_(batch=spec.batch + 1)))
                    found += [f"{algorithm.name}.{name} of {spec}: {s:.3f} s" for name, s in spent.items()
                              if min(s, again.get(name, s)) > SLOWEST_S]  # fmt: skip
    finally:
        gc.enable()
    return found


def spent_s(algorithm: Algorithm, spec: ConvSpec) -> dict[str, float]:
    """The longest time that each question took."""
    spent: dict[str, float] = {}
    for name, ask in questions(algorithm, spec):
        start = time.process_time()
        answer = ask()
        spent[name] = max(spent.get(name, 0.0), time.process_time() - start)
        if name == "workspace_bytes":
            assert type(answer) is int and answer >= 0, f"{algorithm.name} {spec}: {answer!r}"
    return spent


def test_what_algorithms_say_of_any_spec_takes_no_time() -> None:
    assert not slow([*map(ConvSpec.parse, SEEN), *extreme_specs(seed=1, count=60)])


@pytest.mark.exhaustive
def test_what_algorithms_say_of_thousands_of_specs_takes_no_time() -> None:
    assert not slow(extreme_specs(seed=2, count=4000))


def test_what_algorithms_say_of_any_spec_takes_no_memory() -> None:
    found = []
    tracemalloc.start()
    try:
        for spec in [*map(ConvSpec.parse, SEEN), *extreme_specs(seed=3, count=15)]:
            received = plain(spec)
            for algorithm in OURS:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                for _, ask in questions(algorithm, received):
                    ask()
                if (taken := tracemalloc.get_traced_memory()[1] - before) > MOST_BYTES:
                    found.append(f"{algorithm.name} of {spec}: {taken:,} bytes")
    finally:
        tracemalloc.stop()
    assert not found


def test_taps_inside_the_image_are_counted_without_looking_at_each() -> None:
    for spec in extreme_specs(seed=4, count=300, elements=3000):
        for axis, taps in enumerate(spec.kernel):
            counted = sum(last - first for first, last in (reach(spec, axis, tap) for tap in range(taps)))
            assert pairs_inside(spec, axis) == counted, (spec, axis)


def test_phases_are_counted_without_looking_at_each() -> None:
    rng = random.Random(5)
    for _ in range(500):
        kernel, stride, dilation = (rng.randint(1, 40) for _ in range(3))
        axis = Axis(10**6, kernel, stride, dilation, 0, 1)
        assert axis.phase_count == len(axis.phases), axis


def test_what_changes_nothing_is_not_asked_about() -> None:
    """A stride past the only output, and the dilation of one tap: no algorithm meets numbers that no array
    has.
    """
    spec = ConvSpec.parse("1x1x8x9,1x1x3x1,s999999999999999999,d2x999999999999999999")
    assert str(plain(spec)) == "1x1x8x9,1x1x3x1,s4x9,d2x1" and plain(spec).output_shape == spec.output_shape
