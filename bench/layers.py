"""The layers around convolution against PyTorch's, in turns in one process: ``python -m bench.layers``.

For each a line: our time and torch's on one thread and on two, medians of turns, and how many times as fast
ours is, the median of the turns' ratios; at the end geometric means and the worst. On one thread time is that
of the processor, which other programs take little of. torch has the arrays as ours has them, and beside it,
where there is one, its other memory order, channels_last. The last line is a step of training LeNet-5 on 64
pictures.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from algos import layers
from bench import perf_counter
from bench.text import seconds, table
from bench.training import MOMENTUM, TASKS, Sgd

TURNS = 15
TURN_S = 4e-3  # of a turn of one rival
REST_S = 0.01  # before it: so long threads of the one before may still hold a core

Call = Callable[[], Any]


class Rivals(NamedTuple):
    """A layer: what ours is and torch's in each memory order, on ``threads`` threads."""

    name: str
    ours: Call
    torch: list[Call]


def pooling(torch: Any, rng: np.random.Generator, threads: int) -> list[Rivals]:
    """Windows of known networks: VGG, ResNet, AlexNet, LeNet-5, GoogLeNet, SPP and MobileNet."""
    F, found = torch.nn.functional, []
    cases = [("max_pool2d", (1, 64, 224, 224), (2,)), ("max_pool2d", (1, 512, 28, 28), (2,)),
             ("max_pool2d", (1, 64, 112, 112), (3, 2, 1)), ("max_pool2d", (1, 192, 27, 27), (3, 2)),
             ("max_pool2d", (64, 20, 28, 28), (2,)), ("max_pool2d", (1, 480, 14, 14), (3, 1, 1)),
             ("max_pool2d", (1, 512, 13, 13), (5, 1, 2)), ("max_pool2d", (1, 16, 8, 8), (2,)),
             ("avg_pool2d", (1, 64, 112, 112), (2,)), ("avg_pool2d", (1, 128, 56, 56), (3, 1, 1)),
             ("avg_pool2d", (8, 256, 14, 14), (2,)), ("lp_pool2d", (1, 64, 56, 56), (2, 2)),
             ("adaptive_avg_pool2d", (1, 2048, 7, 7), (1,)), ("adaptive_avg_pool2d", (1, 256, 13, 13), (6,)),
             ("adaptive_avg_pool2d", (8, 512, 14, 14), (1,)),
             ("max_pool1d", (8, 64, 4096), (2,)), ("max_pool3d", (1, 16, 16, 56, 56), (2,))]  # fmt: skip
    for name, shape, options in cases:
        x = rng.standard_normal(shape).astype(np.float32)
        tensor, ours, theirs = torch.from_numpy(x), getattr(layers, name), getattr(F, name)
        orders = [tensor]
        if len(shape) > 3:
            order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
            orders.append(tensor.contiguous(memory_format=order))
        found.append(Rivals(f"{name} {'x'.join(map(str, shape))} {options}",
                            partial(ours, x, *options, threads=threads),
                            [partial(theirs, t, *options) for t in orders]))  # fmt: skip
    return found


def normalisation(torch: Any, rng: np.random.Generator, threads: int) -> list[Rivals]:
    F, found = torch.nn.functional, []
    for shape in [(1, 64, 112, 112), (8, 256, 14, 14), (1, 512, 7, 7), (64, 500)]:
        x, (w, b, mean) = (rng.standard_normal(s).astype(np.float32) for s in (shape, (3, shape[1])))
        var = np.abs(mean) + 1
        vectors = mean, var, w, b
        tensors = [torch.from_numpy(a.copy()) for a in vectors]
        tensor = torch.from_numpy(x)
        orders = [tensor]
        if len(shape) == 4:
            orders.append(tensor.contiguous(memory_format=torch.channels_last))
        for training in ((False, True) if x.size > shape[1] else (False,)):
            name = f"batch_norm {'x'.join(map(str, shape))}{' training' * training}"
            found.append(Rivals(name, partial(layers.batch_norm, x, *vectors, training, threads=threads),
                                [partial(F.batch_norm, t, *tensors, training) for t in orders]))  # fmt: skip
    for shape, size in [((1, 197, 768), (768,)), ((8, 128, 512), (512,)), ((1, 3136, 96), (96,))]:
        x, (w, b) = (rng.standard_normal(s).astype(np.float32) for s in (shape, (2, *size)))
        tensors = [torch.from_numpy(a) for a in (x, w, b)]
        found.append(Rivals(f"layer_norm {'x'.join(map(str, shape))}",
                            partial(layers.layer_norm, x, size, w, b, threads=threads),
                            [partial(F.layer_norm, tensors[0], size, *tensors[1:])]))  # fmt: skip
    return found


def lenet_step(torch: Any, rng: np.random.Generator, threads: int) -> Rivals:
    """Equal networks of slides' layers on equal pictures, forward, gradients and SGD with momentum."""
    F, task = torch.nn.functional, TASKS["lenet"]
    x, target = rng.standard_normal((64, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 64)
    sgd = Sgd(task.network(rng, threads), task.rate)
    arrays = [w for part in sgd.network.layers for w in part.weights]
    weights = [torch.from_numpy(w.copy()).requires_grad_() for w in arrays]
    optimiser = torch.optim.SGD(weights, task.rate, MOMENTUM)
    pictures, classes = torch.from_numpy(x), torch.from_numpy(target)

    def theirs(pictures: Any) -> None:
        c1, b1, c2, b2, d1, e1, d2, e2 = weights
        y = F.max_pool2d(F.relu(F.conv2d(pictures, c1, b1, padding=2)), 2)
        y = F.max_pool2d(F.relu(F.conv2d(y, c2, b2, padding=2)), 2).flatten(1)
        loss = F.cross_entropy(F.linear(F.relu(F.linear(y, d1, e1)), d2, e2), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    last = pictures.contiguous(memory_format=torch.channels_last)
    return Rivals("LeNet-5, a step of 64", lambda: sgd.step(x, target),
                  [lambda: theirs(pictures), lambda: theirs(last)])  # fmt: skip


def measured(rivals: Rivals, turns: int, clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Median seconds of ours and of torch's by memory order, and the median ratios of theirs to ours."""
    calls = [rivals.ours, *rivals.torch]
    counts = []
    for call in calls:
        call()
        start = clock()
        call()
        counts.append(max(1, min(200, int(TURN_S / max(clock() - start, 1e-6)))))
    times = np.empty((turns, len(calls)))
    for turn in range(turns):
        for at in sorted(range(len(calls)), reverse=bool(turn % 2)):
            if clock is perf_counter:
                time.sleep(REST_S)
                calls[at]()
            start = clock()
            for _ in range(counts[at]):
                calls[at]()
            times[turn, at] = (clock() - start) / counts[at]
    ratios = np.median(times[:, 1:] / times[:, :1], 0)
    return np.median(times, 0).tolist(), ratios.tolist()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="part of a name")
    arguments = parser.parse_args()
    import torch

    summary: dict[str, list[tuple[float, str]]] = {}
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        rng = np.random.default_rng(0)
        found = pooling(torch, rng, threads) + normalisation(torch, rng, threads)
        for rivals in [*found, lenet_step(torch, rng, threads)]:
            if arguments.only not in rivals.name:
                continue
            with torch.inference_mode(mode="LeNet" not in rivals.name):
                clock = time.process_time if threads == 1 else perf_counter
                (ours, theirs, *other), ratios = measured(rivals, arguments.turns, clock)
            last = [seconds(other[0]), f"{ratios[1]:.2f}"] if other else ["", ""]
            times = seconds(ours), seconds(theirs), f"{ratios[0]:.2f}"
            rows.append((rivals.name, str(threads), *times, *last))
            kind = next((k for k in ("pool", "norm") if k in rivals.name), "LeNet-5")
            summary.setdefault(f"{kind}, threads {threads}", []).append((ratios[0], rivals.name))
    print(table(("layer", "threads", "ours", "torch", "ratio", "channels_last", "ratio"), rows))
    for each, ratios_of in summary.items():
        mean = math.exp(np.mean([math.log(ratio) for ratio, _ in ratios_of]))
        worst, name = min(ratios_of)
        print(f"{each}: {mean:.2f} times as fast, worst {worst:.2f}, {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
