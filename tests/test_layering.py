"""Imports point one way, ``algos <- bench <- reports``, and never in a circle; those inside functions count.
Every package of these layers is shipped.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("algos", "bench", "reports")
FINDINGS = "reports.findings"
COMMANDS = "bench.cli"  # whose functions may import what is above them


def modules(root: Path) -> dict[str, Path]:
    """Name -> file."""
    files = (path for layer in LAYERS for path in sorted((root / layer).rglob("*.py")))
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imports(name: str, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The modules that one imports of ours, and whether it does so inside a function."""
    tree = ast.parse(known[name].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: write the whole name"
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [one if one in known else str(node.module) for one in dotted]
        else:
            continue
        yield from ((one, id(node) in inside) for one in found if one in known and one != name)


def circle(root: Path) -> list[str]:
    """The modules of a circle of imports, the first at both ends; empty where there is none."""
    known = modules(root)
    try:
        TopologicalSorter({name: {one for one, _ in imports(name, known)} for name in known}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def upward(root: Path) -> list[str]:
    """The imports that lead up."""
    known = modules(root)
    height = {name: LAYERS.index(name.partition(".")[0]) for name in known}
    return [
        f"{name} -> {one}" for name in known for one, inside in imports(name, known)
        if height[one] > height[name] and not (inside and f"{name}.".startswith(f"{COMMANDS}."))
    ]  # fmt: skip


def test_imports_form_no_circle() -> None:
    assert circle(ROOT) == []


def test_no_import_leads_up() -> None:
    assert upward(ROOT) == []


def test_findings_know_nothing_of_how_they_are_shown() -> None:
    known = modules(ROOT)
    inner = [name for name in known if name.startswith(FINDINGS)]
    found = {one for name in inner for one, _ in imports(name, known) if one.startswith("reports")}
    assert inner and found <= set(inner)


def test_every_package_is_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.relative_to(ROOT).parent for layer in LAYERS for file in (ROOT / layer).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} | {"reports.templates"} == set(shipped)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("bench/a.py", "def f():\n    from bench import b", (["bench.a", "bench.b", "bench.a"], [])),
        ("bench/a.py", "def f():\n    import reports.c", ([], ["bench.a -> reports.c"])),
        ("algos/a.py", "from bench.b import thing", ([], ["algos.a -> bench.b"])),
        ("bench/cli/a.py", "from reports.c import thing", ([], ["bench.cli.a -> reports.c"])),
        ("bench/cli/a.py", "def f():\n    from reports.c import thing", ([], [])),
    ],
)
def test_what_is_wrong_is_found(
    name: str, text: str, found: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    files = {"bench/b.py": "from bench import a", "bench/a.py": "", "reports/c.py": "", name: text}
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    assert (sorted(circle(tmp_path)), upward(tmp_path)) == (sorted(found[0]), found[1])
