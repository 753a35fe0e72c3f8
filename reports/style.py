"""How things look and read everywhere: one colour and marker per algorithm, harmless text."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench.text import printable, three_digits

# A hue for a family, three shades of it, each with a contrast of 3 or more on white and on the dark page.
HUES = {
    "direct": ("#1666C2", "#4A95EB", "#1D7AE6"), "gemm": ("#BB6605", "#9C5504", "#DD7906"),
    "fft": ("#078E4B", "#06773E", "#09A959"), "separable": ("#903BCE", "#B47ADE", "#A35BD6"),
    "winograd": ("#C5271C", "#E96C63", "#E23F34"), "toeplitz": ("#088897", "#07727E", "#09A2B3"),
    "peer": ("#B72E7E", "#DB6DAD", "#D14597"),
}  # fmt: skip
OTHER = ("#5D6E06", "#849D08", "#6F8407")  # a family that nobody here knows
INK, GREY = "#000000", "#9AA0A6"  # auto's own, and whoever does not stand out
# What is no datum, and how it looks on a dark page; colours of data stay.
DARK = {
    "#000000": "#e3e7ec", "#333333": "#c4ccd4", "#444444": "#c4ccd4", "#666666": "#9aa5b1",
    "#777777": "#9aa5b1", "#888888": "#8b96a2", "#999999": "#7d8894", "#bbbbbb": "#59636e",
    "#d5d5d5": "#4a545f", "#dddddd": "#38414b", "#e3e3e3": "#2b333b", "#f2f2f2": "#1f262d",
    "#ffffff": "#14181d", "#9a1b1b": "#ff8a80", "#0b6b3a": "#5fd394",
}  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
# Where a family begins among them, so that the first of each differ without their colours too.
FIRST_MARKER = {"direct": 0, "gemm": 3, "fft": 5, "separable": 10, "winograd": 8, "toeplitz": 11, "peer": 7}
# These own a look each, whatever else was measured: those that win somewhere, and what they are compared with
# most.
KNOWN = {
    "direct": ("numba_picture", "direct_channels", "depthwise", "direct_pixels", "direct_shift",
               "direct_loops", "numba_direct"),
    "gemm": ("im2col_gemm", "kn2row_gemm", "numba_im2col"),
    "fft": ("fft_fused", "fft", "fft_tiles"),
    "separable": ("separable",),
    "winograd": ("winograd_f4", "winograd_f6", "winograd_f2"),
    "toeplitz": ("toeplitz",),
    "peer": ("torch_nchw", "opencv_filter2d", "scipy_correlate2d", "opencv_sepfilter2d",
             "scipy_ndimage_correlate", "scipy_fftconvolve", "torch_prepacked", "torch_channels_last",
             "scipy_oaconvolve"),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How an algorithm is drawn: solid lines are ours, dashed ones peers, the dotted black one is auto."""

    colour: str
    marker: str
    line: Any


def styles(families: dict[str, str]) -> dict[str, Style]:
    """A style for every name, given its family; no two alike as long as there are looks left in the family.

    A family has one hue; its members differ in marker, and in shade. Known names own a look. A newcomer's is
    derived from its name, so it stays the same from run to run unless another name of the set has it already.
    """
    found = {"auto": Style(INK, ".", (0, (1, 2.2)))} if "auto" in families else {}
    order = [name for names in KNOWN.values() for name in names if name in families]
    taken: set[tuple[str, str]] = set()
    for name in [*order, *sorted(set(families) - set(order) - {"auto"})]:
        family = families[name]
        shades, known = HUES.get(family, OTHER), KNOWN.get(family, ())
        if name in known:
            start = known.index(name)
        else:
            digest = hashlib.sha256(name.encode("utf-8", "replace")).digest()
            start = len(known) + int.from_bytes(digest[:4], "big") % (len(MARKERS) - len(known))
        first = start + FIRST_MARKER.get(family, 2)
        looks = [
            (shades[(start + turn) % len(shades)], MARKERS[(first + step) % len(MARKERS)])
            for turn in range(len(shades))
            for step in range(len(MARKERS))
        ]
        look = next((pair for pair in looks if pair not in taken), looks[0])
        taken.add(look)
        found[name] = Style(*look, (0, (4, 1.6)) if family == "peer" else "-")
    return found


def type_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for every type of elements: one hue for floats, complex numbers and integers with and without a
    sign, another for mixed types.
    """
    hues = {"float": "direct", "bfloat": "direct", "complex": "separable", "int": "gemm", "uint": "fft"}
    counts: dict[str, int] = {}
    found = {}
    for name in names:
        family = hues.get(name.rstrip("0123456789"), "peer")
        at = counts[family] = counts.get(family, -1) + 1
        shades = HUES[family]
        found[name] = Style(shades[at % len(shades)], MARKERS[at % len(MARKERS)], "-")
    return found


def faded(style: Style) -> Style:
    """The same, for one that does not stand out."""
    return Style(GREY, style.marker, style.line)


def readable_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour``; a shade off, so that they stay on a dark page."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000001" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#FFFFFE"


def clean(text: object) -> str:
    """One line without characters that control, change direction or have no glyph."""
    return _cleaned(str(text))


@lru_cache(maxsize=1 << 14)
def _cleaned(text: str) -> str:
    return printable(" ".join(text.split()))


def short(text: object, width: int) -> str:
    """``clean`` text of at most ``width`` characters."""
    line = clean(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def ratio_text(ratio: float | None) -> str:
    """1.234 -> 1.23x; - where there is none."""
    return "-" if ratio is None or not math.isfinite(ratio) else f"{three_digits(ratio)}x"


def machine_text(identity: str, machines: dict[str, dict]) -> str:
    """The machine in a line: CPU, cores, SIMD, GPU."""
    about = machines.get(identity, {})
    parts: Iterable[object] = (
        about.get("cpu") or "unknown machine",
        f"{about['cores']} cores" if about.get("cores") else "",
        about.get("simd"),
        _device_text(str(about.get("gpu") or "")),
    )
    return clean(", ".join(str(part) for part in parts if part)) or "unknown machine"


def _device_text(gpu: str) -> str:
    """``NVIDIA H100 80GB HBM3`` of the driver's lines: its model, not the build of the driver."""
    models = dict.fromkeys(" ".join(m.split()) for m in re.findall(r"Model:([^|]*)", gpu))
    return ", ".join(models) or short(gpu.partition("|")[0], 40)
