"""Vector code for Fourier transforms, emitted as LLVM IR: stages of butterflies, transpositions and moves.

A vector holds one number of each of L transforms that run side by side (``lanes``), so nothing is shuffled
within a transform. A complex point is two vectors, real parts and imaginary parts, 2 L elements in a row;
"at" and "step" below count elements. Every pointer comes from an array whose bounds the caller keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.simd import I32, I64, constants, lanes, settled
from algos.engine.target import REGISTERS

intrinsic: Any = typed_intrinsic  # compiled callers do not pass the typing context
RADICES = (4, 2, 3, 5)
FORWARD, INVERSE, FILTER = 0, 1, 2  # kinds of stages
Complex = tuple[Any, Any]


class Vectors:
    """Loads, stores and complex arithmetic on vectors of one real type, into one builder."""

    def __init__(self, context: Any, builder: Any, array_type: Any) -> None:
        self.context, self.builder = context, builder
        # Much code, called seldom: copies of it would only take long to compile
        builder.function.attributes.add("noinline")
        self.real = context.get_data_type(array_type.dtype)
        self.itemsize = array_type.dtype.bitwidth // 8
        self.lanes = lanes(np.dtype(f"f{self.itemsize}"))
        self.type = ir.VectorType(self.real, self.lanes)

    def data(self, array_type: Any, array: Any) -> Any:
        return self.context.make_array(array_type)(self.context, self.builder, value=array).data

    def load(self, data: Any, at: Any) -> Any:
        where = self.builder.bitcast(self.builder.gep(data, [at]), self.type.as_pointer())
        return self.builder.load(where, align=self.itemsize)

    def store(self, value: Any, data: Any, at: Any) -> None:
        where = self.builder.bitcast(self.builder.gep(data, [at]), self.type.as_pointer())
        self.builder.store(value, where).align = self.itemsize

    def spread(self, data: Any, at: Any) -> Any:
        """One number in every lane."""
        one = self.builder.insert_element(
            ir.Constant(self.type, ir.Undefined), self.builder.load(self.builder.gep(data, [at])), I32(0)
        )
        return self.shuffle(one, one, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def sub(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def mul(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("contract",))

    def offset(self, at: Any, step: Any, count: int) -> Any:
        return self.builder.add(at, self.builder.mul(step, I64(count))) if count else at

    def plus(self, x: Complex, y: Complex) -> Complex:
        return self.add(x[0], y[0]), self.add(x[1], y[1])

    def minus(self, x: Complex, y: Complex) -> Complex:
        return self.sub(x[0], y[0]), self.sub(x[1], y[1])

    def times(self, x: Complex, y: Complex) -> Complex:
        re = self.sub(self.mul(x[0], y[0]), self.mul(x[1], y[1]))
        return re, self.add(self.mul(x[0], y[1]), self.mul(x[1], y[0]))

    def scaled(self, x: Complex, factor: Any) -> Complex:
        return self.mul(x[0], factor), self.mul(x[1], factor)

    def plus_i(self, x: Complex, y: Complex) -> Complex:
        """x + i y"""
        return self.sub(x[0], y[1]), self.add(x[1], y[0])

    def minus_i(self, x: Complex, y: Complex) -> Complex:
        """x - i y"""
        return self.add(x[0], y[1]), self.sub(x[1], y[0])

    def dft(self, x: list[Complex]) -> Iterator[tuple[int, Complex]]:
        """The discrete Fourier transform of 2, 3, 4 or 5 points, by number, each as soon as it can be stored.
        """
        if len(x) == 2:
            yield 0, self.plus(*x)
            yield 1, self.minus(*x)
        elif len(x) == 4:
            (a, c), (b, d) = ((self.plus(*two), self.minus(*two)) for two in (x[0::2], x[1::2]))
            yield 0, self.plus(a, b)
            yield 2, self.minus(a, b)
            yield 1, self.minus_i(c, d)
            yield 3, self.plus_i(c, d)
        else:
            yield from self._odd(x)

    def _odd(self, x: list[Complex]) -> Iterator[tuple[int, Complex]]:
        """By sums and differences of the points k and n - k: cosines meet the sums, sines the differences."""
        n, middle = len(x), len(x) // 2
        sums = [self.plus(x[k], x[n - k]) for k in range(1, middle + 1)]
        differences = [self.minus(x[k], x[n - k]) for k in range(1, middle + 1)]
        first, *sums = self.settled([x[0], *sums])
        yield 0, reduce(self.plus, sums, first)
        angles = [[2 * math.pi * (k * p % n) / n for k in range(1, middle + 1)] for p in range(1, middle + 1)]
        waves = [[wave(a) for a in row] for wave in (math.cos, math.sin) for row in angles]
        held = constants(self.builder, self.type, [value for row in waves for value in row])
        both = []
        for p, row in enumerate(waves):
            start, some = ([first], sums) if p < middle else ([], differences)
            products = (self.scaled(point, held(value)) for point, value in zip(some, row, strict=True))
            both.append(reduce(self.plus, [*start, *products]))
        both = self.settled(both)
        for p, (real, imaginary) in enumerate(zip(both[:middle], both[middle:], strict=True), 1):
            yield p, self.minus_i(real, imaginary)
            yield n - p, self.plus_i(real, imaginary)

    def settled(self, x: list[Complex]) -> list[Complex]:
        """The same points, where registers are few: see ``simd.settled``."""
        if REGISTERS == 32:
            return x
        parts = settled(self.builder, [part for point in x for part in point])
        return list(zip(parts[::2], parts[1::2], strict=True))

    def transposed(self, rows: list[Any]) -> list[Any]:
        """L vectors, lane j of vector i becoming lane i of vector j: log2 L
        rounds, each exchanging halves of blocks.
        """
        width, n = 1, self.lanes
        while width < n:
            low = [j if j & width == 0 else n + (j ^ width) for j in range(n)]
            high = [j | width if j & width == 0 else n + j for j in range(n)]
            after = list(rows)
            for i in range(n):
                if i & width == 0:
                    a, b = rows[i], rows[i | width]
                    after[i], after[i | width] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            rows, width = after, 2 * width
        return rows


class Peak:
    """The largest magnitude of the vectors seen, as bits, which are in the order of the numbers."""

    def __init__(self, v: Vectors) -> None:
        self.v, self.whole = v, ir.IntType(8 * v.itemsize)
        self.type = ir.VectorType(self.whole, v.lanes)
        self.place = cgutils.alloca_once_value(v.builder, ir.Constant(self.type, [0] * v.lanes))

    def see(self, *vectors: Any) -> None:
        builder, mask = self.v.builder, (1 << (8 * self.v.itemsize - 1)) - 1
        for vector in vectors:
            bits = builder.and_(
                builder.bitcast(vector, self.type), ir.Constant(self.type, [mask] * self.v.lanes)
            )
            builder.store(self._larger(builder.load(self.place), bits), self.place)

    def finite(self, vector: Any) -> Any:
        """The vector, with zeros for NaN and infinities."""
        builder, zero = self.v.builder, ir.Constant(self.v.type, [0.0] * self.v.lanes)
        return builder.select(builder.fcmp_ordered("==", builder.fsub(vector, vector), zero), vector, zero)

    def result(self) -> Any:
        """i64"""
        found, step = self.v.builder.load(self.place), self.v.lanes // 2
        while step:
            found = self._larger(
                found, self.v.shuffle(found, found, [(j + step) % self.v.lanes for j in range(self.v.lanes)])
            )
            step //= 2
        one = self.v.builder.extract_element(found, I32(0))
        return one if self.v.itemsize == 8 else self.v.builder.zext(one, I64)

    def _larger(self, a: Any, b: Any) -> Any:
        return self.v.builder.select(self.v.builder.icmp_unsigned(">", a, b), a, b)


def _void(*arguments: Any) -> Any:
    return types.void(
        *(a if isinstance(a, types.Array | types.IntegerLiteral) else types.intp for a in arguments)
    )


def _butterfly(
    v: Vectors, values: Any, places: list[Any], table: Any, k: Any, kind: int, turned: bool
) -> None:
    """In place, the points at ``places``: see ``stage``."""
    other = [v.builder.add(place, I64(v.lanes)) for place in places]
    if kind == INVERSE:  # a forward transform of points whose two parts are exchanged
        places, other = other, places

    def factor(q: int) -> Complex:
        re, im = (v.builder.add(k, I64(2 * q - 2 + part)) for part in range(2))
        return v.spread(table, re), v.spread(table, im)

    def stored(q: int, x: Complex) -> None:
        for value, place in zip(x, (places[q], other[q]), strict=True):
            v.store(value, values, place)

    def loaded(q: int) -> Complex:
        return v.load(values, places[q]), v.load(values, other[q])

    # Whether the points before and after a FILTER's product exceed the registers
    apart = 4 * len(places) > REGISTERS
    x = []
    for q in range(len(places)):
        x.append(loaded(q))
        if kind == INVERSE and turned and q:
            x[q] = v.times(x[q], factor(q))
    results = {}
    for q, value in v.dft(x):
        if kind == FILTER:
            taken = [v.load(table, v.builder.add(at, k)) for at in (places[q], other[q])]
            re, im = v.times(value, (taken[0], taken[1]))
            value = results[q] = im, re  # the parts exchanged: a forward transform then is one back
        elif kind == FORWARD and turned and q:
            value = v.times(value, factor(q))
        if kind != FILTER or apart:
            stored(q, value)
    if kind == FILTER:
        if apart:
            v.settled([])
            results = {q: loaded(q) for q in range(len(x))}
        for q, (im, re) in v.dft([results[q] for q in range(len(x))]):
            stored(q, (re, im))


@intrinsic(prefer_literal=True)
def stage(typingctx, data, at, length, radix, span, table, k, kind):
    """One stage of a transform of ``length`` points at ``data[at:]``: butterflies of ``radix`` points,
    ``span`` points apart.

    FORWARD: each transforms its points, then multiplies point q of butterfly j by complex number j (radix -
    1) + q - 1 of ``table[k:]``, unless span is 1. INVERSE undoes that, without dividing. FILTER, for span 1,
    transforms, multiplies by the points ``k`` elements further in ``table``, and transforms back.
    """
    if not isinstance(kind, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        values, table = v.data(signature.args[0], args[0]), v.data(signature.args[5], args[5])
        at, length, chosen, span, k = args[1], args[2], args[3], args[4], args[6]
        point, kind = I64(2 * v.lanes), signature.args[7].literal_value
        step, stop = builder.mul(span, point), builder.add(at, builder.mul(length, point))
        last = builder.icmp_signed("==", span, I64(1))
        for radix in RADICES:
            places = lambda first, n=radix: [v.offset(first, step, q) for q in range(n)]  # noqa: E731
            block = builder.mul(step, I64(radix))
            with (
                builder.if_then(builder.icmp_signed("==", chosen, I64(radix))),
                builder.if_else(last) as (plain, turning),
            ):
                with plain, cgutils.for_range_slice(builder, at, stop, block, I64) as (first, _):
                    _butterfly(v, values, places(first), table, k, kind, False)
                with turning:
                    if kind == FILTER:
                        continue
                    with (
                        cgutils.for_range_slice(builder, at, stop, block, I64) as (first, _),
                        cgutils.for_range(builder, span, intp=I64) as loop,
                    ):
                        factors = builder.add(k, builder.mul(loop.index, I64(2 * radix - 2)))
                        start = builder.add(first, builder.mul(loop.index, point))
                        _butterfly(v, values, places(start), table, factors, kind, True)
        return context.get_dummy_value()

    return _void(data, at, length, radix, span, table, k, kind), generate


def _copying(work: Callable[[Vectors, list[Any]], list[Any]], count: Callable[[Vectors], int]) -> Callable:
    """Code that loads vectors ``step`` apart, does ``work`` on them, and stores them ``stride`` apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        source, target = v.data(signature.args[0], args[0]), v.data(signature.args[3], args[3])
        found = work(v, [v.load(source, v.offset(args[1], args[2], i)) for i in range(count(v))])
        for i, value in enumerate(found):
            v.store(value, target, v.offset(args[4], args[5], i))
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def turn(typingctx, data, at, count, table, scales, s, kind):
    """``count`` points at ``data[at:]`` times exp(i pi n / (2 count)), point n of ``table``, and
    ``scales[s]`` and the next.

    FORWARD scales, then turns, and returns the ``peak`` of what it found; INVERSE turns back, then scales.
    """
    if not isinstance(kind, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        values, table, scales = (v.data(signature.args[i], args[i]) for i in (0, 3, 4))
        factors, found = [v.spread(scales, v.builder.add(args[5], I64(i))) for i in range(2)], Peak(v)
        scaled = lambda x: tuple(reduce(v.mul, factors, part) for part in x)  # noqa: E731
        with cgutils.for_range(builder, args[2], intp=I64) as loop:
            place, k = v.offset(args[1], loop.index, 2 * v.lanes), builder.mul(loop.index, I64(2))
            other = builder.add(place, I64(v.lanes))
            x = v.load(values, place), v.load(values, other)
            cos, sin = v.spread(table, k), v.spread(table, builder.add(k, I64(1)))
            if signature.args[6].literal_value == FORWARD:
                found.see(*x)
                re, im = v.times(scaled(x), (cos, sin))
            else:
                # Times the conjugate: parts exchanged, as in ``stage``
                im, re = scaled(v.times((x[1], x[0]), (cos, sin)))
            v.store(re, values, place)
            v.store(im, values, other)
        return found.result()

    return types.intp(*_void(data, at, count, table, scales, s, kind).args), generate


@intrinsic
def gather_peak(typingctx, data, at, count, into):
    """Take ``data[at : at + count]``, whole vectors, into the largest finite
    magnitudes at ``data[into:]``, lane by lane.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        data = v.data(signature.args[0], args[0])
        found = Peak(v)
        found.see(v.load(data, args[3]))
        with cgutils.for_range_slice(builder, args[1], builder.add(args[1], args[2]), I64(v.lanes),
                                     I64) as (place, _):
            found.see(found.finite(v.load(data, place)))
        v.store(builder.bitcast(builder.load(found.place), v.type), data, args[3])
        return context.get_dummy_value()

    return _void(data, at, count, into), generate


@intrinsic
def peak(typingctx, data, at, count):
    """The largest of |data[at : at + count]|, whole vectors, as bits, which have the
    numbers' order; NaN is above infinity.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        data, found = v.data(signature.args[0], args[0]), Peak(v)
        with cgutils.for_range_slice(builder, args[1], builder.add(args[1], args[2]), I64(v.lanes), I64) as (
            place,
            _,
        ):
            found.see(v.load(data, place))
        return found.result()

    return types.intp(*_void(data, at, count).args), generate


@intrinsic
def transpose(typingctx, source, at, step, target, to, stride):
    """L x L numbers: lane j of vector i, ``source[at + i * step]``, to lane i of
    vector j, ``target[to + j * stride]``.
    """
    return _void(source, at, step, target, to, stride), _copying(Vectors.transposed, lambda v: v.lanes)


@intrinsic
def move(typingctx, source, at, step, target, to, stride):
    """One vector, from ``source[at]`` to ``target[to]``."""
    return _void(source, at, step, target, to, stride), _copying(lambda v, rows: rows, lambda v: 1)


@intrinsic(prefer_literal=True)
def multiply(typingctx, target, to, source, at, table, k, adding):
    """The complex point at ``target[to]`` becomes, or with ``adding`` 1 grows by, the
    product of those in source and table.
    """
    if not isinstance(adding, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature.args[0])
        arrays = [v.data(signature.args[i], args[i]) for i in (0, 2, 4)]
        places = [(args[i], builder.add(args[i], I64(v.lanes))) for i in (1, 3, 5)]
        old, x, y = ((v.load(a, re), v.load(a, im)) for a, (re, im) in zip(arrays, places, strict=True))
        product = v.times(x, y)
        if signature.args[6].literal_value:
            product = v.plus(old, product)
        for value, place in zip(product, places[0], strict=True):
            v.store(value, arrays[0], place)
        return context.get_dummy_value()

    return _void(target, to, source, at, table, k, adding), generate
