"""What /proc tells of this process: its children, and whether its threads run. Nothing
heavy is imported: a guardian forks.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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


def running(task: int | None) -> bool:
    """Whether a thread of this process is on a core or waits for one; False where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/self/task/{task}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
    return False
