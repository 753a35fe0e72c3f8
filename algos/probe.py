"""Probes: whether something works on this machine, tried in a throw-away process that may crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from algos.host import cache_base, gpu_driver, version

DAY_S = 86_400  # that an answer is believed


def probe(name: str, code: str, libraries: tuple[str, ...], timeout_s: float = 60.0) -> str | None:
    """Why ``code`` fails in a throw-away process, or None; the answer is kept for a day, keyed by versions
    and driver.

    ``code`` prints nothing of interest; its exit status decides, and the last line on stderr is the reason.
    """
    parts = [code, sys.executable, gpu_driver(), *(f"{lib}={version(lib)}" for lib in libraries)]
    key = f"{name}-{hashlib.sha256('|'.join(map(str, parts)).encode()).hexdigest()[:16]}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(_kept(key).read_text())
        if 0 <= time.time() - stored["at_s"] < DAY_S:
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
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the probe did not answer in {timeout_s:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines[-1] if lines else f"the probe ended with status {done.returncode}")[:200]
