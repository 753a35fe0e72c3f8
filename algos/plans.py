"""A convolution prepared for many calls: ``plan``."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy as np

from algos import auto, registry
from algos.arrays import is_device_array
from algos.contract import LAYOUTS, PLAIN_TYPES, Algorithm
from algos.door import OWN_STATE, Door, apart, checked_bias, regular
from algos.dtypes import real, whole
from algos.engine.outer import MOST_FOUND, numerical_rank
from algos.engine.threads import Threads, checked_threads
from algos.grammar import shown
from algos.lower.search import chain
from algos.spec import ConvSpec

# Looking costs 0.1 ms for 31 x 31 taps: rank is looked for unasked in so few kernels only
DETECTED_KERNELS = 4


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
    spec: ConvSpec | str, w: Any = None, algorithm: str = "auto", threads: Threads = None,
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
    spec: ConvSpec | str, w: Any, algorithm: str, threads: Threads, bias: Any, activation: str | None,
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
        return prepared(spec, None, resolve(spec, algorithm, threads, None, layout), threads, layout="nchw")
    if w is None:
        raise ValueError(f"w is missing: pass weights of shape {spec.weight_shape}")
    # A plan keeps its weights, whatever becomes of the caller's array.
    w = regular("w", w, spec.weight_shape, spec.w_dtype, None).copy(order="C")
    ranked = _ranked(spec, w)
    _tune(ranked, w, algorithm, threads, bias, layout, tune)
    chosen = resolve(ranked, algorithm, threads, w, layout)
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


def resolve(spec: ConvSpec, name: str, threads: int, operand: Any, layout: str) -> Algorithm:
    """The algorithm of that name, or the picked one, sure to run ``spec`` here."""
    if isinstance(name, str) and name == "auto":
        device = "cuda" if is_device_array(operand) else "cpu"
        return registry.get(auto.pick(spec, threads=threads, device=device, layout=layout).algorithm)
    chosen = registry.get(name)
    if reason := chosen.unavailable():
        raise ValueError(f"{name} is unavailable: {reason}")
    return chosen


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
