"""What ``pick(max_error=...)`` promises: no error on seeded normals is larger than its bound."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import algos
from algos.accuracy import error_bound, terms
from algos.lower.search import chain
from algos.registry import refusal
from algos.spec import ConvSpec
from bench.check import check
from bench.data import operands
from bench.oracle import oracle, reduction

SPECS = (
    "1x8x13x17,8x8x3x3,p1", "2x3x20x20,5x3x5x5,s2,p2", "1x64x9x9,32x64x1x1", "1x1x40x40,1x1x9x9,p4,rank1",
    "1x6x300,4x6x7,p3", "1x8x12x12,8x1x3x3,p1,float64", "1x4x14x14,6x4x3x3,p1,input_gradient",
    "2x4x14x14,6x4x3x3,p1,weight_gradient", "1x4x12x12,4x4x3x3,p1,float16", "1x3x9x9,4x3x3x3,complex64",
    "1x1x1x1,1x1x1x1", "1x2x6x7x8,3x2x3x3x3,p1",
)  # fmt: skip

# One of each class of accuracy and of rounding, few that compile
NAMES = ("im2col_gemm", "direct_shift", "toeplitz", "fft", "fft_tiles", "winograd_f6", "separable")


def error(name: str, spec: ConvSpec, seed: int) -> float:
    return max(errors([name], spec, seed))


def errors(names: Iterable[str], spec: ConvSpec, seed: int) -> list[float]:
    made = operands(spec, seed)
    w = None if spec.direction == "weight_gradient" else made.w
    wide = np.complex128 if spec.in_dtype.kind == "c" else np.float64
    exact = np.asarray(oracle(spec, made.x, made.w, made.grad)).astype(wide)
    found = (algos.plan(spec, w, algorithm=name, threads=1)(*made.call).astype(wide) for name in names)
    return [float(np.abs(y - exact).max() / np.abs(exact).max()) for y in found]


@pytest.mark.parametrize("text", SPECS)
def test_no_error_exceeds_its_bound_and_no_bound_says_nothing(text: str) -> None:
    spec = ConvSpec.parse(text)
    for algorithm in map(algos.get, NAMES):
        if refusal(algorithm, spec):
            continue
        bound = error_bound(chain(algorithm, spec, 1))
        assert max(error(algorithm.name, spec, seed) for seed in range(3)) <= bound < 1e-2
        if spec.dtype == "float64":
            assert bound < 1e-11


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_the_picker_counts_as_many_terms_of_a_sum_as_the_judge(direction: Any) -> None:
    spec = ConvSpec.parse("2x6x9x8,8x3x3x2,s2").directed(direction)
    assert terms(spec) == reduction(spec)


def test_a_pick_keeps_to_the_error_that_it_is_granted() -> None:
    text = "1x64x56x56,64x64x3x3,p1"
    loose, tight = (algos.pick(text, threads=1, max_error=most) for most in (1e-2, 1e-5))
    for choice, most in ((loose, 1e-2), (tight, 1e-5)):
        for candidate in choice.candidates:
            if not candidate.excluded:
                way = chain(algos.get(candidate.algorithm), ConvSpec.parse(text), 1)
                assert error_bound(way) <= most
    out = {c.algorithm: c.excluded for c in tight.candidates if c.excluded}
    assert "its error may reach" in out["winograd_f6"] and loose.expected_s <= tight.expected_s
    with pytest.raises(ValueError, match=r"no algorithm .*: its error may reach"):
        algos.pick(text, max_error=1e-12)
    for bad in (0, -1.0, float("nan"), "1e-5"):
        with pytest.raises(ValueError):
            algos.pick(text, max_error=bad)  # type: ignore[arg-type]


def small(draw: random.Random) -> ConvSpec:
    """Of few kernels, which would have to be compiled."""
    ndim, k = draw.choice((1, 2, 2, 2, 2, 3)), draw.choice((1, 3, 3, 5))
    c, o = (draw.choice((1, 2, 3, 5, 8, 16, 33, 64, 130)) for _ in range(2))
    groups = draw.choice((1, 1, 1, 2, c))
    c, o = (c, c * draw.choice((1, 2))) if groups == c else (c * groups, o * groups)
    size = [draw.randint(k, {1: 200, 2: 28, 3: 8}[ndim]) for _ in range(ndim)]
    padded = k > 1 and draw.random() < 0.5
    options = draw.choice(("", "", "", ",s2")) + padded * f",p{k // 2}"
    direction = draw.choice(("", "", "", ",input_gradient", ",weight_gradient"))
    ranked = ndim == 2 and k > 1 and groups == c and direction != ",weight_gradient"
    options += ",rank1" * (ranked and draw.random() < 0.5)
    options += draw.choice(("", "", "", "", "", ",float64", ",float16", ",bfloat16", ",complex64"))
    options += ",reflect" * (padded and min(size) > k and draw.random() < 0.2)
    options += direction
    shapes = "x".join(map(str, (draw.choice((1, 1, 2, 3)), c, *size)))
    return ConvSpec.parse(f"{shapes},{'x'.join(map(str, (o, c // groups, *[k] * ndim)))}{options}")


@pytest.mark.exhaustive
def test_whatever_is_picked_keeps_to_the_error_in_ten_thousand_checks() -> None:
    draw, done = random.Random(0), 0
    while done < 10_000:
        spec = small(draw)
        if spec.flops > 3e7:
            continue
        offered = [c.algorithm for c in algos.pick(spec, threads=1, max_error=1e3).candidates
                   if not c.excluded]  # any of them is picked where it is the fastest that may be
        bounds = [error_bound(chain(algos.get(name), spec, 1)) for name in offered]
        for name, bound, off in zip(offered, bounds, errors(offered, spec, done), strict=True):
            assert off <= bound, f"{name} on {spec} with seed {done}"
        done += len(offered)


def test_operands_are_rounded_where_an_error_allows_it_and_nowhere_else() -> None:
    spec = ConvSpec.parse("2x64x14x14,256x64x1x1")
    names = {c.algorithm: c for c in algos.pick(spec, threads=1, max_error=2e-2).candidates}
    for name in ("direct_channels", "direct_pixels"):
        other = f"{name}:operands=bfloat16"
        assert other in names and all(other != c.algorithm for c in algos.pick(spec).candidates)
        assert "may reach" in {c.algorithm: c.excluded for c in
                               algos.pick(spec, max_error=1e-4).candidates}[other] or names[other].excluded
    if names[other].excluded:
        pytest.skip(names[other].excluded)
    off, exact = errors((other, name), spec, 0)
    assert exact < 1e-5 < 5e-4 < off < 2e-2  # it is really done
    verdict = check(spec, algos.get(other))
    assert verdict.ok and not check(spec, replace(algos.get(other), accuracy="componentwise")).ok


def test_an_error_is_a_number_and_no_truth_value() -> None:
    with pytest.raises(ValueError, match="max_error"):
        algos.pick("1x1x9x9,1x1x3x3", max_error=True)
