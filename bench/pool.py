"""The controller's side of the workers: starts them, talks to them, times them out, and says how they died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import IO, Any

from algos.engine.threads import limit_environment
from algos.host import data_base
from bench.record import STATUSES
from bench.text import printable

START_S, END_S = 120.0, 10.0
ROOT = str(Path(__file__).resolve().parents[1])


class WorkerFailed(Exception):
    """A worker did not answer; ``status`` is ``crashed`` or ``timeout`` and the text says what happened."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Worker:
    """One measuring process, in a session of its own so that its whole group can be ended.

    Parameters
    ----------
    runtime, device : str
        What it is for; the device decides whether its memory is limited.
    threads : int
        Every library's thread pool in it.
    """

    def __init__(self, runtime: str, device: str, threads: int) -> None:
        self.runtime, self.device, self.threads = runtime, device, threads
        started = perf_counter()
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        answers, answers_write = os.pipe()
        alive_read, self._alive = os.pipe()
        environment = {**os.environ, **limit_environment(threads)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", ""))))
        code = "from bench.worker import main; main()"
        arguments = [str(answers_write), str(alive_read), device, str(os.getpid())]
        try:
            # -P: a folder named bench or algos in the working directory must not shadow the package
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *arguments],
                stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, env=environment,
                pass_fds=(answers_write, alive_read), start_new_session=True,
            )
        finally:
            os.close(answers_write)
            os.close(alive_read)
        self._answers, self._buffer, self._asked = answers, b"", 0
        try:
            self._read(START_S)
        except BaseException:
            self.end()
            raise
        self.start_s = perf_counter() - started

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def ask(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """The answer to one command.

        Raises
        ------
        WorkerFailed
            The worker died or did not answer in time; it is ended and must be replaced.
        """
        assert self.process.stdin is not None
        try:
            self._asked += 1
            self.process.stdin.write(json.dumps({**request, "number": self._asked}).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._read(timeout_s)
            answered = isinstance(reply, dict) and reply.get("number") == self._asked
            if not answered or reply.get("failure", "error") not in STATUSES:
                raise WorkerFailed("crashed", "the worker wrote something else than an answer")
            return reply
        except BrokenPipeError:
            raise self._died() from None
        except BaseException:
            self.end()
            raise

    def _read(self, timeout_s: float) -> dict[str, Any]:
        deadline = perf_counter() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - perf_counter()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise WorkerFailed("timeout", f"no answer in {timeout_s:.0f} s")
            received = os.read(self._answers, 1 << 16)
            if not received:
                raise self._died()
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise WorkerFailed("crashed", "the worker wrote something else than an answer") from None

    def _died(self) -> WorkerFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        status = self.process.returncode
        if status is None:
            what = "closed its pipe"
        elif status < 0:
            known = -status in set(signal.Signals)
            what = f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
            if -status == signal.SIGKILL:
                what += ", most likely out of memory"
        else:
            what = f"ended with status {status}"
        return WorkerFailed("crashed", f"the worker {what}{self._last_words()}")

    def _last_words(self) -> str:
        """The last line that the worker printed, for a reader of the report."""
        with contextlib.suppress(OSError, ValueError):
            self.log.seek(0, os.SEEK_END)
            self.log.seek(max(0, self.log.tell() - 4096))
            lines = [line.strip() for line in self.log.read().decode("utf-8", "replace").splitlines() if line.strip()]
            fatal = [line for line in lines if line.startswith("Fatal Python error")]
            if words := (fatal or lines)[-1:]:
                return ": " + printable(words[0])[:160]
        return ""

    def end(self) -> None:
        """End the worker and all that it started, in whatever session."""
        with contextlib.suppress(OSError):
            os.close(self._alive)  # tells the guardian
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._answers)
        self._alive = self._answers = -1
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.log.close()


class Pool:
    """Workers by (runtime, device, threads), started when first needed."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str, int], Worker] = {}
        self.start_s = 0.0

    def get(self, runtime: str, device: str, threads: int) -> Worker:
        """A living worker; a dead one is replaced."""
        key = (runtime, device, threads)
        worker = self._workers.get(key)
        if worker is None or not worker.running:
            if worker is not None:
                worker.end()
            worker = self._workers[key] = Worker(*key)
            self.start_s += worker.start_s
        return worker

    def end(self) -> None:
        """End every worker: the next launch starts with fresh processes."""
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.end()


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """One process of this user measures at a time: two busy ones would slow each other. Released on any death."""
    try:
        import fcntl

        folder = data_base()
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "measuring.lock", "w")  # noqa: SIM115  # closed below, with the lock
    except (ImportError, OSError):  # no such lock here: measure without it
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
