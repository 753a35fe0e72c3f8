"""Large stores: read in brief, paged on the page, told from wisdom that is asked piece by piece."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import algos
from algos import host, wisdom
from algos.build import build_of
from algos.estimate import Knowledge, tunables_text
from algos.lower.search import chain
from algos.registry import registry
from bench import large
from bench.cli import storing
from bench.record import Brief, Record
from bench.store import FILE_NAME, Store, StoreError
from reports import page
from tests.record_makers import MACHINE, record, sweep

SHOWN, ROWS = 50, 120


@pytest.fixture
def own_wisdom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path))
    wisdom.recall_anew()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "store"
    large.fill(folder, 300)
    return folder


def read(folder: Path, **how: Any) -> list[Record]:
    with Store(folder, create=False) as opened:
        return opened.records(**how)


def medians(folder: Path) -> list[tuple[Any, list[float]]]:
    with Store(folder, create=False) as opened:
        return [(found.key, list(times)) for found, times in opened.medians()]


def of_launches(records: list[Record]) -> list[tuple[Any, list[float]]]:
    return [(r.key, [launch.median_s for launch in r.launches]) for r in records]


def test_a_brief_launch_tells_the_same_times(store: Path) -> None:
    whole, brief = read(store), read(store, brief=True)
    assert len(whole) == 300 and [r.key for r in whole] == [r.key for r in brief]
    for one, other in zip(whole, brief, strict=True):
        assert all(
            isinstance(launch, Brief) and len(launch.samples_s) == large.TURNS for launch in other.launches
        )
        assert [x.turn_times for x in one.launches] == [x.turn_times for x in other.launches]
        assert one.median_s == other.median_s
        assert [x.sample_count for x in one.launches] == [x.sample_count for x in other.launches]
    assert medians(store) == of_launches(whole)
    spec = whole[0].spec
    assert read(store, brief=True, specs=[spec]) == [r for r in brief if r.spec == spec]


def test_samples_changed_by_hand_count_in_brief_too(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        opened.put(record())
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("UPDATE launch SET samples_s = '[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]'")
    database.close()
    for brief in (False, True):
        assert [launch.median_s for launch in read(tmp_path, brief=brief)[0].launches] == [1.0] * 3
    assert medians(tmp_path)[0][1] == [1.0] * 3
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("UPDATE record SET status = 'wrong', reason = 'by hand'")
    database.close()
    for found in (read, medians):
        with pytest.raises(StoreError, match="holds"):
            found(tmp_path)


def test_disturbed_turns_count_in_no_median(tmp_path: Path) -> None:
    times = tuple(1e-3 * (1 + i) for i in range(8))
    launches = tuple(
        replace(launch, samples_s=times, turns=(1,) * 8, disturbed=(0, 1)) for launch in record().launches
    )
    with Store(tmp_path) as opened:
        opened.put(record().with_launches(launches))
    assert medians(tmp_path) == of_launches(read(tmp_path)) == of_launches(read(tmp_path, brief=True))
    assert medians(tmp_path)[0][1] == [3.5e-3] * 3  # of 3 and 4 ms, the calmest third of six


def test_nothing_is_stored_without_its_samples(tmp_path: Path, store: Path) -> None:
    with Store(tmp_path) as opened, pytest.raises(Exception, match="lacks its samples"):
        opened.put(read(store, brief=True)[0])


def test_stores_of_older_schemas_are_read_in_brief(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        opened.put(record())
    before = read(tmp_path)[0].median_s
    database = sqlite3.connect(tmp_path / FILE_NAME)
    database.execute("ALTER TABLE launch DROP COLUMN times_s")
    database.close()
    assert read(tmp_path, brief=True)[0].median_s == before
    with Store(tmp_path):
        pass
    with Store(tmp_path) as opened:
        opened.put(record("other"))
        assert [r.median_s for r in opened.records(brief=True)] == [before, before]


def rows_of(script: str) -> list[Any]:
    return json.loads(script[script.index("[\n") : script.rindex(");")])


@pytest.mark.usefixtures("unpainted")
def test_a_large_table_lies_in_scripts_and_every_row_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SHOWN", SHOWN)
    monkeypatch.setattr(page, "SCRIPT_BYTES", 5_000)
    made = [record("fft", 1e-3 * (i + 1), f"1x1x{i + 8}x9,1x1x3x3", jitter=(1.0,)) for i in range(ROWS)]
    folder = tmp_path / "report"
    text = page.write_report(made, {"m1": MACHINE}, folder).read_text()
    scripts = sorted(folder.glob("records-*.js"), key=lambda path: int(path.stem.partition("-")[2]))
    loaded = [row[0] for path in scripts for row in rows_of(path.read_text())]
    assert len(scripts) > 1 and all(path.stat().st_size < 10_000 for path in scripts)
    assert loaded == [r.spec for r in made][SHOWN:]
    assert text.count("<td>1x1x") >= SHOWN and f'data-files="{len(scripts)}" data-total="{ROWS}"' in text
    assert f"And {ROWS - SHOWN} more rows" in (folder / "report.md").read_text()
    page.write_report(sweep(), {"m1": MACHINE}, folder)
    assert not list(folder.glob("*.js")), "scripts of an earlier report are gone"
    assert "'self'" not in (folder / "index.html").read_text(), "nothing beside a small page is let in"


@pytest.mark.usefixtures("unpainted")
def test_a_hostile_row_is_data_in_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHOWN", SHOWN)
    name = "</script><script>alert(1)</script>\u2028\"]);alert(2)//"
    made = [record(f"{name}{i}", 1e-3, jitter=(1.0,)) for i in range(SHOWN + 1)]
    page.write_report(made, {"m1": MACHINE}, tmp_path)
    script = (tmp_path / "records-1.js").read_text()
    assert script.startswith('convbenchRows("records", 1, [\n') and len(rows_of(script)) == 1
    assert "</script><script>alert(1)" in rows_of(script)[0][2]


@pytest.mark.usefixtures("unpainted")
def test_a_run_on_a_large_store_reports_on_its_own_specs(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read(store, brief=True)[0].spec
    for most in (10_000, 100):
        monkeypatch.setattr(storing, "MANY", most)
        with Store(store, create=False) as opened:
            written, frame, _ = storing.write_report(opened, tmp_path, (), specs={spec})
        assert (set(frame["spec"]) == {spec}) == (most < 300)
        assert ("of 300 records in the store" in written.read_text()) == (most < 300)


@pytest.mark.usefixtures("own_wisdom")
def test_wisdom_answers_piece_by_piece_what_it_answers_as_a_whole() -> None:
    identity, found = host.fingerprint()["id"], registry()
    names = ("direct_shift", "fft", "im2col_gemm", "kn2row_gemm")
    specs = list(large.specs())[:400:2]
    entries = [
        wisdom.Known(identity, build_of(found[name]), str(spec), name, tunables_text(found[name]), 1, "ok",
                     run_s=1e-6 * (1 + at % 7) * (1 + len(name)))
        for at, spec in enumerate(specs) for name in names if found[name].unsupported(spec) is None
    ]  # fmt: skip
    wisdom.remember(entries)
    whole, pieces = Knowledge(entries, found, build_of), Knowledge(wisdom.memory(identity), found, build_of)
    asked = [*specs[:3], *(spec.with_(size=tuple(n + 1 for n in spec.size)) for spec in specs[::20])]
    for spec in asked:
        for name in names:
            assert whole.estimate(chain(found[name], spec), 1) == pieces.estimate(chain(found[name], spec), 1)
    told = {pieces.estimate(chain(found[name], spec), 1).source for spec in asked for name in names}
    assert {"measured", "nearest"} <= told


@pytest.mark.usefixtures("own_wisdom")
def test_wisdom_of_before_it_was_indexed_is_read() -> None:
    algorithm, text = algos.get("fft"), "1x1x96x96,1x1x3x3,p1"
    entry = wisdom.Known(host.fingerprint()["id"], build_of(algorithm), text, "fft", tunables_text(algorithm),
                         1, "ok", run_s=1e-9)  # fmt: skip
    wisdom.remember([entry])
    database = sqlite3.connect(wisdom.path())
    for statement in ("DROP TABLE place", "DROP INDEX by_spec", "DROP INDEX wrongs"):
        database.execute(statement)
    database.close()
    wisdom.recall_anew()
    near = "1x1x98x96,1x1x3x3,p1"
    assert (
        algos.pick(text, threads=1).source == "measured" and algos.pick(near, threads=1).source == "nearest"
    )
    wisdom.remember([replace(entry, spec="1x1x200x200,1x1x9x9")])
    assert algos.pick(near, threads=1).source == "nearest"


@pytest.mark.exhaustive
def test_the_benchmark_of_large_stores_prints_every_figure(tmp_path: Path) -> None:
    figures = list(large.figures(tmp_path, 1000, tuple(large.LIMITS)))
    assert [name for name, *_ in figures] == list(large.LIMITS)
    assert all(memory > 0 for *_, memory in figures)
