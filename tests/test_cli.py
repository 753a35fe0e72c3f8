"""The command line: what it prints, where, with which exit code, and that nothing a user types gives a traceback."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bench.cli import main
from tests.conftest import Convbench

BAD = [
    ("pick", ""),
    ("pick", "0x0,3x3"),
    ("pick", "-3x3,3x3"),
    ("pick", "５x5,3x3"),
    ("pick", "9x9"),
    ("pick", "9x9,3x3,fast"),
    ("pick", "9x9,11x11"),
    ("pick", "9x9,3x3,s0"),
    ("pick", "1x4x9x9,4x3x3x3"),
    ("pick", "9" * 4000),
    ("pick", "99999999999x99999999999,3x3"),
    ("pick", "9x9,3x3\x1b[31m"),
    ("pick", "9x9,3x3,int32"),
    ("pick", "9x9,3x3", "--calls", "0"),
    ("pick", "9x9,3x3", "--threads", "no"),
    ("pick", "9x9,3x3", "--max-workspace", "lots"),
    ("list", "nonsense"),
    ("run",),
    ("run", "nosuchsuite"),
    ("run", "nosuch.csv"),
    ("run", "--sizes", "64"),
    ("run", "--sizes", "64", "--kernels", "3,x"),
    ("run", "--spec", "9x9,3x3"),
    ("run", "9x9,3x3", "--algorithms", "nosuch"),
    ("run", "9x9,3x3", "--budget", "-1"),
    ("run", "9x9,3x3", "--out", "/dev/null/x"),
    ("check", "9x9,3x3", "--threads", "0"),
    ("report", "--out", "nowhere"),
    ("nosuchcommand",),
    (),
]


@pytest.mark.parametrize("arguments", BAD, ids=lambda a: " ".join(a)[:40] or "nothing")
def test_bad_usage_is_one_line_and_exit_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as leaving:  # as the argument parser does
        code = int(str(leaving.code))
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and "unexpected" not in shown.err
    assert shown.err.strip().isprintable()


def test_list_says_why_not(convbench: Convbench) -> None:
    rows = {row["name"]: row for row in json.loads(convbench("list", "--json").stdout)}
    assert rows["direct_shift"]["available"] and rows["auto"]["available"]
    assert rows["cupy_direct"]["available"] or rows["cupy_direct"]["why"]
    text = convbench("list", "1x1x64x64,1x1x5x5,float16").stdout
    assert text.splitlines()[0].split() == ["name", "family", "device", "runtime", "accuracy", "supported"]
    assert "not float16" in text


def test_suites_are_listed_with_their_sources(convbench: Convbench) -> None:
    rows = {row["name"]: row for row in json.loads(convbench("suites", "--json").stdout)}
    assert {"quick", "images"} <= set(rows)
    assert all(row["specs"] and row["source"] and row["about"] for row in rows.values())


def test_run_report_pick_from_a_file(convbench: Convbench, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("name,spec\na,\"1x1x48x48,1x1x3x3,p1\"\nb,\"1x2x24x24,4x2x3x3,s3\"\n")
    names = "direct_shift,im2col_gemm,auto"
    done = convbench("run", str(table), "--algorithms", names, "--launches", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "1x1x48x48,1x1x3x3,p1" in done.stdout and str(tmp_path / "out" / "report" / "index.html") in done.stdout
    assert done.stderr == ""  # no progress bar where nobody watches
    again = convbench("report", "--out", str(tmp_path / "out"), "--baseline", "direct_shift")
    assert again.returncode == 0 and again.stdout.strip().endswith("index.html")
    picked = convbench("pick", "1x2x24x24,4x2x3x3,s3")
    assert picked.returncode == 0
    assert "measured" in picked.stdout and "never read: 1 row" not in picked.stdout
    assert "excluded" in picked.stdout


def test_a_stride_that_does_not_fit_is_said(convbench: Convbench) -> None:
    assert "never read: 1 row (6) and 1 column (6)" in convbench("pick", "7x7,3x3,s3").stdout


def test_pick_measures_when_asked(convbench: Convbench) -> None:
    picked = json.loads(convbench("pick", "20x20,3x3", "--measure", "--threads", "1", "--json").stdout)
    assert picked["source"] == "measured"
    sources = {c["source"] for c in picked["candidates"] if not c["excluded"]}
    assert sources == {"measured"}


@pytest.mark.parametrize("damage", ["garbage", "truncated", "newer", "foreign"])
def test_a_store_that_cannot_be_used_is_one_clear_line(convbench: Convbench, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    one = ("run", "20x20,3x3", "--algorithms", "direct_shift", "--launches", "1", "--out", str(out))
    assert convbench(*one).returncode == 0
    path = out / "convbench.sqlite"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 999)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "newer":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 99")
    else:
        path.unlink()
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE diary (day)")
    done = convbench(*one)
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1 and str(path) in done.stderr and "unexpected" not in done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(closed: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Nothing else is written to what takes their numbers."""
    command = f"{sys.executable} -m bench run 9x9,3x3 --algorithms direct_shift --launches 1 --out out {closed}"
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert ("report:" in done.stdout) == ("1>" not in closed)
    with closing(sqlite3.connect(tmp_path / "out" / "convbench.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM launch").fetchone() == (1,)


def test_bad_usage_with_closed_streams(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    for command in ("check 9x9", "nosuchcommand"):
        done = subprocess.run(f"{sys.executable} -m bench {command} 2>&-", shell=True, cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_that_has_seen_enough(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = f"{sys.executable} -m bench list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


HOSTILE = """
from dataclasses import dataclass
from tests.record_makers import HOSTILE
from algos import Algorithm

@dataclass(frozen=True)
class Hostile(Algorithm):
    name: str = "hostile"
    family: str = "direct"
    text: str = "".join(HOSTILE)

    def unavailable(self):
        return self.text if self.name == "hostile" else None

    def unsupported(self, spec):
        return self.text if self.name == "hostile_too" else None

    def workspace_bytes(self, spec, threads=1):
        return 0

    def prepare(self, spec, weights, threads=1):
        raise ValueError(self.text)

ALGORITHMS = [Hostile(), Hostile("hostile_too"), Hostile("hostile_three")]
"""


def test_hostile_texts_stay_texts(convbench: Convbench, tmp_path: Path) -> None:
    """Of an algorithm, in the terminal, the store and the report, in a folder with a hostile name."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "hostile.py").write_text(HOSTILE)
    environment = {"CONVBENCH_PATH": str(tmp_path / "plugins"), "PYTHONPATH": str(Path(__file__).parents[1])}
    out = tmp_path / "<b>out & 100% #1?'\""
    names = "hostile,hostile_too,hostile_three"
    measured = ("run", "9x9,3x3", "--algorithms", f"{names},direct_shift", "--launches", "1", "--out", str(out))
    for command in (("list", "9x9,3x3"), ("check", "9x9,3x3", "--algorithms", names), ("pick", "9x9,3x3"), measured):
        done = convbench(*command, **environment)
        assert done.returncode == (1 if command[0] == "check" else 0), done.stderr
        assert done.stderr == "" and all(line.isprintable() for line in done.stdout.splitlines())
    with closing(sqlite3.connect(out / "convbench.sqlite")) as database:
        reasons = dict(database.execute("SELECT algorithm, reason FROM record"))
    assert all(reasons[name].isprintable() and "alert(1)" in reasons[name] for name in names.split(","))
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img" not in page.replace('<img src="data:', "")
    assert all(path.name.isascii() for path in (out / "report").iterdir())
