"""OpenCV behind the contract: ``cv2.filter2D``, and ``cv2.sepFilter2D`` for kernels that are an outer
product.

Each plane is filtered by one call on a zero border (``BORDER_CONSTANT``), with the kernel's anchor at the
spec's padding: so "same" of any kind, asymmetric or with even kernels, writes the result itself. Less padding
computes the "same" size and crops, since a view handed over from NumPy can't show OpenCV what lies around it;
more padding is added by ``cv2.copyMakeBorder``. Both are in the clock. Dilated kernels get zeros between
their taps, in ``prepare``. Sums over input channels and strides are not what OpenCV offers: unsupported.

filter2D skips taps that are zero, and changes its method at 130 taps, zeros included, in float32 on x86 and
at 50 else: from there on it is an FFT by tiles of at least 256 x 256, in double precision for both types. So
12 x 12 taps take 3.5 to 6 times as long as 11 x 11 (512 x 512 pixels, float32). All of it ran on one thread,
whatever ``cv2.setNumThreads`` says (OpenCV 5.0).

Cost: 2 operations for each pixel and tap, 2 * (KH + KW) when separable. Workspace: rows of a ring buffer, two
tiles for the FFT, a bordered and a cropped image where the padding asks for them. Accuracy: normwise for
filter2D, because float64 kernels of 50 taps go through the FFT (below the change each sum is a plain one in
the type of the image); lowrank for sepFilter2D. NaN and infinity stay in the windows that hold them, except
in the FFT, where they spoil a tile. Forward, 1-D (as an image of one row) and 2-D, float32 and float64.
"""

from __future__ import annotations

import importlib.util
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.outer import factors
from algos.engine.threads import once
from algos.engine.windows import stuffed
from algos.host import LIBRARIES
from algos.probe import probe
from algos.spec import ConvSpec

LARGEST_CALLS = 4096  # planes, each filtered on its own
PROBE_S = 60.0
PROBE = """
import cv2, numpy
a = numpy.ones((4, 4), numpy.float32)
if cv2.filter2D(a, -1, a[:3, :3], borderType=cv2.BORDER_CONSTANT)[1, 1] != 9:
    raise SystemExit("a small filter gave a wrong result")
"""


@once
def _broken() -> str | None:
    reason = probe("cv2", PROBE, LIBRARIES["opencv"], PROBE_S)
    return reason and f"cv2 does not work: {reason}"


@dataclass(frozen=True)
class Frame:
    """How "same" filtering of a plane gives one axis of the result.

    Attributes
    ----------
    border : (int, int)
        Zeros to add before and after; (0, 0) as long as the padding is less than the kernel.
    anchor : int
        The tap that lies on the pixel being computed.
    computed, kept : int
        Outputs of the call, and how many of them, from the first, are the spec's.
    """

    border: tuple[int, int]
    anchor: int
    computed: int
    kept: int


def frames(spec: ConvSpec) -> tuple[Frame, Frame]:
    """Rows and columns; a 1-D spec has one row."""
    found = []
    for size, extent, (before, _), kept in zip(
        spec.size, spec.kernel_extent, spec.padding, spec.output_size, strict=True
    ):
        over = max(0, before - extent + 1)  # the anchor must lie in the kernel
        border = (over, max(0, kept - size - over))
        found.append(Frame(border, before - over, size + sum(border), kept))
    return (Frame((0, 0), 0, 1, 1), found[0]) if spec.ndim == 1 else (found[0], found[1])


@dataclass(frozen=True)
class Filter(Algorithm):
    """What both have in common."""

    family: str = "peer"
    runtime: str = "opencv"
    support: ClassVar[Support | None] = Support(ndim=(1, 2))

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("cv2") is None:
            return "cv2 is not installed: pip install opencv-python-headless"
        return _broken()

    def beyond(self, spec: ConvSpec) -> str | None:
        if spec.in_channels != spec.groups:
            return f"filters single planes, it does not sum {spec.in_channels // spec.groups} channels"
        if set(spec.stride) != {1}:
            return "computes every output, it has no stride"
        if spec.batch * spec.out_channels > LARGEST_CALLS:
            return (
                f"{spec.batch * spec.out_channels} planes, each filtered on its own: at most {LARGEST_CALLS}"
            )
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """Weights, one bordered and one uncropped plane as needed, and what the filter itself allocates."""
        computed = [frame.computed for frame in frames(spec)]
        copied = any(any(frame.border) for frame in frames(spec))
        cropped = any(frame.computed != frame.kept for frame in frames(spec))
        return spec.in_dtype.itemsize * (copied + cropped) * math.prod(computed) + self._inside_bytes(spec)

    def _inside_bytes(self, spec: ConvSpec) -> int:
        """Weights as prepared, and a ring of rows as tall as the kernel."""
        height, width = _plane(spec.kernel_extent)
        row = frames(spec)[1].computed + width
        return spec.in_dtype.itemsize * (spec.out_channels * height * width + (height + 4) * row)

    def _filter(
        self, spec: ConvSpec, weights: np.ndarray
    ) -> Callable[[np.ndarray, int, np.ndarray | None], np.ndarray]:
        """``filter(plane, o, dst)`` with the kernel of output channel o."""
        raise NotImplementedError

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import cv2

        rows, cols = frames(spec)
        copied = any(rows.border) or any(cols.border)
        direct = (rows.computed, cols.computed) == (rows.kept, cols.kept)
        each = spec.out_channels // spec.groups
        filtered = self._filter(spec, weights)
        planes = (*spec.output_shape[:2], rows.kept, cols.kept)
        images = (*spec.input_shape[:2], *_plane(spec.size))

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            if cv2.getNumThreads() != threads:
                cv2.setNumThreads(threads)
            result = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            y = result.reshape(planes)
            for image, outputs in zip(x.reshape(images), y, strict=True):
                for c, plane in enumerate(image):
                    if copied:
                        plane = cv2.copyMakeBorder(
                            plane, *rows.border, *cols.border, cv2.BORDER_CONSTANT, value=0
                        )
                    for o in range(c * each, c * each + each):
                        if direct:
                            filtered(plane, o, outputs[o])
                        else:
                            outputs[o] = filtered(plane, o, None)[: rows.kept, : cols.kept]
            return result

        return run

    def tunables(self) -> dict[str, Any]:
        return {}

    def _pixels(self, spec: ConvSpec) -> int:
        return spec.batch * spec.out_channels * math.prod(frame.computed for frame in frames(spec))


@dataclass(frozen=True)
class Filter2D(Filter):
    """``cv2.filter2D`` plane by plane."""

    name: str = "opencv_filter2d"
    accuracy: str = "normwise"

    def _is_dft(self, spec: ConvSpec) -> bool:
        simd = platform.machine().lower() in ("x86_64", "amd64")
        return math.prod(spec.kernel_extent) >= (130 if simd and spec.dtype == "float32" else 50)

    def _tile(self, spec: ConvSpec) -> int:
        """Points of one transform: blocks of 4.5 kernels or 256 pixels, no larger than the plane."""
        sides = zip(_plane(spec.kernel_extent), frames(spec), strict=True)
        return math.prod(min(max(round(4.5 * k), 257 - k), frame.computed) + k - 1 for k, frame in sides)

    def _inside_bytes(self, spec: ConvSpec) -> int:
        ring = super()._inside_bytes(spec)
        return ring + 2 * 8 * self._tile(spec) if self._is_dft(spec) else ring

    def _filter(
        self, spec: ConvSpec, weights: np.ndarray
    ) -> Callable[[np.ndarray, int, np.ndarray | None], np.ndarray]:
        import cv2

        kernels = stuffed(weights, spec.dilation).reshape(spec.out_channels, *_plane(spec.kernel_extent))
        rows, cols = frames(spec)
        anchor, border, filter2d = (cols.anchor, rows.anchor), cv2.BORDER_CONSTANT, cv2.filter2D
        return lambda plane, o, dst: filter2d(plane, -1, kernels[o], dst, anchor, 0, border)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        pixels, planes = self._pixels(spec), spec.batch * spec.out_channels
        traffic = spec.min_bytes + 2 * self.workspace_bytes(spec, threads)
        if self._is_dft(spec):
            return Cost(
                5.0 * pixels * math.log2(max(self._tile(spec), 2)), traffic, 4 * planes, 5e9, parallel=False
            )
        speed = 5e10 if spec.dtype == "float32" else 1.1e10
        return Cost(2.0 * pixels * math.prod(spec.kernel), traffic, 4 * planes, speed, parallel=False)


@dataclass(frozen=True)
class SepFilter2D(Filter):
    """``cv2.sepFilter2D`` plane by plane, with the factors of ``algos/engine/outer.py``."""

    name: str = "opencv_sepfilter2d"
    accuracy: str = "lowrank"

    def beyond(self, spec: ConvSpec) -> str | None:
        if reason := super().beyond(spec):
            return reason
        return None if spec.rank == 1 else "filters with one outer product: the spec does not promise rank1"

    def _filter(
        self, spec: ConvSpec, weights: np.ndarray
    ) -> Callable[[np.ndarray, int, np.ndarray | None], np.ndarray]:
        import cv2

        down, along = (stuffed(part[:, 0], step)[:, 0] for part, step in zip(
            factors(weights, 1), (spec.dilation[:1], spec.dilation[1:]), strict=True))
        rows, cols = frames(spec)
        anchor, border, filter2d = (cols.anchor, rows.anchor), cv2.BORDER_CONSTANT, cv2.sepFilter2D
        return lambda plane, o, dst: filter2d(plane, -1, along[o], down[o], dst, anchor, 0, border)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        traffic = spec.min_bytes + 2 * self.workspace_bytes(spec, threads)
        operations = 2.0 * self._pixels(spec) * sum(spec.kernel_extent)
        speed = 2e10 if spec.dtype == "float32" else 1.1e10
        return Cost(operations, traffic, 4 * spec.batch * spec.out_channels, speed, parallel=False)


def _plane(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


ALGORITHMS = [Filter2D(), SepFilter2D()]
