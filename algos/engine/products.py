"""Products of rows of two pictures, one picture shifted: the weights' gradient of a plane, several taps of a
row at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.lanes import Lanes
from algos.engine.simd import I64, Emitter, loop

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

MOST_TAPS = 4  # whose sums and masks stay in registers beside the vectors that are multiplied


@intrinsic
def add_products(typingctx, x, y, dw, rows, start, skip, layer, shape):
    """Add to dw[t], from t = ``skip`` on, the sum over rows and columns of y times what tap ``start`` + t
    reads of x.

    x, y, dw: addresses of the first row that is read, of the first of y, and of the tap ``start``; rows: 1 or
    more, stride_h apart in x; layer: ``Planes``; shape: (element, taps, stride_w where it is 1 or 2,
    else 0), numbers given as tuples' lengths. No lane outside of x or y is read.
    """

    def codegen(context, builder, sig, args):
        element, taps, known = sig.args[-1][0], *map(len, sig.args[-1][1:])
        rows, start, skip = args[3:6]
        sizes = dict(zip(sig.args[6].fields, cgutils.unpack_tuple(builder, args[6]), strict=True))
        width, out_width, stride = (sizes[name] for name in ("width", "out_width", "stride_w"))
        emit = Emitter(builder, element)
        # Columns as wide as elements are: masks then need no conversion
        lanes = Lanes(emit, emit.bytes * 8 if known else 64)
        x, y, dw = (builder.inttoptr(place, emit.scalar.as_pointer()) for place in args[:3])
        down = builder.mul(width, sizes["stride_h"])
        picks = [known * lane for lane in range(emit.lanes)]

        def columns(index: Any, sums: Any) -> Any:
            column = builder.mul(index, I64(emit.lanes))
            wanted = lanes.below(lanes.numbers(column), out_width)
            reads = []  # by tap, the vectors that hold what it reads: where, which columns, which lanes
            for t in range(taps):
                behind = builder.mul(builder.add(start, I64(t)), sizes["dilation_w"])
                at = builder.sub(builder.add(builder.mul(column, stride), behind), sizes["left"])
                if not known:
                    read = lanes.numbers(at, stride)
                    reads.append([(at, read, builder.and_(lanes.below(read, width), wanted))])
                    continue
                vectors = []
                for more in range(0, known * emit.lanes, emit.lanes):
                    read = lanes.numbers(builder.add(at, I64(more)))
                    of = lanes.numbers(builder.add(builder.mul(column, I64(known)), I64(more)))
                    own = lanes.below(of, builder.mul(out_width, I64(known)))
                    mask = builder.and_(lanes.below(read, width), own)
                    vectors.append((builder.add(at, I64(more)), read, mask))
                reads.append(vectors)

            def value(source: Any, vectors: list[Any]) -> Any:
                if not known:
                    ((_, read, mask),) = vectors
                    return lanes.gather(source, read, mask)
                found = [lanes.load(emit.at(source, at), mask) for at, _, mask in vectors]
                return found[0] if known == 1 else emit.shuffle(found[0], found[1], picks)

            def line(row: Any, sums: Any) -> Any:
                given = lanes.load(emit.at(y, builder.mul(row, out_width), column), wanted)
                source = emit.at(x, builder.mul(row, down))
                return [[emit.fma(given, value(source, vectors), total)
                         for vectors, total in zip(reads, sums[0], strict=True)]]  # fmt: skip

            return loop(builder, emit.vector, rows, line, sums)

        vectors = builder.udiv(builder.add(out_width, I64(emit.lanes - 1)), I64(emit.lanes))
        (sums,) = loop(builder, emit.vector, vectors, columns, [[emit.zero] * taps])
        for t, total in enumerate(sums):
            place, value = emit.at(dw, t), sum_of(emit, total)
            counted = builder.icmp_signed(">=", I64(t), skip)
            value = builder.select(counted, value, ir.Constant(emit.scalar, 0.0))
            builder.store(builder.fadd(builder.load(place), value), place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, layer, shape), codegen


def sum_of(emit: Emitter, vector: Any) -> Any:
    """Of all lanes, by halves."""
    half = emit.lanes // 2
    while half:
        picks = range(half), range(half, 2 * half)
        low, high = (emit.shuffle(vector, vector, list(some)) for some in picks)
        vector, half = emit.builder.fadd(low, high), half // 2
    return emit.builder.extract_element(vector, ir.IntType(32)(0))
