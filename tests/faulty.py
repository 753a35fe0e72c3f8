"""Algorithms that fail in every way that a worker must survive; copied into a folder named in CONVBENCH_PATH.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from algos.contract import Algorithm
from algos.spec import ConvSpec

# A test finds its own by that
CHILD = f"import time; time.sleep(600)  # a child of {os.environ['CONVBENCH_DATA']}"


@dataclass(frozen=True)
class Good(Algorithm):
    """Valid 2-D correlation of one channel, unpadded: right, and small enough to read."""

    name: str = "good"
    family: str = "direct"

    def unsupported(self, spec: ConvSpec) -> str | None:
        plain = ConvSpec(spec.batch, 1, spec.size, 1, spec.kernel, dtype=spec.dtype)
        return (
            None
            if spec.with_(rank=None) == plain and spec.ndim == 2
            else "computes plain single-channel pictures only"
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 2 * spec.min_bytes

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        def run(x: Any, out: Any = None) -> Any:
            windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], spec.kernel, axis=(1, 2))
            y = np.einsum("nhwij,ij->nhw", windows, weights[0, 0])[:, None]
            self.misbehave()
            if out is None:
                return y
            out[...] = y
            return out

        return run

    def misbehave(self) -> None:
        """What the faulty ones do instead of returning."""


@dataclass(frozen=True)
class Wrong(Good):
    name: str = "off_by_a_little"

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        return super().prepare(spec, weights * weights.dtype.type(1.001), threads)


@dataclass(frozen=True)
class Segfault(Good):
    name: str = "segfault"

    def misbehave(self) -> None:
        ctypes.string_at(0)


@dataclass(frozen=True)
class Abort(Good):
    name: str = "abort"

    def misbehave(self) -> None:
        os.abort()


@dataclass(frozen=True)
class Hang(Good):
    """Hangs with children that would outlive it, one in the group and one in a session of its own."""

    name: str = "hang"

    def misbehave(self) -> None:
        for apart in (False, True):
            subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=apart)
        time.sleep(600)


@dataclass(frozen=True)
class Daemon(Good):
    """Dies after it has started a daemon: an orphan from the beginning, in a session of its own."""

    name: str = "daemon"

    def misbehave(self) -> None:
        child = [sys.executable, "-c", CHILD]
        subprocess.run(
            [sys.executable, "-c", f"import subprocess; subprocess.Popen({child}, start_new_session=True)"],
            check=True,
        )
        os.abort()


@dataclass(frozen=True)
class Exits(Good):
    name: str = "exits"

    def misbehave(self) -> None:
        sys.exit("enough")


@dataclass(frozen=True)
class Greedy(Good):
    name: str = "greedy"

    def misbehave(self) -> None:
        kept = [np.empty(1 << 30) for _ in range(1 << 12)]  # 32 TiB
        raise AssertionError(len(kept))


@dataclass(frozen=True)
class Raises(Good):
    name: str = "raises"

    def misbehave(self) -> None:
        raise RuntimeError("first line\nsecond <b>line</b> \x1b[31mred")


@dataclass(frozen=True)
class Prints(Good):
    """Right, and noisy on stdout."""

    name: str = "prints"

    def misbehave(self) -> None:
        print('{"spent_s": 0}', flush=True)


@dataclass(frozen=True)
class TooLarge(Good):
    name: str = "predicts_too_much"

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 1 << 50


@dataclass(frozen=True)
class Slow(Good):
    name: str = "slow"

    def misbehave(self) -> None:
        time.sleep(0.7)


@dataclass(frozen=True)
class Forgets(Good):
    """Right while it is checked, wrong later."""

    name: str = "forgets"

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        right, calls = super().prepare(spec, weights, threads), []

        def run(x: Any, out: Any = None) -> Any:
            calls.append(1)
            y = right(x, out)
            if len(calls) > 6:
                y *= 2
            return y

        return run


@dataclass(frozen=True)
class Forks(Good):
    """Returns twice."""

    name: str = "forks"

    def misbehave(self) -> None:
        os.fork()


@dataclass(frozen=True)
class Breaks(Good):
    name: str = "breaks_the_contract"

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        raise LookupError("no idea")


@dataclass(frozen=True)
class NoReason(Good):
    """Says whether, not why."""

    name: str = "gives_no_reason"

    def unsupported(self, spec: ConvSpec) -> Any:
        return False


@dataclass(frozen=True)
class Leaves(Good):
    name: str = "leaves"

    def unavailable(self) -> str | None:
        sys.exit(0)


ALGORITHMS = [
    Good(), Wrong(), Segfault(), Abort(), Hang(), Daemon(), Exits(), Greedy(), Raises(), Prints(), TooLarge(),
    Slow(), Forgets(), Forks(), Breaks(), NoReason(), Leaves(),
]  # fmt: skip
