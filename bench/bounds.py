"""How far a correct result may lie from the definition, element by element, for each class of accuracy.

u is the unit roundoff of the accumulator, B = |x| conv |w| and Q = sqrt(x^2 conv w^2) in the geometry of the
spec and in its direction, K the products in one result. componentwise and lowrank are proven bounds; normwise
and winograd are calibrated ones, which held with a margin of two on 10,872 checks. No algorithm supplies its
own bound.

Each part of a complex result sums 2 K real products, which are at most |x| |w| in pairs: both parts together
are off by sqrt(2) times the bound of such a sum. A bias adds a product and a rounding; an activation passes
on at most ``STEEPEST`` of an error and rounds a few times. Floats narrower than float32 are summed in float32
and rounded once, so that only the last rounding is of their own size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from algos.dtypes import BFLOAT16, limits, real
from algos.spec import ConvSpec
from bench.data import widened
from bench.oracle import border_value, copies
from bench.trial import Judgeable, Trial, UnjudgedError, absolute
from bench.winograd import key_of, winograd

LEFT_OVER = 72  # roundings of a tap by which weights may miss the rank that their spec promises
TAKEN_OVER = 4  # of them where one row and one column of taps, each rounded, stand for a kernel of rank 1
STEEPEST = {"none": 1.0, "relu": 1.0, "relu6": 1.0, "sigmoid": 0.25, "silu": 1.1}  # slopes of activations


def tolerance(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """E + u_out * |y| + K * tiny, float64 in the shape of ``trial.exact``; for float and complex types.

    Raises
    ------
    UnjudgedError
        When K * u >= 0.5, or for a class of accuracy that says nothing about this spec.
    """
    if trial.terms * trial.unit >= 0.5:
        raise UnjudgedError(f"{trial.terms} products in one result are too many for a bound in {trial.dtype}")
    key: tuple[Any, ...] = (algorithm.accuracy,)
    if algorithm.accuracy == "winograd":
        key += key_of(algorithm, trial.spec)
    if key not in trial.tolerances:  # algorithms of a class share it
        bound = math.sqrt(trial.parts) * _BOUNDS[algorithm.accuracy](trial, algorithm)
        if trial.spec.bias:
            bound = bound + _growth(trial) * trial.shift + trial.unit * np.abs(trial.sums).astype(np.float64)
        bound = STEEPEST[trial.spec.activation] * (1 + trial.out_unit) * bound + trial.rounding
        if real(trial.dtype) == np.float64 and not trial.precise:
            bound = bound + math.sqrt(trial.parts) * _growth(trial) * (trial.magnitude + trial.shift)
        trial.tolerances[key] = bound  # the definition in float64 rounds as well
    return trial.tolerances[key]


def _growth(trial: Trial) -> float:
    """g_K = K u / (1 - K u): whatever the order of the sum, with or without fused multiply-adds."""
    share = trial.terms * trial.unit
    return share / (1 - share)


def _componentwise(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    return _growth(trial) * trial.magnitude


def _rounded(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """Each factor of a product is off by v, the unit roundoff of bfloat16."""
    v = float(limits(BFLOAT16).eps) / 2
    return ((2 + v) * v + (1 + v) ** 2 * _growth(trial)) * trial.magnitude


def _lowrank(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """(sum of kernel sizes + 2 + rank * channels) * u * |x| conv F, plus what r products leave over, up to
    ``LEFT_OVER`` u F.

    F is |w| for one product and where the spec promises no rank, so that no tap may be lost beside larger
    ones; for more products it is the sum of their magnitudes, since they cancel. Which products they are is
    the algorithm's choice: rounded taps have a rank only up to their rounding, and others than these leave
    over more, within the same limit.
    """
    spec, w = trial.spec, trial.data.w
    if w is None or spec.ndim != 2:
        raise UnjudgedError("a low-rank bound needs 2-D weights")
    size, most = absolute(w), min(spec.kernel)
    rank = min(trial.parts * (spec.rank or most), most)  # of each part of a complex kernel
    steps = sum(spec.kernel) + 2 + rank * trial.inner_channels * trial.repeats
    if spec.rank is None:
        return steps * trial.unit * trial.magnitude
    parts = widened(w).reshape(1, *w.shape) if trial.parts == 1 else np.stack([w.real, w.imag])
    left, values, right = np.linalg.svd(widened(parts), full_matrices=False)
    left, right = left[..., :rank] * values[..., None, :rank], right[..., :rank, :]
    if rank > 1:
        size = np.maximum(size, (np.abs(left) @ np.abs(right)).sum(0))
    rounding = float(limits(w.dtype).eps) / 2  # of a tap, which a sum in a wider type does not hide
    over = LEFT_OVER * rounding * size
    if rank == 1:
        over = np.minimum(np.abs(parts - left @ right).sum(0), over)
        over = over + TAKEN_OVER * rounding * size if rounding > trial.unit else over
    return trial.evaluate(absolute, steps * trial.unit * size + over)


# ---- FFT ---------------------------------------------------------------------------------------------------


def _normwise(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """16 u (sqrt(L) sqrt(2 ln n) sqrt(sum norm(x_c)^2 norm(w_c)^2 / N) + (sqrt(L) + sqrt(C)) max|y|), L =
    log2 N.

    N is the padded full size whatever the tiling, n the results, C the planes summed. Norms and max|y| are
    those of one plane of the result, an output channel of an image: nothing else may show in it. At chosen
    points max|y| is an image's.
    """
    spec, data = trial.spec, trial.data
    n, groups = spec.batch, spec.groups
    i, o = spec.in_channels // groups, spec.out_channels // groups
    planes = {"x": (n, groups, i), "grad": (n, groups, o), "w": (groups, o, i)}
    norms = {name: _squares(spec, name, getattr(data, name)).reshape(shape) for name, shape in planes.items()
             if getattr(data, name) is not None}
    if spec.direction == "forward":
        energy = np.einsum("ngi,goi->ngo", norms["x"], norms["w"]).reshape(n, -1)
    elif spec.direction == "input_gradient":
        energy = np.einsum("ngo,goi->ngi", norms["grad"], norms["w"]).reshape(n, -1)
    else:
        energy = np.einsum("ngi,ngo->goi", norms["x"], norms["grad"]).reshape(-1, i)
    points = math.prod(p + e - 1 for p, e in zip(spec.padded_size, spec.kernel_extent, strict=True))
    levels = math.sqrt(max(math.log2(points), 1.0))
    deviation = (
        levels
        * math.sqrt(2 * math.log(max(math.prod(spec.result_shape), 2)))
        * np.sqrt(energy / points).astype(float)
    )
    size = np.abs(trial.sums).astype(np.float64)
    if trial.points is None:
        largest = size.max(tuple(range(2, size.ndim)), initial=0)
    else:
        largest = np.zeros((len(deviation), 1))
        np.maximum.at(largest[:, 0], trial.points[:, 0], size)
    bound = (
        16 * trial.unit * trial.repeats * (deviation + (levels + math.sqrt(trial.inner_channels)) * largest)
    )
    if trial.points is not None:
        return bound[tuple(trial.points.T[:2])]
    return np.broadcast_to(bound.reshape(*bound.shape, *(1,) * spec.ndim), spec.result_shape)


def _squares(spec: ConvSpec, name: str, a: np.ndarray) -> np.ndarray:
    """Squared norm of every plane (first axis, second axis); of x with its border, each
    element as often as it stands there.
    """
    # Wider than squares of the type
    total = np.square(np.abs(a).astype(np.longdouble if real(a.dtype) == np.float64 else np.float64))
    if name != "x":
        return total.sum(tuple(range(2, a.ndim)))
    for count in reversed(copies(spec)):
        total = total @ count
    return total + border_value(spec) ** 2 * (math.prod(spec.padded_size) - math.prod(spec.size))


_BOUNDS: dict[str, Callable[[Trial, Judgeable], np.ndarray]] = {
    "componentwise": _componentwise,
    "rounded": _rounded,
    "lowrank": _lowrank,
    "normwise": _normwise,
    "winograd": winograd,
}
