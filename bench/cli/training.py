"""The command that trains a network: train."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import text
from bench.cli.arguments import Command, threads_of, to_count
from bench.cli.output import print_json, show


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("network", choices=("xo", "lenet"), metavar="xo|lenet",
                         help="xo: X or O, drawn; lenet: LeNet-5 on the digits of scikit-learn")
    command.add_argument("--epochs", type=to_count, metavar="N", help="passes over the pictures")
    command.add_argument("--seed", type=int, default=0, metavar="N",
                         help="of the pictures, the first weights and their order")
    command.add_argument("--threads", metavar="N")
    command.add_argument("--out", type=Path, default=Path("results"), metavar="DIR",
                         help="where the pictures of the loss, the filters and the maps go")


def run_training(arguments: argparse.Namespace) -> int:
    from algos.engine.threads import checked_threads
    from bench.files import write
    from bench.training import BATCH, TASKS, train
    from reports.pictures_training import training_figures

    task, threads = TASKS[arguments.network], checked_threads(None)
    if arguments.threads:
        if len(asked := threads_of(arguments.threads)) > 1:
            raise ValueError(f"--threads {arguments.threads}: training takes one number of threads")
        (threads,) = asked
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: give 0 or more")
    steps = 0
    for found in train(task, arguments.seed, arguments.epochs or task.epochs, threads):
        if not arguments.json:
            some = found.losses[steps:]
            show(f"pass {len(found.accuracies)}: loss {sum(some) / len(some):.4f}, "
                 f"{found.accuracies[-1]:.2%} right of {len(found.pictures.held_x)} held back")  # fmt: skip
        steps = len(found.losses)
    files = {}
    for name, png in training_figures(found, arguments.network, task.classes):
        files[name] = arguments.out / f"train-{arguments.network}-{name}.png"
        write(files[name], png)
    if arguments.json:
        return print_json({
            "network": arguments.network, "seed": arguments.seed, "threads": threads,
            "accuracies": found.accuracies, "losses": found.losses, "batch": BATCH, "step_s": found.step_s,
            "files": {name: str(path) for name, path in files.items()},
        })  # fmt: skip
    show(f"a step of {BATCH} pictures takes {text.seconds(found.step_s)} on {threads} threads; pictures: "
         + ", ".join(map(str, files.values())))  # fmt: skip
    return 0


TRAIN = Command(
    "train", "train the X/O network or LeNet-5 by the suite's own gradients, and draw what it learnt",
    _arguments, run_training,
)  # fmt: skip
