"""Numbers with names for compiled code: one NamedTuple declares what a table of int64 holds.

Python hands over an array, which costs a call least; compiled code reads it by ``named``, and of the numbers
only those that it uses. A NamedTuple given to compiled code as it is takes half a microsecond more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.simd import I64

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say


def table_of(numbers: Sequence[int]) -> np.ndarray:
    """What ``named`` reads: the numbers of a NamedTuple as int64."""
    return np.array(numbers, np.int64)


@intrinsic
def named(typingctx, kind, table):
    """A NamedTuple of class ``kind`` from a ``table_of`` its numbers, or the address of one."""
    fields = kind.instance_class._fields
    signature = types.NamedUniTuple(types.intp, len(fields), kind.instance_class)(kind, table)

    def codegen(context, builder, sig, args):
        if isinstance(table, types.Array):
            start = context.make_array(table)(context, builder, args[1]).data
        else:
            start = builder.inttoptr(args[1], I64.as_pointer())
        numbers = [builder.load(builder.gep(start, [I64(i)])) for i in range(len(fields))]
        return context.make_tuple(builder, sig.return_type, numbers)

    return signature, codegen
