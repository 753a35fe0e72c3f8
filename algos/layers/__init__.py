"""The layers of networks around convolution, with ``torch.nn.functional``'s names and arguments.

Every function is pure; ``<name>_backward(grad, ...)`` gives the gradients of ``<name>(...)`` from that of its
result, and takes the same arguments after ``grad``.
"""

from algos.layers.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool1d_backward,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_avg_pool3d_backward,
    global_avg_pool,
    global_avg_pool_backward,
)
from algos.layers.losses import linear
from algos.layers.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool1d_backward", "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d", "adaptive_avg_pool3d_backward", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "global_avg_pool", "global_avg_pool_backward", "linear", "lp_pool1d",
    "lp_pool2d", "lp_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
]  # fmt: skip
