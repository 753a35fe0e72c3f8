"""SIMD vectors and microkernels, emitted as LLVM IR through Numba's intrinsics.

LLVM's vectoriser keeps a small block of sums in registers only by luck; here it is written down. A vector has the width of
the host's registers, and a block is as large as there are registers for. Every intrinsic is generic: the element type comes
from its pointers, block shapes are literal integers, so that one function at module level serves (and caches) them all.

``CONVBENCH_SIMD`` forces a width: avx512, avx2, or plain (16 bytes, which LLVM lowers for any machine). A width that the host
lacks is split by LLVM: slow, but right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTHS = {"avx512": 64, "avx2": 32, "plain": 16}
I32, I64 = ir.IntType(32), ir.IntType(64)


@cache
def simd() -> str:
    """The kind of vectors in use: CONVBENCH_SIMD, else the widest that the host has."""
    forced = os.environ.get("CONVBENCH_SIMD")
    if forced:
        if forced not in WIDTHS:
            raise ValueError(f"CONVBENCH_SIMD is {forced!r}: use {', '.join(WIDTHS)}")
        return forced
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return "avx512"
    return "avx2" if features.get("avx2") and features.get("fma") else "plain"


VECTOR_BYTES = WIDTHS[simd()]
REGISTERS = 32 if simd() == "avx512" or binding.get_process_triple().startswith("aarch64") else 16
# A block of sums: rows of scalars times vectors. Both operands of a step and one broadcast must fit beside it.
ROWS, VECTORS = (12, 2) if REGISTERS == 32 else (6, 2)


def lanes(dtype: Any) -> int:
    """Elements of ``dtype`` in a vector."""
    return VECTOR_BYTES // dtype.itemsize


class Emitter:
    """Vector instructions of one element type at the builder's position."""

    def __init__(self, builder: Any, element: Any, lanes: int | None = None) -> None:
        self.builder = builder
        self.scalar = ir.FloatType() if element == types.float32 else ir.DoubleType()
        self.lanes = lanes or VECTOR_BYTES * 8 // element.bitwidth
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.bytes = element.bitwidth // 8  # vectors need no more than their elements' alignment
        suffix = "f32" if element == types.float32 else "f64"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        # fmuladd fuses where the machine can, and multiplies and adds where it cannot; llvm.fma would call a library there.
        self._fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{self.lanes}{suffix}")

    def at(self, pointer: Any, *terms: Any) -> Any:
        """``pointer`` moved by the sum of ``terms`` elements, each an int or an i64."""
        for term in terms:
            pointer = self.builder.gep(pointer, [ir.Constant(I64, term) if isinstance(term, int) else term])
        return pointer

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.bytes)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer())).align = self.bytes

    def splat(self, scalar: Any) -> Any:
        """Every lane the same."""
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def constant(self, value: Fraction) -> Any:
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.call(self._fma, [a, b, c])

    def shuffle(self, a: Any, b: Any, picks: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(picks)), list(picks)))


def literal(*kinds: Any) -> list[int] | None:
    """The values of literal integers, or None while Numba still types them as plain ones."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        return None
    return [kind.literal_value for kind in kinds]


@intrinsic
def address(typingctx, array, offset):
    """A pointer to element ``offset`` of a contiguous array's data."""
    signature = types.CPointer(array.dtype)(array, types.intp)

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return signature, codegen


@intrinsic
def advance(typingctx, pointer, offset):
    """``pointer`` moved by ``offset`` elements."""
    signature = pointer(pointer, types.intp)

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return signature, codegen


@intrinsic(prefer_literal=True)
def outer_rows(typingctx, a, a_step, b, c, c_step, k, rows, vectors):
    """c[i, :] = sum over k of a[i, k] * b[k, :]: ``rows`` rows of scalars, ``vectors`` packed vectors.

    a: rows ``a_step`` elements apart, k contiguous; b: (k, vectors * lanes) packed; c: rows ``c_step`` apart, overwritten.
    """
    if (shape := literal(rows, vectors)) is None:
        return None
    n_rows, n_vectors = shape
    signature = types.void(a, types.intp, a, a, types.intp, types.intp, rows, vectors)

    def codegen(context, builder, sig, args):
        pa, a_step, pb, pc, c_step, k = args[:6]
        emit = Emitter(builder, sig.args[0].dtype)
        starts = [emit.at(pa, builder.mul(a_step, ir.Constant(I64, i))) for i in range(n_rows)]

        def step(index, sums):
            right = emit.at(pb, builder.mul(index, ir.Constant(I64, n_vectors * emit.lanes)))
            b_vectors = [emit.load(emit.at(right, v * emit.lanes)) for v in range(n_vectors)]
            new = []
            for i in range(n_rows):
                left = emit.splat(builder.load(emit.at(starts[i], index)))
                new.append([emit.fma(left, b_vectors[v], sums[i][v]) for v in range(n_vectors)])
            return new

        zero = [[emit.zero] * n_vectors for _ in range(n_rows)]
        sums = _loop(builder, emit.vector, k, step, zero)
        for i in range(n_rows):
            row = emit.at(pc, builder.mul(c_step, ir.Constant(I64, i)))
            for v in range(n_vectors):
                emit.store(sums[i][v], emit.at(row, v * emit.lanes))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def outer_offsets(typingctx, x, offsets, w, y, y_step, k, more, rows, vectors):
    """y[i, :] = sum over k of w[k, i] * x[offsets[k] :]: ``rows`` outputs of ``vectors`` unaligned vectors each.

    w: (k, rows) packed; y: rows ``y_step`` apart; ``more`` adds to what y holds instead of overwriting it.
    """
    if (shape := literal(rows, vectors)) is None:
        return None
    n_rows, n_vectors = shape
    signature = types.void(x, offsets, x, x, types.intp, types.intp, types.boolean, rows, vectors)

    def codegen(context, builder, sig, args):
        px, po, pw, py, y_step, k, more = args[:7]
        emit = Emitter(builder, sig.args[0].dtype)
        y_rows = [emit.at(py, builder.mul(y_step, ir.Constant(I64, i))) for i in range(n_rows)]

        def step(index, sums):
            source = emit.at(px, builder.load(builder.gep(po, [index])))
            x_vectors = [emit.load(emit.at(source, v * emit.lanes)) for v in range(n_vectors)]
            weights = emit.at(pw, builder.mul(index, ir.Constant(I64, n_rows)))
            new = []
            for i in range(n_rows):
                weight = emit.splat(builder.load(emit.at(weights, i)))
                new.append([emit.fma(weight, x_vectors[v], sums[i][v]) for v in range(n_vectors)])
            return new

        fresh, held, start = (builder.append_basic_block(name) for name in ("fresh", "held", "start"))
        builder.cbranch(more, held, fresh)
        builder.position_at_end(held)
        found = [[emit.load(emit.at(row, v * emit.lanes)) for v in range(n_vectors)] for row in y_rows]
        builder.branch(start)
        builder.position_at_end(fresh)
        builder.branch(start)
        builder.position_at_end(start)
        first = []
        for i in range(n_rows):
            phis = [builder.phi(emit.vector) for _ in range(n_vectors)]
            for v, phi in enumerate(phis):
                phi.add_incoming(emit.zero, fresh)
                phi.add_incoming(found[i][v], held)
            first.append(phis)
        sums = _loop(builder, emit.vector, k, step, first)
        for i in range(n_rows):
            for v in range(n_vectors):
                emit.store(sums[i][v], emit.at(y_rows[i], v * emit.lanes))
        return context.get_dummy_value()

    return signature, codegen


def _loop(builder: Any, vector: Any, count: Any, step: Any, first: list[list[Any]]) -> list[list[Any]]:
    """``sums = step(index, sums)`` for index < count, at least once; the sums stay in registers."""
    before = builder.block
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(I64)
    index.add_incoming(ir.Constant(I64, 0), before)
    sums = [[builder.phi(vector) for _ in row] for row in first]
    for row, values in zip(sums, first, strict=True):
        for phi, value in zip(row, values, strict=True):
            phi.add_incoming(value, before)
    new = step(index, sums)
    following = builder.add(index, ir.Constant(I64, 1))
    end = builder.block  # of the body, which may have loops of its own
    index.add_incoming(following, end)
    for row, values in zip(sums, new, strict=True):
        for phi, value in zip(row, values, strict=True):
            phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    return new
