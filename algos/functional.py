"""The convolution calls: ``conv1d``, ``conv2d``, ``conv3d`` in torch's argument
order, and ``plan`` for many calls.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from algos import auto, registry
from algos.arrays import is_device_array, layout_of
from algos.choice import pays_off
from algos.contract import LAYOUTS, PLAIN_TYPES, Algorithm
from algos.door import OWN_STATE, Door, apart, as_array, overlaps, regular
from algos.dtypes import promoted, real, whole
from algos.engine.outer import MOST_FOUND, numerical_rank
from algos.engine.threads import checked_threads
from algos.grammar import shown
from algos.host import usable_cores
from algos.lower.chain import chain
from algos.spec import ConvSpec, Padding

# Looking costs 0.1 ms for 31 x 31 taps: rank is looked for unasked in so few kernels only
DETECTED_KERNELS = 4
MEMO_SIZE = 4096
PLAIN = frozenset((int, str, type(None)))  # of these, equal options are the same

Ints = int | Sequence[int]


class Plan:
    """An algorithm prepared for one spec, one set of weights and a number of threads; a callable.

    ``plan(x)`` forward, ``plan(grad)`` for input_gradient, ``plan(x, grad)`` for weight_gradient, each with
    ``out=None``. NumPy arrays in, NumPy array out; device arrays in, device array out. It serves one call at
    a time, under a lock; a call from within a call of the same thread, as from a signal handler, is a
    RuntimeError. Copies and pickles hold the spec, the weights, the algorithm's name and the number of
    threads, and are prepared anew.

    Attributes
    ----------
    spec : ConvSpec
        The caller's.
    algorithm : str
        The name that was chosen.
    workspace_bytes : int
        Predicted: held since prepare plus the peak of a run, without operands and result.
    """

    def __init__(self, door: Door, weights: Any, bias: Any = None) -> None:
        self.spec, self.algorithm, self.threads = (
            door.spec,
            registry.variant_name(door.algorithm),
            door.threads,
        )
        self.workspace_bytes = door.chain.workspace_bytes(door.threads) if door.spec.batch else 0
        self._door, self._weights, self._bias = door, weights, bias
        self._lock, self._busy, self._apart = threading.RLock(), False, OWN_STATE.copy().run
        self._run = door.prepare(weights, bias)
        door.chain.compiled_now()
        _plans.add(self)

    def __call__(self, *operands: Any, out: Any = None) -> Any:
        with self._lock:  # knows its thread, so that a call from within a call comes as far as the next line
            if self._busy:
                raise RuntimeError(
                    f"the plan of {self.spec} is in a call of this thread already: use another plan here"
                )
            try:
                self._busy = True
                return self._apart(self._door.call, self._run, operands, out)
            finally:
                self._busy = False

    def unchecked(self, *operands: Any, out: Any) -> None:
        """The same, some 5 us faster, for arrays of the spec's shapes and types in C order on the host, apart
        from each other, and for who sees to it that no two calls meet.
        """
        self._apart(self._run, *operands, out=out)

    def __repr__(self) -> str:
        words = self._door.chain.words
        way = f"{self.algorithm} via {words}" if words else self.algorithm
        return f"<plan of {self.spec} by {way}, {self.threads} thread{'s' if self.threads > 1 else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        w = self._door.algorithm.to_host(self._weights) if is_device_array(self._weights) else self._weights
        bias = None if self._bias is None else self._bias.reshape(-1)
        return plan, (str(self.spec), w, self.algorithm, self.threads, bias, None, self._door.layout)


_plans: weakref.WeakSet[Plan] = weakref.WeakSet()


def _release() -> None:
    """In a forked child nobody ends the calls of other threads: they stayed behind."""
    for one in list(_plans):
        if one._lock.acquire(blocking=False):
            one._lock.release()
        else:
            one._lock, one._busy, one._apart = threading.RLock(), False, OWN_STATE.copy().run


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release)


def plan(
    spec: ConvSpec | str, w: Any = None, algorithm: str = "auto", threads: int | None = None,
    bias: Any = None, activation: str | None = None, layout: str = "nchw",
    tune: str | float | None = None,
) -> Plan:  # fmt: skip
    """Prepare ``spec`` with weights ``w`` for many calls.

    Parameters
    ----------
    spec : ConvSpec or str
        The problem, or its text.
    w : array of ``spec.weight_shape`` and ``spec.w_dtype``; None for weight_gradient
    algorithm : str
        A name, or "auto" for the fastest one expected over many calls.
    threads : int, optional
        The usable cores when left out.
    bias : array (O,), optional
        Of ``spec.out_dtype``: one number for each output channel, which makes the spec's ``bias`` True.
    activation : str, optional
        In place of the spec's: none, relu, relu6, sigmoid or silu.
    layout : {"nchw", "nhwc"}
        How the channels of the arrays lie: "nhwc" where those of a pixel lie together, as in torch's
        channels_last. Results lie the same way; shapes stay (N, C, *size). An algorithm of the other layout
        copies on the way in and out, which the choice counts.
    tune : str or float, optional
        Like "50ms", or seconds: of "auto", so long those take turns that estimates cannot tell apart, unless
        that was done before; the machine remembers.

    Raises
    ------
    ValueError
        For operands that don't fit the spec, weights that break its rank, or an algorithm that cannot solve
        it.
    """
    return apart(_plan, spec, w, algorithm, threads, bias, activation, layout, tune)


def _plan(
    spec: ConvSpec | str, w: Any, algorithm: str, threads: int | None, bias: Any, activation: str | None,
    layout: str, tune: str | float | None,
) -> Plan:  # fmt: skip
    spec = ConvSpec.of(spec)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {shown(layout)}: use 'nchw' or 'nhwc'")
    if activation is not None or (bias is not None and not spec.bias):
        named = spec.activation if activation is None else activation
        spec = spec.with_(bias=bias is not None or spec.bias, activation=named)
    threads = checked_threads(threads)
    if spec.direction == "weight_gradient":
        if w is not None:
            raise ValueError("a weight_gradient plan takes no weights: pass w=None")
        _tune(spec, None, algorithm, threads, None, layout, tune)
        return prepared(spec, None, _resolve(spec, algorithm, threads, None, layout), threads, layout="nchw")
    if w is None:
        raise ValueError(f"w is missing: pass weights of shape {spec.weight_shape}")
    # A plan keeps its weights, whatever becomes of the caller's array.
    w = regular("w", w, spec.weight_shape, spec.w_dtype, None).copy(order="C")
    ranked = _ranked(spec, w)
    _tune(ranked, w, algorithm, threads, bias, layout, tune)
    chosen = _resolve(ranked, algorithm, threads, w, layout)
    return prepared(spec, w, chosen, threads, ranked, bias, layout)


def _tune(
    spec: ConvSpec, w: Any, algorithm: str, threads: int, bias: Any, layout: str, budget: str | float | None
) -> None:
    """Let those that estimates cannot tell apart take turns, where the caller has the time."""
    if budget is not None:
        from algos.tune import span_s, tune

        span_s(budget)
        if algorithm == "auto" and not is_device_array(w):
            tune(spec, budget, prepared, w, bias, threads=threads, layout=layout)


def prepared(
    spec: ConvSpec, w: Any, algorithm: Algorithm, threads: int, ranked: ConvSpec | None = None,
    bias: Any = None, layout: str | None = None,
) -> Plan:  # fmt: skip
    """A plan of that very algorithm, registered or not; ``ranked`` is ``spec`` with the rank that w is known
    to keep.
    """
    if w is not None:
        w = regular("w", w, spec.weight_shape, spec.w_dtype, None)
    if spec.bias:
        if bias is None:
            raise ValueError(f"bias is missing: pass {spec.out_channels} numbers, one per output channel")
        bias = checked_bias(bias, spec.out_channels, spec.out_dtype, spec.ndim)
    return apart(Plan, Door(spec, chain(algorithm, ranked or spec, threads), threads, layout), w, bias)


def _resolve(spec: ConvSpec, name: str, threads: int, operand: Any, layout: str) -> Algorithm:
    """The algorithm of that name, or the picked one, sure to run ``spec`` here."""
    if isinstance(name, str) and name == "auto":
        device = "cuda" if is_device_array(operand) else "cpu"
        return registry.get(auto.pick(spec, threads=threads, device=device, layout=layout).algorithm)
    chosen = registry.get(name)
    if reason := chosen.unavailable():
        raise ValueError(f"{name} is unavailable: {reason}")
    return chosen


# ---- calls in the style of torch.nn.functional -------------------------------------------------------------


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
    threads: int | None = None,
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
    threads: int | None = None,
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
    threads : int, optional
        The usable cores when left out.
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
    threads: int | None = None,
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
    threads: int | None,
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
    threads: int | None,
    operand: Any,
) -> Door:
    """What calls with equal options share: the spec that ``make`` gives and the
    choice for calls that prepare each time.
    """
    known: tuple | None
    layout = layout_of(operand)
    try:
        cores = usable_cores() if threads is None else threads
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
        chosen = _resolve(spec, algorithm, threads, operand, layout)
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


def checked_bias(bias: Any, channels: int, dtype: np.dtype, ndim: int) -> Any:
    """One number for each channel of the result, as it is added to it."""
    bias = as_array("bias", bias)
    if bias.shape != (channels,):
        raise ValueError(
            f"bias has shape {bias.shape}: it must be ({channels},), one number per output channel"
        )
    if not (np.can_cast(bias.dtype, dtype, "same_kind") or (whole(bias.dtype) and whole(dtype))):
        raise ValueError(f"bias is {bias.dtype}, the result {dtype}: convert bias to {dtype} first")
    held = bias.astype(dtype)
    if (held != bias if whole(dtype) else np.isinf(held) & ~np.isinf(bias)).any():
        raise ValueError(
            f"bias goes beyond {dtype}, the type of the result: use smaller numbers or a wider type"
        )
    return held.reshape(-1, *(1,) * ndim)


# ---- rank --------------------------------------------------------------------------------------------------


def _ranked(spec: ConvSpec, w: Any) -> ConvSpec:
    """``spec`` with the rank that ``w`` keeps: verified when promised, looked for, tap
    by tap, when there are few kernels.
    """
    if spec.ndim != 2 or is_device_array(w):
        return spec
    if spec.rank is not None:
        found = _kept(spec, w)
        if found > spec.rank:
            raise ValueError(
                f"the weights have rank {found}, the spec promises {spec.rank}: leave rank out or use "
                f"rank{found}"
            )
        return spec
    if spec.dtype not in PLAIN_TYPES:
        return spec
    full = min(spec.kernel)
    if spec.out_channels * (spec.in_channels // spec.groups) > DETECTED_KERNELS or full < 2:
        return spec
    found = numerical_rank(w, spec.in_dtype, min(MOST_FOUND, full - 1), each_tap=True)
    return spec.with_(rank=found) if found < full else spec


def _kept(spec: ConvSpec, w: Any) -> int:
    """The rank of weights of any type; products of complex ones are two each of real and of imaginary parts.
    """
    if spec.in_dtype.kind == "c":
        return -(-numerical_rank(np.concatenate([w.real, w.imag]), real(spec.in_dtype)) // 2)
    dtype = np.dtype(np.float64) if whole(spec.in_dtype) else spec.in_dtype
    return numerical_rank(w.astype(np.float64), dtype)
