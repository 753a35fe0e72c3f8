"""Compiling is bounded: machine code is specialised on few small numbers, whatever a spec says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algos import Algorithm, ConvSpec, algorithms
from algos.cpu import _compiled
from algos.engine import jit
from algos.lower.tree import plain
from tests.conftest import HUNG_S
from tests.extremes import extreme_specs

COMPILED = [a for a in algorithms() if a.runtime == "numba" and a.device == "cpu" and a.unavailable() is None]
LONGEST, MOST = 256, 400  # numbers in a type, and kinds of one algorithm's code that some hundred specs need
FIRST_CALLS, SLOWEST_S, MOST_BYTES = 20, 15, 3 << 29
SEEN = ["1x8x16384,8x1x3,p2048,d2048", "1x1x8x8,1x1x3x3,s2147483647", "1x1x9x600,1x1x1x256,s1x300"]

FIRST_CALL = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
import numpy as np
from algos import ConvSpec, get
from algos.lower.tree import plain
spec = plain(ConvSpec.parse(sys.argv[2]))
x, w = np.ones(spec.input_shape, spec.in_dtype), np.ones(spec.weight_shape, spec.in_dtype)
start = time.process_time()
get(sys.argv[1]).prepare(spec, w, 1)(x)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"s": time.process_time() - start, "bytes": peak * unit}))
"""


@cache
def small_extremes(seed: int, count: int) -> tuple[ConvSpec, ...]:
    """Whose arrays are small, so that time and memory are the compiler's; as algorithms receive them."""
    found = [*map(ConvSpec.parse, SEEN), *extreme_specs(seed, count, elements=20_000)]
    return tuple(plain(spec) for spec in found)


def solved(algorithm: Algorithm, specs: Iterable[ConvSpec]) -> list[ConvSpec]:
    """Those that it solves with little memory."""
    return [s for s in specs if algorithm.unsupported(s) is None and algorithm.workspace_bytes(s) < 1 << 22]


def first_call(algorithm: Algorithm, spec: ConvSpec, cache: Path) -> dict[str, float]:
    """Seconds and peak bytes of a process that compiles for ``spec`` with an empty cache."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, algorithm.name, str(spec)],
        env={**os.environ, "CONVBENCH_CACHE": str(cache)}, capture_output=True, text=True, timeout=HUNG_S,
    )  # fmt: skip
    assert done.returncode == 0, f"{algorithm.name} {spec}: {done.stderr[-300:]}"
    return json.loads(done.stdout)


def over(algorithm: Algorithm, spec: ConvSpec, cache: Path) -> str:
    """What is too much of a first call, in words."""
    found = first_call(algorithm, spec, cache)
    text = f"{algorithm.name} {spec}: {found['s']:.1f} s, {found['bytes'] / 2**20:.0f} MiB"
    print(text)  # pytest -s shows them
    return text if found["s"] > SLOWEST_S or found["bytes"] > MOST_BYTES else ""


def longest_in(kind: Any) -> int:
    return max([len(kind), *map(longest_in, kind)]) if isinstance(kind, tuple) and kind else 0


@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.name)
def test_code_is_not_specialised_on_the_numbers_of_a_spec(
    algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by hundreds of extreme specs, the kinds of code are few, and no
    type is as long as a stride is wide.
    """
    asked: set[tuple] = set()

    def note(dispatcher: Any, *arguments: Any) -> None:
        asked.add((dispatcher, *map(jit._kind, arguments)))

    for module in (importlib.import_module(type(algorithm).__module__), _compiled):
        monkeypatch.setattr(module, "compile_for", note, raising=False)
    specs = solved(algorithm, small_extremes(seed=6, count=200))
    for spec in specs:
        algorithm.prepare(spec, np.ones(spec.weight_shape, spec.in_dtype), 1)
    assert bool(asked) == bool(specs) and max(map(longest_in, asked), default=0) <= LONGEST
    assert len(asked) <= MOST


def test_a_first_call_is_bounded(tmp_path: Path) -> None:
    depthwise = next(a for a in COMPILED if a.name == "depthwise")
    beyond = [
        over(depthwise, spec, tmp_path / str(i)) for i, spec in enumerate(small_extremes(seed=6, count=0)[:2])
    ]
    assert not any(beyond), beyond


@pytest.mark.exhaustive
@pytest.mark.parametrize("algorithm", COMPILED, ids=lambda a: a.name)
def test_every_first_call_is_bounded(algorithm: Algorithm, tmp_path: Path) -> None:
    """An empty cache and a process of its own for every spec."""
    specs = solved(algorithm, small_extremes(seed=7, count=1500))[:FIRST_CALLS]
    beyond = [over(algorithm, spec, tmp_path / str(i)) for i, spec in enumerate(specs)]
    assert not any(beyond), beyond
