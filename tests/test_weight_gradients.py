"""Weight gradients by ``direct_channels``: what its ways of sharing the work have to get right together."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import algos
from algos.cpu import _weights
from algos.spec import ConvSpec
from bench.data import operands
from bench.oracle import oracle

THREADS = 3
# Which of them at least, however long vectors are, swap x and grad, copy x with a border, cut channels in
# parts, and positions in shares
SPECS = {
    "2x96x12x12,32x24x1x1": {"swapped"},  # of four groups: each writes its own rows
    "5x40x9x9,80x40x1x1,s2": set(),
    "5x40x30x30,80x40x1x1,s2": set(),
    "1x3x60x60,20x3x5x5,s2x1,p2:1x0:3,d1x2": {"padded", "shares"},
    "1x150x20x20,70x150x3x3,p1": {"padded", "parts"},
    "2x5x3000,33x5x9,p4": {"padded"},
}


@pytest.mark.parametrize("text", SPECS)
def test_it_is_the_definition_however_the_work_is_shared(text: str) -> None:
    spec = ConvSpec.parse(f"{text},weight_gradient")
    found = _weights.cut(spec, THREADS)
    of = _weights.way(spec).spec
    ways = {"swapped": found.swapped, "padded": found.padded, "shares": found.shares > 1,
            "parts": found.channels < of.in_channels // of.groups}  # fmt: skip
    assert {name for name, is_so in ways.items() if is_so} >= SPECS[text]
    data = operands(spec, 0, "integer")
    expected = oracle(spec, data.x, None, data.grad)
    plan = algos.plan(spec, None, "direct_channels", THREADS)
    for _ in range(2):  # nothing of a call stays for the next
        assert np.array_equal(plan(*data.call), expected)


AT_THE_END = """
import ctypes, mmap
import numpy as np
import algos
spec = algos.ConvSpec.parse("1x63x30x30,64x63x3x3,weight_gradient")
page = mmap.PAGESIZE
pages = -(-4 * 63 * 900 // page) * page
memory = mmap.mmap(-1, pages + page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages), page, 0) == 0
x = np.frombuffer(memory, np.float32, 63 * 900, pages - 4 * 63 * 900).reshape(spec.input_shape)
print(algos.plan(spec, None, "direct_channels", 2)(x, np.ones(spec.output_shape, np.float32)).max())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
def test_nothing_beyond_x_is_read_for_a_last_part_with_fewer_channels() -> None:
    """Its blocks have rows that no element is for."""
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "0.0", done.stderr[-500:]
