"""The process that measures: one per runtime and number of threads, and one for each algorithm from outside.

It does one thing at a time, when told to, and decides nothing: verdicts are found by ``bench.judge``, and its
times are held against the controller's clock. Commands come as JSON lines on stdin, answers go as JSON lines
to a pipe of their own: libraries print banners on stdout. A guardian, its parent, kills all that it started
when the controller or the worker ends, whatever the worker is doing then.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from bench import perf_counter
from bench.opened import Opened
from bench.processes import children
from bench.text import printable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MEMORY_SHARE = 0.9  # of what is available when the worker starts


def guard(alive: int) -> None:
    """Fork, before any thread exists: the child goes on as the worker, the parent is its guardian and ends as
    it ends.

    ``alive`` is a pipe's read end whose writer is the controller.
    """
    if not hasattr(os, "pidfd_open"):  # elsewhere the end of stdin ends the worker between two commands
        return
    guardian = os.getpid()
    control = getattr(ctypes.CDLL(None), "prctl", lambda *ignored: None)
    # What the worker's death orphans comes to the guardian, whatever session it is in
    control(PR_SET_CHILD_SUBREAPER, 1)
    if worker := os.fork():
        _watch(worker, alive)
    control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:  # it died before it could be told
        os._exit(1)


def _watch(worker: int, alive: int) -> NoReturn:
    """Wait for the end of the controller or of the worker, leave no descendant, and end with the worker's
    status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watched = os.pidfd_open(worker)
    for fd in {*range(256)} - {alive, watched}:
        with contextlib.suppress(OSError):
            os.close(fd)
    with selectors.DefaultSelector() as ends:
        ends.register(alive, selectors.EVENT_READ)
        ends.register(watched, selectors.EVENT_READ)
        ends.select()
    status, known = 0, {worker}
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            for child in known.union(children()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            ended, code = os.wait()
            known.discard(ended)
            status = code if ended == worker else status
    if os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's is the one of interest
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def limit_memory() -> None:
    """Bound the address space, so that a greedy algorithm gets a MemoryError and not the machine; not for
    CUDA.
    """
    from algos.host import address_space, available_memory

    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = address_space() + int(available_memory() * MEMORY_SHARE)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def serve(commands: Any, answers: Any, device: str) -> None:
    """Answer commands until there are no more, or until an error takes the device along."""
    from bench import seal

    cases: dict[int, Opened] = {}

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields, allow_nan=False) + "\n")
        answers.flush()

    answer(hello=True)
    for line in commands:
        request = json.loads(line)
        start = perf_counter()
        try:
            match request["do"]:
                case "open":
                    cases[request["case"]] = case = Opened(request)
                    reply = case.opened()
                case "obey":
                    reply = {"answer": cases[request["case"]].judged.obey(**request["order"])}
                case "warm":
                    reply = cases[request["case"]].warm(request["move"])
                case "sample":
                    reply = cases[request["case"]].sample()
                case "rest":
                    reply = cases[request["case"]].rest()
                case "late":
                    reply = cases[request["case"]].late(request["points"])
                case _:  # close
                    cases.pop(request["case"], None)
                    reply = {}
            if _looked_at(request) and (names := seal.broken()):
                reply = {"failure": "wrong", "reason": f"it replaced {', '.join(names[:3])}"}
            answer(number=request["number"], spent_s=perf_counter() - start, **reply)
        except Exception as error:
            failed = cases.pop(request.get("case"), None)
            text = f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:300]}"
            # Torch has one of its own
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                where = "under the worker's limit" if device == "cpu" else "on the device"
                reply = {"failure": "too_large", "reason": f"out of memory {where}"}
                answer(number=request["number"], spent_s=perf_counter() - start, **reply)
                continue
            if device != "cpu" and _is_lost(
                failed.algorithm.name if failed else request.get("algorithm", "")
            ):
                # Its neighbours need another process; the controller sees the end of this one, and reads the
                # last line.
                print(f"the CUDA context is lost: {text}", file=sys.stderr, flush=True)
                os._exit(1)
            answer(number=request["number"], spent_s=perf_counter() - start, failure="error", reason=text)


def _looked_at(request: dict[str, Any]) -> bool:
    """Whether to look for what was replaced: not between samples, and once in a check, since it stays."""
    order = request.get("order", {}).get("order")
    return request["do"] not in ("warm", "sample") and order in (None, "trace")


def _is_lost(name: str) -> bool:
    """Whether an error took the CUDA context with it: then every later call fails, and synchronising is one.
    """
    from algos.registry import registry

    try:
        registry()[name].synchronize()
    except Exception:
        return True
    return False


@contextlib.contextmanager
def enter() -> Iterator[tuple[Any, Any, str]]:
    """Begin a process that the controller started: the commands, where answers go, and the device that it is
    for.
    """
    answers_fd, alive, device, parent = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's business
    if os.getppid() != parent:  # it is dead already
        os._exit(1)
    guard(alive)
    faulthandler.enable()
    os.set_inheritable(answers_fd, False)
    if device == "cpu":
        limit_memory()
    with os.fdopen(answers_fd, "w") as answers:
        yield sys.stdin, answers, device


def main() -> None:
    """Started by the controller as ``-c "from bench.worker import main; main()" ANSWERS ALIVE DEVICE
    PARENT``.
    """
    with enter() as (commands, answers, device):
        from bench import moved

        moved.stand_in()
        import bench.judged  # what every case needs is start-up, not the first case's time
        import bench.timing
        import bench.trials  # noqa: F401
        from algos.registry import registry
        from bench import seal

        seal.close()
        registry()
        seal.mend()
        serve(commands, answers, device)
