"""One file is all it takes: an algorithm in a folder of CONVBENCH_PATH is listed,
checked, measured, plotted and picked.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algos import registry
from algos.spec import ConvSpec
from bench.cli import main
from tests.conftest import Convbench
from tests.runs import algorithms_from

PLUGIN = '''
from dataclasses import dataclass
import numpy as np
from algos import Algorithm

@dataclass(frozen=True)
class Mine(Algorithm):
    name: str = "{name}"
    family: str = "direct"

    def unsupported(self, spec):
        return None if max(spec.weight_shape) == 1 and str(spec).count(",") == 1 else "only scales"

    def workspace_bytes(self, spec, threads=1):
        return 0

    def prepare(self, spec, weights, threads=1):
        factor = weights.item() * {error}
        return lambda x, out=None: np.multiply(x, np.float32(factor), out=out)

ALGORITHMS = [Mine()]
'''
SPEC = "1x1x9x9x9,1x1x1x1x1"


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN.format(name="mine", error="1.0"))
    (folder / "wrong.py").write_text(PLUGIN.format(name="my_wrong", error="1.01"))
    return folder


def test_one_file_makes_an_algorithm_appear_everywhere(
    convbench: Convbench,
    plugins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = {"CONVBENCH_PATH": str(plugins)}
    with algorithms_from(plugins, tmp_path / "data", monkeypatch):
        assert main(("list", SPEC, "--json")) == 0
        listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert listed["mine"]["supported"] and listed["my_wrong"]["supported"]
        assert main(("list", "9x9,3x3", "--json")) == 0 and json.loads(capsys.readouterr().out)
        assert main(("pick", SPEC, "--json")) == 0
        assert json.loads(capsys.readouterr().out)["algorithm"] != "mine"  # nobody has checked it yet

    checked = convbench("check", SPEC, "--algorithms", "mine,my_wrong", "--json", **path)
    assert checked.returncode == 1
    assert {row["algorithm"]: row["status"] for row in json.loads(checked.stdout)} == {
        "mine": "ok",
        "my_wrong": "wrong",
    }

    done = convbench("run", SPEC, "--launches", "1", "--algorithms", "own", "--out", str(tmp_path / "out"),
                     "--json", painted=True, **path)  # fmt: skip
    assert done.returncode == 1, done.stderr  # a wrong result is an error of the run
    result = json.loads(done.stdout)
    assert {"prepared_runs", "checks", "compilation", "start_up", "waiting"} == set(result["shares"])
    assert sum(result["shares"].values()) == pytest.approx(1.0, abs=0.05)
    report = tmp_path / "out" / "report"
    records = (report / "records.csv").read_text()
    assert "mine" in records
    (wrong,) = [line for line in records.splitlines() if "my_wrong" in line]
    assert "wrong" in wrong and "tolerance" in wrong
    assert ">mine<" in (report / "index.html").read_text()
    assert any("mine" in picture.read_text() for picture in report.glob("*.svg"))

    for _ in range(5):  # a time that a busy machine disturbed teaches nothing
        picked = json.loads(convbench("pick", SPEC, "--json", **path).stdout)
        known = {c["algorithm"]: c["source"] for c in picked["candidates"] if not c["excluded"]}
        if "mine" in known:
            break
        convbench("run", SPEC, "--launches", "1", "--algorithms", "mine,direct_shift", "--fresh", "--out",
                  str(tmp_path / "out"), **path)  # fmt: skip
    assert picked["source"] == known["mine"] == "measured"
    excluded = {c["algorithm"]: c["excluded"] for c in picked["candidates"] if c["excluded"]}
    assert excluded["my_wrong"].startswith("wrong on")


def test_an_algorithm_whose_class_stands_in_a_library_is_from_outside_all_the_same(
    convbench: Convbench, plugins: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "scaling.py").write_text((plugins / "mine.py").read_text())
    (plugins / "mine.py").write_text(
        f"import sys\nsys.path.append({str(library)!r})\nfrom scaling import Mine\nALGORITHMS = [Mine()]\n"
    )
    path = {"CONVBENCH_PATH": str(plugins)}
    picked = json.loads(convbench("pick", SPEC, "--json", **path).stdout)
    excluded = {c["algorithm"]: c["excluded"] for c in picked["candidates"] if c["excluded"]}
    assert excluded["mine"].startswith("never checked")
    checked = convbench("check", SPEC, "--algorithms", "mine", "--json", **path)
    assert [row["status"] for row in json.loads(checked.stdout)] == ["ok"], checked.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "defines no ALGORITHMS"),
        (PLUGIN.format(name="direct_shift", error="1"), "two algorithms are named"),
        (PLUGIN.format(name="not a name", error="1"), "must be a Python identifier"),
        (
            PLUGIN.format(name="mine", error="1").replace('"direct"', '"magic"'),
            "family 'magic' .* is not one of direct, ",
        ),
        (
            PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine(runtime='jax')]"),
            "runtime 'jax' .* not one of",
        ),
        (
            PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine(layout='hwc')]"),
            "layout 'hwc' .* not one of",
        ),
        (
            PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine(device='gpu')]"),
            "device 'gpu' .* not one of",
        ),
        (
            PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine(accuracy=['x'])]"),
            "accuracy .* is not one of",
        ),
        (
            PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine(name=3)]"),
            "name 3 .* must be a Python identifier",
        ),
        (PLUGIN.format(name="mine", error="1").replace("[Mine()]", "[Mine]"), "not an Algorithm"),
        (PLUGIN.format(name="mine", error="1").replace("[Mine()]", "Mine()"), "not a list"),
        (
            PLUGIN.format(name="mine", error="1").replace(
                "    family", "    grid: tuple = ([],)\n    family"
            ),
            "hashable fields",
        ),
    ],
)
def test_a_file_that_breaks_the_contract_says_how(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setenv("CONVBENCH_PATH", str(tmp_path))
    registry.registry.cache_clear()
    with pytest.raises(ValueError, match=says) as caught:
        registry.registry()
    assert "\n" not in str(caught.value) and str(tmp_path / "mine.py") in str(caught.value)
    monkeypatch.undo()
    registry.registry.cache_clear()


@pytest.mark.parametrize(
    ("source", "says", "asked"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (line 1)", True),
        ("x = 1\ndef x(:\n", "SyntaxError: invalid syntax (mine.py, line 2)", False),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (line 2)", False),
        ("import algos.not_there", "ModuleNotFoundError: No module named 'algos.not_there' (line 1)", False),
        ("\nraise ImportError('libgone.so: cannot open\\nshared object')",
         "ImportError: libgone.so: cannot open shared object (line 2)", False),
        (PLUGIN.format(name="my_row", error="1").replace("frozen=True", "frozen=False"), "TypeError: ", True),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_leaves_the_others_alone(
    source: str, says: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is one line of ``list``, and the error of commands that would use it, which are asked about some."""
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "other.py").write_text(PLUGIN.format(name="other", error="1"))
    monkeypatch.setenv("CONVBENCH_PATH", str(tmp_path))
    registry.registry.cache_clear()
    try:
        reason = registry.get("mine").unavailable()
        assert reason is not None and reason.startswith(f"{tmp_path / 'mine.py'} cannot be imported: {says}")
        assert main(("list", SPEC)) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mine ")]
        assert f"unavailable: {reason}" in line
        assert registry.get("other").unsupported(ConvSpec.parse(SPEC)) is None
        if not asked:
            return
        assert main(("pick", SPEC)) == 0 and main(("check", SPEC, "--algorithms", "direct_shift,other")) == 0
        capsys.readouterr()
        for named in ((), ("--algorithms", "mine"), ("--algorithms", "own")):
            assert main(("check", SPEC, *named)) == 2
            shown = capsys.readouterr()
            assert shown.out == "" and shown.err.count("\n") == 1 and reason in shown.err
        if "my_row" in source:
            assert main(("check", SPEC, "--algorithms", "my_row")) == 2
            assert reason in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        registry.registry.cache_clear()


def test_a_missing_import_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_PATH", str(tmp_path))
    (tmp_path / "needs.py").write_text("import not_there_at_all")
    registry.registry.cache_clear()
    reason = registry.get("needs").unavailable()
    assert reason == f"not_there_at_all is not installed, which {tmp_path / 'needs.py'} imports"
    monkeypatch.undo()
    registry.registry.cache_clear()


def test_what_a_missing_package_hides_is_named_by_its_file_and_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the file is called: like its algorithm, like somebody else's, or like nothing in Python."""
    source = "import not_there_at_all\n" + PLUGIN.format(name="my_row", error="1")
    for name in ("myrow", "fft", "my-row 2"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setenv("CONVBENCH_PATH", str(folder))
        registry.registry.cache_clear()
        reason = f"not_there_at_all is not installed, which {folder / name}.py imports"
        for command in ("check", "run"):
            assert main((command, SPEC, "--algorithms", "direct_shift,my_row")) == 2
            shown = capsys.readouterr()
            assert (
                shown.out == ""
                and shown.err.count("\n") == 1
                and reason in shown.err
                and "mean" not in shown.err
            )
        assert main(("list",)) == 0 and reason in capsys.readouterr().out
        assert main(("check", SPEC, "--algorithms", "my_raw")) == 2
        assert f"a file could not be loaded: {reason}" in capsys.readouterr().err
    monkeypatch.undo()
    registry.registry.cache_clear()


def test_a_part_that_an_installed_package_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVBENCH_PATH", str(tmp_path))
    (tmp_path / "needs.py").write_text("import scipy.not_there")
    registry.registry.cache_clear()
    assert str(registry.get("needs").unavailable()).startswith("scipy.not_there is not installed")
    monkeypatch.undo()
    registry.registry.cache_clear()


def test_a_broken_file_is_one_line_of_commands_that_need_it(convbench: Convbench, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys; print('banner'); sys.exit(0)")
    for command in (("check", "9x9,3x3"), ("run", "9x9,3x3")):
        done = convbench(*command, CONVBENCH_PATH=str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "") and "unexpected" not in done.stderr
        assert done.stderr.count("\n") == 2 and str(tmp_path / "leaves.py") in done.stderr.splitlines()[1]


def test_a_broken_algorithm_stands_beside_the_others(convbench: Convbench, faulty_path: str) -> None:
    """One that leaves, raises or answers nonsense when it is asked is listed with that; the rest is as it
    was.
    """
    listed = {
        row["name"]: row
        for row in json.loads(convbench("list", "9x9,3x3", "--json", CONVBENCH_PATH=faulty_path).stdout)
    }
    assert listed["good"]["supported"] and listed["direct_shift"]["supported"]
    assert (
        not listed["leaves"]["available"] and listed["leaves"]["why"] == "breaks the contract: SystemExit: 0"
    )
    assert not listed["gives_no_reason"]["supported"] and "returned False" in listed["gives_no_reason"]["why"]


def test_an_unknown_folder_is_refused(convbench: Convbench) -> None:
    done = convbench("list", CONVBENCH_PATH="/no/such/folder")
    assert done.returncode == 2 and "CONVBENCH_PATH" in done.stderr and done.stderr.count("\n") == 1
