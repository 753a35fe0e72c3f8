"""What a container, a system without /proc or a user without a home leaves to us:
limits counted, defaults elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from algos import auto, host
from algos.engine import threads
from algos.engine.threads import checked_threads, default_threads, once
from bench import arena, files
from bench.cli.arguments import threads_of
from tests.conftest import HUNG_S

CORES, MEMORY = 64, 1 << 40
MOUNTS = {
    "v2": "31 23 0:28 {shown} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw",
    "cpu": "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup "
    "rw,cpu,cpuacct",
    "memory": "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
    "hybrid": "41 31 0:38 {shown} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
}


class System:
    """/proc and /sys as tests lay them out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{text}\n")

    def groups(self, *own: str, shown: str = "/", mounts: tuple[str, ...]) -> None:
        """The lines of /proc/self/cgroup, and what is mounted."""
        self.write("proc/self/cgroup", "\n".join(own))
        self.write("proc/self/mountinfo", "\n".join(MOUNTS[name].format(shown=shown) for name in mounts))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A host of 64 cores and a TiB, without any limit so far."""
    host.fingerprint()  # which the process keeps: that of the real one
    monkeypatch.setattr(host, "ROOT", tmp_path)
    monkeypatch.setattr(host, "FRESH_S", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)), raising=False)
    monkeypatch.setattr(host, "_physical", lambda kind: MEMORY)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return System(tmp_path)


V1, V2, HYBRID = ("cpu", "memory"), ("v2",), ("cpu", "memory", "hybrid")
GROUP = "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("own", "shown", "mounts", "files", "cores"),
    [
        (["0::/"], "/", V2, {"cpu.max": "100000 100000"}, 1),
        (["0::/"], "/", V2, {"cpu.max": "250000 100000"}, 2),
        (["0::/"], "/", V2, {"cpu.max": "10000 100000"}, 1),
        (["0::/"], "/", V2, {"cpu.max": "max 100000"}, CORES),
        (["0::/"], "/", V2, {"cpu.max": "0 0"}, CORES),
        (["0::/"], "/", V2, {"cpu.max": ""}, CORES),
        (["0::/"], "/", V2, {"cpu.max": "many"}, CORES),
        (["0::/a/b"], "/", V2, {"cpu.max": "max 100000", "a/cpu.max": "300000 100000",
                                "a/b/cpu.max": "400000 100000"}, 3),
        (["0::/a/b"], "/", V2, {"a/b/cpu.max": "200000 100000"}, 2),
        (["0::/a/b"], "/a/b", V2, {"cpu.max": "200000 100000"}, 2),  # a container that sees its host's path
        (["0::/../other"], "/", V2, {"cpu.max": "200000 100000"}, 2),  # of a namespace that it has left
        (["0::/gone"], "/", V2, {"cpu.max": "200000 100000"}, 2),
        (["3:cpu,cpuacct:/"], "/", V1, {"cpu,cpuacct/cpu.cfs_quota_us": 200000,
                                        "cpu,cpuacct/cpu.cfs_period_us": 100000}, 2),
        (["3:cpu,cpuacct:/"], "/", V1, {"cpu,cpuacct/cpu.cfs_quota_us": -1,
                                        "cpu,cpuacct/cpu.cfs_period_us": 100000}, CORES),
        (["3:cpu,cpuacct:/a/b", "0::/a"], "/", HYBRID, {"cpu,cpuacct/a/cpu.cfs_quota_us": 50000,
                                                         "cpu,cpuacct/a/cpu.cfs_period_us": 50000}, 1),
        (["3:cpu,cpuacct:/docker/1", "0::/docker/1"], "/docker/1", HYBRID,
         {"cpu,cpuacct/cpu.cfs_quota_us": 200000, "cpu,cpuacct/cpu.cfs_period_us": 100000}, 2),
        (["3:cpu,cpuacct:/", "0::/a"], "/", HYBRID, {"unified/a/cpu.max": "100000 100000"}, 1),
    ],
)  # fmt: skip
def test_the_quota_of_any_control_group_bounds_the_cores(
    own: list[str], shown: str, mounts: tuple[str, ...], files: dict[str, object], cores: int, system: System
) -> None:
    system.groups(*own, shown=shown, mounts=mounts)
    for name, text in files.items():
        system.write(GROUP + name, text)
    assert host.usable_cores() == checked_threads(None) == cores and threads_of(None) == [cores]


@pytest.mark.parametrize(
    ("own", "mounts", "files", "free"),
    [
        (["0::/"], V2, {"memory.max": 1000, "memory.current": 300}, 700),
        (["0::/"], V2, {"memory.max": 1000, "memory.current": 900,
                        "memory.stat": "anon 100\ninactive_file 600"}, 700),
        (["0::/"], V2, {"memory.max": "max", "memory.high": 500, "memory.current": 200}, 300),
        (["0::/"], V2, {"memory.max": 100, "memory.current": 300}, 0),
        (["0::/"], V2, {"memory.max": "max", "memory.current": 300}, MEMORY),
        (["0::/a/b"], V2, {"a/memory.max": 1000, "a/memory.current": 800,
                           "a/b/memory.max": 500, "a/b/memory.current": 100}, 200),
        (["4:memory:/a"], V1, {"memory/a/memory.limit_in_bytes": 1000, "memory/a/memory.usage_in_bytes": 700,
                               "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 200"}, 500),
        (["4:memory:/a"], V1, {"memory/memory.limit_in_bytes": 1000, "memory/memory.usage_in_bytes": 700,
                               "memory/a/memory.limit_in_bytes": 9223372036854771712}, 300),
        (["4:memory:/", "0::/"], HYBRID, {"memory/memory.limit_in_bytes": 900,
                                          "memory/memory.usage_in_bytes": 0}, 900),
    ],
)  # fmt: skip
def test_the_memory_of_any_control_group_bounds_what_is_free(
    own: list[str], mounts: tuple[str, ...], files: dict[str, object], free: int, system: System
) -> None:
    system.groups(*own, mounts=mounts)
    for name, text in files.items():
        system.write(GROUP + name, text)
    assert host.available_memory() == free
    assert host.total_memory() <= MEMORY


def test_without_proc_a_container_s_own_group_still_counts(system: System) -> None:
    assert host.usable_cores() == CORES and host.available_memory() == MEMORY
    system.write(GROUP + "cpu/cpu.cfs_quota_us", 200000)
    system.write(GROUP + "cpu/cpu.cfs_period_us", 100000)
    system.write(GROUP + "memory.max", 1000)
    system.write(GROUP + "memory.current", 100)
    assert host.usable_cores() == 2 and host.available_memory() == 900


def test_a_limit_that_changes_is_seen_while_the_process_runs(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.groups("0::/", mounts=V2)
    system.write(GROUP + "cpu.max", "max 100000")
    assert host.usable_cores() == CORES
    system.write(GROUP + "cpu.max", "200000 100000")
    assert host.usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert host.usable_cores() == 1


def test_what_does_not_fit_the_container_is_not_picked(system: System) -> None:
    """The big workspace is left out with a reason, though the host has room for it."""
    system.groups("0::/", mounts=V2)
    system.write(GROUP + "memory.max", 667 << 20)
    system.write(GROUP + "memory.current", 150 << 20)
    text = "1x64x256x256,64x64x31x31,p15"
    choice = auto.pick(text, threads=1)
    limit = int((517 << 20) * auto.MEMORY_SHARE)
    (chosen,) = (c for c in choice.candidates if c.algorithm == choice.algorithm)
    assert chosen.workspace_bytes is not None and chosen.workspace_bytes <= limit
    assert any("bytes of workspace" in c.excluded and "are free" in c.excluded for c in choice.candidates)


@pytest.mark.parametrize("name", threads.VARIABLES)
@pytest.mark.parametrize(("text", "count"), [("3", 3), (" 3 ", 3), ("3,2,1", 3), ("999", CORES), ("0", CORES),
                                             ("-1", CORES),
                                            ("", CORES), ("two", CORES), ("²", CORES)])  # fmt: skip
def test_the_usual_variables_are_defaults(
    name: str, text: str, count: int, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert default_threads() == checked_threads(None) == count and threads_of(None) == [count]
    assert checked_threads(5) == 5 and threads_of("5") == [5]
    assert host.usable_cores() == CORES  # which is a fact and names the machine


# ---- real control groups -----------------------------------------------------------------------------------

ASK = """
import sys, time
sys.stdin.readline()
from algos import host
print(host.usable_cores(), host.available_memory(), host.total_memory(), flush=True)
sys.stdin.readline()
time.sleep(host.FRESH_S)
print(host.usable_cores(), flush=True)
"""


@pytest.fixture
def grouped() -> Iterator[dict[str, Path]]:
    """Control groups of v1 made for the test, by controller."""
    made = {}
    for controller in ("cpu", "memory"):
        folder = Path("/sys/fs/cgroup", controller, f"convbench-test-{os.getpid()}")
        try:
            folder.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        made[controller] = folder
        if not (folder / ("cpu.cfs_quota_us" if controller == "cpu" else "memory.limit_in_bytes")).exists():
            pytest.skip("no control groups of v1 here")
    yield made
    for folder in made.values():
        for _ in range(100):  # an ended process leaves a moment later
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def test_a_real_control_group_bounds_a_process(grouped: dict[str, Path]) -> None:
    (grouped["cpu"] / "cpu.cfs_quota_us").write_text("100000")
    (grouped["memory"] / "memory.limit_in_bytes").write_text(str(600 << 20))
    command = [sys.executable, "-c", ASK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        for folder in grouped.values():
            (folder / "cgroup.procs").write_text(str(child.pid))
        child.stdin.write("\n")
        child.stdin.flush()
        cores, free, total = map(int, child.stdout.readline().split())
        assert cores == 1 and 0 < free <= total == 600 << 20
        (grouped["cpu"] / "cpu.cfs_quota_us").write_text("-1")
        child.stdin.write("\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) == min(len(os.sched_getaffinity(0)), host._quota())
    assert child.returncode == 0


# ---- facts out of bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["0K", "-1", "", "K", "-32K", "99999999M", "many", "1"])
def test_a_cache_of_a_size_that_cannot_be_has_the_default(size: str, system: System) -> None:
    for index, (level, kind) in enumerate(
        [("1", "Data"), ("1", "Instruction"), ("2", "Unified"), ("3", "Unified")]
    ):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            system.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", text)
    assert host.caches.__wrapped__() == {name: default for name, (default, _, _) in host.CACHES.items()}


def test_caches_are_read_where_they_are_told(system: System) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("2", "Unified", "2M"), ("3", "Unified", "1G")]
    ):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            system.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", text)
    assert host.caches.__wrapped__() == {"L1d": 48 << 10, "L2": 2 << 20, "L3": 1 << 30}


def test_an_empty_driver_file_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text("")
    monkeypatch.setattr(host, "DRIVER", tmp_path / "version")
    assert host.gpu_driver.__wrapped__() == ""


# ---- folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["~/.cache/convbench", RuntimeError("no home"), KeyError("uid not found: 2000")]
)
def test_without_a_home_there_is_no_folder_and_none_is_made(
    answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions of platformdirs differ: some raise, some answer a path that begins with a literal ~."""

    def usual(*ignored: object, **options: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    for name in ("HOME", "CONVBENCH_DATA", "CONVBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("user_data_dir", "user_cache_dir"):
        monkeypatch.setattr(platformdirs, name, usual)
    for base in (host.data_base, host.cache_base):
        with pytest.raises(OSError, match="no home"):
            base()
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path))
    assert host.data_base() == tmp_path


HOMELESS = """
import os, sys
import numpy as np
import algos
y = algos.conv2d(np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32))
choice = algos.pick("1x1x8x8,1x1x3x3")
from algos import wisdom
wisdom.remember([wisdom.Known("m", "b", "s", "a", "{}", 1, "ok")])
print(float(y[0, 0, 0, 0]), choice.algorithm != "", os.listdir("."))
"""


def homeless(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run by a user whom nobody knows, in an empty environment."""
    folder.chmod(0o777)
    if not shutil.which("unshare"):
        pytest.skip("user namespaces need Linux")
    command = ["unshare", "-U", "--map-user=2000", "--map-group=2000", "env", "-i", "PATH=/usr/bin:/bin",
               f"PYTHONPATH={Path(host.__file__).parents[1]}", "NUMBA_DISABLE_JIT=1",
               sys.executable, "-c", code]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HUNG_S, check=False)
    if "unshare" in done.stderr:
        pytest.skip(f"no user namespace here: {done.stderr.strip()}")
    return done


def test_matplotlib_finds_a_folder_without_a_home(tmp_path: Path) -> None:
    done = homeless(
        "import reports, matplotlib as m, os; print(os.path.isdir(m.get_cachedir()), m.get_cachedir())",
        tmp_path,
    )
    assert done.stderr == "" and done.stdout.startswith("True")
    assert not Path(done.stdout.split()[1]).exists()  # gone when the process ends


def test_a_user_without_a_home_computes_and_is_told_once_that_nothing_is_kept(tmp_path: Path) -> None:
    done = homeless(HOMELESS, tmp_path)
    assert done.stdout.split("\n")[0] == "9.0 True []", done.stderr
    assert len(done.stderr.splitlines()) == 1 and "CONVBENCH_CACHE" in done.stderr


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files without a folder need Linux")
def test_the_judge_shares_memory_where_no_folder_may_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(arena, "MEMORY_FOLDER", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with files.scratch() as said:  # of workers
        assert said.write(b"enough") == 6
    with arena.shared_file(1 << 16) as (file, path):
        ours = arena.Arena(1 << 16, file)
        other = os.open(path, os.O_RDWR)
    theirs = arena.Arena(1 << 16, other)
    os.close(other)
    slot = ours.take((3,), np.float32)
    ours.view(slot)[...] = 7
    assert (theirs.view(slot) == 7).all()


# ---- once --------------------------------------------------------------------------------------------------


def test_threads_that_ask_at_the_same_time_have_it_done_once() -> None:
    done: list[int] = []

    @once
    def slow(key: int) -> object:
        done.append(key)
        time.sleep(0.05)
        return object()

    found: list[object] = []
    crowd = [threading.Thread(target=lambda: found.append(slow(1))) for _ in range(16)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert done == [1] and len(set(map(id, found))) == 1
    slow.cache_clear()
    assert slow(1) not in found


def test_first_calls_of_many_threads_start_one_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_crew", threads._Crew())
    before = threading.active_count()
    gate = threading.Barrier(16)

    def first() -> None:
        gate.wait(60)
        threads.warm_up(2)

    crowd = [threading.Thread(target=first) for _ in range(16)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert threading.active_count() == before + 1
    threads.share(lambda first, last: None, 3, 3)
    assert threading.active_count() == before + 2
