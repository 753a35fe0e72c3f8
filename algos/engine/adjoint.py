"""Tiles of the input's gradient of a strided plane: a few rows by a vector for each column of the stride.

With an element's row i + top = s q + a and its column i + left = s m + b, tap k of an axis whose k d mod s is
its a or b reads the gradient k d // s before q or m. So the same q and m of all residues read the same
vectors of the gradient; those of a row's residues leave put together, each element written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.lanes import Lanes
from algos.engine.planes import each_vector
from algos.engine.simd import I64, Emitter

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say


@intrinsic
def adjoint_rows(typingctx, grad, w, y, zeros, spare, first, layer, shape):
    """All columns of a tile of the rows whose q is ``first`` or one of the following.

    grad, w, y: addresses of a plane of the gradient, its kernel and the plane that is written; zeros: a row
    of the gradient; spare: a row of y, for rows outside of it; layer: ``Planes``; shape: (element, rows for
    each row of the stride, kernel, strides, dilations), numbers given as tuples' lengths. Nothing outside of
    the planes is read or written.
    """

    def codegen(context, builder, sig, args):
        element, count, kh, kw, down, along, row_gap, gap = sig.args[-1][0], *map(len, sig.args[-1][1:])
        grad, w, y, zeros, spare, first = args[:6]
        sizes = dict(zip(sig.args[6].fields, cgutils.unpack_tuple(builder, args[6]), strict=True))
        emit = Emitter(builder, element)
        lanes, pointer, size = Lanes(emit, emit.bytes * 8), emit.scalar.as_pointer(), I64(emit.bytes)
        kernel = builder.inttoptr(w, pointer)
        weights = [[emit.splat(builder.load(emit.at(kernel, t * kw + k))) for k in range(kw)]
                   for t in range(kh)]  # fmt: skip

        def row(start: Any, number: Any, rows: str, width: str, instead: Any) -> Any:
            at = builder.add(start, builder.mul(number, builder.mul(sizes[width], size)))
            inside = builder.icmp_unsigned("<", number, sizes[rows])
            return builder.inttoptr(builder.select(inside, at, instead), pointer)

        above = (kh - 1) * row_gap // down  # rows of the gradient before ``first``
        sources = [row(grad, builder.add(first, I64(r - above)), "out_height", "out_width", zeros)
                   for r in range(above + count)]  # fmt: skip
        top = builder.sub(builder.mul(first, I64(down)), sizes["top"])
        targets = [row(y, builder.add(top, I64(r)), "height", "width", spare) for r in range(count * down)]
        columns = [k * gap // along for k in range(kw)]  # before a vector's own

        def residues(r: int, a: int, found: list[dict[int, Any]]) -> list[Any]:
            """Sums of each column of the stride, of row ``a`` of the stride for q = first + r."""
            sums: list[Any] = [None] * along
            for t in range(kh):
                if t * row_gap % down != a:
                    continue
                vectors = found[above + r - t * row_gap // down]
                for k, before in enumerate(columns):
                    b, own = k * gap % along, weights[t][k]
                    sums[b] = (builder.fmul(own, vectors[before]) if sums[b] is None
                               else emit.fma(own, vectors[before], sums[b]))  # fmt: skip
            return [emit.zero if total is None else total for total in sums]

        def tile(at: Any, load: Any, store: Any) -> None:
            found: list[dict[int, Any]] = []
            for number, source in enumerate(sources):
                found.append({c: load(emit.at(source, builder.sub(at, I64(c))), c) for c in set(columns)})
                if (r := number - above) < 0:
                    continue
                for a in range(down):  # at once: their sums need registers no longer
                    for v, value in enumerate(put_together(emit, residues(r, a, found))):
                        store(value, targets[r * down + a], v)

        left, width, out_width = sizes["left"], sizes["width"], sizes["out_width"]
        begin = builder.sdiv(left, I64(along))
        end = builder.add(builder.sdiv(builder.add(left, builder.sub(width, I64(1))), I64(along)), I64(1))

        def vector_at(column: Any) -> None:
            at = builder.add(column, begin)
            to = builder.sub(builder.mul(at, I64(along)), left)
            ends = [builder.icmp_signed(">=", builder.sub(at, I64(max(columns))), I64(0)),
                    builder.icmp_signed("<=", builder.add(at, I64(emit.lanes)), out_width),
                    builder.icmp_signed(">=", to, I64(0)),
                    builder.icmp_signed("<=", builder.add(to, I64(along * emit.lanes)), width)]  # fmt: skip
            inside = ends[0]
            for more in ends[1:]:
                inside = builder.and_(inside, more)
            with builder.if_else(inside) as (middle, border):
                with middle:
                    tile(at, lambda place, c: emit.load(place),
                         lambda value, target, v: emit.store(value, emit.at(target, to, v * emit.lanes)))
                with border:
                    read = {c: lanes.below(lanes.numbers(builder.sub(at, I64(c))), out_width)
                            for c in set(columns)}  # fmt: skip
                    written = [lanes.below(lanes.numbers(builder.add(to, I64(v * emit.lanes))), width)
                               for v in range(along)]  # fmt: skip
                    tile(at, lambda place, c: lanes.load(place, read[c]),
                         lambda value, target, v: lanes.store(value, emit.at(target, to, v * emit.lanes),
                                                              written[v]))  # fmt: skip

        each_vector(emit, builder.sub(end, begin), vector_at)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, layer, shape), codegen


def put_together(emit: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """As many vectors of their elements by turns."""
    n, lanes, made = len(vectors), emit.lanes, []
    for first in range(0, n * lanes, lanes):
        places = [divmod(at, n) for at in range(first, first + lanes)]  # (element, of which vector)
        merged = vectors[0]
        for v in range(1, n):  # lanes of the vectors that follow are anything until theirs comes
            picks = [lanes + element if which == v else element if v == 1 and which == 0 else own
                     for own, (element, which) in enumerate(places)]  # fmt: skip
            merged = emit.shuffle(merged, vectors[v], picks)
        made.append(merged)
    return made
