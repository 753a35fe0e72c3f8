"""Wisdom travels as JSON: whole to the same machine, as a prior to another; it is shown and forgotten."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import algos
from algos import fitted, host, wisdom
from algos.build import build_of
from algos.estimate import tunables_text
from bench.cli import main
from bench.store import Store
from tests.record_makers import record

TEXT, NEAR = "1x1x96x96,1x1x3x3,p1", "1x1x97x96,1x1x3x3,p1"
HERE = host.fingerprint()["id"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Moves to a user of that name, who knows nothing at first."""

    def move(name: str) -> None:
        monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / name))
        fitted.anew()
        wisdom.recall_anew()

    move("first")
    yield move
    monkeypatch.undo()
    fitted.anew()
    wisdom.recall_anew()


def entry(name: str, run_s: float, machine: str = HERE) -> wisdom.Known:
    algorithm = algos.get(name)
    return wisdom.Known(machine, build_of(algorithm), TEXT, name, tunables_text(algorithm), 1, "ok",
                        prepare_s=2e-5, run_s=run_s, verdict="fastest", low=1.0, high=1.0)  # fmt: skip


def test_the_same_machine_knows_all_of_it_again(folder: Any, tmp_path: Path, capsys: Any) -> None:
    wisdom.remember([entry("toeplitz", 1e-9)])
    file = tmp_path / "wisdom.json"
    assert main(("wisdom", "export", str(file))) == 0
    content = json.loads(file.read_text())
    assert (content["format"], content["version"]) == ("convbench wisdom", 1)
    assert content["machines"][HERE]["cores"] == host.fingerprint()["cores"]
    assert any('"algorithm": "toeplitz"' in line for line in file.read_text().splitlines())
    folder("second")
    assert algos.pick(TEXT, threads=1).algorithm != "toeplitz"
    assert main(("wisdom", "import", str(file))) == 0
    assert wisdom.recall(HERE) == (entry("toeplitz", 1e-9),)
    assert algos.pick(TEXT, threads=1).source == "measured"
    capsys.readouterr()
    assert main(("wisdom", "show", "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["this"] and (row["specs"], row["entries"], row["calibrated"]) == (1, 1, False)
    rounded = replace(entry("direct_shift", 1e-3), tunables='{"operands": "bfloat16"}')
    wisdom.remember([rounded, replace(rounded, algorithm="gone", tunables="{")])
    assert main(("wisdom", "show", TEXT)) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("toeplitz", "direct_shift:operands=bfloat16", "gone "))
    assert main(("wisdom", "forget", TEXT)) == 0 and "3 entries are forgotten" in capsys.readouterr().out
    assert algos.pick(TEXT, threads=1).algorithm != "toeplitz"


def test_another_machines_is_a_prior_and_pick_says_whose(folder: Any, tmp_path: Path) -> None:
    cores = host.fingerprint()["cores"]
    wisdom.describe({"other": {**host.fingerprint(), "cores": cores + 1}})
    wisdom.remember([entry("toeplitz", 1e-9, "other")])
    choice = algos.pick(NEAR, threads=1)
    assert (choice.algorithm, choice.source) == ("toeplitz", "nearest")
    assert f"by another machine, with {cores + 1} cores, you have {cores}" in choice.reason
    wisdom.remember([replace(entry("toeplitz", 1.0), verdict=""), entry("direct_shift", 1e-8)])
    assert algos.pick(NEAR, threads=1).algorithm == "direct_shift"  # what was measured here comes first
    assert main(("wisdom", "forget", "--machine", "other")) == 0
    assert wisdom.machines() == {HERE}


def test_a_calibration_travels_too(folder: Any, tmp_path: Path) -> None:
    row = fitted.prior(host.fingerprint()).row()
    fitted.keep({HERE: {**row, "error": 0.123}})
    file = tmp_path / "wisdom.json"
    assert main(("wisdom", "export", str(file))) == 0
    folder("second")
    assert fitted.fit_of_machine().error != 0.123
    assert main(("wisdom", "import", str(file))) == 0
    assert fitted.fit_of_machine().error == 0.123
    assert main(("wisdom", "forget", "--all")) == 0 and fitted.fit_of_machine().error != 0.123


@pytest.mark.parametrize(
    "change",
    [
        {"format": "wisdom of the crowd"},
        {"version": 2},
        {"entries": [{"spec": TEXT}]},
        {"entries": [{"machine": "m", "odd": 1}]},
        {"calibrations": {"m": {"centres": []}}},
        {"machines": 1},
    ],
)
def test_what_is_no_wisdom_is_refused_in_a_line(
    folder: Any, change: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "wisdom.json"
    assert main(("wisdom", "export", str(file))) == 0
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert main(("wisdom", "import", str(file))) == 2
    assert str(file) in capsys.readouterr().err and not wisdom.machines()
    assert main(("wisdom", "forget")) == 2


def test_a_merged_store_teaches_when_asked(folder: Any, tmp_path: Path) -> None:
    algorithm = algos.get("toeplitz")
    made = record("toeplitz", 1e-9, TEXT, machine=HERE, threads=1, build=build_of(algorithm),
                  tunables=tunables_text(algorithm))  # fmt: skip
    cold = replace(made, algorithm="direct_shift", build=build_of(algos.get("direct_shift")), cold=True,
                   tunables=tunables_text(algos.get("direct_shift")))  # fmt: skip
    with Store(tmp_path / "one") as store:
        store.merge([host.fingerprint()], [made, cold])
    assert main(("merge", str(tmp_path / "two"), str(tmp_path / "one"))) == 0
    assert algos.pick(TEXT, threads=1).source == "model"
    assert main(("merge", "--teach", str(tmp_path / "three"), str(tmp_path / "one"))) == 0
    assert algos.pick(TEXT, threads=1).algorithm == "toeplitz"
    assert {known.algorithm for known in wisdom.recall(HERE)} == {"toeplitz"}  # caches are warm in use


def test_a_full_disk_leaves_the_rows_that_were_there(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wisdom.keep_rows("rows.json", {"a": {"n": 1}})
    write = Path.write_text

    def full(self: Path, text: str, *how: Any) -> None:
        write(self, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            wisdom.keep_rows("rows.json", {"b": {"n": 2}})
    assert wisdom.rows_of("rows.json") == {"a": {"n": 1}}
    assert [file.name for file in host.data_base().iterdir()] == ["rows.json"]


def test_what_has_no_tunables_comes_back_and_damaged_files_are_no_obstacle(
    folder: Any, tmp_path: Path, capsys: Any
) -> None:
    known = replace(entry("toeplitz", 1e-9), tunables="")
    wisdom.remember([known])
    for name in (wisdom.MACHINES, fitted.FILE_NAME):
        wisdom.path().with_name(name).write_text('{"zz": 5, "yy": {"machine": {}, "weights": {}}}')
    fitted.anew()
    file = tmp_path / "wisdom.json"
    assert main(("wisdom", "export", str(file))) == 0
    folder("second")
    assert main(("wisdom", "import", str(file))) == 0 and known in wisdom.recall(HERE)
    wisdom.path().write_bytes(b"no database" * 100)
    assert main(("wisdom", "forget", "--all")) == 2
    assert "delete it" in capsys.readouterr().err
