"""One piece of memory for all results of a network, in which a result takes the place of those that nobody
reads any more.

Concatenation copies nothing: results that are put together are written where they will lie, and a sum takes
the place of an operand that ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from algos.engine.memory import LINE, aligned
from bench.networks.graph import INPUT, Network, Shape
from bench.networks.weights import DTYPE


class Place(NamedTuple):
    """Where a result lies: in whose memory, from which channel on."""

    owner: str
    channel: int = 0


class Span(NamedTuple):
    """An owner's memory, and from which node to which it is held."""

    owner: str
    size: int
    first: int
    last: int


def places(network: Network) -> dict[str, Place]:
    """Of every result but the network's own, whose memory is new at every call."""
    when = {node.name: at for at, node in enumerate(network.nodes)}
    ends = {name: max((when[node.name] for node in readers), default=-1)
            for name, readers in network.readers.items()}  # fmt: skip
    found = {INPUT: Place(INPUT), network.output: Place(network.output)}
    for node in reversed(network.nodes):  # a result's place is known before its operands'
        place = found.setdefault(node.name, Place(node.name))
        fresh = [name for name in dict.fromkeys(node.inputs) if name not in found]
        if node.op == "concat":
            channel, shapes = place.channel, network.shapes(1)
            for name in node.inputs:
                if name in fresh:
                    found[name] = Place(place.owner, channel)
                    fresh.remove(name)
                channel += shapes[name][1]
        elif node.op == "add" and node.name != network.output:
            # Later terms are still to be read when the first two were added
            ending = [name for name in fresh if ends[name] == when[node.name] and name in node.inputs[:2]]
            if ending:
                found[ending[0]] = place
    return found


def spans(network: Network, found: Mapping[str, Place], batch: int) -> list[Span]:
    """Of every owner but the input and the network's result."""
    when = {node.name: at for at, node in enumerate(network.nodes)}
    shapes = network.shapes(batch)
    held: dict[str, list[int]] = {}
    for name, place in found.items():
        if place.owner in (INPUT, network.output):
            continue
        times = [when[name], *(when[node.name] for node in network.readers[name])]
        held.setdefault(place.owner, []).extend(times)
    return [Span(owner, math.prod(shapes[owner]) * DTYPE.itemsize, min(t), max(t))
            for owner, t in held.items()]  # fmt: skip


def offsets(wanted: list[Span]) -> tuple[dict[str, int], int]:
    """Where each begins, at a cache line, and how much all take: the largest first, each as low as it fits.

    Source: Pisarchyk and Lee, "Efficient memory management for deep neural net inference", arXiv:2001.03288.
    """
    placed: list[tuple[Span, int]] = []
    for span in sorted(wanted, key=lambda s: -s.size):
        start = 0
        for other, at in sorted(placed, key=lambda pair: pair[1]):
            apart = other.last < span.first or span.last < other.first
            if not apart and start + span.size > at:
                start = max(start, at + -(-other.size // LINE) * LINE)
        placed.append((span, start))
    return {span.owner: at for span, at in placed}, max((at + span.size for span, at in placed), default=0)


class Arena:
    """The memory of a network's results for so many images.

    Attributes
    ----------
    bytes : int
        What it takes.
    apart_bytes : int
        What the results would take, each in memory of its own.
    """

    def __init__(self, network: Network, batch: int) -> None:
        self.places = places(network)
        shapes = network.shapes(batch)
        at, self.bytes = offsets(spans(network, self.places, batch))
        self.apart_bytes = sum(math.prod(shapes[node.name]) for node in network.nodes[:-1]) * DTYPE.itemsize
        room = aligned(self.bytes, np.uint8)
        self._owners = {
            name: room[start : start + math.prod(shapes[name]) * DTYPE.itemsize]
            .view(DTYPE).reshape(shapes[name])
            for name, start in at.items()
        }  # fmt: skip
        self._shapes = shapes

    def view(self, name: str, owner: np.ndarray | None = None) -> np.ndarray:
        """The result of that name, in the arena or in ``owner``."""
        place, shape = self.places[name], self._shapes[name]
        whole = self._owners[place.owner] if owner is None else owner
        return _part(whole, place.channel, shape)


def _part(whole: np.ndarray, channel: int, shape: Shape) -> np.ndarray:
    return whole[:, channel : channel + shape[1]]
