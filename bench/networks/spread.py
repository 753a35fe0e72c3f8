"""A network over a batch that is split among the machines of a cluster, which run their images at once.

Every part is of the same batch as on one machine, chooses its algorithms where it runs, and is checked there
against the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bench.networks.graph import NetworkError
from bench.networks.measured import BEST, ERROR, TURN_S, ask, opened
from bench.networks.worker import calm
from bench.networks.zoo import network
from bench.pool import measuring


@dataclass(frozen=True)
class Part:
    """What a machine did with its images.

    Attributes
    ----------
    first, images : int
        Which of the batch's.
    seconds : float
        Of a call.
    error : float
        Of the largest output, against the definition in float64.
    output : array
        Of the network, image by image.
    """

    node: str
    first: int
    images: int
    seconds: float
    error: float
    algorithms: dict[str, str]
    output: np.ndarray


@dataclass(frozen=True)
class Split:
    """A batch that ran in parts."""

    name: str
    batch: int
    threads: int
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Of the batch, all machines at once; parts on one of them follow each other."""
        nodes = {part.node for part in self.parts}
        return max(sum(part.seconds for part in self.parts if part.node == node) for node in nodes)

    @property
    def one_s(self) -> float:
        """The same work one part after the other."""
        return sum(part.seconds for part in self.parts)

    @property
    def output(self) -> np.ndarray:
        return np.concatenate([part.output for part in self.parts])


def run_part(about: dict[str, Any], names: Sequence[str], budget_s: float) -> Part:
    """One part here, in a process of its own: chosen, checked, timed."""
    from bench.node import name

    with measuring():
        worker = opened(about, about["threads"])
        try:
            right = np.array(ask(worker, do="reference")["output"])
            chosen = ask(worker, do="choose", named=list(names), seconds=budget_s * 0.5)
            found = np.array(ask(worker, do="output", way=BEST)["output"])
            error = float(np.abs(found - right).max() / np.abs(right).max())
            if not error <= ERROR:
                raise NetworkError(f"wrong: {about['name']} differs by {error:.2g} of the largest output")
            times: list[float] = []
            for _ in range(max(3, int(budget_s * 0.5 / TURN_S))):
                times += ask(worker, do="turn", way=BEST, seconds=TURN_S)["times"]
        finally:
            worker.end()
    images = about["batch"]
    shape = network(about["name"], about["size"])
    output = found.astype(np.float32).reshape(images, *shape.shapes(images)[shape.output][1:])
    return Part(name(), about["first"], images, calm(times), error, chosen["algorithms"], output)


def parts_of(batch: int, count: int) -> list[tuple[int, int]]:
    """First and number of images of each part, as even as can be; none is empty."""
    ends = [batch * k // count for k in range(count + 1)]
    return [(first, end - first) for first, end in pairwise(ends) if end > first]


def split(
    client: Any, name: str, *, size: int | None, batch: int, threads: int, weights: str, seed: int = 0,
    algorithms: Sequence[str] = (), budget_s: float = 30.0,
) -> Split:  # fmt: skip
    """Run a part on every worker of the cluster that has the resource ``bench``."""
    from bench.cluster import RESOURCE, RETRIES, ClusterError

    found = client.scheduler_info(n_workers=-1)["workers"].values()
    workers = sum(bool(about["resources"].get(RESOURCE)) for about in found)
    if not workers:
        raise ClusterError(f"no worker has the resource {RESOURCE}: start them with --resources {RESOURCE}=1")
    futures = []
    for first, images in parts_of(batch, workers):
        about = {"name": name, "size": size, "batch": images, "threads": threads, "weights": weights,
                 "seed": seed, "first": first, "whole": batch}  # fmt: skip
        futures.append(client.submit(run_part, about, tuple(algorithms), budget_s, pure=False,
                                     retries=RETRIES, resources={RESOURCE: 1}))  # fmt: skip
    return Split(name, batch, threads, tuple(client.gather(futures)))
