"""What this machine can do at most: arithmetic by type, and copying by cache level, with one thread and with
all cores.

Arithmetic is the better of a loop of fused multiply-adds that never leaves the registers and NumPy's matrix
product. Copying reads one array and writes another, both counted once, as ``ConvSpec.min_bytes`` counts. It
takes a few seconds in a process of its own and is remembered; since a busy machine hides its peak, it is
measured again on later days, ``REPEATS`` times in all, and the best stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from algos.engine.blas import blas_limit
from algos.engine.jit import compiled
from algos.engine.threads import limit_environment, share
from algos.host import available_memory, cache_base, caches, cpu_features, usable_cores
from bench.processes import code_environment

REPEATS, AGAIN_S = 3, 86_400  # measurements of one machine in all, and what lies between two at least
LIMIT_S = 60.0
TRY_S, TRIES = 0.01, 8  # of each figure the best try counts
GEMM_SIZES = (512, 1024)
# Accumulators: two pipes of four or five cycles are full, and 16 registers hold them with both constants
CHAINS = 12
LARGEST_BYTES = 512 << 20


def _vector_bytes(features: dict[str, bool]) -> int:
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


FEATURES = cpu_features()
VECTOR_BYTES = _vector_bytes(FEATURES)
FUSED = bool(FEATURES.get("fma") or FEATURES.get("neon"))


def _chains(element: Any, item_bytes: int) -> Callable[..., Any]:
    """An intrinsic's body: ``steps`` rounds of acc = acc * a + b on ``CHAINS``
    vectors; returns one lane of their sum.
    """
    lanes = VECTOR_BYTES // item_bytes
    vector, kind = ir.VectorType(element, lanes), {4: "f32", 8: "f64"}[item_bytes]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (steps,) = arguments
        i64 = ir.IntType(64)
        # They tend to 0.5, where none starts: LLVM takes out a chain that it sees to stay as it is.
        a, b = (ir.Constant(vector, [value] * lanes) for value in (0.5, 0.25))
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}{kind}"
        )
        entry = builder.block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(i64)
        step.add_incoming(ir.Constant(i64, 0), entry)
        sums = [builder.phi(vector) for _ in range(CHAINS)]
        for index, phi in enumerate(sums):  # different starts: equal chains would be computed once
            phi.add_incoming(ir.Constant(vector, [float(index)] * lanes), entry)
        new = [builder.call(fma, [s, a, b]) if FUSED else builder.fadd(builder.fmul(s, a), b) for s in sums]
        following = builder.add(step, ir.Constant(i64, 1))
        step.add_incoming(following, loop)
        for phi, value in zip(sums, new, strict=True):
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
        builder.position_at_end(done)
        total = new[0]
        for value in new[1:]:
            total = builder.fadd(total, value)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return codegen


@intrinsic
def _chains32(typingctx, steps):  # type: ignore[no-untyped-def]
    return types.float32(types.intp), _chains(ir.FloatType(), 4)


@intrinsic
def _chains64(typingctx, steps):  # type: ignore[no-untyped-def]
    return types.float64(types.intp), _chains(ir.DoubleType(), 8)


@compiled()
def multiply_add_float32(steps: int) -> float:
    return _chains32(steps)


@compiled()
def multiply_add_float64(steps: int) -> float:
    return _chains64(steps)


@compiled(fastmath=True)
def copy(source: np.ndarray, target: np.ndarray, rounds: int) -> None:
    """Read and write every element, ``rounds`` times; the sum keeps it from
    being skipped or handed to a library.
    """
    for r in range(rounds):
        more = np.float32(r)
        for i in range(len(source)):
            target[i] = source[i] + more


def _best_rate(work: float, job: Callable[[], Any]) -> float:
    """Work per second of the best try."""
    best = float("inf")
    for _ in range(TRIES):
        start = perf_counter()
        job()
        best = min(best, perf_counter() - start)
    return work / best


def _loop_flops_per_s(dtype: str, threads: int) -> float:
    loop = {"float32": multiply_add_float32, "float64": multiply_add_float64}[dtype]
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    loop(1000)
    steps = 100_000
    start = perf_counter()
    loop(steps)
    steps = max(1, int(steps * TRY_S / max(perf_counter() - start, 1e-9)))
    return _best_rate(2.0 * steps * CHAINS * lanes * threads,
                      lambda: share(lambda first, last: loop(steps), threads, threads))


def _gemm_flops_per_s(dtype: str, threads: int) -> float:
    best = 0.0
    with blas_limit(threads):
        for size in GEMM_SIZES:
            a = np.full((size, size), 0.5, dtype)
            out = np.empty_like(a)
            np.matmul(a, a, out)
            multiply = lambda a=a, out=out: np.matmul(a, a, out)  # noqa: E731
            best = max(best, _best_rate(2.0 * size**3, multiply))
    return best


def _copy_bytes_per_s(array_bytes: int, threads: int) -> float:
    """Every thread copies an array of its own to another."""
    pairs = [(np.zeros(array_bytes // 4, np.float32), np.zeros(array_bytes // 4,
                                                               np.float32)) for _ in range(threads)]
    copy(*pairs[0], 1)
    start = perf_counter()
    copy(*pairs[0], 4)
    rounds = max(1, int(4 * TRY_S / max(perf_counter() - start, 1e-9)))

    def job(first: int, last: int) -> None:
        copy(*pairs[first], rounds)

    return _best_rate(2.0 * array_bytes * rounds * threads, lambda: share(job, threads, threads))


def array_bytes(threads: int) -> dict[str, int]:
    """Size of each of a thread's two arrays, by where both of every thread then lie."""
    sizes = caches()
    shared = max(sizes["L3"] // 4, 2 * sizes["L2"] * threads)  # others may live in there too
    memory = min(max(4 * sizes["L3"], 64 << 20), LARGEST_BYTES, available_memory() // 4)
    return {
        "L1d": sizes["L1d"] // 4, "L2": sizes["L2"] // 4, "L3": shared // (2 * threads),
        "memory": memory // (2 * threads),
    }  # fmt: skip


def measure() -> dict[str, Any]:
    """All peaks of this machine now, JSON-ready; see ``peaks``."""
    cores = usable_cores()
    counts = sorted({1, cores})
    flops: dict[str, dict[str, float]] = {}
    source: dict[str, dict[str, str]] = {}
    for dtype in ("float32", "float64"):
        for threads in counts:
            rates = {"loop": _loop_flops_per_s(dtype, threads), "gemm": _gemm_flops_per_s(dtype, threads)}
            best = max(rates, key=lambda name: rates[name])
            flops.setdefault(dtype, {})[str(threads)] = rates[best]
            source.setdefault(dtype, {})[str(threads)] = best
    moved: dict[str, dict[str, float]] = {}
    for threads in counts:
        for level, size in array_bytes(threads).items():
            moved.setdefault(level, {})[str(threads)] = _copy_bytes_per_s(size, threads)
    return {"cores": cores, "flops_per_s": flops, "source": source, "bytes_per_s": moved,
            "measured": datetime.now(UTC).isoformat(timespec="seconds"), "times": 1}


def peaks(identity: str) -> dict[str, Any]:
    """The peaks of the machine ``identity``, which must be this one: measured, or remembered.

    Parameters
    ----------
    identity : str
        ``algos.host.fingerprint()["id"]``.

    Returns
    -------
    dict
        ``flops_per_s`` by dtype and number of threads (as text), ``source`` likewise (``loop`` or ``gemm``),
        ``bytes_per_s`` by ``L1d``, ``L2``, ``L3``, ``memory`` and number of threads, ``cores``, ``measured``
        (UTC) and ``times``, how often that was; empty where it cannot be measured.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    name = f"{identity}-{digest}.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        stored = json.loads((cache_base() / "peaks" / name).read_text())
        if stored["peaks"]["flops_per_s"]["float32"]["1"] > 0:
            known = stored["peaks"]
            if known["times"] >= REPEATS or 0 <= time.time() - stored["at_s"] < AGAIN_S:
                return known
    fresh = _measured_apart()
    if not fresh:
        return known
    found = better(known, fresh) if known else fresh
    with contextlib.suppress(OSError):
        path = cache_base() / "peaks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"at_s": time.time(), "peaks": found}, file)
        os.replace(file.name, path)
    return found


def better(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two measurements the larger of every figure: what slows a machine down only ever hides its peak."""
    found = json.loads(json.dumps(other))
    for kind in ("flops_per_s", "bytes_per_s"):
        for name, by_threads in one.get(kind, {}).items():
            for threads, rate in by_threads.items():
                if rate > found[kind].setdefault(name, {}).get(threads, 0.0):
                    found[kind][name][threads] = rate
                    if kind == "flops_per_s":
                        found["source"].setdefault(name, {})[threads] = one["source"][name][threads]
    return {**found, "times": one["times"] + other["times"]}


def _measured_apart() -> dict[str, Any]:
    """``measure`` in a fresh process, with every library held to the usable cores; empty when that fails."""
    alive, keep = os.pipe()
    environment = {**os.environ, **limit_environment(usable_cores()), **code_environment()}
    code = f"from bench.worker import guard; guard({alive}); from bench.peaks import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, pass_fds=(alive,), start_new_session=True,
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=LIMIT_S, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    finally:
        os.close(alive)
        os.close(keep)


def main() -> None:
    """Measure and print JSON."""
    json.dump(measure(), sys.stdout)


if __name__ == "__main__":
    main()
