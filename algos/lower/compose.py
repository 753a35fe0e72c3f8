"""What runs a tree of lowerings: moves of operands, the leaves, and how their results come together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from algos.arrays import is_device_array
from algos.contract import Algorithm
from algos.engine.kept import compiling_s
from algos.engine.memory import aligned
from algos.lower.parts import Lowered, Move, Part, contiguous
from algos.lower.tree import Node
from algos.spec import ConvSpec

Run = Callable[..., Any]
# A leaf, its weights, None where they come with each call, and its bias -> what runs
Solve = Callable[[ConvSpec, Any, Any], Run]


def prepare_native(algorithm: Algorithm, spec: ConvSpec, weights: Any, threads: int, bias: Any) -> Run:
    """An algorithm on a problem that it solves, its weights in memory as it takes them."""
    weights = there(algorithm, weights)
    if weights is not None and not (algorithm.support and algorithm.support.strided_weights):
        weights = contiguous(weights)
    if algorithm.support is None or not algorithm.support.epilogues:
        return algorithm.prepare(spec, weights, threads)
    return algorithm.prepare(spec, weights, threads, bias)  # type: ignore[call-arg]


def solve_leaf(algorithm: Algorithm, threads: int, spec: ConvSpec, weights: Any, bias: Any) -> Run:
    """``prepare_native``, or what prepares at each call where weights come with it."""
    if weights is not None or spec.direction == "weight_gradient" or takes_weights(algorithm):
        return prepare_native(algorithm, spec, weights, threads, bias)

    if algorithm.device == "cpu" and compiling_s(algorithm, spec):  # now, and not in the first call
        algorithm.prepare(spec, np.zeros(spec.weight_shape, spec.in_dtype), threads)

    def run(x: Any, w: Any, out: Any = None) -> Any:
        made = algorithm.prepare(spec, w, threads)
        return made(x) if out is None else made(x, out=out)

    return run


def takes_weights(algorithm: Algorithm) -> bool:
    """Whether weights may be an operand of its calls."""
    return algorithm.support is not None and algorithm.support.weights_as_operands


def there(algorithm: Algorithm, array: Any) -> Any:
    """Weights or a bias where the algorithm lives; None as it is."""
    apart = algorithm.device == "cuda" and array is not None and not is_device_array(array)
    return algorithm.to_device(array) if apart else array


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
            compose(child, None if weights is None or part.weights_last else part.weights(weights), solve,
                    _bias(part, weights, bias) if child.spec.bias else None, threads),
            part.placing(threads),
        )
        for part, child in zip(lowered.parts, node.children, strict=True)
    ]
    finish = lowered.finish(bias, threads) if lowered.finish is not None else None
    if len(runs) == 1 and runs[0][2] is None and lowered.combine is None:
        move, inside = runs[0][:2]
        outer, inner = node.spec.result_shape, lowered.parts[0].spec.result_shape
        if inner != outer:
            inside = _reshaping(inside, outer, inner)

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


def _reshaping(inside: Run, outer: tuple[int, ...], inner: tuple[int, ...]) -> Run:
    """``inside``, whose results are those in another shape."""

    def reshaping(*arrays: Any, out: Any = None) -> Any:
        if out is None:
            return inside(*arrays).reshape(outer)
        if out.flags.c_contiguous:
            inside(*arrays, out=out.reshape(inner))
        else:
            out[...] = inside(*arrays).reshape(outer)
        return out

    return reshaping


def _bias(part: Part, weights: Any, bias: Any) -> Any:
    return part.constant(weights) if part.constant is not None else part.bias(bias)


def _with_weights(part: Part, threads: int) -> Move:
    move = part.moving(threads)
    return lambda x, w: (*move(x), part.weights(w))
