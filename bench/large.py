"""What a store of 100,000 records costs every command: ``python -m bench.large`` makes one and prints CPU
seconds and memory.

The records are synthetic, and of this machine and build, so that nothing is spared: sweeps of pictures and of
layers, every algorithm that supports a spec, three launches of some 40 samples in 8 turns. The user's wisdom
stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from algos import wisdom
from algos.build import build_of
from algos.contract import Algorithm
from algos.estimate import tunables_text
from algos.host import fingerprint
from algos.lower.search import chain, unsupported
from algos.registry import registry
from algos.spec import ConvSpec
from bench import text
from bench.lessons import known
from bench.record import Launch, Record
from bench.store import Store
from bench.work import sweep

RECORDS, LAUNCHES, TURNS, SAMPLES = 100_000, 3, 8, 5
SIZES = tuple(range(12, 268, 4))
KERNELS = (1, 3, 5, 7, 9, 11, 15, 21)
TEMPLATES = tuple(
    f"{n}x{c}x64x64,{o}x{i}x3x3{stride},p1{dtype}"
    for n, (c, o, i), stride, dtype in product(
        (1, 8), ((1, 1, 1), (3, 64, 3), (64, 64, 64), (32, 32, 1), (128, 256, 128)), ("", ",s2"),
        ("", ",float64")
    )
)
LIMITS = {"report": 20.0, "compare": 8.0, "merge": 15.0, "run": 3.0, "pick": 1.2, "first plan": 0.3,
          "new shape": 0.5e-3}
MOST_MEMORY, LARGEST_PAGE = 700 << 20, 2_000_000


def specs() -> Iterator[ConvSpec]:
    """Sweep after sweep; a size that its kernel does not fit is left out."""
    for template, size in product(TEMPLATES, SIZES):
        yield from sweep([(size,)], [(kernel,) for kernel in KERNELS if kernel <= size], template)


def records(count: int, seed: int = 0, threads: int = 2) -> Iterator[Record]:
    """``count`` measured records of this machine: the cost model's time, bent
    by algorithm and shape, with noise.
    """
    random = np.random.default_rng(seed)
    identity = fingerprint()["id"]
    algorithms = [
        a for a in registry().values() if a.device == "cpu" and a.family != "auto" and not a.unavailable()
    ]
    yield from islice(
        (
            _record(random, spec, algorithm, identity, threads)
            for spec in specs()
            for algorithm in algorithms
            if not unsupported(algorithm, spec)
        ),
        count,
    )


def _record(random: np.random.Generator, spec: ConvSpec, algorithm: Algorithm, identity: str,
            threads: int) -> Record:
    way = chain(algorithm, spec, threads)
    time_s = way.seconds(threads) * math.exp(random.normal(0.0, 0.3)) + 1e-6
    launches = []
    for index in range(LAUNCHES):
        factors = np.repeat(random.normal(1.0, 0.03, TURNS), SAMPLES)
        factors *= random.normal(1.0, 0.01, TURNS * SAMPLES)
        samples = tuple((time_s * random.normal(1.0, 0.02) * np.abs(factors)).tolist())
        started = f"2026-11-{1 + index:02}T10:00:00+00:00"
        launches.append(Launch(index, started, samples, 3, 1e-2, 1e-4, 1.5 * time_s, **_turns(spec, index)))
    return Record(
        str(spec), algorithm.name, threads, identity, build_of(algorithm), "ok",
        tunables=tunables_text(algorithm), family=algorithm.family, device=algorithm.device,
        runtime=algorithm.runtime, layout=algorithm.layout, accuracy=algorithm.accuracy, max_error=1e-7,
        error_ratio=0.1, launches=tuple(launches), workspace_bytes=way.workspace_bytes(threads),
        via=way.words,
    )  # fmt: skip


def _turns(spec: ConvSpec, index: int) -> dict[str, Any]:
    """Where a launch knows its turns, those in which the samples were taken."""
    if "turns" not in Launch.__dataclass_fields__:
        return {}
    return {"turns": (SAMPLES,) * TURNS, "together": f"{index}|{spec}"}


def fill(folder: Path, count: int, seed: int = 0) -> None:
    """A store of ``count`` records, unless it is there."""
    if not folder.is_dir():
        with Store(folder) as store:
            store.merge([fingerprint()], records(count, seed))


# ---- what the commands cost --------------------------------------------------------------------------------

PLAN = """
import json, sys, time
import algos
# imports, probes and the machine's description, with no wisdom of that kind
algos.pick("1x1x30x31,1x1x3x3,p1", threads=1)
def seconds(spec):
    start = time.perf_counter()
    algos.pick(spec, threads=2)
    return time.perf_counter() - start
first = seconds("1x3x97x95,64x3x3x3,p1")
news = sorted(seconds(f"1x3x{h}x{h + 3},64x3x{k}x{k},p{k // 2}") for h in range(31, 131) for k in (3, 5))
print(json.dumps([first, news[len(news) // 2]]))
"""


def cost(*command: str, data: Path) -> tuple[float, int, str]:
    """CPU seconds and peak memory of a command in a process of its own, with what it printed."""
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, "CONVBENCH_DATA": str(data)}
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=out,
                                   stdin=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):  # 1: something became slower, which is what the figures say
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        out.seek(0)
        return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, out.read()


def figures(folder: Path, count: int, wanted: Sequence[str]) -> Iterator[tuple[str, float, int]]:
    """What each wanted command takes: its name, CPU seconds and bytes of memory."""
    big, other, data = folder / f"store-{count}", folder / f"other-{count}", folder / f"data-{count}"
    fill(big, count)
    if "report" in wanted:
        yield "report", *cost("-m", "bench", "report", "--out", str(big), data=data)[:2]
    if "compare" in wanted:
        fill(other, count, seed=1)
        yield "compare", *cost("-m", "bench", "compare", str(big), str(other), data=data)[:2]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if "merge" in wanted:
            yield "merge", *cost("-m", "bench", "merge", f"{scratch}/merged", str(big), data=data)[:2]
        if "run" in wanted:  # with and without the records, each for the first time
            case = ("-m", "bench", "run", f"1x1x9x{time.time_ns() % 1000 + 9},1x1x3x3", "--algorithms",
                    "direct_shift", "--out")  # fmt: skip
            alone, *_ = cost(*case, f"{scratch}/alone", data=Path(scratch))
            seconds, memory, _ = cost(*case, str(big), data=data)
            yield "run", seconds - alone, memory
    if set(wanted) & {"pick", "first plan", "new shape"}:
        _teach(big, data)
        yield "pick", *cost("-m", "bench", "pick", "1x3x97x95,64x3x3x3,p1", data=data)[:2]
        _, memory, printed = cost("-c", PLAN, data=data)
        first, new = json.loads(printed)
        yield "first plan", first, memory
        yield "new shape", new, memory


def _teach(store: Path, data: Path) -> None:
    """Wisdom of all records of the store, unless it is there."""
    os.environ["CONVBENCH_DATA"] = str(data)
    if not wisdom.path().is_file():
        with Store(store, create=False) as opened:
            wisdom.remember(map(known, opened.stream(brief=True)))


def main() -> int:
    """Print the figures; 1 when one is beyond its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"some of {', '.join(LIMITS)}; all by default"
    )
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made, or were by an earlier command"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        late = []
        print(f"{'':12}{'CPU':>10}{'limit':>10}{'memory':>12}")
        for name, seconds, memory in figures(folder, arguments.records, arguments.commands or tuple(LIMITS)):
            times = f"{text.seconds(seconds):>10}{text.seconds(LIMITS[name]):>10}"
            print(f"{name:12}{times}{text.size(memory):>12}", flush=True)
            late += [name] if seconds > LIMITS[name] or memory > MOST_MEMORY else []
        for page in (folder / f"store-{arguments.records}" / "report").glob("*"):
            if page.suffix in (".html", ".js", ".md") and page.stat().st_size > LARGEST_PAGE:
                print(f"{page.name} has {page.stat().st_size:,} bytes, the limit is {LARGEST_PAGE:,}")
                late.append(page.name)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
