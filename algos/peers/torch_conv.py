"""PyTorch's conv1d, conv2d and conv3d behind the contract: oneDNN and its own code on a CPU, cuDNN on CUDA
with TF32 off.

Operands are shared with torch, not copied (``torch.from_numpy``, DLPack for CuPy's arrays), and so is the
result; ``out`` costs a copy, since torch's convolutions write arrays of their own. Symmetric padding is an
argument; of other padding the excess is added by ``torch.nn.functional.pad``, in the clock. Three layouts:
- ``torch_nchw``: as most code calls it. In float32 oneDNN copies x, w and y from and to blocks of channels at
every call.
- ``torch_channels_last``: x, y and the weights channels-last, which oneDNN computes on in place; only w is
copied.
- ``torch_prepacked``: the same with weights in oneDNN's own order, as ``torch.compile`` freezes them. It
saves that copy, which
  counts where weights outweigh the picture (512x512x3x3 on 7x7 pixels: 3.7 -> 2.4 ms on one thread), not
  elsewhere.

Cost: the definition's operations. Workspace: an estimate of what the libraries allocate out of sight: the
copies above, and in float64, or for few channels of a single small image, the im2col matrix of the whole
batch. Accuracy: componentwise on a CPU; on CUDA normwise, since cuDNN, searching for the fastest
(``cudnn.benchmark``), may come to Winograd or FFT, which also spread NaN. Float32 and float64; every stride,
dilation, padding and number of groups. Gradients on the CPU (``aten.convolution_backward``). The number of
threads, and on CUDA the flags for TF32 and for searching, belong to the whole process.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from algos.arrays import DeviceArray
from algos.contract import Algorithm, Cost
from algos.engine.threads import once
from algos.host import vector_extension, version
from algos.probe import probe
from algos.spec import ConvSpec

PROBE_S = 60.0
PROBE = """
import torch
y = torch.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3))
if y.numpy()[0, 0, 0, 0] != 36:
    raise SystemExit("a small convolution gave a wrong result")
"""
PROBE_PREPACKED = """
import torch
x, w = torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)
packed = torch.ops.mkldnn._reorder_convolution_weight(w, [0, 0], [1, 1], [1, 1], 1, [1, 4, 8, 8])
y = torch.ops.mkldnn._convolution_pointwise(x, packed, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
if y.numpy()[0, 0, 0, 0] != 36:
    raise SystemExit("a small convolution gave a wrong result")
"""
PROBE_CUDA = """
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch sees no CUDA device")
y = torch.conv2d(torch.ones(1, 4, 8, 8, device="cuda"), torch.ones(4, 4, 3, 3, device="cuda"))
if y.cpu().numpy()[0, 0, 0, 0] != 36:
    raise SystemExit("a small convolution gave a wrong result")
"""


@once
def _broken(name: str, code: str) -> str | None:
    reason = probe(name, code, ("torch",), PROBE_S)
    return reason and f"{name.replace('_', ' ')} does not work: {reason}"


class DeviceTensor(DeviceArray):
    """A torch tensor that passes the door.

    Parameters
    ----------
    tensor : torch.Tensor
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        self.nbytes = tensor.nbytes
        self.flags = SimpleNamespace(c_contiguous=tensor.is_contiguous())

    def __setitem__(self, at: Any, value: DeviceTensor) -> None:
        self.tensor[at] = value.tensor

    def copy(self, order: str = "C") -> DeviceTensor:
        import torch

        return DeviceTensor(self.tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def ascontiguousarray(array: DeviceTensor) -> DeviceTensor:
        return DeviceTensor(array.tensor.contiguous())

    @staticmethod
    def moveaxis(array: DeviceTensor, source: int, destination: int) -> DeviceTensor:
        return DeviceTensor(array.tensor.movedim(source, destination))

    @staticmethod
    def pad(array: DeviceTensor, widths: Any, mode: str, constant_values: float = 0.0) -> DeviceTensor:
        """``numpy.pad``: a border of one value, or whatever elements NumPy would repeat."""
        import torch

        tensor = array.tensor
        if mode == "constant":
            return DeviceTensor(torch.nn.functional.pad(tensor, _flat(widths), value=constant_values))
        for axis, pair in enumerate(widths):
            if any(pair):
                source = torch.from_numpy(np.pad(np.arange(tensor.shape[axis]), pair,
                                                 mode))  # type: ignore[call-overload]
                tensor = tensor.index_select(axis, source.to(tensor.device))
        return DeviceTensor(tensor)


@dataclass(frozen=True)
class TorchConv(Algorithm):
    """``torch.conv1d``, ``conv2d`` or ``conv3d``, NCHW."""

    name: str = "torch_nchw"
    family: str = "peer"
    runtime: str = "torch"

    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    directions: ClassVar[tuple[str, ...]] = ("forward", "input_gradient", "weight_gradient")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed: pip install torch"
        return _broken("torch", PROBE)

    def unsupported(self, spec: ConvSpec) -> str | None:
        if spec.direction not in self.directions:
            return f"computes forward passes, not {spec.direction}"
        if spec.dtype not in self.dtypes:
            return f"computes {' and '.join(self.dtypes)}, not {spec.dtype}"
        if spec.ndim not in self.dimensions:
            return f"computes {' and '.join(f'{n}-D' for n in self.dimensions)}, not {spec.ndim}-D"
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """What oneDNN, or torch's im2col, allocates besides y, and a bordered x
        where the padding is not symmetric.
        """
        _, excess = _split(spec.padding)
        x, w, y = (math.prod(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape))
        bordered = spec.batch * spec.in_channels * math.prod(spec.padded_size) if any(map(any, excess)) else 0
        if self._is_onednn(spec, threads):
            copied = self._copied(spec, max(x, bordered), w, y)
        elif math.prod(spec.kernel) == math.prod(spec.stride) == 1 and not any(map(any, spec.padding)):
            copied = w
        else:
            # A call and a result for each group
            copied = w + self._columns(spec, threads) + (y if spec.groups > 1 else 0)
            copied += x if spec.direction == "input_gradient" else 0
        return spec.in_dtype.itemsize * (bordered + copied)

    def _is_onednn(self, spec: ConvSpec, threads: int) -> bool:
        """Whether torch gives the spec to oneDNN: float32, and neither a small image nor 1x1 taps on one
        thread.
        """
        if spec.dtype != "float32":
            return False
        plain = max(spec.stride) == max(spec.dilation) == 1 and spec.batch < 16 and threads == 1
        if plain and set(spec.kernel[-2:]) == {1}:
            return False
        large = math.prod(spec.input_shape) > 20480
        return spec.groups > 1 or spec.batch > 1 or large or (spec.ndim > 1 and min(spec.kernel[-2:]) > 3)

    def _columns(self, spec: ConvSpec, threads: int) -> int:
        """Elements of the im2col matrix of one group, of as many images as torch unfolds at once."""
        each = spec.in_channels // spec.groups * math.prod(spec.kernel) * math.prod(spec.output_size)
        if max(spec.dilation) > 1:
            return each
        return each * (min(spec.batch, threads) if spec.direction == "input_gradient" else spec.batch)

    def _copied(self, spec: ConvSpec, x: int, w: int, y: int) -> int:
        """Elements that oneDNN copies at a call: to blocks of as many channels as a vector has lanes, and
        back.
        """
        block = 16 if vector_extension() == "AVX-512" else 8
        few = spec.in_channels <= 4  # are read as they lie
        blocked_x = 0 if few else x * -(-spec.in_channels // block) * block // spec.in_channels
        blocked_y = y * -(-spec.out_channels // block) * block // spec.out_channels
        return w + (max(blocked_x, blocked_y) if spec.groups > 1 else blocked_x + blocked_y)

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        import torch

        self._configure(threads)
        call = self._call(spec, None if weights is None else self._tensor(weights))
        _, excess = _split(spec.padding)
        border = _flat(excess) if any(map(any, excess)) else ()
        pad = torch.nn.functional.pad

        def run(*operands: Any, out: Any = None) -> Any:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                tensors = [self._tensor(operand) for operand in operands]
                if border and spec.direction != "input_gradient":
                    tensors[0] = pad(tensors[0], border)
                result = self._array(call(*tensors), operands[0])
                if out is None:
                    return result
                out[...] = result
                return out

        return run

    def _call(self, spec: ConvSpec, w: Any) -> Callable[..., Any]:
        """``call(x)``, ``call(grad)`` or ``call(x, grad)`` on tensors, x with the excess of its border."""
        import torch

        both, excess = _split(spec.padding)
        w = None if w is None else self._ordered(w)
        if spec.direction == "forward":
            function = getattr(torch, f"conv{spec.ndim}d")
            return lambda x: function(x, w, None, spec.stride, both, spec.dilation, spec.groups)

        backward = torch.ops.aten.convolution_backward
        rest = (None, spec.stride, both, spec.dilation, False, (0,) * spec.ndim, spec.groups)
        # Only the shape of an absent operand matters
        unread = torch.empty(1, dtype=getattr(torch, spec.dtype))
        if spec.direction == "weight_gradient":
            kernels = unread.expand(spec.weight_shape)
            return lambda x, grad: backward(grad, x, kernels, *rest, (False, True, False))[1]
        image = unread.expand(
            *spec.input_shape[:2], *(n + b + a for n, (b, a) in zip(spec.size, excess, strict=True))
        )
        inside = (..., *(slice(b, b + n) for n, (b, _) in zip(spec.size, excess, strict=True)))
        return lambda grad: self._ordered(backward(grad, image, w, *rest, (True, False, False))[0][inside])

    def _ordered(self, w: Any) -> Any:
        """Weights in the memory order of the layout."""
        import torch

        if self.layout == "nchw":
            return w.contiguous()
        return w.contiguous(memory_format=torch.channels_last if w.ndim == 4 else torch.channels_last_3d)

    def _configure(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def _tensor(self, array: Any) -> Any:
        """The same memory as a tensor."""
        import torch

        return torch.from_numpy(array)

    def _array(self, tensor: Any, like: Any) -> Any:
        """The same memory as an array of the operands' kind."""
        return tensor.numpy()

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        if self._is_onednn(spec, threads):
            speed = 7e10 if inputs > 1 and outputs > 1 else 2.5e10 if spec.groups > 1 else 5e9
        else:
            speed = 2.2e10 if outputs > 1 else 5e8
        return Cost(
            spec.flops, spec.min_bytes + 2 * self.workspace_bytes(spec, threads), calls=6, flops_per_s=speed
        )


@dataclass(frozen=True)
class ChannelsLast(TorchConv):
    """The same with x, w and y channels-last."""

    name: str = "torch_channels_last"
    layout: str = "nhwc"

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def _copied(self, spec: ConvSpec, x: int, w: int, y: int) -> int:
        """Two more orders of w; torch takes a picture of one channel, whose layout is any, for NCHW."""
        if spec.in_channels == 1:
            return super()._copied(spec, x, 2 * w, y)
        return 2 * w + (x if spec.direction == "input_gradient" else 0)

    def _columns(self, spec: ConvSpec, threads: int) -> int:
        """In 3-D of a copy of x as NCHW."""
        return super()._columns(spec, threads) + (math.prod(spec.input_shape) if spec.ndim == 3 else 0)


@dataclass(frozen=True)
class Prepacked(ChannelsLast):
    """The same with the weights in oneDNN's order; calls operators that
    ``torch.compile`` calls and that are private.
    """

    name: str = "torch_prepacked"

    dimensions: ClassVar[tuple[int, ...]] = (2,)
    directions: ClassVar[tuple[str, ...]] = ("forward",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def unavailable(self) -> str | None:
        return super().unavailable() or _broken("torch_prepacked", PROBE_PREPACKED)

    def _call(self, spec: ConvSpec, w: Any) -> Callable[..., Any]:
        import torch

        both, excess = _split(spec.padding)
        size = (*spec.input_shape[:2], *(n + b + a for n, (b, a) in zip(spec.size, excess, strict=True)))
        rest = (both, spec.stride, spec.dilation, spec.groups)
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_convolution_weight(self._ordered(w), *rest, size)
        convolution = torch.ops.mkldnn._convolution_pointwise
        return lambda x: convolution(x, packed, None, *rest, "none", (), "")

    def _is_onednn(self, spec: ConvSpec, threads: int) -> bool:
        return True

    def _copied(self, spec: ConvSpec, x: int, w: int, y: int) -> int:
        return 2 * w


@dataclass(frozen=True)
class TorchCuda(TorchConv):
    """cuDNN, NCHW; operands are ``DeviceTensor`` or CuPy arrays, and so is the result."""

    name: str = "torch_cuda_nchw"
    device: str = "cuda"
    accuracy: str = "normwise"

    directions: ClassVar[tuple[str, ...]] = ("forward",)
    place: ClassVar[str] = "cuda"

    def unavailable(self) -> str | None:
        if reason := super().unavailable():
            return reason
        installed = version("torch") or ""
        return (
            f"torch {installed} is built without CUDA"
            if "+cpu" in installed
            else _broken("torch_on_CUDA", PROBE_CUDA)
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """A guess, as large as the operands: cuDNN takes what the method that it found asks for."""
        _, excess = _split(spec.padding)
        bordered = spec.batch * spec.in_channels * math.prod(spec.padded_size) if any(map(any, excess)) else 0
        return spec.min_bytes + bordered * spec.in_dtype.itemsize

    def _configure(self, threads: int) -> None:
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def _tensor(self, array: Any) -> Any:
        import torch

        return array.tensor if isinstance(array, DeviceTensor) else torch.from_dlpack(array)

    def _array(self, tensor: Any, like: Any) -> Any:
        if isinstance(like, DeviceTensor):
            return DeviceTensor(tensor)
        import cupy

        return cupy.from_dlpack(tensor)

    def to_device(self, array: np.ndarray) -> DeviceTensor:
        import torch

        return DeviceTensor(torch.from_numpy(array).to(self.place))

    def to_host(self, array: Any) -> np.ndarray:
        return self._tensor(array).cpu().numpy()

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize()

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        speed = 1e13 if spec.dtype == "float32" else 3e11
        return Cost(spec.flops, spec.min_bytes, calls=10, flops_per_s=speed, parallel=False)


@dataclass(frozen=True)
class TorchCudaChannelsLast(TorchCuda):
    """The same with x, w and y channels-last."""

    name: str = "torch_cuda_channels_last"
    layout: str = "nhwc"

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)


def _split(padding: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """What torch's padding argument says for both ends of each axis, and what is left over at one."""
    both = tuple(min(pair) for pair in padding)
    return both, tuple((b - n, a - n) for n, (b, a) in zip(both, padding, strict=True))


def _flat(widths: Any) -> tuple[int, ...]:
    """Pairs per axis in the order of ``torch.nn.functional.pad``: the last axis first."""
    return tuple(int(n) for pair in reversed(tuple(widths)) for n in pair)


ALGORITHMS = [TorchConv(), ChannelsLast(), Prepacked(), TorchCuda(), TorchCudaChannelsLast()]
