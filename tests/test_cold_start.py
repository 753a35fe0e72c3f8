"""The first call in a fresh process loads what it needs and nothing else: never the clock, only what is
imported.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import HUNG_S

HEAVY = ("scipy.signal", "scipy.fft", "scipy.ndimage", "scipy.sparse", "scipy.linalg", "pandas", "matplotlib",
         "jinja2", "torch", "cv2", "cupy", "bench", "reports")  # fmt: skip
CALLS = {
    "layer": "algos.conv2d(np.zeros((1, 64, 56, 56), 'f4'), np.zeros((64, 64, 3, 3), 'f4'), padding=1)",
    "picture": "algos.conv2d(np.zeros((1, 1, 28, 28), 'f4'), np.zeros((1, 1, 3, 3), 'f4'), padding=1)",
    "plan": "algos.plan('28x28,5x5,p2', np.ones((1, 1, 5, 5), 'f4'))(np.zeros((1, 1, 28, 28), 'f4'))",
}


def loaded(code: str, environment: dict[str, str]) -> set[str]:
    """The modules that are imported once ``code`` has run in a process of its own."""
    script = f"import numpy as np, algos\n{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=HUNG_S
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_alone_loads_no_compiler(environment: dict[str, str]) -> None:
    modules = loaded("", environment)
    assert not modules & {"numba", "llvmlite", "scipy", "pandas", *HEAVY}
    assert not {name for name in modules if name.startswith(("algos.cpu.", "algos.gpu.", "algos.peers."))}


@pytest.mark.parametrize("call", CALLS)
def test_a_first_call_loads_no_library_that_it_does_not_run(call: str, environment: dict[str, str]) -> None:
    assert not loaded(CALLS[call], environment) & set(HEAVY)


@pytest.mark.parametrize("command", ["pick", "run", "report"])
def test_the_command_line_loads_nothing_that_a_command_may_not_need(
    command: str, environment: dict[str, str]
) -> None:
    asked = f"""
from contextlib import redirect_stdout, suppress
from bench.cli import main
with suppress(SystemExit), redirect_stdout(None):
    main(["{command}", "--help"])"""
    assert not loaded(asked, environment) & (
        set(HEAVY) - {"bench"} | {"numba", "bench.runner", "bench.store"}
    )


def test_other_people_s_compiled_code_still_finds_its_blas(environment: dict[str, str]) -> None:
    theirs = """
import numba
a = np.arange(9.0).reshape(3, 3) + np.eye(3)
dot = numba.njit(lambda a: (a.dot(a), np.linalg.inv(a), np.linalg.norm(a)))
square, inverse, norm = dot(a)
assert np.allclose(square, a @ a) and np.allclose(inverse @ a, np.eye(3))
assert np.isclose(norm, np.linalg.norm(a))
"""
    assert "scipy.linalg" in loaded(CALLS["layer"] + theirs, environment)
