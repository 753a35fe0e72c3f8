"""The layers of networks around convolution, with ``torch.nn.functional``'s names and arguments.

Every function is pure, but for the running means of ``batch_norm``. ``<name>_backward(grad, ...)`` gives the
gradient of ``<name>(...)`` with respect to x from that of its result, and takes the same arguments after
``grad``; of layers with weights it gives the gradients with respect to (x, weight, bias). Arrays are NumPy's,
of floats: float32 and float64 as they are, float16 and bfloat16 by way of float32.
"""

from algos.layers.activations import (
    elu,
    elu_backward,
    leaky_relu,
    leaky_relu_backward,
    maxout,
    maxout_backward,
    relu,
    relu6,
    relu6_backward,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    tanh,
    tanh_backward,
)
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
from algos.layers.distance import (
    distance_pool1d,
    distance_pool1d_backward,
    distance_pool2d,
    distance_pool2d_backward,
    distance_pool3d,
    distance_pool3d_backward,
)
from algos.layers.layer_normalisation import layer_norm, layer_norm_backward
from algos.layers.losses import (
    cross_entropy,
    cross_entropy_backward,
    linear,
    linear_backward,
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from algos.layers.matrices import (
    doubly_blocked_toeplitz,
    low_rank,
    low_rank_conv2d,
    pointwise,
    pointwise_backward,
    toeplitz,
)
from algos.layers.normalisation import batch_norm, batch_norm_backward
from algos.layers.pooling import (
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
    lp_pool1d,
    lp_pool1d_backward,
    lp_pool2d,
    lp_pool2d_backward,
    lp_pool3d,
    lp_pool3d_backward,
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from algos.layers.unshared import (
    locally_connected2d,
    locally_connected2d_backward,
    tiled_conv2d,
    tiled_conv2d_backward,
)

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool1d_backward", "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d", "adaptive_avg_pool3d_backward", "avg_pool1d",
    "avg_pool1d_backward", "avg_pool2d", "avg_pool2d_backward", "avg_pool3d", "avg_pool3d_backward",
    "batch_norm", "batch_norm_backward", "cross_entropy", "cross_entropy_backward", "distance_pool1d",
    "distance_pool1d_backward", "distance_pool2d", "distance_pool2d_backward", "distance_pool3d",
    "distance_pool3d_backward", "doubly_blocked_toeplitz", "elu", "elu_backward", "global_avg_pool",
    "global_avg_pool_backward", "layer_norm", "layer_norm_backward", "leaky_relu", "leaky_relu_backward",
    "linear", "linear_backward", "locally_connected2d", "locally_connected2d_backward", "log_softmax",
    "log_softmax_backward", "low_rank", "low_rank_conv2d", "lp_pool1d", "lp_pool1d_backward", "lp_pool2d",
    "lp_pool2d_backward", "lp_pool3d", "lp_pool3d_backward", "max_pool1d", "max_pool1d_backward",
    "max_pool2d", "max_pool2d_backward", "max_pool3d", "max_pool3d_backward", "maxout", "maxout_backward",
    "pointwise", "pointwise_backward", "relu", "relu6", "relu6_backward", "relu_backward", "sigmoid",
    "sigmoid_backward", "silu", "silu_backward", "softmax", "softmax_backward", "tanh", "tanh_backward",
    "tiled_conv2d", "tiled_conv2d_backward", "toeplitz",
]  # fmt: skip
