"""The networks that the suite knows, layer by layer, with the names that torchvision gives their weights.

Sources: the X/O network, Rohrer's "How convolutional neural networks work" as in the lecture slides; LeNet-5
as the slides draw it; AlexNet, Krizhevsky 2014 (one tower, arXiv:1404.5997); VGG-16, arXiv:1409.1556;
ResNet, arXiv:1512.03385, whose stride stands in the 3x3 layers (v1.5); MobileNetV2, arXiv:1801.04381; U-Net,
arXiv:1505.04597, with padding, so that nothing is cropped, and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from algos.grammar import meant
from bench.networks.builder import Builder
from bench.networks.graph import Network, NetworkError


def network(name: str, size: int | None = None) -> Network:
    """The network of that name, for pictures of its usual size or of another.

    Raises
    ------
    NetworkError
        For a name that is none, or a size that its layers cannot take.
    """
    if name not in NETWORKS:
        raise NetworkError(f"{name!r} is no network: {meant(name, NETWORKS, 'use ' + ', '.join(NETWORKS))}")
    return NETWORKS[name]() if size is None else NETWORKS[name](size)


@cache
def xo(size: int = 9) -> Network:
    """A cross or a circle: three features of 3x3, as the slides' picture has them."""
    b = Builder("xo", (1, size, size))
    b.conv(3, 3, name="conv1")
    b.relu()
    b.max_pool(2, ceil=True)
    b.conv(6, 3, padding=1, name="conv2")
    b.relu()
    b.max_pool(2, ceil=True)
    b.dense(2, name="fc")
    return b.network()


@cache
def lenet5(size: int = 28) -> Network:
    b = Builder("lenet5", (1, size, size))
    for name, channels in (("conv1", 20), ("conv2", 50)):
        b.conv(channels, 5, padding=2, name=name)
        b.relu()
        b.max_pool(2)
    b.dense(500, name="fc1")
    b.relu()
    b.dense(10, name="fc2")
    return b.network()


@cache
def alexnet(size: int = 224) -> Network:
    b = Builder("alexnet", (3, size, size))
    layers = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
    for at, channels, kernel, stride, padding in layers:
        b.conv(channels, kernel, stride, padding, name=f"features.{at}")
        b.relu()
        if at in (0, 3, 10):
            b.max_pool(3, 2)
    return _classified(b, (1, 4, 6))


@cache
def vgg16(size: int = 224) -> Network:
    b, at = Builder("vgg16", (3, size, size)), 0
    for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            b.conv(channels, 3, padding=1, name=f"features.{at}")
            b.relu()
            at += 2
        b.max_pool(2)
        at += 1
    return _classified(b, (0, 3, 6))


def _classified(b: Builder, places: Sequence[int]) -> Network:
    first, second, last = (f"classifier.{at}" for at in places)
    b.dense(4096, name=first)
    b.relu()
    b.dense(4096, name=second)
    b.relu()
    b.dense(1000, name=last)
    return b.network()


def _normed(b: Builder, channels: int, kernel: int, stride: int = 1, *, groups: int = 1, of: str = "",
            names: tuple[str, str], activation: str = "") -> str:  # fmt: skip
    """A convolution that keeps the size but for its stride, its normalisation and what follows."""
    b.conv(channels, kernel, stride, kernel // 2, groups=groups, bias=False, of=of, name=names[0])
    b.batch_norm(name=names[1])
    return b.activation(activation) if activation else b.last


def _resnet(name: str, blocks: Sequence[int], wide: bool, size: int) -> Network:
    """``wide`` blocks narrow by 1x1 before their 3x3 and widen fourfold after it."""
    b = Builder(name, (3, size, size))
    _normed(b, 64, 7, 2, names=("conv1", "bn1"), activation="relu")
    b.max_pool(3, 2, 1)
    have = 64
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at, channels = f"layer{stage}.{block}", 32 << stage
            stride = 2 if stage > 1 and block == 0 else 1
            out = 4 * channels if wide else channels
            layers = [(channels, 1, 1), (channels, 3, stride), (out, 1, 1)] if wide else [
                (channels, 3, stride), (out, 3, 1)]  # fmt: skip
            x = b.last
            for number, (width, kernel, step) in enumerate(layers, 1):
                _normed(b, width, kernel, step, names=(f"{at}.conv{number}", f"{at}.bn{number}"),
                        activation="relu" if number < len(layers) else "")  # fmt: skip
            y = b.last
            if stride > 1 or have != out:
                x = _normed(b, out, 1, stride, of=x, names=(f"{at}.downsample.0", f"{at}.downsample.1"))
            b.add(y, x, name=f"{at}.add")
            b.relu(name=at)
            have = out
    b.global_average()
    b.dense(1000, name="fc")
    return b.network()


@cache
def resnet18(size: int = 224) -> Network:
    return _resnet("resnet18", (2, 2, 2, 2), False, size)


@cache
def resnet50(size: int = 224) -> Network:
    return _resnet("resnet50", (3, 4, 6, 3), True, size)


@cache
def mobilenet_v2(size: int = 224) -> Network:
    b, have, at = Builder("mobilenet_v2", (3, size, size)), 32, 1
    _normed(b, have, 3, 2, names=("features.0.0", "features.0.1"), activation="relu6")
    for factor, channels, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            x, prefix, hidden = b.last, f"features.{at}.conv", have * factor
            stride, part = first if block == 0 else 1, 0
            if factor > 1:
                _normed(b, hidden, 1, names=(f"{prefix}.0.0", f"{prefix}.0.1"), activation="relu6")
                part = 1
            names = f"{prefix}.{part}.0", f"{prefix}.{part}.1"
            _normed(b, hidden, 3, stride, groups=hidden, names=names, activation="relu6")
            _normed(b, channels, 1, names=(f"{prefix}.{part + 1}", f"{prefix}.{part + 2}"))
            if stride == 1 and have == channels:
                b.add(b.last, x, name=f"features.{at}.add")
            have, at = channels, at + 1
    _normed(b, 1280, 1, names=("features.18.0", "features.18.1"), activation="relu6")
    b.global_average()
    b.dense(1000, name="classifier.1")
    return b.network()


@cache
def unet(size: int = 256, channels: int = 64) -> Network:
    b = Builder("unet", (1, size, size))

    def twice(name: str, width: int) -> str:
        for part in ("1", "2"):
            _normed(b, width, 3, names=(f"{name}.conv{part}", f"{name}.norm{part}"), activation="relu")
        return b.last

    levels = []
    for level in range(4):
        levels.append(twice(f"encoder{level + 1}", channels << level))
        b.max_pool(2)
    twice("bottleneck", channels << 4)
    for level in reversed(range(4)):
        up = b.transposed(channels << level, 2, 2, name=f"upconv{level + 1}")
        b.concat(up, levels[level])
        twice(f"decoder{level + 1}", channels << level)
    b.conv(2, 1, name="conv")
    return b.network()


NETWORKS: dict[str, Callable[..., Network]] = {
    "xo": xo, "lenet5": lenet5, "alexnet": alexnet, "vgg16": vgg16, "resnet18": resnet18,
    "resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "unet": unet,
}  # fmt: skip
