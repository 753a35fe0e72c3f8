"""Where a spec lies among others: which of the measured ones are near, told in
doublings of what decides which method wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.spec import ConvSpec, SpecError

FARTHEST = 5.0  # in doublings, over all features together
MOST = 64  # near specs that are looked at, however many were measured
Place = tuple[str, bytes]  # kind, packed features


def kind(spec: ConvSpec) -> str:
    """Specs of different kinds are never near."""
    return f"{spec.ndim} {spec.direction} {spec.dtype}"


def features(spec: ConvSpec) -> tuple[float, ...]:
    """Doublings of the quantities that decide which method wins."""
    numbers = (
        spec.batch * math.prod(spec.output_size), math.prod(spec.kernel), spec.in_channels // spec.groups,
        spec.out_channels // spec.groups, spec.groups, math.prod(spec.stride), math.prod(spec.dilation),
    )  # fmt: skip
    return tuple(math.log2(max(1, number)) for number in numbers)


def rough(spec: ConvSpec) -> tuple[Any, ...]:
    """Equal for specs whose sizes and channels differ by less than a doubling, and nothing else that
    algorithms differ by.
    """
    sizes = spec.batch, spec.in_channels, spec.out_channels, spec.groups, *spec.size
    padded = any(map(any, spec.padding))
    return (*[number.bit_length() for number in sizes], spec.groups == spec.in_channels, padded, spec.kernel,
            spec.stride, spec.dilation, spec.rank, spec.dtype, spec.padding_mode, spec.direction, spec.flip,
            spec.bias, spec.activation, spec.zero_points)  # fmt: skip


def place(text: str) -> Place | None:
    """Of the spec that ``text`` names; None where it names none."""
    try:
        spec = ConvSpec.of(text)
    except SpecError:
        return None
    return kind(spec), np.array(features(spec)).tobytes()


class Places:
    """Specs of one kind, to be asked for the nearest.

    Parameters
    ----------
    specs : sequence of str
    packed : sequence of bytes
        The features of each, as ``place`` packs them.
    """

    def __init__(self, specs: Sequence[str], packed: Sequence[bytes]) -> None:
        self.specs = specs
        self._at = np.frombuffer(b"".join(packed)).reshape(len(specs), -1)

    def near(self, spec: ConvSpec, most: int = MOST) -> list[tuple[float, str]]:
        """Distances and texts of the nearest ``most`` within ``FARTHEST``, the
        nearest first, ties as they stand here.
        """
        if not self.specs:
            return []
        away = self._at - features(spec)
        squares = np.einsum("ij,ij->i", away, away)
        if len(squares) > most:
            (found,) = np.nonzero(squares <= np.partition(squares, most - 1)[most - 1])
        else:
            found = np.arange(len(squares))
        order = found[np.argsort(squares[found], kind="stable")][:most]
        pairs = zip(np.sqrt(squares[order]).tolist(), order.tolist(), strict=True)
        return [(distance, self.specs[i]) for distance, i in pairs if distance <= FARTHEST]
