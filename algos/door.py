"""The door: user arrays are made regular here, once, before any algorithm sees them.

It checks shapes and types, and brings operands into native byte order, alignment and the algorithm's memory
order. All else that happens to a problem on its way is a lowering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from algos.arrays import is_device_array, module_of
from algos.contract import Algorithm
from algos.dtypes import BFLOAT16, TYPES, whole
from algos.engine.blas import blas_limit, blas_threads_set
from algos.engine.threads import warm_up
from algos.grammar import shown
from algos.spec import ConvSpec

if TYPE_CHECKING:
    from algos.lower.chain import Chain

MOST_WORK: Any = 10_000  # of the exact search for shared elements; harder cases count as shared

Run = Callable[..., Any]

# What NumPy does about floating-point errors is a context variable, which the caller may have set
OWN_STATE = Context()
OWN_STATE.run(np.seterr, all="ignore")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in a copy of ``OWN_STATE``; costs a tenth of a microsecond."""
    return OWN_STATE.copy().run(function, *arguments)


class Door:
    """What calls of one spec, one algorithm and a number of threads have in common; it holds no weights.

    Parameters
    ----------
    spec : ConvSpec
        The caller's.
    chain : Chain
        The algorithm, and how it comes to solve ``spec``, or the same with a promise of rank that the weights
        keep.
    threads : int
    layout : {"nchw", "nhwc"}, optional
        How the channels of results lie; as the algorithm's own where left out.

    Attributes
    ----------
    faster, saved_s : Chain or None, float
        What would save so much of each call if its code were compiled.
    prepared : bool
        Whether a call has prepared with it.
    """

    prepared = False
    faster: Chain | None = None
    saved_s = 0.0

    def __init__(self, spec: ConvSpec, chain: Chain, threads: int, layout: str | None = None) -> None:
        self.spec, self.chain, self.algorithm, self.threads = spec, chain, chain.algorithm, threads
        self.layout = layout or chain.algorithm.layout
        x, y = (spec.input_shape, spec.in_dtype), (spec.output_shape, spec.out_dtype)
        self._expected = {
            "forward": (("x", *x),),
            "input_gradient": (("grad", *y),),
            "weight_gradient": (("x", *x), ("grad", *y)),
        }[spec.direction]
        self._result = (spec.result_shape, spec.result_dtype)
        self._plain, self._ordered = self.algorithm.device == "cpu", self.layout == "nchw"

    def prepare(self, weights: Any, bias: Any = None) -> Run:
        """What the chain prepares for regular weights and bias, or what serves an empty batch."""
        if not self.spec.batch:
            return _empty_batch(self.spec)
        if self.algorithm.device != "cpu":
            return self.chain.prepare(weights, self.threads, bias)
        warm_up(self.threads)
        return partial(self._limited, self._limited(self.chain.prepare, weights, self.threads, bias))

    def _limited(self, function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
        """What it returns, with BLAS held to the plan's threads."""
        if blas_threads_set(self.threads):
            return function(*operands, **options)
        with blas_limit(self.threads):
            return function(*operands, **options)

    def call(self, run: Run, operands: Sequence[Any], out: Any) -> Any:
        """One call of what ``prepare`` returned, with the caller's arrays."""
        expected, algorithm = self._expected, self.algorithm
        if len(operands) != len(expected):
            names = ", ".join(name for name, _, _ in expected)
            raise ValueError(f"a plan of {self.spec} takes ({names}), not {len(operands)} arrays")
        arrays = [
            regular(name, a, shape, dtype, algorithm)
            for a, (name, shape, dtype) in zip(operands, expected, strict=True)
        ]
        if self._plain and out is None:
            y = run(*arrays)
            disordered = type(y) is np.ndarray and not (self._ordered and y.flags.c_contiguous)
            return in_layout(y, self.layout) if disordered else y
        host = algorithm.device == "cpu" or not is_device_array(operands[0])
        if out is not None:
            self._check_out(out, (*operands, *arrays), host)
        direct = out is not None and _writable_by(algorithm, out)
        result = run(*arrays, out=out) if direct else run(*arrays)
        if host and algorithm.device == "cuda":
            result = algorithm.to_host(result)
        if out is None or direct:
            return result
        out[...] = result
        return out

    def _check_out(self, out: Any, operands: Sequence[Any], host: bool) -> None:
        shape, dtype = self._result
        if not (isinstance(out, np.ndarray) if host else is_device_array(out)):
            raise ValueError(
                f"out is a {type(out).__name__}: it must be an array on the device of the operands"
            )
        if tuple(out.shape) != shape or out.dtype != dtype:
            raise ValueError(f"out is {out.dtype} {out.shape}: it must be {dtype} {shape}")
        if host:
            if not out.flags.writeable:
                raise ValueError("out is read-only: pass a writable array")
            if any(overlaps(out, operand) for operand in operands):
                raise ValueError("out overlaps an operand: pass an array of its own")


def as_array(name: str, array: Any) -> Any:
    """A base ndarray or a device array of numbers."""
    if type(array) is not np.ndarray and not is_device_array(array):
        array = _converted(name, array)
    dtype = array.dtype
    if dtype.newbyteorder("=").name not in TYPES:
        target = "np.float64" if dtype.itemsize > 8 else "np.float32"
        target = "np.complex128" if dtype.kind == "c" else target
        advice = NO_NUMBERS.get(dtype.kind, f"convert it first, with np.asarray({{0}}, {target})")
        if dtype.names:
            advice = f"pass one field, as {{0}}[{dtype.names[0]!r}]"
        raise ValueError(f"{name} has dtype {dtype}: {advice.format(name)}")
    return array


NO_NUMBERS = {  # kinds of dtype that a conversion to floats would harm
    "O": "make an array of numbers of its objects first, with np.array({0}, np.float64)",
    "U": "text is no number, use np.array({0}, np.float64)",
    "S": "text is no number, use np.array({0}, np.float64), or np.frombuffer({0}, np.uint8) for its bytes",
    "M": "dates are no numbers, use ({0} - start) / np.timedelta64(1, 's')",
    "m": "times are no numbers, use {0} / np.timedelta64(1, 's')",
}
OTHER_ARRAYS = {"toarray": "{0}.toarray()",
                "__cuda_array_interface__": "a copy of it on the host, or a CuPy array",
                "__dlpack__": "a copy of it on the host"}  # fmt: skip


def _converted(name: str, given: Any) -> np.ndarray:
    """What NumPy makes of another library's array, or of sequences in one another, where nothing is lost."""
    masked = f"{name} is a masked array: fill the mask first, with {name}.filled(value)"
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(masked)
    try:
        array = _shared(given) if hasattr(type(given), "__dlpack__") else np.asarray(given)
    except Exception as error:  # every library has its own
        said = " ".join(str(error).split())
        advice = _tensor_advice(given) or f"is not a regular array of numbers: {said[:200]}"
        raise ValueError(f"{name} {advice.replace('{0}', name)}") from None
    if array.dtype == object and not array.ndim:  # one object, in which NumPy found no numbers
        known = (advice for attribute, advice in OTHER_ARRAYS.items() if hasattr(type(given), attribute))
        raise ValueError(f"{name} is {shown(given)}: pass {next(known, 'an array of numbers').format(name)}")
    held = _kinds(given)
    if any(issubclass(kind, np.ma.MaskedArray) for kind in held):
        raise ValueError(masked)
    if array.dtype.kind == "f" and held and all(issubclass(kind, int | np.integer) for kind in held):
        raise ValueError(
            f"{name} holds whole numbers that no one integer type has: use smaller ones, or an array of "
            "floats"
        )
    return array


def _shared(given: Any) -> np.ndarray:
    """The memory of another library's array on the CPU."""
    if str(getattr(given, "dtype", "")) == "torch.bfloat16":  # which NumPy has under no name of torch's
        import torch

        if given.requires_grad and torch.is_grad_enabled():
            raise TypeError("it records gradients")  # as NumPy refuses the other types
        return given.detach().view(torch.int16).numpy().view(BFLOAT16)
    array = np.asarray(given)
    host = array.dtype == object and not array.ndim and given.__dlpack_device__()[0] == 1
    return np.from_dlpack(given) if host else array


def _kinds(given: Any) -> set[type]:
    """The types of what sequences in one another hold."""
    if not isinstance(given, list | tuple):
        return {type(given)}
    kinds = set(map(type, given))
    return (
        set().union(*map(_kinds, given)) if any(issubclass(kind, list | tuple) for kind in kinds) else kinds
    )


def _tensor_advice(given: Any) -> str:
    """What to do about a tensor of PyTorch's that is none of NumPy's; empty for anything else."""
    if not any(c.__module__.partition(".")[0] == "torch" for c in type(given).__mro__):
        return ""
    if given.is_meta:
        return "is a tensor without numbers, on 'meta': pass one that has them"
    if str(given.layout) != "torch.strided":
        return "is a sparse tensor: pass {0}.to_dense()"
    if given.device.type != "cpu":
        there = "cupy.from_dlpack({0}) or " if given.device.type == "cuda" else ""
        return f"is a tensor on {given.device}: pass {there}{{0}}.cpu()"
    if given.requires_grad:
        return "is a tensor that records gradients, which would be lost: pass {0}.detach()"
    if given.is_quantized:
        return "is a quantised tensor: pass {0}.dequantize()"
    if given.is_conj():
        return "is a lazily conjugated tensor: pass {0}.resolve_conj()"
    if given.is_neg():
        return "is a lazily negated tensor: pass {0}.resolve_neg()"
    return f"is a tensor of {given.dtype}: convert it first, with {{0}}.float()"


def regular(
    name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype, algorithm: Algorithm | None
) -> Any:
    """Exact shape and type, native byte order, aligned, in the algorithm's memory order and on its device."""
    on_cpu = algorithm is None or (algorithm.device == "cpu" and algorithm.layout == "nchw")
    if (
        on_cpu
        and type(array) is np.ndarray
        and array.shape == shape
        and array.dtype == dtype
        and array.flags.carray
    ):
        return array  # nothing to do: small work is not kept waiting
    array = as_array(name, array)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}: the spec needs {shape}")
    if array.dtype != dtype:
        if array.dtype.newbyteorder("=") != dtype:
            safe = np.can_cast(array.dtype, dtype, "safe" if whole(dtype) else "same_kind")
            module = "ml_dtypes" if dtype == BFLOAT16 else "np"
            advice = f"use {name}.astype({module}.{dtype.name})" if safe else "which would lose values"
            raise ValueError(f"{name} is {array.dtype}: the spec needs {dtype}, {advice}")
        array = array.astype(dtype)
    if is_device_array(array):
        if algorithm is not None and algorithm.device != "cuda":
            raise ValueError(f"{name} lives on the GPU and {algorithm.name} does not: pass a NumPy array")
        if algorithm is not None and algorithm.layout == "nhwc" and name != "w":
            xp = module_of(array)
            return xp.moveaxis(xp.ascontiguousarray(xp.moveaxis(array, 1, -1)), -1, 1)
        return array if array.flags.c_contiguous else array.copy(order="C")
    if algorithm is not None and algorithm.layout == "nhwc" and name != "w":
        array = in_layout(array, "nhwc")
    elif not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, None, ["C", "A"])
    if not array.flags.writeable:
        array = _writable_view(array)
    return algorithm.to_device(array) if algorithm is not None and algorithm.device == "cuda" else array


def in_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers and shape (N, C, ...) with memory ordered as ``layout`` says."""
    if layout == "nchw":
        return np.require(array, None, ["C", "A"])
    return np.moveaxis(np.require(np.moveaxis(array, 1, -1), None, ["C", "A"]), -1, 1)


class _Interface:
    """Carries an array's memory without its read-only flag."""

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.owner, self.__array_interface__ = array, {**interface, "data": (interface["data"][0], False)}


def _writable_view(array: np.ndarray) -> np.ndarray:
    """The same memory marked writable: compiled code and other libraries specialise
    on the flag; no operand is changed.
    """
    if array.dtype == BFLOAT16:  # whose name the interface does not know
        return np.asarray(_Interface(array.view(np.uint16))).view(BFLOAT16)
    return np.asarray(_Interface(array))


def _writable_by(algorithm: Algorithm, out: Any) -> bool:
    """Whether the algorithm can write the caller's array itself; otherwise the result is copied into it."""
    if algorithm.layout != "nchw":
        return False
    if algorithm.device == "cuda":
        return is_device_array(out) and out.flags.c_contiguous
    return type(out) is np.ndarray and out.flags.c_contiguous and out.flags.aligned


def overlaps(out: np.ndarray, operand: Any) -> bool:
    """Whether they share memory; taken for granted where finding out would take long."""
    if not isinstance(operand, np.ndarray):
        return False
    try:
        return np.shares_memory(out, operand, max_work=MOST_WORK)
    except np.exceptions.TooHardError:
        return True


def _empty_batch(spec: ConvSpec) -> Callable[..., Any]:
    """What runs for a batch of 0: an empty output, or a gradient of zeros."""

    def run(*operands: Any, out: Any = None) -> Any:
        if out is None:
            return np.zeros(spec.result_shape, spec.result_dtype)
        out[...] = 0
        return out

    return run


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
