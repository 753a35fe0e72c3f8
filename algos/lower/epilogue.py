"""A bias and an activation in a pass of their own, for algorithms that do not apply them as they write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from algos.lower.parts import Lowered, Part, count
from algos.spec import ConvSpec


def epilogue(spec: ConvSpec) -> Lowered | None:
    """The convolution alone, whose result is then changed in place."""
    named = ["bias"] * spec.bias + [spec.activation] * (spec.activation != "none")
    if not named:
        return None
    bare = spec.with_(bias=False, activation="none")
    words = f"{' and '.join(named)} in a pass of their own"
    return Lowered((Part(bare),), words, finish=partial(_finish, spec), finished=count(spec.output_shape))


def _finish(spec: ConvSpec, bias: Any, threads: int) -> Callable[[Any], None]:
    from algos.engine.epilogue import in_a_pass  # with the compiler, which importing the package does without

    return in_a_pass(spec, bias, threads)
