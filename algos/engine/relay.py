"""Compiled work handed to other cores in about a microsecond, where waking a thread costs 30 to 130.

``fork(function, arguments, job)`` in compiled code runs ``function(*arguments, slot, first, last)`` for the
items [first, last) of every chunk of a job, on the caller (slot 0) and on helpers (slot 1 and up). A helper
is a thread that, after a job, watches a word of memory for ``SPIN_S`` in compiled code that holds no lock,
and only then sleeps. Whoever is free takes the next chunk, so a helper that comes late, or never, costs
nothing but its help.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from algos.engine.jit import compile_for, compiled, linked
from algos.engine.simd import I64, place
from algos.engine.threads import chunks_of, once
from algos.host import usable_cores

SPIN_S = 2e-4
MOST_HELPERS = 62  # bits in run_job
WAIT_S = 5.0  # for a helper's end at exit
# The words of a job; the last two say what follows a convolution (``epilogue.py``)
CODE, FINISHED, NEXT, CHUNKS, ITEMS, ARGUMENTS, BOXES, HELPERS, AFTER, BIAS, WORDS = range(11)
ASLEEP, LISTENING, BUSY = 0, 1, 2  # what a helper's box says; anything else is the address of a job
BOX = 16  # words from one box to the next: two cache lines


def _word(builder: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, I64.as_pointer()), [index])


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
def increment(typingctx, address, index, by):
    """Add to an int64, and return what it was."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", _word(builder, *args[:2]), args[2], ordering="acq_rel")

    return types.intp(types.intp, types.intp, types.intp), codegen


@intrinsic
def swap(typingctx, address, index, old, new):
    """Write ``new`` if ``old`` is there, and say so."""

    def codegen(context, builder, sig, args):
        found = builder.cmpxchg(
            _word(builder, *args[:2]), args[2], args[3], ordering="acq_rel", failordering="acquire"
        )
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
            builder.call(
                get(module, ir.FunctionType(void, [ir.IntType(32)]), "llvm.aarch64.hint"), [ir.IntType(32)(1)]
            )
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def step(typingctx, job, slot):
    """Do one chunk of ``job``; whether there was one."""

    def codegen(context, builder, sig, args):
        code = builder.load_atomic(_word(builder, args[0], I64(CODE)), ordering="acquire", align=8)
        function = ir.FunctionType(ir.IntType(1), [I64, I64]).as_pointer()
        return builder.call(builder.inttoptr(code, function), args)

    return types.boolean(types.intp, types.intp), codegen


@linked()
def take(job, slot):
    """The next chunk of ``job``, or -1: the first that is left for the caller, the last for a helper.

    So every call gives the same memory to the same core, as far as possible, whose cache may still hold it.
    """
    taken = increment(job, NEXT, 1 if slot == 0 else 1 << 32)
    first, last = taken & 0xFFFFFFFF, taken >> 32
    chunks = peek(job, CHUNKS)
    if first + last >= chunks:
        return -1
    return first if slot == 0 else chunks - 1 - last


@linked()
def run_job(job):
    """All chunks, with the help of whoever comes before they are done."""
    boxes, helpers = peek(job, BOXES), peek(job, HELPERS)
    poke(job, FINISHED, 0)
    poke(job, NEXT, 0)
    asked, slept = 0, 0  # a bit for each helper
    while True:
        for k in range(helpers):
            if not asked >> k & 1:
                state = peek(boxes, k * BOX)
                if state <= LISTENING and swap(boxes, k * BOX, state, job):
                    asked |= 1 << k
                    slept |= (1 - state) << k
        if not step(job, 0):
            break
    came = 0
    for k in range(helpers):
        # One that never looked is left as it was: asleep, it must still be woken.
        if asked >> k & 1 and not swap(boxes, k * BOX, job, LISTENING - (slept >> k & 1)):
            came += 1
    while peek(job, FINISHED) < came:
        pause()


def _call(context: Any, builder: Any, function: Any, kinds: tuple, values: list[Any]) -> tuple[Any, Any]:
    """Status and result of ``linked`` code that is called from here."""
    function.compile(kinds)
    found = function.overloads[kinds]
    context.active_code_library.add_linking_library(found.library)
    return context.call_internal_no_propagate(builder, found.fndesc, found.signature, values)


@intrinsic
def fork(typingctx, function, arguments, job):
    """``function(*arguments, slot, first, last)`` for all items of ``job``, an array that ``Helpers.job``
    made.

    ``function`` is ``linked`` code; arrays among the arguments are borrowed until all chunks are done.
    """
    kinds = (*arguments.types, types.intp, types.intp, types.intp)
    signature = types.void(function, arguments, job)

    def codegen(context, builder, sig, args):
        held = cgutils.alloca_once_value(builder, args[1])
        module = builder.module
        code = ir.Function(
            module, ir.FunctionType(ir.IntType(1), [I64, I64]), module.get_unique_name("chunk")
        )
        code.linkage = "internal"
        inside = ir.IRBuilder(code.append_basic_block("entry"))
        own_job, slot = code.args
        word = lambda index: inside.load(_word(inside, own_job, I64(index)))  # noqa: E731
        found = inside.load(inside.inttoptr(word(ARGUMENTS), held.type))
        values = [inside.extract_value(found, i) for i in range(len(sig.args[1].types))]
        _, chunk = _call(context, inside, take, (types.intp, types.intp), [own_job, slot])
        found_one = inside.icmp_signed(">=", chunk, I64(0))
        with inside.if_then(found_one):
            ends = [
                inside.udiv(inside.mul(word(ITEMS), end), word(CHUNKS))
                for end in (chunk, inside.add(chunk, I64(1)))
            ]
            _call(context, inside, sig.args[0].dispatcher, kinds, [*values, slot, *ends])
        inside.ret(found_one)

        place = builder.ptrtoint(context.make_array(sig.args[2])(context, builder, args[2]).data, I64)
        builder.store(builder.ptrtoint(code, I64), _word(builder, place, I64(CODE)))
        builder.store(builder.ptrtoint(held, I64), _word(builder, place, I64(ARGUMENTS)))
        _call(context, builder, run_job, (types.intp,), [place])
        return context.get_dummy_value()

    return signature, codegen


@compiled()
def listen(boxes, index, turns):
    """Serve one box until nothing came for ``turns`` turns; False if a job came in the last moment."""
    box = place(boxes, BOX * index)
    swap(box, 0, ASLEEP, LISTENING)
    left = turns
    while left > 0:
        job = peek(box, 0)
        if job > BUSY and swap(box, 0, job, BUSY):  # an owner that took its job back may have left it ASLEEP
            while step(job, index + 1):
                pass
            # The job's owner may go on, and free it, as soon as it is told; so the box is open before.
            poke(box, 0, LISTENING)
            increment(job, FINISHED, 1)
            left = turns
        else:
            pause()
            left -= 1
    return swap(box, 0, LISTENING, ASLEEP)


# Where the caller runs at this moment; None where the C library does not say.
_current_core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


class Helpers:
    """Threads that serve jobs: one fewer than the usable cores, each started when first asked for."""

    def __init__(self) -> None:
        self.limit = 0
        self.boxes = np.zeros((MOST_HELPERS, BOX), np.int64)
        self._locks: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._avoided: list[int] = []
        self._growing, self._hiring = threading.RLock(), False
        self._ending = False
        self._turns = 0
        self._asked = 0.0
        self._process = os.getpid()  # a forked child has the plans, but its parent has the threads

    def hire(self, count: int) -> int:
        """Start helpers up to ``count``; how many there are to use."""
        self.limit = max(self.limit, min(usable_cores() - 1, MOST_HELPERS))  # cores may be added later
        count = min(count, self.limit)
        with self._growing:
            if self._hiring:  # by this very thread: a signal handler does with those that are there
                return max(0, min(count, len(self._threads)))
            try:
                self._hiring = True
                self._grow(count)
            finally:
                self._hiring = False
        return max(count, 0)

    def _grow(self, count: int) -> None:
        if count > 0 and not self._turns:
            compile_for(listen, self.boxes, 0, 1)
            nobody, times = np.zeros((1, BOX), np.int64), []
            for turns in (1, 1, 10_001):  # the first call of all, a call, and a call with 10,000 turns more
                start = time.perf_counter()
                listen(nobody, 0, turns)
                times.append(time.perf_counter() - start)
            self._turns = max(1000, int(1e4 * SPIN_S / max(times[2] - times[1], 1e-6)))
        while len(self._threads) < count:
            lock = threading.Lock()
            lock.acquire()
            thread = threading.Thread(
                target=self._serve, args=(len(self._threads), lock), name="convbench", daemon=True
            )
            thread.start()
            self._locks.append(lock)
            self._avoided.append(-1)
            self._threads.append(thread)

    def job(self, items: int, threads: int, after: int = 0, bias: np.ndarray | None = None) -> np.ndarray:
        """What ``fork`` keeps of a plan's work, cut into a few chunks for each thread; one call at a time may
        use it.

        It holds the address of ``boxes``: keep these helpers as long as it. ``after``: the address of what
        follows a convolution; ``bias``, a flat array, is kept behind the words.
        """
        hands = self.hire(threads - 1)
        job = np.zeros(WORDS + (0 if bias is None else -(-bias.nbytes // 8)), np.int64)
        job[AFTER] = after
        if bias is not None:
            job[WORDS:].view(bias.dtype)[: bias.size] = bias
            job[BIAS] = job[WORDS:].ctypes.data
        job[CHUNKS], job[ITEMS] = chunks_of(items, hands + 1), items
        job[BOXES], job[HELPERS] = self.boxes.ctypes.data, hands
        return job

    def wake(self, count: int, long: bool = True) -> None:
        """Have the first ``count`` helpers listen, now or in some 50 us.

        That costs more than one job shorter than ``SPIN_S`` (not ``long``) gains: only a second one soon
        after wakes anybody.
        """
        if not long:
            before, self._asked = self._asked, time.perf_counter()
            if self._asked - before > 2 * SPIN_S:
                return
        for k in range(count):
            if self.boxes[k, 0] == ASLEEP:
                self._send_away(k)
                with contextlib.suppress(RuntimeError):  # released already: it is on its way
                    self._locks[k].release()

    def _send_away(self, k: int) -> None:
        """Keep a helper off the caller's core, where Linux likes to wake it: there
        it would only interrupt the caller.
        """
        core, thread = _current_core() if _current_core else -1, self._threads[k].native_id
        if thread and core >= 0 and core != self._avoided[k] and os.getpid() == self._process:
            self._avoided[k] = -1
            with contextlib.suppress(OSError):  # no other core is allowed
                os.sched_setaffinity(thread, os.sched_getaffinity(0) - {core})
                self._avoided[k] = core

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


@once
def helpers() -> Helpers:
    """The process's helpers."""
    made = Helpers()
    atexit.register(made.end)
    return made


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.cache_clear)  # threads stay behind
