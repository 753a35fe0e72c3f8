"""CUDA kernels without a GPU: NVRTC compiles every kernel of every module in
algos/gpu, and what emulates them is tried.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import numpy as np
import pytest

from algos import ConvSpec, algorithms, get
from algos.gpu import _cupy, cupy_direct, cupy_separable
from algos.gpu._cupy import CupyAlgorithm, Kernel
from tests.cuda_on_cpu import emulated

SPECS = (
    "1x1x40x50,1x1x3x3,p1",
    "1x1x40x50,1x1x15x15,p7,rank1",
    "2x6x11x13,10x3x3x2,p1:0x2:1,s2x1,d1x2",
    "1x3x9x9,6x1x3x3,p2",
    "1x4x7x7,12x4x1x1",
    "2x16x28x28,32x16x3x3,p1,float64",
    "1x8x28x28,8x8x5x4,p2",
    "1x8x28x28,8x8x3x1,p1x0",
    "1x1x60,3x1x9,p0:8,s2",
    "1x2x6x7x8,4x2x3x2x3,p1,s1x2x1",
    "1x1x40x40,1x1x31x31,p15,float64",
    "1x1x400x400,1x1x350x3,rank2,float64",  # more rows than shared memory holds at a time
    "1x2x70x33,3x2x2x3,s40x30,p40",  # patches too wide for shared memory
    "1x1x90x33,1x1x3x3,s9x1,d30x2,p30,rank1",  # rows that no tap reads
)
ARCHITECTURE = "--gpu-architecture=compute_75"  # the oldest that CUDA 13 knows
MACHINE = "--gpu-architecture=sm_75"
NAMES = [a.name for a in algorithms() if isinstance(a, CupyAlgorithm)]


def specs() -> list[ConvSpec]:
    return [ConvSpec.parse(text) for text in SPECS]


def test_every_module_here_is_covered() -> None:
    assert {a.name for a in algorithms() if type(a).__module__.startswith("algos.gpu.")} == set(NAMES)
    for name in NAMES:
        assert any(get(name).unsupported(spec) is None for spec in specs()), (
            f"no spec here is solved by {name}"
        )


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    module = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy with NVRTC is not installed")
    try:
        module.getVersion()
    except Exception as error:  # CuPy raises its own kinds when the toolkit's library is absent
        pytest.skip(f"NVRTC does not load: {error}")
    return module


@pytest.mark.parametrize("name", NAMES)
def test_nvrtc_compiles_to_ptx(nvrtc: Any, name: str) -> None:
    algorithm = get(name)
    assert isinstance(algorithm, CupyAlgorithm)
    for kernel in dict.fromkeys(
        k for s in specs() if algorithm.unsupported(s) is None for k in algorithm.kernels(s)
    ):
        program = nvrtc.createProgram(kernel.code, f"{kernel.name}.cu", (), ())
        try:
            nvrtc.compileProgram(program, (ARCHITECTURE, "-std=c++17", *kernel.options))
            text = nvrtc.getPTX(program)
            assert f".entry {kernel.name}(" in (text.decode() if isinstance(text, bytes) else text)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        finally:
            nvrtc.destroyProgram(program)


@pytest.mark.parametrize("name", NAMES)
def test_sums_stay_in_registers(nvrtc: Any, name: str) -> None:
    """One index that the compiler does not know puts a thread's arrays into
    memory, and the inner loop with them.
    """
    algorithm = get(name)
    assert isinstance(algorithm, CupyAlgorithm)
    for spec in (s for s in specs()[:7] if algorithm.unsupported(s) is None):
        for kernel in algorithm.kernels(spec):
            # What it has compiled before, comments apart, it hands out without a word
            new = f"#define {kernel.name} {kernel.name}_{uuid.uuid4().hex}\n{kernel.code}"
            program = nvrtc.createProgram(new, f"{kernel.name}.cu", (), ())
            try:
                nvrtc.compileProgram(program, (MACHINE, "-std=c++17", "--ptxas-options=-v", *kernel.options))
                log = nvrtc.getProgramLog(program)
            finally:
                nvrtc.destroyProgram(program)
            found = re.findall(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
            )
            assert found == [("0", "0", "0")], (
                f"{kernel.name} for {spec}: stack frame, spills {found} in {log!r}"
            )
            (registers,) = re.findall(r"Used (\d+) registers", log)
            assert int(registers) * kernel.block[0] * kernel.block[1] <= 1 << 16, (
                f"{kernel.name} for {spec} cannot be called"
            )


def test_large_arrays_have_more_blocks_than_a_grid() -> None:
    """Kernels loop over blocks beyond the grid, as they do here with three
    blocks; the number itself stays exact.
    """
    spec = ConvSpec.parse("65536x64x4096x4096,64x64x3x3,p1,rank1")
    for blocks in (cupy_direct.kernel_call(spec).blocks, cupy_separable.kernel_call(spec).blocks):
        assert type(blocks) is int and blocks > _cupy.LARGEST_GRID


@pytest.mark.parametrize("name", NAMES)
def test_absence_is_explained(name: str) -> None:
    reason = get(name).unavailable()
    assert reason is None or (
        "\n" not in reason and ("cupy" in reason.lower() or "cuda" in reason.lower())
    ), reason


def test_a_missing_device_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def probe(name: str, code: str, libraries: tuple[str, ...]) -> str:
        asked.append(name)
        return "no CUDA device"

    monkeypatch.setattr(_cupy, "probe", probe)
    monkeypatch.setattr(_cupy.importlib.util, "find_spec", lambda name: name)
    _cupy.broken.cache_clear()
    try:
        for name in NAMES:
            assert get(name).unavailable() == "CuPy cannot use a GPU: no CUDA device"
        assert asked == ["cupy"]
    finally:
        _cupy.broken.cache_clear()


def test_products_in_tf32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_TF32", "1")
    refused = [name for name in NAMES if "CUPY_TF32" in (get(name).unavailable() or "")]
    assert {"cupy_im2col_gemm", "cupy_winograd_f2", "cupy_fft"} <= set(refused)
    assert "cupy_direct" not in refused


# ---- the emulation itself ----------------------------------------------------------------------------------

HEAD = "#define T float\ntypedef long long Index;\n"


def test_emulated_threads_wait_for_each_other() -> None:
    kernel = Kernel("turned", HEAD + r"""
extern "C" __global__ void turned(const T* a, T* b, Index n) {
    __shared__ T kept[64];
    for (Index block = blockIdx.x; block < n / 64; block += gridDim.x) {
        kept[threadIdx.x] = a[block * 64 + threadIdx.x];
        __syncthreads();
        b[block * 64 + threadIdx.x] = kept[63 - threadIdx.x];
        __syncthreads();
    }
}""", (64, 1))  # fmt: skip
    a, b = np.arange(640, dtype=np.float32), np.zeros(640, np.float32)
    emulated(kernel)(10, a, b, 640)
    np.testing.assert_array_equal(b, a.reshape(10, 64)[:, ::-1].ravel())


@pytest.mark.parametrize(("body", "found"), [
    ("if (threadIdx.x < n) __syncthreads();", "barrier"),
    ("if (threadIdx.x >= n) { __syncthreads(); __syncthreads(); }", "barrier"),
    ("b[n + threadIdx.x] = 1;", "outside"),
    ("b[threadIdx.x] = a[(Index)threadIdx.x - 1];", "nan"),
])  # fmt: skip
def test_emulation_notices(body: str, found: str) -> None:
    kernel = Kernel(
        "bad", f'{HEAD}extern "C" __global__ void bad(const T* a, T* b, Index n) {{ {body} }}', (16, 1)
    )
    a, b = np.zeros(16, np.float32), np.zeros(16, np.float32)
    if found == "nan":
        emulated(kernel)(1, a, b, 9)
        assert np.isnan(b).any()
        return
    with pytest.raises(AssertionError, match=found):
        emulated(kernel)(1, a, b, 9)


def test_the_model_goes_by_what_a_gpu_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200's figures by its attributes; a slower one makes large work slower and small work not."""
    told = {"MultiProcessorCount": 132, "ClockRate": 1_980_000, "MemoryClockRate": 3_201_000,
            "GlobalMemoryBusWidth": 6144, "SingleToDoublePrecisionPerfRatio": 2,
            "ComputeCapabilityMajor": 9, "ComputeCapabilityMinor": 0}  # fmt: skip
    fast = _cupy.told_by(told)
    assert fast.flops_per_s == pytest.approx(66.9e12, rel=0.01) and fast.single_to_double == 2
    assert fast.bytes_per_s == pytest.approx(4.9e12, rel=0.01)
    assert _cupy.told_by({}) == _cupy.MIDDLING
    small, large = "1x1x64x64,1x1x3x3", "32x128x112x112,128x128x3x3,p1"
    for name in ("cupy_direct", "cupy_im2col_gemm", "cupy_winograd_f4", "cupy_fft"):
        seconds = []
        for device in (fast, _cupy.MIDDLING):
            monkeypatch.setattr(_cupy, "device", lambda device=device: device)
            seconds.append([get(name).cost(ConvSpec.parse(text)).seconds() for text in (small, large)])
        assert seconds[0][0] == pytest.approx(seconds[1][0], rel=0.2) and seconds[0][1] < seconds[1][1] / 2


@pytest.mark.parametrize("name", ["cupy_direct", "cupy_im2col_gemm", "cupy_winograd_f4", "cupy_fft"])
def test_float64_is_as_much_slower_as_a_gpu_says_of_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cupy, "device", lambda: _cupy.MIDDLING)
    single, double = (get(name).cost(ConvSpec.parse(f"32x128x112x112,128x128x3x3,p1,{dtype}")).flops_per_s
                      for dtype in ("float32", "float64"))  # fmt: skip
    assert single / double == pytest.approx(_cupy.MIDDLING.single_to_double)
