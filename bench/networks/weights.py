"""Weights of a network: seeded ones, or a user's own from a file, by the names of ``torch.nn``."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

from bench.networks.graph import Network, NetworkError, Shape

Weights = Mapping[str, np.ndarray]
DTYPE = np.dtype(np.float32)


def seeded(network: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, the same on every machine, under which results neither vanish nor overflow.

    An array depends on its name and shape alone: networks that share layers share their weights.
    """
    return {name: _drawn(name, shape, seed) for name, shape in network.weight_shapes().items()}


def _drawn(name: str, shape: Shape, seed: int) -> np.ndarray:
    draw = np.random.default_rng([seed, crc32(name.encode())])
    part = name.rpartition(".")[2]
    if part == "running_var":
        return draw.uniform(0.5, 1.5, shape).astype(DTYPE)
    if len(shape) > 1:
        fan_in = math.prod(shape[1:])
        return draw.standard_normal(shape, DTYPE) * DTYPE.type(math.sqrt(2 / fan_in))
    mean = 1.0 if part == "weight" else 0.0  # of a normalisation
    return mean + draw.standard_normal(shape, DTYPE) * DTYPE.type(0.1)


def loaded(path: Path, network: Network) -> dict[str, np.ndarray]:
    """The weights of ``network`` in a ``.npz`` or ``.safetensors`` file, as float32; what else is there is
    left alone.

    Raises
    ------
    NetworkError
        For a file that is neither, or that lacks an array, or has one of another shape.
    """
    found = _safetensors(path) if path.suffix == ".safetensors" else _npz(path)
    wanted = network.weight_shapes()
    if missing := [name for name in wanted if name not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NetworkError(
            f"{path} lacks {missing[0]}{more}: {network.name} needs {len(wanted)} arrays, named as the state "
            "of a torch.nn module is"
        )
    for name, shape in wanted.items():
        array = found[name]
        if array.shape != shape:
            raise NetworkError(f"{path}: {name} has shape {array.shape}, {network.name} needs {shape}")
        if array.dtype.kind not in "fV" or not np.can_cast(array.dtype, np.float64):
            raise NetworkError(f"{path}: {name} is {array.dtype}, weights are floats")
    return {name: np.ascontiguousarray(found[name], DTYPE) for name in wanted}


def _npz(path: Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        said = " ".join(str(error).split())[:100]
        raise NetworkError(f"{path} is no .npz of arrays, nor named .safetensors: {said}") from None


def _safetensors(path: Path) -> Weights:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise NetworkError(
            "safetensors is not installed: pip install safetensors, or save the weights by np.savez"
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise NetworkError(f"{path} is no safetensors file: {error}") from None
