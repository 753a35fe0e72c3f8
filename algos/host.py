"""Facts of the host within what a container leaves of it: cores, memory, caches, the folders where something
is kept, and what names the machine in records.

Limits may change while a process runs, so they are read when they are asked for; those of control groups (v1,
v2, both at once, and every level above the process) at most ``FRESH_S`` later, since that means reading
files. What a system does not tell, or tells out of bounds, has a default.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import platformdirs

ROOT = Path("/")  # of proc and sys
DRIVER, GPUS = Path("/proc/driver/nvidia/version"), Path("/proc/driver/nvidia/gpus")
FRESH_S = 1.0
NO_LIMIT = 1 << 60  # v1 writes "none" as the largest multiple of a page
GUESSED_BYTES = 1 << 30  # of memory, where nobody knows
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
                  "VECLIB_MAXIMUM_THREADS", "OMP_NUM_THREADS")  # fmt: skip
# Bytes of a cache where the system does not tell, and the bounds of what is believed.
CACHES = {"L1d": (32 << 10, 4 << 10, 4 << 20), "L2": (512 << 10, 64 << 10, 1 << 30),
          "L3": (8 << 20, 256 << 10, 16 << 30)}  # fmt: skip
CACHE_NAMES = {("1", "Data"): "L1d", ("2", "Unified"): "L2", ("3", "Unified"): "L3"}
SAID = "CONVBENCH_SAID"  # in the environment, so that the children of a process that has said it keep quiet
# Whose versions belong to the build of an algorithm, by its runtime.
LIBRARIES = {
    "numpy": ("numpy", "scipy"),
    "numba": ("numpy", "numba", "llvmlite"),
    "torch": ("numpy", "torch"),
    "opencv": (
        "numpy",
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "cupy": ("numpy", "cupy", "cupy-cuda12x", "cupy-cuda13x"),
}

Found = TypeVar("Found")


def _fresh(read: Callable[[], Found]) -> Callable[[], Found]:
    """``read``, but at most once in ``FRESH_S``."""
    kept: tuple[float, Path, Found] | None = None

    @wraps(read)
    def found() -> Found:
        nonlocal kept
        held, now = kept, time.monotonic()
        if held is None or now - held[0] >= FRESH_S or held[1] is not ROOT:
            kept = held = now, ROOT, read()
        return held[2]

    return found


# ---- cores -------------------------------------------------------------------------------------------------


def usable_cores() -> int:
    """Cores that this process may use: by affinity, which cpusets narrow, and
    by the quota of its control groups.
    """
    cores = 0
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            cores = len(os.sched_getaffinity(0))
    return min(cores or os.cpu_count() or 1, _quota())


def environment_threads(names: tuple[str, ...]) -> list[int]:
    """The numbers in those variables that are set; of a list, which OMP_NUM_THREADS may hold, the first."""
    words = (os.environ.get(name, "").partition(",")[0].strip() for name in names)
    return [
        int(word) for word in words if word.isascii() and word.isdigit() and 0 < len(word) < 10 and int(word)
    ]


@_fresh
def _quota() -> int:
    """Whole cores that the control groups grant."""
    cores = NO_LIMIT
    for group in _groups("cpu"):
        of_v1 = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        for ratio in (_numbers(group / "cpu.max"), of_v1):
            if len(ratio) == 2 and min(ratio) > 0:  # -1 is v1's word for none
                cores = min(cores, max(1, ratio[0] // ratio[1]))
    return cores


# ---- memory ------------------------------------------------------------------------------------------------


class _Limit(NamedTuple):
    """What one control group may hold, and the files that say what it does hold."""

    bytes: int
    used: Path
    details: Path


def available_memory() -> int:
    """Bytes that this process can still take: of the host's memory, of its
    control groups' and of its address space.
    """
    free = _physical("available")
    for limit in _memory_limits():
        droppable = 0  # pages of files that nobody has used for a while
        with contextlib.suppress(OSError, ValueError, KeyError):
            details = dict(line.split() for line in limit.details.read_text().splitlines())
            # Of v1's whole tree, of v2's
            droppable = int(details.get("total_inactive_file") or details["inactive_file"])
        for used in _numbers(limit.used)[:1]:
            free = min(free, limit.bytes - max(0, used - droppable))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if space != resource.RLIM_INFINITY:
            free = min(free, space - address_space())
    return max(0, free)


@_fresh
def recent_memory() -> int:
    """``available_memory``, for who asks every few microseconds."""
    return available_memory()


def address_space() -> int:
    """Bytes of addresses that this process has taken.

    Raises
    ------
    OSError
        Where the system does not tell.
    """
    import psutil

    try:
        return int(psutil.Process().memory_info().vms)
    except psutil.Error as error:
        raise OSError(errno.ENOSYS, f"cannot tell the size of this process: {error}") from error


def total_memory() -> int:
    """Bytes that the host has, or that the control groups allow."""
    return min([_physical("total"), *(limit.bytes for limit in _memory_limits())])


def _physical(kind: str) -> int:
    """``available`` or ``total`` bytes of the host, whatever the container may have."""
    with contextlib.suppress(Exception):  # psutil raises whatever reading /proc does
        import psutil

        return int(getattr(psutil.virtual_memory(), kind))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        pages = os.sysconf("SC_AVPHYS_PAGES" if kind == "available" else "SC_PHYS_PAGES")
        if pages > 0:
            return pages * os.sysconf("SC_PAGE_SIZE")
    return GUESSED_BYTES


@_fresh
def _memory_limits() -> list[_Limit]:
    found = []
    for group in _groups("memory"):
        for names in (("memory.max", "memory.high"), ("memory.limit_in_bytes",)):
            limit = min((n for name in names for n in _numbers(group / name)), default=NO_LIMIT)
            if 0 <= limit < NO_LIMIT:
                used = "memory.current" if names[0] == "memory.max" else "memory.usage_in_bytes"
                found.append(_Limit(limit, group / used, group / "memory.stat"))
    return found


# ---- control groups ----------------------------------------------------------------------------------------


def _groups(controller: str) -> list[Path]:
    """The folders of this process's control groups that may limit
    ``controller``, of v1 and v2, with all above them.
    """
    system = ROOT / "sys/fs/cgroup"
    try:
        own = [line.split(":", 2) for line in (ROOT / "proc/self/cgroup").read_text().splitlines()]
        mounts = (ROOT / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return [system, system / controller]  # where a container sees its own
    paths = {
        name: path for _, names, path in (line for line in own if len(line) == 3) for name in names.split(",")
    }
    found: list[Path] = []
    for mount in mounts:
        where, _, what = mount.partition(" - ")
        kind, options = (what.split() or [""])[0], (what.split() or [""])[-1]
        name = "" if kind == "cgroup2" else controller
        if (
            kind not in ("cgroup", "cgroup2")
            or (name and name not in options.split(","))
            or name not in paths
        ):
            continue
        shown, mounted = where.split()[3:5]
        top = ROOT / mounted.lstrip("/")
        # A mount shows the tree from ``shown`` on; a container may see the path of its host, which leads
        # nowhere in there.
        inner = top
        if ".." not in paths[name] and (paths[name] + "/").startswith(shown.rstrip("/") + "/"):
            inner = top / paths[name][len(shown.rstrip("/")) :].lstrip("/")
        found += [group for group in (inner, *inner.parents) if group == top or top in group.parents]
    return list(dict.fromkeys(found))


def _numbers(path: Path) -> list[int]:
    """The whole numbers in a file; none where it cannot be read or holds anything but them and ``max``."""
    with contextlib.suppress(OSError, ValueError):
        return [NO_LIMIT if word == "max" else int(word) for word in path.read_text().split()]
    return []


# ---- processor ---------------------------------------------------------------------------------------------


@cache
def caches() -> dict[str, int]:
    """Bytes of L1d, L2 (each per core) and L3, as far as the system tells what can be; sane defaults
    elsewhere.
    """
    sizes = {name: default for name, (default, _, _) in CACHES.items()}
    for index in sorted((ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            level, kind, text = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            name = CACHE_NAMES[level, kind]
            size = int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
            if CACHES[name][1] <= size <= CACHES[name][2]:
                sizes[name] = size
    return sizes


@cache
def cpu_features() -> dict[str, bool]:
    """The vector extensions of the processor by LLVM's names; none where LLVM
    cannot tell, as on some without /proc.
    """
    from llvmlite import binding

    with contextlib.suppress(RuntimeError):
        return dict(binding.get_host_cpu_features())
    return {}


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
    for name, label in (
        ("avx512f", "AVX-512"),
        ("avx2", "AVX2"),
        ("avx", "AVX"),
        ("sve", "SVE"),
        ("neon", "NEON"),
    ):
        if cpu_features().get(name):
            return label
    return "baseline"


# ---- folders -----------------------------------------------------------------------------------------------


def data_base() -> Path:
    """Where the machine's memory lives: CONVBENCH_DATA, else the user's data folder.

    Raises
    ------
    OSError
        Without a home, as for any folder that cannot be written.
    """
    return _base("CONVBENCH_DATA", platformdirs.user_data_dir)


def cache_base() -> Path:
    """Where what can be made again lives (compiled code, probes): CONVBENCH_CACHE, else the user's cache
    folder.

    Raises
    ------
    OSError
        As ``data_base``.
    """
    return _base("CONVBENCH_CACHE", platformdirs.user_cache_dir)


def _base(variable: str, usual: Callable[..., str]) -> Path:
    with contextlib.suppress(RuntimeError, KeyError):  # no home, no user of that name
        named = os.environ.get(variable)
        path = Path(named or usual("convbench", appauthor=False)).expanduser()
        if named or path.is_absolute():  # some versions answer "~/..." literally
            return path
    raise OSError(errno.ENOENT, "there is no home folder")


def forgetful(error: OSError) -> None:
    """Say on stderr, once per process and its children, that something cannot be kept, and why."""
    if SAID not in os.environ:
        os.environ[SAID] = "1"
        why = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
        print(f"convbench: what it compiles and measures is forgotten when this process ends ({why}): "
              "set CONVBENCH_CACHE and CONVBENCH_DATA to folders that it may write",
              file=sys.stderr)  # fmt: skip


# ---- the machine -------------------------------------------------------------------------------------------


@cache
def fingerprint() -> dict[str, Any]:
    """What a reader of a figure must know about the machine, JSON-ready; ``id`` names it in records."""
    return {
        **_identity(usable_cores()),
        "memory_bytes": total_memory(),
        "python": platform.python_version(),
        "blas": _blas(),
        "versions": {name: found for name in every_library() if (found := version(name))},
    }


def machine_id() -> str:
    """``fingerprint()["id"]`` alone."""
    return _identity(usable_cores())["id"]


def ids_by_cores() -> dict[str, int]:
    """What this machine's ``id`` is with other numbers of usable cores: fewer
    for a container, more for its host.
    """
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
        "gpu": gpu_driver(),
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


def _blas() -> str:
    import numpy as np

    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name')} {found.get('version')}"


@cache
def gpu_driver() -> str:
    """The driver's line and the GPUs' models; empty without one."""
    with contextlib.suppress(OSError):
        lines = [
            line for path in sorted(GPUS.glob("*/information")) for line in path.read_text().splitlines()
        ]
        models = [" ".join(line.split()) for line in lines if "Model:" in line]
        return " | ".join([*DRIVER.read_text().splitlines()[:1], *models])
    return ""


def every_library() -> tuple[str, ...]:
    """Whose versions say what any of the runtimes did."""
    return tuple(dict.fromkeys(name for names in LIBRARIES.values() for name in names))
