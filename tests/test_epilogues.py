"""A bias and an activation that kernels apply as they write: the same numbers as in a pass of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import algos
from algos import ConvSpec
from algos.contract import Algorithm
from algos.engine import epilogue
from algos.engine.activations import activated
from algos.estimate import Knowledge, tunables_text
from algos.lower.search import chain, unsupported
from algos.plans import prepared
from algos.registry import get, registry
from algos.wisdom import Known
from tests.conftest import HUNG_S
from tests.covering import code_of, covering, traits
from tests.test_contract import CHOSEN_CODES

# Tails of rows, of vectors of channels and of blocks; images and groups; no layer is as simple as it may be.
# Kernels are those of the contract's grid where they are not the point: their code is compiled already.
SPECS = (
    "2x5x13x19,9x5x3x3,p1", "2x6x14x23,8x3x3x3,p1", "1x3x25x27,11x3x3x3,s2,p1", "2x24x9x11,31x24x1x1",
    "1x300x5x7,13x300x1x1", "2x7x33x45,7x1x3x3,p1", "2x6x21x29,12x1x5x4,s2,p2", "1x1x70x90,3x1x5x4,p2",
    "2x1x40x150,2x1x3x3,rank1", "1x2x30x20,2x2x5x4,s2,rank2", "1x2x40x50,3x2x19x19,s2", "2x4x300,6x4x9,p4",
    "2x4x200,4x1x5,s2,p2", "1x2x5x9x8,4x2x3x3x3,p1", "2x17x1x1,40x17x1x1", "2x3x9x3,3x1x3x3,p1",
)  # fmt: skip
FOLLOWING = ("bias", "bias,relu", "relu6", "bias,sigmoid", "silu")
OWN = [a for a in registry().values() if a.device == "cpu" and a.family not in ("peer", "auto")]


def numbers(spec: ConvSpec) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(len(str(spec)))
    x, w = (rng.standard_normal(shape) for shape in (spec.input_shape, spec.weight_shape))
    if spec.rank is not None:  # kernels that keep the promise
        pairs = spec.weight_shape[:2]
        down, along = (rng.standard_normal((*pairs, spec.rank, k)) for k in spec.kernel)
        w = np.einsum("oirh,oirw->oihw", down, along)
    bias = rng.standard_normal(spec.out_channels) if spec.bias else None
    return tuple(a if a is None else a.astype(spec.in_dtype) for a in (x, w, bias))  # type: ignore[return-value]


def judge(algorithm: Algorithm, spec: ConvSpec, threads: int) -> None:
    """Against its own convolution and NumPy's pass over that."""
    x, w, bias = numbers(spec)
    bare = spec.with_(bias=False, activation="none")
    y = prepared(bare, w, algorithm, threads)(x)
    if bias is not None:
        y += bias.reshape(-1, *(1,) * spec.ndim)
    plan = prepared(spec, w, algorithm, threads, bias=bias)
    room = np.full((spec.batch + 2, *spec.output_shape[1:]), 7, spec.out_dtype)
    for found in (plan(x), plan(x, out=room[1:-1]), plan(x)):
        assert (room[0] == 7).all() and (room[-1] == 7).all()
        exact = activated(y.copy(), spec.activation)
        if spec.activation in ("sigmoid", "silu"):
            off = np.abs(found - exact).max() / np.finfo(spec.out_dtype).eps
            assert off < 4 * max(1, np.abs(y).max()), (algorithm.name, str(spec), threads)
        else:
            assert np.array_equal(found, exact), (algorithm.name, str(spec), threads)


def cases(algorithm: Algorithm, whole: bool) -> list[tuple[ConvSpec, int]]:
    """Problems and threads; unless ``whole``, so many that every trait occurs, of code that is compiled
    anyway where that will do.
    """
    every = [
        (ConvSpec.parse(f"{text},{following}" + ",float64" * ((k + j) % 3 == 2)), 1 + (k + j) % 2)
        for k, text in enumerate(SPECS)
        for j, following in enumerate(FOLLOWING)
    ]
    solved = [(spec, threads) for spec, threads in every if unsupported(algorithm, spec) is None]
    if whole:
        return solved
    found = [{*traits(spec), spec.bias, spec.activation, threads} for spec, threads in solved]
    codes = [code_of(algorithm, chain(algorithm, spec).leaves[0]) for spec, _ in solved]
    return [solved[i] for i in sorted(covering(found, codes, CHOSEN_CODES))]


@pytest.mark.parametrize("algorithm", OWN, ids=lambda a: a.name)
def test_the_same_as_a_pass_of_its_own(algorithm: Algorithm, request: pytest.FixtureRequest) -> None:
    if algorithm.unavailable() is None:
        chosen = cases(algorithm, request.config.option.exhaustive)
        for spec, threads in chosen:
            judge(algorithm, spec, threads)
        assert chosen


def test_a_last_block_of_fewer_groups_ends_with_them() -> None:
    blocks = replace(get("direct_shift"), block_bytes=400)  # type: ignore[call-arg]  # of 2, 2 and 1 groups
    judge(blocks, ConvSpec.parse("1x5x6x7,5x1x3x3,p1,bias,sigmoid"), 1)


def test_what_is_applied_as_it_is_written_is_no_pass() -> None:
    spec = ConvSpec.parse("1x8x14x14,8x1x3x3,p1,bias,relu")
    assert chain(get("depthwise"), spec).words == ""
    assert chain(get("fft"), spec).words == "bias and relu in a pass of their own"
    ours = {"depthwise", "direct_channels", "winograd_f4", "fft_fused", "im2col_gemm"}
    assert ours <= {a.name for a in OWN if a.support is not None and a.support.epilogues}


SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-38, -1e-38, 87.0, -87.0, -90.0, -103.0, 745.0, -745.0, 6.0,
           3e38)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["depthwise", "direct_channels", "fft"])  # in registers, after, in a pass
def test_numbers_that_are_none_become_what_torch_makes_of_them(name: str, dtype: str) -> None:
    nothing = {"relu": [np.nan], "relu6": [np.nan], "sigmoid": [np.nan], "silu": [np.nan, -np.inf]}
    x = np.tile(np.array(SPECIAL, dtype), 3)[None, None, None]
    for activation, spoilt in nothing.items():
        if name == "fft":  # one NaN spoils its whole picture: bias brings them
            bias = np.array(SPECIAL, dtype)
            spec = ConvSpec.parse(f"1x1x2x9,{bias.size}x1x1x1,{dtype},bias,{activation}")
            w = np.zeros(spec.weight_shape, dtype)
            plan = prepared(spec, w, get(name), 1, bias=bias)
            given, y = bias, plan(np.zeros((1, 1, 2, 9), dtype))[0, :, 1, 4]
        else:
            spec = ConvSpec.parse(f"1x1x1x{x.size},1x1x1x1,{dtype},{activation}")
            given, y = x.ravel(), prepared(spec, np.ones((1, 1, 1, 1), dtype), get(name), 1)(x).ravel()
        with np.errstate(all="ignore"):
            wide = given.astype(np.longdouble)
            gate = np.where(wide < 0, np.exp(-np.abs(wide)), 1) / (1 + np.exp(-np.abs(wide)))
            exact = {"relu": np.maximum(wide, 0), "relu6": np.clip(wide, 0, 6), "sigmoid": gate,
                     "silu": wide * gate}[activation]  # fmt: skip
        none = np.isnan(given) | np.isin(given, spoilt)
        assert (np.isnan(y) == none).all()
        assert np.isinf(y).tolist() == (np.isinf(exact) & ~none).tolist()
        finite = np.isfinite(exact) & ~none
        tiny, eps = np.finfo(dtype).tiny, np.finfo(dtype).eps
        off = np.abs(y[finite] - exact[finite])
        assert (off <= 3 * eps * np.abs(exact[finite]) + 745 * eps * tiny).all(), (name, activation)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gates_are_right_to_a_few_roundings(dtype: str) -> None:
    bound = 700 if dtype == "float64" else 80
    x = np.linspace(-bound, bound, 60_007, dtype=dtype).reshape(1, 1, 1, -1)
    wide = x.astype(np.longdouble)
    for activation, exact in {"sigmoid": 1 / (1 + np.exp(-wide)), "silu": wide / (1 + np.exp(-wide))}.items():
        spec = ConvSpec.parse(f"1x1x1x{x.size},1x1x1x1,{dtype},{activation}")
        y = prepared(spec, np.ones((1, 1, 1, 1), dtype), get("numba_direct"), 1)(x)
        assert (np.abs(y - exact) <= 3 * np.finfo(dtype).eps * np.abs(exact)).all()


WIDTH = """
import sys
import numpy as np
from algos import plan
from algos.engine.activations import activated
for name in ("depthwise", "fft"):
    rng = np.random.default_rng(0)
    dtype = sys.argv[1]
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 3, 9, 23), (3, 1, 3, 3), 3))
    spec = "2x3x9x23,3x1x3x3," + dtype
    y = plan(spec, w, name)(x) + b[:, None, None]
    found = plan(spec, w, name, bias=b, activation="silu")(x)
    assert np.allclose(found, activated(y, "silu"), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize(
    ("simd", "dtype"),
    [
        ("plain", "float32"),
        ("avx2", "float64"),
        pytest.param("plain", "float64", marks=pytest.mark.exhaustive),
        pytest.param("avx2", "float32", marks=pytest.mark.exhaustive),
    ],
)
def test_vectors_of_any_width(simd: str, dtype: str) -> None:
    environment = {**os.environ, "CONVBENCH_SIMD": simd}
    done = subprocess.run(
        [sys.executable, "-c", WIDTH, dtype], env=environment, capture_output=True, text=True, timeout=HUNG_S
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_bias_of_a_call(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    shapes = (2, 4, *(7,) * ndim), (6, 2, *(3,) * ndim), (6,)
    x, w, bias = (rng.standard_normal(shape, np.float32) for shape in shapes)
    conv = getattr(algos, f"conv{ndim}d")
    column = bias.reshape(-1, *(1,) * ndim)
    for name in ("auto", "direct_loops", "direct_channels"):
        alone = conv(x, w, groups=2, padding=1, algorithm=name, threads=1)
        both = conv(x, w, bias, groups=2, padding=1, algorithm=name, threads=1)
        assert np.allclose(both, alone + column, atol=1e-5)
        out = np.empty_like(alone[0])
        assert conv(x[0], w, bias, groups=2, padding=1, algorithm=name, threads=1, out=out) is out
        assert np.allclose(out, alone[0] + column, atol=1e-5)
        again = conv(x, w, groups=2, padding=1, algorithm=name, threads=1)
        assert np.array_equal(again, alone)  # the bias is no part of what later calls reuse


def test_what_was_measured_without_them_counts_with_a_pass_where_there_is_one() -> None:
    bare = ConvSpec.parse("1x64x56x56,64x1x3x3,p1")
    spec = bare.with_(bias=True, activation="silu")
    found = {name: get(name) for name in ("depthwise", "fft")}
    entries = [
        Known(spec=str(bare), algorithm=name, machine="m", build="b", tunables=tunables_text(a), threads=1,
              status="ok", reason="", run_s=1e-3, prepare_s=0.0)
        for name, a in found.items()
    ]  # fmt: skip
    knowledge = Knowledge(entries, found, lambda a: "b")
    times = {name: knowledge.estimate(chain(a, spec), 1) for name, a in found.items()}
    assert {e.source for e in times.values()} == {"measured"}
    assert times["depthwise"].run_s == 1e-3
    moved = 2 * 4 * np.prod(spec.output_shape)
    assert times["fft"].run_s > 1e-3 + moved / 1e12
    assert chain(found["fft"], spec).seconds() > chain(found["fft"], bare).seconds() + moved / 1e12
    assert chain(found["depthwise"], spec).seconds() == chain(found["depthwise"], bare).seconds()


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_pass_that_threads_share_is_that_of_one(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse(f"2x3x150x150,5x3x1x1,bias,{activation}")
    rng = np.random.default_rng(0)
    y = rng.standard_normal(spec.output_shape, dtype=np.float32)
    bias = rng.standard_normal(spec.out_channels, dtype=np.float32)
    shared, alone = y.copy(), y.copy()
    epilogue.in_a_pass(spec, bias, 2)(alone)
    monkeypatch.setattr(epilogue, "SHARED", 0)
    epilogue.in_a_pass(spec, bias, 2)(shared)
    assert np.array_equal(shared, alone) and not np.array_equal(shared, y)
