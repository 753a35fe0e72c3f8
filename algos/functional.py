"""The convolution calls in the style of ``torch.nn.functional``: ``conv1d``, ``conv2d``, ``conv3d``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from algos import auto, registry
from algos.arrays import is_device_array, layout_of
from algos.choice import pays_off
from algos.door import Door, apart, as_array, checked_bias, overlaps, regular
from algos.dtypes import promoted
from algos.engine.threads import Threads, checked_threads
from algos.host import usable_cores
from algos.lower.search import chain
from algos.plans import resolve
from algos.spec import ConvSpec, Padding

MEMO_SIZE = 4096
PLAIN = frozenset((int, str, type(None)))  # of these, equal options are the same

Ints = int | Sequence[int]


def conv1d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    threads: Threads = None,
    out: Any = None,
) -> Any:
    """Cross-correlation of x (N, C, L) or (C, L) with w (O, C / groups, K); see ``conv2d``."""
    return apart(
        _conv, 1, x, w, bias, stride, padding, dilation, groups, padding_mode, algorithm, threads, out
    )


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    threads: Threads = None,
    out: Any = None,
) -> Any:
    """Cross-correlation of x with w, in the argument order of ``torch.nn.functional.conv2d``.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
    w : array (O, C / groups, KH, KW)
        x and w are promoted by ``np.result_type``.
    bias : array (O,), optional
    stride, dilation : int or (int, int)
    padding : int, (int, int), ((before, after), (before, after)), "same", "same_lower", "valid" or "full"
    groups : int
    padding_mode : str
        zeros, reflect, replicate, circular, symmetric or ``constant:V``.
    algorithm : str
        A name from ``convbench list``, or "auto". The weights are prepared at every call: use ``plan`` to
        prepare once.
    threads : int or "auto", optional
        How many may be used, the usable cores when left out or "auto"; small work takes fewer.
    out : array (N, O, OH, OW) or (O, OH, OW), optional

    Returns
    -------
    array (N, O, OH, OW), or (O, OH, OW) when x has no batch axis

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(
        _conv, 2, x, w, bias, stride, padding, dilation, groups, padding_mode, algorithm, threads, out
    )


def conv3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    threads: Threads = None,
    out: Any = None,
) -> Any:
    """Cross-correlation of x (N, C, D, H, W) or (C, D, H, W) with w (O, C /
    groups, KD, KH, KW); see ``conv2d``.
    """
    return apart(
        _conv, 3, x, w, bias, stride, padding, dilation, groups, padding_mode, algorithm, threads, out
    )


# What a repeated call reuses: the spec and the choice, by everything that they depend on; never the weights.
_memo: dict[tuple, Door] = {}


def _conv(
    ndim: int,
    x: Any,
    w: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    mode: str,
    algorithm: str,
    threads: Threads,
    out: Any,
) -> Any:
    x, w = as_array("x", x), as_array("w", w)
    options = stride, padding, dilation, groups, mode
    biased = bias is not None
    arrays = ndim, x.shape, x.dtype, w.shape, w.dtype, biased
    door = door_of(arrays, options, lambda: _spec_of(ndim, x, w, biased, *options), algorithm, threads, x)
    spec = door.spec
    single, result = x.ndim == ndim + 1, out
    if single:
        x, out = x[None], batched(out, spec.output_shape)
    if biased:
        bias = checked_bias(bias, spec.out_channels, spec.out_dtype, ndim)
    y = once(door, w, (x,), out, bias)
    if result is not None:
        return result
    return y[0] if single else y


def door_of(
    arrays: tuple,
    options: tuple,
    make: Callable[[], ConvSpec],
    algorithm: str,
    threads: Threads,
    operand: Any,
) -> Door:
    """What calls with equal options share: the spec that ``make`` gives and the
    choice for calls that prepare each time.
    """
    known: tuple | None
    layout = layout_of(operand)
    try:
        cores = usable_cores() if threads is None or isinstance(threads, str) else threads
        options = (*options, algorithm, threads, cores, layout)
        known = arrays, options if PLAIN.issuperset(map(type, options)) else _exact(options)
        door = _memo.get(known)
    except (TypeError, RecursionError):  # no hash: the option is refused below, or is an odd kind of sequence
        known = door = None
    if door is not None:
        if door.faster is None or not door.faster.missed(door.saved_s):
            return door
        algorithm = registry.variant_name(door.faster.algorithm)
    door = _for_single_calls(make(), algorithm, checked_threads(threads), operand, layout)
    if len(_memo) >= MEMO_SIZE:
        _memo.clear()
    if known is not None:
        _memo[known] = door
    return door


def batched(out: Any, shape: tuple[int, ...]) -> Any:
    """``out`` without a batch axis, as the operands are, with one of length 1."""
    if not hasattr(out, "dtype"):  # None, or what the door refuses
        return out
    if tuple(out.shape) != shape[1:]:
        raise ValueError(f"out has shape {out.shape}: it must be {shape[1:]}, without a batch axis as x is")
    return out[None]


def once(door: Door, w: Any, operands: tuple[Any, ...], out: Any, bias: Any = None) -> Any:
    """One call that prepares: operands of the types that were promoted are brought to the spec's."""
    spec = door.spec
    dtype = spec.in_dtype  # that of all operands: sums of floats are of one type
    if operands[0].dtype != dtype or operands[-1].dtype != dtype:
        operands = tuple(a.astype(dtype) for a in operands)
    if w is not None:
        w = w if w.dtype == dtype else w.astype(dtype)
        if isinstance(out, np.ndarray) and overlaps(out, w):
            raise ValueError("out overlaps w: pass an array of its own")
        w = regular("w", w, spec.weight_shape, spec.w_dtype, door.algorithm)
    run = door.prepare(w, bias)
    if not door.prepared:
        door.prepared = True
        door.chain.compiled_now()
    return door.call(run, operands, out)


def _for_single_calls(spec: ConvSpec, algorithm: str, threads: int, operand: Any, layout: str) -> Door:
    """For calls that prepare each time: fastest with the code that is compiled,
    until compiling other code has paid off.
    """
    if spec.direction == "weight_gradient":  # whose result has no pixels
        layout = "nchw"
    if not isinstance(algorithm, str) or algorithm != "auto":
        chosen = resolve(spec, algorithm, threads, operand, layout)
        return Door(spec, chain(chosen, spec, threads), threads, layout)
    device = "cuda" if is_device_array(operand) else "cpu"
    choice = auto.pick(spec, threads=threads, calls=1, device=device, layout=layout)
    door = Door(spec, chain(registry.get(choice.algorithm), spec, threads), threads, layout)
    if later := pays_off(choice):
        door.faster, door.saved_s = chain(registry.get(later.algorithm), spec, threads), later.saved_s
    return door


def _spec_of(
    ndim: int, x: Any, w: Any, bias: bool, stride: Any, padding: Any, dilation: Any, groups: Any, mode: str
) -> ConvSpec:
    if w.ndim != ndim + 2:
        raise ValueError(
            f"w has {w.ndim} axes: a {ndim}-D convolution needs {ndim + 2}, (O, C / groups, *kernel)"
        )
    if x.ndim not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"x has {x.ndim} axes: a {ndim}-D convolution needs {ndim + 2}, (N, C, *size), or one less "
            "without N"
        )
    dtype = promoted(x.dtype, w.dtype)
    batch, (channels, *size) = (1 if x.ndim == ndim + 1 else x.shape[0]), x.shape[-ndim - 1 :]
    spec = ConvSpec(batch, channels, tuple(size), w.shape[0], w.shape[2:], stride, padding, dilation, groups,
                    dtype=dtype.name, padding_mode=mode, bias=bias)
    if w.shape[1] * spec.groups != channels:
        raise ValueError(
            f"w takes {w.shape[1]} channels a group, x has {channels} in {spec.groups} groups: they must "
            "agree"
        )
    return spec


def _exact(value: Any) -> Any:
    """What stands for an option in a key: True, 1 and 1.0 are equal and are not
    the same option; lists have no hash.
    """
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if isinstance(value, np.ndarray):
        return (kind, value.dtype, _exact(value.tolist()))
    return (kind, *map(_exact, value)) if kind in (list, tuple) else (kind, value)
