"""What code is made for: the host's vectors, its registers, shapes of microkernels. Decided here alone.

``CONVBENCH_SIMD`` forces vectors, ``avx512``, ``avx2`` or ``plain`` (16 bytes, which LLVM lowers for any
machine), and behind a colon a shape, as in ``avx2:4x3,4x3,4``. Else they are the widest that the host has;
the shape is that which ``convbench calibrate`` found the fastest on this machine, or the first of ``SHAPES``.
A width that the host lacks is split by LLVM: slow, but right.
"""

from __future__ import annotations

import json
import os
import platform
import re
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from algos.host import cpu_features, data_base, machine_id

WIDTHS = {"avx512": 64, "avx2": 32, "plain": 16}
FILE_NAME = "shapes-1.json"  # beside the wisdom, by machine and kind of vectors
ARM = platform.machine().lower() in ("aarch64", "arm64")


class Shape(NamedTuple):
    """Of microkernels: ``str`` gives it as ``CONVBENCH_SIMD`` takes it.

    Attributes
    ----------
    rows, vectors : int
        Of the block of sums of ``outer_rows``: rows of scalars times vectors.
    run_rows, run_vectors : int
        Of ``outer_runs``, which holds a pointer for each row.
    unrolled : int
        Steps between two ends of a loop.
    """

    rows: int
    vectors: int
    run_rows: int
    run_vectors: int
    unrolled: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors},{self.run_rows}x{self.run_vectors},{self.unrolled}"

    @property
    def fits(self) -> bool:
        """Whether the sums, the vectors of a step and a broadcast have registers."""
        blocks = ((self.rows, self.vectors), (self.run_rows, self.run_vectors))
        return self.unrolled > 0 and all(
            rows >= 3 and vectors > 0 and (rows + 1) * vectors < REGISTERS for rows, vectors in blocks
        )


def compiles(feature: str) -> bool:
    """Whether Numba makes code for processors with this feature: the host's, unless it was told otherwise."""
    forced, other = os.environ.get("NUMBA_CPU_FEATURES"), os.environ.get("NUMBA_CPU_NAME", "host")
    if forced is not None:
        return f"+{feature}" in forced.split(",")
    return other == "host" and bool(cpu_features().get(feature))


@cache
def simd() -> str:
    """The kind of vectors in use: CONVBENCH_SIMD, else the widest that the host has."""
    forced = os.environ.get("CONVBENCH_SIMD", "").partition(":")[0]
    if forced:
        if forced not in WIDTHS:
            raise ValueError(f"CONVBENCH_SIMD is {forced!r}: use {', '.join(WIDTHS)}")
        return forced
    features = cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return "avx512"
    return "avx2" if features.get("avx2") and features.get("fma") else "plain"


def _constraint() -> str | None:
    """What inline assembler calls the registers of whole vectors; None where LLVM splits vectors."""
    if ARM:
        return "w" if VECTOR_BYTES == 16 else None
    needed = {64: "avx512f", 32: "avx2", 16: "sse2"}[VECTOR_BYTES]
    return ("v" if VECTOR_BYTES == 64 else "x") if compiles(needed) else None


VECTOR_BYTES = WIDTHS[simd()]
REGISTERS = 32 if simd() == "avx512" or ARM else 16
CONSTRAINT = _constraint()
# Whether a product and its sum are one instruction; two need another register
FUSES = compiles("fma") or REGISTERS == 32

# The first ships. Both operands of a step and one broadcast must fit beside the sums, and where that is not
# fused, products and copies: instructions without AVX overwrite an operand. For the pointers of 12 rows of
# ``outer_runs`` x86 has no registers. Of steps between two ends of a loop four are better than two where a
# neighbour shares the core and instructions count: 21 for a step of 6 x 2, not 22, ran at 0.94 of its
# arithmetic, not 0.90.
SHAPES = {
    "avx512": ((12, 2, 6, 4, 4), (8, 3, 6, 4, 4), (6, 4, 6, 4, 4), (12, 2, 6, 4, 2), (9, 3, 9, 3, 4)),
    "avx2": ((6, 2, 6, 2, 4), (4, 3, 4, 3, 4), (6, 2, 6, 2, 2)),
    "arm": ((12, 2, 12, 2, 4), (8, 3, 8, 3, 4), (6, 4, 6, 4, 4)),
    "plain": ((4, 2, 4, 2, 4), (6, 1, 6, 1, 4), (3, 3, 3, 3, 4)),
}  # fmt: skip


def candidates() -> list[Shape]:
    """Shapes for the vectors in use; the first ships."""
    return [Shape(*shape) for shape in SHAPES["arm" if ARM else simd() if FUSES else "plain"]]


def read(text: str) -> Shape:
    """A shape from its text.

    Raises
    ------
    ValueError
        Where it is none, or exceeds the registers.
    """
    found = re.fullmatch(r"(\d+)x(\d+),(\d+)x(\d+),(\d+)", text)
    shape = Shape(*map(int, found.groups())) if found else None
    if shape is None or not shape.fits:
        raise ValueError(f"{text!r} is no shape for {REGISTERS} registers: {candidates()[0]} is one")
    return shape


@cache
def shape() -> Shape:
    """The one in use: that of CONVBENCH_SIMD, the fastest that was measured on this machine, or the first."""
    if forced := os.environ.get("CONVBENCH_SIMD", "").partition(":")[2]:
        return read(forced)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        rows = json.loads((data_base() / FILE_NAME).read_text())
        return read(rows[machine_id()][simd()])
    return candidates()[0]


def kind() -> str:
    """What compiled code differs by, as CONVBENCH_SIMD takes it."""
    return f"{simd()}:{shape()}"


ROWS, VECTORS, RUN_ROWS, RUN_VECTORS, UNROLLED = shape()
TAILS = ROWS * 2 // 3, ROWS // 3  # rows of a last block: at most a third of it is empty
