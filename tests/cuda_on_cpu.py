"""The CuPy algorithms without CuPy: NumPy for the arrays, a C++ compiler for the kernels, their threads run
as fibers.

A block's threads take turns at every ``__syncthreads()``; blocks run one after the other. Every array lies
between margins of NaN, so that a read outside it spoils the result and a write outside it is noticed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft

from algos import Algorithm
from algos.gpu._cupy import CupyAlgorithm, Kernel
from tests import pretended_cupy

MARGIN = 512  # elements on either side of every array
MOST_BLOCKS = 3  # fewer than most problems ask for, so that the kernels' loops over blocks are tried

SHIM = r"""
#include <stdlib.h>
#include <ucontext.h>
struct Dim { unsigned x, y; };
static Dim blockDim, gridDim, blockIdx, places[1024];
static ucontext_t fibers[1024], home;
static bool ended[1024];
static int now, threads, apart, met[1024];
static void meet() {  // round-robin: the first fiber goes on when all have come here
    const int me = now;
    ++met[me];
    now = (now + 1) % threads;
    if (ended[now]) { apart = 1; setcontext(&home); }
    swapcontext(&fibers[me], &fibers[now]);
}
#define threadIdx places[now]
#define __global__ static
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __syncthreads() meet()
"""
DRIVER = r"""
static void** pointers;
static const long long* numbers;
static void fiber() {
    KERNEL(ARGUMENTS);
    ended[now] = true;
    apart |= met[now] != met[0];
    if (now + 1 == threads) setcontext(&home);
    setcontext(&fibers[++now]);
}
extern "C" int run(unsigned grid, unsigned bx, unsigned by, void** p, const long long* n) {
    const size_t bytes = 1 << 16;
    char* stacks = (char*)malloc(bx * by * bytes);
    pointers = p; numbers = n; threads = bx * by; apart = 0; blockDim = {bx, by}; gridDim = {grid, 1};
    for (unsigned b = 0; b < grid && !apart; ++b) {
        blockIdx = {b, 0};
        for (int t = 0; t < threads; ++t) {
            places[t] = {t % bx, t / bx};
            ended[t] = met[t] = 0;
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = stacks + t * bytes;
            fibers[t].uc_stack.ss_size = bytes;
            makecontext(&fibers[t], fiber, 0);
        }
        now = 0;
        volatile bool left = false;
        getcontext(&home);
        if (!left) { left = true; setcontext(&fibers[0]); }
    }
    free(stacks);
    return apart;
}
"""
TYPES = {"float": np.float32, "double": np.float64}


@functools.cache
def folder() -> Path:
    made = tempfile.TemporaryDirectory(prefix="convbench-kernels-")
    atexit.register(made.cleanup)
    return Path(made.name)


@functools.cache
def library(kernel: Kernel) -> tuple[ctypes.CDLL, int]:
    """The kernel as machine code for the CPU, and how many arrays it takes."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (parameters,) = re.findall(rf"__global__ void {kernel.name}\(([^)]*)\)", kernel.code)
    names = [" ".join(parameter.split()) for parameter in parameters.split(",")]
    arrays = sum("*" in name for name in names)
    assert all("*" in name for name in names[:arrays]) and all(
        name.startswith("Index ") for name in names[arrays:]
    )
    passed = [f"(T*)pointers[{i}]" for i in range(arrays)] + [
        f"numbers[{i}]" for i in range(len(names) - arrays)
    ]
    driver = DRIVER.replace("KERNEL", kernel.name).replace("ARGUMENTS", ", ".join(passed))
    stem = folder() / hashlib.sha256(kernel.code.encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(SHIM + kernel.code.replace('extern "C" ', "") + driver)
    made = subprocess.run(
        [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-o", f"{stem}.so", f"{stem}.cpp"],
        capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode and "ucontext" in made.stderr:
        pytest.skip("the C++ compiler knows no <ucontext.h>")
    assert made.returncode == 0, made.stderr
    return ctypes.CDLL(f"{stem}.so"), arrays


RUNNING = threading.Lock()  # the indices of a kernel's threads are global here


def emulated(kernel: Kernel) -> Callable[..., None]:
    """What ``CupyAlgorithm.compiled`` promises, on the CPU."""
    code, count = library(kernel)
    (kind,) = re.findall(r"#define T (\w+)", kernel.code)

    def call(blocks: int, *arguments: Any) -> None:
        arrays, numbers = arguments[:count], arguments[count:]
        assert all(
            isinstance(a, np.ndarray) and a.flags.c_contiguous and a.dtype == TYPES[kind] for a in arrays
        )
        assert all(isinstance(n, int) for n in numbers)
        guarded = []
        for array in arrays:
            space = np.full(array.size + 2 * MARGIN, np.nan, array.dtype)
            space[MARGIN:-MARGIN] = array.ravel()
            guarded.append(space)
        pointers = (ctypes.c_void_p * count)(*(space[MARGIN:].ctypes.data for space in guarded))
        with RUNNING:
            apart = code.run(
                min(blocks, MOST_BLOCKS),
                *kernel.block,
                pointers,
                (ctypes.c_longlong * len(numbers))(*numbers),
            )
        assert not apart, f"{kernel.name}: some threads meet at a barrier that others never reach"
        for array, space in zip(arrays, guarded, strict=True):
            assert np.isnan(space[:MARGIN]).all() and np.isnan(space[-MARGIN:]).all(), (
                f"{kernel.name} writes outside"
            )
            array[...] = space[MARGIN:-MARGIN].reshape(array.shape)

    return call


class _OnNumpy:
    """What stands in place of CuPy."""

    xp, fft = np, scipy.fft

    def unavailable(self) -> None:
        return None

    def compiled(self, kernel: Kernel) -> Callable[..., None]:
        return emulated(kernel)

    def plan(self, array: np.ndarray, lengths: tuple[int, ...], axes: tuple[int, ...], kind: str) -> Any:
        """The demands of a cuFFT plan, met or not."""
        assert array.flags.c_contiguous and array.dtype.kind == ("f" if kind == "R2C" else "c")
        assert axes == tuple(range(array.ndim))[-len(lengths) :] and min(lengths) > 1
        last = lengths[-1] if kind == "R2C" else lengths[-1] // 2 + 1
        assert array.shape[2:] == (*lengths[:-1], last)
        return contextlib.nullcontext()

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array

    def synchronize(self) -> None:
        pass


class _Apart(_OnNumpy):
    """The same on a device that is pretended, whose arrays do not meet the host's."""

    xp, fft = pretended_cupy.cupy(), pretended_cupy.like(scipy.fft)

    def compiled(self, kernel: Kernel) -> Callable[..., None]:
        call = emulated(kernel)
        return lambda blocks, *arguments: call(blocks, *map(pretended_cupy.bare, arguments))

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return self.xp.asarray(array)

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return self.xp.asnumpy(array)


def on_numpy(algorithm: CupyAlgorithm, **tunables: Any) -> Algorithm:
    """The same algorithm, tunables and all, on arrays of NumPy."""
    return _in_place(_OnNumpy, algorithm, device="cpu", runtime="numpy", **tunables)


def apart(algorithm: CupyAlgorithm) -> Algorithm:
    """The same algorithm on a device that is pretended; ``pretended`` makes the door know its arrays."""
    return _in_place(_Apart, algorithm)


def _in_place(stand_in: type, algorithm: CupyAlgorithm, **changed: Any) -> Algorithm:
    kind = type(algorithm)
    fields = {name: getattr(algorithm, name) for name in ("name", *algorithm.tunables())}
    twin = type(f"{kind.__name__}{stand_in.__name__}", (stand_in, kind), {"__module__": __name__})
    return twin(**{**fields, **changed})
