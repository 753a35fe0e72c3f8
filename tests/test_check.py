"""The harness judged by algorithms known to be wrong: each fault must be found,
and nothing correct may be refused.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algos.contract import Algorithm
from algos.lower.tree import plain
from algos.spec import ConvSpec
from bench import trials
from bench.bounds import tolerance
from bench.check import Verdict, check
from bench.data import operands
from bench.deviations import MOST_DEVIATIONS
from bench.store import Store
from bench.trial import Trial, UnjudgedError
from bench.winograd import TransformsError, amplified, winograd_matrices
from tests import wrong
from tests.conftest import Convbench
from tests.covering import covered
from tests.right import Minimal, Transformed, toom_cook
from tests.wrong import Right

GRID = [
    "1x1x1,1x1x1",
    "2x3x11,4x3x3,p1",
    "1x2x40,3x2x5,s2,p0:3,d2",
    "1x4x33,8x1x3,p2,circular",
    "2x3x9x8,4x3x3x3,p1",
    "1x1x12x12,1x1x5x5,p2",
    "2x4x9x10,6x2x3x2,s2x1,p1:0x0:2,d1x2",
    "2x6x8x8,6x1x3x3,p1",
    "3x6x8x9,12x1x3x3,s2,psame",
    "1x3x7x7,2x3x7x7,p3",
    "1x3x7x7,2x3x7x7",
    "1x8x6x5,5x8x1x1",
    "1x2x9x9,3x2x3x3,pfull",
    "1x2x9x9,3x2x3x3,p1,reflect",
    "1x2x9x9,3x2x3x4,p2x1:2,replicate",
    "1x2x9x9,3x2x4x3,p3x1,circular",
    "1x2x9x9,3x2x3x3,p2,symmetric",
    "1x2x9x9,3x2x3x3,p2,constant:0.7",
    "1x2x9x9,3x2x3x3,p2,constant:-1000",
    "2x3x9x9,4x3x3x3,p1,flip",
    "1x2x9x9,3x2x4x4,p1:2,reflect,flip",
    "1x2x9x9,3x2x5x5,p2,rank1",
    "1x2x9x9,3x2x5x4,p2,rank2,flip",
    "1x2x5x6x7,3x2x3x2x3,p1",
    "2x4x6x5x7,4x2x2x3x3,s2x1x2,p1,d2x1x1",
    "1x1x4x4x4,2x1x3x3x3,p1,symmetric",
    "1x512x6x6,4x512x3x3,p1",
    "0x3x9x9,4x3x3x3",
]

MIXED = ["float16", "bfloat16", "float16>float32", "bfloat16>float32", "float32>float64", "complex64",
         "complex128", "complex64>complex128", "int8", "uint8", "int8>int32", "int16>int64", "uint32",
         "int64", "uint64"]  # fmt: skip


def refused(spec: str, algorithm: Algorithm) -> Verdict:
    verdict = check(spec, algorithm)
    assert not verdict.ok, f"{type(algorithm).__name__} passed as {algorithm.accuracy} on {spec}: {verdict}"
    assert verdict.reason
    return verdict


# ---- the right one passes ----------------------------------------------------------------------------------


RIGHT = list(
    itertools.product(GRID, ["float32", "float64"], ["forward", "input_gradient", "weight_gradient"])
)


class OneElement(Right):
    """One element far from all edges, in one channel of one image."""

    def result(
        self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...], out: np.ndarray | None
    ) -> np.ndarray:
        y[(0, -1, *(n // 3 for n in y.shape[2:]))] += 1
        return super().result(spec, y, operands, out)


@pytest.mark.parametrize("text", ["1x3x60x50,4x3x3x3,p1:2x0:1,s2x1,d1x2", "1x4x90,2x2x5,p2,flip",
                                  "1x2x9x8x30,3x2x3x2x3,p1", "1x1x50x60,1x1x5x4,p3,reflect"])  # fmt: skip
def test_between_the_chosen_elements_of_large_problems_nothing_is_off(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "FULL_MACS", 0)
    monkeypatch.setattr(trials, "POINTS", 64)
    trials.seeded.cache_clear()
    try:
        assert (verdict := check(text, Right())).ok, verdict.reason
        verdict = check(text, OneElement())
    finally:
        trials.seeded.cache_clear()
    assert not verdict.ok and verdict.compared < 200


@pytest.mark.parametrize(
    ("text", "dtype", "direction"), covered(RIGHT, [set(enumerate(case)) for case in RIGHT])
)
def test_right_passes(text: str, dtype: str, direction: Any) -> None:
    spec = ConvSpec.parse(text).with_(dtype=dtype).directed(direction)
    verdict = check(spec, Right())
    assert verdict.ok, verdict.reason
    if spec.batch:
        assert verdict.gate == "whole numbers exact"
        assert verdict.compared == math.prod(spec.with_(batch=min(spec.batch, 2)).result_shape)
        assert 0 <= verdict.error_ratio <= 1 and verdict.deviations <= 4
    assert check(spec, Right(accuracy="normwise")).ok
    if spec.ndim == 2 and direction != "weight_gradient":
        assert check(spec, Right(accuracy="lowrank")).ok


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("dtype", MIXED)
@pytest.mark.parametrize(
    "text", ["2x6x9x8,4x3x3x3,s2,p1", "1x70x9x9,3x70x3x3,p1,symmetric", "1x2x9x9,3x2x4x4,p2,rank1,flip"]
)
def test_right_passes_in_every_type(text: str, dtype: str, direction: Any) -> None:
    verdict = check(ConvSpec.parse(text).with_(dtype=dtype).directed(direction), Right())
    assert verdict.ok, verdict.reason
    assert verdict.nonzero > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_seeds_change_the_data_not_the_verdict(seed: int) -> None:
    assert check("2x16x12x12,8x16x3x3,p1", Right(), seed=seed).ok


def test_constant_data_raise_no_false_alarm() -> None:
    """Every product has the same sign and rounding errors pile up: rules like sqrt(K) * u fail here, g_K
    holds.
    """
    spec = ConvSpec.parse("1x512x6x6,2x512x3x3")
    data = operands(spec)
    assert data.x is not None and data.w is not None
    data.x[...], data.w[...] = 0.1, 0.3
    trial = Trial(spec, data)
    total = np.zeros((1, 2, 4, 4), np.float32)
    # The worst order: one after the other
    for product in np.full(512 * 9, np.float32(0.1) * np.float32(0.3)):
        total += product
    error = np.abs(total - trial.exact)
    assert (error <= tolerance(trial, Right())).all()
    assert (error > 2 * math.sqrt(trial.terms) * trial.unit * np.abs(trial.exact)).all()


def test_a_sum_may_start_from_its_bias() -> None:
    """Beside a large one every addition rounds as much as the bias, whichever comes first."""
    spec = ConvSpec.parse("1x64x6x6,2x64x3x3,bias")
    data = operands(spec)
    assert data.x is not None and data.w is not None and data.bias is not None
    data.x[...], data.w[...], data.bias[...] = 0.1, 0.3, 1000.0
    trial = Trial(spec, data)
    total = np.full((1, 2, 4, 4), np.float32(1000))
    for product in np.full(64 * 9, np.float32(0.1) * np.float32(0.3)):
        total += product
    error = np.abs(total - trial.exact)
    assert (error > 4 * trial.unit * trial.exact).all()
    assert (error <= tolerance(trial, Right())).all()


# ---- the wrong ones are refused ----------------------------------------------------------------------------

FAULTY = [
    "2x3x9x8,4x3x3x3,p1",
    "2x6x9x9,6x2x5x5,s2,p2",
    "2x8x10x12,8x1x3x3,p1",
    "1x4x12x11,3x4x3x3,p2,d2",
    "2x3x30,4x3x5,s2,p1:2",
    "1x2x6x7x6,3x2x3x3x3,p1,d1x2x1",
    "1x2x9x9,3x2x3x3,p1,reflect,flip",
    "1x512x7x7,8x512x3x3,p1",
]


FAULTS = (*wrong.ARITHMETIC, *wrong.WRITING)


def shows(fault: type[Right], text: str, dtype: str = "float32", direction: Any = "forward") -> bool:
    """Whether a caller sees the fault; the door hands on copies of what it pads or reverses."""
    spec = ConvSpec.parse(text).with_(dtype=dtype).directed(direction)
    if fault in (wrong.ChangedInput, wrong.ChangedWeights) and spec != plain(spec):
        return False
    if direction == "weight_gradient" and (fault.kernel is not Right.kernel or fault is wrong.RepeatedImage):
        return False  # it has no weights, and sums over images
    if direction != "forward" and fault is wrong.IgnoredStride:
        return False  # gradients of the wrong shape raise
    return fault().shows(plain(spec))


@pytest.mark.parametrize("fault, text, dtype", [
    case for case in itertools.product(FAULTS, FAULTY, ["float32", "float64"]) if shows(*case)
])
def test_fault_is_found(fault: type[Right], text: str, dtype: str) -> None:
    refused(str(ConvSpec.parse(text).with_(dtype=dtype)), fault())


@pytest.mark.parametrize("fault, text", [case for case in itertools.product(FAULTS, FAULTY) if shows(*case)])
def test_fault_is_found_behind_a_looser_bound(fault: type[Right], text: str) -> None:
    spec = ConvSpec.parse(text)
    if fault is wrong.HalfInside and spec.reduction_length > 1000:
        return  # lost in the bounds of long sums, as the test of its own below says
    refused(text, fault(accuracy="normwise"))
    if spec.ndim == 2:
        refused(text, fault(accuracy="lowrank"))


@pytest.mark.parametrize("fault, text, direction", [
    (fault, text, direction)
    for fault, text, direction in itertools.product(FAULTS, FAULTY[:3], ["input_gradient", "weight_gradient"])
    if shows(fault, text, direction=direction)
])
def test_fault_is_found_in_gradients(fault: type[Right], text: str, direction: Any) -> None:
    refused(str(ConvSpec.parse(text).directed(direction)), fault())


GRADIENTS = [str(ConvSpec.parse(text).directed(direction))
             for text in (*FAULTY, "2x3x11x11,4x3x2x2,s3", "1x4x20,2x4x2,s4", "1x6x40,4x3x5,s2,p2",
                          "2x4x12x11,6x2x3x3,p1,flip,symmetric")
             for direction in ("input_gradient", "weight_gradient")]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (fault, text)
        for fault in wrong.GRADIENTS
        for text in GRADIENTS
        if fault().shows(plain(ConvSpec.parse(text)))
    ],
)
def test_a_mistake_of_gradients_is_found(fault: type[Right], text: str) -> None:
    for accuracy in ("componentwise", "normwise"):
        refused(text, fault(accuracy=accuracy))


def test_each_mistake_of_gradients_is_met() -> None:
    for fault in wrong.GRADIENTS:
        assert sum(fault().shows(plain(ConvSpec.parse(text))) for text in GRADIENTS) >= 2, fault.__name__


@pytest.mark.parametrize(
    "fault",
    [
        wrong.FlippedKernel,
        wrong.DroppedChannel,
        wrong.Zeros,
        wrong.ZeroedLastRow,
        wrong.ReusedBuffer,
        wrong.Remembered,
    ],
)
def test_fault_is_found_in_whole_types(fault: type[Right]) -> None:
    for dtype in ("int8>int32", "uint8"):
        refused(f"2x3x9x8,4x3x3x3,p1,{dtype}", fault())


TYPED = [
    *(f"2x3x9x8,4x3x3x3,p1,{dtype}"
      for dtype in ("float16", "bfloat16", "int8", "uint16", "int32", "int64", "uint64")),
    *(f"2x4x9x8,6x2x3x3,s2x1,p1,complex{bits}{direction}" for bits in (64, 128)
      for direction in ("", ",input_gradient", ",weight_gradient")),
    "2x3x12,4x3x3,p1,complex64,reflect,weight_gradient,flip",
    "2x3x9x8,4x3x3x3,p1,bfloat16,bias,silu", "2x3x9x8,4x3x3x3,p1,float16,bias,relu",
    "2x3x20,4x3x5,p2,float32,circular,bias,sigmoid", "2x3x9x8,4x3x3x3,p1,bias,relu6",
    "2x3x9x8,4x3x3x3,p1,float64,constant:0.7,silu", "1x2x5x6x7,3x2x3x2x3,p1,complex128,bias",
    "2x3x9x8,4x3x3x3,p1,uint8*int8>int32,bias,relu,zp128:3", "2x4x9x8,6x2x3x3,p2,int8*uint8>int32,zp-5:128",
    "2x3x9x8,4x3x3x3,p1,uint8>int32,constant:9,zp130:120", "2x3x9x8,4x3x3x3,p1,int64,bias,relu6,zp7:-3",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_right_passes_with_all_that_follows_a_sum(text: str) -> None:
    verdict = check(text, Right())
    assert verdict.ok, verdict.reason
    if ConvSpec.parse(text).in_dtype.kind not in "iu":
        assert check(text, Right(accuracy="normwise")).ok


@pytest.mark.parametrize("fault, text", [
    (fault, text) for fault in wrong.TYPES for text in TYPED if fault().shows(ConvSpec.parse(text))
])
def test_a_mistake_of_types_is_found(fault: type[Right], text: str) -> None:
    refused(text, fault())


def test_each_mistake_of_types_is_met() -> None:
    for fault in wrong.TYPES:
        assert any(fault().shows(ConvSpec.parse(text)) for text in TYPED), fault.__name__


def test_types_are_judged_in_processes_and_their_timed_calls_as_well(
    convbench: Convbench, tmp_path: Path
) -> None:
    """Operands, weights and bias travel by the names of their types; one element changes between calls."""
    texts = ["1x2x8x9,3x2x3x3,p1,complex64,bias", "1x2x8x9,3x2x3x3,p1,complex128,weight_gradient",
             "1x2x8x9,3x2x3x3,p1,bfloat16,bias,silu", "1x2x8x9,3x2x3x3,p1,uint8*int8>int32,bias,zp128:3",
             "1x2x8x9,3x2x3x3,p1,int64,relu6", "1x2x8x9,3x2x3x3,p1,bias,sigmoid"]  # fmt: skip
    folder = tmp_path / "out"
    done = convbench("run", *texts, "--algorithms", "im2col_gemm,direct_shift", "--launches", "1", "--json",
                     "--out", str(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Store(folder, create=False) as store:
        records = list(store.records())
    assert len(records) == 2 * len(texts)
    assert {(record.status, record.reason) for record in records} == {("ok", "")}


@pytest.mark.parametrize("fault", [wrong.Wraps, wrong.Saturates])
def test_reason_names_the_sum_that_does_not_fit(fault: type[Right]) -> None:
    assert "raises no OverflowError" in refused("2x3x9x8,4x3x3x3,p1,int8", fault()).reason


def test_half_precision_is_found_where_the_bound_is_loose() -> None:
    """K = 18432: g_K * B lets half precision through, the spread of seeded normals does not."""
    spec = "1x2048x4x4,2x2048x3x3,p1"
    verdict = refused(spec, wrong.HalfInside())
    assert verdict.error_ratio < 1 < verdict.deviations / MOST_DEVIATIONS
    assert check(spec, Right()).deviations < 2.5


@pytest.mark.parametrize("text", ["2x3x9x8,4x3x3x3,p1", "1x64x9x9,8x64x3x3,p1", "2x3x9x8,4x3x3x3,p1,float64"])
def test_a_rounding_too_many_is_found_on_whole_numbers(text: str) -> None:
    verdict = refused(text, wrong.Rescaled())
    assert verdict.reason.startswith("on whole numbers") and verdict.error_ratio < 1


@pytest.mark.parametrize(
    "fault, words",
    [
        (wrong.ReusedBuffer, "buffer is reused"),
        (wrong.ChangedInput, "changed its first operand"),
        (wrong.ChangedWeights, "changed its weights"),
        (wrong.InPlace, "memory of an operand"),
        (wrong.NanCorner, "not finite"),
        (wrong.NanOfFaintImages, "very different size"),
        (wrong.UnwrittenCorner, "written into out"),
        (wrong.IgnoredOut, "another array"),
        (wrong.TransposedResult, "has shape"),
        (wrong.WrongType, "is float64"),
    ],
)
def test_reason_names_the_fault(fault: type[Right], words: str) -> None:
    assert words in refused("1x4x9x9,4x4x3x3,p1", fault()).reason


def test_other_memory_orders_are_judged_alike() -> None:
    assert check("2x3x9x8,4x3x3x3,p1,reflect", Right(layout="nhwc")).ok
    refused("2x3x9x8,4x3x3x3,p1,reflect", wrong.ZeroedLastRow(layout="nhwc"))


def test_exceptions_of_an_algorithm_propagate() -> None:
    class Raises(Right):
        def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
            raise MemoryError("as an algorithm would")

    with pytest.raises(MemoryError):
        check("1x3x9x9,4x3x3x3", Raises())


# ---- large problems are judged at chosen elements ----------------------------------------------------------


def test_chosen_elements_judge_like_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "FULL_MACS", 1000)
    trials.seeded.cache_clear()
    try:
        for text in ("2x6x40x40,4x3x3x3,s2,p1,reflect", "2x6x40x40,4x6x3x3,p1,float64,input_gradient",
                     "2x6x40x40,20x6x3x3,p1,weight_gradient", "2x6x40x40,20x6x5x5,p1,rank2"):
            verdict = check(text, Right())
            assert verdict.ok and verdict.compared <= trials.POINTS + 16 + trials.FEW_POINTS // 2, (
                verdict.reason
            )
            for fault in (
                wrong.ShiftedPadding,
                wrong.ZeroedLastRow,
                wrong.NanCorner,
                wrong.ReusedBuffer,
                wrong.Zeros,
            ):
                refused(text, fault())
                refused(text, fault(accuracy="normwise"))
            assert check(text, Right(accuracy="normwise")).ok
    finally:
        trials.seeded.cache_clear()


def test_sums_too_long_for_a_bound_are_refused_not_guessed() -> None:
    verdict = check("1x1x16777216,1x1x1,weight_gradient", Right())
    assert not verdict.ok and "cannot be judged" in verdict.reason


# ---- correct algorithms of the other classes ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", [*GRID[:-1], "1x1x64x64,1x1x63x63", "1x64x20x20,8x64x9x9,p4"])
def test_fft_passes(text: str, dtype: str) -> None:
    spec = ConvSpec.parse(text).with_(dtype=dtype)
    for circular in (False, True):
        verdict = check(spec, Transformed(circular=circular))
        assert verdict.ok and verdict.error_ratio < 0.5, verdict


def test_fft_is_not_componentwise() -> None:
    """Small results beside huge ones are noise: the bound that fits a direct sum refuses it."""
    refused("1x256x16x16,4x256x9x9,p4", Transformed(accuracy="componentwise"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize(
    "text",
    [
        "2x3x9x8,4x3x3x3,p1",
        "2x6x17x13,6x2x3x3,p1:0x2:1",
        "1x16x12x12,8x16x3x3,p1,reflect,flip",
        "1x3x30,4x3x3,p1",
        "1x2x6x7x8,3x2x3x3x3,p1",
        "2x8x9x9,8x1x3x3,p1",
        "1x256x14x14,8x256x3x3,p1",
        "1x2x9x9,3x2x3x3,p2,constant:-5",
        "1x2x12x12,3x2x3x1,p1x0",
    ],
)
def test_winograd_passes(text: str, m: int, dtype: str) -> None:
    spec = ConvSpec.parse(text).with_(dtype=dtype)
    verdict = check(spec, Minimal(m=m))
    assert verdict.ok and verdict.error_ratio < 0.9, verdict
    exact = m == 2 and set(spec.kernel) == {3}
    assert verdict.gate.startswith(
        "whole numbers exact" if exact else "whole numbers exact after rounding"
    ), verdict.gate
    assert ("rounding" in verdict.gate) is not exact


def test_winograd_at_chosen_elements() -> None:
    spec = ConvSpec.parse("2x6x17x13,6x2x3x3,p1:0x2:1,flip")
    algorithm = Minimal(m=4)
    whole = Trial(spec, operands(spec))
    points = np.array(list(np.ndindex(*spec.result_shape)))[::7]
    chosen = Trial(spec, whole.data, points)
    matrices = winograd_matrices(algorithm, spec)
    np.testing.assert_allclose(
        amplified(chosen, matrices), whole_at(amplified(whole, matrices), points), rtol=1e-12
    )
    np.testing.assert_allclose(
        tolerance(chosen, algorithm), whole_at(tolerance(whole, algorithm), points), rtol=1e-12
    )


def whole_at(a: np.ndarray, points: np.ndarray) -> np.ndarray:
    return a[tuple(points.T)]


def test_amplification_is_never_below_the_magnitude() -> None:
    spec = ConvSpec.parse("1x3x9x8,4x3x3x3,p1")
    trial = Trial(spec, operands(spec))
    for m in (2, 4):
        assert (
            amplified(trial, winograd_matrices(Minimal(m=m), spec)) >= trial.magnitude * (1 - 1e-12)
        ).all()


def test_wrong_transforms_are_refused() -> None:
    class Off(Minimal):
        def transforms(self, spec: ConvSpec) -> tuple[Any, ...]:
            back, kernel, data = toom_cook(2, 3, (Fraction(0), Fraction(1), Fraction(-1)))
            return ((back, kernel, (data[0], data[1], data[2], tuple(-v for v in data[3]))),) * spec.ndim

    with pytest.raises(TransformsError, match="do not compute correlation"):
        winograd_matrices(Off(), ConvSpec.parse("1x3x9x9,4x3x3x3"))
    assert "do not compute correlation" in refused("1x3x9x9,4x3x3x3", Off()).reason
    assert "no transforms" in refused("1x3x9x9,4x3x3x3", Right(accuracy="winograd")).reason
    with pytest.raises(UnjudgedError):
        winograd_matrices(Minimal(), ConvSpec.parse("1x3x9x9,4x3x3x3,s2"))


@pytest.mark.parametrize(
    "fault",
    [
        wrong.FlippedKernel,
        wrong.DroppedChannel,
        wrong.ShiftedPadding,
        wrong.ZeroedLastRow,
        wrong.SwappedAxes,
        wrong.Zeros,
        wrong.HalfInside,
    ],
)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_fault_is_found_behind_the_winograd_bound(fault: type[Right], m: int) -> None:
    class Claims(fault):  # type: ignore[misc, valid-type]
        def transforms(self, spec: ConvSpec) -> tuple[Any, ...]:
            return Minimal(m=m).transforms(spec)

    refused("1x32x14x14,8x32x3x3,p1", Claims(accuracy="winograd"))
