"""Plans beside other code: copies, pickles, forks, calls from within calls, and
whatever state the caller's program is in.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos
from algos.contract import Algorithm
from algos.engine.outer import numerical_rank
from algos.plans import prepared
from tests.conftest import HUNG_S
from tests.test_door import Elsewhere

rng = np.random.default_rng(3)
TEXT = "2x4x20x21,6x2x3x3,p1,flip"
X = rng.standard_normal((2, 4, 20, 21), dtype=np.float32)
W = rng.standard_normal((6, 2, 3, 3), dtype=np.float32)

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda plan: pickle.loads(pickle.dumps(plan)),
}  # fmt: skip


def test_a_plan_tells_what_it_is() -> None:
    native = algos.plan("1x3x9x9,4x3x3x3", np.ones((4, 3, 3, 3), np.float32), "direct_shift", threads=1)
    assert repr(native) == "<plan of 1x3x9x9,4x3x3x3 by direct_shift, 1 thread>"
    text = "1x3x9x9,4x3x3x3,p1,input_gradient"
    back = algos.plan(text, np.ones((4, 3, 3, 3), np.float32), "direct_shift", threads=1)
    assert repr(back) == f"<plan of {text} by direct_shift via input gradient as a forward pass, 1 thread>"


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("algorithm", ["im2col_gemm", "fft", "direct_channels:block_k=64", "torch_nchw"])
def test_a_copy_of_a_plan_is_a_plan_of_its_own(how: str, algorithm: str) -> None:
    if algorithm == "torch_nchw":
        pytest.importorskip("torch")
    if ":" in algorithm:
        base = algos.get("direct_channels")
        name, value = next((k, v) for k, v in base.tunables().items() if type(v) is int)
        algorithm = f"direct_channels:{name}={value + 16}"
    plan = algos.plan(TEXT, W, algorithm, threads=2)
    other = COPIES[how](plan)
    assert (
        other is not plan
        and other._run is not plan._run
        and not np.shares_memory(other._weights, plan._weights)
    )
    assert (other.spec, other.algorithm, other.threads) == (plan.spec, algorithm, 2)
    assert other.workspace_bytes == plan.workspace_bytes
    right = plan(X)
    del plan
    assert np.array_equal(other(X), right)


def test_a_copied_plan_keeps_a_detected_rank_an_empty_batch_and_a_gradient() -> None:
    gaussian = np.exp(-np.linspace(-2, 2, 9) ** 2).astype(np.float32)
    for text, w, algorithm, operands in (
        ("40x40,9x9,p4", np.outer(gaussian, gaussian)[None, None], "separable", [(1, 1, 40, 40)]),
        ("0x3x9x9,4x3x3x3", np.ones((4, 3, 3, 3), np.float32), "direct_shift", [(0, 3, 9, 9)]),
        ("2x3x9x9,4x3x3x3,weight_gradient", None, "torch_nchw", [(2, 3, 9, 9), (2, 4, 7, 7)]),
    ):
        if algorithm == "torch_nchw":
            pytest.importorskip("torch")
        plan = algos.plan(text, w, algorithm, threads=1)
        arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in operands]
        other = pickle.loads(pickle.dumps(plan))
        assert other.algorithm == algorithm and np.array_equal(other(*arrays), plan(*arrays))


def test_a_plan_is_a_function_for_processes_that_spawn() -> None:
    plan = algos.plan(TEXT, W, "direct_shift", threads=1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(plan, [X, 2 * X]))
    assert np.array_equal(results[0], plan(X)) and np.array_equal(results[1], plan(2 * X))


class OnDevice(Algorithm):
    """Lives on a device that is a wrapper, and answers with its weights."""

    def workspace_bytes(self, spec: Any, threads: int = 1) -> int:
        return 0

    def prepare(self, spec: Any, weights: Any, threads: int = 1) -> Any:
        return lambda x, out=None: weights

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, spec: Any) -> str | None:
        return None

    def to_device(self, array: np.ndarray) -> Any:
        return Elsewhere(array)

    def to_host(self, array: Any) -> np.ndarray:
        return array.array


def test_a_plan_of_a_device_is_copied_by_way_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = OnDevice("on_device", "direct", "cuda")
    monkeypatch.setattr("algos.plans.registry.get", lambda name: device)
    plan = prepared(algos.ConvSpec.parse("2x4x20x21,6x2x3x3,p1"), Elsewhere(W), device, 1)
    assert type(plan.__reduce__()[1][1]) is np.ndarray
    assert np.array_equal(copy.deepcopy(plan)(X), W)


# ---- calls from within calls -------------------------------------------------------------------------------


class Meanwhile(Algorithm):
    """Calls back from the middle of a run."""

    act: Callable[[], Any] = staticmethod(lambda: None)

    def unsupported(self, spec: Any) -> None:
        return None

    def workspace_bytes(self, spec: Any, threads: int = 1) -> int:
        return 0

    def prepare(self, spec: Any, weights: Any, threads: int = 1) -> Any:
        def run(x: Any, out: Any = None) -> Any:
            self.act()
            return np.zeros(spec.output_shape, spec.out_dtype)

        return run


def test_a_call_from_within_a_call_of_the_same_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared(algos.ConvSpec.parse(TEXT), W, Meanwhile("meanwhile", "direct"), 1)
    other = algos.plan(TEXT, W, "direct_shift")
    said: list[str] = []

    def again() -> None:
        with pytest.raises(RuntimeError) as caught:
            plan(X)
        said.append(str(caught.value))
        assert np.allclose(algos.conv2d(X, W[..., ::-1, ::-1], padding=1, groups=2), other(X), atol=1e-5)

    monkeypatch.setattr(Meanwhile, "act", staticmethod(again))
    plan(X)
    assert len(said) == 1 and "in a call of this thread already" in said[0] and "\n" not in said[0]
    monkeypatch.setattr(Meanwhile, "act", staticmethod(lambda: 1 / 0))
    for _ in range(2):  # a call that failed does not leave the plan in use
        with pytest.raises(ZeroDivisionError):
            plan(X)


def test_calls_of_other_threads_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared(algos.ConvSpec.parse(TEXT), W, Meanwhile("meanwhile", "direct"), 1)
    inside, go, order = threading.Event(), threading.Event(), []

    def act() -> None:
        order.append(threading.current_thread().name)
        inside.set()
        assert go.wait(60)

    monkeypatch.setattr(Meanwhile, "act", staticmethod(act))
    threads = [threading.Thread(target=plan, args=(X,), name=name) for name in ("first", "second")]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    assert order == ["first"]
    go.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second"]


def test_hiring_from_within_hiring_does_with_the_helpers_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from algos.engine import relay

    crew, found = relay.Helpers(), []
    if relay.usable_cores() < 2:
        pytest.skip("helpers need a second core")
    # As a signal handler might
    monkeypatch.setattr(relay, "compile_for", lambda *ignored: found.append(crew.hire(1)))
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(crew.hire(1)), daemon=True)
    thread.start()
    thread.join(60)
    assert (found, done, len(crew._threads)) == ([0], [1], 1)
    crew.end()


HANDLER = """
import gc, signal, sys, time
import numpy as np
import algos
x, w = np.ones((2, 4, 20, 21), "f4"), np.ones((6, 4, 3, 3), "f4")
names = sys.argv[1:]
plans = [algos.plan("2x4x20x21,6x4x3x3,p1", w, name, threads=2) for name in names]
right = [plan(x) for plan in plans]
for name, y in zip(names, right):  # compiled before anything interrupts it
    assert np.array_equal(algos.conv2d(x, w, padding=1, algorithm=name, threads=2), y)
outcomes = {"refused": 0, "computed": 0}

def check(plan, y):
    try:
        assert np.array_equal(plan(x), y)
        outcomes["computed"] += 1
    except RuntimeError as error:
        assert "already" in str(error)
        outcomes["refused"] += 1
    assert np.array_equal(algos.conv2d(x, w, padding=1, algorithm=plan.algorithm, threads=2), y)

class Dying:
    def __init__(self):
        self.me = self
    def __del__(self):
        check(plans[0], right[0])

depth = 0

def handler(*ignored):
    global depth
    if depth == 5:  # a busy machine is interrupted faster than it computes
        return
    depth += 1
    try:
        for plan, y in zip(plans, right):
            check(plan, y)
    finally:
        depth -= 1

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
gc.set_threshold(50)
end = time.monotonic() + 3
while time.monotonic() < end and min(outcomes.values()) < 20:
    Dying()
    for plan, y in zip(plans, right):
        assert np.array_equal(plan(x), y)
        assert np.array_equal(algos.conv2d(x, w, padding=1, algorithm=plan.algorithm, threads=2), y)
signal.setitimer(signal.ITIMER_REAL, 0)
assert outcomes["refused"] and outcomes["computed"], outcomes
"""


def run(script: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env={**os.environ, **environment},
        cwd=Path(__file__).parents[1], timeout=HUNG_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals of Unix")
def test_signal_handlers_and_finalizers_may_convolve() -> None:
    run(HANDLER, "im2col_gemm", "direct_shift", "fft", "direct_channels", "numba_direct")


FORK = """
import os, sys, threading, time
import numpy as np
import algos
x, w = np.ones((2, 8, 64, 64), "f4"), np.ones((8, 8, 3, 3), "f4")
for name in sys.argv[1:]:
    plan = algos.plan("2x8x64x64,8x8x3x3,p1", w, name, threads=2)
    right = plan(x)
    over = threading.Event()

    def work():
        while not over.is_set():
            plan(x)

    thread = threading.Thread(target=work, daemon=True)  # a failure here ends at once
    thread.start()
    for _ in range(5):
        while not plan._busy:
            pass
        child = os.fork()
        if not child:
            try:
                failed = not all(np.array_equal(plan(x), right) for _ in range(3))
            except BaseException as error:
                failed = print(repr(error), file=sys.stderr) or True
            os._exit(failed)
        end = time.monotonic() + float(os.environ["CHILD_S"])
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(child, 9)
                sys.exit(f"{name}: the child hangs")
            time.sleep(0.001)
        if done[1]:
            sys.exit(f"{name}: the child's answer is wrong")
    over.set()
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_was_forked_during_another_threads_call_can_use_the_plan() -> None:
    run(FORK, "direct_shift", "direct_channels", "fft_fused", CHILD_S=str(HUNG_S / 2))


# ---- the caller's state ------------------------------------------------------------------------------------


HARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "denormal": lambda a: a * np.finfo(a.dtype).tiny, "huge": lambda a: a * (np.finfo(a.dtype).max / 4),
    "not finite": lambda a: np.where(a > 1, np.nan, np.where(a < -1, np.inf, a)), "zero": lambda a: a * 0,
}  # fmt: skip


HARD_SPECS = [
    "2x4x20x21,6x2x3x3,p1,reflect",
    "1x1x24x24,1x1x15x15,p7,float64",
    "2x3x300,4x3x9,p4,constant:0.1",
]


@pytest.mark.parametrize("text", HARD_SPECS)
def test_the_callers_floating_point_errors_stay_outside(text: str) -> None:
    spec = algos.ConvSpec.parse(text)
    found = [a.name for a in algos.algorithms(spec) if a.name != "direct_loops"]
    with np.errstate(all="ignore"):
        normal = lambda shape: rng.standard_normal(shape).astype(spec.in_dtype)  # noqa: E731
        data = [(make(normal(spec.input_shape)), make(normal(spec.weight_shape))) for make in HARD.values()]
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in found:
            for x, w in data:
                if name == "scipy_ndimage_correlate" and not (np.abs(w) > 1e-15).all():
                    continue  # it would leave such weights out, and refuses them
                algos.plan(spec, w, name, threads=2)(x)
        convolve = (algos.conv1d, algos.conv2d)[spec.ndim - 1]
        convolve(*data[0], padding=spec.padding, groups=spec.groups, padding_mode=spec.padding_mode)
        assert np.geterr()["over"] == "raise"


def test_finding_a_rank_survives_the_callers_floating_point_errors() -> None:
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 0, 0], kernel[0, 0, 2, 2] = 1, 1e-200
    with np.errstate(all="raise"):
        plan = algos.plan("9x9,3x3,float64", kernel)
        algos.conv2d(np.ones((1, 1, 9, 9)), kernel)
    assert numerical_rank(kernel, np.dtype(np.float64)) >= 1
    assert np.allclose(plan(np.ones((1, 1, 9, 9))), 1)


STATE = """
import decimal, gc, os, tempfile
import numpy as np
import algos
x = np.random.default_rng(0).random((1, 4, 20, 20), "f4")
w = np.random.default_rng(1).random((4, 4, 3, 3), "f4")
name = "1x4x20x20,4x4x3x3,p1,constant:0.1"
before = str(algos.ConvSpec.parse(name)), algos.plan(name, w, "fft")(x)
os.chdir(tempfile.mkdtemp())
np.set_printoptions(legacy="1.13", precision=1, formatter={"all": lambda value: "?"})
decimal.getcontext().prec, decimal.getcontext().traps[decimal.Inexact] = 2, True
gc.disable()
assert (str(algos.ConvSpec.parse(name)), name) == (before[0], before[0])
assert np.array_equal(algos.plan(name, w, "fft")(x), before[1])
for algorithm in ("im2col_gemm", "fft", "direct_shift", "direct_channels"):
    algos.plan(name, w, algorithm, threads=2)(x)
    gc.collect()
    for _ in range(20):
        algos.plan(name, w, algorithm, threads=2)(x)
        algos.conv2d(x, w, padding=1, algorithm=algorithm, threads=2)
    assert not gc.collect(), f"{algorithm} leaves cycles, which only the collector frees"
"""


def test_folders_formats_contexts_and_the_collector_make_no_difference() -> None:
    run(STATE, PYTHONPATH=os.pathsep.join((".", os.environ.get("PYTHONPATH", ""))))


FLUSHED = """
import numpy as np
import algos
from bench.oracle import border_value
torch = __import__("torch")
x = np.random.default_rng(0).random((1, 4, 20, 20), "f4")
w = np.random.default_rng(1).random((4, 4, 3, 3), "f4")
names = ("im2col_gemm", "fft", "direct_channels", "winograd_f4")
before = [algos.plan("1x4x20x20,4x4x3x3,p1", w, name)(x) for name in names]
assert torch.set_flush_denormal(True)
for name, y in zip(names, before):
    assert np.array_equal(algos.plan("1x4x20x20,4x4x3x3,p1", w, name)(x), y)
spec = algos.ConvSpec.parse("9x9,3x3,p1,constant:1e-40")
assert str(spec) == "1x1x9x9,1x1x3x3,p1,constant:1e-40" and spec.border.hex() == "0x1.16c2000000000p-133"
"""


def test_normal_numbers_do_not_depend_on_what_the_processor_does_with_denormal_ones() -> None:
    pytest.importorskip("torch")
    run(FLUSHED)
