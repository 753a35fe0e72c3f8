"""A duel finds what was planted and nothing else, pairs by name, and runs each side's code."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import algos
from algos.contract import Algorithm
from algos.spec import ConvSpec
from bench import duel, moved
from bench.cases import Case, Settings
from bench.cli import main
from bench.duel import LAUNCHES, Pair, Rule, Unpaired, judge, levels, pairs_of
from bench.outcome import Outcome
from bench.record import Launch, Record
from bench.sides import Side, SideError, resolve, roster
from tests.conftest import Convbench

ROOT = Path(__file__).parents[1]
SPEC = "1x1x24x24,1x1x3x3"
TURNS, SAMPLES = 32, 4
PLUGIN = '''
from dataclasses import dataclass, replace
from time import perf_counter
import numpy as np
from algos import Algorithm

@dataclass(frozen=True)
class Windows(Algorithm):
    name: str = "windows"
    family: str = "direct"
    block: int = {block}

    def unsupported(self, spec):
        return None if str(spec) == "{spec}" else "computes one spec only"

    def workspace_bytes(self, spec, threads=1):
        return 1 << 20

    def prepare(self, spec, weights, threads=1):
        def run(x, out=None):
            start = perf_counter()
            windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], spec.kernel, axis=(1, 2))
            y = np.einsum("nhwij,ij->nhw", windows, weights[0, 0])[:, None] * x.dtype.type({factor})
            end = perf_counter()
            while perf_counter() < end + {burn} * (end - start):
                pass
            if out is None:
                return y
            out[...] = y
            return out
        return run

ALGORITHMS = [Windows(){more}]
'''


def plugin(folder: Path, burn: float = 0, factor: float = 1, block: int = 1, more: str = "") -> str:
    folder.mkdir()
    text = PLUGIN.format(spec=SPEC, burn=burn, factor=factor, block=block, more=more)
    (folder / "windows.py").write_text(text)
    return str(folder)


# ---- the rule, on launches whose noise is known ---------------------------------------------


@pytest.mark.parametrize("launches", [1, 2, 3, 4, 8, 9, 60])
def test_all_looks_together_spend_what_one_table_may(launches: int) -> None:
    spent = levels(launches, 0.02)
    assert max(spent) == launches and list(spent) == sorted(spent) and min(spent.values()) > 0
    assert sum(spent.values()) == pytest.approx(0.02)


def synthetic(
    name: str, noise: random.Random, spread: float, factor: float
) -> tuple[Pair, Callable[[int], list[Record]]]:
    """A pair, and its records: turns drift together, and launches differ by ``spread``."""
    sides = [Record(SPEC, f"{name}@{side}", 1, "m", side, "ok") for side in "ab"]
    case = [Case(ConvSpec.parse(SPEC), Algorithm(name), record) for record in sides]
    done: list[list[Launch]] = [[], []]

    def records(launches: int) -> list[Record]:
        while len(done[0]) < launches:
            index, moved = len(done[0]), noise.gauss(math.log(factor), spread)
            mood = [1e-3 * math.exp(noise.gauss(0, 0.1)) for _ in range(TURNS)]
            for side, taken in zip((0.0, moved), done, strict=True):
                samples = [m * math.exp(side + noise.gauss(0, 0.01)) for m in mood for _ in range(SAMPLES)]
                launch = Launch(index, "t", tuple(samples), 1, 0.1, 0.1, 1e-3)
                taken.append(replace(launch, turns=(SAMPLES,) * TURNS, together=f"{name} {index}"))
        return [c.record.with_launches(tuple(launches_)) for c, launches_ in zip(case, done, strict=True)]

    return Pair(SPEC, name, 1, *case), records


def verdicts(seed: int, count: int, spread: float, factors: Sequence[float], apart: bool = True) -> list[str]:
    luck = [random.Random(f"{seed} {i}") for i in range(count)]
    made = [synthetic(str(i), luck[i], spread, factors[i % len(factors)]) for i in range(count)]
    records = dict(made)
    found: dict[tuple, Record] = {}

    def measure(launches: int, active: list[Pair]) -> tuple[dict[tuple, Record], bool]:
        for pair in active:
            found.update({record.key: record for record in records[pair](launches)})
        return found, True

    met = {one.pair: one.verdict for one in judge([pair for pair, _ in made], measure, Rule(apart=apart)).met}
    return [met[pair] for pair, _ in made]


@pytest.mark.parametrize("spread", [0.01, 0.035, 0.15])
def test_twins_are_called_different_in_two_of_a_hundred(spread: float) -> None:
    """Many pairs learn from each other, single ones from themselves; at 2%, 10 of 200 are 1 run in 100."""
    many = Counter(verdicts(1, 200, spread, [1.0]))
    alone = Counter(verdict for seed in range(200) for verdict in verdicts(seed, 1, spread, [1.0]))
    for found in (many, alone):
        assert found["slower"] + found["faster"] <= 9, found
        assert spread > 0.01 or found["same"] > 190, found


def test_five_percent_are_found_in_nine_of_ten_and_never_called_the_same() -> None:
    """At 3% a launch, as thirty turns give beside a busy neighbour; and slow pairs among twins."""
    alone = Counter(verdicts(2, 100, 0.03, [1.05, 1 / 1.05]))
    assert alone["slower"] + alone["faster"] >= 90 and alone["same"] <= 2, alone
    table = verdicts(3, 40, 0.015, [1.05, *[1.0] * 9], apart=False)
    assert table[::10] == ["slower"] * 4
    assert {verdict for i, verdict in enumerate(table) if i % 10} <= {"same", "undecided"}


def test_all_looks_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is read, and pairs that stay undecided."""
    clock, budgets = itertools.count(), []

    class Measured:
        def __init__(self, settings: Settings, *others: object) -> None:
            budgets.append(settings.run_budget_s)

        def run(self, cases: Sequence[Case]) -> Outcome:
            return Outcome()

    monkeypatch.setattr(duel, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(duel, "_Turns", Measured)
    pair, _ = synthetic("a", random.Random(1), 0.01, 1.0)
    duel.fight([pair], Settings(run_budget_s=10.0), Rule(launches=8))
    assert budgets == [9.0, 8.0, 7.0]


# ---- sides ------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This code's algos in a repository of their own, with two commits."""
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "algos", folder / "algos", ignore=shutil.ignore_patterns("__pycache__"))

    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    file = folder / "algos" / "cpu" / "toeplitz.py"
    file.write_text(file.read_text() + "\n# two\n")
    git(folder, "commit", "-qam", "two")
    monkeypatch.chdir(folder)
    return folder


def test_a_side_is_a_revision_a_checkout_plugins_or_an_algorithm(repository: Path, tmp_path: Path) -> None:
    old, new = resolve("HEAD~1", "HEAD")
    texts = [(Path(side.code) / "algos" / "cpu" / "toeplitz.py").read_text() for side in (old, new)]
    assert [text.endswith("# two\n") for text in texts] == [False, True]
    assert not (Path(old.code) / "bench").exists()
    (repository / "algos" / "cpu" / "toeplitz.py").write_text("ALGORITHMS = []\n")
    listed = [roster(side, [SPEC], None, [1], 10.0) for side in resolve("HEAD", ".")]
    names = [{entry["variant"] for entry in entries} for entries in listed]
    assert names[0] - names[1] == {"toeplitz"} and "direct_shift" in names[1]
    folder = plugin(tmp_path / "mine")
    file = f"{folder}/windows.py"
    assert [side.plugins for side in resolve(folder, file)] == [folder, file]
    other = "winograd_f4:block_bytes=65536"
    assert resolve("fft", other) == (Side("fft", algorithm="fft"), Side(other, algorithm=other))
    for wrong in (("fft", "HEAD"), ("HEAD", "nothing"), ("fft", "fft:nothing=1"), ("HEAD", str(tmp_path))):
        with pytest.raises(SideError):
            resolve(*wrong)


def test_code_that_cannot_be_driven_is_said_so(repository: Path) -> None:
    (repository / "algos" / "contract.py").write_text("")
    with pytest.raises(SideError, match=r"\. cannot be driven by the bench/ of this convbench \(ImportError"):
        roster(resolve(".", ".")[0], [SPEC], None, [1], 10.0)


def test_a_commit_of_somebodys_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_CACHE", str(tmp_path / "cache"))
    top = tmp_path / "theirs"
    top.mkdir()
    folder = plugin(top / "kernels", block=1)
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "one")):
        git(top, *words)
    monkeypatch.chdir(top)
    monkeypatch.setenv("CONVBENCH_PATH", folder)
    shutil.rmtree(folder)
    plugin(top / "kernels", block=2)
    sides = resolve("HEAD", "kernels")
    (pair,), unpaired = pairs_of(sides, [ConvSpec.parse(SPEC)], None, [1], Settings())
    assert (pair.algorithm, unpaired) == ("windows", [])  # by name, though its tunable has changed
    assert [json.loads(case.record.tunables) for case in (pair.old, pair.new)] == [{"block": 1}, {"block": 2}]


# ---- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("burn", [3, pytest.param(0.5, marks=pytest.mark.exhaustive)])
@pytest.mark.usefixtures("undisturbed")
def test_a_planted_slowdown_is_found(
    burn: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After three launches; on a busy machine, which makes their turns differ, after five or eight."""
    old = plugin(tmp_path / "old")
    new = plugin(tmp_path / "new", burn=burn, block=2, more=', replace(Windows(), name="fresh")')
    assert main(("duel", old, new, SPEC, "--threads", "1", "--launches", "8", "--json")) == 1
    told = json.loads(capsys.readouterr().out)
    (case,) = told["cases"]
    assert (case["spec"], case["algorithm"], case["verdict"]) == (SPEC, "windows", "slower")
    assert 1 < case["low"] <= case["ratio"] <= case["high"]
    (lone,) = told["unpaired"]
    assert (lone["algorithm"], lone["old"].partition(":")[0], lone["new"]) == ("fresh", "absent", "")


def test_identical_code_is_no_regression(convbench: Convbench) -> None:
    words = ("duel", "direct_shift", "direct_shift", SPEC, "--threads", "1", "--launches", "1")
    for _ in range(3):  # one launch may be held up, and of twins two in a hundred are called different
        done = convbench(*words, "--allow-undecided")
        if done.returncode == 0:
            break
    assert done.returncode == 0 and "1 undecided" in done.stdout  # one launch does not know its noise
    assert SPEC in done.stdout and "convbench twins" in done.stdout


def test_a_wrong_side_is_reported_and_no_success(convbench: Convbench, tmp_path: Path) -> None:
    right, wrong = plugin(tmp_path / "right"), plugin(tmp_path / "wrong", factor=1.001)
    done = convbench("duel", right, wrong, SPEC, "--threads", "1", "--launches", "1", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    (lost,) = told["unpaired"]
    assert told["cases"] == [] and lost["new"].startswith("wrong: ") and not lost["old"]


@pytest.mark.parametrize(("old", "new", "failed", "one_sided"), [
    ("", "wrong: differs", True, True),
    ("wrong: differs", "", True, True),
    ("", "crashed: killed", True, True),
    ("crashed: killed", "", False, True),
    ("", "unsupported: no", False, True),
    ("unsupported: no", "unsupported: no", False, False),
])  # fmt: skip
def test_what_counts_as_a_failure_of_the_new_code(old: str, new: str, failed: bool, one_sided: bool) -> None:
    pair = Unpaired(SPEC, "a", 1, old, new)
    assert (pair.failed, pair.one_sided) == (failed, one_sided)


def test_nothing_paired_and_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plugin(tmp_path / "mine")
    other = plugin(tmp_path / "other")
    file = Path(other) / "windows.py"
    file.write_text(file.read_text().replace('"windows"', '"doors"'))
    for words, why in {
        (folder, other, SPEC): "nothing was paired",
        (folder, folder, "1x1x9x9,1x1x3x3"): "computes one spec only",
        ("separable", "fft", SPEC): "promises no rank",
        ("fft", folder, SPEC): "is an algorithm",
        ("fft", "fft", "nonsense"): "is no suite",
        (folder, folder, SPEC, "--algorithms", "nothing"): "named 'nothing'",
        ("fft", "fft", SPEC, "--algorithms", "fft"): "--algorithms",
        ("v0", "fft", SPEC): "no git revision",
    }.items():
        assert main(("duel", *words)) == 2, words
        shown = capsys.readouterr()
        assert why in shown.err and shown.err.count("\n") == 1, shown.err
    with pytest.raises(SystemExit):
        main(("duel", "fft", "fft", SPEC, "--threshold", "much"))


def test_a_budget_leaves_pairs_undecided(convbench: Convbench) -> None:
    done = convbench("duel", "fft", "direct_shift", SPEC, "--threads", "1", "--budget", "0", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["unmeasured"] == [[SPEC, "fft -> direct_shift", 1]]
    assert LAUNCHES >= 8


def test_a_revision_from_before_a_module_moved_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "EARLIER", {"algos.not_there_yet": "algos.functional", "algos.door": "algos"})
    monkeypatch.setattr(moved, "INSTEAD", {("algos.door", "not_there_yet"): 7, ("algos.door", "Door"): 7})
    moved.stand_in()
    assert vars(algos.door).pop("not_there_yet") == 7 != algos.door.Door
    assert sys.modules.pop("algos.not_there_yet").conv2d is algos.conv2d
    assert sys.modules["algos.door"] is not algos  # which is there
