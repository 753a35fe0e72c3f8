"""What a table teaches the picker: who is surely slower, and nothing from a disturbed or a cold record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from algos import get, wisdom
from algos.spec import ConvSpec
from bench.cases import Case, Settings, cases_of
from bench.launching import Launching
from bench.lessons import disturbed, taught
from bench.runner import Runner
from bench.store import Store
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


class Instant(Launching):
    """A launch that runs nothing."""

    def run(self, launch: int, cases: list[Case]) -> None:
        for case in cases:
            self._keep(case, replace(case.record, launches=record(jitter=(1.0,)).launches))


@pytest.mark.parametrize("cold", [False, True])
def test_a_run_with_cold_caches_teaches_the_picker_nothing(
    cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "data"))
    settings = Settings(launches=1, cold=cold)
    cases = cases_of([ConvSpec.parse(SPECS[0])], [get("im2col_gemm"), get("toeplitz")], [1], settings)
    with Store(tmp_path / "out") as store:
        done = Runner(settings, store, launching=Instant).run(cases)
    assert [len(one.launches) for one in done.records] == [1, 1]
    assert len(wisdom.recall(done.records[0].machine)) == (0 if cold else 2)
