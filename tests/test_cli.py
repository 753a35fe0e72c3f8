"""The command line: what it prints, where, with which exit code, and that
nothing a user types gives a traceback.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.exchange import from_pytest_benchmark
from bench.record import Record
from bench.store import Store
from tests.conftest import HUNG_S, Convbench, whatever_the_load
from tests.record_makers import record

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
    ("pick", "9x9,3x3,int32,sigmoid"),
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
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    says: str = "",
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
    assert shown.err.strip().isprintable() and says in shown.err, shown.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run qick", "did you mean quick?"),
        ("check VGG-16", "did you mean vgg16"),
        ("run resnet", "did you mean resnext101 or resnet50_v1"),
        ("chekc quick", "did you mean check?; see convbench --help"),
        ("pick 9x9,3x3 --jsn", "did you mean --json?; see convbench pick --help"),
        ("run quick --algoritms=fft", "did you mean --algorithms?; see convbench run --help"),
        ("check quick --luanches 2", "unknown option '--luanches': it has --help"),
        ("pick 9x9,3x3 1", "unknown argument '1': give fewer; see convbench pick --help"),
        ("--jsn suites", "see convbench --help"),
        ("check 9x9,3x3 --algorithms numba_drect", "did you mean numba_direct"),
        ("check 9x9,3x3 --algorithms winograd_f4:blok_bytes=3", "did you mean block_bytes?"),
        ("pick 9x9,3x3,relfect", "did you mean reflect or"),
        ("pick 9x9,3x3,flaot64", "did you mean float64"),
        ("pick 9x9,3x3,input_gradeint", "did you mean input_gradient"),
    ],
)
def test_what_is_misspelt_is_answered_by_what_was_meant(
    typed: str,
    meant: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    test_bad_usage_is_one_line_and_exit_2(tuple(typed.split()), capsys, monkeypatch, tmp_path, meant)


def stored(folder: Path, *records: Record) -> str:
    """A store with these records and nothing else."""
    with Store(folder) as store:
        for one in records:
            store.put(one)
    return str(folder)


def test_nothing_checked_measured_compared_or_merged_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one line with the reasons, and by the exit code."""
    monkeypatch.chdir(tmp_path)
    odd = "1x1x8,1x1x3,p1,int64,reflect,input_gradient"
    one, two = (stored(tmp_path / name, record(name)) for name in ("one", "two"))
    other = stored(tmp_path / "other", record("one", machine="m2"))
    refused = stored(tmp_path / "refused", record("one", status="crashed"))
    empty = stored(tmp_path / "empty")
    Path("none.json").write_text('{"benchmarks": [], "machine_info": {}}')
    for command, why in (
        (("check", odd, "--algorithms", "winograd_f2,fft"), "nothing was checked: 2 unsupported: "),
        (
            ("run", odd, "--algorithms", "winograd_f2", "--out", "new"),
            "nothing was measured: 1 unsupported: ",
        ),
        (
            ("run", "9x9,3x3", "--algorithms", "fft", "--budget", "0", "--out", "later"),
            "the budget ended the run first",
        ),
        (("compare", one, two), "nothing was compared: the stores share no algorithm (one and two)"),
        (("compare", one, other), "nothing was compared: the stores share no machine (m1 and m2)"),
        (("compare", one, refused), "the new store holds no times"),
        (("compare", empty, one), "the old store holds no times"),
        (("report", "--out", empty), "nothing measured yet"),
        (("merge", "all", empty), "nothing to merge: no records in"),
        (("import", "none.json", "--out", "imported"), "holds no benchmark"),
    ):
        assert main(command) == 2, command
        shown = capsys.readouterr()
        assert why in shown.err and shown.err.count("\n") == 1 and shown.err.strip().isprintable(), shown.err
        if command[0] == "check":
            assert "0 ok, 0 failed, 2 not checked" in shown.out and shown.out.count("unsupported") == 2
    assert not Path("all").exists() and not Path("imported").exists()
    assert main(("check", odd, "9x9,3x3", "--algorithms", "winograd_f2")) == 0  # something was
    assert "1 ok, 0 failed, 1 not checked" in capsys.readouterr().out


# Cyrillic, none, control
NAMES = (b"\xd1\x80\xd0\xb5\xd0\xb7\xd1\x83\xd0\xbb\xd1\x8c\xd1\x82", b"byt\xffes", b"a\x1b[31m\nb")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_folder_is_named_in_whatever_characters_the_terminal_has(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Results are reported from a folder in another script, or whose name is no text; so are mistakes."""
    for name in map(os.fsdecode, NAMES):
        folder = stored(tmp_path / name, record("fft"))
        for code, command in ((0, ("report", "--out", folder)), (0, ("merge", folder + "2", folder)),
                              (0, ("compare", folder, folder)), (2, ("report", "--out", folder + "3")),
                              (2, ("import", folder)), (2, ("run", folder + ".csv"))):  # fmt: skip
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
            monkeypatch.setattr("sys.stdout", out)
            monkeypatch.setattr("sys.stderr", err)
            assert main(command) == code
            for stream in (out, err):
                stream.flush()
                shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
                assert all(line.isprintable() for line in shown.splitlines())
                assert bool(shown) == (stream is (err if code else out)) and "unexpected" not in shown
        assert (tmp_path / name / "report" / "index.html").exists()


def test_a_run_into_a_folder_in_another_script_on_a_terminal_of_ascii(
    convbench: Convbench, tmp_path: Path
) -> None:
    one = (
        "run",
        "9x9,3x3",
        "--algorithms",
        "direct_shift",
        "--launches",
        "1",
        "--out",
        os.fsdecode(NAMES[0]),
    )
    done = convbench(*one, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == "" and "report: \\u0440" in done.stdout
    assert (tmp_path / "work" / one[-1] / "report" / "index.html").exists()
    ascii_files = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = convbench("merge", one[-1] + "2", one[-1], **ascii_files)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "work" / (one[-1] + "2")).exists()


def test_list_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("list", "--json")) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["direct_shift"]["available"] and rows["auto"]["available"]
    assert rows["cupy_direct"]["available"] or rows["cupy_direct"]["why"]
    assert main(("list", "1x1x64x64,1x1x5x5,float16")) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["name", "family", "device", "runtime", "accuracy", "supported"]
    assert "not float16" in text


def test_suites_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("suites", "--json")) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"quick", "images"} <= set(rows)
    assert all(row["specs"] and row["source"] and row["about"] for row in rows.values())


def test_run_report_pick_from_a_file(convbench: Convbench, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("name,spec\na,\"1x1x48x48,1x1x3x3,p1\"\nb,\"1x2x24x24,4x2x3x3,s3\"\n")
    names = "direct_shift,im2col_gemm,auto"
    done = convbench(
        "run", str(table), "--algorithms", names, "--launches", "1", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert (
        "1x1x48x48,1x1x3x3,p1" in done.stdout
        and str(tmp_path / "out" / "report" / "index.html") in done.stdout
    )
    assert done.stderr == ""  # no progress bar where nobody watches
    again = convbench("report", "--out", str(tmp_path / "out"), "--baseline", "direct_shift")
    assert again.returncode == 0 and again.stdout.strip().endswith("index.html")
    for _ in range(5):  # a time that a busy machine disturbed teaches nothing
        picked = convbench("pick", "1x2x24x24,4x2x3x3,s3")
        if "measured" in picked.stdout:
            break
        convbench("run", str(table), "--algorithms", names, "--launches", "1", "--fresh", "--out",
                  str(tmp_path / "out"))  # fmt: skip
    assert picked.returncode == 0
    assert "measured" in picked.stdout and "never read: 1 row" not in picked.stdout
    assert "others are left out: --why says why" in picked.stdout


def test_pick_answers_in_one_line_then_what_would_be_better(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("pick", "1x64x56x56,64x64x7x7,p3", "--threads", "1", "--algorithms", "im2col_gemm,separable",
                 "--why")) == 0  # fmt: skip
    answer, reason, *rest = capsys.readouterr().out.splitlines()
    assert answer.startswith("im2col_gemm: about ") and " a call, estimated" in answer and "fastest" in reason
    hints = [line for line in rest if line.startswith("- ")]
    assert "if each kernel is an outer product (rank1), separable takes" in hints[0]
    assert "--budget 50ms lets" in hints[1] and any(line.startswith("separable  the spec") for line in rest)
    assert main(("pick", "64x64,7x7,p3", "--json")) == 0
    picked = json.loads(capsys.readouterr().out)
    assert all(c["low_s"] < c["run_s"] < c["high_s"] for c in picked["candidates"] if not c["excluded"])


def test_pick_says_nothing_of_outer_products_where_nobody_may_solve_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An algorithm from outside may have been checked on the spec, and never with outer products."""

    def distrusted(way: Any, *ignored: Any, **others: Any) -> str:
        return "never checked on this spec" if way.spec.rank == 1 else ""

    monkeypatch.setattr("algos.auto._distrust", distrusted)
    assert main(("pick", "63x64,7x7,p3", "--algorithms", "im2col_gemm")) == 0
    shown = capsys.readouterr()
    assert "im2col_gemm" in shown.out and "outer product" not in shown.out and not shown.err


def test_a_stride_that_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("pick", "7x7,3x3,s3")) == 0
    assert "never read: 1 row (6) and 1 column (6)" in capsys.readouterr().out


def test_pick_measures_when_asked(convbench: Convbench) -> None:
    words = ("pick", "1x2x9x9,3x2x3x3", "--algorithms", "direct_shift,im2col_gemm,numba_direct", "--json")
    for _ in range(3):  # what was disturbed, on a busy machine, teaches nothing
        picked = json.loads(convbench(*words, "--measure", "--threads", "1").stdout)
        sources = {c["source"] for c in picked["candidates"] if not c["excluded"]}
        if sources == {"measured"}:
            break
    assert sources == {"measured"} and picked["source"] == "measured"


@pytest.mark.parametrize("damage", ["garbage", "truncated", "newer", "foreign"])
def test_a_store_that_cannot_be_used_is_one_clear_line(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    one = ("run", "20x20,3x3", "--algorithms", "direct_shift", "--launches", "1", "--out", str(out))
    with Store(out) as store:
        store.put(record("direct_shift"))
    path = out / "convbench.sqlite"
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
    assert main(one) == 2
    shown = capsys.readouterr()
    assert (
        shown.out == ""
        and shown.err.count("\n") == 1
        and str(path) in shown.err
        and "unexpected" not in shown.err
    )


@pytest.mark.parametrize(
    "closed",
    [
        "0<&- 1>&- 2>&-",
        *(pytest.param(c, marks=pytest.mark.exhaustive) for c in ("0<&-", "1>&-", "2>&-", "0<&- 2>&-")),
    ],
)
def test_closed_standard_streams(closed: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Nothing else is written to what takes their numbers."""
    command = (
        f"{sys.executable} -m bench run 9x9,3x3 --algorithms direct_shift --launches 1 --out out {closed}"
    )
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HUNG_S
    )
    assert done.returncode == 0 and whatever_the_load(done.stderr) == ""
    assert ("report:" in done.stdout) == ("1>" not in closed)
    with closing(sqlite3.connect(tmp_path / "out" / "convbench.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM launch").fetchone() == (1,)


def test_bad_usage_with_closed_streams(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    for command in ("check 9x9", "nosuchcommand"):
        done = subprocess.run(f"{sys.executable} -m bench {command} 2>&-", shell=True, cwd=tmp_path,
                              env=environment, capture_output=True, text=True, timeout=HUNG_S)  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_that_has_seen_enough(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = f"{sys.executable} -m bench list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, timeout=HUNG_S,
                          capture_output=True, text=True)  # fmt: skip
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
    measured = (
        "run",
        "9x9,3x3",
        "--algorithms",
        f"{names},direct_shift",
        "--launches",
        "1",
        "--out",
        str(out),
    )
    for command in (
        ("list", "9x9,3x3"),
        ("check", "9x9,3x3", "--algorithms", names),
        ("pick", "9x9,3x3"),
        measured,
    ):
        done = convbench(*command, **environment)
        assert done.returncode == (1 if command[0] == "check" else 0), done.stderr
        assert done.stderr == "" and all(line.isprintable() for line in done.stdout.splitlines())
    with closing(sqlite3.connect(out / "convbench.sqlite")) as database:
        reasons = dict(database.execute("SELECT algorithm, reason FROM record"))
    assert all(reasons[name].isprintable() and "alert(1)" in reasons[name] for name in names.split(","))
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img" not in page.replace('<img src="data:', "")
    assert all(path.name.isascii() for path in (out / "report").iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_of_pytest_benchmark_are_read_in_any_unicode(encoding: str, tmp_path: Path) -> None:
    entry = {"group": "9x9,3x3", "name": "größe", "stats": {"median": 1e-6}}
    content = json.dumps({"machine_info": {"system": "größe"}, "benchmarks": [entry]}, ensure_ascii=False)
    (tmp_path / "run.json").write_text(content, encoding=encoding)
    machine, (found,), left_out = from_pytest_benchmark(tmp_path / "run.json")
    assert (machine["system"], found.algorithm, left_out) == ("größe", "größe", 0)
