"""Gradients and transposed convolution, in the names and argument orders of torch.

Each prepares and runs at every call, like ``conv2d``; ``algos.plan`` with ``input_gradient`` or
``weight_gradient`` in the spec prepares once. Arrays may lack the batch axis, both of a call or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.door import apart, as_array, checked_bias
from algos.dtypes import accumulator, promoted, whole
from algos.engine.casts import beyond
from algos.engine.threads import Threads
from algos.functional import Ints, batched, door_of, once
from algos.grammar import checked_ints, padding_pairs, per_axis, times
from algos.spec import ConvSpec, Padding, SpecError


def conv1d_input(input_size: Sequence[int], weight: Any, grad_output: Any, stride: Ints = 1,
                 padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                 algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv1d`` with respect to its input; see ``conv2d_input``."""
    return apart(_input, 1, input_size, weight, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv2d_input(input_size: Sequence[int], weight: Any, grad_output: Any, stride: Ints = 1,
                 padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                 algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv2d`` with respect to its input, in the argument order of
    ``torch.nn.grad.conv2d_input``.

    Parameters
    ----------
    input_size : (N, C, H, W) or (C, H, W)
        Shape of the input.
    weight : array (O, C / groups, KH, KW)
    grad_output : array (N, O, OH, OW) or (O, OH, OW)
        The gradient with respect to the result; promoted with ``weight`` by ``np.result_type``.
    stride, padding, dilation, groups, padding_mode, algorithm, threads
        As of ``conv2d``.
    out : array of ``input_size``, optional

    Returns
    -------
    array of ``input_size``

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(_input, 2, input_size, weight, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv3d_input(input_size: Sequence[int], weight: Any, grad_output: Any, stride: Ints = 1,
                 padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                 algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv3d`` with respect to its input; see ``conv2d_input``."""
    return apart(_input, 3, input_size, weight, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv1d_weight(input: Any, weight_size: Sequence[int], grad_output: Any, stride: Ints = 1,
                  padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                  algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv1d`` with respect to its weights; see ``conv2d_weight``."""
    return apart(_weight, 1, input, weight_size, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv2d_weight(input: Any, weight_size: Sequence[int], grad_output: Any, stride: Ints = 1,
                  padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                  algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv2d`` with respect to its weights, in the argument order of
    ``torch.nn.grad.conv2d_weight``.

    Parameters
    ----------
    input : array (N, C, H, W) or (C, H, W)
    weight_size : (O, C / groups, KH, KW)
        Shape of the weights.
    grad_output : array (N, O, OH, OW) or (O, OH, OW)
        The gradient with respect to the result; promoted with ``input`` by ``np.result_type``.
    stride, padding, dilation, groups, padding_mode, algorithm, threads
        As of ``conv2d``.
    out : array of ``weight_size``, optional

    Returns
    -------
    array of ``weight_size``

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(_weight, 2, input, weight_size, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv3d_weight(input: Any, weight_size: Sequence[int], grad_output: Any, stride: Ints = 1,
                  padding: Padding = 0, dilation: Ints = 1, groups: int = 1, *, padding_mode: str = "zeros",
                  algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """The gradient of ``conv3d`` with respect to its weights; see ``conv2d_weight``."""
    return apart(_weight, 3, input, weight_size, grad_output,
                 (stride, padding, dilation, groups, padding_mode), algorithm, threads, out)  # fmt: skip


def conv1d_bias(grad_output: Any) -> Any:
    """The gradient of ``conv1d`` with respect to its bias: sums over images and space; see ``conv2d_bias``.
    """
    return apart(_bias, 1, grad_output)


def conv2d_bias(grad_output: Any) -> Any:
    """The gradient of ``conv2d`` with respect to its bias.

    Parameters
    ----------
    grad_output : array (N, O, OH, OW) or (O, OH, OW)

    Returns
    -------
    array (O,)
        Sums over images and space, of the type of ``grad_output``.
    """
    return apart(_bias, 2, grad_output)


def conv3d_bias(grad_output: Any) -> Any:
    """The gradient of ``conv3d`` with respect to its bias: sums over images and space; see ``conv2d_bias``.
    """
    return apart(_bias, 3, grad_output)


def conv_transpose1d(x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0,
                     output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, *,
                     algorithm: str = "auto", threads: Threads = None, out: Any = None) -> Any:
    """Transposed convolution of x (N, C, L) with w (C, O / groups, K); see ``conv_transpose2d``."""
    return apart(_transpose, 1, x, w, bias, (stride, padding, output_padding, groups, dilation), algorithm,
                 threads, out)  # fmt: skip


def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    algorithm: str = "auto",
    threads: Threads = None,
    out: Any = None,
) -> Any:
    """Transposed convolution, in the argument order of ``torch.nn.functional.conv_transpose2d``.

    It is the gradient of a ``conv2d`` from the result's shape to that of x, with the same weights.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
    w : array (C, O / groups, KH, KW)
        x and w are promoted by ``np.result_type``.
    bias : array (O,), optional
    stride, dilation : int or (int, int)
    padding : int, (int, int), or ((before, after), (before, after))
        What the result lacks on either side of the full one.
    output_padding : int or (int, int)
        What it gains at the end, in torch less than stride or dilation; here any number of 0 or more: what no
        tap reaches holds the bias.
    groups : int
    algorithm, threads, out
        As of ``conv2d``.

    Returns
    -------
    array (N, O, OH, OW), or (O, OH, OW) when x has no batch axis
        OH = (H - 1) * stride - padding before and after + dilation * (KH - 1) + output_padding + 1.

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(
        _transpose,
        2,
        x,
        w,
        bias,
        (stride, padding, output_padding, groups, dilation),
        algorithm,
        threads,
        out,
    )


def conv_transpose3d(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    algorithm: str = "auto",
    threads: Threads = None,
    out: Any = None,
) -> Any:
    """Transposed convolution of x (N, C, D, H, W) with w (C, O / groups, KD, KH, KW); see
    ``conv_transpose2d``.
    """
    return apart(
        _transpose,
        3,
        x,
        w,
        bias,
        (stride, padding, output_padding, groups, dilation),
        algorithm,
        threads,
        out,
    )


# ---- what they share ---------------------------------------------------------------------------------------


def _input(
    ndim: int, size: Any, w: Any, grad: Any, options: tuple, algorithm: str, threads: Any, out: Any
) -> Any:
    size, w, grad = _shape("input_size", size), as_array("weight", w), as_array("grad_output", grad)
    arrays = "input", ndim, size, w.shape, w.dtype, grad.shape, grad.dtype
    make = lambda: _gradient("input_gradient", ndim, size, w.shape, grad, w.dtype, options)  # noqa: E731
    door = door_of(arrays, options, make, algorithm, threads, grad)
    single, result = grad.ndim == ndim + 1, out
    if single:
        grad, out = grad[None], batched(out, door.spec.input_shape)
    dx = once(door, w, (grad,), out)
    return result if result is not None else dx[0] if single else dx


def _weight(
    ndim: int, x: Any, size: Any, grad: Any, options: tuple, algorithm: str, threads: Any, out: Any
) -> Any:
    size, x, grad = _shape("weight_size", size), as_array("input", x), as_array("grad_output", grad)
    arrays = "weight", ndim, size, x.shape, x.dtype, grad.shape, grad.dtype
    make = lambda: _gradient("weight_gradient", ndim, x.shape, size, grad, x.dtype, options)  # noqa: E731
    door = door_of(arrays, options, make, algorithm, threads, x)
    if x.ndim == ndim + 1:
        x, grad = x[None], grad[None]
    return once(door, None, (x, grad), out)


def _gradient(direction: Any, ndim: int, x: tuple[int, ...], w: tuple[int, ...], grad: Any, dtype: np.dtype,
              options: tuple) -> ConvSpec:
    """The spec of a gradient of a call with operands of these shapes."""
    stride, padding, dilation, groups, mode = options
    if len(w) != ndim + 2:
        raise SpecError(
            f"the weights have {len(w)} axes: a {ndim}-D convolution needs {ndim + 2}, (O, C / groups, "
            "*kernel)"
        )
    if len(x) not in (ndim + 1, ndim + 2):
        raise SpecError(
            f"the input has {len(x)} axes: a {ndim}-D convolution needs {ndim + 2}, (N, C, *size), or one "
            "less"
        )
    batch = 1 if len(x) == ndim + 1 else x[0]
    spec = ConvSpec(batch, x[-ndim - 1], x[-ndim:], w[0], w[2:], stride, padding, dilation, groups,
                    dtype=promoted(dtype, grad.dtype).name, padding_mode=mode, direction=direction)
    if w[1] * spec.groups != spec.in_channels:
        raise SpecError(
            f"the weights take {w[1]} channels a group, the input has {spec.in_channels} in {spec.groups} "
            "groups: they must agree"
        )
    expected = spec.output_shape[1:] if len(x) == ndim + 1 else spec.output_shape
    if tuple(grad.shape) != expected:
        raise SpecError(f"grad_output has shape {grad.shape}: the result of that convolution has {expected}")
    return spec


def _shape(name: str, given: Any) -> tuple[int, ...]:
    if getattr(given, "ndim", 1) != 1:
        raise SpecError(f"{name} is an array of {given.ndim} axes: pass its shape")
    return checked_ints(name, tuple(given) if isinstance(given, Sequence) else given)


def _bias(ndim: int, grad: Any) -> Any:
    grad = as_array("grad_output", grad)
    if grad.ndim not in (ndim + 1, ndim + 2):
        advice = f"a {ndim}-D convolution gives {ndim + 2}, (N, O, *size), or one less without N"
        raise ValueError(f"grad_output has {grad.ndim} axes: {advice}")
    axes = tuple(a for a in range(grad.ndim) if a != grad.ndim - ndim - 1)
    dtype = grad.dtype.newbyteorder("=")
    if not whole(dtype):
        return grad.sum(axes, dtype=accumulator(dtype)).astype(dtype)
    half = 1 << 32  # NumPy sums in 64 bits, which hold the sums of either half of 64
    parts = ((grad // half, half), (grad % half, 1)) if dtype.itemsize == 8 else ((grad, 1),)
    sums = [sum(int(s) * unit for s, (_, unit) in zip(each, parts, strict=True))
            for each in zip(*(part.sum(axes) for part, _ in parts), strict=True)]  # fmt: skip
    info = np.iinfo(dtype)
    for total in sums:
        if not info.min <= total <= info.max:
            raise OverflowError(beyond(total, dtype))
    return np.array(sums, dtype)


def _transpose(
    ndim: int, x: Any, w: Any, bias: Any, options: tuple, algorithm: str, threads: Any, out: Any
) -> Any:
    x, w = as_array("x", x), as_array("w", w)
    dtype = promoted(x.dtype, w.dtype)
    if dtype.kind == "c":  # the gradient conjugates, the transposed convolution does not
        w = w.conj()
    if bias is not None and accumulator(dtype) != dtype:  # rounded once, with its bias
        wide = _transpose(ndim, x.astype(np.float32), w, bias, options, algorithm, threads, None)
        return _stored(wide.astype(dtype), out)
    arrays = "transpose", ndim, x.shape, x.dtype, w.shape, w.dtype
    door = door_of(arrays, options, lambda: _transposed(ndim, x, w, options), algorithm, threads, x)
    spec = door.spec
    single, result = x.ndim == ndim + 1, out
    if single:
        x, out = x[None], batched(out, spec.input_shape)
    if bias is not None:
        bias = checked_bias(bias, spec.in_channels, spec.in_dtype, ndim)
    y = once(door, w, (x,), out)
    if bias is not None:
        _add(y, bias)
    return result if result is not None else y[0] if single else y


def _stored(y: Any, out: Any) -> Any:
    if out is None:
        return y
    if not isinstance(out, np.ndarray) or out.shape != y.shape or out.dtype != y.dtype:
        raise ValueError(f"out must be an array of {y.dtype} {y.shape}")
    out[...] = y
    return out


def _add(y: Any, bias: Any) -> None:
    """y += bias, where whole numbers must not wrap."""
    if whole(y.dtype) and y.size:
        info = np.iinfo(y.dtype)
        for channel, extra in zip(np.moveaxis(y, 1, 0), bias.reshape(-1), strict=True):
            for end in (int(channel.min()) + int(extra), int(channel.max()) + int(extra)):
                if not info.min <= end <= info.max:
                    raise OverflowError(beyond(end, y.dtype))
    y += bias


def _transposed(ndim: int, x: Any, w: Any, options: tuple) -> ConvSpec:
    """The convolution whose gradient it is: from the transposed one's result to x."""
    if w.ndim != ndim + 2:
        raise SpecError(
            f"w has {w.ndim} axes: a transposed {ndim}-D convolution needs {ndim + 2}, (C, O / groups, "
            "*kernel)"
        )
    if x.ndim not in (ndim + 1, ndim + 2):
        raise SpecError(
            f"x has {x.ndim} axes: a {ndim}-D convolution needs {ndim + 2}, (N, C, *size), or one less "
            "without N"
        )
    steps, padding, more, groups, gaps = options
    if isinstance(padding, str):
        raise SpecError(f"padding {padding!r} names no transposed convolution: give numbers")
    pairs, more = padding_pairs(padding, ndim), per_axis("output_padding", more, ndim)
    if min(more) < 0:
        raise SpecError(f"output_padding is {times(more)}: it must be 0 or more")
    steps, gaps = per_axis("stride", steps, ndim), per_axis("dilation", gaps, ndim)
    size = tuple(
        (n - 1) * s - sum(pair) + d * (k - 1) + extra + 1
        for n, k, s, d, pair, extra in zip(
            x.shape[-ndim:], w.shape[2:], steps, gaps, pairs, more, strict=True
        )
    )
    if min(size) < 1:
        raise SpecError(f"the result would have size {times(size)}: use less padding")
    number = per_axis("groups", groups, 1)[0]
    if number > 0 and w.shape[0] % number:
        raise SpecError(f"w takes {w.shape[0]} channels, which are not divisible by groups {number}")
    spec = ConvSpec(
        1 if x.ndim == ndim + 1 else x.shape[0], w.shape[1] * number, size,
        w.shape[0], w.shape[2:], steps,
        tuple((b, a - extra) for (b, a), extra in zip(pairs, more, strict=True)),
        gaps, groups, dtype=promoted(x.dtype, w.dtype).name, direction="input_gradient",
    )  # fmt: skip
    if x.shape[-ndim - 1] != w.shape[0]:
        raise SpecError(f"x has {x.shape[-ndim - 1]} channels and w takes {w.shape[0]}: they must agree")
    return spec
