"""Where a spec lies among others: which of the measured ones are near, told in
doublings of what decides which method wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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

    def near(self, spec: ConvSpec) -> list[tuple[float, str]]:
        """Distances and texts of the nearest ``MOST`` within ``FARTHEST``, the
        nearest first, ties as they stand here.
        """
        if not self.specs:
            return []
        away = self._at - features(spec)
        squares = np.einsum("ij,ij->i", away, away)
        if len(squares) > MOST:
            (found,) = np.nonzero(squares <= np.partition(squares, MOST - 1)[MOST - 1])
        else:
            found = np.arange(len(squares))
        order = found[np.argsort(squares[found], kind="stable")][:MOST]
        pairs = zip(np.sqrt(squares[order]).tolist(), order.tolist(), strict=True)
        return [(distance, self.specs[i]) for distance, i in pairs if distance <= FARTHEST]
