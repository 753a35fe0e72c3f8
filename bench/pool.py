"""The controller's side of the workers: starts them, talks to them, times them out, and says how they died.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import randrange
from types import MappingProxyType
from typing import IO, Any, NamedTuple, TypeVar

import psutil

from algos.contract import Algorithm
from algos.engine.threads import default_threads, limit_environment
from algos.host import data_base
from algos.registry import source_of
from bench import perf_counter
from bench.files import scratch
from bench.processes import code_environment
from bench.record import STATUSES
from bench.text import printable

START_S, END_S = 120.0, 10.0
JUDGE_S = 900.0  # for the definition of the largest problems
AT_REST = {"OPENBLAS_THREAD_TIMEOUT": "4"}  # threads of a judge that wait spin for 2^4 cycles, not 2^26


class WorkerFailed(Exception):
    """A worker did not answer; ``status`` is ``crashed`` or ``timeout`` and the text says what happened."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Worker:
    """One measuring process, in a session of its own so that its whole group can be ended.

    Parameters
    ----------
    threads : int
        Every library's thread pool in it.
    device : str
        What it is for, which decides whether its memory is limited.
    source : str
        The file outside this distribution whose algorithms it finds beside ours; none when empty.
    module : str
        Whose ``main`` it runs.
    code : str
        The folder whose ``algos`` it runs instead of this one; none when empty.
    variables : mapping
        Of its environment.
    """

    def __init__(
        self, threads: int, device: str = "cpu", source: str = "", module: str = "bench.worker",
        code: str = "", variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.start_s = 0.0  # that somebody waited for it
        self.log: IO[bytes] = scratch()  # lives as long as the worker
        answers, answers_write = os.pipe()
        alive_read, self._alive = os.pipe()
        environment = {**os.environ, **limit_environment(threads), "CONVBENCH_PATH": source,
                       **code_environment(code), **variables}  # fmt: skip
        # The stack begins elsewhere, also where the system moves none
        environment["CONVBENCH_SHIFT"] = "x" * randrange(4096)
        program = f"from {module} import main; main()"
        arguments = [str(answers_write), str(alive_read), device, str(os.getpid())]
        try:
            # -P: a folder named bench or algos in the working directory must not shadow the package
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, *arguments],
                stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, env=environment,
                pass_fds=(answers_write, alive_read), start_new_session=True,
            )
        finally:
            os.close(answers_write)
            os.close(alive_read)
        self._answers, self._buffer, self._asked = answers, b"", 0
        self._arrivals = selectors.DefaultSelector()  # select.select refuses descriptors from 1024 on
        self._arrivals.register(answers, selectors.EVENT_READ)
        self._arrived = False

    def arrive(self) -> None:
        """Wait until it has started; WorkerFailed where it does not."""
        if self._arrived:
            return
        started = perf_counter()
        try:
            self._read(START_S)
        except BaseException:
            self.end()
            raise
        self._arrived, self.start_s = True, perf_counter() - started

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
        self.arrive()
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
            if left <= 0 or not self._arrivals.select(left):
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
            lines = [
                line.strip()
                for line in self.log.read().decode("utf-8", "replace").splitlines()
                if line.strip()
            ]
            fatal = [line for line in lines if line.startswith("Fatal Python error")]
            if words := (fatal or lines)[-1:]:
                return ": " + printable(words[0])[:160]
        return ""

    def busy_s(self) -> float:
        """Processor seconds of the worker and all that it started, by the system's books; in steps of 10 ms.
        """
        total = 0.0
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += sum(process.cpu_times()[:2])
        return total

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
        self._arrivals.close()
        with contextlib.suppress(OSError):
            os.close(self._answers)
        self._alive = self._answers = -1
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.log.close()


class JudgeLostError(Exception):
    """The judge's process died, or did not answer."""


@contextlib.contextmanager
def _its_own_failures() -> Iterator[None]:
    try:
        yield
    except WorkerFailed as failure:
        raise JudgeLostError(str(failure).replace("the worker", "the judge")) from None


class Judge(Worker):
    """The process that finds verdicts."""

    def __init__(self) -> None:
        super().__init__(default_threads(), module="bench.judge", variables=AT_REST)

    def arrive(self) -> None:
        """Wait until it has started; JudgeLostError where it does not."""
        with _its_own_failures():
            super().arrive()

    def ask(self, timeout_s: float = JUDGE_S, **request: Any) -> dict[str, Any]:
        """The answer to one question; JudgeLostError when there is none."""
        with _its_own_failures():
            return super().ask(timeout_s, **request)

    def check(
        self, carry: Callable[[dict[str, Any]], dict[str, Any] | None], **about: Any
    ) -> dict[str, Any] | None:
        """The verdict on an algorithm that obeys through ``carry``; None when it cannot obey any more."""
        reply = self.ask(do="check", **about)
        while "order" in reply:
            answer = None
            try:
                answer = carry(reply["order"])
            finally:
                if answer is None:
                    with contextlib.suppress(JudgeLostError):
                        self.ask(do="abandon")
            if answer is None:
                return None
            reply = self.ask(do="told", answer=answer)
        return reply


W = TypeVar("W", bound=Worker)


class Place(NamedTuple):
    """Where an algorithm runs, beside its runtime, device and threads.

    Attributes
    ----------
    source : str
        The file from outside that it stands in; it shares its process with nobody then.
    code : str
        The folder whose ``algos`` it belongs to; empty for this one.
    party : str
        Parties share no process, whatever else they have in common.
    """

    source: str = ""
    code: str = ""
    party: str = ""


class Pool:
    """The judge, and workers by what must not share a process; each is started when first needed.

    Algorithms of one runtime and number of threads share one, since they trust each other; each from outside
    has its own.
    """

    def __init__(self) -> None:
        self._workers: dict[tuple[Place, str, str, int, str], Worker] = {}
        self._judge: Judge | None = None
        self.start_s = 0.0

    def expect(self, wanted: Iterable[tuple[Algorithm, int]]) -> None:
        """Have the workers of algorithms on so many threads start, and the judge, side by side."""
        for algorithm, threads in wanted:
            self._started(algorithm, threads)
        self._summoned()

    def get(self, algorithm: Algorithm, threads: int) -> Worker:
        """A living worker; a dead one is replaced."""
        return self._arrived(self._started(algorithm, threads))

    def _started(self, algorithm: Algorithm, threads: int) -> Worker:
        place = self.place(algorithm)
        key = (place, algorithm.runtime, algorithm.device, threads, algorithm.name if place.source else "")
        worker = self._workers.get(key)
        if worker is None or not worker.running:
            if worker is not None:
                worker.end()
            worker = self._workers[key] = Worker(threads, algorithm.device, place.source, code=place.code)
        return worker

    def _arrived(self, worker: W) -> W:
        """The same, once it has started."""
        before = worker.start_s
        worker.arrive()
        self.start_s += worker.start_s - before
        return worker

    def place(self, algorithm: Algorithm) -> Place:
        """Where ``algorithm`` runs."""
        return Place(source_of(algorithm))

    def judge(self) -> Judge:
        """The living judge."""
        return self._arrived(self._summoned())

    def _summoned(self) -> Judge:
        if self._judge is None or not self._judge.running:
            if self._judge is not None:
                self._judge.end()
            self._judge = Judge()
        return self._judge

    def end(self) -> None:
        """End every worker: the next launch starts with fresh processes. The judge stays."""
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.end()
        if self._judge is not None:
            self._judge.end()
            self._judge = None


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """One process of this user measures at a time: two busy ones would slow each other. Released on any
    death.
    """
    try:
        import fcntl

        folder = data_base()
        folder.mkdir(parents=True, exist_ok=True)
        # Machines may share a home folder, and each measures by itself
        name = f"measuring-{platform.node()}.lock"
        file = open(folder / name, "a+")  # noqa: SIM115  # closed below, with the lock
    except (ImportError, OSError):  # no such lock here: measure without it
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            whose = printable(file.read(20).strip()) or "unknown"
            print(f"convbench: waiting for another one that measures here (process {whose})", file=sys.stderr,
                  flush=True)  # fmt: skip
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield
