"""Strided input gradients that algorithms compute themselves: every element written, once and rightly."""

from __future__ import annotations

import numpy as np
import pytest

import algos
from algos.cpu import _inputs
from algos.spec import ConvSpec
from bench.data import operands
from bench.oracle import oracle

THREADS = 3
DENSE = [
    "2x40x33x35,7x40x3x3,s2,p1",  # a last block of channels that is part of a vector, rows of odd length
    "1x66x14x14,66x33x3x3,s2x3,p2:0x0:1,d2x1",  # groups, residues that no tap reaches, narrow rows
    "3x5x9x30,20x5x1x1,s2",  # three of four elements are zero
    "1x17x70,6x17x5,s4,p3",  # fewer rows of a patch than taps reach
    "1x70x40x40,90x70x2x2,s2",
    "2x3x37x41,9x3x6x4,s2,p3:1x2",  # all residues side by side in vectors
    "2x6x20x23,8x3x3x4,s3x4,p2:1x0:1",  # the same of groups, runs of 4 columns, some of them empty
    "1x1x9000,64x1x16,s8,p8",  # and of a signal, cut along it
    "1x40x3000,33x40x5,s2,p2",  # a signal cut along it, each residue by itself
]
DEPTHWISE = [
    "3x5x33x37,5x1x3x3,s2,p1", "1x3x1x70,3x1x3x3,s2,p1", "1x7x8x9,7x1x3x3,s2,p2:0x0:1",
    "2x2x40x40,2x1x4x4,s3x4,p1,d2x1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [*(("direct_channels", text) for text in DENSE), *(("depthwise", text) for text in DEPTHWISE),
     *(("im2col_gemm", text) for text in (*DENSE, DEPTHWISE[0], "1x3x5x9x7,4x3x3x2x3,s2x1x2,p1"))],
)  # fmt: skip
def test_every_element_is_the_definition(name: str, text: str) -> None:
    spec = ConvSpec.parse(f"{text},input_gradient")
    assert algos.get(name).unsupported(spec) is None
    data = operands(spec, 0, "integer")
    expected = oracle(spec, None, data.w, data.grad)
    run, dx = algos.get(name).prepare(spec, data.w, THREADS), np.full(spec.input_shape, np.nan, np.float32)
    for _ in range(2):  # nothing of a call stays for the next
        assert np.array_equal(run(*data.call, out=dx), expected)
        dx[...] = np.nan


@pytest.mark.parametrize("text", DENSE)
def test_nan_spoils_only_what_reads_it(text: str) -> None:
    spec = ConvSpec.parse(f"{text},input_gradient")
    data = operands(spec, 0, "integer")
    where = tuple(n // 2 for n in spec.output_shape)
    one, spoilt = np.zeros(spec.output_shape, np.float32), data.grad.copy()
    one[where], spoilt[where] = 1, np.nan
    read = oracle(spec, None, np.ones(spec.weight_shape, np.float32), one) > 0
    found = algos.get("direct_channels").prepare(spec, data.w, THREADS)(spoilt)
    assert np.array_equal(np.isnan(found), read)


def test_blocks_of_rows_hold_the_sums_of_all_residues_in_the_cache() -> None:
    spec = ConvSpec.parse("1x64x392x392,128x64x2x2,s2,input_gradient")
    found = _inputs.cut_of(spec, 2)
    sums = found.rows * 196 * 4 * _inputs.block_for(spec) * 4
    assert found.rows > 1 and sums <= _inputs.SUMS_BYTES
    assert found.items * found.rows >= 196
