"""The machine that measured: CPU, caches, SIMD, BLAS, GPU, versions; and the build that a record belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algos.host import cache_base, caches, cpu_features, total_memory, usable_cores

if TYPE_CHECKING:
    from algos.contract import Algorithm

ROOT = Path(__file__).parent
DRIVER, GPUS = Path("/proc/driver/nvidia/version"), Path("/proc/driver/nvidia/gpus")
PROBE_DAY_S = 86_400
# Whose versions belong to the build of an algorithm, by its runtime.
LIBRARIES = {
    "numpy": ("numpy", "scipy"),
    "numba": ("numpy", "numba", "llvmlite"),
    "torch": ("numpy", "torch"),
    "opencv": ("numpy", "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "cupy": ("numpy", "cupy", "cupy-cuda12x", "cupy-cuda13x"),
}


@cache
def fingerprint() -> dict[str, Any]:
    """What a reader of a figure must know about the machine, JSON-ready; ``id`` names it in records."""
    return {**_identity(usable_cores()), "memory_bytes": total_memory(), "python": platform.python_version(), "blas": _blas(),
            "versions": {name: found for name in _every_library() if (found := version(name))}}


def ids_by_cores() -> dict[str, int]:
    """What this machine's ``id`` is with other numbers of usable cores: fewer for a container, more for its host."""
    most, now = os.cpu_count() or 1, fingerprint()["cores"]
    return {_identity(cores)["id"]: cores for cores in range(1, most + 1) if cores != now}


def _identity(cores: int) -> dict[str, Any]:
    identity = {
        "cpu": _cpu_model(),
        "cores": cores,
        "caches_bytes": caches(),
        "simd": vector_extension(),
        "system": platform.system(),
        "arch": platform.machine(),
        "gpu": _gpu_driver(),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return {"id": digest, **identity}


@cache
def version(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def build(algorithm: Algorithm) -> str:
    """Hash of the algorithm's module, of the engine and of its libraries' versions: an edit makes records stale."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    files = sorted((ROOT / "engine").glob("*.py"))
    for kind in type(algorithm).__mro__:  # what it inherits from another file is its own as well
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file and kind.__module__ != "algos.contract":
            files.append(Path(file))
    for path in files:
        digest.update(path.read_bytes())
    for name in LIBRARIES.get(algorithm.runtime, _every_library()):
        digest.update(f"{name}={version(name)}".encode())
    return digest.hexdigest()[:12]


def probe(name: str, code: str, libraries: tuple[str, ...], timeout_s: float = 60.0) -> str | None:
    """Why ``code`` fails in a throw-away process, or None; the answer is kept for a day, keyed by versions and driver.

    ``code`` prints nothing of interest; its exit status decides, and the last line on stderr is the reason.
    """
    parts = [code, sys.executable, _gpu_driver(), *(f"{lib}={version(lib)}" for lib in libraries)]
    key = f"{name}-{hashlib.sha256('|'.join(map(str, parts)).encode()).hexdigest()[:16]}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(_kept(key).read_text())
        if 0 <= time.time() - stored["at_s"] < PROBE_DAY_S:
            return stored["reason"]
    reason = _try(code, timeout_s)
    with contextlib.suppress(OSError):
        path = _kept(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"at_s": time.time(), "reason": reason}, file)
        os.replace(file.name, path)
    return reason


def _kept(key: str) -> Path:
    return cache_base() / "probes" / f"{key}.json"


def _try(code: str, timeout_s: float) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"the probe did not answer in {timeout_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"the probe ended with status {done.returncode}")[:200]


@cache
def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if match := re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE):
            return " ".join(match[1].split())
    return platform.processor() or platform.machine()


@cache
def vector_extension() -> str:
    """The widest vector extension that matters to the kernels."""
    for name, label in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("sve", "SVE"), ("neon", "NEON")):
        if cpu_features().get(name):
            return label
    return "baseline"


def _blas() -> str:
    import numpy as np

    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name')} {found.get('version')}"


@cache
def _gpu_driver() -> str:
    with contextlib.suppress(OSError):
        lines = [line for path in sorted(GPUS.glob("*/information")) for line in path.read_text().splitlines()]
        models = [" ".join(line.split()) for line in lines if "Model:" in line]
        return " | ".join([*DRIVER.read_text().splitlines()[:1], *models])
    return ""


def _every_library() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in LIBRARIES.values() for name in names))
