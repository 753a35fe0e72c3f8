"""What a table teaches the picker: who is surely slower, and nothing from a disturbed record."""

from __future__ import annotations

from dataclasses import replace

from bench.lessons import disturbed, taught
from tests.record_makers import record

SPECS = [f"1x1x{64 + i}x64,1x1x3x3,p1" for i in range(6)]


def test_intervals_and_verdicts_are_those_of_the_table() -> None:
    times = (("a", 1e-3), ("b", 1.004e-3), ("c", 2e-3))
    found = {
        (k.spec, k.algorithm): k for k in taught([[record(n, t, spec) for n, t in times] for spec in SPECS])
    }
    assert len(found) == 3 * len(SPECS)
    for spec in SPECS:
        assert (found[spec, "a"].verdict, found[spec, "b"].verdict, found[spec, "c"].verdict) == (
            "fastest",
            "same",
            "slower",
        )
        assert found[spec, "c"].low < 2 < found[spec, "c"].high and found[spec, "a"].low == 1


def test_a_record_whose_calmest_turns_disagree_teaches_nothing() -> None:
    shaken = record("b", 1e-3)
    wild = (2.4e-3, 9e-3, 43e-3, 43e-3, 58e-3, 58e-3, 43e-3, 58e-3)
    shaken = shaken.with_launches(tuple(replace(x, samples_s=wild) for x in shaken.launches))
    assert disturbed(shaken) and not disturbed(record("a"))
    one_calm = shaken.with_launches((*shaken.launches[:2], record("b").launches[2]))
    assert not disturbed(one_calm)
    assert [k.algorithm for k in taught([[record("a"), shaken, record("c", 2e-3)]])] == ["a", "c"]
