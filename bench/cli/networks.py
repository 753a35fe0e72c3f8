"""The command that runs whole networks: net; and layers as they follow each other, for run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench import text
from bench.cli.arguments import Command, names_of, on_cluster, threads_of, to_count, to_seconds
from bench.cli.output import print_json, show

BUDGET_S = 60.0


def _net_arguments(command: argparse.ArgumentParser) -> None:
    known = "vgg16, resnet18, resnet50, mobilenet_v2, unet, alexnet, lenet5 or xo"
    command.add_argument("name", metavar="NAME", help=known)
    command.add_argument("--batch", type=to_count, default=1, metavar="N", help="images of a call (1)")
    command.add_argument("--size", type=to_count, metavar="N", help="pixels a side, not its usual ones")
    command.add_argument("--algorithms", metavar="a,b", help="only these, throughout and for each layer")
    command.add_argument("--threads", metavar="N", help="the usable cores by default")
    command.add_argument(
        "--weights", metavar="FILE", default="", help=".npz or .safetensors; seeded ones by default"
    )
    forms = command.add_mutually_exclusive_group()
    forms.add_argument("--csv", action="store_true", help="print the layers as CSV")
    forms.add_argument("--latex", action="store_true", help="print the layers as a LaTeX table")
    command.add_argument("--out", type=Path, default=Path("results"), help="folder of picture and tables")
    command.add_argument("--budget", type=to_seconds, default=BUDGET_S, metavar="SECONDS",
                         help=f"of measuring, beside compiling and checking ({BUDGET_S:.0f})")  # fmt: skip
    on_cluster(command)


def net(arguments: argparse.Namespace) -> int:
    from algos.registry import get
    from reports.net import layer_table, summary, to_csv, to_dict, to_latex, way_table

    names = names_of(arguments.algorithms)
    if arguments.algorithms is not None and not names:
        raise ValueError("--algorithms names none: write --algorithms a,b, with names from convbench list")
    for name in names:
        get(name)
    if arguments.scheduler is not None or arguments.dask is not None:
        return _in_parts(arguments, names)
    found = _measured(arguments, arguments.name, names)
    folder = _written(found, arguments.out)
    if arguments.json:
        return print_json(to_dict(found))
    if arguments.csv:
        show(to_csv(found).rstrip())
    elif arguments.latex:
        show(to_latex(found))
    else:
        show(layer_table(found).text())
        show(f"\n{way_table(found).text()}\n\n{summary(found)}")
        show(f"\npicture and tables: {folder}")
    return 1 if any(reason.startswith("wrong") for reason in found.missing.values()) else 0


def _in_parts(arguments: argparse.Namespace, names: list[str]) -> int:
    """The batch among the machines of a cluster."""
    from bench.cluster import connected
    from bench.networks.spread import split

    if arguments.csv or arguments.latex:
        raise ValueError("--csv and --latex print layers, of one machine: leave them out, or the cluster")
    with connected(arguments.scheduler, arguments.dask or 0) as client:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        found = split(
            client, arguments.name, size=arguments.size, batch=arguments.batch,
            threads=_threads(arguments), weights=arguments.weights, algorithms=names,
            budget_s=arguments.budget,
        )  # fmt: skip
    parts = [
        {"node": p.node, "first": p.first, "images": p.images, "seconds": p.seconds, "error": p.error,
         "algorithms": p.algorithms}
        for p in found.parts
    ]  # fmt: skip
    if arguments.json:
        return print_json({"name": found.name, "batch": found.batch, "threads": found.threads,
                           "seconds": found.seconds, "one_after_the_other_s": found.one_s,
                           "parts": parts})  # fmt: skip
    rows = [
        (p.node, f"{p.first} to {p.first + p.images - 1}", text.seconds(p.seconds),
         f"{p.images / p.seconds:.3g}", f"{p.error:.1e}")
        for p in found.parts
    ]  # fmt: skip
    show(text.table(("node", "images", "time", "images/s", "error"), rows))
    gain = f"{found.one_s / found.seconds:.2f} times as fast as one part after the other"
    show(f"\n{found.batch} images in {text.seconds(found.seconds)}, "
         f"{found.batch / found.seconds:.3g} a second: {gain}")  # fmt: skip
    return 0


NET = Command("net", "a whole network: every layer, and PyTorch beside it", _net_arguments, net)


def in_sequence(arguments: argparse.Namespace) -> int:
    """``run --in-sequence NETWORK``: layers as they follow each other, beside themselves alone."""
    from reports.net import sequence_table, sequence_text, to_dict

    arguments.size, arguments.weights = None, ""
    budget = arguments.budget if arguments.budget is not None else BUDGET_S
    arguments.budget, arguments.batch = budget, arguments.batch or 1
    found = _measured(arguments, arguments.in_sequence, names_of(arguments.algorithms), torch=False)
    if arguments.json:
        return print_json(to_dict(found))
    show(sequence_table(found).text())
    show(f"\n{sequence_text(found)}")
    return 0


def _threads(arguments: argparse.Namespace) -> int:
    threads = threads_of(arguments.threads)
    if len(threads) != 1:
        raise ValueError("--threads: a network is measured with one number of threads, write --threads 2")
    return threads[0]


def _measured(arguments: argparse.Namespace, name: str, algorithms: list[str], torch: bool = True) -> Any:
    from bench.networks.measured import measure

    threads = _threads(arguments)

    def say(what: str) -> None:
        print(f"{name}: {what}", file=sys.stderr, flush=True)

    return measure(
        name, size=arguments.size, batch=arguments.batch, threads=threads, weights=arguments.weights,
        algorithms=algorithms, budget_s=arguments.budget, torch=torch, say=say,
    )  # fmt: skip


def _written(found: Any, out: Path) -> Path:
    """The picture and the tables, in a folder of the network's."""
    import json

    from algos.host import fingerprint
    from bench.files import write
    from reports.net import to_csv, to_dict, to_latex
    from reports.pictures_net import network_picture
    from reports.style import machine_text

    folder = out / f"net-{found.name}-b{found.batch}"
    about = fingerprint()
    png, svg = network_picture(found, machine_text(about["id"], {about["id"]: about}))
    texts = {
        "layers.csv": to_csv(found), "layers.tex": to_latex(found) + "\n",
        "network.json": json.dumps(to_dict(found), indent=2) + "\n",
    }  # fmt: skip
    files = {"picture.png": png, "picture.svg": svg} | {name: t.encode() for name, t in texts.items()}
    for name, data in files.items():
        write(folder / name, data)
    return folder
