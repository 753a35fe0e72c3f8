"""compare judges by launches and the noise it measured; merge keeps machines
apart; imports are shown and never used.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest

from bench.cli import main
from bench.compare import compare
from bench.exchange import from_pytest_benchmark
from bench.record import Launch, Record
from bench.store import Store
from tests.conftest import Convbench

SPECS = [f"1x1x{n}x{n},1x1x3x3" for n in range(16, 46)]


def records(
    seed: int, factor: float = 1.0, noise: float = 0.01, build: str = "b", drift: float = 1.0, count: int = 3
) -> list[Record]:
    """One record per spec; ``factor`` slows the first five down."""
    source = random.Random(seed)
    made = []
    for i, spec in enumerate(SPECS):
        base = 1e-3 * (1 + i) * drift * (factor if i < 5 else 1.0) * source.lognormvariate(0, noise / 2)
        launches = tuple(
            Launch(
                k,
                "t",
                tuple(base * source.lognormvariate(0, noise) * s for s in (0.99, 1.0, 1.01)),
                1,
                0.1,
                0.1,
                base,
            )
            for k in range(count)
        )
        made.append(Record(spec, "a", 2, "m", build if i < 5 else "same", "ok", launches=launches))
    return made


def verdicts(old: list[Record], new: list[Record]) -> list[str]:
    return [change.verdict for change in compare(old, new).changes]


@pytest.mark.parametrize("seed", range(5))
def test_identical_code_is_never_called_faster_or_slower(seed: int) -> None:
    for noise in (0.01, 0.05, 0.2):
        assert {"faster", "slower"}.isdisjoint(
            verdicts(records(seed, noise=noise), records(seed + 100, noise=noise))
        )


def test_a_real_change_is_seen_and_the_rest_is_the_same() -> None:
    slower = verdicts(records(1, noise=0.005), records(2, factor=1.3, noise=0.005, build="new"))
    assert slower[:5] == ["slower"] * 5 and "same" in slower[5:] and "slower" not in slower[5:]
    assert verdicts(records(1), records(2, factor=0.7, build="new"))[:5] == ["faster"] * 5


def test_a_change_inside_the_noise_is_undecided() -> None:
    assert set(verdicts(records(1, noise=0.2), records(2, factor=1.1, noise=0.2))) == {"undecided"}


def test_a_machine_that_slowed_down_as_a_whole_blames_no_algorithm() -> None:
    comparison = compare(records(1), records(2, drift=1.2))
    assert comparison.drift == pytest.approx(0.18, abs=0.03)
    assert "slower" not in [change.verdict for change in comparison.changes]


def test_the_noise_between_two_runs_is_a_standard_deviation() -> None:
    old, new, normal = records(1, noise=0.0, build="same"), [], NormalDist(0, 0.03)
    for i, record in enumerate(old):
        factor = math.exp(normal.inv_cdf((i + 0.5) / len(old)))
        launches = [
            replace(one, samples_s=tuple(factor * s for s in one.samples_s)) for one in record.launches
        ]
        new.append(record.with_launches(tuple(launches)))
    assert compare(old, new).run_sigma == pytest.approx(0.03, rel=0.1)


def test_other_machines_and_imports_are_not_compared(tmp_path: Path) -> None:
    other = [Record(**{**r.__dict__, "machine": "elsewhere"}) for r in records(1)]
    imported = [Record(**{**r.__dict__, "origin": "pytest-benchmark"}) for r in records(1)]
    assert compare(records(1), other).changes == compare(records(1), imported).changes == ()


def fill(folder: Path, *found: list[Record]) -> str:
    with Store(folder) as store:
        store.put_machine({"id": "m", "cpu": "one"})
        for group in found:
            for record in group:
                store.put(record)
    return str(folder)


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = fill(tmp_path / "old", records(1)), fill(tmp_path / "new", records(2, factor=1.5, build="new"))
    assert main(("compare", old, new)) == 1
    shown = capsys.readouterr().out
    assert "slower" in shown and "noise" in shown
    assert main(("compare", new, old, "--json")) == 0
    assert [row["verdict"] for row in json.loads(capsys.readouterr().out)["changes"]].count("faster") == 5
    assert main(("compare", old, str(tmp_path / "nothing"))) == 2


def test_changed_tunables_are_paired_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default of a tunable has changed: the same algorithm. Variants that both
    stores hold are paired with themselves.
    """
    old = [replace(r, tunables='{"block": 1}') for r in records(1)]
    new = [replace(r, tunables='{"block": 2}') for r in records(2, factor=1.5, build="new")]
    assert verdicts(old, new)[:5] == ["slower"] * 5
    tried = [replace(r, tunables='{"block": 9}') for r in records(3)]
    found = compare([*tried, *old], [*tried, *new])
    assert len(found.changes) == 2 * len(SPECS) and (found.only_old, found.only_new) == (0, 0)
    ambiguous = compare(old, [*tried, *new])
    assert (len(ambiguous.changes), ambiguous.only_old, ambiguous.only_new) == (0, len(SPECS), 2 * len(SPECS))
    assert main(("compare", fill(tmp_path / "old", old), fill(tmp_path / "new", new))) == 1
    assert "5 slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"machine": "elsewhere"}, {"threads": 1}, {"cold": True}, {"algorithm": "b"}]
)
def test_nothing_in_common_is_said_and_no_success(
    change: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (
        fill(tmp_path / "old", records(1)),
        fill(tmp_path / "new", [replace(r, **change) for r in records(2)]),
    )
    assert main(("compare", old, new)) == 2
    shown = capsys.readouterr()
    assert "nothing was compared: the stores share no" in shown.err and str(*change.values()) in shown.err


def test_merge_keeps_machines_apart(tmp_path: Path) -> None:
    other = [Record(**{**r.__dict__, "machine": "n"}) for r in records(3)]
    one, two = fill(tmp_path / "one", records(1)), fill(tmp_path / "two", other)
    merged = tmp_path / "both"
    for _ in range(2):  # merging again adds nothing
        assert main(("merge", str(merged), one, two)) == 0
        with Store(merged, create=False) as store:
            assert len(store.records()) == 2 * len(SPECS)
            assert {r.machine for r in store.records()} == {"m", "n"}
            assert sum(len(r.launches) for r in store.records()) == 2 * 3 * len(SPECS)
    assert main(("merge", str(merged), str(tmp_path / "missing"))) == 2


def test_import_is_tagged_shown_and_never_used(convbench: Convbench, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    entry = {"group": "1x1x20x20,1x1x3x3", "name": "test_speed[x]", "param": "x",
             "extra_info": {"algorithm": "direct_shift", "threads": 2},
             "stats": {"data": [1e-9, 2e-9, 3e-9], "median": 2e-9, "iterations": 7}}
    foreign = {**entry, "group": None, "param": "other", "extra_info": {}}
    file.write_text(
        json.dumps({"machine_info": {"cpu": {"brand_raw": "<b>cpu</b>"}}, "benchmarks": [entry, foreign]})
    )
    _, found, left_out = from_pytest_benchmark(file)
    assert (found[0].origin, found[0].algorithm, left_out) == ("pytest-benchmark", "direct_shift", 1)
    out = str(tmp_path / "out")
    assert (
        convbench(
            "run", "20x20,3x3", "--algorithms", "direct_shift", "--launches", "1", "--out", out
        ).returncode
        == 0
    )
    done = convbench("import", str(file), "--out", out)
    assert done.returncode == 0 and "1 record" in done.stdout
    assert "pytest-benchmark" in (tmp_path / "out" / "report" / "records.csv").read_text()
    picked = json.loads(convbench("pick", "20x20,3x3", "--json").stdout)
    assert all(c["run_s"] is None or c["run_s"] > 1e-8 for c in picked["candidates"])


def pytest_benchmark(entry: str = "", stats: str = "") -> str:
    """The text of a file with one benchmark, in which ``entry`` and ``stats`` replace what stands there."""
    return (
        '{"machine_info": {"cpu": {}}, "benchmarks": [{"group": "1x1x20x20,1x1x3x3", "name": "n", '
        f'"extra_info": {{"threads": 1}}, "stats": '
        f'{{"data": [1e-6], "median": 1e-6, "iterations": 1{stats}}}{entry}}}]}}'
    )


BAD_FILES = {
    "nothing": "",
    "no object": "[]",
    "an empty object": "{}",
    "no benchmarks": '{"benchmarks": []}',
    "benchmarks that are a number": '{"benchmarks": 3, "machine_info": {}}',
    "benchmarks that are an object": '{"benchmarks": {"a": 1}, "machine_info": {}}',
    "deeper than anything": '{"machine_info": ' + "[" * 200_000,
    "a machine of text": pytest_benchmark().replace('{"cpu": {}}', '"mine"'),
    "data of text": pytest_benchmark(stats=', "data": "123"'),
    "data of texts": pytest_benchmark(stats=', "data": ["1", "2"]'),
    "data as an object": pytest_benchmark(stats=', "data": {"1": 2}'),
    "data of objects": pytest_benchmark(stats=', "data": [[1e-6]]'),
    "data of truths": pytest_benchmark(stats=', "data": [true]'),
    "negative data": pytest_benchmark(stats=', "data": [-1e-6]'),
    "endless data": pytest_benchmark(stats=', "data": [1e999]'),
    "data of NaN": pytest_benchmark(stats=', "data": [NaN]'),
    "data of ages": pytest_benchmark(stats=', "data": [1e300, 1e300]'),
    "no data": pytest_benchmark(stats=', "data": [], "median": null'),
    "iterations of text": pytest_benchmark(stats=', "iterations": "many"'),
    "negative iterations": pytest_benchmark(stats=', "iterations": -1'),
    "more iterations than stars": pytest_benchmark(stats=', "iterations": 1' + "0" * 40),
    "endless iterations": pytest_benchmark(stats=', "iterations": 1e999'),
    "a number of too many digits": pytest_benchmark(stats=', "iterations": 1' + "0" * 5000),
    "threads of text": pytest_benchmark(', "extra_info": {"threads": "all"}'),
    "threads without end": pytest_benchmark(', "extra_info": {"threads": 1' + "0" * 30 + "}"),
    "negative threads": pytest_benchmark(', "extra_info": {"threads": -2}'),
    "further facts of text": pytest_benchmark(', "extra_info": "mine"'),
    "statistics of text": pytest_benchmark(', "stats": "fast"'),
    "no statistics": pytest_benchmark(', "stats": null'),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_is_no_such_file_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(BAD_FILES[kind])
    assert main(("import", str(file), "--out", str(tmp_path / "out"))) == 2
    shown = capsys.readouterr()
    assert (
        shown.out == ""
        and shown.err.count("\n") == 1
        and str(file) in shown.err
        and "unexpected" not in shown.err
    )
    assert len(shown.err) < 500 and not (tmp_path / "out").exists()


def test_odd_but_harmless_files_are_imported(tmp_path: Path) -> None:
    odd = pytest_benchmark(
        ', "name": "\\ud800\\u001b[31m", "param": 3, "extra_info": null, "datetime": ["x"]'
    )
    odd = odd.replace('{"cpu": {}}', '{"cpu": {"count": [[1]], "brand_raw": {"a": 1}}, "machine": 7}')
    (tmp_path / "odd.json").write_text(odd)
    machine, (found,), _ = from_pytest_benchmark(tmp_path / "odd.json")
    assert found.algorithm.isprintable() and found.threads == 0
    with Store(tmp_path / "out") as store:
        store.put_machine(machine)
        store.put(found)
        assert store.records() == [found] and store.machines() == {machine["id"]: machine}
