"""Convolution, many interchangeable ways: ``conv2d`` runs one, ``plan``
prepares one, ``pick`` names the fastest.
"""

from algos.auto import Choice, pick
from algos.contract import Algorithm, Cost, Support
from algos.functional import conv1d, conv2d, conv3d
from algos.gradients import (
    conv1d_bias,
    conv1d_input,
    conv1d_weight,
    conv2d_bias,
    conv2d_input,
    conv2d_weight,
    conv3d_bias,
    conv3d_input,
    conv3d_weight,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from algos.plans import Plan, plan
from algos.quantized import conv_integer, qlinear_conv
from algos.registry import algorithms, get
from algos.spec import ConvSpec, SpecError

__all__ = [
    "Algorithm", "Choice", "ConvSpec", "Cost", "Plan", "SpecError", "Support",
    "algorithms",
    "conv1d", "conv1d_bias", "conv1d_input", "conv1d_weight", "conv2d", "conv2d_bias", "conv2d_input",
    "conv2d_weight", "conv3d", "conv3d_bias", "conv3d_input", "conv3d_weight", "conv_integer",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "get", "pick", "plan", "qlinear_conv",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """``algos.layers``, imported when it is asked for first: most programs need convolution alone."""
    if name == "layers":
        from importlib import import_module

        return import_module("algos.layers")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
