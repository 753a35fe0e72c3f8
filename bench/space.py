"""Problems that fill the space of what there is to convolve, small ones, to calibrate the cost model with.

Every kind of layer, picture and signal, all directions, one thread and all; the same ones everywhere, and the
first of them fill the space as evenly as all do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from algos.host import usable_cores
from algos.spec import ConvSpec, SpecError

PROBLEMS = 100
ROW_LARGER = 4  # times as large are the problems of a row that ships
LARGEST_FLOPS, LARGEST_BYTES = 4e8, 1 << 25  # of a problem


def problems(count: int = PROBLEMS, seed: int = 1, larger: int = 1) -> list[ConvSpec]:
    """The same ones everywhere, some times as large; the first of them fill the space as evenly as all do.
    """
    draw = random.Random(seed)
    found: dict[ConvSpec, None] = {}
    while len(found) < count:
        for kind in KINDS:
            for _ in range(20):
                try:
                    spec = ConvSpec.parse(kind(draw))
                except SpecError:
                    continue
                if 1e4 < spec.flops < larger * LARGEST_FLOPS and spec.min_bytes < larger * LARGEST_BYTES:
                    found[spec] = None
                    break
    return list(found)[:count]


def space(count: int = PROBLEMS, row: bool = False) -> list[tuple[ConvSpec, int]]:
    """The problems to calibrate with and their threads: every third with one; others, and larger ones, for a
    row that ships.
    """
    cores = usable_cores()
    found = problems(count, seed=2, larger=ROW_LARGER) if row else problems(count)
    return [(spec, 1 if index % 3 == 2 else cores) for index, spec in enumerate(found)]


def _between(draw: random.Random, low: int, high: int) -> int:
    """Evenly by doublings; half of them whole multiples of 8, as channels mostly are."""
    number = round(math.exp(draw.uniform(math.log(low), math.log(high))))
    return max(low, number // 8 * 8) if draw.random() < 0.5 and number >= 8 else number


def _layer(kernels: Sequence[int], direction: str = "", dtype: str = "", grouped: str = "",
           first: bool = False) -> Callable[[random.Random], str]:  # fmt: skip
    def text(draw: random.Random) -> str:
        k = draw.choice(kernels)
        size, o = _between(draw, max(k, 5), 224), _between(draw, 8, 768)
        c = draw.choice((1, 2, 3, 3, 4)) if first else _between(draw, 8, 1024)
        inner = c
        if grouped == "depthwise":
            o, inner = c, 1
        elif grouped:
            groups = draw.choice((2, 4, 8, 32))
            inner, c, o = max(1, c // groups), max(1, c // groups) * groups, max(1, o // groups) * groups
        stride = draw.choice(("", "", "", ",s2"))
        padding = f",p{k // 2}" if k > 1 and draw.random() < 0.8 else ""
        batch = draw.choice((1, 1, 1, 4))
        return f"{batch}x{c}x{size}x{size},{o}x{inner}x{k}x{k}{stride}{padding}{dtype}{direction}"

    return text


def _picture(draw: random.Random, dtype: str = "") -> str:
    k, size = draw.choice((3, 5, 7, 9, 11, 15, 21, 31)), _between(draw, 32, 1024)
    rank = draw.choice(("", "", ",rank1"))
    return f"1x1x{size}x{size},1x1x{k}x{k},p{k // 2}{rank}{dtype}"


def _signal(draw: random.Random) -> str:
    k = _between(draw, 2, 8192)
    c, o = draw.choice(((1, 1), (1, 1), (64, 64), (16, 1), (1, 32)))
    k = k if c * o == 1 else min(k, 64)
    length = _between(draw, max(256, k), 1 << 20) if c * o == 1 else _between(draw, 64, 1 << 13)
    stride = draw.choice(("", ",s2", ",s4")) if c * o > 1 else ""
    padding = f",p{k // 2}" if k > 1 and draw.random() < 0.5 else ""
    dtype, direction = draw.choice(("", "", "", ",float64")), draw.choice((FORWARD, FORWARD, BACK, WEIGHTS))
    return f"1x{c}x{length},{o}x{c}x{k}{stride}{padding}{dtype}{direction if k <= 64 else ''}"


def _volume(draw: random.Random) -> str:
    c, o, k = _between(draw, 1, 64), _between(draw, 8, 64), draw.choice((1, 3, 3, 2))
    return f"1x{c}x{_between(draw, 4, 16)}x16x16,{o}x{c}x{k}x{k}x{k}{f',p{k // 2}' if k > 1 else ''}"


FORWARD, BACK, WEIGHTS = "", ",input_gradient", ",weight_gradient"
KINDS: tuple[Callable[[random.Random], str], ...] = (
    _layer((3,)), _layer((1,)), _layer((3, 5, 7), first=True), _layer((3, 5), grouped="depthwise"), _picture,
    _signal, _layer((3,), BACK), _layer((3,), WEIGHTS), _layer((2, 4, 5, 7, 11)), _layer((1,), BACK),
    _layer((1, 3), grouped="groups"), _layer((1,), WEIGHTS), _layer((3, 1, 5), dtype=",float64"), _volume,
    _layer((3, 5), BACK, first=True), _layer((3, 5), WEIGHTS, grouped="depthwise"), _layer((1,)),
    _layer((3,)),
)  # fmt: skip
