"""Which edits make an algorithm's records stale: of the code that it runs, and of nothing else."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from algos import algorithms, build
from tests.conftest import HUNG_S

ROOT = Path(build.__file__).parents[1]
EDIT = """
import json, sys
from pathlib import Path
from algos import algorithms, build

def builds():
    for remembered in (build.build_of, build.imports, build.files_of, build._digest):
        remembered.cache_clear()
    return {a.name: build.build_of(a) for a in algorithms()}

before, changed = builds(), {}
for name in sys.argv[1:]:
    content = Path(name).read_bytes()
    Path(name).write_bytes(content + b"# edited\\n")
    changed[name] = [name for name, found in builds().items() if found != before[name]]
    Path(name).write_bytes(content)
print(json.dumps(changed))
"""
OUTSIDE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from algos import Algorithm, ConvSpec
if TYPE_CHECKING:
    from algos.engine.strips import place

    from algos.engine.tiles import load_tiles

@dataclass(frozen=True)
class Lazy(Algorithm):
    name: str = "lazy"
    family: str = "direct"

    def prepare(self, spec, weights, threads=1):
        if threads: from algos.engine import outer
        from algos.engine.windows import (  # the first of (two)
            reach, windows)
        return windows

ALGORITHMS = [Lazy()]
"""
NOBODYS = (
    *(f"algos/{name}.py" for name in ("contract", "spec", "grammar", "auto", "functional", "plans",
                                      "registry", "estimate", "wisdom")),
    "algos/build.py", "algos/__init__.py", "docs/speed.md",
)  # fmt: skip


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """File -> the algorithms whose builds change by an edit of it, in a copy of the sources."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("algos", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "outside.py").write_text(OUTSIDE)
    files = [
        *NOBODYS,
        "outside.py",
        *(str(p.relative_to(folder)) for p in sorted(folder.glob("algos/*/*.py"))),
    ]
    environment = {**os.environ, "CONVBENCH_PATH": str(folder / "outside.py")}
    done = subprocess.run([sys.executable, "-c", EDIT, *files], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=HUNG_S)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: set(names) for name, names in json.loads(done.stdout).items()}


def test_an_edit_of_an_algorithm_s_file_is_its_own(changed: dict[str, set[str]]) -> None:
    assert changed["algos/cpu/winograd.py"] == {"winograd_f2", "winograd_f4", "winograd_f6"}
    for algorithm in algorithms():
        file = Path(sys.modules[type(algorithm).__module__].__file__ or "").relative_to(ROOT)
        if algorithm.name != "auto":
            assert algorithm.name in changed[str(file)], file


def test_an_edit_reaches_whoever_imports_the_file_in_any_number_of_steps(
    changed: dict[str, set[str]],
) -> None:
    assert changed["algos/engine/toom_cook.py"] == {
        *changed["algos/cpu/winograd.py"],
        *changed["algos/gpu/cupy_winograd.py"],
    }
    assert changed["algos/gpu/_cupy.py"] == {a.name for a in algorithms() if a.runtime == "cupy"}
    assert {"fft", "fft_tiles"} <= changed["algos/cpu/fft.py"] and "fft_fused" not in changed[
        "algos/cpu/fft.py"
    ]
    assert {"fft_fused", "winograd_f2", "direct_channels"} <= changed["algos/engine/jit.py"]
    # NumPy's own apply a bias and an activation by a compiled loop, and these do not
    assert {"direct_shift", "kn2row_gemm", "im2col_gemm"} <= changed["algos/engine/jit.py"]
    assert not changed["algos/engine/jit.py"] & {"direct_loops", "im2row_gemm", "toeplitz"}


def test_an_edit_of_what_all_are_written_against_or_of_a_text_is_nobody_s(
    changed: dict[str, set[str]],
) -> None:
    assert not set().union(*(changed[name] for name in NOBODYS)) - {"auto"}


def test_what_a_file_from_outside_imports_counts_wherever_it_does_so(changed: dict[str, set[str]]) -> None:
    assert changed["outside.py"] == {"lazy"}
    reached = {name for name, found in changed.items() if "lazy" in found}
    assert reached == {"outside.py", "algos/engine/outer.py", "algos/engine/windows.py"}


@pytest.mark.parametrize(
    "file", sorted(map(str, (ROOT / "algos").rglob("*.py"))), ids=lambda file: os.path.relpath(file, ROOT)
)
def test_the_imports_found_are_those_of_the_parsed_file(file: str) -> None:
    tree = ast.parse(Path(file).read_text())
    for node in [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]:
        node.body = [ast.Pass()]
    names = {
        name for node in ast.walk(tree) if isinstance(node, ast.stmt) for name in build.named(file, node)
    }
    assert {path for _, path in build.imports(file)} == {
        path for name in names for path in build.files_of(name)
    }
