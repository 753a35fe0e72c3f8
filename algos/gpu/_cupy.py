"""What the CuPy algorithms share: one probe, transfers, and CUDA kernels from their text to something to
call.

Array code asks ``self.xp`` for its module and ``self.compiled`` for its kernels. The tests put NumPy and a
C++ compiler in their place, so that all of it also runs, and is judged, without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import CALL_S, DEVICE_CALL_S, Algorithm, Cost
from algos.engine.threads import once
from algos.probe import probe
from algos.spec import ConvSpec

THREADS = 256  # of a block, where a kernel has no reason for another number
SHARED_BYTES = 40 << 10  # every CUDA device gives a block 48 KiB
LARGEST_GRID = (1 << 31) - 1
QUALIFIED = r"^(\w+\.)+\w+: "  # the kind of an exception, which says less than its text
LIBRARIES = ("cupy", "cupy-cuda12x", "cupy-cuda13x")

PROBE = """
import cupy
if not cupy.cuda.runtime.getDeviceCount():
    raise SystemExit("no CUDA device")
kernel = cupy.RawKernel('extern "C" __global__ void twice(float* a) { a[threadIdx.x] *= 2; }', "twice")
a = cupy.ones(32, cupy.float32)
kernel((1,), (32,), (a,))
if float(a.sum()) != 64:
    raise SystemExit("a small kernel gave a wrong result")
"""
# A wheel of CuPy may stand beside a toolkit that lacks one of the libraries.
PROBES = {
    "cublas": """
import cupy
if float(cupy.matmul(cupy.ones((2, 4, 4)), cupy.ones((2, 4, 4))).sum()) != 128:
    raise SystemExit("a small matrix product gave a wrong result")
""",
    "cufft": """
import cupy
if abs(complex(cupy.fft.rfftn(cupy.ones((2, 4, 4)), axes=(1, 2))[0, 0, 0]) - 16) > 1e-9:
    raise SystemExit("a small transform gave a wrong result")
""",
}


@once
def broken(library: str) -> str | None:
    """Why CuPy cannot use a GPU here, or ``library`` on it, or None; asked once
    per process and remembered for a day.
    """
    if importlib.util.find_spec("cupy") is None:
        return (
            "cupy is not installed: pip install 'cupy-cuda13x[ctk]', or cupy-cuda12x for a driver of CUDA 12"
        )
    if library and (reason := broken("")):
        return reason
    reason = (
        probe(f"cupy_{library}", PROBES[library], LIBRARIES) if library else probe("cupy", PROBE, LIBRARIES)
    )
    return reason and f"CuPy cannot use {library or 'a GPU'}: {re.sub(QUALIFIED, '', reason)}"


@dataclass(frozen=True)
class Kernel:
    """One CUDA kernel, before it meets a compiler.

    Attributes
    ----------
    name : str
        Of the ``extern "C" __global__`` function. Its parameters are pointers to ``T`` first, then numbers of
        64 bits, and it computes everything with any number of blocks.
    code : str
    block : (int, int)
        Threads of a block along x and y.
    options : tuple of str
        For NVRTC.
    """

    name: str
    code: str
    block: tuple[int, int] = (THREADS, 1)
    options: tuple[str, ...] = ()


def defined(**values: object) -> str:
    """Lines of ``#define``: what is compiled into a kernel."""
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def blocks_for(threads: int) -> int:
    """Blocks of ``THREADS`` for that many threads."""
    return -(-threads // THREADS)


def c_type(spec: ConvSpec) -> str:
    return "float" if spec.in_dtype.itemsize == 4 else "double"


@dataclass(frozen=True)
class CupyAlgorithm(Algorithm):
    """Base of the algorithms on CuPy."""

    device: str = "cuda"
    runtime: str = "cupy"

    library: ClassVar[str] = ""  # cublas or cufft, where it needs more than kernels of its own

    def unavailable(self) -> str | None:
        if self.library and os.environ.get("CUPY_TF32", "0") not in ("", "0"):
            return "CUPY_TF32 is set, which rounds operands of products to 11 bits: unset it"
        return broken(self.library)

    @property
    def xp(self) -> Any:
        """The array module."""
        import cupy

        return cupy

    def kernels(self, spec: ConvSpec) -> list[Kernel]:
        """Every kernel that ``prepare`` compiles for ``spec``."""
        return []

    def compiled(self, kernel: Kernel) -> Callable[..., None]:
        """``call(blocks, *arguments)`` with arrays and whole numbers in the order of the kernel's parameters.
        """
        raw = self.xp.RawKernel(kernel.code, kernel.name, kernel.options)
        raw.compile()

        def call(blocks: int, *arguments: Any) -> None:
            passed = tuple(np.int64(a) if isinstance(a, int) else a for a in arguments)
            raw((min(blocks, LARGEST_GRID),), kernel.block, passed)

        return call

    def to_device(self, array: np.ndarray) -> Any:
        return self.xp.asarray(array)

    def to_host(self, array: Any) -> np.ndarray:
        return self.xp.asnumpy(array)

    def synchronize(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()


class Device(NamedTuple):
    """What a GPU does at best, a multiply-add counted as two operations, and how many times as fast float32
    is as float64.
    """

    flops_per_s: float
    bytes_per_s: float
    single_to_double: float


MIDDLING = Device(1.5e13, 5e11, 32.0)  # where none is at hand


@once
def device() -> Device:
    """The first GPU here, by what it says of itself."""
    if broken("") is not None:
        return MIDDLING
    import cupy

    return told_by(cupy.cuda.Device(0).attributes)


def told_by(attributes: dict[str, int]) -> Device:
    """Of CUDA's attributes, of which later versions may lack some."""
    names = "MultiProcessorCount", "ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth"
    processors, clock, memory_clock, bits = (attributes.get(name, 0) for name in names)
    version = attributes.get("ComputeCapabilityMajor", 0), attributes.get("ComputeCapabilityMinor", 0)
    lanes = 64 if version in ((6, 0), (7, 0), (7, 2), (7, 5), (8, 0)) else 128
    # Clocks in kHz, the memory's of a double data rate
    flops, bytes_ = processors * lanes * 2e3 * clock, 2e3 * memory_clock * bits / 8
    ratio = attributes.get("SingleToDoublePrecisionPerfRatio", 0)
    found = flops, bytes_, float(ratio)
    return Device(*(told or middling for told, middling in zip(found, MIDDLING, strict=True)))


def device_cost(
    spec: ConvSpec, operations: float, moved_bytes: float, kernel_calls: float, share: float,
    latency_s: float = 0.0,
) -> Cost:  # fmt: skip
    """What a run on the device does.

    Parameters
    ----------
    share : float
        Of the operations that the device does at best.
    latency_s : float
        What a thread waits for, one thing after the other, however many threads there are.
    """
    here = device()
    flops_per_s, bytes_per_s = share * here.flops_per_s, 0.7 * here.bytes_per_s
    if spec.in_dtype.itemsize == 8:
        flops_per_s /= here.single_to_double
    if latency_s:
        flops_per_s = min(flops_per_s, operations / latency_s)
    # The host asks for the next kernel while the last one runs; ``Cost`` reckons in calls of NumPy's length
    asking_s = kernel_calls * DEVICE_CALL_S - max(operations / flops_per_s, moved_bytes / bytes_per_s)
    return Cost(operations, moved_bytes, max(1.0, asking_s / CALL_S), flops_per_s, False, bytes_per_s)
