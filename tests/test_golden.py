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

from algos import conv1d, conv2d
from algos.spec import ConvSpec
from bench.oracle import oracle

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slides.json").read_text())
EXAMPLES = {example["id"]: example for example in GOLDEN["examples"]}
NUMERIC = [name for name, e in EXAMPLES.items() if e["op"] == "cross_correlation" and "input" in e]


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


@pytest.mark.parametrize("name", [n for n, e in EXAMPLES.items() if e["op"] == "max_pool"])
def test_pooling_of_the_maps(name: str) -> None:
    """Pooling is no convolution; it pins that the maps above are those that the slides go on with."""
    e = EXAMPLES[name]
    maps = features() if "input_from" in e else np.array(e["input"], np.float64)[None]
    size, step = e["window"], e["stride"]
    count = -(-(maps.shape[1] - size) // step) + 1
    pooled = [
        [
            [m[i * step : i * step + size, j * step : j * step + size].max() for j in range(count)]
            for i in range(count)
        ]
        for m in maps
    ]
    expected = np.array(e["expected"])
    np.testing.assert_allclose(
        shown(np.array(pooled), e.get("shown_as")), expected if expected.ndim == 3 else expected[None]
    )


def test_letters() -> None:
    e = EXAMPLES["symbolic_3x4_2x2"]
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


def test_toeplitz_matrix() -> None:
    e = EXAMPLES["toeplitz_1d"]
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(e["n"]), rng.standard_normal(e["m"])
    matrix = np.array([[w[int(k[1:]) - 1] if k else 0.0 for k in row] for row in e["matrix_rows"]])
    assert matrix.shape == (e["n"] - e["m"] + 1, e["n"])
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
    shape = (1, 28, 28)
    for layer, output, weights in GOLDEN["lenet5"][1:]:
        if layer.startswith("conv"):
            count, kernel, padding, stride = map(int, re.findall(r"=(\d+)", layer))
            spec = ConvSpec(1, shape[0], shape[1:], count, (kernel, kernel), stride, padding)
            assert "x".join(map(str, spec.output_shape[1:])) == output
            assert "x".join(map(str, spec.weight_shape)) == weights
            shape = (count, *spec.output_size)
        elif layer.startswith("maxpool"):
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
            assert "x".join(map(str, shape)) == output
    assert math.prod(shape) == 2450


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
