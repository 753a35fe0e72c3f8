"""The documented commands run as they stand; pytest itself and the two set-up lines are left to CI."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import COMMANDS
from bench.cli.arguments import algorithms_of, parser
from bench.suites import resolve
from tests.conftest import HUNG_S
from tests.ready import Ready

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Lines of console blocks that run convbench or write a file for it, in their order."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [
        line.removeprefix("$ ")
        for line in lines
        if line.startswith(("$ convbench ", "$ CONVBENCH_PATH=", "$ printf "))
    ]


def shortened(command: str) -> str:
    """The same with fewer measurements: two algorithms where all would run, one launch of each."""
    if "convbench run" in command:
        command = command.replace("64,96 --kernels 3,5", "24,32 --kernels 3")
        return (
            command
            + ("" if "--algorithms" in command else " --algorithms direct_shift,im2col_gemm")
            + " --launches 1"
        )
    if "convbench duel" in command:
        return command + " --launches 2"  # one does not know its noise
    # Few compete on whole numbers
    return command.replace("1x1x40x40,1x1x5x5,p2 --measure", "1x2x9x9,3x2x3x3,int32 --measure")


CASES = [(page, whole) for page in PAGES if commands(page) for whole in (False, True)]


@pytest.mark.parametrize(("page", "whole"), [
    pytest.param(*case, marks=[pytest.mark.exhaustive] if case[1] or case[0].name == "measuring.md" else [],
                 id=f"{case[0].name}-{'as it stands' if case[1] else 'shortened'}")
    for case in CASES
])  # fmt: skip
def test_documented_commands_run(
    page: Path, whole: bool, tmp_path: Path, environment: dict[str, str], ready: Ready
) -> None:
    """In one folder, in the order of the page, after the files that the page shows were written: as a shell
    runs them, or where they are shortened without one.
    """
    scripts = tmp_path / "bin"
    scripts.mkdir()
    tool = scripts / "convbench"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bench "$@"\n')
    tool.chmod(0o755)
    path = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    work = tmp_path / "work"
    work.mkdir()
    for source in blocks(page, "python"):
        if match := re.match(r"# (\S+/\S+\.py)\n", source):
            file = work / match[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)
    for command in commands(page):
        if whole or "convbench" not in command:
            done = subprocess.run(command, shell=True, cwd=work, env={**environment, **path}, text=True,
                                  capture_output=True, timeout=HUNG_S, check=False)  # fmt: skip
        else:
            variables, _, words = shortened(command).partition("convbench ")
            named = dict(word.split("=", 1) for word in variables.split())
            done = ready.run(shlex.split(words), work, {**environment, **named}, HUNG_S)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert (done.stdout or " > " in command) and "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_are_well_formed(page: Path) -> None:
    """Those of shell blocks take minutes: their arguments, targets and algorithms must exist."""
    for command in (command for command in commands(page) if command.startswith("convbench ")):
        parser(COMMANDS.values()).parse_args(shlex.split(command)[1:])
    for line in (
        line for kind in ("sh", "yaml") for block in blocks(page, kind) for line in block.splitlines()
    ):
        if "convbench " not in line:
            continue
        words = shlex.split(line, comments=True)
        if words[:1] != ["convbench"]:
            continue
        arguments = parser(COMMANDS.values()).parse_args(words[1:])
        resolve(getattr(arguments, "targets", []))
        if getattr(arguments, "algorithms", None):
            algorithms_of(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_python_runs(page: Path) -> None:
    """Block after block; a later one may use what an earlier one of the page made."""
    names = {"__name__": "documented"}
    for source in blocks(page, "python"):
        if not re.match(r"# \S+/\S+\.py\n", source):
            exec(compile(source, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_lists_no_algorithms_by_hand_and_has_both_set_up_lines() -> None:
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^python3 -m venv \.venv && .*$", text, re.MULTILINE)
    assert len(lines) == 2
    assert lines[0].endswith("convbench run quick") and lines[1].endswith("pytest -n auto")
