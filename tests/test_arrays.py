"""What another library calls an array is computed with, or refused in one line that says what to pass
instead.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import algos
from algos.dtypes import BFLOAT16

X = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
W = np.ones((1, 1, 3, 3), np.float32)


class Lent:
    """An array that is only lent by DLPack."""

    def __dlpack__(self, **options: Any) -> Any:
        return X.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return X.__dlpack_device__()


class Broken:
    def __array__(self, *ignored: Any, **options: Any) -> Any:
        raise KeyError("no such\nthing")


class BrokenProperty:
    @property
    def toarray(self) -> Any:
        raise RuntimeError("never asked")


def without_end() -> list:
    endless: list = []
    endless.append(endless)
    return endless


def released() -> memoryview:
    view = memoryview(bytearray(8))
    view.release()
    return view


REFUSED = {
    "None": (None, "None: pass an array of numbers"),
    "a dictionary": ({}, "pass an array of numbers"),
    "a generator": ((row for row in X), "pass an array of numbers"),
    "a class": (np.ndarray, "pass an array of numbers"),
    "a released memoryview": (released(), "pass an array of numbers"),
    "text": ("abc", "np.array({0}, np.float64)"),
    "bytes": (b"abc", "np.frombuffer"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "({0} - start) / np.timedelta64"),
    "durations": (np.array([1], "m8[s]"), "{0} / np.timedelta64"),
    "objects of dates": ([datetime.date(2020, 1, 1)], "dtype object"),
    "numbers beyond 64 bits": ([2**70], "dtype object"),
    "numbers of two integer types": ([[[[2**63 + 1, -1, 0]] * 3]], "no one integer type"),
    "long double": (X.astype(np.longdouble), "np.asarray({0}, np.float64)"),
    "bool": (X > 3, "np.asarray({0}, np.float32)"),
    "fields": (np.zeros(3, [("a", "f4"), ("b", "f4")]), "{0}['a']"),
    "masked": (np.ma.masked_array(X, X > 3), "{0}.filled"),
    "masked inside lists": ([[np.ma.masked_array(X[0, 0], X[0, 0] > 3)]], "{0}.filled"),
    "ragged": ([[1, 2], [3]], "not a regular array"),
    "without end": (without_end(), "not a regular array"),
    "a sparse matrix": (scipy.sparse.csr_array(np.eye(6)), "{0}.toarray()"),
    "a missing value": ([[[pd.NA, 1.0, 2.0]]], "dtype object"),
    "columns of text": (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "dtype object"),
    "broken": (Broken(), "no such"),
    "a broken property": (BrokenProperty(), "{0}.toarray"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_numbers_is_refused_with_advice(kind: str) -> None:
    given, says = REFUSED[kind]
    plan = algos.plan("6x6,3x3", W, "direct_shift")
    for call, name in (
        (lambda: algos.conv2d(given, W), "x"),
        (lambda: algos.conv2d(X, given), "w"),
        (lambda: plan(given), "x"),
        (lambda: algos.conv2d(X, W, given), "bias"),
        (lambda: algos.plan("6x6,3x3", given), "w"),
    ):
        if given is None and name != "x":
            continue
        with pytest.raises(ValueError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"{name} ") and says.format(name) in message and "\n" not in message


def test_torchs_tensors_are_read_or_refused_with_torchs_own_remedy() -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(36, dtype=torch.float32).reshape(1, 1, 6, 6)
    right = algos.conv2d(X, W, algorithm="direct_shift")
    for readable in (
        x,
        x.double(),
        x.half(),
        x.to(torch.int16),
        x.to(torch.complex64),
        x.contiguous(memory_format=torch.channels_last),
    ):
        assert np.array_equal(algos.conv2d(readable, W, algorithm="direct_shift"), right)
    gradients = x.clone().requires_grad_()
    refused = {
        "x.detach()": gradients, "x.resolve_conj()": x.to(torch.complex64).conj(),
        "on 'meta'": x.to("meta"), "x.to_dense()": x[0, 0].to_sparse(),
        "x.resolve_neg()": x.to(torch.complex64).conj().imag, "np.asarray(x, np.float32)": x > 3,
    }  # fmt: skip
    for says, given in refused.items():
        with pytest.raises(ValueError) as caught:
            algos.conv2d(given, W)
        assert says in str(caught.value) and "\n" not in str(caught.value)
    with torch.no_grad():
        assert np.array_equal(algos.conv2d(gradients, W, algorithm="direct_shift"), right)
    narrow = algos.conv2d(x.bfloat16(), torch.ones(1, 1, 3, 3, dtype=torch.bfloat16))
    assert narrow.dtype == BFLOAT16 and np.array_equal(narrow, algos.conv2d(X, np.ones((1, 1, 3, 3), "f4")))


def test_a_remedy_that_is_named_works() -> None:
    right = algos.conv2d(X, W, algorithm="direct_shift")
    for given in (
        Lent(),
        np.asarray(X.astype(np.longdouble), np.float64),
        np.array(X.astype(str), np.float64),
        np.array(X.astype(object), np.float64),
        memoryview(X),
        X.tolist(),
    ):
        assert np.array_equal(algos.conv2d(given, W, algorithm="direct_shift"), right)
    assert np.allclose(algos.conv2d(X + 1j * X[..., ::-1], W), right + 1j * right[..., ::-1])


def test_a_bias_beyond_the_type_of_the_result_is_refused() -> None:
    with pytest.raises(ValueError, match="bias goes beyond float32"):
        algos.conv2d(X, W, np.array([1e300]))
    assert np.isinf(algos.conv2d(X, W, np.array([np.inf]))).all()
