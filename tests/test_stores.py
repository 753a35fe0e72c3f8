"""Stores that are damaged, newer, read-only, or on a full disk: the right answer or
one clear line, and nothing is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.cli import main
from bench.record import Record
from bench.store import FILE_NAME, Store, StoreError
from bench.versus import wanted
from bench.work import networks
from tests.conftest import HUNG_S, Convbench, Mount, whatever_the_load
from tests.ready import Ready
from tests.record_makers import JITTER, record

ROOT = Path(__file__).parents[1]
SPECS = ("1x1x48x48,1x1x3x3,p1", "1x2x24x24,4x2x3x3,s3")
ONE_RUN = ("run", *SPECS, "--algorithms", "direct_shift,im2col_gemm,winograd_f2", "--launches", "2",
           "--threads", "1")  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, ready: Ready) -> Path:
    """The folder of a store that a run has written."""
    folder = tmp_path_factory.mktemp("real")
    done = ready.run([*ONE_RUN, "--out", str(folder)], folder, os.environ, HUNG_S)
    assert done.returncode == 0, done.stderr
    # Everything is in the file itself
    assert {path.name for path in folder.iterdir()} == {FILE_NAME, "report"}
    return folder


@pytest.fixture
def copy(real: Path, tmp_path: Path) -> Path:
    """A folder with the store's file only."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(real / FILE_NAME, folder)
    return folder


def records(folder: Path) -> list[Record]:
    with Store(folder, create=False) as store:
        return store.records()


def commands(folder: Path, other: Path, target: Path) -> dict[str, tuple[str, ...]]:
    """Every command that reads a store."""
    return {
        "compare": ("compare", str(other), str(folder)),
        "merge": ("merge", str(target), str(folder)),
        "report": ("report", "--out", str(folder)),
        "run": (*ONE_RUN, "--out", str(folder)),
    }


def is_refused(arguments: tuple[str, ...], path: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a command refuses the store; then in one line that names the file."""
    capsys.readouterr()
    code = main(arguments)
    shown = capsys.readouterr()
    if code != 2:
        assert code == 0 and shown.err == ""
        return False
    assert shown.out == "" and shown.err.count("\n") == 1 and "unexpected" not in shown.err, shown.err
    assert str(path) in shown.err and shown.err.strip().isprintable()
    return True


def told_apart(found: list[Record], real: list[Record]) -> list[Record]:
    """What must be equal: all but the texts and numbers of which any other value would do as well."""
    assert len(found) == len(real)
    return [
        f for f, r in zip(found, real, strict=True) if f.key != r.key or len(f.launches) != len(r.launches)
    ]


# ---- damage ------------------------------------------------------------------------------------------------

DAMAGES = {
    "newer": "PRAGMA user_version = 99",
    "foreign": "PRAGMA application_id = 1",
    "no table": "DROP TABLE launch",
    "a sample that is no number": "UPDATE launch SET samples_s = replace(samples_s, '[', '[\"x\", ')",
    "a sample that is not a number": "UPDATE launch SET samples_s = '[NaN]'",
    "a sample below zero": "UPDATE launch SET samples_s = '[-1e-5]'",
    "an endless sample": "UPDATE launch SET samples_s = '[1e999]'",
    "a sample of true": "UPDATE launch SET samples_s = '[true]'",
    "samples cut off": "UPDATE launch SET samples_s = substr(samples_s, 1, 20)",
    "no samples": "UPDATE launch SET samples_s = '[]'",
    "samples that are an object": "UPDATE launch SET samples_s = '{}'",
    "samples that are a number": "UPDATE launch SET samples_s = '3'",
    "samples a hundred thousand deep": "UPDATE launch SET samples_s = "
    "replace(hex(zeroblob(50000)), '0', '[')",
    "samples that are no text": "UPDATE launch SET samples_s = x'ff00fe'",
    "a text that is no unicode": "UPDATE record SET reason = CAST(x'ff00fe' AS TEXT)",
    "no loops": "UPDATE launch SET loops = 0",
    "loops that are no number": "UPDATE launch SET loops = 'many'",
    "a time that is no number": "UPDATE launch SET prepare_s = 'short'",
    "a time below zero": "UPDATE launch SET first_run_s = -1",
    "an unknown status": "UPDATE record SET status = 'great'",
    "samples of what is wrong": "UPDATE record SET status = 'wrong', reason = 'outside its bound'",
    "a failure without a reason": "DELETE FROM launch; UPDATE record SET status = 'crashed'",
    "threads that are no number": "UPDATE record SET threads = 'all'",
    "an error that is no number": "UPDATE record SET max_error = 'small'",
    "a machine that is no object": "UPDATE machine SET description = '[]'",
    "a machine that is no JSON": "UPDATE machine SET description = '{'",
    "a machine of another name": "UPDATE machine SET id = 'm'",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_refuses_a_damaged_store(
    damage: str, real: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / FILE_NAME
    with closing(sqlite3.connect(path)) as database:
        database.executescript(DAMAGES[damage])
    for name, arguments in commands(copy, real, tmp_path / "merged").items():
        if name != "compare" or "machine" not in damage:  # it asks for no machine
            assert is_refused(arguments, path, capsys), name
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_refused_or_change_nothing_that_can_be_told(
    seed: int, real: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of them anywhere, half within the rows' own texts and numbers."""
    source, path = random.Random(seed), copy / FILE_NAME
    intact, expected = path.read_bytes(), records(real)
    inside = [
        i
        for word in (b"direct_shift", b"winograd_f2", b"1x2x24x24", b"e-05", b"float32")
        for i in _every(intact, word)
    ]
    refused = 0
    for turn in range(40):
        at = source.randrange(len(intact)) if turn % 2 else source.choice(inside) + source.randrange(-40, 40)
        flipped = bytearray(intact)
        flipped[at] ^= source.randrange(1, 256)
        path.write_bytes(flipped)
        asked = commands(copy, real, tmp_path / f"merged{turn}")
        answers = {name: is_refused(asked[name], path, capsys) for name in ("compare", "merge")}
        if answers["merge"]:
            refused += 1
            assert is_refused(asked["report"], path, capsys)
            assert not (tmp_path / f"merged{turn}").exists()
        else:
            assert not told_apart(records(copy), expected)
    assert refused > 5


def _every(text: bytes, word: bytes) -> Iterator[int]:
    at = text.find(word)
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def test_a_store_cut_off_anywhere_is_refused(
    real: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / FILE_NAME
    intact = path.read_bytes()
    anywhere = random.Random(1).sample(range(512, len(intact)), 20)
    for length in sorted({0, 1, 99, 100, 512, len(intact) - 1, *range(4096, len(intact), 4096), *anywhere}):
        path.write_bytes(intact[:length])
        for name, arguments in commands(copy, real, tmp_path / "merged").items():
            if length < 512 and name == "run":
                continue  # killed before its first page, a run has left nothing to lose
            if not is_refused(arguments, path, capsys):  # what was cut off were zeros
                assert length == len(intact) - 1 and records(copy) == records(real), (length, name)


def test_a_damaged_log_costs_its_own_rows_only(copy: Path) -> None:
    """The last rows of a killed run stand in the -wal file; what is not whole
    there is as if it had not been written.
    """
    earlier = [r.key for r in records(copy)]
    added = [record(f"new_{i}") for i in range(20)]
    source = random.Random(0)
    with Store(copy) as store:
        for one in added:
            store.put(one)
        logged = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    log = logged[f"{FILE_NAME}-wal"]
    counts = set()
    for turn in range(40):
        damaged = bytearray(log)
        if turn % 2:
            damaged[source.randrange(len(log))] ^= 1 + source.randrange(255)
        else:
            del damaged[source.randrange(len(log)) :]
        for name, content in {**logged, f"{FILE_NAME}-wal": bytes(damaged)}.items():
            if name.endswith("-shm"):
                (copy / name).unlink(missing_ok=True)
            else:
                (copy / name).write_bytes(content)
        found = records(copy)
        counts.add(len(found))
        assert found[len(earlier) :] == added[: len(found) - len(earlier)]
    assert len(counts) > 5


# ---- read-only ---------------------------------------------------------------------------------------------

def test_a_read_only_folder_is_read(
    mount: Mount, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], convbench: Convbench
) -> None:
    folder = mount(tmp_path / "read only?#%41", 8 << 20)
    shutil.copy(real / FILE_NAME, folder)
    mount(folder)
    assert records(folder) == records(real)
    assert main(("compare", str(real), str(folder))) == 0
    assert main(("merge", str(tmp_path / "merged"), str(folder))) == 0
    assert records(tmp_path / "merged") == records(real)
    for command in (("report",), ONE_RUN, ("merge", str(folder), str(real))):
        done = convbench(*command, *(() if command[0] == "merge" else ("--out", str(folder))))
        assert done.returncode == 2 and done.stdout == ""
        assert (
            done.stderr.count("\n") == 1 and str(folder) in done.stderr and "unexpected" not in done.stderr
        ), done.stderr
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_a_read_only_folder_of_a_run_that_was_killed(
    index: bool, mount: Mount, copy: Path, tmp_path: Path
) -> None:
    """Its last rows stand in the -wal file, which can only be read with its index."""
    folder = mount(tmp_path / "read_only", 8 << 20)
    with Store(copy) as store:
        store.put(record("last"))
        for path in copy.iterdir():
            if index or not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        expected = store.records()
    mount(folder)
    if index:
        assert records(folder) == expected and expected[-1].algorithm == "last"
    else:
        with pytest.raises(StoreError, match=r"-wal holds records that cannot be read here"):
            records(folder)


# ---- full disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
    mount: Mount, real: Path, tmp_path: Path, convbench: Convbench
) -> None:
    folder = mount(tmp_path / "small", 12 << 20)
    shutil.copytree(real, folder, dirs_exist_ok=True)
    before, page = records(folder), (folder / "report" / "index.html").read_bytes()
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 12))
    more = (*ONE_RUN[:4], "direct_loops", *ONE_RUN[5:], "--out", str(folder))
    for command in (("report", "--out", str(folder)), more, ("merge", str(folder / "new"), str(real))):
        done = convbench(*command)
        assert done.returncode == 2 and done.stdout == "", done.stdout
        assert done.stderr.count("\n") == 1 and "space" in done.stderr and "unexpected" not in done.stderr, (
            done.stderr
        )
        assert records(folder) == before and (folder / "report" / "index.html").read_bytes() == page
    filler.write_bytes(bytes(filler.stat().st_size - (80 << 10)))  # room for some rows, not for the report
    done = convbench(*more)
    assert done.returncode == 2 and "space" in done.stderr and done.stderr.count("\n") == 1
    assert (
        records(folder)[: len(before)] == before and (folder / "report" / "index.html").read_bytes() == page
    )
    partly = records(folder)
    filler.unlink()
    done = convbench(*more)
    assert done.returncode == 0, done.stderr
    final = {r.key: r for r in records(folder)}
    assert all(set(r.launches) <= set(final[r.key].launches) for r in partly) and len(final) == len(
        before
    ) + len(SPECS)


def test_a_full_disk_of_the_machines_memory_costs_one_warning(
    mount: Mount, tmp_path: Path, convbench: Convbench
) -> None:
    data = mount(tmp_path / "memory", 4096)
    (data / "filler").write_bytes(bytes(1 << 11))
    done = convbench(
        "run", SPECS[0], "--algorithms", "direct_shift", "--launches", "1", CONVBENCH_DATA=str(data)
    )
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "cannot remember" in done.stderr


def test_output_that_cannot_be_written_is_an_error(convbench: Convbench, environment: dict[str, str]) -> None:
    for command in ("list", "suites"):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "bench", command], stdout=full,
                                  stderr=subprocess.PIPE, text=True,
                                  env={**environment, "PYTHONPATH": str(ROOT)}, check=False,
                                  timeout=HUNG_S)  # fmt: skip
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_file_that_finds_the_disk_full_is_named(
    mount: Mount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing half written stays behind."""
    folder = mount(tmp_path / "small", 1 << 20)
    with Store(folder) as store:
        for i in range(3):
            store.put(record(f"a{i}"))
    with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 10))
    assert main(("report", "--out", str(folder))) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "No space left" in shown.err
    assert f"cannot use {folder / 'report'}/" in shown.err, shown.err
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


# ---- lost while it is written ------------------------------------------------------------------------------

LOSSES = {
    "the folder deleted": lambda folder: shutil.rmtree(folder),
    "the folder moved": lambda folder: folder.rename(folder.with_name("moved")),
    "the file deleted": lambda folder: (folder / FILE_NAME).unlink(),
    "the file moved": lambda folder: (folder / FILE_NAME).rename(folder / "moved"),
    "the file replaced": lambda folder: (shutil.copy(folder / FILE_NAME, folder / "new"),
                                         (folder / "new").rename(folder / FILE_NAME)),
    "the log deleted": lambda folder: (folder / f"{FILE_NAME}-wal").unlink(),
    "the folder a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_a_store_that_loses_its_name_acknowledges_nothing_more(loss: str, tmp_path: Path) -> None:
    folder = tmp_path / "lost"
    with Store(folder) as store:
        store.put(record("a"))
        LOSSES[loss](folder)
        for write, what in (
            (store.put, record("b")),
            (store.put_machine, {"id": "m"}),
            (store.forget, record("a")),
        ):
            with pytest.raises(StoreError, match="was deleted, moved or replaced while it was written"):
                write(what)  # type: ignore[operator]


def test_a_run_whose_folder_is_deleted_says_what_it_had_measured(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "lost"
    specs = [f"1x1x{40 + i}x40,1x1x3x3" for i in range(12)]
    command = [
        sys.executable,
        "-m",
        "bench",
        "run",
        *specs,
        "--algorithms",
        "direct_shift,im2col_gemm",
        "--threads",
        "1",
    ]
    with subprocess.Popen([*command, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env={**environment, "PYTHONPATH": str(ROOT)},
                          cwd=tmp_path) as run:  # fmt: skip
        while run.poll() is None and not _launches(folder):
            time.sleep(0.02)
        shutil.rmtree(folder)
        out, err = run.communicate(timeout=HUNG_S)
    err = whatever_the_load(err)
    assert run.returncode == 2 and err.count("\n") == 1 and f"{folder / FILE_NAME} was deleted" in err, err
    assert specs[0] in out and "report:" not in out and not folder.exists()


def _launches(folder: Path) -> int:
    """Stored so far; none while there is nothing to read."""
    try:
        with closing(sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM launch").fetchone()[0])
    except sqlite3.Error:
        return 0


# ---- merging -----------------------------------------------------------------------------------------------


def test_merge_writes_nothing_unless_everything_can_be_read(
    real: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(copy / FILE_NAME)) as database:
        database.executescript(DAMAGES["a sample below zero"])
    for bad in (tmp_path / "missing", copy):
        assert main(("merge", str(tmp_path / "new"), str(real), str(bad))) == 2
        assert not (tmp_path / "new").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    "order", [("with", "without"), ("without", "with"), ("old", "with"), ("with", "old")]
)
def test_a_machine_keeps_its_latest_peaks(order: tuple[str, str], tmp_path: Path) -> None:
    def peaks(day: int) -> dict[str, object]:
        return {"measured": f"2025-01-0{day}T00:00:00+00:00", "flops_per_s": {"float32": {"1": day * 1e9}}}

    described = {"with": {"peaks": peaks(2)}, "without": {"peaks": {}}, "old": {"peaks": peaks(1)}}
    for name, more in described.items():
        with Store(tmp_path / name) as store:
            store.put_machine({"id": "m", "cpu": name, **more})
            store.put(record("a", machine="m"))
    assert main(("merge", str(tmp_path / "merged"), *(str(tmp_path / name) for name in order))) == 0
    with Store(tmp_path / "merged") as store:
        assert store.machines() == {"m": {"id": "m", "cpu": order[1], "peaks": peaks(2)}}
        store.put_machine({"id": "m", "cpu": "again", "peaks": {}})  # as when they cannot be measured now
        assert store.machines()["m"]["peaks"] == peaks(2)
        assert json.loads(json.dumps(store.machines())) == store.machines()


def test_no_failure_elsewhere_takes_samples_away_and_wrong_stays_wrong(tmp_path: Path) -> None:
    measured, failed, wrong = record(), record(status="crashed"), record(status="wrong")
    machine = {"id": measured.machine}
    with Store(tmp_path) as store:
        store.merge([machine], [measured])
        store.merge([machine], [failed])
        assert store.records() == [measured]
        store.merge([machine], [wrong])
        store.merge([machine], [measured])
        assert [held.status for held in store.records()] == ["wrong"]


def test_a_launch_that_is_stored_is_never_overwritten(tmp_path: Path) -> None:
    first, later = record(time_s=1e-3), record(time_s=2e-3)
    assert first.key == later.key and first.launches != later.launches
    with Store(tmp_path) as store:
        store.put(first)
        store.put(later)
        assert store.records()[0].launches == first.launches


@pytest.mark.parametrize("create", [False, True])
def test_a_store_of_the_first_schema_keeps_all_that_was_measured(tmp_path: Path, create: bool) -> None:
    """It has no turns: read as it is, and given the columns when it is written to."""
    with Store(tmp_path) as store:
        store.put(record("fft"))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        for name in ("turns", "together", "disturbed", "steal", "load", "loop"):
            database.execute(f'ALTER TABLE launch DROP COLUMN "{name}"')
        database.execute("PRAGMA user_version = 1")
    with Store(tmp_path, create=create) as store:
        if create:
            store.put(record("separable"))
        old = store.records()[0]
    assert [launch.median_s for launch in old.launches] == pytest.approx([1e-3 * j for j in JITTER])
    assert all(launch.turns == () and launch.together == "" for launch in old.launches)


@pytest.mark.parametrize("create", [False, True])
def test_a_store_of_the_second_schema_knows_of_no_lowering(tmp_path: Path, create: bool) -> None:
    with Store(tmp_path) as store:
        store.put(record("fft", via="input gradient as a forward pass"))
        assert [r.via for r in store.records()] == ["input gradient as a forward pass"]
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        database.execute("ALTER TABLE record DROP COLUMN via")
        database.execute("PRAGMA user_version = 2")
    with Store(tmp_path, create=create) as store:
        if create:
            store.put(record("separable", via="3-D as planes"))
        old, *new = store.records()
        assert old.via == "" and len(old.launches) == len(JITTER)
        assert [r.via for r in new] == ["3-D as planes"] * create


def test_a_store_knows_what_its_runs_were_asked_for(tmp_path: Path) -> None:
    with Store(tmp_path / "new") as store:
        assert store.asked() is None
        store.ask(["vgg16"])
        store.ask(["quick", "vgg16"])
        assert store.asked() == ["vgg16", "quick"]
    with Store(tmp_path / "earlier") as store:
        store.put(record("a"))
        store.ask(["quick"])
        assert store.asked() is None, "what its records were asked for is not known"
    assert main(["merge", str(tmp_path / "both"), str(tmp_path / "new"), str(tmp_path / "earlier")]) == 0
    with Store(tmp_path / "both") as store:
        assert store.asked() is None


def test_networks_are_shown_that_were_asked_for_and_else_those_that_are_there_in_full() -> None:
    layers = dict(networks())
    held = {f"2x{spec.partition('x')[2]}" for _, spec, _ in layers["vgg16"]}
    assert [name for name, _ in wanted(["timm_resnet18", "quick"], held)[0]] == ["timm_resnet18"]
    assert wanted([], held) == ([], False) and not wanted(["vgg16"], held)[1]
    assert "vgg16" in [name for name, _ in wanted(None, held)[0]]
    assert "vgg16" not in [name for name, _ in wanted(None, sorted(held)[1:])[0]]
    assert wanted(["versus"], held)[1] and "resnet50_v1_5" in [
        name for name, _ in wanted(["versus"], held)[0]
    ]
