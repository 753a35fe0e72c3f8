"""Complex transforms of L signals side by side, in place, without any reordering: what a convolution needs of
an FFT.

``forward`` (decimation in frequency) leaves frequencies in digit-reversed order and ``inverse`` (decimation
in time) takes them so; the kernel's spectrum, made by the same ``forward``, stands in that order too, so no
pass ever sorts. ``filtered`` does both and the product between them: the last butterflies forward, the
product and the first ones back are one pass. A signal of n points is (n, 2, L) elements: see
``algos/engine/butterflies.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from algos.engine.butterflies import FILTER, FORWARD, INVERSE, stage
from algos.engine.jit import linked

FLAGS = {"error_model": "numpy"}
# Time of a stage for each point, relative to a radix-4 stage, measured on data in the first-level cache.
STAGE_COST = {2: 0.75, 3: 1.0, 4: 1.0, 5: 1.4}


@lru_cache(maxsize=64)
def fast_lengths(multiple: int, longest: int) -> tuple[int, ...]:
    """Lengths up to ``longest`` and a bit: 2^a 3^b 5^c, multiples of ``multiple``, with few factors 3 and 5.
    """
    found = {1}
    for factor, most in ((2, 64), (3, 2), (5, 1)):
        for length in list(found):
            for _ in range(most):
                if (length := length * factor) > 2 * max(longest, multiple):
                    break
                found.add(length)
    return tuple(sorted(n for n in found if n % multiple == 0))


@dataclass(frozen=True)
class Transform:
    """The stages of a transform of ``length`` points.

    Attributes
    ----------
    length : int
        2^a 3^b 5^c.
    dtype : str
        Of the real and imaginary parts.
    """

    length: int
    dtype: str

    @cached_property
    def radices(self) -> tuple[int, ...]:
        """Of the stages, forward: 5s and 3s first, then at most one 2, then 4s."""
        found, left = [], self.length
        for radix in (5, 3):
            while left % radix == 0:
                found.append(radix)
                left //= radix
        twos = left.bit_length() - 1
        return (*found, *[2] * (twos % 2), *[4] * (twos // 2))

    @property
    def cost(self) -> float:
        """Of forward or inverse, for each point, in units of a radix-4 stage."""
        return sum(STAGE_COST[r] for r in self.radices)

    @cached_property
    def stages(self) -> np.ndarray:
        """(stages, 3) int64: radix, distance of its points in points, start of its factors in ``factors``."""
        rows, span, at = [], self.length, 0
        for radix in self.radices:
            span //= radix
            rows.append((radix, span, at))
            at += 2 * (radix - 1) * span
        return np.array(rows, np.int64).reshape(-1, 3)

    @cached_property
    def factors(self) -> np.ndarray:
        """For each stage (span, radix - 1, 2): exp(-2 pi i j q / (span * radix)), real and imaginary parts.
        """
        parts = []
        for radix, span, _ in self.stages:
            angle = -2 * np.pi / (span * radix) * np.outer(np.arange(span), np.arange(1, radix))
            parts.append(np.stack((np.cos(angle), np.sin(angle)), -1).ravel())
        return np.concatenate([*parts, np.zeros(2)]).astype(self.dtype)


    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Stages and their factors, for compiled code."""
        return self.stages, self.factors

    @cached_property
    def turns(self) -> np.ndarray:
        """(length, 2): exp(i pi n / (2 length)): a transform of points so
        turned convolves modulo z^length - i.
        """
        angle = np.pi / (2 * self.length) * np.arange(self.length)
        return np.stack((np.cos(angle), np.sin(angle)), -1).ravel().astype(self.dtype)


@linked(**FLAGS)
def forward(data, at, length, stages, factors, last):
    """Stages [0, last) forward of the signal at ``data[at:]``."""
    for s in range(last):
        stage(data, at, length, stages[s, 0], stages[s, 1], factors, stages[s, 2], FORWARD)


@linked(**FLAGS)
def inverse(data, at, length, stages, factors, last):
    """Stages [0, last) of ``forward`` undone, last first; the result is ``length`` times too large."""
    for s in range(last - 1, -1, -1):
        stage(data, at, length, stages[s, 0], stages[s, 1], factors, stages[s, 2], INVERSE)


@linked(**FLAGS)
def filtered(data, at, length, stages, factors, kernel, shift):
    """Forward, times the spectrum at ``kernel[at + shift:]``, and back."""
    last = len(stages) - 1
    forward(data, at, length, stages, factors, last)
    stage(data, at, length, stages[last, 0], stages[last, 1], kernel, shift, FILTER)
    inverse(data, at, length, stages, factors, last)
