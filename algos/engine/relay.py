"""Compiled work handed to other cores in under a microsecond, where waking a thread costs 30 to 50.

A helper is a thread that, after a job, watches a word of memory for ``SPIN_S`` in compiled code that holds no lock, and only
then sleeps. A job is an array of int64: the address of a function ``step(job)``, which does one of its chunks and says whether
there was one, counters of the helpers that finished and of the chunks begun, and what the algorithm adds. Whoever is free
takes the next chunk, so that a helper that comes late, or never, costs nothing but its help.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import compile_for, compiled
from algos.engine.simd import I64
from algos.engine.threads import usable_cores

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

SPIN_S = 1e-4
WAIT_S = 5.0  # for a helper's end at exit
CODE, FINISHED, NEXT, CHUNKS, X, Y, OWN = range(7)  # words of a job; from OWN on they are the algorithm's
ASLEEP, LISTENING, BUSY = 0, 1, 2  # what a helper's box says; anything else is the address of a job
BOX = 16  # words from one box to the next: two cache lines


def _word(builder: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, I64.as_pointer()), [index])


@intrinsic
def place_of(typingctx, array):
    """The address of a contiguous array's data."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(context.make_array(sig.args[0])(context, builder, args[0]).data, I64)

    return types.intp(array), codegen


@intrinsic
def peek(typingctx, address, index):
    """The int64 there, and all that was written before it."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(_word(builder, *args), ordering="acquire", align=8)

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def poke(typingctx, address, index, value):
    """Write an int64 after all that was written before."""

    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], _word(builder, *args[:2]), ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def increment(typingctx, address, index):
    """Add one to an int64, and return what it was."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", _word(builder, *args), I64(1), ordering="acq_rel")

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def swap(typingctx, address, index, old, new):
    """Write ``new`` if ``old`` is there, and say so."""

    def codegen(context, builder, sig, args):
        found = builder.cmpxchg(_word(builder, *args[:2]), args[2], args[3], ordering="acq_rel", failordering="acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.intp, types.intp), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that it is waiting."""

    def codegen(context, builder, sig, args):
        get, void, module = cgutils.get_or_insert_function, ir.VoidType(), builder.module
        if module.triple.startswith(("x86_64", "i686")):
            builder.call(get(module, ir.FunctionType(void, []), "llvm.x86.sse2.pause"), [])
        elif module.triple.startswith(("aarch64", "arm64")):
            builder.call(get(module, ir.FunctionType(void, [ir.IntType(32)]), "llvm.aarch64.hint"), [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def step(typingctx, code, job):
    """Do one chunk of ``job``; whether there was one."""

    def codegen(context, builder, sig, args):
        function = ir.FunctionType(I64, [I64]).as_pointer()
        return builder.icmp_signed("!=", builder.call(builder.inttoptr(args[0], function), [args[1]]), I64(0))

    return types.boolean(types.intp, types.intp), codegen


def entry(context: Any, builder: Any, function: Any, *shape: Any) -> Any:
    """The address of ``step(job)`` for ``function(job, *shape)``, whose ``shape`` is all in its types; for intrinsics."""
    name = builder.module.get_unique_name(function.__name__)
    code = ir.Function(builder.module, ir.FunctionType(I64, [I64]), name)
    code.linkage = "internal"
    inside = ir.IRBuilder(code.append_basic_block())
    signature = types.intp(types.intp, *shape)
    compiled_part = context.compile_subroutine(inside, function, signature)
    arguments = [code.args[0], *(context.get_constant_undef(kind) for kind in shape)]
    _, result = context.call_internal_no_propagate(inside, compiled_part.fndesc, signature, arguments)
    inside.ret(result)
    return builder.ptrtoint(code, I64)


@compiled(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def take(job):
    """The next chunk of ``job``, or -1."""
    chunk = increment(job, NEXT)
    return chunk if chunk < peek(job, CHUNKS) else -1


@compiled()
def relay(x, y, work, all_boxes, helpers):
    """All chunks of the job in ``work``, with those of ``helpers`` that listen; the job finds the addresses of x and y."""
    job, boxes = place_of(work), place_of(all_boxes)
    poke(job, X, place_of(x))
    poke(job, Y, place_of(y))
    poke(job, FINISHED, 0)
    poke(job, NEXT, 0)
    code = peek(job, CODE)
    asked = 0  # a bit for each helper
    while True:
        for k in range(helpers):
            if not asked >> k & 1 and peek(boxes, k * BOX) == LISTENING and swap(boxes, k * BOX, LISTENING, job):
                asked |= 1 << k
        if not step(code, job):
            break
    came = 0
    for k in range(helpers):
        if asked >> k & 1 and not swap(boxes, k * BOX, job, LISTENING):
            came += 1
    while peek(job, FINISHED) < came:
        pause()


@compiled()
def listen(boxes, index, turns):
    """Serve one box until nothing came for ``turns`` turns; False if a job came in the last moment."""
    box = place_of(boxes) + 8 * BOX * index
    swap(box, 0, ASLEEP, LISTENING)
    left = turns
    while left > 0:
        job = peek(box, 0)
        if job != LISTENING and swap(box, 0, job, BUSY):
            while step(peek(job, CODE), job):
                pass
            # The job's owner may go on, and free it, as soon as it is told; so the box is open before.
            poke(box, 0, LISTENING)
            increment(job, FINISHED)
            left = turns
        else:
            pause()
            left -= 1
    return swap(box, 0, LISTENING, ASLEEP)


class Helpers:
    """Threads that serve jobs: one fewer than the usable cores, each started when first asked for."""

    def __init__(self) -> None:
        self.limit = min(usable_cores() - 1, 62)  # bits of run_job
        self.boxes = np.zeros((max(self.limit, 1), BOX), np.int64)
        self._locks: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._growing = threading.Lock()
        self._ending = False
        self._turns = 0

    def hire(self, count: int) -> int:
        """Start helpers up to ``count``; how many there are to use."""
        count = min(count, self.limit)
        with self._growing:
            if count > 0 and not self._turns:
                compile_for(listen, self.boxes, 0, 1)
                start = time.perf_counter()
                listen(np.zeros((1, BOX), np.int64), 0, 1000)
                self._turns = max(100, int(1000 * SPIN_S / (time.perf_counter() - start)))
            while len(self._threads) < count:
                lock = threading.Lock()
                lock.acquire()
                thread = threading.Thread(target=self._serve, args=(len(self._threads), lock), name="convbench", daemon=True)
                self._locks.append(lock)
                self._threads.append(thread)
                thread.start()
        return count

    def wake(self, count: int) -> None:
        """Have the first ``count`` helpers listen, now or in some 50 us."""
        for k in range(count):
            if self.boxes[k, 0] == ASLEEP:
                with contextlib.suppress(RuntimeError):  # released already: it is on its way
                    self._locks[k].release()

    def end(self) -> None:
        """Let every helper return: none may run compiled code while the interpreter goes."""
        self._ending = True
        self.wake(len(self._threads))
        for thread in self._threads:
            thread.join(WAIT_S)

    def _serve(self, index: int, lock: Any) -> None:
        while not self._ending:
            lock.acquire()
            while not self._ending and not listen(self.boxes, index, self._turns):
                pass


@cache
def helpers() -> Helpers:
    """The process's helpers."""
    made = Helpers()
    atexit.register(made.end)
    return made


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.cache_clear)  # threads stay behind
