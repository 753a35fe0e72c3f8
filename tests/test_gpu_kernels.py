"""CUDA kernels without a GPU: NVRTC compiles every source to PTX, and a C++ compiler runs them on threads of the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from algos import ConvSpec, get
from algos.gpu import cupy_direct

SPECS = (
    "1x1x40x50,1x1x3x3,p1",
    "2x6x11x13,10x3x3x2,p1:0x2:1,s2x1,d1x2",
    "1x3x9x9,6x1x3x3,p2",
    "1x4x7x7,12x4x1x1",
    "1x1x60,3x1x9,p0:8,s2",
    "1x1x40x40,1x1x31x31,p15,float64",
    "1x2x70x33,3x2x2x3,s40x30,p40",
    "2x2x300x5,2x1x64x3,p63x1",
)

# What the kernels use of CUDA, for a C++20 compiler: blocks one after the other, the threads of a block at once.
SHIM = r"""
#include <barrier>
#include <thread>
#include <vector>
struct Dim { unsigned x, y; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim, gridDim;
static std::barrier<>* together;
#define __global__ static
#define __shared__ static
#define __restrict__
#define __syncthreads() together->arrive_and_wait()
"""
DRIVER = r"""
extern "C" void run(unsigned grid, unsigned bx, unsigned by, const T* x, const T* w, T* y, const Index* s) {
    std::barrier<> meet(bx * by);
    together = &meet; blockDim = {bx, by}; gridDim = {grid, 1};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < bx * by; ++t) threads.emplace_back([=, &meet] {
        threadIdx = {t % bx, t / bx};
        for (unsigned b = 0; b < grid; ++b) {
            blockIdx = {b, 0};
            KERNEL(x, w, y, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9]);
            meet.arrive_and_wait();
        }
    });
    for (auto& thread : threads) thread.join();
}
"""


def specs() -> list[ConvSpec]:
    return [ConvSpec.parse(text) for text in SPECS]


@pytest.mark.parametrize("spec", specs(), ids=str)
def test_nvrtc_compiles_to_ptx(spec: ConvSpec) -> None:
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy with NVRTC is not installed")
    try:
        nvrtc.getVersion()
    except Exception as error:  # CuPy raises its own kinds when the toolkit's library is absent
        pytest.skip(f"NVRTC does not load: {error}")
    program = nvrtc.createProgram(cupy_direct.launch(spec).source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("--gpu-architecture=compute_75",))
        assert cupy_direct.launch(spec).kernel in str(nvrtc.getPTX(program))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("spec", specs(), ids=str)
def test_kernels_compute_convolutions(spec: ConvSpec, tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    shape = cupy_direct.launch(spec)
    source = tmp_path / "kernel.cpp"
    source.write_text(SHIM + shape.source.replace('extern "C" ', "") + DRIVER.replace("KERNEL", shape.kernel))
    library = tmp_path / "kernel.so"
    made = subprocess.run(
        [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", "-o", str(library), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode and "barrier" in made.stderr:
        pytest.skip("the C++ compiler knows no <barrier>")
    assert made.returncode == 0, made.stderr
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, spec.input_shape).astype(spec.in_dtype)
    w = rng.integers(-4, 5, spec.weight_shape).astype(spec.in_dtype)
    y = np.full(spec.output_shape, np.nan, spec.out_dtype)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, w, y)]
    grid = min(shape.grid, 3)  # fewer than the blocks, so that their loop is tried
    ctypes.CDLL(str(library)).run(grid, *shape.block, *pointers, (ctypes.c_longlong * 10)(*shape.sizes))
    np.testing.assert_array_equal(y, get("direct_shift").prepare(spec, w)(x))


def test_large_arrays_stay_in_the_grid() -> None:
    shape = cupy_direct.launch(ConvSpec.parse("65536x1x512x512,1x1x3x3,p1"))
    assert 0 < shape.grid <= cupy_direct.LARGEST_GRID


def test_absence_is_explained() -> None:
    reason = get("cupy_direct").unavailable()
    assert reason is None or ("cupy" in reason.lower() or "cuda" in reason.lower()), reason
