"""convbench in processes that need not import it: one process has, and forks for each command.

A command is as much a process as ``python -m bench`` is: its environment, folder, streams and exit code are
its own, and so is whatever it loads. Only what Python and libraries read from the environment as they start
is the first process's: ``LATE`` names what a command may change.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Read when they are needed, not when Python or a module of ours starts
LATE = {"CONVBENCH_PATH", "CONVBENCH_DATA", "COLUMNS", "PATH", "PYTHONPATH"}


class Ready:
    """The process that has imported everything, and the way to its forks."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from tests.ready import serve; serve({theirs.fileno()})"], cwd=ROOT,
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                env={**os.environ, "CONVBENCH_PATH": ""},
            )  # fmt: skip
        self._answers = self._channel.makefile("r")

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float,
        painted: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """``convbench *arguments``; its pictures are laid out, and drawn where they are to be ``painted``."""
        streams = [cwd.parent / f"{cwd.name}.{name}" for name in ("stdout", "stderr")]
        asked = {"arguments": [*arguments], "cwd": str(cwd), "environment": {**environment},
                 "streams": [*map(str, streams)], "painted": painted}  # fmt: skip
        self._channel.sendall(json.dumps(asked).encode() + b"\n")
        self._channel.settimeout(timeout)
        child = int(self._answers.readline())
        try:
            code = int(self._answers.readline())
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            raise subprocess.TimeoutExpired([*arguments], timeout) from None
        shown = (path.read_text() for path in streams)
        return subprocess.CompletedProcess([*arguments], code, *shown)

    def end(self) -> None:
        self._answers.close()
        self._channel.close()
        self._process.wait()


def serve(number: int) -> None:
    """Fork for every command that comes through the socket; returns at its end, and in each fork leaves
    with the command's exit code.
    """
    import bench.mood
    import reports.page
    import reports.plots
    from algos.registry import registry
    from bench.cli import main

    registry()  # imports all of ours
    registry.cache_clear()
    bench.mood.load_now = lambda: 0.0  # as the fixture ``calm`` has it
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=number) as channel, channel.makefile("r") as requests:
        for request in requests:
            asked = json.loads(request)
            if child := os.fork():
                channel.sendall(b"%d\n" % child)
                channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            else:
                break
        else:
            return
    os.chdir(asked["cwd"])
    for stream, path in enumerate(asked["streams"], 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if not asked["painted"]:
        reports.plots.render = lambda figure: (b"png", b"<svg/>")
    sys.exit(main(asked["arguments"]))
