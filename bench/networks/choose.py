"""Algorithms for a whole network: candidates are timed where they will run, between their neighbours.

Alone a layer finds its weights in the cache and the machine's helpers awake; in a network other layers'
weights have pushed its own out, and threads of BLAS may still hold a core. So the network runs again and
again, each time with other candidates in some of its layers, most of them those that are the fastest by then:
a layer's times are those among the neighbours that it will have.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from algos import auto
from algos.host import available_memory
from algos.plans import plan
from algos.registry import get, refusal
from algos.spec import ConvSpec
from bench import perf_counter
from bench.networks.executor import Plans, Prepared
from bench.networks.fold import Folded
from bench.networks.graph import CONVOLUTIONS, Network
from bench.networks.weights import DTYPE

MOST, WORTH = 5, 3.0  # candidates of a layer, and times as long as the best one that the model grants them
EXPLORED = 0.25  # of the layers with another candidate than their best, in each call
LEAST_TIMES, MOST_TIMES = 6, 100
SLOW = 4.0  # times as long as the fastest together, by the model: no row for that algorithm
MEMORY_SHARE, LEAST_ROOM = 0.25, 1 << 26  # of what is free, for one candidate of each layer; bytes for it
TICK = 1e-8  # seconds; capacities of a cut are whole


class Candidates(NamedTuple):
    """What may run each convolution, and with which algorithm a model of isolated layers would run it."""

    by_layer: dict[str, list[str]]
    greedy: dict[str, str]
    alone: dict[str, float]  # algorithms that can run all layers -> the model's seconds


def candidates(network: Network, batch: int, threads: int, named: Sequence[str] = ()) -> Candidates:
    """Own algorithms, or those ``named``, by layer; the model's order."""
    by_layer: dict[str, list[str]] = {}
    greedy: dict[str, str] = {}
    able: dict[str, float] | None = None
    nodes = [node for node in network.nodes if node.op in CONVOLUTIONS]
    room = max(int(MEMORY_SHARE * available_memory() / max(len(nodes), 1)), LEAST_ROOM)
    for node in nodes:
        choice = auto.pick(
            network.spec(node, batch), threads=threads, device="cpu", max_workspace_bytes=room
        )
        times = {c.algorithm: float(c.run_s or 0) for c in choice.candidates if not c.excluded}
        greedy[node.name] = choice.algorithm
        if named:
            can = [name for name in named if not _why_not(name, network.spec(node, batch))]
            times = {name: times.get(name, 0.0) for name in can}
        best = min(times.values(), default=0)
        wanted = [name for name, s in times.items() if named or s <= WORTH * best][: None if named else MOST]
        by_layer[node.name] = wanted or [choice.algorithm]
        able = times if able is None else {n: s + times[n] for n, s in able.items() if n in times}
    able = able or {}
    least = min(able.values(), default=0)
    return Candidates(by_layer, greedy, {n: s for n, s in able.items() if named or s <= SLOW * least})


def _why_not(name: str, spec: ConvSpec) -> str | None:
    algorithm = get(name)
    return refusal(algorithm) or refusal(algorithm, spec)


class Chosen(NamedTuple):
    """The faster choice as a whole, of the fastest in sequence and the model's, and each candidate's seconds
    in sequence.
    """

    algorithms: dict[str, str]
    times: dict[str, dict[str, float]]
    calls: int


def choose(net: Folded, batch: int, found: Candidates, plans: Plans, x: np.ndarray, seconds: float,
           seed: int = 0) -> Chosen:  # fmt: skip
    """The best candidate of each layer, by calls of the whole network for so many seconds."""
    samples: dict[str, dict[str, list[float]]] = {
        layer: {name: [] for name in names} for layer, names in found.by_layer.items()
    }
    run, draw, calls = Prepared(net, batch, found.greedy, plans=plans), Random(seed), 0
    run(x)
    calls_of = {(layer, name): run.call_of(layer, name) for layer, names in samples.items() for name in names}
    end = perf_counter() + seconds
    while perf_counter() < end or calls < 2 * LEAST_TIMES:
        best = fastest(samples)
        for layer, names in samples.items():
            few = [name for name, times in names.items() if len(times) < LEAST_TIMES]
            name = best[layer]
            if few and draw.random() < 0.5:
                name = draw.choice(few)
            elif draw.random() < EXPLORED:
                name = draw.choice(list(names))
            run.use(layer, name, calls_of[layer, name])
        for node, took in zip(net.network.nodes, run.timed(x), strict=True):
            if node.name in samples:
                samples[node.name][run.algorithms[node.name]].append(took)
        calls += 1
    times = {
        layer: {name: _typical(own) for name, own in names.items() if own} for layer, names in samples.items()
    }
    greedy = {layer: found.greedy[layer] if found.greedy[layer] in names else names[0]
              for layer, names in found.by_layer.items()}  # fmt: skip
    return Chosen(better(run, [greedy, fastest(samples)], calls_of, x, seconds / 4), times, calls)


def better(run: Prepared, choices: Sequence[dict[str, str]], calls_of: Mapping[tuple[str, str], Callable],
           x: np.ndarray, seconds: float) -> dict[str, str]:  # fmt: skip
    """Which choice takes least as a whole, in turns: of few calls the best layer by layer were so by luck."""
    times: list[list[float]] = [[] for _ in choices]
    end = perf_counter() + seconds
    while len(times[0]) < LEAST_TIMES or (len(times[0]) < MOST_TIMES and perf_counter() < end):
        for choice, own in zip(choices, times, strict=True):
            for layer, name in choice.items():
                run.use(layer, name, calls_of[layer, name])
            run(x)
            start = perf_counter()
            run(x)
            own.append(perf_counter() - start)
    return min(zip(map(_typical, times), range(len(choices)), choices, strict=True))[2]


def _typical(times: Sequence[float]) -> float:
    """The lower quartile: neighbours only ever add."""
    return statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0]


def fastest(samples: Mapping[str, Mapping[str, list[float]]]) -> dict[str, str]:
    """By what was sampled; untried candidates last."""
    return {
        layer: min(names, key=lambda name: _typical(names[name]) if names[name] else np.inf)
        for layer, names in samples.items()
    }


# ---- memory order ----------------------------------------------------------------------------------------


class Layouts(NamedTuple):
    """What computing some layers with the channels of a pixel together would gain.

    Attributes
    ----------
    channels_last : list of str
        The layers that the cheapest cut computes so; empty where no conversion pays.
    seconds, greedy_s : float
        Of all convolutions and conversions by that cut, and with every layer in NCHW.
    bound : bool
        Whether it holds whatever conversions cost: no layer is faster so, its arrays lying right already.
    """

    channels_last: list[str]
    seconds: float
    greedy_s: float
    bound: bool


def layouts(net: Folded, batch: int, chosen: Chosen, run: Prepared, x: np.ndarray) -> Layouts:
    """Which layers to compute in NHWC: the least cut of a graph whose sides are the two orders.

    A result that crosses is copied; a layer that only computes in NCHW stays there. For a chain of layers
    this is the shortest path. Times in NHWC are those of layers alone, and so too good rather than too bad.
    """
    own = {layer: min(times.values()) for layer, times in chosen.times.items()}
    operands = run.operands(x)
    other: dict[str, float] = {}
    for node in net.network.nodes:
        if node.op == "conv" and not _why_not("im2row_gemm", net.network.spec(node, batch)):
            read = operands[node.name][0]
            bar = own[node.name]
            other[node.name] = _channels_last_s(net, batch, node.name, read, run.plans.threads, bar)
    total = sum(own.values())
    if all(s >= own[name] for name, s in other.items()):
        return Layouts([], total, total, True)
    shapes = net.network.shapes(batch)
    copies = {name: _copy_s(shape) for name, shape in shapes.items() if len(shape) == 4}
    crossed, seconds = least_cut(net.network, own, other, copies)
    return Layouts(crossed, seconds, total, False)


def least_cut(network: Network, own: Mapping[str, float], other: Mapping[str, float],
              copies: Mapping[str, float]) -> tuple[list[str], float]:  # fmt: skip
    """The layers on the far side of the least cut, and what it costs: seconds on either side, of copies."""
    names = ["near", "far", "input", *(node.name for node in network.nodes)]
    number = {name: at for at, name in enumerate(names)}
    endless = 1 << 30
    edges: dict[tuple[int, int], int] = {}

    def edge(start: str, end: str, seconds: float | None) -> None:
        key = number[start], number[end]
        capacity = endless if seconds is None else round(seconds / TICK)
        edges[key] = min(endless, edges.get(key, 0) + capacity)

    edge("near", "input", None)
    for node in network.nodes:
        edge("near", node.name, other.get(node.name))  # cut where it lies on the far side
        edge(node.name, "far", own.get(node.name, 0.0))
        for name in dict.fromkeys(node.inputs):
            if name in copies:
                edge(name, node.name, copies[name])
                edge(node.name, name, copies[name])
    places, capacities = zip(*edges.items(), strict=True)
    rows, columns = zip(*places, strict=True)
    matrix = coo_array((np.array(capacities, np.int32), (rows, columns)), (len(names),) * 2).tocsr()
    flow = maximum_flow(matrix, 0, 1)
    left = (matrix - flow.flow).tocsr()
    left.eliminate_zeros()
    reached, todo = {0}, [0]
    while todo:
        at = todo.pop()
        for to in left.indices[left.indptr[at] : left.indptr[at + 1]]:
            if int(to) not in reached and left[at, int(to)] > 0:
                reached.add(int(to))
                todo.append(int(to))
    return [node.name for node in network.nodes if number[node.name] not in reached], flow.flow_value * TICK


def _channels_last_s(
    net: Folded, batch: int, layer: str, x: np.ndarray, threads: int, bar: float
) -> float:
    node = next(node for node in net.network.nodes if node.name == layer)
    w, bias = net.weights[node.key]
    spec = net.network.spec(node, batch)
    made = plan(spec, w, "im2row_gemm", threads, bias=bias, layout="nhwc")
    lying = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return _best(lambda: made(lying), bar)


def _copy_s(shape: tuple[int, ...]) -> float:
    x = np.zeros(shape, DTYPE)
    return _best(lambda: np.ascontiguousarray(np.moveaxis(x, 1, -1)))


def _best(call: Callable[[], object], bar: float = np.inf, times: int = 4) -> float:
    """Seconds of the fastest call; two are enough where both take twice as long as ``bar``."""
    found: list[float] = []
    while len(found) < 2 or (len(found) < times and min(found) < 2 * bar):
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    return min(found)
