"""The suite ``versus`` and its table: what is in it, what its figures are, and when a target counts as met.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import algos
from algos.spec import ConvSpec
from bench.cli import main
from bench.store import Store
from bench.suites import resolve, suites
from bench.versus import NETWORKS, Work, concerned, works
from bench.work import Layer
from reports.findings.frame import to_frame
from reports.findings.versus import versus
from reports.page import Options, write_report
from reports.versus import versus_table, versus_text
from tests.record_makers import MACHINE, PEAKS, record

SPECS = [ConvSpec.parse(f"1x64x{size}x{size},64x64x3x3,p1") for size in (8, 16, 32)]
LAYERS = tuple(Layer(f"net layer{i}", spec, 1 + i) for i, spec in enumerate(SPECS))
MACHINES = {"m1": {**MACHINE, "peaks": PEAKS}}


def measured(ours: list[float], theirs: list[float], **changes: Any) -> list[Any]:
    """Records of ``auto`` and of two peers, of which the second is slower."""
    records = []
    for spec, our_s, their_s in zip(SPECS, ours, theirs, strict=False):
        records += [
            record("auto", our_s, str(spec), chosen="winograd_f4", family="auto", **changes),
            record("torch_nchw", their_s, str(spec), family="peer", **changes),
            record("torch_channels_last", 2 * their_s, str(spec), family="peer", **changes),
        ]
    return records


def row(records: list[Any], target: float | None = 1.5, worst: float | None = 1.0, summed: bool = False,
        rivals: tuple[str, ...] = ("torch_",)) -> Any:
    work = Work(
        "some layers", "torch" if rivals else "arithmetic peak", LAYERS, target, worst, rivals, summed
    )
    beside = Work("others", "torch", LAYERS[:1], 1.0, None, ("torch_",))  # so that there is something to show
    (first, _) = versus(to_frame(records), [work, beside], MACHINES).itertuples()
    return first


def test_every_layer_of_the_networks_is_in_the_suite() -> None:
    specs = set(resolve(["versus"])[0])
    for name, batch, _ in NETWORKS:
        layers = suites()[name].layers
        assert {layer.spec.with_(batch=batch) for layer in layers} <= specs
        (work,) = (w for w in works() if w.summed and name in w.name)
        assert sum(layer.count for layer in work.layers) == sum(layer.count for layer in layers)
    assert {spec.dtype for spec in specs if spec.in_channels > 1 or spec.out_channels > 1} == {"float32"}
    assert {spec.batch for spec in specs} == {1, 64}


def test_the_kinds_of_work_hold_what_their_names_say() -> None:
    deep, dense, depthwise, *_, pictures, separable, double, double_separable, direct = works()
    assert {(layer.spec.kernel, layer.spec.stride) for layer in deep.layers} == {((3, 3), (1, 1))}
    assert {(1, 1), (5, 5), (7, 7), (11, 11)} <= {layer.spec.kernel for layer in dense.layers}
    assert any(1 < layer.spec.groups < layer.spec.in_channels for layer in dense.layers)
    assert any(layer.spec.in_channels <= 3 for layer in dense.layers)
    assert not {layer.spec for layer in dense.layers} & {
        layer.spec for layer in (*deep.layers, *depthwise.layers)
    }
    assert all(layer.spec.groups == layer.spec.in_channels for layer in depthwise.layers)
    assert {layer.spec.size[0] for layer in pictures.layers} == {256, 512, 1024, 2048}
    assert {layer.spec.kernel[0] for layer in pictures.layers} >= {3, 63}
    assert {layer.spec.rank for layer in (*separable.layers, *double_separable.layers)} == {1}
    assert {layer.spec.dtype for layer in (*double.layers, *double_separable.layers)} == {"float64"}
    assert min(min(layer.spec.in_channels, layer.spec.out_channels) for layer in direct.layers) >= 64


def test_only_rivals_and_hopeful_algorithms_are_measured() -> None:
    """How near the hopeful ones are to each other is for the caches of the
    machine to say; a hundredfold is not.
    """
    specs, settings = resolve(["versus"])
    picture, layer = ConvSpec.parse("1x1x256x256,1x1x3x3,p1"), ConvSpec.parse("1x64x56x56,64x64x3x3,p1")
    assert {picture, layer} <= set(specs) and settings.concerns
    asked = {a.name: (settings.concerns(picture, a), settings.concerns(layer, a)) for a in algos.algorithms()}
    assert asked["auto"] == (True, True)
    assert asked["direct_channels"][1] and asked["numba_picture"][0]
    large = ConvSpec.parse("1x1x1024x1024,1x1x63x63,p31")
    found = [a for a in algos.algorithms(large) if settings.concerns(large, a)]
    assert {"direct_shift", "scipy_correlate2d"}.isdisjoint(a.name for a in found)
    assert {"auto", "fft"} <= {a.family for a in found} and "scipy_fftconvolve" in {a.name for a in found}
    assert not settings.concerns(layer, algos.get("scipy_fftconvolve"))
    assert asked["torch_nchw"] == asked["torch_prepacked"] == (False, True)


def test_hopeless_is_a_few_times_the_best_of_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fft": 3e-3, "fft_fused": 1e-3, "numba_picture": 3.1e-3, "direct_shift": 1.0}
    monkeypatch.setattr("bench.versus._modelled", lambda spec, rival: {} if rival else times)
    large = ConvSpec.parse("1x1x1024x1024,1x1x63x63,p31")
    assert {name for name in times if concerned(large, algos.get(name))} == {"fft", "fft_fused"}
    assert concerned(large, algos.get("scipy_oaconvolve")), "what cannot say how long it takes is measured"


def test_direct_kernels_are_measured_wherever_they_are_held_to_the_peak() -> None:
    for layer in works()[-1].layers:
        assert any(concerned(layer.spec, a) for a in algos.algorithms(layer.spec) if a.family == "direct"), (
            layer
        )


def test_the_mean_is_geometric_and_over_the_best_rival() -> None:
    found = row(measured([1e-3, 1e-3, 1e-3], [1e-3, 2e-3, 4e-3]))
    assert (found.specs, found.of) == (3, 3)
    assert found.mean == pytest.approx(2.0)
    assert found.worst == pytest.approx(1.0) and found.worst_shape == "net layer0"
    assert found.met == "yes"


def test_a_network_is_the_ratio_of_sums_with_every_occurrence() -> None:
    found = row(measured([1e-3, 1e-3, 1e-3], [1e-3, 2e-3, 4e-3]), target=2.8, worst=None, summed=True)
    assert (found.ours_s, found.baseline_s) == (pytest.approx(6e-3), pytest.approx(17e-3))
    assert found.mean == pytest.approx(17 / 6) and found.met == "yes"
    part = row(measured([1e-3, 1e-3], [9e-3, 9e-3]), worst=None, summed=True)
    assert part.specs == 2 and part.met == "" and part.mean != part.mean


@pytest.mark.parametrize(
    ("slowest", "worst", "met"), [(1.01, 1.0, "yes"), (1.4, 1.0, "no"), (1.2, 0.8, "yes"), (1.3, 0.8, "no")]
)
def test_only_as_fast_as_allows_for_the_noise(slowest: float, worst: float, met: str) -> None:
    assert row(measured([1e-3, 1e-3, slowest * 1e-3], [9e-3, 9e-3, 1e-3]), worst=worst).met == met


def test_a_missed_mean_is_not_met() -> None:
    assert row(measured([1e-3] * 3, [1.4e-3] * 3)).met == "no"
    assert row(measured([1e-3] * 3, [1.6e-3] * 3)).met == "yes"


def test_without_a_target_a_ratio_is_only_reported() -> None:
    found = row(measured([1e-3], [2e-3]), target=None, worst=None)
    assert found.mean == pytest.approx(2.0) and found.met == "" and found.note == ""


def test_an_absent_peer_is_named_with_the_reason() -> None:
    records = measured([1e-3] * 3, [2e-3] * 3)
    gone = [record("opencv_filter2d", spec=str(s), status="unavailable", family="peer") for s in SPECS]
    gone = [type(g)(**{**vars(g), "reason": "cv2 is not installed"}) for g in gone]
    found = row(records + gone, rivals=("opencv_",))
    assert (found.specs, found.met, found.note) == (0, "", "cv2 is not installed")
    assert row(records, rivals=("scipy_",)).note == "the peers were not measured"


def test_direct_kernels_are_held_against_the_measured_peak() -> None:
    records = measured([1e-3] * 3, [2e-3] * 3)
    records += [record("direct_channels", s.flops / 90e9, str(s), family="direct") for s in SPECS]
    records += [record("direct_loops", s.flops / 1e9, str(s), family="direct") for s in SPECS]
    found = row(records, target=0.85, worst=None, rivals=())
    assert found.mean == pytest.approx(0.9, rel=1e-6) and found.met == "yes"
    assert row(records, target=0.95, worst=None, rivals=()).met == "no"


def test_threads_and_machines_have_rows_of_their_own() -> None:
    records = measured([1e-3] * 3, [2e-3] * 3) + measured([2e-3] * 3, [2e-3] * 3, threads=1)
    work = Work("some layers", "torch", LAYERS, 1.5, 1.0, ("torch_",))
    rows = versus(to_frame(records), [work], MACHINES)
    assert dict(zip(rows["threads"], rows["met"], strict=True)) == {1: "no", 2: "yes"}
    assert "threads" in versus_table(rows).columns


def test_the_report_holds_the_table_in_every_form(tmp_path: Path) -> None:
    work = Work("some layers", "torch", LAYERS, 1.5, 1.0, ("torch_",))
    write_report(measured([1e-3] * 3, [2e-3] * 3), MACHINES, tmp_path, Options(works=[work]))
    with open(tmp_path / "versus.csv", newline="", encoding="utf-8") as file:
        (cells,) = csv.DictReader(file)
    assert (
        cells["work"] == "some layers"
        and float(cells["mean"]) == pytest.approx(2.0)
        and cells["met"] == "yes"
    )
    for name in ("report.md", "index.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "some layers" in text and "2.00x" in text
    other = tmp_path / "other"
    write_report([record("fft")], MACHINES, other, Options(works=[work]))
    assert not [
        name for name in ("report.md", "index.html") if "Versus" in (other / name).read_text(encoding="utf-8")
    ]
    assert not (other / "versus.csv").exists()


def test_report_prints_the_table_and_peers_are_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(works()[0].layers[1].spec)
    with Store(tmp_path) as store:
        store.put_machine(MACHINES["m1"])
        store.ask(["versus"])
        store.put(record("auto", 1e-3, spec, chosen="winograd_f4", family="auto"))
        store.put(record("torch_nchw", 3e-3, spec, family="peer"))
    assert main(["report", "--out", str(tmp_path), "--baseline", "peers"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 31" in shown and "3.00x" in shown
    assert shown.splitlines()[-1].endswith("index.html")
    with Store(tmp_path / "other") as store:
        store.put(record("fft"))
    assert main(["report", "--out", str(tmp_path / "other"), "--baseline", "peers"]) == 2


def test_own_and_peers_stand_for_algorithms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "1x1x12x12,1x1x3x3", "--algorithms", "direct_shift,own", "--threads", "1"]) == 0
    own = capsys.readouterr().out
    assert main(["check", "1x1x12x12,1x1x3x3", "--algorithms", "peers", "--threads", "1"]) == 0
    peers = capsys.readouterr().out
    assert (
        "numba_direct" in own
        and "auto" not in own
        and "scipy_" not in own
        and own.count("  direct_shift ") == 1
    )
    assert "scipy_fftconvolve" in peers and "numba_direct" not in peers


def test_empty_words() -> None:
    rows = versus(to_frame([record("fft")]), works(), MACHINES)
    assert len(rows) == 0 and "convbench run versus" in versus_text(rows)
