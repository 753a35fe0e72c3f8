"""How things look and read everywhere: one colour and marker per algorithm, harmless text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench.text import printable, three_digits

# Okabe and Ito's colours, then Tol's muted ones, light yellows left out; neighbours differ in hue and in lightness.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99",
    "#AA4499", "#117733", "#CC6677", "#8C510A", "#7A7A7A", "#88AADD", "#B2A07A", "#6A3D9A", "#4D4D4D", "#A6761D",
)  # fmt: skip
BLACK = "#000000"  # auto's own
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
# These own a colour each, whatever else was measured: those that win somewhere, and what they are compared with most.
KNOWN = (
    "numba_picture", "im2col_gemm", "fft_fused", "separable", "depthwise", "direct_channels", "winograd_f6", "direct_loops",
    "direct_shift", "direct_pixels", "winograd_f4", "fft", "winograd_f2", "opencv_filter2d", "scipy_correlate2d",
    "numba_direct", "opencv_sepfilter2d", "torch_nchw", "scipy_ndimage_correlate", "scipy_fftconvolve",
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How an algorithm is drawn: solid lines are ours, dashed ones peers, the dotted black one is auto."""

    colour: str
    marker: str
    line: Any


def styles(families: dict[str, str]) -> dict[str, Style]:
    """A style for every name, given its family; no two alike.

    Known names own a colour. A newcomer's is derived from its name, so it stays the same from run to run unless another
    name of the set has it already; beyond the palette colours return with another marker.
    """
    known = [name for name in KNOWN if name in families]
    newcomers = sorted(set(families) - set(known) - {"auto"})
    taken: set[tuple[str, str]] = {(BLACK, "o")}
    used: set[str] = set()
    found = {"auto": Style(BLACK, ".", (0, (1, 2.2)))} if "auto" in families else {}
    for name in [*known, *newcomers]:
        if name in KNOWN:
            start = KNOWN.index(name)
        else:
            start = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:4], "big")
        pairs = [
            (COLOURS[(start + step) % len(COLOURS)], MARKERS[(start + step + turn) % len(MARKERS)])
            for turn in range(len(MARKERS))
            for step in range(len(COLOURS))
        ]
        free = [pair for pair in pairs if pair not in taken] or pairs
        colour, marker = next((pair for pair in free if pair[0] not in used), free[0])
        taken.add((colour, marker))
        used.add(colour)
        found[name] = Style(colour, marker, (0, (4, 1.6)) if families[name] == "peer" else "-")
    return found


def readable_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour``."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#FFFFFF"


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
        about.get("gpu"),
    )
    return clean(", ".join(str(part) for part in parts if part)) or "unknown machine"
