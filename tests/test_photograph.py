"""The photograph and the named kernels: those of the lectures, and every picture algorithm right on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import algos
from algos.engine.outer import numerical_rank
from bench.check import check
from bench.oracle import oracle
from bench.photograph import NAMED, filters, gabor, gaussian, photograph

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slides.json").read_text())


def test_named_kernels_are_those_of_the_lectures() -> None:
    lectures = {name: kernel for name, kernel in GOLDEN["named_kernels"].items() if name != "gabor"}
    assert {name: [list(row) for row in kernel] for name, kernel in NAMED.items()} == lectures


def test_the_photograph_is_a_picture() -> None:
    picture = photograph()
    assert picture.shape == (600, 512) and 0 <= picture.min() < 30 and 200 < picture.max() <= 255


def test_kernels_do_what_their_names_say() -> None:
    spec = algos.ConvSpec.parse("1x1x600x512,5x1x3x3,p1,float64")
    y = dict(zip(NAMED, oracle(spec, *filters(spec))[0], strict=True))
    assert abs(y["edge_8"][1:-1, 1:-1].mean()) < 1 < np.abs(y["edge_8"]).mean()
    assert np.allclose(y["blur_box"][5, 5], photograph()[4:7, 4:7].sum())
    assert np.corrcoef(y["sobel_vertical"].ravel(), y["sobel_horizontal"].ravel())[0, 1] < 0.5
    assert numerical_rank(gaussian(9, 9)[None, None], np.dtype(float)) == 1 and gaussian(
        9, 7
    ).sum() == pytest.approx(1)
    assert numerical_rank(gabor(9, 9)[None, None], np.dtype(float)) > 1


def test_what_is_only_wrong_on_a_photograph_is_wrong() -> None:
    """Values beyond any seeded normal: a clip that the normals never meet."""
    from dataclasses import dataclass
    from typing import Any

    @dataclass(frozen=True)
    class Clipped(algos.Algorithm):
        name: str = "clipped"
        family: str = "direct"

        def unsupported(self, spec: algos.ConvSpec) -> str | None:
            return None

        def workspace_bytes(self, spec: algos.ConvSpec, threads: int = 1) -> int:
            return 0

        def prepare(self, spec: algos.ConvSpec, weights: Any, threads: int = 1) -> Any:
            right = algos.get("direct_shift").prepare(spec, weights, threads)
            return lambda x, out=None: right(np.where(np.isfinite(x), np.clip(x, -200, 200), x), out)

    verdict = check("1x1x64x64,1x1x5x5,p2", Clipped())
    assert not verdict.ok and "images of 2^" in verdict.reason  # as large numbers as a type has show it first
    layer = check("1x4x64x64,4x4x5x5,p2", Clipped())  # no picture
    assert not layer.ok and "images of 2^" in layer.reason
