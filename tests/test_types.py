"""Every type of elements, in every direction: against loops over Python's integers and over complex128."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import algos
from algos import ConvSpec
from algos.dtypes import BFLOAT16, limits, real
from algos.engine import casts
from algos.lower.search import unsupported
from algos.plans import prepared
from algos.registry import registry

TYPES = ("float16", "bfloat16", "complex64", "complex128", "int8", "uint8", "int16", "uint16", "int32",
         "uint32", "int64", "uint64", "int8>int32", "uint8>int32", "uint8*int8>int32", "int8*uint8>int16",
         "int16>int64", "bfloat16>float32", "float16>float64", "float32>float64",
         "complex64>complex128")  # fmt: skip
MODES = ("zeros", "reflect", "circular", "replicate", "symmetric", "constant:3")
ALWAYS = ("im2col_gemm", "direct_shift")  # the others now and then


def definition(spec: ConvSpec, x: Any, w: Any, grad: Any, bias: Any) -> np.ndarray:
    """Element by element, in whole numbers without end, or in complex128."""
    work = object if spec.in_dtype.kind in "iu" else np.complex128
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    y = np.zeros(spec.result_shape, work)
    for n, o, *place in np.ndindex(*spec.output_shape):
        for c, *tap in np.ndindex(inner, *spec.kernel):
            at, channel = [], o // outer * inner + c
            for axis, (i, t) in enumerate(zip(place, tap, strict=True)):
                step = spec.kernel[axis] - 1 - t if spec.flip else t
                padded = i * spec.stride[axis] + step * spec.dilation[axis] - spec.padding[axis][0]
                at.append(_source(padded, spec.size[axis], spec.padding_mode))
            outside = min(at) < 0
            if spec.direction == "input_gradient":
                if not outside:
                    y[(n, channel, *at)] += work_of(grad[(n, o, *place)]) * conjugate(w[(o, c, *tap)])
                continue
            fixed = spec.padding_mode.startswith("constant:")
            value = (spec.border - spec.zero_points[0] if fixed else 0) if outside else (
                work_of(x[(n, channel, *at)]) - spec.zero_points[0])  # fmt: skip
            if spec.direction == "forward":
                y[(n, o, *place)] += value * (work_of(w[(o, c, *tap)]) - spec.zero_points[1])
            else:
                y[(o, c, *tap)] += work_of(grad[(n, o, *place)]) * conjugate(value)
    if bias is not None:
        y = y + np.array([work_of(b) for b in bias], work).reshape(-1, *(1,) * spec.ndim)
    real_y = y if work is object else y.real
    return {"none": lambda: y, "relu": lambda: np.maximum(real_y, 0),
            "relu6": lambda: np.minimum(np.maximum(real_y, 0), 6),
            "sigmoid": lambda: 1 / (1 + np.exp(-real_y)),
            "silu": lambda: real_y / (1 + np.exp(-real_y))}[spec.activation]()  # fmt: skip


def work_of(number: Any) -> Any:
    return int(number) if np.asarray(number).dtype.kind in "iu" else complex(number)


def conjugate(number: Any) -> Any:
    return work_of(number) if isinstance(work_of(number), int) else work_of(number).conjugate()


def _source(at: int, size: int, mode: str) -> int:
    """Which element stands there; -1 where none does."""
    if 0 <= at < size:
        return at
    if mode in ("zeros",) or mode.startswith("constant:"):
        return -1
    turned = {"replicate": lambda: min(max(at, 0), size - 1), "circular": lambda: at % size,
              "symmetric": lambda: min(at % (2 * size), 2 * size - 1 - at % (2 * size)),
              "reflect": lambda: min(at % max(2 * size - 2, 1),
                                     2 * size - 2 - at % max(2 * size - 2, 1))}  # fmt: skip
    return turned[mode]()


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, largest: bool) -> np.ndarray:
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if largest else (max(info.min, -9), 9)
        return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    made = rng.standard_normal(shape)
    return (made + 1j * rng.standard_normal(shape) if dtype.kind == "c" else made).astype(dtype)


def problem(rng: np.random.Generator, dtype: str) -> ConvSpec:
    def each(low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high + 1, count))

    ndim, groups = int(rng.choice([1, 2, 2, 3])), int(rng.integers(1, 3))
    directions = ["forward"] * (2 + 20 * ("*" in dtype)) + ["input_gradient", "weight_gradient"]
    direction = str(rng.choice(directions)) if "*" not in dtype else "forward"
    kernel, gaps, most = each(1, 3, ndim), each(1, 2, ndim), 4 if ndim < 3 else 2
    size = tuple(
        (k - 1) * d + 1 + extra for k, d, extra in zip(kernel, gaps, each(0, most, ndim), strict=True)
    )
    forward, kind = direction == "forward", np.dtype(dtype.split(">")[0].split("*")[0]).kind
    named = {"i": ["none", "relu", "relu6"], "u": ["none", "relu", "relu6"], "c": ["none"]}
    activations = named.get(kind, ["none", "relu", "sigmoid", "silu"]) if forward else ["none"]
    points = each(0, 99, 2) if kind in "iu" and forward and rng.integers(2) else (0, 0)
    return ConvSpec(int(rng.integers(1, 3)), groups * int(rng.integers(1, 3)), size,
                    groups * int(rng.integers(1, 3)), kernel, each(1, 2, ndim),
                    tuple(zip(each(0, 2, ndim), each(0, 2, ndim), strict=True)), gaps, groups, dtype=dtype,
                    padding_mode=str(rng.choice(MODES)), direction=direction, flip=bool(rng.integers(2)),
                    bias=bool(forward and rng.integers(2)), activation=str(rng.choice(activations)),
                    zero_points=points)  # fmt: skip


def judge(spec: ConvSpec, rng: np.random.Generator, largest: bool, names: list[str]) -> int:
    """How many algorithms agree with the definition, which each must."""
    x = numbers(rng, spec.input_shape, spec.in_dtype, largest)
    w = numbers(rng, spec.weight_shape, spec.w_dtype, largest)
    grad = numbers(rng, spec.output_shape, spec.out_dtype, largest)
    bias = numbers(rng, (spec.out_channels,), spec.out_dtype, largest) if spec.bias else None
    with np.errstate(all="ignore"):
        exact = definition(spec, x, w, grad, bias)
    call = {"forward": (x,), "input_gradient": (grad,), "weight_gradient": (x, grad)}[spec.direction]
    weights, agreed = None if spec.direction == "weight_gradient" else w, 0
    for name in names:
        algorithm = registry()[name]
        if unsupported(algorithm, spec):
            continue
        agreed += 1
        plan = prepared(spec, weights, algorithm, int(rng.integers(1, 3)), bias=bias)
        if spec.in_dtype.kind in "iu":
            info = np.iinfo(spec.result_dtype)
            if min(exact.flat) < info.min or max(exact.flat) > info.max:
                with pytest.raises(OverflowError, match="does not fit"):
                    plan(*call)
                continue
            y = plan(*call)
            assert all(int(a) == b for a, b in zip(y.flat, exact.flat, strict=True)), (str(spec), name)
        else:
            y = plan(*call)
            unit = float(limits(real(spec.result_dtype)).eps)
            off = np.abs(y.astype(np.complex128) - exact).max() / max(float(np.abs(exact).max()), 1e-3)
            room = 8 if algorithm.accuracy == "componentwise" else 512
            assert off < room * unit, (str(spec), name, off)
        assert y.dtype == spec.result_dtype
    return agreed


@pytest.mark.parametrize("dtype", TYPES)
def test_random_problems_are_the_definition(dtype: str, request: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng([7, TYPES.index(dtype)])
    thorough = request.config.option.exhaustive
    own = [a.name for a in registry().values() if a.device == "cpu" and a.family not in ("peer", "auto")
           and (thorough or a.runtime == "numpy")]  # others compile first
    count = 60 if thorough else 6
    agreed = 0
    for k in range(count):
        others = [str(name) for name in rng.choice(own, 2)]
        agreed += judge(problem(rng, dtype), rng, bool(k % 2), [*ALWAYS, *others])
    assert agreed > 2 * count


def test_sums_beyond_float64_are_exact_or_refused() -> None:
    w = np.array([[[3, 2**40 + 1]]], np.int64)
    plan = algos.plan("1x1x3,1x1x2,int64", w)
    assert plan(np.array([[[5, 7, 2**22]]], np.int64)).tolist() == [
        [[15 + 7 * (2**40 + 1), 21 + 2**22 * (2**40 + 1)]]
    ]
    with pytest.raises(OverflowError, match="does not fit int64"):
        plan(np.array([[[2**62, 2**62, 2**62]]], np.int64))


def test_sums_with_a_large_zero_point_are_exact() -> None:
    """Of numbers that are small themselves."""
    w = np.full((1, 1, 1), 2**22 + 1, np.int32)
    plan = algos.plan("1x1x4,1x1x1,int32>int64,zp-2147483648:0", w, "im2col_gemm")
    assert plan(np.ones((1, 1, 4), np.int32)).tolist() == [[[(2**31 + 1) * (2**22 + 1)] * 4]]


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_sums_that_fit_although_their_magnitudes_tell_otherwise(dtype: str, direction: str) -> None:
    """Of more than 2^63 in magnitude: modulo 2^64, and sure of it."""
    rng, signs = np.random.default_rng(6), (-1, 1) if dtype == "int64" else (1, 1)
    padding = "reflect" if direction == "forward" else "zeros"
    spec = ConvSpec.parse(f"1x4x6x5,2x4x3x3,p1,{dtype},{padding},{direction}".replace(",zeros", "")
                          .replace(",forward", ""))  # fmt: skip
    x, w, grad = (
        (rng.integers(2**28, 2**29, shape) * rng.choice(signs, shape)).astype(dtype)
        for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
    )
    fits = definition(spec, x, w, grad, None)
    if dtype == "int64":
        fits = np.where(np.abs(fits) < 2**63, fits, 0)
    call = {"forward": (x,), "input_gradient": (grad,), "weight_gradient": (x, grad)}[direction]
    plan = algos.plan(spec, None if direction == "weight_gradient" else w, "direct_shift")
    y = plan(*call)
    assert all(int(a) == b for a, b in zip(y.flat, fits.flat, strict=True))
    large = np.full_like(call[-1], 2**62)
    with pytest.raises(OverflowError, match=rf"a sum of -?\d+ does not fit {dtype}"):
        plan(*call[:-1], large)


def test_narrow_floats_are_rounded_once() -> None:
    """2048 + 1 + 1 is 2050 in float32, and 2048 where every sum is rounded to float16."""
    x = np.array([[[2048, 1, 1]]], np.float16)
    assert algos.conv1d(x, np.ones((1, 1, 3), np.float16)).tolist() == [[[2050.0]]]
    y = algos.conv1d(np.array([[[256, 1, 1]]], BFLOAT16), np.ones((1, 1, 3), BFLOAT16))
    assert y.dtype == BFLOAT16 and float(y[0, 0, 0]) == 258.0


def test_a_plan_with_bias_and_activation() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3, 3, 3), np.float32), rng.standard_normal(4, np.float32)
    x = rng.standard_normal((2, 3, 8, 8), np.float32)
    plain = algos.plan("2x3x8x8,4x3x3x3,p1", w)(x)
    plan = algos.plan("2x3x8x8,4x3x3x3,p1", w, bias=b, activation="relu")
    assert str(plan.spec) == "2x3x8x8,4x3x3x3,p1,bias,relu"
    assert np.allclose(plan(x), np.maximum(plain + b[:, None, None], 0), atol=1e-5)
    with pytest.raises(ValueError, match="bias is missing"):
        algos.plan("2x3x8x8,4x3x3x3,p1,bias", w)


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("2x2x60x60,4x1x3x3,p1,complex64", "complex128"),
        ("2x2x60x60,4x2x3x3,p1,complex64,input_gradient", "complex128"),
        ("1x3x60x60,4x3x3x3,p1,float16", "float64"),
        ("1x3x60x60,4x3x3x3,p1,bfloat16", "float64"),
        ("1x3x60x60,4x3x3x3,p1,int8>int32", "float64"),
        ("1x64x60x60,4x64x3x3,p1,uint8*int8>int32,zp3:1", "float64"),
    ],
)
def test_large_arrays_are_converted_by_loops_that_agree(text: str, wide: str) -> None:
    spec, rng = ConvSpec.parse(text), np.random.default_rng(1)
    w = numbers(rng, spec.weight_shape, spec.w_dtype, True)
    a = numbers(
        rng, spec.input_shape if spec.direction == "forward" else spec.output_shape, spec.in_dtype, True
    )
    assert a.size >= casts.LEAST
    if wide == "float64" and spec.in_dtype.kind not in "iu":
        a.flat[:3] = np.inf, np.nan, 1e-7  # in a corner
    y = algos.plan(spec, w, "direct_shift")(a)
    x_zero, w_zero = spec.zero_points
    same = spec.with_(dtype=wide, zero_points=(0, 0))
    right = algos.plan(same, w.astype(wide) - w_zero, "direct_shift")(a.astype(wide) - x_zero)
    if spec.in_dtype.kind in "iu":
        assert np.array_equal(y, right)
    else:
        expected = right.astype(spec.result_dtype)
        assert np.array_equal(np.isfinite(y), np.isfinite(expected))
        y, right = (np.where(np.isfinite(expected), v, 0).astype(right.dtype) for v in (y, right))
        assert np.abs(y - right).max() <= 2 * float(limits(spec.result_dtype).eps) * np.abs(right).max()


def test_a_sum_that_does_not_fit_is_refused_by_the_loops_too() -> None:
    w = np.ones((1, 1, 1, 1), np.int8)
    plan = algos.plan("1x1x64x64,1x1x1x1,int8,zp0:-1", w)
    x = np.full((1, 1, 64, 64), 63, np.int8)
    assert (plan(x) == 126).all()
    x[0, 0, -1, -1] = 64
    with pytest.raises(OverflowError, match="a sum of 128 does not fit int8"):
        plan(x)


def one(dtype: Any, value: Any = 1) -> np.ndarray:
    return np.full((1, 1, 1, 1), value, dtype)


def test_a_bias_of_whole_numbers_does_not_wrap() -> None:
    for call in (algos.conv2d, algos.conv_transpose2d):
        with pytest.raises(OverflowError, match="does not fit int8"):
            call(one("i1", 127), one("i1"), np.array([1], "i1"))
        assert call(one("i1", 126), one("i1"), np.array([1], "i1")).item() == 127
    pair = np.full((1, 1, 1, 2), 64, "i1")
    assert algos.conv2d(pair, np.ones((1, 1, 1, 2), "i1"), np.array([-1], "i1")).item() == 127
    for dtype, value in (("i8", 2**62), ("u8", 2**63), ("i1", 100)):
        with pytest.raises(OverflowError, match="does not fit"):
            algos.conv2d_bias(np.full((1, 1, 1, 2), value, dtype))
    assert algos.conv2d_bias(np.full((1, 2, 1, 2), -(2**61), "i8")).tolist() == [-(2**62)] * 2


def test_biases_of_half_types_are_summed_and_rounded_once() -> None:
    assert float(algos.conv2d_bias(np.full((4, 1, 64, 64), 1, BFLOAT16))[0]) == 16384
    x, w, b = np.full((1, 1, 1, 2), 40000, "f2"), np.ones((1, 1, 1, 2), "f2"), np.array([-20000], "f2")
    assert algos.conv2d(x, w, b).item() == 60000 == algos.conv_transpose2d(x, w, b)[0, 0, 0, 1]
    assert np.isnan(algos.conv2d_bias(np.full((1, 1, 4, 4), np.nan, "c8"))).all()


def test_a_transposed_convolution_of_complex_numbers_does_not_conjugate() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, w = (numbers(rng, shape, np.dtype("c16"), False) for shape in ((2, 3, 5, 6), (3, 4, 3, 3)))
    right = torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(w), stride=2).numpy()
    assert np.allclose(algos.conv_transpose2d(x, w, stride=2), right)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "complex128", "int16"])
def test_a_promise_of_rank_is_verified_in_every_type(dtype: str) -> None:
    rng = np.random.default_rng(4)
    w = (numbers(rng, (1, 1, 5, 5), np.dtype(dtype), False))
    with pytest.raises(ValueError, match="the spec promises 1"):
        algos.plan(f"1x1x16x16,1x1x5x5,rank1,{dtype}", w)
    down, along = (numbers(rng, shape, np.dtype(dtype), False) for shape in ((1, 1, 5, 1), (1, 1, 1, 5)))
    x, kept = numbers(rng, (1, 1, 16, 16), np.dtype(dtype), False), down * along
    spec = f"1x1x16x16,1x1x5x5,rank1,{dtype if dtype != 'int16' else 'int16>int32'}"
    y = algos.plan(spec, kept)(x)
    right = algos.plan(spec.replace(",rank1", ""), kept, "direct_shift")(x)
    off = np.abs(y.astype("c16") - right.astype("c16")).max() / np.abs(right.astype("c16")).max()
    assert off <= (0 if dtype == "int16" else 16 * float(limits(real(np.dtype(dtype))).eps))


def test_whole_numbers_without_a_common_type_are_refused() -> None:
    with pytest.raises(ValueError, match="no integer type holds uint64 and int64"):
        algos.conv2d(one("u8", 2**53 + 1), one("i8"))


def test_plans_with_a_bias_travel() -> None:
    plan = algos.plan("1x1x4x4,2x1x3x3", np.ones((2, 1, 3, 3), "f4"), bias=np.array([1, 2], "f4"))
    again = pickle.loads(pickle.dumps(plan))
    x = np.ones((1, 1, 4, 4), "f4")
    assert np.array_equal(again(x), plan(x)) and again(x)[0, 1, 0, 0] == 11


def test_operands_of_every_kind_are_read() -> None:
    still = one(BFLOAT16)
    still.flags.writeable = False
    assert algos.conv2d(still, still).dtype == BFLOAT16
    assert algos.conv2d_input((1, 1, 1, 1), one("f2"), one(BFLOAT16)).dtype == np.float32
    assert algos.conv_transpose2d(one("f2"), one(BFLOAT16)).dtype == np.float32
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="detach"):
        algos.conv2d(torch.rand(1, 1, 4, 4).bfloat16().requires_grad_(), torch.rand(1, 1, 3, 3).bfloat16())
    tensor = torch.randn(1, 1, 8, 8)
    plan = algos.plan("1x1x8x8,1x1x3x3,p1", np.ones((1, 1, 3, 3), "f4"))
    with pytest.raises(ValueError, match="out overlaps an operand"):
        plan(tensor, out=tensor.numpy())


def test_no_advice_loses_values() -> None:
    for spec, w in (("1x1x1x1,1x1x1x1,int8>int32", one("i8", 300)), ("1x1x1x1,1x1x1x1", one("c8"))):
        with pytest.raises(ValueError, match="would lose values"):
            algos.plan(spec, w)
    with pytest.raises(ValueError, match=r"ml_dtypes\.bfloat16"):
        algos.plan("1x1x1x1,1x1x1x1,bfloat16", one("f4"))
    with pytest.raises(OverflowError, match="no integer type is wider"):
        algos.conv2d(one("i8", 2**62), one("i8", 2))
    with pytest.raises(ValueError, match="unknown activation"):
        algos.plan("1x1x1x1,1x1x1x1", one("f4"), activation="")


@pytest.mark.parametrize("into", ("int32", "uint32", "int64", "uint64"))
@pytest.mark.parametrize("held", ("float32", "float64"))
def test_the_first_whole_number_beyond_a_type_does_not_fit_it(into: str, held: str) -> None:
    """It is what the largest of the type rounds to in a float that cannot hold that; loops convert as many.
    """
    beyond = np.full((1, 1, 80, 90), float(np.iinfo(into).max) + 1, held)
    below, y = np.nextafter(beyond, np.zeros_like(beyond)), np.empty(beyond.shape, into)
    if below.flat[0] == np.trunc(below.flat[0]):
        casts.store_whole(y, below)
        assert (y == below.astype(into)).all()
    with pytest.raises(OverflowError):
        casts.store_whole(y, beyond)
