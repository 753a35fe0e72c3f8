"""From the problem that a caller has to problems that an algorithm solves: the chain of lowerings between
them.

A chain is a sequence of names in canonical order; every problem that a lowering leaves goes through the ones
that follow. The border, the flip and a crop are always lowered: algorithms are asked about canonical problems
only. The rest is tried, fewest first, where an algorithm refuses the problem. An empty chain costs nothing,
not even a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import combinations
from typing import Any

import numpy as np

from algos.arrays import DeviceArray, is_device_array
from algos.build import lowering_code
from algos.contract import PLAIN_TYPES, Algorithm, Cost, modelled_prepare_s, said
from algos.dtypes import kind, whole
from algos.engine.kept import compiled_now, compiling_s, missed
from algos.engine.memory import aligned
from algos.lower.axes import axes, depth
from algos.lower.border import border
from algos.lower.direction import exchange, residues, shuffle, spaced
from algos.lower.epilogue import epilogue
from algos.lower.flip import flip
from algos.lower.geometry import crop, dilation, groups, padding, stride
from algos.lower.pairs import pairs, quads
from algos.lower.parts import MOST_LEAVES, Lowered, Move, Part, contiguous, count
from algos.lower.types import rounded, types
from algos.spec import ConvSpec, SpecError

Run = Callable[..., Any]
# A leaf, its weights, None where they come with each call, and its bias -> what runs
Solve = Callable[[ConvSpec, Any, Any], Run]

STEPS: dict[str, Callable[[ConvSpec], Lowered | None]] = {
    "rounded": rounded, "quads": quads, "pairs": pairs, "types": types, "border": border, "flip": flip,
    "epilogue": epilogue, "residues": residues, "shuffle": shuffle, "spaced": spaced, "exchange": exchange,
    "crop": crop, "groups": groups, "stride": stride, "dilation": dilation, "padding": padding, "axes": axes,
    "depth": depth,
}  # fmt: skip
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
UNWISE = 3.0  # times the operations of the definition, beyond which a chain is no candidate
CHAINS = 1 << 12


@dataclass(frozen=True)
class Node:
    """A problem, how it was lowered, by what name, and who follows; a leaf where it was not."""

    spec: ConvSpec
    lowered: Lowered | None = None
    children: tuple[Node, ...] = ()
    name: str = ""
    rest: tuple[str, ...] = ()

    @cached_property
    def leaves(self) -> tuple[ConvSpec, ...]:
        """In the order in which they run."""
        return (
            tuple(leaf for child in self.children for leaf in child.leaves) if self.lowered else (self.spec,)
        )

    @cached_property
    def distinct(self) -> tuple[ConvSpec, ...]:
        """The leaves, each once."""
        return self.leaves if len(self.leaves) == 1 else tuple(dict.fromkeys(self.leaves))

    @cached_property
    def crops(self) -> bool:
        """Whether a leaf crops its picture."""
        return any(min(map(min, leaf.padding)) < 0 for leaf in self.leaves)

    @cached_property
    def spreads(self) -> bool:
        """Whether a NaN may reach further than the definition lets it."""
        return any(lowered.spreads for lowered, _ in self.steps())

    @cached_property
    def words(self) -> str:
        if self.lowered is None:
            return ""
        below = next((child.words for child in self.children if child.words), "")
        return ", ".join(filter(None, (self.lowered.words, below)))

    @property
    def other(self) -> Node | None:
        """The same problem in the other way that its lowering names."""
        otherwise = self.lowered.otherwise if self.lowered else ""
        return tree(self.spec, (otherwise, *self.rest)) if otherwise else None

    def steps(self) -> Iterator[tuple[Lowered, Node]]:
        """Every lowering in the tree."""
        if self.lowered is not None:
            yield self.lowered, self
            for child in self.children:
                yield from child.steps()


def tidy(spec: ConvSpec) -> ConvSpec:
    """The same problem with strides past the only output, and dilations of a single tap, as small as they may
    be.

    An empty batch is asked about as one image.
    """
    past_last = (n - extent + 1 for n, extent in zip(spec.padded_size, spec.kernel_extent, strict=True))
    steps = tuple(map(min, spec.stride, past_last))
    gaps = tuple(1 if k == 1 else d for k, d in zip(spec.kernel, spec.dilation, strict=True))
    if spec.batch and steps == spec.stride and gaps == spec.dilation:
        return spec
    return spec.with_(batch=max(1, spec.batch), stride=steps, dilation=gaps)


@lru_cache(CHAINS)
def tree(spec: ConvSpec, names: tuple[str, ...]) -> Node:
    """``spec`` through the lowerings of those names, each where it applies."""
    spec = tidy(spec)
    for k, name in enumerate(names):
        if (lowered := STEPS[name](spec)) is not None:
            children = tuple(tree(part.spec, names[k + 1 :]) for part in lowered.parts)
            return Node(spec, lowered, children, name, names[k + 1 :])
    return Node(spec)


def plain(spec: ConvSpec) -> ConvSpec:
    """The same problem without what most of its time does not depend on: border, flip, bias and activation.
    """
    node = tree(spec, ("border", "flip", "epilogue"))
    return node.leaves[0]


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
            return _prepared(self.algorithm, self.node.spec, weights, threads, bias)
        if isinstance(weights, DeviceArray):  # a wrapper cannot be taken apart
            weights = self.algorithm.to_host(weights)
        hosted = threads if self.algorithm.device == "cpu" else 0
        return compose(self.node, weights, partial(_leaf, self.algorithm, threads), bias, hosted)

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
        if late and not _takes_weights(self.algorithm):
            held = (int(self.algorithm.workspace_bytes(leaf, threads)) for leaf in self.leaves)
            total += math.fsum(map(modelled_prepare_s, held))
        return total

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


def _prepared(algorithm: Algorithm, spec: ConvSpec, weights: Any, threads: int, bias: Any) -> Run:
    there = _there(algorithm, weights)
    if there is not None and not (algorithm.support and algorithm.support.strided_weights):
        there = contiguous(there)
    if algorithm.support is None or not algorithm.support.epilogues:
        return algorithm.prepare(spec, there, threads)
    return algorithm.prepare(spec, there, threads, bias)  # type: ignore[call-arg]


def _leaf(algorithm: Algorithm, threads: int, spec: ConvSpec, weights: Any, bias: Any) -> Run:
    if weights is not None or spec.direction == "weight_gradient" or _takes_weights(algorithm):
        return _prepared(algorithm, spec, weights, threads, bias)

    if algorithm.device == "cpu" and compiling_s(algorithm, spec):  # now, and not in the first call
        algorithm.prepare(spec, np.zeros(spec.weight_shape, spec.in_dtype), threads)

    def run(x: Any, w: Any, out: Any = None) -> Any:
        prepared = algorithm.prepare(spec, w, threads)
        return prepared(x) if out is None else prepared(x, out=out)

    return run


def _takes_weights(algorithm: Algorithm) -> bool:
    return algorithm.support is not None and algorithm.support.weights_as_operands


def _there(algorithm: Algorithm, weights: Any) -> Any:
    """Weights where the algorithm lives."""
    apart = algorithm.device == "cuda" and weights is not None and not is_device_array(weights)
    return algorithm.to_device(weights) if apart else weights


def compose(node: Node, weights: Any, solve: Solve, bias: Any = None, threads: int = 0) -> Run:
    """What runs a tree, given what runs a leaf; ``threads`` are of what is done to results."""
    lowered = node.lowered
    if lowered is None:
        return solve(node.spec, weights, bias)
    run = _composed(node, lowered, weights, solve, bias, threads)
    if lowered.guard is None:
        return run
    if other := node.other:
        return lowered.guard(weights, bias, run, lambda: compose(other, weights, solve, bias, threads))
    return lowered.guard(weights, bias, run)


def _composed(node: Node, lowered: Lowered, weights: Any, solve: Solve, bias: Any, threads: int) -> Run:
    # They come with each call, as the last operand
    late = weights is None and node.spec.direction == "forward"
    runs: list[tuple[Move, Run, Any]] = [
        (
            _with_weights(part, threads) if late else part.moving(threads),
            compose(child, None if weights is None else part.weights(weights), solve,
                    _bias(part, weights, bias) if child.spec.bias else None, threads),
            part.placing(threads),
        )
        for part, child in zip(lowered.parts, node.children, strict=True)
    ]
    finish = lowered.finish(bias, threads) if lowered.finish is not None else None
    if len(runs) == 1 and runs[0][2] is None and lowered.combine is None:
        move, inside = runs[0][:2]

        def straight(*arrays: Any, out: Any = None) -> Any:
            moved = move(*arrays)
            y = inside(*moved) if out is None else inside(*moved, out=out)
            if finish is not None:
                finish(y)
            return y

        return straight if lowered.words else inside
    shape, dtype, cleared = node.spec.result_shape, node.spec.result_dtype, lowered.cleared
    combine = lowered.combine
    # Kept from call to call, for new pages cost as much as what is written to them
    kept: list[Any] = []
    if combine is not None and threads:
        kept = [aligned(part.spec.result_shape, part.spec.result_dtype) for part in lowered.parts]

    def run(*arrays: Any, out: Any = None) -> Any:
        y = np.empty_like(arrays[0], shape=shape, dtype=dtype, order="C") if out is None else out
        if cleared:
            y[...] = 0
        if combine is not None and kept:
            pairs = zip(runs, kept, strict=True)
            combine(y, [inside(*move(*arrays), out=own) for (move, inside, _), own in pairs], threads)
        elif combine is not None:
            combine(y, [inside(*move(*arrays)) for move, inside, _ in runs], threads)
        else:
            for move, inside, place in runs:
                place(y, inside(*move(*arrays)))
        if finish is not None:
            finish(y)
        return y

    return run


def _bias(part: Part, weights: Any, bias: Any) -> Any:
    return part.constant(weights) if part.constant is not None else part.bias(bias)


def _with_weights(part: Part, threads: int) -> Move:
    move = part.moving(threads)
    return lambda x, w: (*move(x), part.weights(w))


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
            break
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
