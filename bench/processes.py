"""The children of this process, and how a new one finds this code. Nothing heavy is imported: a
guardian forks.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def children() -> list[int]:
    """Children of this process, adopted ones included; none where the system does not say."""
    found: list[int] = []
    entries: list[str] = []
    with contextlib.suppress(OSError):
        entries = os.listdir("/proc")
    for entry in filter(str.isdigit, entries):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(entry))
    return found


def code_environment(code: str = "") -> dict[str, str]:
    """What makes a process find ``algos`` in the folder ``code``, where one is given, and all else here."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (code, ROOT, os.environ.get("PYTHONPATH", ""))))}
