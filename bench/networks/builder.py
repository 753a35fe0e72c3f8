"""Networks by hand: a call adds a layer that reads the one before, or another by name, and returns its name.

>>> b = Builder("mine", (1, 28, 28))
>>> b.conv(16, 3, padding=1)
>>> b.batch_norm()
>>> b.relu()
>>> b.max_pool(2)
>>> b.dense(10)
>>> network = b.network()
"""

from __future__ import annotations

from typing import Any

from bench.networks.graph import INPUT, Network, Node, Pair, Shape


class Builder:
    """A network in the making.

    Parameters
    ----------
    name : str
    shape : (C, H, W)
        Of one image.

    Attributes
    ----------
    last : str
        The result that the next layer reads unless it is told otherwise by ``of``.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        self._name, self._shape = name, tuple(shape)
        self._nodes: list[Node] = []
        self.last = INPUT

    def network(self) -> Network:
        return Network(self._name, self._shape, tuple(self._nodes))

    def _add(self, op: str, of: str | tuple[str, ...], name: str, **options: Any) -> str:
        inputs = (of or self.last,) if isinstance(of, str) else tuple(of)
        self.last = name or f"{op}{1 + sum(node.op == op for node in self._nodes)}"
        self._nodes.append(Node(self.last, op, inputs, **options))
        return self.last

    def conv(self, out_channels: int, kernel: Pair, stride: Pair = 1, padding: Pair = 0, *,
             dilation: Pair = 1, groups: int = 1, bias: bool = True, of: str = "", name: str = "",
             weights: str = "") -> str:  # fmt: skip
        """``torch.nn.Conv2d``; ``weights`` names another layer whose weights it shares."""
        return self._add("conv", of, name, out_channels=out_channels, kernel=kernel, stride=stride,
                         padding=padding, dilation=dilation, groups=groups, bias=bias,
                         weights=weights)  # fmt: skip

    def transposed(self, out_channels: int, kernel: Pair, stride: Pair = 1, padding: Pair = 0, *,
                   bias: bool = True, of: str = "", name: str = "", weights: str = "") -> str:  # fmt: skip
        """``torch.nn.ConvTranspose2d``."""
        return self._add("transposed", of, name, out_channels=out_channels, kernel=kernel, stride=stride,
                         padding=padding, bias=bias, weights=weights)  # fmt: skip

    def dense(self, out_channels: int, *, bias: bool = True, of: str = "", name: str = "",
              weights: str = "") -> str:
        """``torch.nn.Linear`` of all numbers of an image."""
        return self._add("dense", of, name, out_channels=out_channels, bias=bias, weights=weights)

    def batch_norm(self, *, eps: float = 1e-5, of: str = "", name: str = "") -> str:
        """``torch.nn.BatchNorm2d`` as it is after training."""
        return self._add("batch_norm", of, name, eps=eps)

    def relu(self, *, of: str = "", name: str = "") -> str:
        return self.activation("relu", of=of, name=name)

    def activation(self, kind: str, *, of: str = "", name: str = "") -> str:
        """relu, relu6, sigmoid or silu."""
        return self._add("activation", of, name or f"{kind}{len(self._nodes) + 1}", activation=kind)

    def max_pool(self, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, *, dilation: Pair = 1,
                 ceil: bool = False, of: str = "", name: str = "") -> str:  # fmt: skip
        """``torch.nn.MaxPool2d``."""
        return self._add("max_pool", of, name, kernel=kernel, stride=kernel if stride is None else stride,
                         padding=padding, dilation=dilation, ceil=ceil)  # fmt: skip

    def average_pool(self, kernel: Pair, stride: Pair | None = None, padding: Pair = 0, *,
                     ceil: bool = False, of: str = "", name: str = "") -> str:  # fmt: skip
        """``torch.nn.AvgPool2d``."""
        return self._add("average_pool", of, name, kernel=kernel, stride=kernel if stride is None else stride,
                         padding=padding, ceil=ceil)  # fmt: skip

    def global_average(self, *, of: str = "", name: str = "") -> str:
        """The mean of each channel."""
        return self._add("global_average", of, name)

    def add(self, *of: str, name: str = "") -> str:
        """The sum of results of one shape."""
        return self._add("add", of, name)

    def concat(self, *of: str, name: str = "") -> str:
        """The channels of one after those of the other."""
        return self._add("concat", of, name)
