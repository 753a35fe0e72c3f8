"""Films as pictures: each plane of a 3-D problem's result is the picture that a 2-D problem computes."""

from __future__ import annotations

from functools import lru_cache

from algos.spec import ConvSpec


@lru_cache(maxsize=1024)
def as_pictures(spec: ConvSpec) -> ConvSpec:
    """A film's planes as images, its taps along the depth as many times the channels; others as they are."""
    if spec.ndim < 3:
        return spec
    return spec.with_(batch=spec.batch * spec.output_size[0], in_channels=spec.in_channels * spec.kernel[0],
                      size=spec.size[1:], kernel=spec.kernel[1:], stride=spec.stride[1:],
                      dilation=spec.dilation[1:], padding=spec.padding[1:])  # fmt: skip


def joined(spec: ConvSpec) -> int | None:
    """The first of two neighbouring axes of a film along which nothing is summed: they are one, without what
    their strides skip.
    """
    plain = [one == (1, (0, 0)) for one in zip(spec.kernel, spec.padding, strict=True)]
    return next((first for first in (1, 0) if plain[first] and plain[first + 1]), None)


def better_joined(spec: ConvSpec) -> str | None:
    """Why a film is better taken for a picture, of which no plane is read twice; None where it is not."""
    if spec.ndim < 3 or (first := joined(spec)) is None or max(spec.stride[first : first + 2]) > 1:
        return None
    return "two axes of it are one"
