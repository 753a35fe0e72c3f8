"""A network measured: ours in one process, PyTorch in another, turn by turn, and what the turns say."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from algos.grammar import times as shape_text
from bench import perf_counter
from bench.networks.fold import folded
from bench.networks.graph import NetworkError
from bench.networks.peer import FORMS
from bench.networks.worker import calm
from bench.networks.zoo import network
from bench.pool import Worker, WorkerFailed, measuring

WAIT_S = 600.0
TURN_S = 0.06
NEAR = 1.3  # times as long as the best: further turns are worth taking
ERROR = 1e-3  # of the largest output: what differs by more computes something else
BEST, AUTO, TORCH = "best", "auto", "torch "


@dataclass(frozen=True)
class Layer:
    """A row of the table: a node of the folded network, in its order.

    Attributes
    ----------
    seconds : float
        In sequence, by its best algorithm.
    alone_s : float
        Called by itself again and again.
    baseline_s : float or None
        In sequence with the one algorithm that is the fastest throughout; None where nothing is chosen.
    """

    name: str
    op: str
    shape: str
    parameters: int
    macs: int
    algorithm: str
    seconds: float
    alone_s: float
    baseline_s: float | None


@dataclass(frozen=True)
class Way:
    """One way to run the whole network.

    Attributes
    ----------
    seconds : float
        Of a call, end to end.
    ratio : float or None
        Its time over that of the best for each layer, the median over rounds in which both took turns.
    error : float
        Of the largest output, against the definition in float64.
    """

    name: str
    seconds: float
    ratio: float
    error: float


@dataclass(frozen=True)
class Measured:
    """What ``measure`` found.

    ``sequence_s`` is what the layers in sequence add up to, ``whole_s`` a call without a clock between them,
    both taken in turn.
    """

    name: str
    batch: int
    threads: int
    layers: tuple[Layer, ...]
    ways: tuple[Way, ...]
    baseline: str
    chosen: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    sequence_s: float = 0.0
    whole_s: float = 0.0
    rounds: int = 0

    def way(self, name: str) -> Way | None:
        return next((way for way in self.ways if way.name == name), None)

    @property
    def torch(self) -> Way | None:
        """PyTorch at its best."""
        return min((w for w in self.ways if w.name.startswith(TORCH)), key=lambda w: w.seconds, default=None)


def measure(
    name: str, *, size: int | None = None, batch: int = 1, threads: int = 1, weights: str = "", seed: int = 0,
    algorithms: Sequence[str] = (), budget_s: float = 30.0, torch: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:  # fmt: skip
    """Choose, check and time the network; half of the budget goes to turns."""
    about = {"name": name, "size": size, "batch": batch, "threads": threads, "weights": weights, "seed": seed}
    missing: dict[str, str] = {}
    with measuring():
        workers: dict[str, Worker] = {}
        try:
            own = workers["own"] = opened(about, threads)
            say("the definition")
            right = np.array(ask(own, do="reference")["output"])
            say("candidates in sequence")
            chosen = ask(own, do="choose", named=list(algorithms), seconds=budget_s * 0.3)
            ways = dict.fromkeys(chosen["ways"], own)
            if torch:
                ways |= _torch_ways(about, threads, workers, missing, say)
            errors = {}
            for way, worker in list(ways.items()):
                found = np.array(ask(worker, do="output", way=way.removeprefix(TORCH))["output"])
                errors[way] = float(np.abs(found - right).max() / np.abs(right).max())
                if not errors[way] <= ERROR:
                    missing[way] = f"wrong: it differs by {errors[way]:.2g} of the largest output"
                    del ways[way]
            if BEST not in ways:
                raise NetworkError(f"{name} with the best of each layer is {missing[BEST]}")
            say("turns")
            turns = _turns(ways, budget_s * 0.5)
            singles = [way for way in chosen["ways"] if way not in (BEST, AUTO) and way in ways]
            totals = {way: calm([t for turn in turns[way] for t in turn]) for way in ways}
            baseline = min(singles, key=totals.__getitem__, default=AUTO)
            say("layers in sequence")
            in_sequence, whole = {}, {}
            for way in {BEST, baseline}:
                in_sequence[way], whole[way] = _steps(own, way, budget_s * 0.08)
            alone = ask(own, do="alone", way=BEST, seconds=budget_s * 0.08)["alone"]
        finally:
            for worker in workers.values():
                worker.end()
    middle = {way: [calm(turn) for turn in turns[way]] for way in ways}
    found_ways = tuple(
        Way(way, totals[way],
            statistics.median(a / b for a, b in zip(middle[way], middle[BEST], strict=False)), errors[way])
        for way in sorted(ways, key=totals.__getitem__)
    )  # fmt: skip
    layers = _layers(about, chosen, in_sequence, alone, baseline)
    return Measured(name, batch, threads, layers, found_ways, baseline, chosen, missing,
                    sum(in_sequence[BEST]), whole[BEST], len(turns[BEST]))  # fmt: skip


def opened(about: dict[str, Any], threads: int) -> Worker:
    """A process that hosts the network."""
    worker = Worker(threads, module="bench.networks.worker")
    try:
        ask(worker, do="open", **about)
    except BaseException:
        worker.end()
        raise
    return worker


def ask(worker: Worker, **request: Any) -> dict[str, Any]:
    """Its answer, or NetworkError."""
    try:
        reply = worker.ask(WAIT_S, **request)
    except WorkerFailed as failure:
        raise NetworkError(str(failure)) from None
    if "failure" in reply:
        raise NetworkError(reply["reason"])
    return reply


def _torch_ways(about: dict[str, Any], threads: int, workers: dict[str, Worker], missing: dict[str, str],
                say: Callable[[str], None]) -> dict[str, Worker]:  # fmt: skip
    """The forms of PyTorch that work here; a compiler that hangs or dies costs its own process only."""
    if importlib.util.find_spec("torch") is None:
        missing["torch"] = "torch is not installed: pip install torch"
        return {}
    found = {}
    for group in ("eager", "compiled"):
        try:
            worker = workers[group] = opened(about, threads)
        except NetworkError as error:
            missing[TORCH + group] = str(error)
            continue
        for form in (form for form in FORMS if form.startswith(group)):
            say(f"torch {form}")
            try:
                ask(worker, do="prepare", form=form)
                ask(worker, do="output", way=form)
            except NetworkError as error:
                missing[TORCH + form] = str(error)[:200]
                if not worker.running:
                    break
            else:
                found[TORCH + form] = worker
    return {way: worker for way, worker in found.items() if worker.running}


def _turns(ways: dict[str, Worker], seconds: float) -> dict[str, list[list[float]]]:
    """Rounds in which every way takes a turn; those behind leave after the third."""
    turns: dict[str, list[list[float]]] = {way: [] for way in ways}
    end, racing = perf_counter() + seconds, list(ways)
    while len(turns[BEST]) < 4 or perf_counter() < end:
        for way in racing:
            reply = ask(ways[way], do="turn", way=way.removeprefix(TORCH), seconds=TURN_S)
            turns[way].append(reply["times"])
        if len(turns[BEST]) == 3:
            so_far = {way: calm([t for turn in turns[way] for t in turn]) for way in ways}
            theirs = [way for way in ways if way.startswith(TORCH)]
            near = {BEST, AUTO, *sorted(theirs, key=so_far.__getitem__)[:2]}
            racing = [way for way in ways if way in near or so_far[way] < NEAR * so_far[BEST]]
    return turns


def _steps(worker: Worker, way: str, seconds: float) -> tuple[list[float], float]:
    """Of each step the mean over the calmest third of the calls, and the same of calls as a whole."""
    reply = ask(worker, do="layers", way=way, seconds=seconds)
    steps = np.array(reply["steps"])
    kept = np.argsort(steps.sum(axis=1))[: -(-len(steps) // 3)]
    return steps[kept].mean(axis=0).tolist(), calm(reply["whole"])


def _layers(about: dict[str, Any], chosen: dict[str, Any], in_sequence: dict[str, list[float]],
            alone: dict[str, float], baseline: str) -> tuple[Layer, ...]:  # fmt: skip
    net = network(about["name"], about["size"])
    plain = folded(net, _empty(net)).network
    original = {node.name: node for node in net.nodes}
    shapes = plain.shapes(about["batch"])
    rows = []
    for at, node in enumerate(plain.nodes):
        algorithm = chosen["algorithms"].get(node.name, "")
        rows.append(Layer(
            node.name, node.op, shape_text(shapes[node.name]), net.parameters(original[node.name]),
            plain.macs(node, about["batch"]), algorithm, in_sequence[BEST][at], alone[node.name],
            in_sequence[baseline][at] if algorithm else None,
        ))  # fmt: skip
    return tuple(rows)


def _empty(net: Any) -> dict[str, np.ndarray]:
    """Weights of no memory worth speaking of: for the shape of what is folded alone."""
    one = np.ones(1, np.float32)
    return {name: np.broadcast_to(one, shape) for name, shape in net.weight_shapes().items()}
