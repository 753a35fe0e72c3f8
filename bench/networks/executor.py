"""A folded network prepared for a batch: plans and arrays are made once, a call runs one step after another.

>>> run = Prepared(folded(network, weights), algorithms="auto")
>>> y = run(x)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from algos.engine.activations import activated
from algos.engine.sums import finishing, summing
from algos.engine.threads import checked_threads
from algos.layers import avg_pool2d, global_avg_pool, linear, max_pool2d
from algos.plans import Plan, plan
from algos.spec import ConvSpec
from bench import perf_counter
from bench.networks.arena import Arena
from bench.networks.fold import Folded
from bench.networks.graph import CONVOLUTIONS, INPUT, NetworkError, Node
from bench.networks.weights import DTYPE

Call = Callable[..., Any]


class Step(NamedTuple):
    """``call(*operands, out=result)`` of one node, by the places of its arrays."""

    node: Node
    call: Call
    reads: tuple[int, ...]
    writes: int


class Plans:
    """Plans by problem, algorithm and weights: equal layers, and networks of the same weights, share one."""

    def __init__(self, net: Folded, threads: int | None = None) -> None:
        self.net, self.threads = net, checked_threads(threads)
        self._made: dict[tuple[ConvSpec, str, str], Plan] = {}

    def of(self, spec: ConvSpec, algorithm: str, key: str) -> Plan:
        made = self._made.get((spec, algorithm, key))
        if made is None:
            w, bias = self.net.weights[key]
            made = plan(spec, w, algorithm, self.threads, bias=bias if spec.bias else None)
            self._made[spec, algorithm, key] = made
        return made

    def __len__(self) -> int:
        return len(self._made)


class Prepared:
    """A network that runs.

    Parameters
    ----------
    net : Folded
    batch : int
    algorithms : str or mapping
        One algorithm for all convolutions, or by the names of nodes, "auto" where none is named.
    threads : int, optional
        The usable cores when left out.
    plans : Plans, optional
        Of the same network and threads, to share.

    Attributes
    ----------
    algorithms : dict
        Which algorithm runs each convolution.
    arena : Arena
    """

    def __init__(self, net: Folded, batch: int = 1, algorithms: str | Mapping[str, str] = "auto",
                 threads: int | None = None, plans: Plans | None = None) -> None:  # fmt: skip
        self.net, self.batch = net, batch
        self.plans = Plans(net, threads) if plans is None else plans
        self.arena = Arena(net.network, batch)
        self.algorithms: dict[str, str] = {}
        self._named = algorithms
        self._lock = threading.Lock()
        network, shapes = net.network, net.network.shapes(batch)
        self._input, self._output = shapes[INPUT], shapes[network.output]
        names = [INPUT, *(node.name for node in network.nodes)]
        self._number = {name: at for at, name in enumerate(names)}
        self._arrays: list[Any] = [
            None if self.arena.places[name].owner in (INPUT, network.output) else self.arena.view(name)
            for name in names
        ]
        # Results that lie in the network's own, which is new at every call
        self._within = [name for name in names[1:] if self.arena.places[name].owner == network.output]
        self.steps = [self._step(node) for node in network.nodes]

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The network's result for images (N, C, H, W) of float32."""
        with self._lock:
            y = self._begin(x, out)
            arrays = self._arrays
            for _, call, reads, writes in self.steps:
                call(*[arrays[at] for at in reads], out=arrays[writes])
            return y

    def timed(self, x: np.ndarray) -> list[float]:
        """Seconds of each step as they follow each other."""
        with self._lock:
            self._begin(x, None)
            arrays, times, before = self._arrays, [], perf_counter()
            for _, call, reads, writes in self.steps:
                call(*[arrays[at] for at in reads], out=arrays[writes])
                now = perf_counter()
                times.append(now - before)
                before = now
            return times

    def operands(self, x: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Copies of what every node reads, by its name."""
        found: dict[str, list[np.ndarray]] = {}
        with self._lock:
            self._begin(x, None)
            for node, call, reads, writes in self.steps:
                found[node.name] = [self._arrays[at].copy() for at in reads]
                call(*[self._arrays[at] for at in reads], out=self._arrays[writes])
        return found

    def call_of(self, layer: str, algorithm: str) -> Call:
        """What runs the convolution of that name by that algorithm, for ``use``."""
        return self._convolution(self.net.network.nodes[self._number[layer] - 1], algorithm)[0]

    def use(self, layer: str, algorithm: str, call: Call) -> None:
        """Run it so from now on."""
        at = self._number[layer] - 1
        self.steps[at] = self.steps[at]._replace(call=call)
        self.algorithms[layer] = algorithm

    def _begin(self, x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if x.shape != self._input or x.dtype != DTYPE:
            name = self.net.network.name
            raise NetworkError(f"x is {x.dtype} {x.shape}: {name} takes {DTYPE} {self._input}")
        y = np.empty(self._output, DTYPE) if out is None else out
        if y.shape != self._output or y.dtype != DTYPE or not y.flags.c_contiguous:
            raise NetworkError(f"out is {y.dtype} {y.shape}: it must be {DTYPE} {self._output} in C order")
        self._arrays[0] = np.ascontiguousarray(x)
        for name in self._within:
            self._arrays[self._number[name]] = self.arena.view(name, y)
        return y

    def _step(self, node: Node) -> Step:
        reads = tuple(self._number[name] for name in node.inputs)
        return Step(node, self._call(node), reads, self._number[node.name])

    def _call(self, node: Node) -> Call:
        shapes = self.net.network.shapes(self.batch)
        shape, threads = shapes[node.name], self.plans.threads
        window = {"kernel_size": node.kernel, "stride": node.stride, "padding": node.padding,
                  "ceil_mode": node.ceil, "threads": threads}  # fmt: skip
        if node.op in CONVOLUTIONS:
            named = self._named if isinstance(self._named, str) else self._named.get(node.name, "auto")
            call, self.algorithms[node.name] = self._convolution(node, named)
            return call
        if node.op == "dense":
            return self._dense(node)
        if node.op == "add":
            return _sum(shape, len(node.inputs), node.activation, threads)
        if node.op == "concat":
            widths = [shapes[name][1] for name in node.inputs]
            return partial(_put_together, widths)
        if node.op == "max_pool":
            return partial(max_pool2d, dilation=node.dilation, **window)
        if node.op == "average_pool":
            return partial(avg_pool2d, **window)
        if node.op == "global_average":
            return lambda x, out: global_avg_pool(x, threads=threads, out=out.reshape(out.shape[:2]))
        return partial(_activation, node.activation)

    def _convolution(self, node: Node, named: str) -> tuple[Call, str]:
        found = self.plans.of(self.net.network.spec(node, self.batch), named, node.key)
        run: Call = found.unchecked if self._together(node.name) and self._together(node.inputs[0]) else found
        if node.op == "conv":
            return run, found.algorithm
        shape = self.net.network.shapes(self.batch)[node.name]
        finish = finishing(shape, self.net.weights[node.key][1], node.activation, self.plans.threads)

        def call(x: np.ndarray, out: np.ndarray) -> None:
            y = out if out.flags.c_contiguous else np.empty_like(out, order="C")
            run(x, out=y)
            finish(y)
            if y is not out:
                out[...] = y

        return call, found.algorithm

    def _together(self, name: str) -> bool:
        """Whether a result lies in C order: in one piece, not beside others of every image."""
        shapes, owner = self.net.network.shapes(self.batch), self.arena.places[name].owner
        return self.batch == 1 or shapes[name] == shapes[owner]

    def _dense(self, node: Node) -> Call:
        w, bias = self.net.weights[node.key]
        threads, activation, count = self.plans.threads, node.activation, self.batch

        def call(x: np.ndarray, out: np.ndarray) -> None:
            linear(x.reshape(count, -1), w, bias, threads=threads, out=out)
            activated(out, activation)

        return call


def _sum(shape: tuple[int, ...], terms: int, activation: str, threads: int) -> Call:
    elements = int(np.prod(shape))
    plain = summing(elements, DTYPE, "none", threads) if terms > 2 else None
    last = summing(elements, DTYPE, activation, threads)

    def call(a: np.ndarray, *others: np.ndarray, out: np.ndarray) -> None:
        *middle, final = others
        y = out if out.flags.c_contiguous else np.empty_like(out, order="C")
        for b in middle:
            assert plain is not None
            plain(a, b, y)
            a = y
        last(a, final, y)
        if y is not out:
            out[...] = y

    return call


def _put_together(widths: list[int], *parts: np.ndarray, out: np.ndarray) -> None:
    """What does not lie in ``out`` already goes there."""
    channel = 0
    for width, part in zip(widths, parts, strict=True):
        target = out[:, channel : channel + width]
        if part.ctypes.data != target.ctypes.data:
            target[...] = part
        channel += width


def _activation(kind: str, x: np.ndarray, out: np.ndarray) -> None:
    out[...] = x
    activated(out, kind)
