"""Which cases of a grid a plain run takes: so many that every two traits that meet
anywhere in it still meet in a test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations, count
from typing import Any

import pytest

from algos.contract import Algorithm
from algos.spec import ConvSpec

Trait = tuple[str, Hashable]  # what, which


def covering(
    cases: Sequence[Iterable[Hashable]], codes: Sequence[Hashable] = (), known: Iterable[Hashable] = ()
) -> set[int]:
    """Positions of cases that together hold everything that any of them holds: each time the one that adds
    most.

    ``codes`` tells what each case needs compiled, where it needs anything. Compiling takes longest, so that
    as few codes as will do are chosen first, and then among their cases; those that are ``known`` are
    compiled anyway.
    """
    free = {None, *known}
    if free.issuperset(codes):
        return _covering(cases)
    of_code: dict[Hashable, set[Hashable]] = defaultdict(set)
    for case, code in zip(cases, codes, strict=True):
        of_code[code].update(case)
    held = set().union(*(of_code.pop(code, ()) for code in free))
    compiled = list(of_code)
    free.update(compiled[i] for i in _covering([of_code[code] - held for code in compiled]))
    cheap = [i for i, code in enumerate(codes) if code in free]
    return {cheap[j] for j in _covering([cases[i] for i in cheap])}


def _covering(cases: Sequence[Iterable[Hashable]]) -> set[int]:
    number: dict[Hashable, int] = defaultdict(count().__next__)
    masks = [sum(1 << number[one] for one in set(case)) for case in cases]
    missing, chosen = (1 << len(number)) - 1, set()
    by_bound = defaultdict(list)  # by how much they added when last looked at; it never becomes more
    for i, mask in enumerate(masks):
        by_bound[mask.bit_count()].append(i)
    for bound in range(max(by_bound, default=0), 0, -1):
        for i in by_bound.pop(bound, ()):
            adds = (masks[i] & missing).bit_count()
            if adds == bound:
                chosen.add(i)
                missing &= ~masks[i]
            else:
                by_bound[adds].append(i)
    return chosen


def code_of(algorithm: Algorithm, spec: ConvSpec) -> Hashable:
    """What it has compiled for a problem; None where nothing is."""
    compiled = algorithm.runtime == "numba"
    return (type(algorithm).__module__, *algorithm.specialised(spec)) if compiled else None


def pairs(traits: Iterable[Trait]) -> list[tuple[Trait, Trait]]:
    return list(combinations(sorted(traits, key=repr), 2))


def covered(
    cases: Sequence[tuple[Any, ...]], traits: Sequence[Iterable[Trait]], codes: Sequence[Hashable] = ()
) -> list[Any]:
    """The cases as parameters of a test. Those without which all pairs of traits still
    meet run with ``--exhaustive`` only.
    """
    chosen = covering([pairs(each) for each in traits], codes)
    return [
        case if i in chosen else pytest.param(*case, marks=pytest.mark.exhaustive)
        for i, case in enumerate(cases)
    ]


def traits(spec: ConvSpec) -> set[Trait]:
    """What kind of problem it is: (what, which) of everything that algorithms treat apart."""
    before, after = zip(*spec.padding, strict=True)
    beyond = any(p >= e for pair, e in zip(spec.padding, spec.kernel_extent, strict=True) for p in pair)
    return {
        ("axes", spec.ndim),
        ("type", spec.dtype),
        ("mode", spec.padding_mode.partition(":")[0]),
        ("direction", spec.direction),
        ("order", "flipped" if spec.flip else "as it is"),
        ("batch", min(spec.batch, 2)),
        ("rank", spec.rank),
        ("kernel", _kind_of_kernel(spec)),
        ("sides", "even" if any(k % 2 == 0 for k in spec.kernel) else "odd"),
        ("stride", _per_axis(spec.stride, 1)),
        ("dilation", _per_axis(spec.dilation, 1)),
        ("padding", "beyond" if beyond else "uneven" if before != after else _per_axis(before, 0)),
        (
            "channels",
            (
                _few(spec.in_channels // spec.groups),
                _few(spec.out_channels // spec.groups),
                min(spec.groups, 2),
            ),
        ),
        ("row", _length(spec.output_size[-1])),
        ("column", _length(spec.output_size[0])),
    }


def _kind_of_kernel(spec: ConvSpec) -> str:
    if max(spec.kernel) == 1:
        return "point"
    if spec.kernel == spec.size:
        return "whole picture"
    if spec.ndim > 1 and min(spec.kernel) == 1:
        return "line"
    return "large" if max(spec.kernel) > 7 else "small"


def _per_axis(values: tuple[int, ...], usual: int) -> str:
    if set(values) == {usual}:
        return "usual"
    return "equal" if len(set(values)) == 1 else "unequal"


def _length(outputs: int) -> str:
    if outputs < 8:
        return "one" if outputs == 1 else "short"
    if outputs % 16 == 0:
        return "whole vectors"
    return "ragged" if outputs < 100 else "long" if outputs < 1000 else "longer than a block"


def _few(count: int) -> str:
    return "one" if count == 1 else "few" if count < 16 else "many" if count < 256 else "in pieces"
