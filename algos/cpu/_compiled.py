"""The base of algorithms in compiled code: they say their work, and here it is compiled, shared and run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import Algorithm
from algos.dtypes import BFLOAT16
from algos.engine.blocks import in_2d
from algos.engine.epilogue import code_and_bias
from algos.engine.jit import compile_for
from algos.engine.memory import results_of
from algos.engine.relay import HELPERS, SPIN_S, helpers
from algos.spec import ConvSpec


class Work(NamedTuple):
    """A plan's work: ``kernel(x, y, *arguments, job)``, compiled, forks ``job`` into ranges of ``items``.

    Of a weight gradient it is ``kernel(x, grad, dw, *arguments, job)``.

    Attributes
    ----------
    kernel : function
        Of ``algos.engine.jit.compiled``.
    arguments : tuple
        What it takes between the result and the job: weights, tables and memory for each thread.
    items : int
        Equal parts of the work; none needs another.
    threads : int
        That are worth having; ``job`` gives slots from 0 to one less.
    seconds : float
        Of one thread, for all: helpers are woken for short work only where calls follow each other.
    as_2d : bool
        Whether the kernel takes signals as pictures of one row, and films as pictures whose channels are
        theirs times their depth.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    items: int
    threads: int
    seconds: float = math.inf
    as_2d: bool = False


@dataclass(frozen=True)
class Compiled(Algorithm):
    """An algorithm whose plans run one compiled function.

    Where its ``Support`` has epilogues, that applies to every output what ``after_of(job)`` says.

    Attributes
    ----------
    called : bool
        Whether it calls the code there; False where that is part of its own, and the bias is all it needs.
    """

    runtime: str = "numba"
    called: ClassVar[bool] = True

    def work(self, spec: ConvSpec, weights: Any, threads: int) -> Work:
        """What a run for ``spec`` does, with all that is prepared for it; weights are None for
        weight_gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} must say its work")

    def prepare(
        self, spec: ConvSpec, weights: np.ndarray | None, threads: int = 1, bias: np.ndarray | None = None
    ) -> Callable[..., np.ndarray]:
        kernel, arguments, items, threads, seconds, as_2d = self.work(spec, weights, threads)
        crew = helpers()
        job = crew.job(items, threads, *code_and_bias(spec, bias, self.called))
        hands, long = int(job[HELPERS]), seconds > SPIN_S
        fixed = (*arguments, job)
        operand = np.empty((1,) * (4 if as_2d else spec.ndim + 2), spec.in_dtype)
        widened = as_2d and spec.ndim != 2
        if spec.direction == "weight_gradient":
            compile_for(kernel, operand, operand, operand, *fixed)

            def run_gradient(x: np.ndarray, grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
                dw = np.empty(spec.weight_shape, spec.in_dtype) if out is None else out
                if hands:
                    crew.wake(hands, long)
                arrays = (x, grad, dw)
                kernel(*(map(in_2d, arrays) if widened else arrays), *fixed)
                return dw

            return run_gradient
        narrow = spec.result_dtype == BFLOAT16  # which compiled code takes as bits
        result = operand.astype(np.uint16 if narrow else spec.result_dtype, copy=False)
        compile_for(kernel, operand, result, *fixed)
        new_result = results_of(spec)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = new_result() if out is None else out
            if hands:
                crew.wake(hands, long)
            written = y.view(np.uint16) if narrow else y
            if widened:
                kernel(in_2d(x), in_2d(written), *fixed)
            else:
                kernel(x, written, *fixed)
            return y

        return run
