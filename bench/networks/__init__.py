"""Networks on the suite's own algorithms: as data, with weights, folded, prepared and run."""

from bench.networks.builder import Builder
from bench.networks.executor import Prepared
from bench.networks.fold import Folded, folded
from bench.networks.graph import Network, NetworkError, Node
from bench.networks.weights import loaded, seeded
from bench.networks.zoo import NETWORKS, network

__all__ = ["NETWORKS", "Builder", "Folded", "Network", "NetworkError", "Node", "Prepared", "folded", "loaded",
           "network", "seeded"]  # fmt: skip
