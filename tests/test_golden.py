"""The worked examples and definitions of the lecture slides, against the
definition, SciPy, an algorithm and ConvSpec.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import signal

from algos import conv1d, conv2d, layers
from algos.spec import ConvSpec
from bench.oracle import oracle

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slides.json").read_text())
EXAMPLES = {example["id"]: example for example in GOLDEN["examples"]}
NUMERIC = [name for name, e in EXAMPLES.items() if e["op"] == "cross_correlation" and "input" in e]
POOLED = [name for name, e in EXAMPLES.items() if e["op"] == "max_pool"]
LETTERS, MATRIX = "symbolic_3x4_2x2", "toeplitz_1d"


def shown(values: np.ndarray, how: str | None) -> np.ndarray:
    """As the slides print them; the nudge keeps 0.11 from becoming 0.10 in binary."""
    if how == "truncated to 2 decimals":
        return np.trunc(values * 100 + np.copysign(1e-9, values)) / 100
    return np.floor(values + 0.5) if how else values


def numeric(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, str | None]:
    """x (1, 1, H, W), w (O, 1, KH, KW), expected (1, O, OH, OW), what sums are divided by, how they are
    printed.
    """
    e = EXAMPLES[name]
    x, w = np.array(e["input"], np.float64)[None, None], np.array(e["kernels"], np.float64)[:, None]
    return x, w, np.array(e["expected"])[None], e.get("divide_by", 1), e.get("shown_as")


@cache
def features() -> np.ndarray:
    x, w, _, divisor, _ = numeric("x_features")
    return oracle(of(x, w), x, w)[0] / divisor


def of(x: np.ndarray, w: np.ndarray, **options: Any) -> ConvSpec:
    return ConvSpec(x.shape[0], x.shape[1], x.shape[2:], w.shape[0], w.shape[2:], dtype="float64", **options)


@pytest.mark.parametrize("name", NUMERIC)
def test_example(name: str) -> None:
    x, w, expected, divisor, how = numeric(name)
    found = {
        "oracle": oracle(of(x, w), x, w),
        "flipped": oracle(of(x, w, flip=True), x, w[..., ::-1, ::-1]),
        "scipy": np.stack([signal.correlate2d(x[0, 0], k[0], "valid") for k in w])[None],
        "scipy flipped": np.stack([signal.convolve2d(x[0, 0], k[0, ::-1, ::-1], "valid") for k in w])[None],
        "direct_loops": conv2d(x, w, algorithm="direct_loops"),
    }
    for by, y in found.items():
        np.testing.assert_allclose(shown(y / divisor, how), expected, atol=1e-12, err_msg=by)


@pytest.mark.parametrize("name", POOLED)
def test_pooling_of_the_maps(name: str) -> None:
    """Of the maps above, where the slides go on with them; a last partial window counts."""
    e = EXAMPLES[name]
    maps = features() if "input_from" in e else np.array(e["input"], np.float64)[None]
    pooled = layers.max_pool2d(maps, e["window"], e["stride"], ceil_mode=e.get("rounding") == "ceil")
    expected = np.array(e["expected"])
    expected = expected if expected.ndim == 3 else expected[None]
    np.testing.assert_allclose(shown(pooled, e.get("shown_as")), expected)
    assert maps.max() == pooled.max()  # whatever the windows are, none is left out


def test_every_example_is_a_test() -> None:
    assert sorted(EXAMPLES) == sorted([*NUMERIC, *POOLED, LETTERS, MATRIX])


@pytest.mark.parametrize("name", [LETTERS])
def test_letters(name: str) -> None:
    e = EXAMPLES[name]
    rng = np.random.default_rng(0)
    value = {}
    for row in e["input_letters"] + e["kernel_letters"]:
        for letter in row:
            value.setdefault(letter, float(rng.integers(-9, 10)))
    # The letters of picture and kernel are apart: a to l, and w to z.
    x, w = (
        np.array([[value[k] for k in row] for row in e[part]])[None, None]
        for part in ("input_letters", "kernel_letters")
    )
    expected = [[sum(math.prod(value[k] for k in term) for term in entry.split("+")) for entry in row]
                for row in e["expected_letters"]]
    assert np.array_equal(oracle(of(x, w), x, w)[0, 0], expected)
    assert np.array_equal(conv2d(x, w, algorithm="direct_loops")[0, 0], expected)


@pytest.mark.parametrize("name", [MATRIX])
def test_toeplitz_matrix(name: str) -> None:
    e = EXAMPLES[name]
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(e["n"]), rng.standard_normal(e["m"])
    matrix = np.array([[w[int(k[1:]) - 1] if k else 0.0 for k in row] for row in e["matrix_rows"]])
    assert matrix.shape == (e["n"] - e["m"] + 1, e["n"])
    assert np.array_equal(layers.toeplitz(w, e["n"]), matrix)
    spec = ConvSpec.parse("1x1x5,1x1x3,float64,flip")
    np.testing.assert_allclose(oracle(spec, x[None, None], w[None, None])[0, 0], matrix @ x)
    np.testing.assert_allclose(np.convolve(x, w, "valid"), matrix @ x)
    np.testing.assert_allclose(conv1d(x[None], w[None, None, ::-1], algorithm="direct_loops")[0], matrix @ x)
    # The transpose of the matrix is the gradient with respect to x; the windows of x give the one with
    # respect to w.
    g = rng.standard_normal(len(matrix))
    dx = oracle(spec.with_(direction="input_gradient"), None, w[None, None], g[None, None])
    np.testing.assert_allclose(dx[0, 0], matrix.T @ g)


# ---- arithmetic of shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", GOLDEN["shape_arithmetic"], ids=lambda e: f"{e['input']} {e['filters']} s{e['stride']}"
)
def test_shapes_and_counts(entry: dict[str, Any]) -> None:
    shape = [int(n) for n in entry["input"].replace("H", "9").replace("W", "11").split("x")]
    filters = re.fullmatch(r"(\d+) of (\d+)x(\d+)", entry["filters"])
    assert filters is not None
    batch, channels, *size = shape if len(shape) == 4 else [1, *shape]
    count, *kernel = map(int, filters.groups())
    spec = ConvSpec(batch, channels, tuple(size), count, tuple(kernel), entry["stride"], entry["padding"])
    if entry["output"].startswith("does not fit"):
        assert spec.output_size == (2, 2)
        assert spec.unread == ((1, (6,)), (1, (6,)))
        assert spec.unread_text() == "never read: 1 row (6) and 1 column (6)"
        return
    expected = [int(n) for n in entry["output"].replace("H", "9").replace("W", "11").split("x")]
    assert list(spec.output_shape)[-len(expected) :] == expected
    if spec.stride == (1, 1):
        assert spec.unread_text() == ""
    if "parameters" in entry:
        assert spec.parameters(bias=True) == entry["parameters"]
    if "multiply_adds" in entry:
        assert spec.macs == entry["multiply_adds"]


def test_lenet5() -> None:
    """Every row of the table: what a layer gives, and its weights; those of dense layers as the slides have
    them, (in, out).
    """
    rng, x = np.random.default_rng(6), np.zeros((1, 1, 28, 28), np.float32)
    rows = GOLDEN["lenet5"]
    assert rows[0][:2] == ["input", "1x28x28"]
    for layer, output, weights in rows[1:]:
        name, *words = layer.split()
        numbers = list(map(int, re.findall(r"\d+", "".join(words))))
        if name == "conv":
            count, kernel, padding, stride = numbers
            w = rng.standard_normal((count, x.shape[1], kernel, kernel)).astype(np.float32)
            x = conv2d(x, w, stride=stride, padding=padding)
        elif name == "linear":
            w = rng.standard_normal(numbers).astype(np.float32)
            x = layers.linear(x, w.T)
        else:
            steps = {"relu": layers.relu, "maxpool": layers.max_pool2d, "flatten": lambda x: x.reshape(1, -1)}
            w, x = None, steps[name](x, *numbers)
        assert "x".join(map(str, x.shape[1:])) == output
        assert weights == (None if w is None else "x".join(map(str, w.shape)))


def test_alexnet_holds_its_parameters_in_dense_layers() -> None:
    counts, dense = GOLDEN["counts"]["alexnet_fc"], []
    for name in ("fc6", "fc7", "fc8"):
        inputs, outputs, millions = re.fullmatch(r"([\d*]+) -> (\d+): (\d+) million", counts[name]).groups()
        spec = ConvSpec(1, math.prod(map(int, inputs.split("*"))), (1,), int(outputs), (1,))
        assert round(spec.parameters(bias=True) / 1e6) == int(millions)
        dense.append(spec.parameters(bias=True))
    assert round(sum(dense) / 1e6) == int(re.findall(r"about (\d+) million in FC", counts["total"])[0])


def test_parameters_of_a_convolution() -> None:
    """(F F D1 + 1) K with bias."""
    f, depth, k = 5, 7, 11
    assert ConvSpec(1, depth, (9, 9), k, (f, f)).parameters(bias=True) == (f * f * depth + 1) * k


def test_edge_detection_counts() -> None:
    """2 multiplications and 1 addition per output; as a dense matrix it would hold 8 billion entries."""
    counts = GOLDEN["counts"]["edge_detection"]
    spec = ConvSpec.parse("1x1x280x320,1x1x1x2")  # rows x columns: a picture 320 wide and 280 high
    width, height = map(int, counts["output"].split("x"))
    assert spec.output_size == (height, width)
    assert spec.operations == counts["flops"]
    assert math.prod(spec.size) * math.prod(spec.output_size) == counts["dense_matrix_entries"]


@pytest.mark.parametrize(
    "width, kernel, padding, stride", [(7, 3, 0, 1), (7, 3, 1, 1), (32, 5, 2, 1), (227, 11, 0, 4)]
)
def test_output_size_formula(width: int, kernel: int, padding: int, stride: int) -> None:
    spec = ConvSpec(1, 1, (width,), 1, (kernel,), stride, padding)
    assert spec.output_size == ((width - kernel + 2 * padding) // stride + 1,)


def test_padding_names() -> None:
    n, k = 12, 5
    sizes = {
        name: ConvSpec(1, 1, (n,), 1, (k,), padding=name).output_size[0] for name in ("valid", "same", "full")
    }
    assert sizes == {"valid": n - k + 1, "same": n, "full": n + k - 1}


def test_receptive_field() -> None:
    """L layers of size K see 1 + L (K - 1): the gradient of one output reaches that far, and no further."""
    layers, k, n = 3, 5, 31
    g = np.zeros((1, 1, n))
    g[0, 0, n // 2] = 1
    spec = ConvSpec(1, 1, (n,), 1, (k,), padding="same", dtype="float64", direction="input_gradient")
    for _ in range(layers):
        g = oracle(spec, None, np.ones((1, 1, k)), g)
    assert np.count_nonzero(g) == 1 + layers * (k - 1)


# ---- definitions -------------------------------------------------------------------------------------------


def test_gradients_are_convolutions() -> None:
    """By weights: the input with the output's error. By input: the padded error with the flipped kernel."""
    rng = np.random.default_rng(2)
    x, w, g = rng.standard_normal((9, 8)), rng.standard_normal((3, 4)), rng.standard_normal((7, 5))
    spec = ConvSpec.parse("9x8,3x4,float64")
    dw = oracle(spec.with_(direction="weight_gradient"), x[None, None], None, g[None, None])[0, 0]
    np.testing.assert_allclose(dw, signal.correlate2d(x, g, "valid"))
    dx = oracle(spec.with_(direction="input_gradient"), None, w[None, None], g[None, None])[0, 0]
    np.testing.assert_allclose(dx, signal.convolve2d(g, w, "full"))


@pytest.mark.parametrize("name", [n for n, k in GOLDEN["named_kernels"].items() if isinstance(k, list)])
def test_named_kernels_as_filters_of_a_picture(name: str) -> None:
    kernel = np.array(GOLDEN["named_kernels"][name], np.float64)
    picture = np.random.default_rng(3).standard_normal((12, 15))
    for mode, scipy_mode in (("zeros", "fill"), ("symmetric", "symm"), ("circular", "wrap")):
        for flip, by in ((True, signal.convolve2d), (False, signal.correlate2d)):
            spec = of(picture[None, None], kernel[None, None], padding=1, padding_mode=mode, flip=flip)
            y = oracle(spec, picture[None, None], kernel[None, None])[0, 0]
            np.testing.assert_allclose(y, by(picture, kernel, "same", scipy_mode), atol=1e-12)


def test_convolution_theorem_and_separability() -> None:
    rng = np.random.default_rng(4)
    x, u, v = rng.standard_normal((10, 11)), rng.standard_normal(3), rng.standard_normal(4)
    w = np.outer(u, v)
    y = oracle(ConvSpec.parse("10x11,3x4,pfull,float64,flip"), x[None, None], w[None, None])[0, 0]
    theorem = np.fft.irfft2(np.fft.rfft2(x, y.shape) * np.fft.rfft2(w, y.shape), y.shape)
    np.testing.assert_allclose(y, theorem, atol=1e-12)
    passes = np.apply_along_axis(np.convolve, 1, np.apply_along_axis(np.convolve, 0, x, u), v)
    np.testing.assert_allclose(y, passes, atol=1e-12)


def test_equivariance_to_translation() -> None:
    """Shifting the picture shifts the result; everywhere when the border wraps around."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((1, 2, 9, 9)), rng.standard_normal((3, 2, 3, 3))
    spec = of(x, w, padding=1, padding_mode="circular")
    moved = oracle(spec, np.roll(x, (2, 3), (2, 3)), w)
    np.testing.assert_allclose(moved, np.roll(oracle(spec, x, w), (2, 3), (2, 3)), atol=1e-12)


def test_kernels_that_differ_by_place() -> None:
    """Locally connected: one for each output, in six axes; tiled: K (j mod t, k mod t)."""
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((2, 5, 6)), rng.standard_normal((3, 4, 4, 2, 2, 3))
    tiles, t = rng.standard_normal((3, 2, 2, 2, 2, 3)), 2
    local, tiled = np.zeros((3, 4, 4)), np.zeros((3, 4, 4))
    for i, j, k in np.ndindex(local.shape):
        window = x[:, j : j + 2, k : k + 3]
        local[i, j, k] = (window * w[i, j, k]).sum()
        tiled[i, j, k] = (window * tiles[i, j % t, k % t]).sum()
    np.testing.assert_allclose(layers.locally_connected2d(x[None], w)[0], local)
    np.testing.assert_allclose(layers.tiled_conv2d(x[None], tiles)[0], tiled)


def test_activations_normalisation_and_softmax_as_the_slides_define_them() -> None:
    x = np.random.default_rng(8).standard_normal((4, 6))
    np.testing.assert_allclose(layers.relu(x), np.maximum(0, x))
    np.testing.assert_allclose(layers.leaky_relu(x, 0.1), np.maximum(0.1 * x, x))
    np.testing.assert_allclose(layers.elu(x), np.where(x > 0, x, np.exp(x) - 1))
    np.testing.assert_allclose(layers.sigmoid(x), 1 / (1 + np.exp(-x)))
    np.testing.assert_allclose(layers.tanh(x), (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)))
    np.testing.assert_allclose(layers.maxout(x, 2), np.maximum(x[:, ::2], x[:, 1::2]))
    np.testing.assert_allclose(layers.softmax(x), np.exp(x) / np.exp(x).sum(1, keepdims=True))
    normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(layers.batch_norm(x, None, None, training=True), normal)


def test_what_pooling_says_of_a_window() -> None:
    x = np.random.default_rng(9).standard_normal((1, 1, 4, 4))
    windows = x.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(2, 2, 4)
    found = {"max": layers.max_pool2d(x, 2), "average": layers.avg_pool2d(x, 2),
             "L2 norm": layers.lp_pool2d(x, 2, 2),
             "weighted average by distance from the centre": layers.distance_pool2d(x, 2)}  # fmt: skip
    # All four taps of a window are as far from its centre
    expected = windows.max(2), windows.mean(2), np.linalg.norm(windows, axis=2), windows.mean(2)
    assert list(found) == GOLDEN["definitions"]["pooling"]
    for y, by_hand in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(y[0, 0], by_hand)
