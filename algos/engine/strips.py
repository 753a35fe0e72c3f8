"""Strips: a few rows of outputs at a time, their sums in registers, each vector of the input loaded once for
all of them.

Rows are found through tables of addresses, so that a row may lie in the image, in a padded copy of its ends,
or be the one row of zeros that stands for everything above and below the image; an output row may be one that
nobody wants.

The number of taps in a row and of rows in a strip are the lengths of tuples of zeros: part of their type, so
that one function is compiled, and cached, once for each.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types

from algos.engine.simd import I64, Emitter, loop
from algos.engine.target import FUSES, REGISTERS

intrinsic: Any = extending.intrinsic  # its type counts the typing context among a caller's arguments
# Vectors of sums; the rest holds a row of the input and a weight, and products that are not fused
SUMS = 24 if REGISTERS == 32 else 12 if FUSES else 8
UNROLLED = 9  # taps of a row: more are a loop, which costs little then and keeps registers from spilling


def strip_rows(kernel_rows: int) -> int:
    """Output rows of a strip: as many as share an input row, up to a square block."""
    return min(kernel_rows, 6 if REGISTERS == 32 else 4)


def strip_vectors(rows: int) -> int:
    """Vectors of a block's row."""
    return min(SUMS // rows, 8)


def slide_rows(rows: int, reach: int) -> int:
    """Rows that ``slide`` takes at a time: a divisor of the strip's, with ``reach`` vectors of sums in each.
    """
    return max(d for d in range(1, rows + 1) if rows % d == 0 and (d * reach <= SUMS or d == 1))


@intrinsic
def correlate_block(typingctx, rows, outs, w, x_col, y_col, kh, kw, more, taps, strip):
    """out[r][y_col + j] = sum over (a, b) of w[a, b] * row[r + a][x_col + j + b], for each row r of the
    strip.

    rows, outs: pointers to addresses, of kh + strip - 1 input rows and of the output rows; w: a pointer to
    (kh, kw) taps, kh at least the strip's rows; ``more`` adds to what the output rows hold; taps: kw zeros,
    or none for a loop. Each input row serves every output row that it reaches.
    """
    n_rows, n_taps = len(strip), len(taps)
    n_vectors = strip_vectors(n_rows)
    signature = types.void(rows, outs, w, *[types.intp] * 4, types.boolean, taps, strip)

    def codegen(context, builder, sig, args):
        rows, outs, w, x_col, y_col, kh, kw, more = args[:8]
        emit = Emitter(builder, sig.args[2].dtype)
        pointer = emit.scalar.as_pointer()
        width = ir.Constant(I64, n_taps) if n_taps else kw
        every = range(n_rows)

        def row(table, index, col):
            return emit.at(builder.inttoptr(builder.load(emit.at(table, index)), pointer), col)

        def input_row(index, sums, active):
            source, weights = row(rows, index, x_col), emit.at(w, builder.mul(index, width))
            weights = {r: emit.at(weights, builder.mul(width, ir.Constant(I64, -r))) for r in active}

            def tap(k, sums):
                sums = emit.settled(sums)
                new = [list(row) for row in sums]
                if n_rows < n_vectors:  # hold the weights, and each vector of the input in turn
                    held = {r: emit.splat(builder.load(emit.at(weights[r], k))) for r in active}
                    for v in range(n_vectors):
                        if v:
                            new = emit.settled(new)
                        x = emit.load(emit.at(source, k, v * emit.lanes))
                        for r in active:
                            new[r][v] = emit.fma(held[r], x, new[r][v])
                else:
                    found = [emit.load(emit.at(source, k, v * emit.lanes)) for v in range(n_vectors)]
                    for r in active:
                        weight = emit.splat(builder.load(emit.at(weights[r], k)))
                        new[r] = [emit.fma(weight, x, total) for x, total in zip(found, sums[r], strict=True)]
                return new

            if not n_taps:
                return loop(builder, emit.vector, kw, tap, sums)
            for k in range(n_taps):
                sums = tap(k, sums)
            return sums

        targets = [row(outs, r, y_col) for r in every]
        sums = _start(builder, emit, more, targets, n_vectors)
        for i in range(n_rows - 1):  # the first input rows reach the first output rows only
            sums = input_row(ir.Constant(I64, i), sums, range(i + 1))
        first = ir.Constant(I64, n_rows - 1)
        steady = lambda index, sums: input_row(builder.add(index, first), sums, every)  # noqa: E731
        sums = loop(builder, emit.vector, builder.sub(kh, first), steady, sums)
        for i in range(n_rows - 1):
            sums = input_row(builder.add(kh, ir.Constant(I64, i)), sums, range(i + 1, n_rows))
        for target, totals in zip(targets, sums, strict=True):
            for v, total in enumerate(totals):
                emit.store(total, emit.at(target, v * emit.lanes))
        return context.get_dummy_value()

    return signature, codegen


def _start(builder, emit, more, targets, n_vectors):
    """What the targets hold if ``more``, else zeros."""
    fresh, held, start = (builder.append_basic_block(name) for name in ("fresh", "held", "start"))
    builder.cbranch(more, held, fresh)
    builder.position_at_end(held)
    found = [[emit.load(emit.at(target, v * emit.lanes)) for v in range(n_vectors)] for target in targets]
    builder.branch(start)
    builder.position_at_end(fresh)
    builder.branch(start)
    builder.position_at_end(start)
    sums = []
    for values in found:
        sums.append([builder.phi(emit.vector) for _ in values])
        for phi, value in zip(sums[-1], values, strict=True):
            phi.add_incoming(emit.zero, fresh)
            phi.add_incoming(value, held)
    return sums


@intrinsic
def slide(typingctx, x, pitch, w, outs, vectors, more, taps, strip):
    """out[r][j] = sum over b of w[b] * x[r, j + b] for ``vectors`` vectors of j and each row r of the strip.

    x: a pointer to rows ``pitch`` elements apart; w: to taps; outs: to addresses of the output rows; ``more``
    adds to what they hold. A vector of the input serves every output whose tap it meets, a tap and its
    neighbours a whole vector away: so each is loaded once, and a tap's weight once for all rows.
    """
    n_rows, n_taps = len(strip), len(taps)
    signature = types.void(x, types.intp, w, outs, types.intp, types.boolean, taps, strip)

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[2].dtype)
        pointer = emit.scalar.as_pointer()
        x, pitch, w, outs, vectors, more = args[:6]
        reach = -(-n_taps // emit.lanes)  # outputs that a vector of the input meets, oldest first
        sources = [emit.at(x, builder.mul(pitch, ir.Constant(I64, r))) for r in range(n_rows)]
        targets = [
            emit.at(builder.inttoptr(builder.load(emit.at(outs, r)), pointer), -(reach - 1) * emit.lanes)
            for r in range(n_rows)
        ]
        late = ir.Constant(I64, reach - 1)

        def group(index, sums):
            place = builder.mul(index, ir.Constant(I64, emit.lanes))
            for lane in range(min(emit.lanes, n_taps)):
                sums = emit.settled(sums)
                taps = {a: (reach - 1 - a) * emit.lanes + lane for a in range(reach)}
                taps = {a: k for a, k in taps.items() if k < n_taps}
                weight = lambda k: emit.splat(builder.load(emit.at(w, k)))  # noqa: E731
                # Beside the sums, a vector of the input and a product
                fit = (n_rows + 1) * reach + 2 <= REGISTERS * 7 // 8
                held = {a: weight(k) for a, k in taps.items()} if fit else {}
                for r, source in enumerate(sources):
                    found = emit.load(emit.at(source, place, lane))
                    for a, k in taps.items():
                        sums = sums if fit else emit.settled(sums)
                        sums[r][a] = emit.fma(held[a] if fit else weight(k), found, sums[r][a])
            done, following = builder.append_basic_block("done"), builder.append_basic_block("following")
            builder.cbranch(builder.icmp_signed(">=", index, late), done, following)
            builder.position_at_end(done)
            ends = [emit.at(target, place) for target in targets]
            totals = [row[0] for row in sums]
            for end, total, [before] in zip(ends, totals, _start(builder, emit, more, ends, 1), strict=True):
                emit.store(builder.fadd(total, before), end)
            builder.branch(following)
            builder.position_at_end(following)
            return [[*row[1:], emit.zero] for row in sums]

        zero = [[emit.zero] * reach for _ in range(n_rows)]
        loop(
            builder,
            emit.vector,
            builder.add(vectors, late),
            lambda i, sums: group(i, [list(row) for row in sums]),
            zero,
        )
        return context.get_dummy_value()

    return signature, codegen
