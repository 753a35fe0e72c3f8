"""From the problem that a caller has to problems that an algorithm solves: the chain of lowerings between
them.

A chain is a sequence of names in canonical order; every problem that a lowering leaves goes through the ones
that follow. The border, the flip and a crop are always lowered: algorithms are asked about canonical problems
only. The rest is tried, fewest first, where an algorithm refuses the problem. An empty chain costs nothing,
not even a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import combinations
from typing import Any

from algos.arrays import DeviceArray
from algos.build import lowering_code
from algos.contract import PLAIN_TYPES, Algorithm, Cost, said
from algos.dtypes import kind, whole
from algos.engine.kept import compiled_now, compiling_s, missed
from algos.lower.compose import Run, compose, prepared, solved, takes_weights
from algos.lower.parts import MOST_LEAVES, Lowered, Part, count
from algos.lower.tree import CHAINS, STEPS, Node, tree
from algos.spec import ConvSpec, SpecError

ALWAYS = ("border", "flip", "crop")
AS = ("quads", "pairs", "types")  # types of elements that an algorithm has not, the fastest first
TURNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "forward": ((),), "input_gradient": ((), ("residues",), ("shuffle",), ("spaced",)),
    "weight_gradient": ((), ("exchange",)),
}  # fmt: skip
TRIED = ("groups", "stride", "dilation", "padding", "axes", "depth")
OF_PEERS = ("border", "flip")  # more would measure our lowering, and not their library
LOCAL = ("componentwise", "lowrank", "rounded")  # classes in which a NaN spoils only what reads it
SCATTERED_PER_S = 7e8  # elements, measured
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

    @cached_property
    def identity(self) -> str:
        """Which lowerings change something, and their code; empty where the algorithm solves ``spec`` itself.

        What went wrong is remembered of both, not of the algorithm alone.
        """
        names = {node.name for _, node in self.node.steps()}
        return " ".join((*_ordered(tuple(names)), lowering_code())) if names else ""

    def prepare(self, weights: Any, threads: int, bias: Any = None) -> Run:
        """All one-off work; what it returns takes a call's regular operands and ``out``."""
        if self.node.lowered is None:  # calls that prepare each time are not kept waiting
            return prepared(self.algorithm, self.node.spec, weights, threads, bias)
        if isinstance(weights, DeviceArray):  # a wrapper cannot be taken apart
            weights = self.algorithm.to_host(weights)
        hosted = threads if self.algorithm.device == "cpu" else 0
        return compose(self.node, weights, partial(solved, self.algorithm, threads), bias, hosted)

    def workspace_bytes(self, threads: int = 1) -> int:
        """What is held after prepare and the peak of a run, of all leaves and of what is moved between them.
        """
        if threads not in self._workspaces:
            self._workspaces[threads] = self._workspace_bytes(threads)
        return self._workspaces[threads]

    @cached_property
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
        if threads not in self._costs:
            found = [self.algorithm.cost(leaf, threads) for leaf in self.leaves]
            if self.node.lowered is not None:
                found += [_moving(lowered, node) for lowered, node in self.node.steps() if lowered.words]
            self._costs[threads] = found
        return self._costs[threads]

    @cached_property
    def _costs(self) -> dict[int, list[Cost]]:
        """By threads, as the workspaces are."""
        return {}

    def finishing_s(self, threads: int = 1) -> float:
        """The model's time of what is done to a result after all."""
        steps = ((lowered, node) for lowered, node in self.node.steps() if lowered.finished)
        return math.fsum(_moving(*step).seconds(threads) for step in steps)

    def seconds(self, threads: int = 1) -> float:
        """The model's time of a run; a leaf whose weights come with each call, and which does not take them
        so, is prepared then.
        """
        if threads not in self._seconds:
            self._seconds[threads] = self._modelled(threads)
        return self._seconds[threads]

    @cached_property
    def _seconds(self) -> dict[int, float]:
        """By threads, as the workspaces are."""
        return {}

    def _modelled(self, threads: int) -> float:
        total = math.fsum(cost.seconds(threads) for cost in self.costs(threads))
        late = any(part.weights_last for lowered, _ in self.node.steps() for part in lowered.parts)
        if late and not takes_weights(self.algorithm):
            total += self.prepare_s(threads)
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

    @cached_property
    def unwise(self) -> str | None:
        """Why it is no candidate although it would be right."""
        if reason := self.algorithm.unwise(self.spec):
            return reason
        if not self.words:
            return None
        spec, operations = self.node.spec, sum(leaf.flops for leaf in self.leaves)
        definition = spec.flops * (4 if kind(spec.in_dtype) == "c" else 1)  # of real numbers
        if operations > UNWISE * definition:
            return f"would take {operations / definition:.3g} times the operations: {self.words}"
        if self.seconds() > SLOW_S + SLOWER * 1e-9 * definition:
            return f"would take about {self.seconds():.2g} s: {self.words}"
        return None


def _moving(lowered: Lowered, node: Node) -> Cost:
    """Of what one lowering copies and scatters, and of its passes over a result."""
    copied = sum(2 * part.copied + 2 * _placed(part) for part in lowered.parts)
    if lowered.combine is not None:
        copied += 2 * sum(count(part.spec.result_shape) for part in lowered.parts)
    moved = (copied + 2 * lowered.finished) * node.spec.in_dtype.itemsize
    scattered = sum(part.scattered for part in lowered.parts)
    return Cost(scattered, moved, 4 * len(lowered.parts), SCATTERED_PER_S, parallel=False)


def _placed(part: Part) -> int:
    return count(part.spec.result_shape) if part.place is not None else 0


# ---- the search --------------------------------------------------------------------------------------------


def chains(algorithm: Algorithm, spec: ConvSpec) -> list[Chain]:
    """All ways that are worth comparing; empty where there is none."""
    return _searched(algorithm, spec).chains


def chain(algorithm: Algorithm, spec: ConvSpec, threads: int = 1) -> Chain:
    """The way that the model finds fastest.

    Raises
    ------
    SpecError
        Where there is none.
    """
    found = _searched(algorithm, spec)
    if not found.chains:
        raise SpecError(f"{algorithm.name} does not support {spec}: {found.reason}")
    return _best(found, threads)


def way_or_reason(algorithm: Algorithm, spec: ConvSpec, threads: int) -> Chain | str:
    """The way that the model finds fastest, or why there is none."""
    found = _searched(algorithm, spec)
    return _best(found, threads) if found.chains else found.reason


def _best(found: _Found, threads: int) -> Chain:
    if len(found.chains) == 1:
        return found.chains[0]
    if threads not in found.best:
        found.best[threads] = min(found.chains, key=lambda one: one.seconds(threads))
    return found.best[threads]


def unsupported(algorithm: Algorithm, spec: ConvSpec) -> str | None:
    """Why there is no way from ``spec`` to what the algorithm solves, as it says it, or None."""
    found = _searched(algorithm, spec)
    return None if found.chains else found.reason


@dataclass
class _Found:
    """Of one algorithm, which is held so that nobody else gets its identity, and one spec."""

    algorithm: Algorithm
    chains: list[Chain]
    reason: str
    best: dict[int, Chain] = field(default_factory=dict)


_known: dict[tuple[int, ConvSpec], _Found] = {}


def _searched(algorithm: Algorithm, spec: ConvSpec) -> _Found:
    """By identity: hashing an algorithm takes longer than asking it."""
    key = id(algorithm), spec
    if (found := _known.get(key)) is None:
        if len(_known) >= CHAINS:
            _known.clear()
        names, reason = _search(algorithm, spec)
        chains = [Chain(algorithm, spec, each, tree(spec, each)) for each in names]
        found = _known[key] = _Found(algorithm, chains, reason)
    return found


def _search(algorithm: Algorithm, spec: ConvSpec) -> tuple[list[tuple[str, ...]], str]:
    if algorithm.family == "auto":
        return [()], ""
    if algorithm.operands and tree(spec, ("rounded",)).lowered is None:
        return [], f"gains nothing by operands in {algorithm.operands} here"
    peer, reason, always = algorithm.family == "peer", "", _always(algorithm, spec)
    if "types" in always and whole(spec.in_dtype) and algorithm.accuracy != "componentwise":
        return [], "its roundings may change whole numbers"
    found: list[tuple[str, ...]] = []
    support = algorithm.support
    for turn in TURNS[spec.direction]:
        if (found and turn != ("shuffle",)) or (peer and turn):
            continue
        try:
            base = tree(spec, _ordered((*always, *turn)))
        except SpecError as error:  # beyond any machine
            reason = str(error)
            continue
        if turn and (base.lowered is None or any(leaf.direction != "forward" for leaf in base.leaves)):
            continue
        if base.crops:
            reason = reason or "a peer is not given a cropped picture"
            continue
        if algorithm.runtime == "torch" and algorithm.device == "cuda" and _places(base):
            reason = "its tensors on the GPU cannot be put together here"
            continue
        if algorithm.accuracy in LOCAL and base.spreads:
            continue
        refused = _refused(algorithm, base)
        if not base.leaves and algorithm.accuracy == "lowrank":
            refused = "there is nothing to separate"
        if refused is None:
            found.append(_ordered((*always, *turn)))
            continue
        # Who computes this direction itself is asked about nothing else in the end
        itself = support is not None and spec.direction in support.directions
        if not (turn and itself and reason):
            reason = f"{refused} ({base.words})" if base.words else refused
        if peer or (not turn and support is not None and not itself):
            continue
        traits = _traits(base)
        for size in range(1, len(traits) + 1):
            names = next((names for some in combinations(traits, size)
                          if _fits(algorithm, spec, names := _ordered((*always, *turn, "epilogue", *some)))),
                         None)  # fmt: skip
            if names:
                found.append(names)
                break
    return found, reason


def _always(algorithm: Algorithm, spec: ConvSpec) -> tuple[str, ...]:
    """What is lowered whatever the algorithm says; it is asked about the rest."""
    known, support = OF_PEERS if algorithm.family == "peer" else ALWAYS, algorithm.support
    applies = support is not None and support.epilogues
    dtypes = PLAIN_TYPES if support is None else support.dtypes
    if algorithm.operands:
        known, spec = (*known, "rounded"), tree(spec, ("rounded",)).leaves[0]
    if algorithm.family != "peer" and spec.dtype not in dtypes:
        known = (*known, next(name for name in AS if name == "types" or _solves(STEPS[name](spec), dtypes)))
    return known if applies else (*known, "epilogue")


def _solves(lowered: Lowered | None, dtypes: tuple[str, ...]) -> bool:
    return lowered is not None and all(part.spec.dtype in dtypes for part in lowered.parts)


def _fits(algorithm: Algorithm, spec: ConvSpec, names: tuple[str, ...]) -> bool:
    try:
        node = tree(spec, names)
    except SpecError:  # beyond any machine
        return False
    return len(node.leaves) <= MOST_LEAVES and _refused(algorithm, node) is None


def _refused(algorithm: Algorithm, node: Node) -> str | None:
    for leaf in node.distinct:
        if reason := said(algorithm.unsupported, leaf):
            return reason
    return None


@lru_cache(CHAINS)
def _ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in STEPS if name in names)


def _places(node: Node) -> bool:
    return any(
        lowered.combine is not None or any(part.place is not None for part in lowered.parts)
        for lowered, _ in node.steps()
    )


def _traits(node: Node) -> list[str]:
    """Which of ``TRIED`` can change anything."""
    leaves = node.leaves
    has = {
        "groups": any(leaf.groups > 1 for leaf in leaves),
        "stride": any(max(leaf.stride) > 1 for leaf in leaves),
        "dilation": any(max(leaf.dilation) > 1 for leaf in leaves),
        "padding": any(any(map(any, leaf.padding)) for leaf in leaves),
        "axes": any(leaf.ndim != 2 for leaf in leaves),
        # Else its taps may as well lie among the channels
        "depth": any(leaf.ndim == 3 and (leaf.groups == leaf.in_channels > 1
                                         or leaf.direction == "input_gradient") for leaf in leaves),
    }
    return [name for name in TRIED if has[name]]
