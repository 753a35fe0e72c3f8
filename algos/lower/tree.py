"""A problem and what lowerings of given names make of it: a small tree, whose leaves an algorithm solves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from algos.held import held
from algos.lower.axes import axes, depth
from algos.lower.border import border
from algos.lower.direction import exchange, residues, shuffle, spaced
from algos.lower.epilogue import epilogue
from algos.lower.flip import flip
from algos.lower.geometry import crop, dilation, groups, padding, stride
from algos.lower.pairs import pairs, quads
from algos.lower.parts import Lowered
from algos.lower.slices import slices
from algos.lower.types import double, rounded, types
from algos.spec import ConvSpec

STEPS: dict[str, Callable[[ConvSpec], Lowered | None]] = {
    "rounded": rounded, "quads": quads, "pairs": pairs, "types": types, "double": double, "border": border,
    "flip": flip, "epilogue": epilogue, "residues": residues, "shuffle": shuffle, "spaced": spaced,
    "exchange": exchange, "crop": crop, "groups": groups, "stride": stride, "dilation": dilation,
    "padding": padding, "axes": axes, "depth": depth, "slices": slices,
}  # fmt: skip
CHAINS = 1 << 12


@dataclass(frozen=True)
class Node:
    """A problem, how it was lowered, by what name, and who follows; a leaf where it was not."""

    spec: ConvSpec
    lowered: Lowered | None = None
    children: tuple[Node, ...] = ()
    name: str = ""
    rest: tuple[str, ...] = ()

    @held
    def leaves(self) -> tuple[ConvSpec, ...]:
        """In the order in which they run."""
        return (
            tuple(leaf for child in self.children for leaf in child.leaves) if self.lowered else (self.spec,)
        )

    @held
    def distinct(self) -> tuple[ConvSpec, ...]:
        """The leaves, each once."""
        return self.leaves if len(self.leaves) == 1 else tuple(dict.fromkeys(self.leaves))

    @held
    def runs(self) -> int:
        """How often the leaves run for one result."""
        return max((lowered.runs for lowered, _ in self.steps()), default=1)

    @held
    def crops(self) -> bool:
        """Whether a leaf crops its picture."""
        return any(min(map(min, leaf.padding)) < 0 for leaf in self.leaves)

    @held
    def spreads(self) -> bool:
        """Whether a NaN may reach further than the definition lets it."""
        return any(lowered.spreads for lowered, _ in self.steps())

    @held
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


@lru_cache(CHAINS)
def ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    """As ``STEPS`` has them."""
    return tuple(name for name in STEPS if name in names)


def plain(spec: ConvSpec) -> ConvSpec:
    """The same problem without what most of its time does not depend on: border, flip, bias and activation.
    """
    node = tree(spec, ("border", "flip", "epilogue"))
    return node.leaves[0]
