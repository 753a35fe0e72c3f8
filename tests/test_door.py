"""The door: every kind of array and option a user may bring ends in the right answer
or in one line that says what to do.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, signal

import algos
from algos.arrays import DeviceArray
from algos.engine.outer import numerical_rank
from bench.oracle import oracle

rng = np.random.default_rng(7)
X = rng.standard_normal((2, 4, 11, 13)).astype(np.float32)
W = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
Y = algos.conv2d(X, W, padding=1, groups=2, algorithm="direct_shift")


def close(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, rtol=1e-5, atol=1e-5)


def unaligned(a: np.ndarray) -> np.ndarray:
    raw = np.empty(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


IRREGULAR = {
    "fortran": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "negative strides": lambda a: a[..., ::-1].copy()[..., ::-1],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read-only": read_only,
    "nested lists": lambda a: a.astype(np.float64).tolist(),
}


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("algorithm", ["direct_shift", "numba_direct", "im2col_gemm", "fft"])
def test_irregular_arrays_give_the_same_answer(kind: str, algorithm: str) -> None:
    make = IRREGULAR[kind]
    x, w = make(X), make(W)
    before = np.array(x, copy=True)
    y = algos.conv2d(x, w, padding=1, groups=2, algorithm=algorithm)
    assert np.allclose(y, Y, rtol=1e-4, atol=1e-4)
    assert np.array_equal(x, before)


def test_broadcast_arrays_of_stride_zero() -> None:
    x = np.broadcast_to(np.float32(2), (1, 1, 6, 6))
    w = np.broadcast_to(np.float32(0.5), (1, 1, 3, 3))
    assert np.array_equal(algos.conv2d(x, w), np.full((1, 1, 4, 4), 9, np.float32))


@pytest.mark.parametrize(
    ("x", "w", "says"),
    [
        (X.astype(object), W, "dtype object"),
        (X > 0, W, "dtype bool"),
        (np.array([["a"]]), W, "dtype <U1"),
        ([[1, 2], [3]], W, "not a regular array"),
        (np.ma.masked_array(X, X > 0), W, "masked"),
        (X[0, 0], W, "x has 2 axes"),
        (X, W[0], "w has 3 axes"),
        (X, np.ones((6, 3, 3, 3), np.float32), "channels"),
        (X[:, :, :2], W, "exceeds the padded input"),
        (X[:, :, :0], W, "size is 0x13"),
        (X, np.ones((0, 2, 3, 3), np.float32), "out_channels is 0"),
    ],
)
def test_what_cannot_be_convolved_is_refused_in_one_line(x: Any, w: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        algos.conv2d(x, w, groups=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stride": 0}, "stride"),
        ({"stride": 1.5}, "whole number"),
        ({"padding": -9}, "crops all"),
        ({"padding": "big"}, "unknown padding"),
        ({"dilation": (1, 2, 3)}, "3 entries for 2 axes"),
        ({"groups": 3}, "groups"),
        ({"padding_mode": "mirror"}, "padding mode"),
        ({"algorithm": "fastest"}, "no algorithm is named"),
        ({"algorithm": "separable"}, "separable"),
        ({"threads": 0}, "threads"),
        ({"bias": np.zeros(5, np.float32)}, "bias has shape"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        algos.conv2d(X, W, **{"groups": 2, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 6, 11, 13), np.float64),
        np.empty((1, 6, 11, 13), np.float32),
        np.empty((2, 6, 11, 12), np.float32),
        read_only(Y),
        [0.0],
    ],
    ids=["dtype", "batch", "size", "read-only", "list"],
)
def test_an_out_that_does_not_fit_is_refused(out: Any) -> None:
    with pytest.raises(ValueError, match="out"):
        algos.conv2d(X, W, padding=1, groups=2, out=out)


OUT_OF_ALL = [
    10**30, -(10**30), 10**5000, 2.0, np.float32(2), np.float64("nan"), "2", "", b"2", None, True, np.True_,
    {}, {1}, slice(2), [], [[1]], [[[1, 1]]] * 2, [[1, 1, 1]] * 2, [1] * 1000, (2.0, 2.0), (True, 1),
    (None, None), ("1", "1"), np.array("a"), np.array([2.0, 2]), np.array([[[1]]]),
    np.array([[1, 1], None], object), np.ma.masked, object(),
]  # fmt: skip


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "option", ["stride", "padding", "dilation", "groups", "padding_mode", "algorithm", "threads"]
)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_no_value_of_an_option_breaks_the_door(option: str, ndim: int) -> None:
    x, w = np.ones((1, 2, *(9,) * ndim), np.float32), np.ones((2, 2, *(3,) * ndim), np.float32)
    convolve = (algos.conv1d, algos.conv2d, algos.conv3d)[ndim - 1]
    for value in [*OUT_OF_ALL, nested(20_000)]:
        if option == "threads" and value is None:
            continue
        with pytest.raises(ValueError) as caught:
            convolve(x, w, **{option: value})
        message = str(caught.value)
        assert ":" in message and "\n" not in message and len(message) < 600


def test_an_option_is_refused_whatever_was_called_before() -> None:
    x, w = np.ones((1, 1, 9, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for right, wrong in (
        ((2, 2), (2.0, 2.0)),
        ([1, 1], [True, True]),
        (1, np.True_),
        (((1, 1), (1, 1)), ((1, 1), (1, 1.0))),
    ):
        for options in (
            ({"padding": right}, {"stride": right}) if right != ((1, 1), (1, 1)) else ({"padding": right},)
        ):
            algos.conv2d(x, w, **options)
            with pytest.raises(ValueError, match="whole number"):
                algos.conv2d(x, w, **dict.fromkeys(options, wrong))


def test_whole_numbers_of_every_kind_are_options() -> None:
    x, w = np.ones((1, 1, 9, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for two in (2, np.int8(2), np.uint64(2), np.array(2), (2, np.int64(2)), [2, 2], np.array([2, 2])):
        assert algos.conv2d(x, w, stride=two).shape == (1, 1, 4, 4)
        assert algos.conv2d(x, w, padding=two).shape == (1, 1, 11, 11)


@pytest.mark.parametrize("name", [[], {}, None, 3, np.array([1, 2]), "x" * 5000, "a\nb"])
def test_a_name_that_is_none_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(ValueError, match="no algorithm is named") as caught:
        algos.get(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "options",
    [{"calls": 0}, {"calls": 10**400}, {"calls": 1.0}, {"max_workspace_bytes": -1},
     {"max_workspace_bytes": True}, {"device": "gpu"}, {"device": []}, {"accuracy": np.array([1, 2])},
     {"threads": 10**30}, {"threads": [1]}],
)  # fmt: skip
def test_pick_refuses_what_it_cannot_use(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        algos.pick("9x9,3x3", **options)
    assert "\n" not in str(caught.value)


def test_an_out_that_overlaps_an_operand_is_refused() -> None:
    x = np.ones((1, 1, 8, 8), np.float32)
    with pytest.raises(ValueError, match="overlaps"):
        algos.conv2d(x, np.ones((1, 1, 3, 3), np.float32), padding=1, out=x)


@pytest.mark.parametrize("which", ["x", "grad"])
def test_an_out_that_overlaps_an_operand_of_a_weight_gradient_is_refused(which: str) -> None:
    spec = algos.ConvSpec.parse("1x1x4x4,1x1x2x2,weight_gradient")
    call = {"x": np.ones(spec.input_shape, np.float32), "grad": np.ones(spec.output_shape, np.float32)}
    out = call[which].reshape(-1)[:4].reshape(spec.weight_shape)
    with pytest.raises(ValueError, match="overlaps an operand"):
        algos.plan(spec, algorithm="im2col_gemm")(*call.values(), out=out)


def test_an_out_that_overlaps_the_weights_is_refused() -> None:
    memory = np.ones(444, np.float32)
    with pytest.raises(ValueError, match="overlaps w"):
        algos.conv2d(
            np.ones((2, 3, 9, 8), np.float32),
            memory[:108].reshape(4, 3, 3, 3),
            out=memory[:336].reshape(2, 4, 7, 6),
        )


@pytest.mark.parametrize("algorithm", ["direct_shift", "numba_direct", "im2col_gemm", "fft", "auto"])
def test_out_is_filled_and_returned(algorithm: str) -> None:
    for out in (
        np.full(Y.shape, np.nan, np.float32),
        np.full((*Y.shape[:-1], 26), np.nan, np.float32)[..., ::2],
    ):
        assert algos.conv2d(X, W, padding=1, groups=2, algorithm=algorithm, out=out) is out
        assert np.allclose(out, Y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["direct_shift", "fft"])
def test_out_without_a_batch_axis_is_the_callers(algorithm: str) -> None:
    for out in (
        np.full(Y.shape[1:], np.nan, np.float32),
        np.full((*Y.shape[1:-1], 26), np.nan, np.float32)[..., ::2],
    ):
        assert algos.conv2d(X[0], W, np.ones(6), padding=1, groups=2, algorithm=algorithm, out=out) is out
        assert np.allclose(out, Y[0] + 1, rtol=1e-4, atol=1e-4)
    for shape in (Y.shape, (1, *Y.shape[1:]), Y.shape[2:]):
        with pytest.raises(ValueError, match="without a batch axis"):
            algos.conv2d(X[0], W, padding=1, groups=2, out=np.empty(shape, np.float32))


def test_types_are_promoted_and_bias_is_added() -> None:
    bias = np.arange(6)
    y = algos.conv2d(X.astype(np.float64), W, bias, padding=1, groups=2)
    assert y.dtype == np.float64
    assert np.allclose(y, Y + bias.reshape(-1, 1, 1), atol=1e-5)


def test_the_type_of_a_result_does_not_depend_on_what_was_called_before() -> None:
    for one, other in (("f4", "f4"), ("f4", "f8"), ("f8", "f4"), ("f8", "f8")):
        x, w = np.ones((1, 1, 5, 7), one), np.ones((1, 1, 3, 3), other)
        assert algos.conv2d(x, w).dtype == np.result_type(one, other)


def test_batch_axis_is_optional_and_batch_zero_is_empty() -> None:
    assert close(algos.conv2d(X[0], W, padding=1, groups=2), Y[0])
    assert algos.conv2d(X[:0], W, padding=1, groups=2).shape == (0, 6, 11, 13)


@pytest.mark.parametrize("padding", ["same", "same_lower", "valid", "full", 2, (0, 2), ((1, 0), (2, 3))])
def test_every_spelling_of_padding(padding: Any) -> None:
    y = algos.conv2d(X, W, padding=padding, groups=2)
    spec = algos.ConvSpec(2, 4, (11, 13), 6, (3, 3), padding=padding, groups=2)
    assert np.allclose(y, oracle(spec, X, W), atol=1e-5)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric", "constant:-1.5"])
def test_every_padding_mode(mode: str) -> None:
    spec = algos.ConvSpec(2, 4, (11, 13), 6, (3, 3), padding=((2, 1), (0, 2)), groups=2, padding_mode=mode)
    y = algos.conv2d(X, W, padding=[[2, 1], [0, 2]], groups=2, padding_mode=mode)
    assert np.allclose(y, oracle(spec, X, W), atol=1e-5)


def test_one_and_three_dimensions() -> None:
    signal_1d, taps = rng.standard_normal(50), rng.standard_normal(7)
    y = algos.conv1d(signal_1d[None], taps[None, None])
    assert np.allclose(y[0], np.correlate(signal_1d, taps, "valid"))
    volume, cube = rng.standard_normal((8, 9, 7)), rng.standard_normal((3, 2, 3))
    assert np.allclose(
        algos.conv3d(volume[None], cube[None, None])[0], signal.correlate(volume, cube, "valid")
    )


def test_flip_is_true_convolution() -> None:
    plan = algos.plan("11x13,3x3,float64,flip", W[:1, :1].astype(np.float64), "direct_shift")
    x = X[:1, :1].astype(np.float64)
    assert np.allclose(plan(x)[0, 0], signal.convolve2d(x[0, 0], W[0, 0], "valid"))


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 7), (5, 8), (6, 6)], ids=str)
def test_the_centres_of_other_libraries_can_be_asked_for(kernel: tuple[int, int]) -> None:
    """For even kernels there are two, and SciPy has both."""
    x, w = rng.standard_normal((11, 14)), rng.standard_normal(kernel)

    def of(options: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        shapes = (",".join("x".join(map(str, (1, 1, *a.shape))) for a in (x, w)), options)
        plan = algos.plan(",".join(shapes) + ",float64", w[None, None], "direct_shift")
        return plan(x[None, None])[0, 0]  # type: ignore[no-any-return]

    assert np.allclose(of("psame_lower,flip", x, w), signal.convolve2d(x, w, "same"))
    assert np.allclose(of("psame", x, w), signal.correlate2d(x, w, "same"))
    assert np.allclose(of("psame_lower", x, w), signal.correlate(x, w, "same"))
    assert np.allclose(of("psame,flip", x, w), ndimage.convolve(x, w, mode="constant"))
    assert np.allclose(of("psame_lower", x, w), ndimage.correlate(x, w, mode="constant"))
    assert np.allclose(of("psame_lower,flip", x[0], w[0]), signal.convolve(x[0], w[0], "same"))
    assert np.allclose(of("psame_lower,flip", x[0], w[0]), np.convolve(x[0], w[0], "same"))
    assert np.allclose(of("psame_lower", x[0], w[0]), signal.correlate(x[0], w[0], "same"))
    assert np.allclose(of("psame,flip", x[0], w[0]), ndimage.convolve1d(x[0], w[0], mode="constant"))
    y = algos.conv2d(x[None, None], w[None, None], padding="same_lower", algorithm="direct_shift")
    assert np.allclose(y[0, 0], signal.correlate(x, w, "same"))


def test_a_plan_says_what_it_is() -> None:
    spec = algos.ConvSpec.parse("2x4x11x13,6x2x3x3,p1")
    plan = algos.plan(spec, W, "im2col_gemm", threads=1)
    assert (plan.spec, plan.algorithm) == (spec, "im2col_gemm") and plan.workspace_bytes > 0
    assert close(plan(X), Y)
    with pytest.raises(ValueError, match="float64"):
        plan(X.astype(np.float64))
    with pytest.raises(ValueError, match="takes \\(x\\)"):
        plan(X, X)
    with pytest.raises(ValueError, match="shape"):
        plan(X[:1])


class Elsewhere(DeviceArray):
    """An array on a device that is a wrapper."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.flags = array, array.shape, array.dtype, array.flags

    def copy(self, order: Any = "C") -> Elsewhere:
        return Elsewhere(self.array.copy(order=order))


class Weights(algos.Algorithm):
    """Answers with the weights that it was prepared with."""

    def unsupported(self, spec: Any) -> None:
        return None

    def workspace_bytes(self, spec: Any, threads: int = 1) -> int:
        return 0

    def prepare(self, spec: Any, weights: Any, threads: int = 1) -> Any:
        return lambda x, out=None: weights


class Interfaced:
    """Another library's array that lends its memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.__array_interface__ = array, array.__array_interface__


@pytest.mark.parametrize("kind", [lambda a: a, Interfaced, Elsewhere], ids=["numpy", "interface", "device"])
def test_a_plan_keeps_its_weights(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if kind is Elsewhere else "cpu"
    monkeypatch.setattr("algos.plans.resolve", lambda *ignored: Weights("weights", "direct", device))
    w = W.copy()
    plan = algos.plan("2x4x11x13,6x2x3x3,p1", kind(w))
    w[...] = 0
    held = plan(X if device == "cpu" else Elsewhere(X))
    assert np.array_equal(held.array if kind is Elsewhere else held, W)


@pytest.mark.parametrize("algorithm", ["im2col_gemm", "fft"])
def test_a_plan_keeps_its_bias(algorithm: str) -> None:
    bias = np.arange(6, dtype=np.float32)
    plan = algos.plan("2x4x11x13,6x2x3x3,p1", W, algorithm, bias=bias)
    before = plan(X)
    bias[:] = 100
    assert np.array_equal(plan(X), before)


def test_one_plan_called_from_four_threads_stays_right() -> None:
    for name in ("fft", "im2col_gemm", "numba_direct", "direct_shift"):
        plan = algos.plan("2x4x11x13,6x2x3x3,p1", W, name)
        inputs = [np.float32(i + 1) * X for i in range(4)]
        wrong = []

        def work(i: int, plan: Any = plan, inputs: Any = inputs, wrong: Any = wrong) -> None:
            wrong.extend(
                1 for _ in range(10) if not np.allclose(plan(inputs[i]), Y * (i + 1), rtol=1e-3, atol=1e-3)
            )

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_gaussian_reaches_the_separable_algorithms_untold() -> None:
    g = np.exp(-np.linspace(-2, 2, 15) ** 2 / 2).astype(np.float32)
    kernel = np.outer(g, g)[None, None]
    assert numerical_rank(kernel, np.dtype(np.float32)) == 1
    plan = algos.plan("64x64,15x15", kernel, "separable")
    assert str(plan.spec) == "1x1x64x64,1x1x15x15"
    x = rng.standard_normal((1, 1, 64, 64)).astype(np.float32)
    assert np.allclose(plan(x)[0, 0], signal.correlate2d(x[0, 0], kernel[0, 0], "valid"), atol=1e-3)


def test_a_promised_rank_is_verified() -> None:
    with pytest.raises(ValueError, match="rank"):
        algos.plan("64x64,5x5,rank1", rng.standard_normal((1, 1, 5, 5)).astype(np.float32))


def test_nan_stays_local_where_the_error_is_componentwise() -> None:
    x = np.zeros((1, 1, 64, 64), np.float32)
    x[0, 0, 30, 30] = np.nan
    for algorithm in algos.algorithms("64x64,3x3,p1"):
        if algorithm.accuracy == "componentwise" and algorithm.device == "cpu" and algorithm.family != "auto":
            y = algos.conv2d(x, np.ones((1, 1, 3, 3), np.float32), padding=1, algorithm=algorithm.name)
            assert np.isnan(y).sum() == 9, algorithm.name


MULTIPLIES = (
    "im2col_gemm",
    "numba_direct",
    "numba_im2col",
    "scipy_correlate2d",
    "fft",
    "fft_tiles",
    "winograd_f4",
)
SKIPS = ("direct_loops", "direct_shift", "kn2row_gemm", "toeplitz")


@pytest.mark.parametrize("algorithm", MULTIPLIES + SKIPS)
def test_nan_weights_over_the_border_are_as_the_docs_say(algorithm: str) -> None:
    w = np.ones((1, 1, 3, 3), np.float32)
    w[0, 0, 0, 0] = np.nan
    y = algos.conv2d(np.ones((1, 1, 12, 12), np.float32), w, padding=1, algorithm=algorithm)
    assert np.isnan(y[0, 0, 1:, 1:]).all() and np.isnan(y[0, 0, 0, 0]) == (algorithm in MULTIPLIES)
