"""SIMD vectors and microkernels, emitted as LLVM IR through Numba's intrinsics.

LLVM's vectoriser keeps a small block of sums in registers only by luck; here it is written down. A vector has
the width of the host's registers, and a block is as large as there are registers for. Every intrinsic is
generic: the element type comes from its pointers, block shapes are literal integers, so that one function at
module level serves (and caches) them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from algos.engine.target import (
    CONSTRAINT,
    REGISTERS,
    UNROLLED,
    VECTOR_BYTES,
    compiles,
    simd,
)

I16, I32, I64 = map(ir.IntType, (16, 32, 64))

# What multiplies 16 bits and adds pairs, by lanes; LLVM's names of instructions that there are not are errors
MULTIPLY_ADD = {
    lanes: name
    for lanes, name, feature in (
        (4, "sse2.pmadd.wd", "sse2"), (8, "avx2.pmadd.wd", "avx2"), (16, "avx512.pmaddw.d.512", "avx512bw"),
    )
    if compiles(feature)
}  # fmt: skip


def lanes(dtype: Any) -> int:
    """Elements of ``dtype`` in a vector."""
    return VECTOR_BYTES // dtype.itemsize


# What multiplies bytes and adds four products, unsigned with signed ones, by lanes
DOTS = {
    lanes: f"avx512.vpdpbusd.{32 * lanes}"
    for lanes in (4, 8, 16)
    if (compiles("avx512vnni") and compiles("avx512vl")) or (lanes < 16 and compiles("avxvnni"))
}
QUADS = VECTOR_BYTES // 4 in DOTS
# Products of pairs of bfloat16, added in float32; where that takes narrower vectors, float32 is as fast
BRAINS = simd() == "avx512" and compiles("avx512bf16")


SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int32: I32,
           types.uint32: ir.FloatType(), types.uint16: ir.FloatType()}  # fmt: skip
SIZES = {ir.FloatType(): 4, ir.DoubleType(): 8, I32: 4}


class Emitter:
    """Vector instructions of one element type at the builder's position.

    Elements of type int32 are pairs of whole numbers of 16 bits, or sums of products of them
    (``algos/lower/pairs.py``): ``fma(a, b, c)`` is c plus the products of both halves, modulo 2^32. Those of
    type uint32 are pairs of bfloat16, whose products are added in float32, or where ``sums`` are int32 four
    whole numbers of 8 bits each: those of a without a sign, those of b with one.
    """

    def __init__(self, builder: Any, element: Any, lanes: int | None = None, sums: Any = None) -> None:
        self.builder = builder
        self.scalar = SCALARS[sums or element]
        self.brains, self.whole = element == types.uint32, self.scalar == I32
        self.lanes = lanes or VECTOR_BYTES * 8 // element.bitwidth
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.zero = ir.Constant(self.vector, [0 if self.whole else 0.0] * self.lanes)
        self.bytes = element.bitwidth // 8  # vectors need no more than their elements' alignment
        if self.whole:
            return
        suffix = "f32" if self.bytes == 4 else "f64"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        # fmuladd fuses where the machine can, and multiplies and adds where it cannot; llvm.fma would call a
        # library there.
        self._fma = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.fmuladd.v{self.lanes}{suffix}"
        )

    def at(self, pointer: Any, *terms: Any) -> Any:
        """``pointer`` moved by the sum of ``terms`` elements, each an int or an i64."""
        for term in terms:
            pointer = self.builder.gep(pointer, [ir.Constant(I64, term) if isinstance(term, int) else term])
        return pointer

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.bytes)

    def store(self, value: Any, pointer: Any) -> None:
        """Rounded to bfloat16 where that is what lies there."""
        size = self.bytes
        if pointer.type.pointee == I16:
            value, size = self.narrow(value), 2
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = size

    def narrow(self, value: Any) -> Any:
        """float32 rounded to the bits of bfloat16, where ``BRAINS``."""
        kind = ir.FunctionType(ir.VectorType(I16, self.lanes), [self.vector])
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [value])

    def splat(self, scalar: Any) -> Any:
        """Every lane the same."""
        if scalar.type != self.scalar:  # a pair of bfloat16
            scalar = self.builder.bitcast(scalar, self.scalar)
        first = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(I32, 0)
        )
        return self.builder.shuffle_vector(
            first, first, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        )

    def constant(self, value: Fraction) -> Any:
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        if self.brains:
            bits = ir.VectorType(I32, self.lanes)
            kind = ir.FunctionType(self.vector, [self.vector, bits, bits])
            dot = DOTS[self.lanes] if self.whole else "avx512bf16.dpbf16ps.512"
            function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{dot}")
            return self.builder.call(function, [c, *(self.builder.bitcast(v, bits) for v in (a, b))])
        if not self.whole:
            return self.builder.call(self._fma, [a, b, c])
        halves = ir.VectorType(ir.IntType(16), 2 * self.lanes)
        a, b = self.builder.bitcast(a, halves), self.builder.bitcast(b, halves)
        if name := MULTIPLY_ADD.get(self.lanes):  # with c it becomes one instruction where there is one
            kind = ir.FunctionType(self.vector, [halves] * 2)
            function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")
            return self.builder.add(self.builder.call(function, [a, b]), c)
        for half in range(2):
            picks = [2 * lane + half for lane in range(self.lanes)]
            x, y = (self.builder.sext(self.shuffle(v, v, picks), self.vector) for v in (a, b))
            c = self.builder.add(self.builder.mul(x, y), c)
        return c

    def settled(self, sums: list[list[Any]]) -> list[list[Any]]:
        """The same sums, None for those that are not begun; see the function."""
        each = iter(settled(self.builder, [total for row in sums for total in row if total is not None]))
        return [[None if total is None else next(each) for total in row] for row in sums]

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.add(a, b) if self.whole else self.builder.fadd(a, b)

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.sub(a, b) if self.whole else self.builder.fsub(a, b)

    def shuffle(self, a: Any, b: Any, picks: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(picks)), list(picks)))


def settled(builder: Any, vectors: list[Any]) -> list[Any]:
    """The same vectors, made before anything that is written from here on is loaded. Costs no instruction.

    LLVM would rather load ahead what later steps need, into registers that are not there, and move whole
    vectors to the stack and back: half of them across two lines where the stack lies so.
    """
    whole = [v for v in vectors if CONSTRAINT and v.type.count * SIZES[v.type.element] == VECTOR_BYTES]
    if len(whole) < len(vectors) or len(vectors) > REGISTERS - 2:  # more than there are is an error of LLVM's
        whole = []
    made = ir.VoidType() if not whole else whole[0].type if len(whole) == 1 else ir.LiteralStructType(
        [v.type for v in whole]
    )  # fmt: skip
    kind = ir.FunctionType(made, [v.type for v in whole])
    constraints = [*[f"={CONSTRAINT}"] * len(whole), *map(str, range(len(whole))), "~{memory}"]
    found = builder.call(ir.InlineAsm(kind, "", ",".join(constraints), side_effect=True), whole)
    if len(whole) < 2:
        return [found] if whole else vectors
    return [builder.extract_value(found, i) for i in range(len(whole))]


def constants(builder: Any, vector: Any, values: Sequence[float]) -> Callable[[float], Any]:
    """What gives one of ``values`` in every lane. Where registers are few it is loaded where it is used: LLVM
    would load all before a loop, and move those that find no register to the stack.
    """
    if REGISTERS == 32 or not values:
        return lambda value: ir.Constant(vector, [value] * vector.count)
    first = _hidden(builder, ir.Constant(ir.ArrayType(vector.element, len(values)), [*values]))
    every_lane = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)

    def loaded(value: float) -> Any:
        one = builder.load(builder.gep(first, [I32(0), I32(values.index(value))]))
        held = builder.insert_element(ir.Constant(vector, ir.Undefined), one, I32(0))
        return builder.shuffle_vector(held, held, every_lane)

    return loaded


def loaded_here(builder: Any, constant: Any, align: int) -> Any:
    """A constant vector, from memory each time and not before a loop, for the same reason."""
    return builder.load(_hidden(builder, constant), align=align)


def _hidden(builder: Any, constant: Any) -> Any:
    """A pointer to what LLVM does not know to be constant."""
    table = ir.GlobalVariable(builder.module, constant.type, builder.module.get_unique_name("constants"))
    table.linkage, table.global_constant, table.initializer = "internal", True, constant
    return builder.inttoptr(fresh(builder, builder.ptrtoint(table, I64)), table.type)


def fresh(builder: Any, number: Any) -> Any:
    """An i64 that LLVM takes for another each time, so that nothing made of it waits outside a loop."""
    kind = ir.FunctionType(I64, [I64])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [number])


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
def place(typingctx, array, offset):
    """The same as an integer, for tables of addresses."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), I64)

    return types.intp(array, types.intp), codegen


@intrinsic
def element(typingctx, like, place):
    """The element at an integer address, of the type of those of the array ``like``."""

    def codegen(context, builder, sig, args):
        kind = context.get_data_type(sig.args[0].dtype).as_pointer()
        return builder.load(builder.inttoptr(args[1], kind))

    return like.dtype(like, types.intp), codegen


@intrinsic
def advance(typingctx, pointer, offset):
    """``pointer`` moved by ``offset`` elements."""
    signature = pointer(pointer, types.intp)

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return signature, codegen


@intrinsic
def copy(typingctx, target, source, count):
    """``count`` elements from one place to another that doesn't overlap it."""
    signature = types.void(target, source, types.intp)

    def codegen(context, builder, sig, args):
        cgutils.raw_memcpy(builder, *args, sig.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_bytes(typingctx, target, source, count):
    """``count`` bytes from one integer address to another."""

    def codegen(context, builder, sig, args):
        to, start = (builder.inttoptr(value, ir.IntType(8).as_pointer()) for value in args[:2])
        cgutils.raw_memcpy(builder, to, start, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def clear(typingctx, target, count):
    """``count`` zeros."""
    signature = types.void(target, types.intp)

    def codegen(context, builder, sig, args):
        size = builder.mul(args[1], ir.Constant(I64, sig.args[0].dtype.bitwidth // 8))
        cgutils.memset(builder, args[0], size, 0)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def put(typingctx, target, value):
    """One number, rounded to bfloat16 where that is what lies there."""

    def codegen(context, builder, sig, args):
        if sig.args[0].dtype == types.uint16:
            emit = Emitter(builder, sig.args[1])
            value = builder.extract_element(emit.narrow(emit.splat(args[1])), I32(0))
        else:
            value = args[1]
        builder.store(value, args[0])
        return context.get_dummy_value()

    return types.void(target, value), codegen


@intrinsic
def prefetch(typingctx, pointer):
    """Ask for the cache line at ``pointer``, into the second-level cache; any address will do."""
    signature = types.void(pointer)

    def codegen(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.bitcast(args[0], byte), I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def move(typingctx, target, source, vectors):
    """A literal number of vectors from one place to another."""
    if (count := literal(vectors)) is None:
        return None
    signature = types.void(target, source, vectors)

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[0].dtype)
        found = [emit.load(emit.at(args[1], v * emit.lanes)) for v in range(count[0])]
        for v, value in enumerate(found):
            emit.store(value, emit.at(args[0], v * emit.lanes))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transpose(typingctx, source, source_step, target, target_step):
    """target[j, i] = source[i, j] for one square block as wide as a vector; rows are a step apart, those of
    source where it is an integer; else it points to where each of them begins.
    """
    signature = types.void(source, source_step, target, types.intp)

    def codegen(context, builder, sig, args):
        source, source_step, target, target_step = args
        emit = Emitter(builder, sig.args[0].dtype)
        if isinstance(sig.args[1], types.CPointer):
            starts = [builder.load(emit.at(source_step, i)) for i in range(emit.lanes)]
        else:
            starts = [builder.mul(source_step, I64(i)) for i in range(emit.lanes)]
        rows = _transposed(emit, [emit.load(emit.at(source, start)) for start in starts])
        for j, row in enumerate(rows):
            emit.store(row, emit.at(target, builder.mul(target_step, I64(j))))
        return context.get_dummy_value()

    return signature, codegen


def _transposed(emit: Emitter, rows: list[Any]) -> list[Any]:
    """A square block: whole 16-byte groups first, one instruction each."""
    n, group = emit.lanes, 16 // emit.bytes
    swap = n // 2
    while swap >= group:
        for i in range(n):
            if not i & swap:
                a, b = rows[i], rows[i + swap]
                rows[i] = emit.shuffle(a, b, [k if not k & swap else n + k - swap for k in range(n)])
                rows[i + swap] = emit.shuffle(
                    a, b, [k + swap if not k & swap else n + k for k in range(n)]
                )
        swap //= 2
    for first in range(0, n, group):
        rows[first : first + group] = _in_groups(emit, rows[first : first + group])
    return rows


def _in_groups(emit: Emitter, rows: list[Any]) -> list[Any]:
    """Transpose within 16-byte groups, by the machines' unpack instructions."""
    n, group = emit.lanes, len(rows)
    starts = range(0, n, group)

    def unpack(a: Any, b: Any, unit: int, high: int) -> Any:
        picks = []
        for start in starts:
            for at in range(start + high * group // 2, start + (high + 1) * group // 2, unit):
                picks += [*range(at, at + unit), *range(n + at, n + at + unit)]
        return emit.shuffle(a, b, picks)

    if group == 2:
        return [unpack(rows[0], rows[1], 1, high) for high in (0, 1)]
    halves = [unpack(rows[i], rows[i + 1], 1, high) for i in (0, 2) for high in (0, 1)]
    return [unpack(halves[half], halves[half + 2], 2, high) for half in (0, 1) for high in (0, 1)]


@intrinsic(prefer_literal=True)
def outer_rows(typingctx, w, w_step, x, offsets, k, y, y_step, more, rows, vectors):
    """y[i, :] = sum over k of w[i, k] * x[k, :]: ``rows`` rows of scalars, ``vectors`` vectors.

    w: rows ``w_step`` elements apart, or packed (k, rows) where that is None; x: packed (k, vectors * lanes)
    where ``offsets`` is None, else row k is at offsets[k], aligned or not; y: rows ``y_step`` apart, added to
    if ``more``, else overwritten.
    """
    if (shape := literal(rows, vectors)) is None:
        return None
    signature = types.void(w, w_step, x, offsets, types.intp, y, types.intp, types.boolean, rows, vectors)

    def codegen(context, builder, sig, args):
        pw, w_step, px, p_offsets, k, py, y_step, more = args[:8]
        emit = Emitter(builder, sig.args[0].dtype, sums=sig.args[5].dtype)
        block = shape[1] * emit.lanes
        w_packed, x_packed = (isinstance(sig.args[i], types.NoneType) for i in (1, 3))
        starts = [emit.at(pw, i if w_packed else builder.mul(w_step, I64(i))) for i in range(shape[0])]

        def step(index, sums):
            at = builder.mul(index, I64(shape[0])) if w_packed else index
            row = (
                builder.mul(index, I64(block)) if x_packed else builder.load(builder.gep(p_offsets, [index]))
            )
            left = [emit.at(start, at) for start in starts]
            return _outer(emit, sums, left, emit.at(px, row), turned=True)

        times = builder.sdiv(k, I64(UNROLLED))
        done = builder.mul(times, I64(UNROLLED))

        def steps(index, sums):
            first = builder.mul(index, I64(UNROLLED))
            for u in range(UNROLLED):
                sums = step(builder.add(first, I64(u)), sums)
            return sums

        sums = any_times(builder, emit.vector, times, steps, _first_sums(emit, py, y_step, more, *shape))
        left = builder.sub(k, done)
        sums = any_times(
            builder, emit.vector, left, lambda index, sums: step(builder.add(done, index), sums), sums
        )
        _store_rows(emit, sums, py, y_step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def outer_runs(typingctx, x, pixels, starts, n_starts, singles, n_singles, w, y, more, rows, vectors):
    """y[i, :] = sum over k of x[pixels[i] + offset[k]] * w[k, :] for ``rows`` pixels.

    offset: ``UNROLLED`` elements side by side from each of ``starts`` on, then one at each of ``singles``; w:
    (k, vectors * lanes) and y: (rows, vectors * lanes) packed, y added to if ``more``, else overwritten;
    vectors: as many zeros. One loop, whatever the runs are.
    """
    if (shape := literal(rows)) is None:
        return None
    n_rows, n_vectors = shape[0], len(vectors)
    signature = types.void(
        x, pixels, pixels, types.intp, pixels, types.intp, w, y, types.boolean, rows, vectors
    )

    def codegen(context, builder, sig, args):
        px, p_pixels, p_starts, n_starts, p_singles, n_singles, pw, py, more = args[:9]
        emit = Emitter(builder, sig.args[0].dtype, sums=sig.args[7].dtype)
        block = n_vectors * emit.lanes
        pixels = [emit.at(px, builder.load(emit.at(p_pixels, i))) for i in range(n_rows)]

        def steps(offsets, weights, count):
            def one(index, sums):
                offset = builder.load(builder.gep(offsets, [index]))
                right = emit.at(weights, builder.mul(index, I64(count * block)))
                for u in range(count):
                    scalars = [emit.at(pixel, offset, u) for pixel in pixels]
                    sums = _outer(emit, sums, scalars, emit.at(right, u * block))
                return sums

            return one

        sums = _first_sums(emit, py, I64(block), more, n_rows, n_vectors)
        sums = any_times(builder, emit.vector, n_starts, steps(p_starts, pw, UNROLLED), sums)
        rest = emit.at(pw, builder.mul(n_starts, I64(UNROLLED * block)))
        sums = any_times(builder, emit.vector, n_singles, steps(p_singles, rest, 1), sums)
        _store_rows(emit, sums, py, I64(block))
        return context.get_dummy_value()

    return signature, codegen


def _outer(
    emit: Emitter, sums: list[list[Any]], scalars: list[Any], vectors: Any, turned: bool = False
) -> list[list[Any]]:
    """One step of a microkernel: ``sums`` plus the outer product of the scalars there and the vectors from
    ``vectors`` on, which are the input if ``turned``, else the weights.
    """
    sums = emit.settled(sums)
    right = [emit.load(emit.at(vectors, v * emit.lanes)) for v in range(len(sums[0]))]
    new = []
    for row, scalar in zip(sums, scalars, strict=True):
        left = emit.splat(emit.builder.load(scalar))
        operands = [(value, left) if turned else (left, value) for value in right]
        new.append([emit.fma(*each, total) for each, total in zip(operands, row, strict=True)])
    return new


def loop(builder: Any, vector: Any, count: Any, step: Any, first: list[list[Any]]) -> list[list[Any]]:
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
    end = builder.block  # of a step that holds a loop itself, not where it began
    following = builder.add(index, ir.Constant(I64, 1))
    index.add_incoming(following, end)
    for row, values in zip(sums, new, strict=True):
        for phi, value in zip(row, values, strict=True):
            phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    return new


def _if(builder: Any, condition: Any, sums: list[list[Any]], change: Callable) -> list[list[Any]]:
    """``change(sums)`` where ``condition`` holds, else ``sums``."""
    before = builder.block
    with builder.if_then(condition):
        changed = change(sums)
        inside = builder.block
    found = []
    for row, values in zip(sums, changed, strict=True):
        found.append([builder.phi(value.type) for value in values])
        for phi, old, new in zip(found[-1], row, values, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
    return found


def any_times(
    builder: Any, vector: Any, count: Any, step: Callable, first: list[list[Any]]
) -> list[list[Any]]:
    """``loop``, or ``first`` where ``count`` is 0."""
    some = builder.icmp_signed(">", count, I64(0))
    return _if(builder, some, first, lambda sums: loop(builder, vector, count, step, sums))


def _first_sums(
    emit: Emitter, pointer: Any, step: Any, more: Any, rows: int, vectors: int
) -> list[list[Any]]:
    """The rows of vectors there if ``more``, else zeros."""
    starts = [emit.at(pointer, emit.builder.mul(step, I64(i))) for i in range(rows)]

    def held(_: Any) -> list[list[Any]]:
        return [[emit.load(emit.at(start, v * emit.lanes)) for v in range(vectors)] for start in starts]

    return _if(emit.builder, more, [[emit.zero] * vectors for _ in range(rows)], held)


def _store_rows(emit: Emitter, sums: list[list[Any]], pointer: Any, step: Any) -> None:
    """Rows of vectors, ``step`` elements from one to the next."""
    for i, row in enumerate(sums):
        start = emit.at(pointer, emit.builder.mul(step, ir.Constant(I64, i)))
        for v, value in enumerate(row):
            emit.store(value, emit.at(start, v * emit.lanes))
