"""A chain of lowerings between the problem that a caller has and those that an algorithm solves: what it
costs, holds and runs. An empty chain costs nothing, not even a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from algos.arrays import DeviceArray
from algos.build import lowering_code
from algos.contract import CALL_S, DEVICE_CALL_S, Algorithm, Cost
from algos.dtypes import kind
from algos.engine.kept import compiled_now, compiling_s, missed
from algos.held import held
from algos.lower.compose import Run, compose, prepare_native, solve_leaf, takes_weights, there
from algos.lower.parts import Lowered, Part, count
from algos.lower.tree import Node, ordered
from algos.spec import ConvSpec

SCATTERED_PER_S = 7e8  # elements, measured
DEVICE_BYTES_PER_S = 5e11  # of a middling one
SLOW_S, SLOWER = 0.01, 20.0  # what a way may take, and times as long as the definition at 1 GFLOP/s
MADE_S = 3e-9  # an element of weights that NumPy puts elsewhere, measured
UNWISE = 3.0  # times the operations of the definition, beyond which a chain is no candidate


@dataclass(frozen=True)
class Chain:
    """An algorithm, and how it comes to solve ``spec``.

    Attributes
    ----------
    algorithm : Algorithm
    spec : ConvSpec
        The caller's.
    names : tuple of str
        Of the lowerings, in order.
    """

    algorithm: Algorithm
    spec: ConvSpec
    names: tuple[str, ...]
    node: Node = field(repr=False, compare=False)

    @property
    def leaves(self) -> tuple[ConvSpec, ...]:
        return self.node.leaves

    @property
    def words(self) -> str:
        """What was lowered, for reports; empty where the algorithm solves the problem itself."""
        return self.node.words

    @held
    def identity(self) -> str:
        """Which lowerings change something, and their code; empty where the algorithm solves ``spec`` itself.

        What went wrong is remembered of both, not of the algorithm alone.
        """
        names = {node.name for _, node in self.node.steps()}
        return " ".join((*ordered(tuple(names)), lowering_code())) if names else ""

    def prepare(self, weights: Any, threads: int, bias: Any = None) -> Run:
        """All one-off work; what it returns takes a call's regular operands and ``out``."""
        if self.node.lowered is None:  # calls that prepare each time are not kept waiting
            return prepare_native(self.algorithm, self.node.spec, weights, threads, bias)
        if isinstance(weights, DeviceArray):  # a wrapper cannot be taken apart
            weights = self.algorithm.to_host(weights)
        hosted, bias = threads if self.algorithm.device == "cpu" else 0, there(self.algorithm, bias)
        return compose(self.node, weights, partial(solve_leaf, self.algorithm, threads), bias, hosted)

    def workspace_bytes(self, threads: int = 1) -> int:
        """What is held after prepare and the peak of a run, of all leaves and of what is moved between them.
        """
        if threads not in self._workspaces:
            self._workspaces[threads] = self._workspace_bytes(threads)
        return self._workspaces[threads]

    @held
    def _workspaces(self) -> dict[int, int]:
        """By threads: limits, estimates and rankings ask for them, of every algorithm."""
        return {}

    def _workspace_bytes(self, threads: int) -> int:
        total = sum(int(self.algorithm.workspace_bytes(leaf, threads)) for leaf in self.leaves)
        for lowered, node in self.node.steps():
            if other := node.other:
                total += Chain(self.algorithm, node.spec, (), other).workspace_bytes(threads)
            kept, passing = 0, lowered.instead
            for part in lowered.parts:
                size = part.spec.in_dtype.itemsize
                kept += (part.held + part.made * count(part.spec.weight_shape)) * size
                if lowered.combine is not None:
                    kept += count(part.spec.result_shape) * size
                passing = max(passing, (part.copied - part.held + part.beside + _placed(part)) * size)
                if part.weights_last and self.algorithm.runtime == "numba":  # zeros, for which it is compiled
                    passing = max(passing, count(part.spec.weight_shape) * size)
            total += kept + passing
        return total

    def costs(self, threads: int = 1) -> list[Cost]:
        """Of the leaves, and of what is moved between them."""
        if not self.spec.batch:  # nothing is computed, and what reckons may divide by it
            return [Cost(0.0, 0.0)]
        found = [self.algorithm.cost(leaf, threads) for leaf in self.leaves] * self.node.runs
        if self.node.lowered is not None:
            found += [_moving(lowered, node, self.algorithm.device)
                      for lowered, node in self.node.steps() if lowered.words]  # fmt: skip
        return found

    def finishing_s(self, threads: int = 1) -> float:
        """The model's time of what is done to a result after all."""
        steps = ((lowered, node) for lowered, node in self.node.steps() if lowered.finished)
        return math.fsum(_moving(*step, self.algorithm.device).seconds(threads) for step in steps)

    def seconds(self, threads: int = 1) -> float:
        """The model's time of a run; a leaf whose weights come with each call, and which does not take them
        so, is prepared then.
        """
        if threads not in self._seconds:
            self._seconds[threads] = self._modelled(threads)
        return self._seconds[threads]

    @held
    def _seconds(self) -> dict[int, float]:
        """By threads, as the workspaces are."""
        return {}

    def _modelled(self, threads: int) -> float:
        total = math.fsum(cost.seconds(threads) for cost in self.costs(threads))
        late = any(part.weights_last for lowered, _ in self.node.steps() for part in lowered.parts)
        if late and not takes_weights(self.algorithm):
            total += self.prepare_s(threads) * self.node.runs
        return total

    def prepare_s(self, threads: int = 1) -> float:
        """The model's time of preparing all leaves, and of the weights that are made for them."""
        support, made = self.algorithm.support, 0
        anywhere = support is not None and support.strided_weights
        for lowered, node in self.node.steps():
            if node.name == "shuffle" or not anywhere:
                made += sum(count(part.spec.weight_shape) for part in lowered.parts if part.made)
        each = (self.algorithm.prepare_s(leaf, threads) for leaf in self.leaves)
        return math.fsum(each) + made * MADE_S

    def cost(self, threads: int = 1) -> Cost:
        """Of all together, at the pace of the first leaf."""
        found = self.costs(threads)
        if len(found) == 1:
            return found[0]
        first = found[0]
        return Cost(math.fsum(c.operations for c in found), math.fsum(c.bytes for c in found),
                    sum(c.calls for c in found), first.flops_per_s, first.parallel,
                    first.bytes_per_s)  # fmt: skip

    def compiling_s(self) -> float:
        """Seconds that the next plan compiles, or loads what was compiled."""
        return math.fsum(compiling_s(self.algorithm, leaf) for leaf in self.node.distinct)

    def missed(self, saved_s: float) -> bool:
        """A call did without the code, which would have saved it so much: whether compiling pays by now."""
        found = [missed(self.algorithm, leaf, saved_s) for leaf in self.node.distinct]  # each is told
        return False not in found

    def compiled_now(self) -> None:
        """A plan was prepared."""
        for leaf in self.node.distinct:
            compiled_now(self.algorithm, leaf)

    @held
    def unwise(self) -> str | None:
        """Why it is no candidate although it would be right."""
        if reason := self.algorithm.unwise(self.spec):
            return reason
        if not self.words:
            return None
        spec, operations = self.node.spec, self.node.runs * sum(leaf.flops for leaf in self.leaves)
        definition = spec.flops * (4 if kind(spec.in_dtype) == "c" else 1)  # of real numbers
        if operations > UNWISE * definition:
            return f"would take {operations / definition:.3g} times the operations: {self.words}"
        if self.seconds() > SLOW_S + SLOWER * 1e-9 * definition:
            return f"would take about {self.seconds():.2g} s: {self.words}"
        return None


def _moving(lowered: Lowered, node: Node, device: str) -> Cost:
    """Of what one lowering copies and scatters, and of its passes over a result."""
    copied = sum(2 * part.copied + 2 * _placed(part) for part in lowered.parts)
    if lowered.combine is not None:
        copied += 2 * sum(count(part.spec.result_shape) for part in lowered.parts)
    moved = (copied + 2 * lowered.finished) * node.spec.in_dtype.itemsize
    scattered = sum(part.scattered for part in lowered.parts)
    calls = 4 * len(lowered.parts)
    if device == "cpu":
        return Cost(scattered, moved, calls, SCATTERED_PER_S, parallel=False)
    moved += scattered * node.spec.in_dtype.itemsize
    return Cost(0, moved, calls * DEVICE_CALL_S / CALL_S, 1.0, False, DEVICE_BYTES_PER_S)


def _placed(part: Part) -> int:
    return count(part.spec.result_shape) if part.place is not None else 0
