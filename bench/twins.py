"""How far this machine's verdicts can be trusted: duels whose result is known.

Twins are the same code in two processes: whoever calls them different raises a false alarm. In the others
one of them wastes a known share of every call: whoever does not find it lacks power. Both are measured and
judged as ``bench.duel`` does with everything else. What was found is kept per machine in the user's data
folder, and forgotten when the code that measures or judges has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from algos.host import data_base
from bench import files, perf_counter
from bench.cases import Settings
from bench.duel import HERE, LOOKS, MARKS, Met, Pair, Result, Rule, case_of, fight
from bench.outcome import Progress
from bench.sides import roster

# From 5 us to 20 ms a call: pictures and layers, one algorithm of each kind.
KINDS = (
    ("1x1x16x16,1x1x3x3,p1", "numba_picture"),
    ("1x8x8x8,8x8x3x3,p1", "direct_channels"),
    ("1x1x256x256,1x1x3x3,p1", "depthwise"),
    ("1x1x32x32,1x1x3x3,p1", "direct_shift"),
    ("1x1x256x256,1x1x15x15,p7", "fft_fused"),
    ("1x1x512x512,1x1x15x15,p7,rank1", "separable"),
    ("1x64x56x56,64x64x3x3,p1", "winograd_f4"),
    ("1x64x56x56,256x64x1x1", "direct_pixels"),
    ("1x3x224x224,64x3x7x7,s2,p3", "direct_channels"),
    ("1x256x14x14,256x256x3x3,p1", "im2col_gemm"),
    ("1x1x1024x1024,1x1x31x31,p15", "fft_tiles"),
    ("1x64x96x96,96x64x3x3,p1", "im2col_gemm"),
)
BATCH = 12  # pairs that are measured together: a minute or two
SHARES = (0.05, 0.02, 0.05, 0.10)  # planted in turn; that of 5% is what is promised
MEASURING = ("duel", "launching", "mood", "noise", "pool", "race", "record", "runner", "spread",
             "timing", "turns", "twins", "worker")
NEIGHBOUR = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):  # whatever ends it
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Rate:
    """Verdicts on pairs with one share planted; 0 are twins.

    Attributes
    ----------
    share : float
    pairs, slower, faster, same : int
        The rest is undecided.
    launches : int
        Of all pairs together.
    """

    share: float
    pairs: int = 0
    slower: int = 0
    faster: int = 0
    same: int = 0
    launches: int = 0

    @property
    def undecided(self) -> int:
        return self.pairs - self.slower - self.faster - self.same

    def plus(self, other: Rate) -> Rate:
        counts = {
            name: value + getattr(other, name) for name, value in asdict(self).items() if name != "share"
        }
        return Rate(self.share, **counts)


@dataclass(frozen=True)
class Rates:
    """What twins and planted slowdowns showed on one machine.

    Attributes
    ----------
    machine : str
    rates : tuple of Rate
        By share, twins first.
    measured : str
        When last, UTC.
    """

    machine: str
    rates: tuple[Rate, ...]
    measured: str

    def text(self) -> str:
        """One line for reports."""
        words = []
        for rate in (r for r in self.rates if r.pairs):
            if rate.share:
                words.append(
                    f"a planted {rate.share:.0%} found in {rate.slower / rate.pairs:.0%} of {rate.pairs}"
                )
            else:
                wrong = (rate.slower + rate.faster) / rate.pairs
                words.append(f"{rate.pairs} twins of identical code: {wrong:.1%} called different")
        return f"on this machine {', '.join(words)}"


NOT_MEASURED = "how far verdicts can be trusted was not measured on this machine: run convbench twins"


def rates(machine: str, neighbour: bool = False) -> Rates | None:
    """What was found on ``machine`` with today's way of measuring; None where nothing was.

    With a neighbour are those that were disturbed on purpose, which are kept apart.
    """
    return _kept(machine).get(neighbour)


def _path(machine: str) -> Path:
    return data_base() / f"twins-{machine}.json"


def _kept(machine: str) -> dict[bool, Rates]:
    """What is kept of ``machine``, without and with a neighbour, as far as it can be read and still holds."""
    try:
        text = json.loads(_path(machine).read_text())
        places = text["places"]
        found = {place["neighbour"]: tuple(Rate(**each) for each in place["rates"]) for place in places}
        if text["measuring"] != measuring():
            return {}
        return {place: Rates(machine, listed, text["measured"]) for place, listed in found.items() if listed}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@cache
def measuring() -> str:
    """A hash of the code that measures and judges."""
    digest = hashlib.sha256()
    for name in MEASURING:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def remember(machine: str, found: Sequence[Rate], neighbour: bool) -> None:
    """Add what was found to what is kept of ``machine``."""
    kept = {place: rates.rates for place, rates in _kept(machine).items()}
    totals = {rate.share: rate for rate in kept.get(neighbour, ())}
    for rate in found:
        totals[rate.share] = totals[rate.share].plus(rate) if rate.share in totals else rate
    kept[neighbour] = tuple(totals[share] for share in sorted(totals))
    places = [{"neighbour": place, "rates": list(map(asdict, listed))} for place, listed in kept.items()]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"measuring": measuring(), "measured": now, "places": places}, indent=1)
    files.write(_path(machine), text.encode())


def pairs(count: int, threads: Sequence[int], settings: Settings) -> dict[Pair, float]:
    """``count`` pairs of twins and as many with a slowdown, over all kinds and threads; the share of each."""
    specs, names = zip(*KINDS, strict=True)
    entries = roster(HERE, specs, names, threads, settings.slow_s)
    known = {(e["spec"], e["variant"], e["threads"]): e for e in entries if e["status"] == "ok"}
    places = [(*kind, number) for number in threads for kind in KINDS if (*kind, number) in known]
    found = {}
    for i in range(count if places else 0):
        spec, name, number = place = places[i % len(places)]
        share = SHARES[(i + i // len(places)) % len(SHARES)]
        for planted, burns in ((0.0, (None, None)), (share, (0.0, share))):
            label = f"{name} +{planted:.0%} #{i + 1}"
            cases = [case_of(HERE, known[place], MARKS[k], label, burns[k]) for k in range(2)]
            found[Pair(spec, label, number, *cases)] = planted
    return found


def run(
    planted: dict[Pair, float], settings: Settings, neighbour: bool, budget_s: float | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Measure the pairs batch by batch, each pair judged as if it were the only one.

    The budget ends it between batches: pairs that are half done would be undecided for no fault of theirs.
    """
    started, every, progress = perf_counter(), list(planted), progress or Progress()
    with _neighbour() if neighbour else nullcontext():
        for first in range(0, len(every), BATCH):
            if first and budget_s is not None and perf_counter() - started > budget_s:
                break
            progress.later = 2 * LOOKS[0] * len(every[first + BATCH :])
            yield fight(every[first : first + BATCH], settings, Rule(apart=True), progress)


def counted(planted: dict[Pair, float], met: Sequence[Met]) -> list[Rate]:
    """Verdicts by what was planted."""
    totals = {share: Rate(share) for share in sorted(set(planted.values()))}
    for one in met:
        verdict = {} if one.verdict == "undecided" else {one.verdict: 1}
        share = planted[one.pair]
        totals[share] = totals[share].plus(Rate(share, 1, launches=one.ratio.launches, **verdict))
    return [rate for rate in totals.values() if rate.pairs]


@contextmanager
def _neighbour() -> Iterator[None]:
    """A process that uses one core half of the time."""
    command = [sys.executable, "-S", "-c", NEIGHBOUR, str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
