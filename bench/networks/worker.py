"""The process that runs networks when told to: one for ours, others for PyTorch, whose threads must not meet.

Commands come as JSON lines and answers go as they do in ``bench.worker``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from algos.engine.quiet import quieten
from bench import perf_counter
from bench.networks.fold import folded
from bench.networks.weights import DTYPE, loaded, seeded
from bench.networks.zoo import network
from bench.text import printable
from bench.worker import enter


class Host:
    """A network with its weights, and the ways in which this process can run it.

    ``about``: name, size, batch, threads, weights (a file, or empty) and seed; ``first`` and ``whole`` where
    the images are a part of a batch.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self.network = network(about["name"], about["size"])
        self.batch, self.threads = about["batch"], about["threads"]
        file = about["weights"]
        self.weights = loaded(Path(file), self.network) if file else seeded(self.network, about["seed"])
        self.net = folded(self.network, self.weights)
        draw = np.random.default_rng(about["seed"] + 1)
        images = draw.standard_normal((about.get("whole", self.batch), *self.network.shape), DTYPE)
        self.x = images[about.get("first", 0) :][: self.batch].copy()
        self.ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        self.plans: Any = None
        self.chosen: Any = None

    def reference(self) -> dict[str, Any]:
        """What every way must compute."""
        from bench.networks.reference import reference

        return {"output": reference(self.network, self.weights, self.x).ravel().tolist()}

    def choose(self, named: list[str], seconds: float) -> dict[str, Any]:
        """Time candidates in sequence: the ways that follow, and what a change of layout would gain."""
        from bench.networks.choose import candidates, choose, layouts
        from bench.networks.executor import Plans, Prepared

        self.plans = Plans(self.net, self.threads)
        found = candidates(self.net.network, self.batch, self.threads, named)
        self.chosen = choose(self.net, self.batch, found, self.plans, self.x, seconds)
        best = Prepared(self.net, self.batch, self.chosen.algorithms, plans=self.plans)
        self.ways = {"best": best, "auto": Prepared(self.net, self.batch, found.greedy, plans=self.plans)}
        for name in found.alone:
            self.ways[name] = Prepared(self.net, self.batch, name, plans=self.plans)
        order = layouts(self.net, self.batch, self.chosen, best, self.x)
        return {
            "ways": list(self.ways), "algorithms": self.chosen.algorithms, "greedy": found.greedy,
            "candidates": self.chosen.times, "calls": self.chosen.calls, "layouts": order._asdict(),
            "arena_bytes": best.arena.bytes, "apart_bytes": best.arena.apart_bytes, "plans": len(self.plans),
        }  # fmt: skip

    def prepare(self, form: str) -> dict[str, Any]:
        """A way of PyTorch's."""
        from bench.networks.peer import running

        self.ways[form] = running(self.net, form, self.threads)
        return {}

    def output(self, way: str) -> dict[str, Any]:
        return {"output": np.asarray(self.ways[way](self.x)).ravel().tolist()}

    def turn(self, way: str, seconds: float) -> dict[str, Any]:
        """Seconds of calls, one at least, after one that is not counted."""
        run, x = self.ways[way], self.x
        times: list[float] = []
        run(x)
        end = perf_counter() + seconds
        while not times or perf_counter() < end:
            start = perf_counter()
            run(x)
            times.append(perf_counter() - start)
        quieten()
        return {"times": times}

    def layers(self, way: str, seconds: float) -> dict[str, Any]:
        """Seconds of each step, with a clock between them, and of the calls without one that come between."""
        run: Any = self.ways[way]
        run(self.x)
        steps: list[list[float]] = []
        whole: list[float] = []
        end = perf_counter() + seconds
        while len(whole) < 3 or perf_counter() < end:
            start = perf_counter()
            run(self.x)
            whole.append(perf_counter() - start)
            steps.append(run.timed(self.x))
        quieten()
        return {"steps": steps, "whole": whole}

    def alone(self, way: str, seconds: float) -> dict[str, Any]:
        """Seconds of each step by itself, called again and again with the same operands."""
        run: Any = self.ways[way]
        operands = run.operands(self.x)
        shapes = self.net.network.shapes(self.batch)
        found = {}
        for node, call, _, _ in run.steps:
            given, out = operands[node.name], np.empty(shapes[node.name], DTYPE)
            times: list[float] = []
            call(*given, out=out)
            end = perf_counter() + seconds / len(run.steps)
            while len(times) < 3 or perf_counter() < end:
                start = perf_counter()
                call(*given, out=out)
                times.append(perf_counter() - start)
            found[node.name] = calm(times)
        return {"alone": found}


def calm(times: list[float]) -> float:
    """The mean of the calmest third."""
    kept = sorted(times)[: max(1, -(-len(times) // 3))]
    return sum(kept) / len(kept)


def main() -> None:
    """Started by the controller, as ``bench.worker`` is."""
    with enter() as (commands, answers, _):
        host: Host | None = None

        def answer(**fields: Any) -> None:
            answers.write(json.dumps(fields) + "\n")
            answers.flush()

        answer(hello=True)
        for line in commands:
            request = json.loads(line)
            number, do = request.pop("number"), request.pop("do")
            try:
                if do == "open":
                    host, reply = Host(request), {}
                else:
                    reply = getattr(host, do)(**request)
                answer(number=number, **reply)
            except Exception as error:
                said = printable(" ".join(str(error).split()))[:300]
                said = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
                answer(number=number, failure="error", reason=said)
