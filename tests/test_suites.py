"""Suites: the totals that their papers state, and targets that name what to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from algos.spec import ConvSpec
from bench.suites import resolve, suites, sweep


@pytest.mark.parametrize(
    ("name", "giga", "count"),
    [("vgg16", 15.35, 13), ("resnet50_v1_5", 4.09, 53), ("xnnpack_mobilenetv2", 0.30, None), ("alexnet_owt", 0.66, 5),
     ("mobilenet_v1_pw", 0.55, 15)],
)
def test_totals_are_those_of_the_literature(name: str, giga: float, count: int | None) -> None:
    suite = suites()[name]
    assert round(suite.macs / 1e9, 2) == giga
    assert count is None or sum(layer.count for layer in suite.layers) == count


def test_every_suite_parses_and_names_its_source() -> None:
    assert len(suites()) > 50
    for suite in suites().values():
        assert suite.source and suite.layers
        for layer in suite.layers:
            assert ConvSpec.parse(str(layer.spec)) == layer.spec


def test_flat_rows_are_one_dimensional() -> None:
    assert {layer.spec.ndim for layer in suites()["wavenet_1d"].layers} == {1}
    assert {layer.spec.ndim for layer in suites()["xnnpack_mobilenetv2"].layers} == {2}


def test_sweeps_keep_the_size_when_the_template_does() -> None:
    specs = sweep([(64,), (48, 32)], [(3,), (1, 7)])
    assert [str(s) for s in specs] == [
        "1x1x64x64,1x1x3x3,p1", "1x1x64x64,1x1x1x7,p0x3", "1x1x48x32,1x1x3x3,p1", "1x1x48x32,1x1x1x7,p0x3"
    ]
    assert sweep([(16,)], [(5,)], "2x8x9x9,4x8x3x3,s2,float64,rank2")[0].output_size == (6, 6)


def test_targets_are_suites_specs_and_files(tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    file.write_text("spec\n\"9x9,3x3\"\n\"8x8,3x3\"\n")
    specs, _ = resolve(["9x9,3x3", str(file)], batch=3)
    assert [str(s) for s in specs] == ["3x1x9x9,1x1x3x3", "3x1x8x8,1x1x3x3"]
    assert resolve(["quick"])[1].launches == 2
    file.write_text("spec\n\"9x9,3x3\"\n\"8x8,9x9\"\n")
    with pytest.raises(ValueError, match=r"two\.csv line 3"):
        resolve([str(file)])
    for text, says in (("", "no specs"), ("a\n1\n", "no column")):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            resolve([str(file)])
