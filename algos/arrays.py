"""Arrays that live on a GPU, as the door and the lowerings know them."""

from __future__ import annotations

from typing import Any

import numpy as np


class DeviceArray:
    """Base of the wrappers through which another library's GPU arrays pass as CuPy's do.

    They have ``shape``, ``dtype`` (NumPy's), ``nbytes``, ``flags.c_contiguous``, ``copy(order)`` and ``a[...]
    = b``; their class has ``pad``, ``moveaxis`` and ``ascontiguousarray``, which are called as NumPy's
    functions.
    """


def is_device_array(array: Any) -> bool:
    """Whether a GPU holds it; asks nothing of CuPy where it isn't loaded."""
    return isinstance(array, DeviceArray) or _is_cupys(array)


def on_host(array: Any) -> Any:
    """CuPy's arrays as NumPy's, anything else as it is."""
    return array.get() if _is_cupys(array) else array


def _is_cupys(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def layout_of(array: Any) -> str:
    """How the channels of (N, C, *size) lie: "nhwc" where those of a pixel lie together, else "nchw"."""
    if not isinstance(array, np.ndarray) or array.ndim < 3 or array.flags.c_contiguous:
        return "nchw"
    return "nhwc" if np.moveaxis(array, 1, -1).flags.c_contiguous else "nchw"


def module_of(array: Any) -> Any:
    """NumPy, or for a device's arrays what has the same functions: CuPy, or the wrapper's class."""
    if isinstance(array, DeviceArray):
        return type(array)
    if is_device_array(array):
        import cupy

        return cupy
    return np
