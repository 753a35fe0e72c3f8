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
from tests.test_contract import CASES, CODES, TRAITS


def test_a_covering_holds_every_pair_and_is_small() -> None:
    source = random.Random(0)
    grid = [[(what, source.randrange(4)) for what in "abcdef"] for _ in range(600)]
    chosen = covering([pairs(case) for case in grid])
    every = set(itertools.chain(*map(pairs, grid)))
    assert len(every) == 15 * 4 * 4
    assert set(itertools.chain(*(pairs(grid[i]) for i in chosen))) == every and len(chosen) < 60
    marked = covered([(i,) for i in range(600)], grid)
    assert [i for i, case in enumerate(marked) if case == (i,)] == sorted(chosen)


def test_a_covering_compiles_no_more_than_it_must() -> None:
    """Two codes hold all between them, though most cases have one of their own; a known one comes first."""
    cases = [{i, i + 1} for i in range(9)] + [set(range(6)), set(range(4, 10)), {0, 1}, {2}]
    codes = [f"own {i}" for i in range(9)] + ["first", "second", "first", None]
    assert covering(cases, codes) == {9, 10}
    for known in ({"own 8"}, {"own 8", "own 7"}):
        chosen = covering(cases, codes, known)
        assert set().union(*(cases[i] for i in chosen)) == set(range(10))
        assert len({codes[i] for i in chosen} - known) == 2
    assert covering(cases[:9], codes[:9], codes) == covering(cases[:9])


def test_every_algorithm_meets_every_kind_of_problem_that_it_solves() -> None:
    chosen = covering([pairs(traits) for traits in TRAITS], CODES)
    assert set().union(*(pairs(TRAITS[i]) for i in chosen)) == set().union(*map(pairs, TRAITS))
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
    assert "no_process[3-" in plain and "no_process[20-" not in plain
    assert "no_process[3-" in every and "no_process[20-" in every
