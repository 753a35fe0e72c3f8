"""The search for chains of lowerings by which an algorithm solves a problem.

A chain is a sequence of names in canonical order; every problem that a lowering leaves goes through the ones
that follow. The border, the flip and a crop are always lowered: algorithms are asked about canonical problems
only. The rest is tried, fewest first, where an algorithm refuses the problem.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from algos.contract import PLAIN_TYPES, Algorithm, said
from algos.dtypes import whole
from algos.lower.chain import Chain
from algos.lower.parts import MOST_LEAVES, Lowered
from algos.lower.tree import CHAINS, STEPS, Node, ordered, tree
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


def chains(algorithm: Algorithm, spec: ConvSpec) -> tuple[Chain, ...]:
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
    return min(found.chains, key=lambda one: one.seconds(threads))


def unsupported(algorithm: Algorithm, spec: ConvSpec) -> str | None:
    """Why there is no way from ``spec`` to what the algorithm solves, as it says it, or None."""
    found = _searched(algorithm, spec)
    return None if found.chains else found.reason


class _Found(NamedTuple):
    """Of one algorithm, which is held so that nobody else gets its identity, and one spec."""

    algorithm: Algorithm
    chains: tuple[Chain, ...]
    reason: str


_known: dict[tuple[int, ConvSpec], _Found] = {}


def _searched(algorithm: Algorithm, spec: ConvSpec) -> _Found:
    """By identity: hashing an algorithm takes longer than asking it."""
    key = id(algorithm), spec
    if (found := _known.get(key)) is None:
        if len(_known) >= CHAINS:
            _known.clear()
        names, reason = _search(algorithm, spec)
        chains = tuple([Chain(algorithm, spec, each, tree(spec, each)) for each in names])
        found = _known[key] = _Found(algorithm, chains, reason)
    return found


def _search(algorithm: Algorithm, spec: ConvSpec) -> tuple[list[tuple[str, ...]], str]:
    if algorithm.family == "auto":
        return [()], ""
    if algorithm.operands and tree(spec, ("rounded",)).lowered is None:
        return [], f"gains nothing by operands in {algorithm.operands} here"
    always = _always(algorithm, spec)
    if "types" in always and whole(spec.in_dtype) and algorithm.accuracy != "componentwise":
        return [], "its roundings may change whole numbers"
    found, reason = _ways(algorithm, spec, always)
    if not found and not _has_both(algorithm):
        steps = ("double", "slices") if algorithm.accuracy == "componentwise" else ("double",)
        other = (_ways(algorithm, spec, (*always, "epilogue", step))[0] for step in steps)
        found = next(filter(None, other), [])
    return found, reason


def _has_both(algorithm: Algorithm) -> bool:
    """Whether float32 and float64 are among its types for certain."""
    named = algorithm.support is not None and {*PLAIN_TYPES} <= {*algorithm.support.dtypes}
    return named or algorithm.family == "peer"


def _ways(algorithm: Algorithm, spec: ConvSpec, always: tuple[str, ...]) -> tuple[list[tuple[str, ...]], str]:
    """Ways that have ``always`` in them, or why there are none."""
    peer, reason = algorithm.family == "peer", ""
    found: list[tuple[str, ...]] = []
    support = algorithm.support
    for turn in TURNS[spec.direction]:
        if (found and turn != ("shuffle",)) or (peer and turn):
            continue
        try:
            base = tree(spec, ordered((*always, *turn)))
        except SpecError as error:  # beyond any machine
            reason = str(error)
            continue
        if turn and (base.lowered is None or any(leaf.direction != "forward" for leaf in base.leaves)):
            continue
        if base.crops:
            reason = reason or "a peer is not given a cropped picture"
            continue
        if algorithm.runtime == "torch" and algorithm.device == "cuda" and _changes(base):
            reason = "its tensors on the GPU cannot be put together or changed here"
            continue
        if algorithm.accuracy in LOCAL and base.spreads:
            continue
        refused = _refused(algorithm, base)
        if not base.leaves and algorithm.accuracy == "lowrank":
            refused = "there is nothing to separate"
        if refused is None:
            found.append(ordered((*always, *turn)))
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
                          if _fits(algorithm, spec, names := ordered((*always, *turn, "epilogue", *some)))),
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


def _changes(node: Node) -> bool:
    """Whether results of leaves are put together, or changed where they lie."""
    return any(
        lowered.combine is not None or lowered.finish is not None
        or any(part.place is not None for part in lowered.parts)
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
