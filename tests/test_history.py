"""The history of a case: points by build and day, and the changes that noise cannot explain."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.cli import main
from bench.record import Launch, Record
from bench.store import Store
from reports.findings.histories import CaseKey, Point, histories
from reports.history import history_pictures, history_table
from tests.record_makers import MACHINE, record

SPEC = "1x1x64x64,1x1x3x3,p1"
DAYS = (("2026-11-20", "b1"), ("2026-11-21", "b1"), ("2026-11-23", "b2"), ("2026-11-24", "b3"),
        ("2026-11-24", "b4"))


def followed(changes: dict[str, dict[int, float]], noise: float = 0.015, seed: int = 0) -> list[Record]:
    """Twelve algorithms over five points; ``changes`` are factors from a point
    on. A build's launches are one record.
    """
    rng = random.Random(seed)
    found = []
    for at, name in enumerate([*changes, *(f"steady{i}" for i in range(12 - len(changes)))]):
        factor, launches = 1.0, {}
        for point, (day, build) in enumerate(DAYS):
            factor *= changes.get(name, {}).get(point, 1.0)
            for index in range(3):
                time_s = 1e-3 * (1 + at) * factor * rng.gauss(1, noise)
                mine = launches.setdefault(build, [])
                mine.append(
                    Launch(
                        len(mine), f"{day}T1{point}:00:0{index}+00:00",
                        tuple(time_s * rng.gauss(1, 0.01) for _ in range(16)),
                        1, 0.1, 1e-4, 1e-3, turns=(2,) * 8, together=f"{point}|{index}",
                    )
                )  # fmt: skip
        found += [record(name, spec=SPEC, build=build, family="direct", launches=tuple(own)) for build,
                  own in launches.items()]
    return found


def changed(found: dict[CaseKey, list[Point]]) -> set[tuple[str, int, str]]:
    return {
        (case.algorithm, at, point.verdict)
        for case, points in found.items()
        for at, point in enumerate(points)
        if point.verdict in ("faster", "slower")
    }


def test_planted_changes_are_found_where_they_are() -> None:
    found = histories(followed({"better": {2: 0.7}, "worse": {4: 1.4}}))
    assert changed(found) == {("better", 2, "faster"), ("worse", 4, "slower")}
    points = next(points for case, points in found.items() if case.algorithm == "better")
    assert [(p.day, p.build, p.launches) for p in points] == [(day, build, 3) for day, build in DAYS]
    assert (
        points[0].verdict == ""
        and points[2].ratio is not None
        and points[2].ratio.low < 0.7 < points[2].ratio.high
    )
    assert all(p.low_s < p.median_s < p.high_s for p in points)


def test_noise_alone_is_no_change() -> None:
    assert sum(len(changed(histories(followed({}, 0.03, seed)))) for seed in range(20)) <= 1  # of 960 points


def test_days_on_which_everything_moves_teach_what_days_do() -> None:
    """The builds of all are the same on the first two days: what moved there was no code."""
    drift = {f"a{i}": {1: 1.15, 2: 1 / 1.15} for i in range(12)}
    assert changed(histories(followed(drift))) == set()


def test_the_command_prints_draws_and_answers_in_json(tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path) as store:
        store.put_machine(MACHINE)
        for one in followed({"better": {2: 0.7}}):
            store.put(one)
    assert main(["history", SPEC, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 faster and 0 slower" in shown and shown.strip().endswith("history.png")
    rows = [line for line in shown.splitlines() if line.startswith(SPEC)]
    assert len(rows) == 12, "a line for each case"
    (better,) = (row for row in rows if "faster" in row)
    assert " better " in better and "faster on 2026-11-23 (build b2): 0.7" in better
    assert (tmp_path / "report" / "history.svg").stat().st_size > 1000
    asked = ["history", SPEC, "--algorithms", "better,steady1", "--json", "--picture",
             str(tmp_path / "pictures")]  # fmt: skip
    assert main([*asked, "--out", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [case["algorithm"] for case in answer["cases"]] == ["better", "steady1"]
    assert [p["verdict"] for p in answer["cases"][0]["points"]].count("faster") == 1
    assert all(Path(path).is_file() for path in answer["pictures"])
    assert main(["history", "1x1x9x9,1x1x3x3", "--out", str(tmp_path)]) == 2


def test_panels_are_paged_and_text_is_harmless() -> None:
    records = [
        record(name, 1e-3, spec=f"1x1x{n}x8,1x1x3x3") for n in range(8, 22) for name in ("<b>$x$</b>", "_a")
    ]
    pictures = list(
        history_pictures(histories(records), {"<b>$x$</b>": "fft", "_a": "peer"}, {"m1": MACHINE})
    )
    assert [picture.name for picture in pictures] == ["history-page1", "history-page2", "history-page3"]
    assert "<b>" not in history_table(histories(records)).markdown()
