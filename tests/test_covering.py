"""What a plain run leaves out: every two traits that meet in a grid still meet in a
test, and --exhaustive runs all of it.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

from tests.covering import covered, covering, pairs
from tests.test_contract import CASES, TRAITS


def test_a_covering_holds_every_pair_and_is_small() -> None:
    source = random.Random(0)
    grid = [[(what, source.randrange(4)) for what in "abcdef"] for _ in range(600)]
    chosen = covering([pairs(case) for case in grid])
    every = set(itertools.chain(*map(pairs, grid)))
    assert len(every) == 15 * 4 * 4
    assert set(itertools.chain(*(pairs(grid[i]) for i in chosen))) == every and len(chosen) < 60
    marked = covered([(i,) for i in range(600)], grid)
    assert [i for i, case in enumerate(marked) if case == (i,)] == sorted(chosen)


def test_every_algorithm_meets_every_kind_of_problem_that_it_solves() -> None:
    chosen = covering([pairs(traits) for traits in TRAITS])
    assert len(chosen) < len(CASES) / 3
    for name in {name for name, *_ in CASES}:
        solved, tried = set(), set()
        for i, traits in enumerate(TRAITS):
            if CASES[i][0] == name:
                solved |= traits
                tried |= traits if i in chosen else set()
        assert tried == solved


def test_exhaustive_runs_what_a_plain_run_leaves_out() -> None:
    command = [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", "tests/test_faults.py",
               "-k", "kill_9"]  # fmt: skip
    plain, every = (
        subprocess.run(
            [*command, *more], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        ).stdout
        for more in ([], ["--exhaustive"])
    )
    assert "no_process[4-" in plain and "no_process[20-" not in plain
    assert "no_process[4-" in every and "no_process[20-" in every
