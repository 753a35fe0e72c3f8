"""Measured peaks: sane relations, remembered, improved by further measurements, and never in the way of a
run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numba
import pytest

from algos.engine.threads import usable_cores
from algos.host import caches
from bench import peaks as measured

KINDS = {"flops_per_s": {"float32", "float64"}, "bytes_per_s": {"L1d", "L2", "L3", "memory"}}


def figures(rate: float) -> dict:
    rates = {kind: {name: {"1": rate, "2": 2 * rate} for name in names} for kind, names in KINDS.items()}
    source = {name: {"1": "loop", "2": "gemm"} for name in KINDS["flops_per_s"]}
    return {"cores": 2, **rates, "source": source, "measured": "2025-01-01T00:00:00+00:00", "times": 1}


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Rates that the next measurements will give, taken from the front; an empty cache."""
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path))
    rates: list[float] = []
    monkeypatch.setattr(measured, "_measured_apart", lambda: figures(rates.pop(0)) if rates else {})
    return rates


def test_a_process_of_its_own_measures_every_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured._measured_apart()
    counts = {"1", str(usable_cores())}
    for kind, names in KINDS.items():
        assert set(found[kind]) == names
        assert all(
            set(by_threads) == counts and min(by_threads.values()) > 0 for by_threads in found[kind].values()
        )
    assert all(
        source in ("loop", "gemm")
        for by_threads in found["source"].values()
        for source in by_threads.values()
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_loops_compute_what_they_say() -> None:
    # every chain goes to 0.5 from its start: index * 0.5**n + 0.5 * (1 - 0.5**n)
    for loop in (measured.multiply_add_float32, measured.multiply_add_float64):
        assert loop(200) == pytest.approx(0.5 * measured.CHAINS)
        assert loop(1) == pytest.approx(sum(0.5 * i + 0.25 for i in range(measured.CHAINS)))
        fresh = numba.njit(loop.py_func)
        fresh(1)
        (optimised,) = fresh.inspect_llvm().values()
        name = r"@llvm\.fma\." if measured.FUSED else " = fmul "
        done = len(re.findall(rf"^ .*{name}", optimised, re.MULTILINE))
        assert done > 0 and done % measured.CHAINS == 0  # none was optimised away, in no copy of the loop


@pytest.mark.parametrize("threads", [1, 4, 64])
def test_arrays_lie_where_they_should(threads: int) -> None:
    sizes = measured.array_bytes(threads)
    assert 2 * sizes["L1d"] < caches()["L1d"] <= 2 * sizes["L2"] < caches()["L2"] < 2 * sizes["L3"]
    assert 2 * threads * sizes["memory"] >= min(4 * caches()["L3"], measured.LARGEST_BYTES) - 8 * threads


def test_what_was_measured_today_is_not_measured_again(remembered: list[float]) -> None:
    remembered += [10.0, 99.0]
    first = measured.peaks("m")
    assert measured.peaks("m") == first and remembered == [99.0]
    assert measured.peaks("another") != first


def test_further_days_keep_the_best_of_each_until_there_were_enough(
    remembered: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered += [10.0, 30.0, 20.0, 99.0]
    monkeypatch.setattr(measured, "AGAIN_S", 0)
    rates = [measured.peaks("m")["flops_per_s"]["float32"]["1"] for _ in range(5)]
    assert rates == [10.0, 30.0, 30.0, 30.0, 30.0] and remembered == [99.0]


def test_without_a_measurement_there_are_no_peaks_and_no_error(
    remembered: list[float], tmp_path: Path
) -> None:
    assert measured.peaks("m") == {}
    remembered.append(5.0)
    assert measured.peaks("m")["times"] == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"peaks": 3, "at_s": 0}', '{"peaks": {"flops_per_s": {}}}']
)
def test_a_damaged_memory_is_measured_anew(content: str, remembered: list[float], tmp_path: Path) -> None:
    remembered += [1.0, 2.0]
    measured.peaks("m")
    (path,) = (tmp_path / "peaks").iterdir()
    path.write_text(content)
    assert measured.peaks("m")["flops_per_s"]["float64"]["2"] == 4.0
