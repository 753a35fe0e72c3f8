"""True convolution as correlation with weights that are turned in space; for
the weights' gradient the result is.
"""

from __future__ import annotations

from algos.lower.parts import Lowered, Part, turned
from algos.spec import ConvSpec


def flip(spec: ConvSpec) -> Lowered | None:
    if not spec.flip:
        return None
    part = spec.with_(flip=False)
    if spec.direction != "weight_gradient":
        return Lowered((Part(part, weights=lambda w: turned(w).copy(), made=True),))

    def place(dw: object, result: object) -> None:
        dw[...] = turned(result)  # type: ignore[index]

    return Lowered((Part(part, place=place),), "turned")
