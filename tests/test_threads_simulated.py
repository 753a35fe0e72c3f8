"""How work is cut for 1 to 64 threads, by simulation (``tests/counted.py``): no machine has to have them."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest

from algos.contract import Algorithm
from algos.cpu._compiled import Compiled
from algos.engine.threads import checked_threads, chunks_of, worth
from algos.registry import get
from algos.spec import ConvSpec, SpecError
from bench.suites import suites
from tests.counted import Machine

COUNTS = (1, 2, 4, 8, 16, 32, 64)
NAMES = ("direct_channels", "direct_pixels", "winograd_f2", "winograd_f4", "depthwise", "numba_picture",
         "separable", "numba_direct", "fft_fused")  # fmt: skip
NEAR = 2.0  # times the best one's modelled time: who is further off is not picked
TOGETHER = 1.35  # what the thread that has most may have, over the mean
AGAIN = 0.35  # of the multiply-adds' time, what may be packed besides what one thread packs
SLOWER = 1.1  # of the time with fewer threads
GAINED, MUCH = 0.6, 1e7  # of so many times the speed as there are threads, where each has so much to do
# Films, signals and layers whose kernels reach along one axis, as pictures
# Several planes of which lie in a block: films, and a batch of small pictures
PLANES = ("1x64x8x14x14,64x64x3x3x3,p1", "1x32x4x28x28,72x32x1x3x3,p0x1x1", "1x32x8x28x28,64x32x3x3x3,s2,p1",
          "8x256x7x7,256x256x3x3,p1")  # fmt: skip
ONE_AXIS = ("1x230x8x784,128x230x3x1,p1x0", "1x64x1x8000,64x64x1x3,p0x1", "1x192x17x17,192x192x1x7,p0x3")
MOST = 1e9  # operations that Python walks through in a second


def layers(step: int) -> list[ConvSpec]:
    """Every so many layers of a network, its gradients, pictures, signals and films."""
    forward = [layer.spec for name in ("resnet50_v1_5", "images", "audio", "video")
               for layer in suites()[name].layers if layer.spec.ndim < 3]  # fmt: skip
    trained = [layer.spec for layer in suites()["training"].layers if layer.spec.direction != "forward"]
    lines = map(ConvSpec.parse, (*ONE_AXIS, *PLANES))
    every = dict.fromkeys([*forward[::step], *trained[:: 3 * step], *lines])
    return [spec for spec in every if spec.flops < MOST and rivals(spec)]


def rivals(spec: ConvSpec) -> list[Algorithm]:
    """Those in compiled code that a picker may pick; the FFT, which Python takes long for, of one channel."""
    found = [a for a in map(get, NAMES) if a.family != "fft" or spec.out_channels == 1]
    able = [a for a in found if isinstance(a, Compiled) and not a.unsupported(spec)]
    seconds = {a: a.cost(spec, 1).seconds(1) for a in able}
    return [a for a in able if seconds[a] <= NEAR * min(seconds.values())]


def well_cut(spec: ConvSpec) -> None:
    fastest = [math.inf] * len(COUNTS)
    for algorithm in rivals(spec):
        runs = [Machine(algorithm, spec, threads) for threads in COUNTS]
        fastest = [min(known, run.seconds) for known, run in zip(fastest, runs, strict=True)]
        one, fewer = runs[0], accumulate((run.seconds for run in runs), min)
        for threads, run, best in zip(COUNTS, runs, [one.seconds, *fewer], strict=False):
            case = f"{spec} by {algorithm.name}, {run.threads} of {threads} threads"
            for found in run.found.values():
                once = (found > 0) & (found < run.TWICE) if run.tiled else found == 1
                assert once.all(), f"{case}: outputs computed by nobody, or by two"
            share = max(run.busy) * len(run.busy) / sum(run.busy)
            assert share < TOGETHER, f"{case}: one has {share:.2f} times the mean"
            again = run.packing - one.packing
            assert again < AGAIN * run.macs, f"{case}: packed again: {again / run.macs:.2f} of the arithmetic"
            assert max(run.read) <= max(1.01 * run.weights, max(one.read)), f"{case}: weights read too often"
            longer = run.seconds / best
            assert longer < SLOWER, f"{case}: {longer:.2f} times as long as with fewer"
    for threads, seconds in zip(COUNTS, fastest, strict=True):
        gained = fastest[0] / seconds
        assert seconds < MUCH or gained > GAINED * threads, f"{spec}: {gained:.1f} times by {threads} threads"


@pytest.mark.parametrize("spec", layers(6), ids=str)
def test_threads_share_work_evenly_and_once(spec: ConvSpec) -> None:
    well_cut(spec)


@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", layers(1), ids=str)
def test_threads_share_any_work_evenly_and_once(spec: ConvSpec) -> None:
    well_cut(spec)


def test_small_work_has_few_threads() -> None:
    assert checked_threads("auto") == checked_threads(None)
    with pytest.raises(SpecError, match="threads"):
        checked_threads("all")  # type: ignore[arg-type]
    assert [worth(64, work, 2.0) for work in (0.5, 1.9, 2.0, 7.0, 1e9)] == [1, 1, 2, 7, 64]
    tiny = ConvSpec.parse("1x16x7x7,16x16x3x3,p1")
    assert {Machine(a, tiny, 64).threads for a in rivals(tiny)} == {1}


def test_chunks_are_equal_or_many() -> None:
    for threads in (2, 3, 8, 64):
        for items in range(1, 40 * threads, 7):
            chunks = chunks_of(items, threads)
            largest = -(-items // chunks)
            assert min(items, 4 * threads) // 2 <= chunks <= items
            assert -(-chunks // threads) * largest <= max(-(-items // threads), 1.15 * items / threads)
