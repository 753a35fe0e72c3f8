"""Algorithms that are right where a check would look first, and wrong or dishonest elsewhere; for a folder in
CONVBENCH_PATH.

Each makes one mistake that a real author makes, or plays one trick. ``good`` beside them is right.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm
from algos.spec import ConvSpec


@dataclass(frozen=True)
class Good(Algorithm):
    """Correlation of layers and pictures with zero padding, by windows and one product."""

    name: str = "good"
    family: str = "gemm"

    def unsupported(self, spec: ConvSpec) -> str | None:
        plain = (
            spec.direction == "forward"
            and spec.dtype in ("float32", "float64")
            and spec.ndim == 2
            and spec.groups == 1
        )
        return None if plain and {*spec.stride, *spec.dilation} == {1} else "plain ones only"

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 4 * spec.min_bytes + 4 * spec.macs // spec.out_channels * spec.in_dtype.itemsize

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        state: dict[Any, Any] = {"calls": 0}
        w = self.kernel(weights)
        k = w.reshape(len(w), -1)

        def right(x: np.ndarray) -> np.ndarray:
            x = self.operand(x)
            inside = (slice(b, b + n) for n, (b, _) in zip(spec.size, spec.padding, strict=True))
            padded = np.zeros((*x.shape[:2], *spec.padded_size), x.dtype)
            padded[(..., *inside)] = x
            # (n, c, oh, ow, kh, kw)
            windows = np.lib.stride_tricks.sliding_window_view(padded, spec.kernel, (2, 3))
            columns = np.ascontiguousarray(windows.transpose(0, 1, 4, 5, 2, 3)).reshape(
                len(x), k.shape[1], -1
            )
            return (k @ columns).reshape(spec.output_shape)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            state["calls"] += 1
            y = self.computed(right, x, state)
            if out is None:
                return y
            out[...] = y
            self.written(out)
            return out

        return run

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return w

    def operand(self, x: np.ndarray) -> np.ndarray:
        return x

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        return right(x)

    def written(self, out: np.ndarray) -> None:
        """After ``out`` was written."""


# ---- wrong for some data -----------------------------------------------------------------------------------


class ThirdImage(Good):
    """Only the first two images are right."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[2:] *= 1.5
        return y


class FourthImage(Good):
    """Only the fourth image is wrong."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[3:4] *= 1.5
        return y


class FourthEnd(Good):
    """Only the last element of the fourth image is wrong."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[3:4, -1, -1, -1] = 0
        return y


class ThirdWritten(Good):
    """From the third image on ``out`` is wrong."""

    def written(self, out: np.ndarray) -> None:
        out[2:] = 0


class Clipped(Good):
    def operand(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, -300, 300)


class NanToZero(Good):
    def operand(self, x: np.ndarray) -> np.ndarray:
        return np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf)


class FaintTaps(Good):
    def kernel(self, w: np.ndarray) -> np.ndarray:
        return np.where(np.abs(w) < 1e-6, 0, w).astype(w.dtype)


class RelativeTaps(Good):
    """Taps that are faint beside the largest are left out."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return np.where(np.abs(w) < 1e-6 * np.abs(w).max(), 0, w).astype(w.dtype)


class NegativeInfinity(Good):
    def operand(self, x: np.ndarray) -> np.ndarray:
        return np.where(x == -np.inf, np.finfo(x.dtype).min, x)


class MirrorImages(Good):
    """A short cut for symmetric kernels is wrong."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return w * w.dtype.type(1.01) if np.array_equal(w, w[..., ::-1, ::-1]) else w


class MostlyZero(Good):
    """A short cut for sparse weights is wrong."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return w * w.dtype.type(1.01) if (w == 0).mean() > 0.5 else w


class EqualTaps(Good):
    """A short cut for weights of one value is wrong."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return w * w.dtype.type(1.01) if (w == w.flat[0]).all() else w


class FlatImage(Good):
    """A short cut for images of one value forgets the border."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        for image, result in zip(x, y, strict=True):
            if (image == image.flat[0]).all():
                result[...] = result[:, 1:2, 1:2]
        return y


class Squares(Good):
    """Operands are scaled by their norm, whose square overflows."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        norm = np.sqrt((x * x).sum(dtype=x.dtype))
        return right(x / norm) * norm


class Neighbours(Good):
    """Images are computed as differences from their mean."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        mean = np.broadcast_to(x.mean(0, keepdims=True), x.shape)
        return right(x - mean) + right(mean)


class Ceiling(Good):
    """Finite results beyond 1e30 are clipped."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        return np.where(np.isfinite(y), np.clip(y, -1e30, 1e30), y).astype(x.dtype)


class Headroom(Good):
    """Right: what would exceed the largest number inside is scaled first."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        return right(x * x.dtype.type(0.125)) * x.dtype.type(8)


class SumOfImage(Good):
    """An image that sums to zero is taken for one of zeros."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[x.sum((1, 2, 3)) == 0] = 0
        return y


class SumOfPlanes(Good):
    """Planes that sum to zero are left out."""

    def operand(self, x: np.ndarray) -> np.ndarray:
        return x * (x.sum((2, 3), keepdims=True) != 0)


class SumOfWeights(Good):
    """A short cut for filters that take no mean is wrong."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return w * np.where(w.sum((1, 2, 3), keepdims=True) == 0, w.dtype.type(1.01), w.dtype.type(1))


class NormOfImage(Good):
    """Images are divided by their largest value, which may be zero."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        most = np.abs(x).max((1, 2, 3), keepdims=True)
        return right(x / most) * most


class NormOfFilter(Good):
    """Filters are divided by their largest weight, which may be zero."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        most = np.abs(w).max((1, 2, 3), keepdims=True)
        return w / most * most


class Energy(Good):
    """An image without energy is taken for one of zeros: the squares of small numbers are zero."""

    def operand(self, x: np.ndarray) -> np.ndarray:
        return x * ((x * x).sum((1, 2, 3), keepdims=True, dtype=x.dtype) != 0)


class Nothing(Good):
    """Right: results of zeros are written down without a look at the rest."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[~x.any((1, 2, 3))] = 0
        return y


class Blank(Good):
    """Results of zeros are left as memory held them, here ones."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y[~x.any((1, 2, 3))] = 1
        return y


class Alias(Good):
    """Zeros are their own result where the shapes agree: the operand itself comes back."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        return y if x.any() or x.shape != y.shape else x


class Single(Good):
    """Sums images of a batch in float32 whatever their type."""

    def operand(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).astype(x.dtype) if len(x) > 1 else x


class NearlyMirrored(Good):
    """Taps that are nearly those on the other side are taken for them."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        mirrored = np.concatenate([w[..., : w.shape[-1] // 2], w[..., (w.shape[-1] - 1) // 2 :: -1]], -1)
        return mirrored if np.allclose(w, mirrored, rtol=1e-3) else w


class NearlyOuter(Good):
    """A kernel that is nearly an outer product is taken for one."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(w)
        outer = (left[..., :1] * values[..., None, :1] @ right[..., :1, :]).astype(w.dtype)
        return outer if np.allclose(w, outer, rtol=1e-3) else w


class NearlyBox(Good):
    """Taps that are nearly equal are."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return np.full_like(w, w.mean()) if np.ptp(w) < 1e-3 * np.abs(w).max() else w


# ---- wrong from call to call -------------------------------------------------------------------------------


TRANSFORMED: dict[Any, np.ndarray] = {}


class WeightsBySample(Good):
    """What was made of weights is found again by some of them."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        return TRANSFORMED.setdefault((w.shape, w.flat[0], w.flat[w.size // 2], w.flat[-1]), w.copy())


class ByAddress(Good):
    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        key = x.ctypes.data
        if key not in state:
            state[key] = right(x)
        return state[key].copy()


class BySample(Good):
    """A result is found again by a few elements of its input."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        key = x.reshape(-1)[:: max(1, x.size // 16)].tobytes()
        if key not in state:
            state[key] = right(x)
        return state[key].copy()


class ByContent(Good):
    """Never wrong, and never timed: results are found again by all that their input holds."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        key = x.tobytes()
        if key not in state:
            for _ in range(20):  # slower than finding it again, however small the problem
                state[key] = right(x)
        return state[key].copy()


class Ring(Good):
    """Eight buffers take turns."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        ring = state.setdefault("ring", [np.empty_like(y) for _ in range(self.buffers)])
        kept = ring[state["calls"] % self.buffers]
        kept[...] = y
        return kept

    buffers: ClassVar[int] = 8


class LongRing(Ring):
    """Four of calls so long that few are made."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return super().computed(right, x, state)

    buffers: ClassVar[int] = 4
    seconds: ClassVar[float] = 0.01


class LongestRing(LongRing):
    """Calls so long that none is made only to look."""

    seconds: ClassVar[float] = 0.04


class Keeps(LongRing):
    """Right: what was handed out is known for a while, and left alone."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        state["last"] = np.array(super().computed(right, x, state))
        return state["last"]

    seconds: ClassVar[float] = 0.04


class OwnThread(Good):
    """What it needs stands where only the thread that prepared it finds it."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        return y if threading.get_ident() == state.setdefault("thread", threading.get_ident()) else 0 * y


class OddLater(Good):
    """Every other call after the twentieth is wrong."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        return y * y.dtype.type(1.01) if state["calls"] > 20 and state["calls"] % 2 else y


class Fiftieth(Good):
    """One call in fifty is wrong."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        return y * y.dtype.type(1.01) if state["calls"] % 50 == 0 else y


class LastPlan(Good):
    """What is prepared lies where every plan of the spec finds it."""

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        PREPARED[spec] = super().prepare(spec, weights, threads)
        return lambda x, out=None: PREPARED[spec](x, out)


PREPARED: dict[ConvSpec, Any] = {}


SCRATCH: dict[Any, np.ndarray] = {}


class Scratch(Good):
    """Plans share the memory that they work in, and may be called at the same time."""

    def operand(self, x: np.ndarray) -> np.ndarray:
        scratch = SCRATCH.setdefault(x.shape, np.empty_like(x))
        scratch[...] = x
        return scratch


class OwnScratch(Good):
    """Right: every thread works in memory of its own."""

    def operand(self, x: np.ndarray) -> np.ndarray:
        scratch = SCRATCH.setdefault((threading.get_ident(), x.shape, x.dtype), np.empty_like(x))
        scratch[...] = x
        return scratch


class Increment(Good):
    """Never wrong, and never timed: where a single element of the input is
    another, only what it reaches is computed.
    """

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        if "x" in state and np.isfinite(state["y"]).all() and len(at := np.argwhere(x != state["x"])) < 2:
            step = np.zeros_like(x)
            step[tuple(at.T)] = (x - state["x"])[tuple(at.T)]
            state["x"][tuple(at.T)] = x[tuple(at.T)]
            state["y"] = state["y"] + right(step) if len(at) else state["y"]
            return state["y"].copy()
        for _ in range(self.times):  # slower than the increment, however small the problem
            state["y"] = right(x)
        state["x"] = x.copy()
        return state["y"].copy()

    times: ClassVar[int] = 20


class LongIncrement(Increment):
    """The same where a call takes so long that few are made."""

    times: ClassVar[int] = 400


class Stack(Good):
    """Computes only where nobody times it."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        frame: Any = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name in ("_timed", "take", "sample"):
                return state["last"].copy()
            frame = frame.f_back
        state["last"] = right(x)
        return state["last"].copy()


# ---- wrong in what is handed back --------------------------------------------------------------------------


class Beyond(Good):
    """Writes one element beyond ``out``."""

    def written(self, out: np.ndarray) -> None:
        np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,), (out.itemsize,))[-1] = 0


class Restores(Good):
    """Works in place on its operand, and puts back what was there."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        kept = x.copy()
        x *= 2
        y = right(x) / x.dtype.type(2)
        x[...] = kept
        return y


class ReadOnly(Good):
    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        y.flags.writeable = False
        return y


class Columns(Good):
    """Right, in another order of memory, which the door puts right."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        return np.asfortranarray(right(x))


class Threads(Good):
    """Leaves a thread behind at every call."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()
        return right(x)


class Later(Good):
    """Returns before its result is written."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        last = y[-1, -1, -1, -1]
        y[-1, -1, -1, -1] = 0

        def finish() -> None:
            time.sleep(0.01)
            y[-1, -1, -1, -1] = last

        threading.Thread(target=finish, daemon=True).start()
        return y


class Busy(Good):
    """A thread of its own works on after the call."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        def work() -> None:
            while True:
                event.wait()
                for _ in range(10_000):
                    np.ones(1000).sum()
                event.clear()

        if "event" not in state:
            state["event"] = threading.Event()
            event = state["event"]
            threading.Thread(target=work, daemon=True).start()
        y = right(x)
        state["event"].set()
        return y


class Grows(Good):
    """Keeps what it has read."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        state.setdefault("kept", []).append(x.copy())
        return right(x)


LEFT: list[Any] = []


class Files(Good):
    """Leaves a file open at every call."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        LEFT.append(open(os.devnull))  # noqa: SIM115
        return right(x)


class Processes(Good):
    """Leaves a process behind at every call."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        LEFT.append(subprocess.Popen(["sleep", "3"]))
        return right(x)


class Masked(Good):
    """The result is more than an array."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        return np.ma.MaskedArray(right(x))


class Promise(Good):
    """The result is computed when somebody asks for it."""

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        run = super().prepare(spec, weights, threads)
        return lambda x, out=None: (lambda: run(x)) if out is None else run(x, out)

    def to_host(self, array: Any) -> np.ndarray:
        return array()


class Part(Good):
    """The result keeps a workspace alive."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        y = right(x)
        part = np.empty(4 * y.size + (1 << 15), y.dtype)[: y.size].reshape(y.shape)
        part[...] = y
        return part


class Seeds(Good):
    """Takes some of the caller's random numbers."""

    def computed(self, right: Any, x: np.ndarray, state: dict[Any, Any]) -> np.ndarray:
        np.random.rand()
        return right(x)


class Environment(Good):
    """Tells other libraries what it likes, and the caller's as well."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        os.environ["OMP_NUM_THREADS"] = str(time.perf_counter_ns())
        return w


class Switches(Good):
    """Lets threads take their turns as it likes."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        sys.setswitchinterval(sys.getswitchinterval() * 0.9)
        return w


class Mask(Good):
    """Files that anybody makes are its user's alone."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        os.umask(os.umask(0) ^ 0o077)
        return w


class Asks(Good):
    """Right: asks the environment, and works in one of its own."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        subprocess.run(["true"], env={**os.environ, "OMP_NUM_THREADS": "17"}, check=True)
        return w


class Workspace(Good):
    """Takes megabytes and predicts nothing."""

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 0

    def operand(self, x: np.ndarray) -> np.ndarray:
        return np.ones(1 << 20, x.dtype)[0] * x


# ---- wrong in what surrounds it ----------------------------------------------------------------------------


class Clock(Good):
    """Makes the clock of its process ten times too slow."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        import bench.timing

        if not hasattr(bench.timing, "honest"):
            honest = bench.timing.honest = time.perf_counter  # type: ignore[attr-defined]
            bench.timing.perf_counter = lambda: honest() / 10  # type: ignore[attr-defined]
            time.perf_counter = bench.timing.perf_counter  # type: ignore[attr-defined]
        return w


class Timer(Good):
    """One call stands for all that are timed."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        import bench.timing

        def timed(call: Any, synchronize: Any, loops: int) -> tuple[float, Any]:
            start = time.perf_counter()
            result = call()
            return time.perf_counter() - start, result

        bench.timing._timed = timed
        return w


class Judge(Good):
    """Finds everything right, and is wrong."""

    def kernel(self, w: np.ndarray) -> np.ndarray:
        import bench.check
        import bench.court
        import bench.judged

        bench.check.judge = lambda *a, **k: {}  # type: ignore[assignment]
        bench.check.judge_spoilt = lambda *a, **k: None  # type: ignore[assignment]
        bench.check._on_graded_sizes = lambda *a, **k: None  # type: ignore[assignment]
        sitting = bench.court.Sitting
        sitting._regular = sitting._untouched = lambda *a: None  # type: ignore[assignment, method-assign]
        np.array_equal = lambda *a, **k: True  # type: ignore[assignment]
        return w * w.dtype.type(1.01)


# A batch of two does not show them
BATCHED = (ThirdImage, FourthImage, FourthEnd, ThirdWritten, MirrorImages, MostlyZero)
WRONG = (
    *BATCHED,
    Clipped,
    NanToZero,
    NegativeInfinity,
    EqualTaps,
    FlatImage,
    FaintTaps,
    RelativeTaps,
    Squares,
    Neighbours,
    Ceiling,
    SumOfImage,
    SumOfPlanes,
    SumOfWeights,
    NormOfImage,
    NormOfFilter,
    Energy,
    Blank,
    Alias,
    Single,
    ByAddress,
    BySample,
    ByContent,
    Increment,
    LongIncrement,
    Ring,
    LongRing,
    LongestRing,
    NearlyMirrored,
    NearlyOuter,
    NearlyBox,
    WeightsBySample,
    Mask,
    OwnThread,
    OddLater,
    Fiftieth,
    LastPlan,
    Scratch,
    Beyond,
    ReadOnly,
    Masked,
    Promise,
    Part,
    Threads,
    Later,
    Busy,
    Workspace,
    Grows,
    Files,
    Processes,
    Seeds,
    Environment,
    Switches,
)
RIGHT = (Good, Headroom, Nothing, OwnScratch, Asks, Columns, Keeps)
# A run in processes finds them, and nothing in their own process can
DISHONEST = (Stack, Clock, Timer, Judge, Restores)
ALGORITHMS = [kind(name=kind.__name__.lower()) for kind in (*RIGHT, *WRONG, *DISHONEST)]
