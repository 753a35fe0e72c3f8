"""Layers against their definitions, against PyTorch, where it is installed, against differences of their
values, and at their edges.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest

import algos
from algos import layers

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

against_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
RNG = np.random.default_rng(15)


def normal(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    """Numbers no two of which lie so near that a difference's step swaps them, none near a corner."""
    count = int(np.prod(shape))
    values = np.linspace(-2.97, 2.96, max(count, 1))[:count]
    return RNG.permutation(values).reshape(shape).astype(dtype)


# ---- values, by definition ---------------------------------------------------------------------------------


def windows(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> list[range]:
    """From the padding's first place on; with ``ceil`` the last may run over the end, if it begins before it.
    """
    found = [range(-padding, kernel - padding)]
    while found[-1].stop < size + padding:
        start = found[-1].start + stride
        if start + kernel > size + padding and not (ceil and start < size):
            break
        found.append(range(start, start + kernel))
    return found


def pooled(x: np.ndarray, axes: list[list[range]], of: Callable[..., np.ndarray]) -> np.ndarray:
    """What ``of`` makes of the part of x inside each window."""
    y = np.empty((*x.shape[:2], *map(len, axes)))
    for at in np.ndindex(y.shape[2:]):
        inside = (slice(max(axis[i].start, 0), axis[i].stop) for axis, i in zip(axes, at, strict=True))
        y[(..., *at)] = of(x[(..., *inside)], axis=tuple(range(2, x.ndim)))
    return y


SHAPES = [(2, 1, 6), (1, 2, 7, 9), (2, 3, 8, 6), (1, 1, 4, 5, 6)]


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pooling_is_its_definition(shape: tuple[int, ...], padded: bool, ceil: bool) -> None:
    """The maximum takes no padding; a mean takes what there is of it, not what a window has beyond it."""
    x, ndim = normal(*shape), len(shape) - 2
    borders = (2, 1, 1) if padded else (0, 0, 0)
    kernel, stride, padding = (axes[-ndim:] for axes in ((4, 2, 3), (3, 1, 2), borders))
    axes = [windows(*axis, ceil) for axis in zip(shape[2:], kernel, stride, padding, strict=True)]
    largest = getattr(layers, f"max_pool{ndim}d")(x, kernel, stride, padding, 1, ceil)
    np.testing.assert_array_equal(largest, pooled(x, axes, np.max))
    sums, mean = pooled(x, axes, np.sum), getattr(layers, f"avg_pool{ndim}d")
    for counted in (True, False):
        taps = [np.array([sum(-p * counted <= i < n + p * counted for i in window) for window in axis])
                for axis, n, p in zip(axes, shape[2:], padding, strict=True)]  # fmt: skip
        options = kernel, stride, padding, ceil, counted
        right = sums / reduce(np.multiply.outer, taps)
        np.testing.assert_allclose(mean(x, *options), right, 1e-12, 1e-14)
        np.testing.assert_allclose(mean(x, *options, 5), sums / 5, 1e-12, 1e-14)


def test_a_last_window_counts_the_padding_it_covers_and_nothing_beyond() -> None:
    """Of three, from -1 on by two: the last one holds an element and its padding."""
    x = np.arange(1.0, 7).reshape(1, 1, 6)
    for padded, right in ((True, [3 / 3, 9 / 3, 15 / 3, 6 / 2]), (False, [3 / 2, 9 / 3, 15 / 3, 6 / 1])):
        np.testing.assert_allclose(layers.avg_pool1d(x, 3, 2, 1, True, padded).ravel(), right)


def normalised(x: np.ndarray, mean: Any, var: Any, w: Any, b: Any) -> np.ndarray:
    return (x - mean) / np.sqrt(var + 1e-5) * w + b


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 7, 7), (7, 5), (3, 2, 90)], ids=str)
def test_batch_normalisation_is_its_definition(shape: tuple[int, ...], training: bool) -> None:
    x, of_channel = normal(*shape) + 100, (1, shape[1], *[1] * (len(shape) - 2))
    mean, var, w, b = normal(shape[1]), np.abs(normal(shape[1])) + 1, normal(shape[1]), normal(shape[1])
    axes = (0, *range(2, x.ndim))
    by = (x.mean(axes), x.var(axes)) if training else (mean, var)
    right = normalised(x, *(a.reshape(of_channel) for a in (*by, w, b)))
    y = layers.batch_norm(x, mean.copy(), var.copy(), w, b, training)
    np.testing.assert_allclose(y, right, 1e-9, 1e-9)


@pytest.mark.parametrize("axes", [(2,), (1, 2)], ids=str)
def test_layer_normalisation_is_its_definition(axes: tuple[int, ...]) -> None:
    x = normal(4, 5, 70) + 100
    shape = tuple(x.shape[axis] for axis in axes)
    w, b = normal(*shape), normal(*shape)
    right = normalised(x, x.mean(axes, keepdims=True), x.var(axes, keepdims=True), w, b)
    np.testing.assert_allclose(layers.layer_norm(x, shape, w, b), right, 1e-9, 1e-9)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_is_its_definition(axis: int) -> None:
    x = normal(3, 4, 5)
    right = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    np.testing.assert_allclose(layers.softmax(x, axis), right, 1e-12)
    np.testing.assert_allclose(layers.log_softmax(x, axis), np.log(right), 1e-12)


def test_cross_entropy_is_its_definition() -> None:
    x, target = normal(6, 4), np.array([0, 3, 1, 1, 2, 0])
    each = [-np.log(np.exp(row[k]) / np.exp(row).sum()) for row, k in zip(x, target, strict=True)]
    for reduction, right in (("none", each), ("sum", sum(each)), ("mean", sum(each) / 6)):
        np.testing.assert_allclose(layers.cross_entropy(x, target, reduction=reduction), right, 1e-12)
    np.testing.assert_allclose(layers.cross_entropy(x, target), sum(each) / 6, 1e-12)


def test_softmax_takes_scores_whose_exponential_would_overflow() -> None:
    x = np.array([[1000.0, 0.0, -1000.0]])
    assert layers.softmax(x).tolist() == [[1, 0, 0]]
    assert layers.log_softmax(x).tolist() == [[0, -1000, -2000]]
    assert layers.cross_entropy(x, np.array([2])) == 2000


# ---- against PyTorch ---------------------------------------------------------------------------------------

# Name -> (our function, torch's, shapes of operands, other arguments): those of every axis count that differ
WINDOWS: list[tuple[int, tuple[int, ...], tuple, dict[str, Any]]] = [
    (2, (2, 3, 7, 9), (2,), {}),
    (2, (1, 2, 37, 40), (3, 2, 1), {}),
    (2, (3, 5, 8), ((2, 3), (1, 2)), {}),
    (2, (2, 2, 9, 70), (3, 3), {"ceil_mode": True}),
    (2, (1, 1, 7, 13), (5, 4, 2), {"ceil_mode": True}),
    (2, (1, 2, 20, 40), (3, 6), {}),
    (1, (2, 3, 50), (3, 2, 1), {}),
    (3, (1, 2, 5, 6, 7), ((2, 3, 2), 2, 1), {}),
]
ELEMENTWISE = ["relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "silu"]


def cases() -> list[Any]:
    found = []
    for ndim, shape, options, more in WINDOWS:
        names = ("max_pool", "avg_pool") if len(options) == 3 else ("max_pool", "avg_pool", "lp_pool")
        for name in names:
            arguments = (2, *options) if name == "lp_pool" else options
            if name == "lp_pool" and (more or len(shape) == ndim + 1):
                continue  # torch scales a last partial window, or refuses: the norm here is that of its taps
            found.append((f"{name}{ndim}d", [shape], arguments, more))
    found += [("max_pool2d", [(1, 2, 9, 12)], (2, 1, 1, 3), {}),
              ("avg_pool2d", [(1, 2, 9, 12)], (3, 2, 1, True, False), {}),
              ("avg_pool2d", [(1, 2, 9, 12)], (3, 2, 1, True, True, 5), {}),
              ("adaptive_avg_pool2d", [(1, 2, 6, 50)], ((2, 3),), {}),
              ("adaptive_avg_pool2d", [(2, 3, 7, 9)], ((3, 4),), {}),
              ("adaptive_avg_pool2d", [(2, 3, 7, 9)], (1,), {}),
              ("adaptive_avg_pool1d", [(2, 3, 10)], (4,), {}),
              ("adaptive_avg_pool3d", [(2, 3, 4, 5, 6)], ((2, 1, 1),), {}),
              ("layer_norm", [(4, 5, 70)], ((5, 70),), {}),
              ("softmax", [(4, 5)], (1,), {}), ("log_softmax", [(4, 5)], (0,), {}),
              ("leaky_relu", [(4, 70)], (0.1,), {}), ("elu", [(4, 70)], (1.5,), {})]  # fmt: skip
    found += [(name, [(3, 4, 99)], (), {}) for name in ELEMENTWISE]
    return found


CASES = cases()
IDS = [f"{name}-{shapes[0]}-{options}".replace(" ", "") for name, shapes, options, _ in CASES]


@against_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "shapes", "options", "more"), CASES, ids=IDS)
def test_values_and_gradients_are_torchs(
    name: str, shapes: list, options: tuple, more: dict, dtype: str
) -> None:
    x = normal(*shapes[0], dtype=dtype)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = getattr(F, name)(tensor, *options, **more)
    grad = RNG.standard_normal(tuple(expected.shape)).astype(dtype)
    expected.backward(torch.from_numpy(grad))
    y = getattr(layers, name)(x, *options, **more)
    dx = getattr(layers, f"{name}_backward")(grad, x, *options, **more)
    tolerance = 2e-5 if dtype == "float32" else 1e-11
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected.detach().numpy(), tolerance, tolerance)
    dx = dx[0] if isinstance(dx, tuple) else dx
    np.testing.assert_allclose(dx, tensor.grad.numpy(), tolerance, tolerance)


def differences(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """The gradient with respect to x, from values beside it."""
    found, step = np.empty(x.size), 1e-6
    for i in range(x.size):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved.flat[i] += sign * step
            ends.append((function(moved) * grad).sum())
        found[i] = (ends[0] - ends[1]) / (2 * step)
    return found.reshape(x.shape)


# Name, shapes of the operands that have gradients, and the rest
SMALL: list[tuple[str, list[tuple[int, ...]], tuple]] = [
    ("max_pool2d", [(1, 2, 5, 6)], (3, 2, 1)),
    ("avg_pool2d", [(1, 2, 5, 6)], (3, 2, 1)),
    ("lp_pool2d", [(1, 2, 5, 6)], (2, 3, 2, True)),
    ("distance_pool1d", [(2, 1, 9)], (3, 2, 1)),
    ("distance_pool2d", [(2, 1, 5, 6)], (3, 2, 1, True)),
    ("distance_pool3d", [(1, 1, 3, 4, 3)], (2,)),
    ("adaptive_avg_pool2d", [(1, 2, 5, 6)], ((2, 4),)),
    ("global_avg_pool", [(2, 3, 5)], ()),
    *[(name, [(2, 17)], ()) for name in ELEMENTWISE],
    ("maxout", [(2, 6, 3)], (3,)),
    ("softmax", [(3, 4)], ()), ("log_softmax", [(3, 4)], (0,)),
    ("linear", [(3, 4), (5, 4), (5,)], ()),
    ("pointwise", [(2, 3, 4, 2), (5, 3), (5,)], ()),
    ("locally_connected2d", [(2, 2, 5, 4), (3, 3, 3, 2, 3, 2), (3, 3, 3)], (2, 1)),
    ("tiled_conv2d", [(2, 2, 6, 5), (3, 2, 3, 2, 3, 2), (3,)], (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "options"), SMALL, ids=[name for name, *_ in SMALL])
def test_gradients_are_differences_of_values(name: str, shapes: list, options: tuple) -> None:
    operands = [normal(*shape) for shape in shapes]
    function = getattr(layers, name)
    grad = RNG.standard_normal(function(*operands, *options).shape)
    found = getattr(layers, f"{name}_backward")(grad, *operands, *options)
    for i, gradient in enumerate(found if isinstance(found, tuple) else (found,)):

        def value(moved: np.ndarray, i: int = i) -> np.ndarray:
            return function(*operands[:i], moved, *operands[i + 1 :], *options)

        np.testing.assert_allclose(gradient, differences(value, operands[i], grad), 1e-6, 1e-7)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_batch_normalisation(training: bool) -> None:
    x, (w, b, mean, var) = normal(3, 2, 5), (normal(2), normal(2), normal(2), np.abs(normal(2)))
    grad = RNG.standard_normal(x.shape)

    def value(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return layers.batch_norm(x, mean.copy(), var.copy(), w, b, training)

    found = layers.batch_norm_backward(grad, x, mean, var, w, b, training)
    np.testing.assert_allclose(found[0], differences(lambda x: value(x, w, b), x, grad), 1e-5, 1e-7)
    np.testing.assert_allclose(found[1], differences(lambda w: value(x, w, b), w, grad), 1e-6, 1e-7)
    np.testing.assert_allclose(found[2], differences(lambda b: value(x, w, b), b, grad), 1e-6, 1e-7)


def test_gradients_of_layer_normalisation() -> None:
    x, w, b = normal(3, 2, 5), normal(2, 5), normal(2, 5)
    grad = RNG.standard_normal(x.shape)
    found = layers.layer_norm_backward(grad, x, (2, 5), w, b)
    value = lambda x, w, b: layers.layer_norm(x, (2, 5), w, b)  # noqa: E731
    np.testing.assert_allclose(found[0], differences(lambda x: value(x, w, b), x, grad), 1e-5, 1e-7)
    np.testing.assert_allclose(found[1], differences(lambda w: value(x, w, b), w, grad), 1e-6, 1e-7)
    np.testing.assert_allclose(found[2], differences(lambda b: value(x, w, b), b, grad), 1e-6, 1e-7)


@against_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 7, 7), (2, 5), (7, 300), (3, 2, 2000), (1, 1, 90, 90)])
def test_batch_normalisation_is_torchs(shape: tuple, training: bool, dtype: str) -> None:
    x = (normal(*shape) + 100).astype(dtype)
    channels = shape[1]
    mean, w, b = (normal(channels, dtype=dtype) for _ in range(3))
    var = np.abs(mean) + 1
    tensors = [torch.from_numpy(a.copy()) for a in (x, mean, var, w, b)]
    given = [a.copy() for a in (mean, var)]
    expected = F.batch_norm(*tensors, training)
    y = layers.batch_norm(x, *given, w, b, training)
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(y, expected.numpy(), tolerance, tolerance)
    for ours, theirs in zip(given, tensors[1:3], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), 1e-4 if dtype == "float32" else 1e-12)


def test_running_means_stay_the_arrays_that_they_are() -> None:
    """Of any type of floats and strides, changed in place; those that cannot be changed are refused first."""
    x, one = normal(4, 3, 5, dtype=np.float32), np.ones(6)
    for mean, var in ((np.zeros(3), np.ones(3, np.float16)), (one[::2], one[1::2])):
        before = mean.copy(), var.copy()
        layers.batch_norm(x, mean, var, training=True, momentum=0.25)
        now = x.mean((0, 2), np.float64), x.var((0, 2), np.float64, ddof=1)
        for ours, old, new in zip((mean, var), before, now, strict=True):
            np.testing.assert_allclose(ours, 0.75 * old + 0.25 * new, 1e-3 if ours.itemsize < 8 else 1e-6)
    fixed = np.zeros(3, np.float32)
    fixed.flags.writeable = False
    for _ in range(2):  # compiled before, for arrays that can be written, and now
        with pytest.raises(ValueError, match="running_mean is read-only"):
            layers.batch_norm(x, fixed, None, training=True)
        layers.batch_norm(x, np.zeros(3, np.float32), None, training=True)
    assert not fixed.any()


@against_torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torchs(reduction: str) -> None:
    x, target = normal(6, 4) * 200, np.array([0, 3, 1, 1, 2, 0])
    tensor = torch.from_numpy(x).requires_grad_()
    expected = F.cross_entropy(tensor, torch.from_numpy(target), reduction=reduction)
    grad = RNG.standard_normal(tuple(expected.shape))
    expected.backward(torch.from_numpy(np.asarray(grad)))
    np.testing.assert_allclose(layers.cross_entropy(x, target, reduction=reduction), expected.detach(), 1e-12)
    dx = layers.cross_entropy_backward(grad, x, target, reduction=reduction)
    np.testing.assert_allclose(dx, tensor.grad, 1e-10, 1e-12)


# ---- edges -------------------------------------------------------------------------------------------------


def test_a_maximum_is_nan_where_a_tap_is_and_nowhere_else() -> None:
    x = normal(1, 1, 33, 40, dtype=np.float32)
    x[0, 0, 11, 7] = np.nan
    y = layers.max_pool2d(x, 3, 2, 1)
    assert np.argwhere(np.isnan(y[0, 0])).tolist() == [[5, 3], [5, 4], [6, 3], [6, 4]]
    for by in (layers.avg_pool2d, layers.distance_pool2d):
        assert np.isnan(by(x, 3, 3)).sum() == 1
    assert np.isnan(layers.lp_pool2d(x, 2, 3)).sum() == 1


def test_of_equal_elements_the_first_gets_the_gradient_and_of_nan_the_last() -> None:
    x = np.zeros((1, 1, 2, 4))
    assert np.array_equal(layers.max_pool2d_backward(np.ones((1, 1, 1, 2)), x, 2)[0, 0],
                          [[1, 0, 1, 0], [0, 0, 0, 0]])  # fmt: skip
    x[0, 0, 0] = np.nan
    assert np.array_equal(layers.max_pool2d_backward(np.ones((1, 1, 1, 2)), x, 2)[0, 0],
                          [[0, 1, 0, 1], [0, 0, 0, 0]])  # fmt: skip
    pieces = np.zeros((1, 4, 1))
    assert np.array_equal(layers.maxout_backward(np.ones((1, 2, 1)), pieces, 2)[0, :, 0], [1, 0, 1, 0])


def test_padding_is_never_the_largest_and_infinity_may_be_the_smallest() -> None:
    x = np.full((1, 1, 4, 4), -5.0)
    assert np.array_equal(layers.max_pool2d(x, 3, 1, 1), x)
    x[...] = -np.inf
    assert np.array_equal(layers.max_pool2d(x, 3, 1, 1), x)


def test_weights_fall_with_the_distance_from_the_centre() -> None:
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 2, 2] = 1
    kernel = layers.distance_pool2d(x, 3, 1)[0, 0]  # of a point: the weights, turned
    weights = 1 / (1 + np.array([[2**0.5, 1, 2**0.5], [1, 0, 1], [2**0.5, 1, 2**0.5]]))
    np.testing.assert_allclose(kernel, weights / weights.sum())
    np.testing.assert_allclose(layers.distance_pool2d(np.full((2, 3, 5, 6), 7.0), 3, 2, 1, True), 7)


def test_layers_of_half_types_go_by_float32() -> None:
    x = normal(2, 3, 6, 6, dtype=np.float16)
    for y, wide in ((layers.max_pool2d(x, 2), layers.max_pool2d(x.astype(np.float32), 2)),
                    (layers.silu(x), layers.silu(x.astype(np.float32)))):  # fmt: skip
        assert y.dtype == np.float16
        assert np.array_equal(y, wide.astype(np.float16))


def test_results_are_written_to_out_whatever_its_memory_order() -> None:
    x, w = normal(2, 3, 6, 8, dtype=np.float32), normal(5, 8, dtype=np.float32)
    for call in (lambda **o: layers.max_pool2d(x, 2, **o), lambda **o: layers.relu(x, **o),
                 lambda **o: layers.linear(x, w, **o), lambda **o: layers.global_avg_pool(x, **o)):
        expected = call()
        for out in (np.empty_like(expected), np.empty(expected.shape[::-1], np.float32).T):
            assert call(out=out) is out
            assert np.array_equal(out, expected)


def test_an_empty_batch_gives_an_empty_result() -> None:
    x = np.zeros((0, 3, 8, 8), np.float32)
    assert layers.max_pool2d(x, 2).shape == (0, 3, 4, 4)
    assert layers.max_pool2d_backward(np.zeros((0, 3, 4, 4), np.float32), x, 2).shape == x.shape
    assert layers.distance_pool2d(x, 2).shape == (0, 3, 4, 4)
    assert layers.global_avg_pool(x).shape == (0, 3)
    assert layers.relu(x).shape == layers.layer_norm(x, 8).shape == x.shape
    assert layers.batch_norm(x, np.zeros(3), np.ones(3)).shape == x.shape
    assert layers.linear(np.zeros((0, 4)), np.ones((2, 4))).shape == (0, 2)
    assert layers.softmax(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_results(threads: int) -> None:
    x = normal(2, 9, 70, 90, dtype=np.float32)
    for call in (lambda t: layers.max_pool2d(x, 3, 2, 1, threads=t), lambda t: layers.silu(x, threads=t),
                 lambda t: layers.batch_norm(x, None, None, training=True, threads=t)):  # fmt: skip
        assert np.array_equal(call(threads), call(1))


X = np.zeros((1, 2, 6, 6), np.float32)
MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: layers.max_pool2d(X, 0), "kernel is 0x0"),
    (lambda: layers.max_pool2d(X, 2, 0), "stride is 0x0"),
    (lambda: layers.max_pool2d(X, 2, 1, 2), "padding is 2x2"),
    (lambda: layers.max_pool2d(X, 7), "does not fit"),
    (lambda: layers.max_pool2d(X, (2, 2, 2)), "3 entries for 2 axes"),
    (lambda: layers.max_pool2d(X, 2.5), "whole number"),
    (lambda: layers.max_pool3d(X[0], 2), "3-D pooling needs 5"),
    (lambda: layers.max_pool2d(X.astype(int), 2), "astype"),
    (lambda: layers.max_pool2d(X, 2, out=np.zeros(3, np.float32)), "out is float32 (3,)"),
    (lambda: layers.relu(X, out=X), "overlaps"),
    (lambda: layers.max_pool2d_backward(X, X, 2), "grad has shape"),
    (lambda: layers.avg_pool2d(X, 2, divisor_override=0), "divisor_override"),
    (lambda: layers.lp_pool2d(X, 3, 2), "norm_type is 3"),
    (lambda: layers.adaptive_avg_pool2d(X, 0), "output_size"),
    (lambda: layers.maxout(X, 3), "maxout"),
    (lambda: layers.linear(X, np.zeros((3, 5))), "dense layer"),
    (lambda: layers.softmax(X, 4), "dim is 4"),
    (lambda: layers.cross_entropy(X[0, 0], np.full(6, 6)), "classes 0 to 5"),
    (lambda: layers.cross_entropy(X[0, 0], np.zeros(6)), "whole numbers"),
    (lambda: layers.batch_norm(X, None, None), "running_mean"),
    (lambda: layers.batch_norm(X[:, :, :1, :1], None, None, training=True), "more than one value"),
    (lambda: layers.layer_norm(X, 5), "normalized_shape is 5"),
    (lambda: layers.locally_connected2d(X, np.zeros((1, 2))), "6 axes"),
    (lambda: layers.tiled_conv2d(X, np.zeros((1, 1, 1, 2, 7, 7))), "larger than x"),
    (lambda: layers.toeplitz(np.ones(3), 2), "no output"),
    (lambda: layers.low_rank(np.ones((2, 2, 3, 3)), 9), "at most 6"),
]


@pytest.mark.parametrize(("call", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_one_line(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        call()
    assert words in str(caught.value)


def test_every_layer_has_its_gradient_with_the_same_arguments() -> None:
    studied = {"toeplitz", "doubly_blocked_toeplitz", "low_rank", "low_rank_conv2d"}
    names = set(layers.__all__)
    for name in names - studied:
        if not name.endswith("_backward"):
            assert f"{name}_backward" in names
            given = list(inspect.signature(getattr(layers, f"{name}_backward")).parameters.values())
            taken = list(inspect.signature(getattr(layers, name)).parameters.values())
            own, of = ([p.name for p in each if p.kind is not p.KEYWORD_ONLY] for each in (given, taken))
            assert own == ["grad", *of]


# ---- kernels that differ by place, and matrices ------------------------------------------------------------


def test_a_locally_connected_layer_with_one_kernel_everywhere_is_a_convolution() -> None:
    x, w = normal(2, 3, 7, 8), normal(4, 3, 3, 2)
    expected = algos.conv2d(x, w, stride=2, padding=1)
    everywhere = np.broadcast_to(w[:, None, None], (4, *expected.shape[2:], 3, 3, 2))
    np.testing.assert_allclose(layers.locally_connected2d(x, everywhere, stride=2, padding=1), expected)
    tiles = np.broadcast_to(w[:, None, None], (4, 2, 3, 3, 3, 2))
    np.testing.assert_allclose(layers.tiled_conv2d(x, tiles, stride=2, padding=1), expected)


@pytest.mark.parametrize("period", [(1, 1), (2, 3), (9, 9)])
def test_tiles_are_a_locally_connected_layer_whose_kernels_rotate(period: tuple[int, int]) -> None:
    x, w = normal(2, 3, 8, 7), normal(4, *period, 3, 3, 2)
    rows, columns = np.arange(6) % period[0], np.arange(6) % period[1]
    everywhere = w[:, rows][:, :, columns]
    np.testing.assert_allclose(layers.tiled_conv2d(x, w), layers.locally_connected2d(x, everywhere))


@pytest.mark.parametrize("mode", ["valid", "full"])
def test_matrices_convolve(mode: str) -> None:
    from scipy import signal

    x, w = normal(9), normal(4)
    np.testing.assert_allclose(layers.toeplitz(w, 9, mode) @ x, np.convolve(x, w, mode))
    picture, kernel = normal(6, 7), normal(3, 2)
    matrix = layers.doubly_blocked_toeplitz(kernel, (6, 7), mode)
    expected = signal.convolve2d(picture, kernel, mode)
    np.testing.assert_allclose(matrix @ picture.ravel(), expected.ravel())


def test_kernels_of_full_rank_are_exact_and_of_less_the_nearest() -> None:
    x, w = normal(2, 3, 8, 9), normal(4, 3, 3, 2)
    down, along = layers.low_rank(w, 8)
    np.testing.assert_allclose(np.einsum("rca,orb->ocab", down[..., 0], along[:, :, 0]), w, atol=1e-12)
    y = layers.low_rank_conv2d(x, down, along, stride=2, padding=1)
    np.testing.assert_allclose(y, algos.conv2d(x, w, stride=2, padding=1), 1e-9, 1e-9)
    errors = []
    for rank in range(1, 9):
        down, along = layers.low_rank(w, rank)
        errors.append(np.linalg.norm(np.einsum("rca,orb->ocab", down[..., 0], along[:, :, 0]) - w))
    assert errors == sorted(errors, reverse=True)


def test_1x1_is_a_convolution() -> None:
    x, w, b = normal(2, 3, 4, 5), normal(6, 3), normal(6)
    np.testing.assert_allclose(layers.pointwise(x, w, b), algos.conv2d(x, w[:, :, None, None], b))
