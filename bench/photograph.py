"""A photograph and the kernels that have names: what people filter, for the check and for the docs; timing
uses normals.

The photograph is the portrait of Grace Hopper that Matplotlib installs among its sample data.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from algos.spec import ConvSpec

NAMED = {
    "vertical_edge_hx": ((0, 0, 0), (0, -1, 1), (0, 0, 0)),
    "edge_8": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "blur_box": ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "sobel_vertical": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "sobel_horizontal": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
}


@cache
def photograph() -> np.ndarray:
    """(600, 512) float64 in [0, 255], grey; read-only."""
    from PIL import Image  # comes with Matplotlib, which itself takes longer to import than the check takes

    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None
    with Image.open(Path(found.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg") as image:
        grey = np.asarray(image, np.float64).mean(axis=2)
    grey.flags.writeable = False
    return grey


def gaussian(height: int, width: int, spread: float = 1 / 5) -> np.ndarray:
    """(height, width) float64 of rank 1 that sums to 1; the standard deviation is ``spread`` of each side."""
    column, row = (np.exp(-(((np.arange(n) - (n - 1) / 2) / (n * spread)) ** 2) / 2) for n in (height, width))
    kernel = np.outer(column, row)
    return kernel / kernel.sum()


def gabor(
    height: int, width: int, angle: float = 0.6, frequency: float = 1.0, phase: float = 0.0
) -> np.ndarray:
    """(height, width) float64: exp(-bx x'^2 - by y'^2) cos(f x' + phi) about the
    centre, with x', y' turned by ``angle``.
    """
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    narrow = 8 / (height * height + width * width)
    return np.exp(-narrow * (along**2 + across**2)) * np.cos(frequency * along + phase)


def filters(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """x and w of ``spec`` (2-D, one input channel a group): the photograph, repeated
    to size, under kernels of that size.
    """
    picture = photograph()
    repeats = [-(-n // m) for n, m in zip(spec.size, picture.shape, strict=True)]
    x = np.broadcast_to(np.tile(picture, repeats)[: spec.size[0], : spec.size[1]], spec.input_shape)
    if spec.rank is not None:
        kernels = [gaussian(*spec.kernel)]
    elif spec.kernel == (3, 3):
        kernels = [np.array(kernel, np.float64) for kernel in NAMED.values()]
    else:
        kernels = [gabor(*spec.kernel), gaussian(*spec.kernel)]
    w = np.stack([kernels[o % len(kernels)] for o in range(spec.out_channels)])[:, None]
    return x.astype(spec.in_dtype), w.astype(spec.in_dtype)
