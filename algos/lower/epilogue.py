"""A bias and an activation in a pass of their own, for algorithms that do not apply them as they write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from algos.arrays import module_of
from algos.lower.parts import Lowered, Part
from algos.spec import ConvSpec


def epilogue(spec: ConvSpec) -> Lowered | None:
    """The convolution alone, whose result is then changed in place."""
    named = ["bias"] * spec.bias + [spec.activation] * (spec.activation != "none")
    if not named:
        return None
    bare = spec.with_(bias=False, activation="none")
    return Lowered(
        (Part(bare),), f"{' and '.join(named)} in a pass of their own", finish=partial(_finish, spec)
    )


def _finish(spec: ConvSpec, bias: Any) -> Callable[[Any], None]:
    def finish(y: Any) -> None:
        if bias is not None:
            y += bias
        activated(y, spec.activation)

    return finish


def activated(y: Any, activation: str) -> Any:
    """In place."""
    xp = module_of(y)
    if activation in ("relu", "relu6"):
        xp.maximum(y, 0, out=y)
    if activation == "relu6":
        xp.minimum(y, 6, out=y)
    if activation in ("sigmoid", "silu"):
        gate = xp.negative(y)
        xp.exp(gate, out=gate)
        gate += 1
        if activation == "sigmoid":
            xp.divide(1, gate, out=y)
        else:
            y /= gate
    return y
