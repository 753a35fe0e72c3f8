"""Vectors of which only some lanes are loaded or stored."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from algos.engine.simd import I32, I64, Emitter


class Lanes:
    """Columns of the input by lane, and vectors of which only some lanes are loaded or stored."""

    def __init__(self, emit: Emitter, bits: int) -> None:
        self.builder, self.emit = emit.builder, emit
        self.index = ir.IntType(bits)  # of columns
        self.lane, self.bit = (ir.VectorType(kind, emit.lanes) for kind in (self.index, ir.IntType(1)))
        self.at, self.ats = emit.vector.as_pointer(), ir.VectorType(emit.scalar.as_pointer(), emit.lanes)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.masked.{name}".replace("*", f"v{self.emit.lanes}")
        name = name.replace("f.", f"{'i' if self.emit.whole else 'f'}{self.emit.bytes * 8}.")
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def splat(self, value: Any) -> Any:
        value = value if self.index == I64 else self.builder.trunc(value, self.index)
        first = self.builder.insert_element(ir.Constant(self.lane, ir.Undefined), value, ir.Constant(I32, 0))
        return self.emit.shuffle(first, first, [0] * self.emit.lanes)

    def numbers(self, first: Any, step: Any = None) -> Any:
        """A vector of first, first + step, ...; the step 1 when left out."""
        steps = ir.Constant(self.lane, list(range(self.emit.lanes)))
        return self.builder.add(
            self.splat(first), steps if step is None else self.builder.mul(steps, self.splat(step))
        )

    def below(self, numbers: Any, end: Any) -> Any:
        """A mask of those from 0 to ``end``."""
        return self.builder.icmp_unsigned("<", numbers, self.splat(end))

    def load(self, pointer: Any, mask: Any, other: Any = None) -> Any:
        """Lanes where ``mask`` holds, all where it is None; the rest are those of ``other``, or zeros."""
        if mask is None:
            return self.emit.load(pointer)
        size, other = I32(self.emit.bytes), self.emit.zero if other is None else other
        return self._call("load.*f.p0", self.emit.vector, self.builder.bitcast(pointer, self.at), size, mask,
                          other)

    def gather(self, row: Any, columns: Any, mask: Any) -> Any:
        size = self.emit.bytes
        places = self.builder.mul(columns, ir.Constant(self.lane, [size] * self.emit.lanes))
        places = self.builder.add(self.splat(self.builder.ptrtoint(row, I64)), places)
        places = self.builder.inttoptr(places, self.ats)
        return self._call("gather.*f.*p0", self.emit.vector, places, I32(size), mask, self.emit.zero)

    def store(self, value: Any, pointer: Any, mask: Any) -> None:
        """Store the lanes where ``mask`` holds."""
        self._call("store.*f.p0", ir.VoidType(), value, self.builder.bitcast(pointer, self.at),
                   I32(self.emit.bytes), mask)  # fmt: skip

    def store_first(self, value: Any, pointer: Any, count: Any) -> None:
        """Store the first ``count`` lanes."""
        self.store(value, pointer, self.below(self.numbers(I64(0)), count))
