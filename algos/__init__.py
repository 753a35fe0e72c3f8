"""Convolution, many interchangeable ways: ``conv2d`` runs one, ``plan`` prepares one, ``pick`` names the fastest."""

from algos.auto import Choice, pick
from algos.contract import Algorithm, Cost
from algos.functional import Plan, conv1d, conv2d, conv3d, plan
from algos.registry import algorithms, get
from algos.spec import ConvSpec, SpecError

__all__ = [
    "Algorithm", "Choice", "ConvSpec", "Cost", "Plan", "SpecError",
    "algorithms", "conv1d", "conv2d", "conv3d", "get", "pick", "plan",
]
