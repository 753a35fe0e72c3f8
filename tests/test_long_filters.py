"""Filters of hundreds of taps and more: no cliff where a faster way ends, and the model
picks what was measured as fastest.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from algos import ConvSpec, algorithms, get, host
from algos.cpu import _compiled, fft_fused
from algos.cpu.separable import SLID
from algos.engine.jit import _kind
from algos.engine.target import simd
from algos.lower.tree import plain
from bench.check import check
from tests.test_compile import longest_in

TAPS = range(3, 600)
MEASURED = json.loads((Path(__file__).parent / "golden" / "long_filters.json").read_text())
REGRET = 1.5  # times the least measured time; 1.3 is reached, among loops that are equally fast but for noise


def square(size: int, taps: int, dtype: str) -> ConvSpec:
    return ConvSpec.parse(f"1x1x{size}x{size},1x1x{taps}x{taps},p{taps // 2},rank1,{dtype}")


@pytest.mark.parametrize(
    "text",
    [
        "1x1x9x140,1x1x3x65,p1x32,rank1",
        "1x2x9x140,2x2x2x131,p1x65,rank2,float64",
        "2x1x7x203,1x1x3x200,p0x7:199,rank1",
    ],
)
def test_rows_of_taps_in_pieces_are_right(text: str) -> None:
    """NaN and infinity too: where the last piece overlaps the one before, its
    zeros reach no further than the window.
    """
    verdict = check(text, get("separable"), threads=2)
    assert verdict.ok, verdict


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [256, 512, 1024])
def test_predicted_time_of_separable_passes_grows_with_the_taps(size: int, dtype: str) -> None:
    algorithm = get("separable")
    for threads in (1, 2):
        each = [algorithm.cost(square(size, taps, dtype), threads).seconds(threads) / taps for taps in TAPS]
        assert max(each[60:]) < 1.1 * min(each[60:])
        assert all(after < 1.1 * before for before, after in pairwise(each))


def test_compiled_code_of_separable_passes_does_not_grow_with_the_taps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of taps ask for no more kinds of code than ``SLID`` taps do, nor for more taps in one of them.
    """
    asked: set[tuple] = set()
    monkeypatch.setattr(
        _compiled, "compile_for", lambda _, *arguments: asked.add(tuple(map(_kind, arguments)))
    )
    for taps in range(SLID + 1, 10 * SLID):
        spec = ConvSpec.parse(f"1x1x9x1000,1x1x3x{taps},rank1")
        get("separable").prepare(spec, np.ones(spec.weight_shape, np.float32), 1)
    assert len(asked) <= SLID
    assert max(map(longest_in, asked)) <= SLID


@pytest.mark.skipif(simd() not in MEASURED, reason="long filters were measured with AVX-512 and AVX2")
def test_long_signals_are_left_to_what_was_measured_as_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model alone, as it is for the machine of the figures: its vectors and its caches."""
    for module in list(sys.modules.values()):
        if getattr(module, "caches", None) is host.caches:
            monkeypatch.setattr(module, "caches", lambda: MEASURED["caches"])
    # Which remembers plans for other caches
    monkeypatch.setattr(fft_fused, "plan_for", fft_fused.plan_for.__wrapped__)
    ours = [a for a in algorithms() if a.device == "cpu" and a.family not in ("auto", "peer")]
    off = []
    for key, times in MEASURED[simd()].items():
        length, taps = key.split(",")
        spec = plain(ConvSpec.parse(f"1x1x{length},1x1x{taps}"))
        modelled = {a.name: a.cost(spec).seconds() for a in ours if a.unsupported(spec) is None}
        chosen, best = min(modelled, key=modelled.__getitem__), min(times, key=times.__getitem__)
        if chosen not in times or times[chosen] > REGRET * times[best]:
            off.append(f"{spec}: {chosen} instead of {best}, {times}")
    assert not off, "\n".join(off)
