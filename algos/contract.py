"""What an algorithm promises: the contract that every implementation, ours or a peer's, stands behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from algos.dtypes import BFLOAT16, BRAINS
from algos.host import caches
from algos.spec import ConvSpec

FAMILIES = ("direct", "gemm", "fft", "separable", "winograd", "toeplitz", "peer", "auto")
LAYOUTS = ("nchw", "nhwc")
ACCURACIES = ("componentwise", "normwise", "lowrank", "winograd", "rounded")
BYTES_PER_S, CACHED_BYTES_PER_S = 2e10, 6e10  # from memory, and from the last cache where everything fits it
CALL_S = 1.5e-6  # one NumPy call on small arrays
DEVICE_CALL_S = 2.5e-5  # one of CuPy, which hides kernels that take less
PLAIN_TYPES = ("float32", "float64")  # about which every algorithm is asked
PREPARE_S, PREPARE_BYTES_PER_S = 30e-6, 2e9


RELAID_BYTES_PER_S = 4e9  # from one memory order into the other, read and written


def relaid_s(spec: ConvSpec, algorithm: Algorithm, layout: str) -> float:
    """What a call takes to copy arrays that lie as ``layout`` says into the algorithm's order, and back."""
    if algorithm.layout == layout:
        return 0.0
    x, y = (math.prod(shape) * dtype.itemsize
            for shape, dtype in ((spec.input_shape, spec.in_dtype), (spec.output_shape, spec.out_dtype)))
    return 2 * CALL_S + (x + y) / RELAID_BYTES_PER_S


def modelled_prepare_s(workspace_bytes: int) -> float:
    """What preparing takes, before anything was measured."""
    return PREPARE_S + workspace_bytes / PREPARE_BYTES_PER_S


@dataclass(frozen=True)
class Cost:
    """What one run does, for the picker's model before anything was measured.

    Attributes
    ----------
    operations : float
        Floating-point operations that the method really performs.
    bytes : float
        Memory traffic of a run, x, w and y included.
    calls : float
        Python-level library calls; each costs a fixed overhead.
    flops_per_s : float
        Operations per second that one thread of this method typically reaches.
    parallel : bool
        Whether the operations are shared over the plan's threads.
    bytes_per_s : float or None
        Pace of that traffic; None is the host's, cached where it is at most half as much as the last cache
        holds.
    """

    operations: float
    bytes: float
    calls: float = 1.0
    flops_per_s: float = 1e9
    parallel: bool = True
    bytes_per_s: float | None = None

    @property
    def moving_s(self) -> float:
        """Of the memory traffic alone."""
        pace = self.bytes_per_s or (CACHED_BYTES_PER_S if self.bytes <= caches()["L3"] // 2 else BYTES_PER_S)
        return self.bytes / pace

    def seconds(self, threads: int = 1) -> float:
        """The model: the slower of arithmetic and memory, plus the overhead of the calls."""
        arithmetic = self.operations / (self.flops_per_s * (threads if self.parallel else 1))
        return max(arithmetic, self.moving_s) + self.calls * CALL_S


class Support(NamedTuple):
    """What an algorithm solves itself; all else is lowered to it where there is a way."""

    ndim: tuple[int, ...] = (2,)
    directions: tuple[str, ...] = ("forward",)
    dtypes: tuple[str, ...] = PLAIN_TYPES
    # ``prepare(spec, weights, threads, bias)`` applies the spec's bias, one number for each output channel or
    # None, and its activation
    epilogues: bool = False
    # ``prepare(spec, None, threads)`` of a forward pass returns ``run(x, w, out=None)``
    weights_as_operands: bool = False
    # ``prepare`` takes weights wherever their elements lie, and no contiguous array need be made of them
    strided_weights: bool = False

    def lacks(self, spec: ConvSpec) -> str | None:
        """Why ``spec`` is beyond it, or None."""
        if spec.direction not in self.directions:
            known = " and ".join("forward passes" if name == "forward" else name for name in self.directions)
            return f"computes {known}, not {spec.direction}"
        if spec.dtype not in self.dtypes:
            return f"computes {' and '.join(self.dtypes)}, not {spec.dtype}"
        if spec.ndim not in self.ndim:
            return f"computes {' and '.join(f'{n}-D' for n in self.ndim)}, not {spec.ndim}-D"
        return None


@dataclass(frozen=True)
class Algorithm:
    """One way to solve specs. Fields beyond the six of the base are tunables.

    Attributes
    ----------
    name : str
        Unique and stable: records are kept under it.
    family : str
        One of ``FAMILIES``.
    device : str
        "cpu" or "cuda": where operands and results live.
    runtime : str
        Whose thread pool it lives in: numpy, numba, torch, opencv or cupy. One worker process serves one
        runtime.
    layout : str
        "nchw" or "nhwc": memory order of x and y; their shapes stay N, C, ... The conversion is not timed.
    accuracy : str
        One of ``ACCURACIES``: which bound judges it. No algorithm supplies its own bound.
    operands : str
        The narrower type to which those of a float32 problem are rounded first; empty but for ``rounded()``.
    """

    name: str = ""
    family: str = ""
    device: str = "cpu"
    runtime: str = "numpy"
    layout: str = "nchw"
    accuracy: str = "componentwise"
    operands: str = ""
    support: ClassVar[Support | None] = None

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine (a real probe, never just an import), or None."""
        if self.runtime == "numba":
            from algos.engine.jit import disabled

            return disabled()
        return None

    def unsupported(self, spec: ConvSpec) -> str | None:
        """Why it cannot solve ``spec``, in words that stand in reports, or None.

        It is asked about canonical problems only: zeros around the picture, padding of 0 or more, weights
        that are not flipped, at least one image, float32 or float64, no bias and no activation, or what
        ``support`` names beyond that. What it refuses is lowered to what it does not, where
        there is a way (``algos/lower``).
        """
        if self.support is None:
            raise NotImplementedError(f"{type(self).__name__} must say what it supports")
        return self.support.lacks(spec) or self.beyond(spec)

    def beyond(self, spec: ConvSpec) -> str | None:
        """Why it cannot solve ``spec`` although it lies within ``support``, or None."""
        return None

    def unwise(self, spec: ConvSpec) -> str | None:
        """Why it should not be offered for the caller's ``spec`` although it could,
        or None: asked for by name it is run.
        """
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """Peak bytes of prepare and of a run with what prepare holds, without x, w
        and y; nothing is allocated to tell.
        """
        raise NotImplementedError(f"{type(self).__name__} must predict its workspace")

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        """All one-off work for one spec and one set of weights; returns what runs.

        The result is any callable: ``plan(x) -> y`` forward, ``plan(grad) -> dx`` for input_gradient and
        ``plan(x, grad) -> dw`` for weight_gradient (weights None), each with ``out=None``; where ``support``
        has ``weights_as_operands``, ``plan(x, w) -> y`` forward when weights are None. It returns a fresh
        array unless ``out`` is given and never changes an operand.
        """
        raise NotImplementedError(f"{type(self).__name__} must prepare a plan")

    def prepare_s(self, spec: ConvSpec, threads: int = 1) -> float:
        """The model's seconds of preparing, without compiling; the default is that of writing the workspace.
        """
        return modelled_prepare_s(self.workspace_bytes(spec, threads))

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        """The default counts the definition's operations and the bytes of workspace, written and read once.
        """
        return Cost(spec.flops, spec.min_bytes + 2 * self.workspace_bytes(spec, threads))

    def compile_s(self, spec: ConvSpec) -> float:
        """Seconds of one core that compiling a plan for ``spec`` takes; 0 for what compiles nothing.

        The picker counts them where calls are few, unless this machine keeps the code of
        ``specialised(spec)`` already.
        """
        return 1.5 if self.runtime == "numba" else 0.0

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        """What its machine code is made for: specs with equal answers share it."""
        return spec.dtype, spec.ndim

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        """Itself with other tunables that are worth a try on ``spec``;
        ``convbench run --tune`` measures them.
        """
        return []

    def variants(self, cut: Callable[[Self], Any], **choices: Iterable[Any]) -> list[Self]:
        """Itself with every combination of the tunables ``choices``; of those with an
        equal ``cut`` (of a spec) the first.
        """
        found: dict[Any, Self] = {cut(self): self}
        for values in product(*choices.values()):
            other = replace(self, **dict(zip(choices, values, strict=True)))
            found.setdefault(cut(other), other)
        return [other for other in found.values() if other is not self]

    def rounded(self) -> list[Self]:
        """Itself with operands rounded to a type in which it is faster: named, or picked where an error is
        granted that large.
        """
        if self.support is None or not {*BRAINS} <= {*self.support.dtypes}:
            return []
        return [replace(self, operands=BFLOAT16.name, accuracy="rounded")]

    def to_device(self, array: np.ndarray) -> Any:
        return array

    def to_host(self, array: Any) -> np.ndarray:
        return array

    def synchronize(self) -> None:
        """Wait for the device; the timer calls it before it stops."""

    def tunables(self) -> dict[str, Any]:
        """Fields beyond the base's, by name."""
        kind: Any = type(self)  # hashable, which mypy denies of the class of a frozen dataclass
        own = {name: getattr(self, name) for name in _tunable_names(kind)}
        return {**own, "operands": self.operands} if self.operands else own


@cache
def _tunable_names(kind: Any) -> tuple[str, ...]:
    base = {f.name for f in fields(Algorithm)}
    return tuple(f.name for f in fields(kind) if f.name not in base)


def said(question: Callable[..., object], *arguments: Any) -> str | None:
    """What ``unavailable``, ``unsupported`` or ``unwise`` answers.

    Raises
    ------
    TypeError
        For an answer that is neither words nor None.
    """
    answer = question(*arguments)
    if answer is not None and not (isinstance(answer, str) and answer):
        raise TypeError(
            f"{getattr(question, '__name__', question)} returned {answer!r}, neither a reason in words nor "
            "None"
        )
    return answer
