"""The same networks in PyTorch: built from the data that ours are built from, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.networks.fold import Folded
from bench.networks.graph import INPUT, Node

FORMS = ("eager", "eager channels-last", "compiled", "compiled channels-last")


def module_of(net: Folded, channels_last: bool = False) -> Any:
    """A ``torch.nn.Module`` of the folded network."""
    import torch
    from torch.nn import functional as f

    after: dict[str, Callable[..., Any]] = {
        "none": lambda y: y, "relu": f.relu, "relu6": f.relu6, "sigmoid": torch.sigmoid, "silu": f.silu,
    }  # fmt: skip
    order = torch.channels_last if channels_last else torch.contiguous_format

    def layer(node: Node) -> Callable[..., Any]:
        if node.op in ("conv", "transposed", "dense"):
            w, b = map(torch.from_numpy, net.weights[node.key])
            w = w.contiguous(memory_format=order) if w.ndim == 4 else w
            if node.op == "dense":
                return lambda x: f.linear(x.flatten(1), w, b)
            rest: dict[str, Any] = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation,
                    "groups": node.groups}  # fmt: skip
            call = f.conv2d if node.op == "conv" else f.conv_transpose2d
            return lambda x: call(x, w, b, **rest)
        window = (node.kernel, node.stride, node.padding)
        ways: dict[str, Callable[..., Any]] = {
            "max_pool": lambda x: f.max_pool2d(x, *window, node.dilation, ceil_mode=node.ceil),
            "average_pool": lambda x: f.avg_pool2d(x, *window, ceil_mode=node.ceil),
            "global_average": lambda x: f.adaptive_avg_pool2d(x, 1),
            "add": lambda *xs: sum(xs[1:], xs[0]),
            "concat": lambda *xs: torch.cat(xs, 1),
            "activation": lambda x: x,
        }
        return ways[node.op]

    steps = [(node, layer(node), after[node.activation]) for node in net.network.nodes]

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            found = {INPUT: x}
            for node, call, act in steps:
                found[node.name] = act(call(*[found[name] for name in node.inputs]))
            return found[net.network.output]

    return Net()


def running(net: Folded, form: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """``run(x)`` in one of ``FORMS``, in inference mode."""
    import torch

    torch.set_num_threads(threads)
    last = form.endswith("channels-last")
    module: Any = module_of(net, last)
    if form.startswith("compiled"):
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = torch.compile(module)
    order = torch.channels_last if last else torch.contiguous_format

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x).contiguous(memory_format=order)).numpy()

    return run
