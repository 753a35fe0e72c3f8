"""ConvSpec: what the text says, what it refuses, what follows from it."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.lower.border import padding
from algos.lower.tree import plain
from algos.spec import DIRECTIONS, ConvSpec, SpecError
from bench.oracle import border_value, oracle

DESIGNED = [
    "1x64x56x56,128x64x3x3,p1",
    "1x3x224x224,64x3x7x7,s2,p3",
    "1x32x112x112,32x1x3x3,p1",
    "1x1x4096,1x1x64,p0:63",
    "2x16x8x8x8,4x16x3x3x3,s2x1x1,d1x2x2",
    "1x1x512x512,1x1x15x15,p7,rank1,float64,reflect,input_gradient,flip",
    "1x1x9x9,1x1x3x3,int8>int32",
    "1x1x9x9,1x1x3x3,p1:0x0:1,constant:-0.5,weight_gradient",
]


@pytest.mark.parametrize("text", DESIGNED)
def test_canonical_text_is_its_own_name(text: str) -> None:
    assert str(ConvSpec.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("512x512,7x7", "1x1x512x512,1x1x7x7"),
        ("9x9,3x3,psame", "1x1x9x9,1x1x3x3,p1"),
        ("8x8,4x4,psame", "1x1x8x8,1x1x4x4,p1:2"),
        ("9x9,3x3,psame_lower", "1x1x9x9,1x1x3x3,p1"),
        ("8x8,4x4,psame_lower", "1x1x8x8,1x1x4x4,p2:1"),
        ("8x8,3x3,s2,psame_lower", "1x1x8x8,1x1x3x3,s2,p1:0"),
        ("9x9,3x3,pfull,d2", "1x1x9x9,1x1x3x3,p4,d2"),
        ("9x9,3x3,s1,p0,d1,float32,zeros,forward", "1x1x9x9,1x1x3x3"),
        ("9x9,3x3,flip,p1,s2", "1x1x9x9,1x1x3x3,s2,p1,flip"),
        ("9x9,3x3,p1x1,s2x2", "1x1x9x9,1x1x3x3,s2,p1"),
        ("9x9,3x3,p1,constant:0", "1x1x9x9,1x1x3x3,p1"),
        ("9x9,3x3,p1,constant:-1e-60", "1x1x9x9,1x1x3x3,p1"),
        ("9x9,3x3,p1,constant:.10", "1x1x9x9,1x1x3x3,p1,constant:0.1"),
        ("9x9,3x3,p1,float64,constant:2e300", "1x1x9x9,1x1x3x3,p1,float64,constant:2e+300"),
        ("9x9,3x3,float32>float32", "1x1x9x9,1x1x3x3"),
    ],
)
def test_text_is_made_canonical(text: str, canonical: str) -> None:
    assert str(ConvSpec.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("9x9", "no weights"),
        ("-1x9,3x3", "not a shape"),
        ("0x9,3x3", "1 or more"),
        ("9x9,0x3", "1 or more"),
        ("９x9,3x3", "not a shape"),
        ("9X9,3x3", "not a shape"),
        ("9x9, 3x3", "not a shape"),
        ("9" * 5000 + "x9,3x3", "too long"),
        ("999999999999999999x999999999999999999,3x3", "too large"),
        ("0x1x99999999999x99999999999,1x1x1x1", "too large"),
        ("9x9,3x3,zz", "unknown option"),
        ("9x9,3x3,s0", "1 or more"),
        ("9x9,3x3,d0", "1 or more"),
        ("9x9,3x3,s1x1x1", "3 entries for 2 axes"),
        ("9x9,3x3,p-9", "crops all"),
        ("9x9,3x3,s2,s2", "repeats stride"),
        ("9x9,3x3,zeros,reflect", "repeats"),
        ("5x5,7x7", "exceeds the padded input"),
        ("5x5,3x3,d3", "exceeds the padded input"),
        ("1x4x5x5,4x3x3x3", "not divisible"),
        ("1x4x5x5,3x2x3x3", "not divisible"),
        ("9x9,3x3,rank4", "outside 1..3"),
        ("1x1x9,1x1x3,rank1", "2-D"),
        ("9x9,3x3,float32>int8", "lose"),
        ("9x9,3x3,complex32", "unknown"),
        ("9x9,3x3,constant:nan", "finite"),
        ("9x9,3x3,int8,constant:0.5", "whole number"),
        ("3x3,1x1,p1:-3", "crops all"),
        ("3x3,1x1,p1:-3,reflect,input_gradient", "crops all"),
        ("9x9,3x3,rank1,weight_gradient", "weight_gradient computes them: leave rank out"),
        ("9x9,3x3,constant:1e300", "does not fit float32"),
        ("9x9,3x3,int8,constant:200", "does not fit int8"),
        ("9x9,3x3,int64,constant:9223372036854775808", "to 9223372036854775807"),
        ("9x9,3x3,uint64,constant:18446744073709551616", "to 18446744073709551615"),
        ("9x9,3x3,int64,constant:-9223372036854775809", "does not fit int64"),
        ("9x9,3x3,float16,constant:65520", "does not fit float16"),
        ("9x9,3x3,constant:3.4028236e38", "does not fit float32"),
        ("9x9,3x3,constant:" + "9" * 500, "at most 400 characters"),
        ("9x9x9,3x3", "numbers"),
        ("3x224x224,64x3x7x7", "shapes of 3 and 4 numbers"),
        ("512x512,1x1x7x7", "shapes of 2 and 4 numbers"),
        ("100,5", "shapes of 1 and 1 numbers"),
        ("3x224x224,8x3x3", "a picture has four"),
    ],
)
def test_what_describes_no_convolution_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        ConvSpec.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "signal", "picture"),
    [
        ("1x28800000,1x4096", "1x1x28800000,1x1x4096", "1x1x1x28800000,1x1x1x4096"),
        ("512x1,7x1", "1x1x512,1x1x7", "1x1x512x1,1x1x7x1"),
        ("1x512,8x5", "1x1x512,8x1x5", "1x1x1x512,1x1x8x5"),
    ],
)
def test_two_numbers_that_may_be_a_signal_are_refused_with_both_spellings(
    text: str, signal: str, picture: str
) -> None:
    with pytest.raises(SpecError, match=f"write {signal} or {picture}$"):
        ConvSpec.parse(text)
    assert ConvSpec.parse(signal).ndim == 1 and str(ConvSpec.parse(signal)) == signal
    if text != "1x512,8x5":  # whose kernel is too high for that picture
        assert ConvSpec.parse(picture).ndim == 2


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("int64", "9007199254740993", 2**53 + 1),
        ("int64", "-9223372036854775808", -(2**63)),
        ("int64", "1e18", 10**18),
        ("int64>int64", "9223372036854775807", 2**63 - 1),
        ("uint64", "18446744073709551615", 2**64 - 1),
        ("int8>int32", "-128.0", -128),
        ("float64", "9007199254740993", 2.0**53),
        ("float32", "16777217", 2.0**24),
        ("float16", "65504", 65504.0),
        # halfway but for the last digit: by way of float64 it is halfway, and rounds to the even 1
        ("float32", "1.000000059604644775390625000000000001", 1 + 2.0**-23),
        ("float32", "1.000000059604644775390625", 1.0),
        ("float16", "6e-8", 2.0**-24),
        ("float32", "1e-45", 2.0**-149),
        ("float64", "5e-324", 5e-324),
    ],
)
def test_the_number_of_a_border_is_exact(dtype: str, text: str, value: float) -> None:
    spec = ConvSpec.parse(f"1x1x3,1x1x3,p1,{dtype},constant:{text}")
    again = ConvSpec.parse(str(spec))
    assert again == spec and again.border == spec.border == border_value(spec) == value
    assert type(spec.border) is type(value) and spec.in_dtype.type(value) == value
    (padded,) = padding(spec)(np.ones((1, 1, 3), spec.in_dtype))
    assert padded.dtype == spec.in_dtype and padded[0, 0].tolist() == [value, 1, 1, 1, value]
    assert oracle(spec, padded[..., 1:4], np.eye(3)[None, :1].astype(spec.in_dtype))[0, 0].tolist() == [
        value,
        1,
        1,
    ]


@given(st.sampled_from(["float16", "float32", "float64"]), st.data())
def test_every_number_of_a_float_type_has_a_name(dtype: str, data: st.DataObject) -> None:
    width = int(dtype[5:])
    number = data.draw(st.floats(width=width, allow_nan=False,
                                 allow_infinity=False))  # type: ignore[arg-type]
    spec = ConvSpec.parse(f"9x9,3x3,p1,{dtype},constant:{number!r}")
    assert spec.border == border_value(spec) == number and ConvSpec.parse(str(spec)) == spec


written = st.from_regex(r"-?[0-9]{1,3}\.[0-9]{1,60}(e-?[0-9]{1,2})?", fullmatch=True)


@given(st.sampled_from(["float16", "float32", "float64"]), written)
def test_the_oracle_reads_the_number_that_the_door_reads(dtype: str, text: str) -> None:
    try:
        spec = ConvSpec.parse(f"9x9,3x3,p1,{dtype},constant:{text}")
    except SpecError:
        return
    named = spec.with_(padding_mode="zeros")  # the oracle is given the text as it was written
    object.__setattr__(named, "padding_mode", f"constant:{text}")
    assert border_value(named) == spec.border


@pytest.mark.parametrize("bad", [1.5, "3", None, True, (3,)])
def test_a_size_that_is_no_whole_number_is_refused(bad: object) -> None:
    with pytest.raises(SpecError):
        ConvSpec(1, bad, (9, 9), 1, (3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"stride": 10**30}, {"padding": 10**18}, {"dilation": (1, 10**30)}, {"dtype": None}, {"dtype": True},
     {"dtype": [[1]]}, {"direction": []}, {"padding_mode": {}}, {"flip": "no"}, {"flip": 1}, {"rank": 10**30},
     {"stride": b"11"}, {"padding": 10**17}],
    ids=str,
)  # fmt: skip
def test_every_field_is_checked(change: dict) -> None:
    """What passes can be written as text and read back; numbers have at most 18 digits there."""
    (name,) = change
    with pytest.raises(
        SpecError, match="array" if change == {"padding": 10**17} else name.replace("_", " ")
    ) as caught:
        ConvSpec(
            **{"batch": 1, "in_channels": 2, "size": (9, 9), "out_channels": 2, "kernel": (3, 3), **change}
        )
    assert "\n" not in str(caught.value)


def test_batch_of_zero_is_an_empty_output() -> None:
    spec = ConvSpec.parse("0x3x9x9,4x3x3x3")
    assert spec.output_shape == (0, 4, 7, 7) and spec.macs == 0


def test_the_door_hands_on_padded_and_reversed_work() -> None:
    spec = ConvSpec.parse("1x1x9x9,1x1x3x3,p1:2,reflect,flip")
    assert str(plain(spec)) == "1x1x12x12,1x1x3x3"


dims = st.integers(1, 12)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    ndim = draw(st.integers(1, 3))
    axes = lambda low, high: st.tuples(*[st.integers(low, high)] * ndim)  # noqa: E731
    groups, per_in, per_out = draw(st.integers(1, 4)), draw(dims), draw(dims)
    kernel, dilation = draw(axes(1, 5)), draw(axes(1, 3))
    size = tuple(
        (k - 1) * d + 1 + extra for k, d, extra in zip(kernel, dilation, draw(axes(0, 9)), strict=True)
    )
    padding = tuple(zip(draw(axes(0, 3)), draw(axes(0, 3)), strict=True))
    direction = draw(st.sampled_from(DIRECTIONS))
    ranked = ndim == 2 and direction != "weight_gradient"
    return ConvSpec(
        draw(st.integers(0, 3)),
        groups * per_in,
        size,
        groups * per_out,
        kernel,
        draw(axes(1, 4)),
        padding,
        dilation,
        groups,
        rank=draw(st.one_of(st.none(), st.integers(1, min(kernel)))) if ranked else None,
        dtype=draw(st.sampled_from(["float32", "float64", "int8>int32", "float16>float32"])),
        padding_mode=draw(st.sampled_from(["zeros", "replicate", "constant:3", "constant:-7"])),
        direction=direction,
        flip=draw(st.booleans()),
    )


@given(specs())
def test_parse_is_the_inverse_of_str(spec: ConvSpec) -> None:
    again = ConvSpec.parse(str(spec))
    assert again == spec and hash(again) == hash(spec) and str(again) == str(spec)


@given(specs())
def test_derived_figures_follow_from_counting(spec: ConvSpec) -> None:
    for axis in range(spec.ndim):
        reads = [
            o * spec.stride[axis] + k * spec.dilation[axis] - spec.padding[axis][0]
            for o in range(spec.output_size[axis]) for k in range(spec.kernel[axis])
        ]
        assert max(reads) < spec.size[axis] + spec.padding[axis][1]
        unread = sorted(set(range(spec.size[axis])) - set(reads))
        assert spec.unread[axis] == (len(unread), tuple(unread[:6]))
    assert spec.flops == 2 * spec.macs >= spec.operations


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    try:
        spec = ConvSpec.parse(text)
    except SpecError as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert ConvSpec.parse(str(spec)) == spec


def extreme(chosen: random.Random) -> ConvSpec:
    """Any spec that is legal, its numbers of any magnitude."""

    def number(digits: float, low: int = 1) -> int:
        return max(low, int(10 ** chosen.uniform(-1, digits)))

    def axes(ndim: int, digits: float, low: int = 1) -> tuple[int, ...]:
        return tuple(number(digits, low) for _ in range(ndim))

    while True:
        n, groups, large = chosen.randint(1, 3), number(3), chosen.choice([2, 5, 12, 17])
        padding = (
            "same" if chosen.random() < 0.3 else tuple(zip(axes(n, large, 0), axes(n, large, 0), strict=True))
        )
        try:
            return ConvSpec(
                number(3, 0), groups * number(2), axes(n, large), groups * number(2),
                axes(n, chosen.choice([1, large])), axes(n, 17), padding, axes(n, chosen.choice([1, large])),
                groups, None, chosen.choice(["float32", "int8>int32", "float64"]),
                chosen.choice(["zeros", "replicate", "circular", "constant:7"]),
                chosen.choice(DIRECTIONS), chosen.random() < 0.3,
            )  # fmt: skip
        except SpecError:
            continue


def test_whatever_is_legal_is_answered_from_its_numbers_alone() -> None:
    chosen = random.Random(0)
    texts = ["1x1x100000000,1x1x1,s1000", "8x156x219047491,3198x2x74291036,p61491804466"]
    tracemalloc.start()
    try:
        for spec in [*map(ConvSpec.parse, texts), *(extreme(chosen) for _ in range(400))]:
            again = ConvSpec.parse(str(spec))
            assert again == spec and hash(again) == hash(spec)
            for (count, first), size in zip(spec.unread, spec.size, strict=True):
                assert len(first) == min(count, 6) and all(0 <= i < size for i in first) and count <= size
            assert len(spec.unread_text()) < 500 and plain(spec).output_shape[1:] == spec.output_shape[1:]
            for name in dir(ConvSpec):
                if not name.startswith("_") and isinstance(getattr(ConvSpec, name), property):
                    getattr(spec, name)
            assert spec.operations <= spec.flops and spec.min_bytes >= 0 <= spec.parameters(bias=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert ConvSpec.parse(texts[0]).unread == ((99_900_000, (1, 2, 3, 4, 5, 6)),)
