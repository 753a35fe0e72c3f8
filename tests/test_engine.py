"""What fast algorithms share: threads, compiled code, views of windows, blocks; and
that preparing does all one-off work.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import algos
from algos import ConvSpec, get
from algos.cpu.fft import cyclic_size
from algos.engine import jit
from algos.engine.blocks import Blocks, axes, locate
from algos.engine.fourier import Transform, fast_lengths
from algos.engine.memory import aligned, rooms
from algos.engine.overlap_save import Stages, rows_in
from algos.engine.simd import lanes
from algos.engine.threads import blas_limit, limit_environment, share, split, usable_cores
from algos.engine.windows import interior, padded_shape, reach, read_slice, stuffed, windows
from bench.check import check
from bench.data import operands
from tests.conftest import HUNG_S, Mount

SPECS = [
    "1x1x20x21,1x1x3x3,p1",
    "2x4x9x10,6x2x3x2,s2x1,p1:0x2:1,d1x2",
    "1x1x17x19,1x1x2x2,s5x4,p3",
    "1x1x12x12,1x1x5x5,p9:0",
    "1x1x6x5000,1x1x3x9,p1x4",
    "3x6x40x7,24x3x5x5,p2,s1x3,d3x1",
    "1x2x64,16x2x9,p0:8,s2",
]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> ConvSpec:
    return ConvSpec.parse(request.param)


@pytest.mark.parametrize(("total", "parts"), [(0, 3), (1, 3), (7, 3), (3, 7), (100, 1)])
def test_split_covers_everything_once(total: int, parts: int) -> None:
    ranges = split(total, parts)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(total))
    assert len(ranges) <= parts and all(first < last for first, last in ranges if total)


def test_share_uses_threads_and_raises_what_they_raise() -> None:
    seen: list[tuple[int, int, int]] = []
    share(lambda first, last: seen.append((first, last, threading.get_ident())), 10, 3)
    assert sorted(part[:2] for part in seen) == split(10, 3)
    assert threading.get_ident() in {part[2] for part in seen}

    caller, begun = threading.get_ident(), threading.Event()

    def fail(first: int, last: int) -> None:
        if threading.get_ident() != caller:
            begun.set()
            raise RuntimeError("in a helper")
        assert begun.wait(HUNG_S)  # else the caller might do the helper's part as well

    with pytest.raises(RuntimeError, match="in a helper"):
        share(fail, 2, 2)


def test_memory_of_a_large_array_is_kept_for_the_next_while_nobody_has_it() -> None:
    rooms.clear()
    first = aligned(1 << 18, np.float32, zeros=True)
    view, place = first[5:].view(np.int32), first.ctypes.data
    del first
    other = aligned(1 << 18, np.float32)
    assert other.ctypes.data != place and not np.shares_memory(other, view)
    view[...] = 1
    del view
    again = aligned(1 << 18, np.float32, zeros=True)
    assert again.ctypes.data == place and not again.any()


AFTER_A_FORK = """
import os, sys, numpy as np, algos
x, w = np.ones((1, 64, 56, 56), "f4"), np.ones((64, 64, 3, 3), "f4")
plans = [algos.plan("1x64x56x56,64x64x3x3,p1", w, algorithm=name, threads=2) for name in sys.argv[1:]]
before = [plan(x) for plan in plans]
child = os.fork()
if child == 0:
    os._exit(0 if all(np.array_equal(plan(x), y) for plan, y in zip(plans, before)) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_plans_work_in_a_forked_child(environment: dict[str, str]) -> None:
    names = ["im2col_gemm", "numba_direct", "fft", "fft_tiles", "numba_im2col", "direct_channels",
             "winograd_f2"]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", AFTER_A_FORK, *names]
    done = subprocess.run(command, env=environment, timeout=HUNG_S, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.parametrize("threads", [2, 3])
def test_ctrl_c_leaves_nobody_writing(threads: int) -> None:
    """However a call is interrupted, nothing writes to its arrays afterwards, and the next one is right."""
    rng = np.random.default_rng(0)
    state = np.zeros(1 << 17)

    def job(first: int, last: int) -> None:
        # Releases the GIL, and only once: on a busy machine whoever holds it may have to wait for a core.
        # The caller needs half as long as the others, who have begun by then: some interrupts meet it
        # waiting.
        part = state[first:last]
        if first:
            np.cos(part, out=part)
        else:
            np.add(np.tan(part), 1, out=part)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(60):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 3e-3))
                while True:
                    share(job, state.size, threads)
            signal.setitimer(signal.ITIMER_REAL, 0)
            state[:] = 0
            share(job, state.size, threads)
            assert (state == 1).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_limits() -> None:
    assert usable_cores() >= 1
    limits = limit_environment(3)
    assert {value for name, value in limits.items() if "THREADS" in name} == {"3"}
    with blas_limit(1):
        np.ones((4, 4)) @ np.ones((4, 4))


def test_taps_read_inside_the_image(spec: ConvSpec) -> None:
    for axis in range(spec.ndim):
        for tap in range(spec.kernel[axis]):
            shift = tap * spec.dilation[axis] - spec.padding[axis][0]
            reads = [o * spec.stride[axis] + shift for o in range(spec.output_size[axis])]
            inside = [o for o, at in enumerate(reads) if 0 <= at < spec.size[axis]]
            first, last = reach(spec, axis, tap)
            assert list(range(first, last)) == inside
            if inside:
                read = read_slice(spec, axis, tap, first, last)
                assert list(range(*read.indices(spec.size[axis]))) == [reads[o] for o in inside]


def test_windows_are_what_each_tap_reads(spec: ConvSpec) -> None:
    padded = np.zeros(padded_shape(spec))
    padded[interior(spec)] = np.random.default_rng(0).standard_normal(spec.input_shape[1:])
    last = min(3, spec.output_size[0])
    view = windows(padded, spec, 1, last)
    assert view.shape == (spec.in_channels, *spec.kernel, last - 1, *spec.output_size[1:])
    assert not view.flags.writeable
    for tap in itertools.product(*map(range, spec.kernel)):
        at = [
            slice(t * d, t * d + (count - 1) * s + 1, s)
            for t, d, s, count in zip(tap, spec.dilation, spec.stride, spec.output_size, strict=True)
        ]
        np.testing.assert_array_equal(view[(slice(None), *tap)], padded[(slice(None), *at)][:, 1:last])


def test_stuffed_weights_keep_their_distance() -> None:
    assert stuffed(np.arange(1, 4).reshape(1, 1, 3), (2,)).ravel().tolist() == [1, 0, 2, 0, 3]


@pytest.mark.parametrize("block_bytes", [1, 4096, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_blocks_cover_every_output_once(spec: ConvSpec, threads: int, block_bytes: int) -> None:
    blocks = Blocks.of(spec, threads, block_bytes, 0.5)
    geometry, (row, col) = blocks.geometry, axes(spec)
    count = np.zeros((spec.batch, spec.out_channels, row.outputs, col.outputs), int)
    for item in range(blocks.items):
        n, group, o0, o1, row0, rows, col0, cols = locate.py_func(item, geometry, count)
        assert (
            o0 // (spec.out_channels // spec.groups)
            == (o1 - 1) // (spec.out_channels // spec.groups)
            == group
        )
        assert 0 < rows <= blocks.rows and 0 < cols <= blocks.cols
        count[n, o0:o1, row0 : row0 + rows, col0 : col0 + cols] += 1
    assert (count == 1).all()
    reads = blocks.offsets.max() + (spec.in_channels // spec.groups - 1) * blocks.channel + blocks.span
    assert reads <= blocks.scratch


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_tall_kernels_do_not_fall_apart_into_single_rows(threads: int) -> None:
    """Rows filtered for all blocks together: less than twice what sharing
    allows, whatever the taps and the cache.
    """
    for size, taps in itertools.product((64, 512, 2048), (3, 65, 129, 257, 513, 1025)):
        spec = ConvSpec.parse(f"{size}x{size},{taps}x{taps},p{taps // 2},rank1")
        blocks = Blocks.of(spec, threads, 1 << 18, (taps + 3) / taps)
        bands = -(-size // blocks.rows)
        assert bands * (blocks.rows + taps - 1) <= 2.5 * max(
            size + taps - 1, size + (threads - 1) * (taps - 1)
        ), spec


def test_cyclic_lengths_hold_the_longer_border(spec: ConvSpec) -> None:
    for length, size, (before, after), padded in zip(
        cyclic_size(spec), spec.size, spec.padding, spec.padded_size, strict=True
    ):
        assert length >= size + before
        assert length <= 2 * (padded + after) + 8


def test_one_call_of_an_fft_leaves_nothing_to_the_next_in_three_dimensions() -> None:
    spec, rng = ConvSpec.parse("1x2x5x7x6,3x2x3x4x3,p1x2x1"), np.random.default_rng(0)
    one, other = rng.standard_normal((2, *spec.input_shape), np.float32)
    w = rng.standard_normal(spec.weight_shape, np.float32)
    transformed = algos.plan(spec, w, "fft")
    transformed(one)
    np.testing.assert_allclose(transformed(other), algos.plan(spec, w, "direct_loops")(other), 0, 1e-4)


@pytest.mark.parametrize("text", ["1x2x9x190,4x1x5x4,p2:1,s3", "1x2x14x270,2x1x2x5,p0x3,s2x4,d1x3,float64"])
def test_every_third_and_fourth_column_of_depthwise_layers(text: str) -> None:
    """Whole vectors inside the row, and both of its ends."""
    verdict = check(text, get("depthwise"))
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", ["numba_direct", "separable"])
@pytest.mark.parametrize("text", ["1x2x9x8,2x2x3x3,p1,rank1", "1x2x9x8,2x2x3x3,p1,rank1,float64"])
def test_runs_compile_nothing(name: str, text: str) -> None:
    spec, algorithm = ConvSpec.parse(text), get(name)
    data = operands(spec)
    plan = algorithm.prepare(spec, data.w, 2)
    module = sys.modules[type(algorithm).__module__]
    compiled = [
        f for f in vars(module).values() if hasattr(f, "signatures") and f.__module__ == module.__name__
    ]
    assert compiled
    before = [len(f.signatures) for f in compiled]
    plan(data.x)
    plan(data.x, out=np.empty(spec.output_shape, spec.out_dtype))
    assert [len(f.signatures) for f in compiled] == before
    assert any(before)  # those that compiled code alone calls have none of their own


CACHED = """
import sys
import numpy as np
from numba.core.registry import CPUDispatcher
from algos import ConvSpec, get
from algos.engine.jit import cache_folder
from bench import peaks
spec = ConvSpec.parse("1x1x9x8,1x1x3x3,p1")
algorithm = get("numba_im2col")  # which compiles fastest
assert algorithm.unavailable() is None
y = algorithm.prepare(spec, np.ones(spec.weight_shape, np.float32))(np.ones(spec.input_shape, np.float32))
assert y[0, 0, 4, 4] == 9 and peaks.multiply_add_float64(3) > 0
ours = [m for name, m in sys.modules.items() if name.startswith(("algos", "bench"))]
functions = [f for m in ours for f in vars(m).values() if isinstance(f, CPUDispatcher)]
print(cache_folder(), sum(sum(f.stats.cache_misses.values()) for f in functions))
"""


def run(environment: dict[str, str], tmp_path: Path, **extra: str) -> tuple[str, bool]:
    """The folder of compiled code, and whether everything was found in it."""
    done = subprocess.run(
        [sys.executable, "-c", CACHED], env={**environment, "CONVBENCH_CACHE": str(tmp_path), **extra},
        capture_output=True, text=True, timeout=HUNG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, misses = done.stdout.split()
    return folder, misses == "0" and folder != "None"


def test_code_of_a_damaged_cache_and_of_another_signature_is_not_taken(
    environment: dict[str, str], tmp_path: Path
) -> None:
    name, found = run(environment, tmp_path)
    folder = Path(name)
    assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o077 == 0 and not found
    assert run(environment, tmp_path) == (name, True)
    other = b"cbuiltins\nint\n."  # a pickle of something else
    for pattern, damages in (("*.nbi", (b"not a cache", other)), ("*.nbc", (b"", other))):
        damaged = dict(zip(folder.rglob(pattern), itertools.cycle(damages), strict=False))
        assert len(damaged) >= len(damages)
        for path, damage in damaged.items():
            path.write_bytes(damage)
        run(environment, tmp_path)
        assert run(environment, tmp_path) == (name, True)
        assert not [path for path, damage in damaged.items() if path.exists() and path.read_bytes() == damage]
    code_of_another_signature_is_not_taken(environment, tmp_path, name)


def code_of_another_signature_is_not_taken(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    """As two processes leave it that compile one function for two types at
    once: the index names one file for both.
    """
    double = CACHED.replace("np.float32", "np.float64").replace("p1", "p1,float64")
    environment = {**environment, "CONVBENCH_CACHE": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", double], env=environment, capture_output=True, text=True, timeout=HUNG_S
        )
        assert done.returncode == 0, done.stderr
        for first in Path(name).rglob("*.1.nbc"):
            if (second := first.with_name(first.name.replace(".1.nbc", ".2.nbc"))).exists():
                second.write_bytes(first.read_bytes())


def test_compiled_code_on_a_full_disk(environment: dict[str, str], tmp_path: Path, mount: Mount) -> None:
    folder = mount(tmp_path / "small", 256 << 10)
    (folder / "filler").write_bytes(bytes((256 << 10) - (48 << 10)))
    for _ in range(2):  # whatever the first one left
        run(environment, folder)


def test_nothing_compiled_is_offered_when_compiling_is_turned_off(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
import json, algos
from bench import peaks
reasons = {a.name: a.unavailable() for a in algos.algorithms() if a.runtime == "numba"}
print(json.dumps([reasons, algos.pick("64x64,5x5,rank1").algorithm, peaks._measured_apart()]))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**environment, "NUMBA_DISABLE_JIT": "1"},
                          capture_output=True, text=True, timeout=HUNG_S)  # fmt: skip
    assert done.returncode == 0, done.stderr
    reasons, picked, peaks = json.loads(done.stdout)
    assert reasons and all(reason.startswith("NUMBA_DISABLE_JIT is set") for reason in reasons.values())
    assert picked not in reasons and peaks == {}


def test_compiled_code_without_a_place_to_cache(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "numba").write_text("a file where the folder would be")
    assert run(environment, tmp_path) == ("None", False)


def test_checked_code_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for value in (None, 1):
        monkeypatch.setattr(jit.config, "BOUNDSCHECK", value)
        folder = jit.cache_folder.__wrapped__()
        names.append(folder.name.rpartition("-")[2])
    assert names == ["plain", "boundscheck"]


def test_code_for_other_instructions_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = set()
    for instructions in ("avx2", "avx512"):
        monkeypatch.setattr(jit, "kind", lambda instructions=instructions: instructions)
        folders.add(jit.cache_folder.__wrapped__())
    assert len(folders) == 2


@jit.linked()
def doubled(values):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        values[i] *= 2


@jit.compiled()
def quadrupled(values):  # type: ignore[no-untyped-def]
    doubled(values)
    doubled(values)


def test_linked_code_is_called_by_compiled_code_only() -> None:
    values = np.ones(3)
    quadrupled(values)
    assert values.tolist() == [4, 4, 4]
    with pytest.raises(TypeError):
        doubled(values)


@jit.compiled()
def transformed(data, length, lanes, stages, factors):  # type: ignore[no-untyped-def]
    rows_in(data, 0, lanes, length, lanes, Stages(stages, factors))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [4, 8, 16, 40, 48, 72, 128, 720])
def test_transforms_are_fourier_transforms_in_some_order(length: int, dtype: str) -> None:
    """The order is read off the transform of an impulse at 1; every other
    signal must then come out in that order.
    """
    side, transform = lanes(np.dtype(dtype)), Transform(length, dtype)
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((length, side)) + 1j * rng.standard_normal((length, side))
    signals[:, 0] = np.eye(length)[1]
    data = aligned(2 * length * side, dtype)
    points = data.reshape(length, 2, side)
    points[:, 0], points[:, 1] = signals.real, signals.imag
    transformed(data, length, side, transform.stages, transform.factors)
    found = points[:, 0] + 1j * points[:, 1]
    order = np.round(-np.angle(found[:, 0]) * length / (2 * np.pi)).astype(int) % length
    assert sorted(order) == list(range(length))
    expected = np.fft.fft(signals, axis=0)[order]
    assert np.abs(found - expected).max() <= 20 * np.finfo(dtype).eps * np.abs(expected).max()


@pytest.mark.parametrize("longest", [1, 7, 100, 5000])
def test_fast_lengths_reach_the_longest(longest: int) -> None:
    lengths = fast_lengths(8, longest)
    assert lengths[-1] >= longest and all(
        n % 8 == 0 and np.prod(Transform(n, "float32").radices) == n for n in lengths
    )
