"""ONNX's own tests of its convolutions: what its attributes say, said to ours, gives its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos

GOLDEN = json.loads((Path(__file__).parent / "golden" / "onnx_conv.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
AUTO_PADS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}


def array(stored: dict[str, Any]) -> np.ndarray:
    """The whole numbers 0, 1, 2, ..., one value everywhere, or all of them."""
    shape = stored["shape"]
    values = np.arange(np.prod(shape)) if "arange" in stored else stored.get("all", stored.get("values"))
    return np.broadcast_to(np.reshape(values, shape if np.size(values) > 1 else ()), shape).astype(
        stored["dtype"]
    )


def pairs(pads: list[int]) -> list[tuple[int, int]]:
    """All the starts, then all the ends -> (before, after) of each axis."""
    return list(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))


def conv(
    attributes: dict[str, Any], x: np.ndarray, w: np.ndarray, *bias: np.ndarray, **how: str
) -> np.ndarray:
    ndim = x.ndim - 2
    padding = AUTO_PADS.get(attributes.get("auto_pad", "NOTSET")) or pairs(
        attributes.get("pads", [0, 0] * ndim)
    )
    return getattr(algos, f"conv{ndim}d")(x, w, *bias, stride=attributes.get("strides", 1), padding=padding,
                                          dilation=attributes.get("dilations", 1),
                                          groups=attributes.get("group", 1), **how)  # fmt: skip


def conv_transpose(
    attributes: dict[str, Any], x: np.ndarray, w: np.ndarray, *bias: np.ndarray, **how: str
) -> np.ndarray:
    ndim, auto = x.ndim - 2, attributes.get("auto_pad", "NOTSET")
    strides, gaps = (attributes.get(name, [1] * ndim) for name in ("strides", "dilations"))
    more = attributes.get("output_padding", [0] * ndim)
    padding = pairs(attributes.get("pads", [0, 0] * ndim))
    same = [n * s for n, s in zip(x.shape[2:], strides, strict=True)] if auto.startswith("SAME") else None
    if shape := attributes.get("output_shape", same):  # the padding follows from it
        padding = []
        for n, s, m, k, d, wanted in zip(x.shape[2:], strides, more, w.shape[2:], gaps, shape, strict=True):
            total = s * (n - 1) + m + (k - 1) * d + 1 - wanted
            half = total // 2
            padding.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return getattr(algos, f"conv_transpose{ndim}d")(x, w, *bias, stride=strides, padding=padding,
                                                    output_padding=more, dilation=gaps,
                                                    groups=attributes.get("group", 1), **how)  # fmt: skip


def conv_integer(
    attributes: dict[str, Any], x: np.ndarray, w: np.ndarray, *zeros: np.ndarray, **how: str
) -> np.ndarray:
    """Zero points of all, or of each output channel."""
    return algos.conv_integer(x, w, *zeros, padding=pairs(attributes.get("pads", [0, 0] * (x.ndim - 2))),
                              **how)  # fmt: skip


OPERATORS = {"Conv": conv, "ConvTranspose": conv_transpose, "ConvInteger": conv_integer}


@pytest.mark.parametrize("algorithm", ["auto", "direct_loops", "im2col_gemm"])
@pytest.mark.parametrize("name", CASES)
def test_as_onnx_says(name: str, algorithm: str) -> None:
    case = CASES[name]
    expected = array(case["output"])
    y = OPERATORS[case["op"]](case["attributes"], *map(array, case["inputs"]), algorithm=algorithm)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    if algorithm == "auto" and y.dtype == np.float32:  # any, whose roundings follow the largest number
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * float(abs(expected).max()))
    else:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 4, 1), (8, 3, 2), (9, 2, 3), (5, 5, 2)])
def test_automatic_padding_is_what_onnx_defines(auto_pad: str, size: int, kernel: int, stride: int) -> None:
    """Its formulas: ceil(size / stride) outputs, the odd element at the end or at the start."""
    made = np.random.default_rng(0)
    x, w = (
        made.integers(-9, 10, (2, 3, size)).astype(np.float32),
        made.integers(-9, 10, (4, 3, kernel)).astype(np.float32),
    )
    total = 0 if auto_pad == "VALID" else max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    automatic, explicit = (
        {"strides": [stride], **how} for how in ({"auto_pad": auto_pad}, {"pads": [before, total - before]})
    )
    np.testing.assert_array_equal(
        conv(automatic, x, w, algorithm="direct_loops"), conv(explicit, x, w, algorithm="direct_loops")
    )
