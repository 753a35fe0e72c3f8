"""Pictures: fitting ones for every kind of records, and the figures behind them."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
from matplotlib.text import Text

from reports.findings.costs import break_even, envelope, errors, picks
from reports.findings.frame import to_frame
from reports.findings.machine import peak
from reports.findings.networks import BEST, BEST_OWN, networks_of
from reports.findings.ranking import ranked
from reports.findings.types import in_order, in_types, typed
from reports.plots import pictures
from reports.words import stretches_text
from tests.record_makers import HOSTILE, MACHINE, PEAKS, layers, record, sweep

ODD = {"flops_per_s": {"float32": {"1": "<b>", "2": -1}}}


@pytest.fixture(autouse=True)
def unrendered(monkeypatch):
    """Drawn, not rendered: the tests of the whole report render."""
    monkeypatch.setattr("reports.plots.render", lambda figure: (b"png", b"svg"))


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("a"), record("b", 2e-3)], {"times-few-t2"}),
        ([record("only")], {"times-few-t2"}),
        (sweep(jitter=(1,)), {"times-t2", "kernels-t2", "winners-t2", "speedup-t2"}),
        (sweep(sizes=(64,)), {"times-t2", "winners-t2", "speedup-t2"}),
        (sweep(kernels=(3,)), {"times-t2", "winners-t2", "speedup-t2"}),
        (layers(8), {"layers-t2", "speedup-layers-t2"}),
        ([*sweep(), *layers(8)], {"times-t2", "kernels-t2", "winners-t2", "speedup-t2", "layers-t2",
                                  "speedup-layers-t2"}),
        ([record(n, t, s) for s in ("1x1x100,1x1x5", "1x1x9x9x9,1x1x3x3x3") for n, t in (("a", 1), ("b", 2))],
         {"times-few-t2"}),
        ([*sweep(sizes=(64,)), *sweep(sizes=(64,), threads=1, machine="m2")],
         {f"{kind}-{m}" for kind in ("times", "winners", "speedup") for m in ("m1-t2", "m2-t1")}),
    ],
    ids=["few", "one", "one-launch", "one-size", "one-kernel", "layers", "mixed", "other-dimensions",
         "two-machines"],
)  # fmt: skip
def test_every_kind_of_records_gets_fitting_pictures(records, expected):
    made, notes = pictures(to_frame(records), {"m1": MACHINE})
    assert {picture.name for picture in made} == expected and not notes
    assert all(picture.title and picture.reading.endswith(".") for picture in made)


def test_pictures_of_two_machines_name_theirs():
    other = MACHINE | {"id": "m2", "cpu": "Other CPU"}
    made, _ = pictures(to_frame([record(), record(machine="m2")]), {"m1": MACHINE, "m2": other})
    assert {picture.section.split(",")[0] for picture in made} == {"Example CPU", "Other CPU"}


def test_too_many_specs_are_paged_and_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr("reports.pictures_specs.ROWS", 8)
    monkeypatch.setattr("reports.scene.PAGES", 2)
    records = [record("a", 1e-3, f"1x{i}x8x8,1x{i}x3x3") for i in range(1, 19)]
    made, notes = pictures(to_frame(records), {})
    assert [p.name for p in made if p.name.startswith("layers")] == ["layers-t2-page1", "layers-t2-page2"]
    assert any("16 of 18 specs" in note for note in notes)


# ---- the roofline and threads ------------------------------------------------------------------------------


def names_of(records, machine=MACHINE, networks=()):
    made, notes = pictures(to_frame(records), {"m1": machine}, networks=networks)
    assert not [note for note in notes if "missing" in note]
    return {picture.name for picture in made}


def test_a_roofline_needs_measured_peaks():
    assert "roofline-t2" not in names_of(sweep())
    assert "roofline-t2" in names_of(sweep(), MACHINE | {"peaks": PEAKS})


@pytest.mark.parametrize("peaks", [None, [], "x", {"flops_per_s": 3}, ODD, HOSTILE[0]])
def test_no_description_of_peaks_breaks_the_report(peaks):
    assert "roofline-t2" not in names_of([record()], MACHINE | {"peaks": peaks})


def test_peaks_between_one_thread_and_all_cores_are_bounded_by_both():
    about = {"peaks": {"flops_per_s": {"float32": {"1": 10.0, "8": 50.0}}}}
    found = [peak(about, "flops_per_s", "float32", threads) for threads in (1, 3, 6, 8, 9)]
    assert found == [10, 30, 50, 50, 50]
    assert peak(about, "flops_per_s", "float64", 1) is None and peak({}, "bytes_per_s", "L2", 1) is None


def test_several_numbers_of_threads_show_their_scaling():
    records = [
        record(name, time_s / n, threads=n) for n in (1, 2, 4) for name, time_s in (("a", 1), ("b", 2))
    ]
    assert "scaling" in names_of(records) and "scaling" not in names_of(records[:2])
    assert "scaling" not in names_of([record("a", threads=1), record("b", threads=2)]), (
        "nobody was measured with both"
    )


# ---- what speed costs --------------------------------------------------------------------------------------


def test_the_front_holds_whoever_is_not_beaten_in_both():
    table = errors(
        ranked(
            to_frame(
                [
                    record("fast", 1.0, max_error=1e-4), record("exact", 2.0, max_error=1e-6),
                    record("both", 1.5, max_error=1e-5), record("worse", 3.0, max_error=1e-4),
                    record("unknown", 0.5), record("whole", 0.1, max_error=0.0),
                ]
            )
        )
    ).set_index("algorithm")  # fmt: skip
    assert set(table.index[table["front"]]) == {"fast", "exact", "both"}
    assert set(table.index) == {"fast", "exact", "both", "worse"}, "no error, no point"
    assert table.loc["exact", "time"] == pytest.approx(20), "the fastest of all counts, whatever its error"
    assert table.loc["exact", "error"] == pytest.approx(1e-6 * 2**24 / 3)


def test_who_is_picked_follows_the_error_that_is_granted_spec_by_spec() -> None:
    made = [record("fast", 1.0, max_error=1e-4), record("exact", 2.0, max_error=1e-6),
            record("fast", 3.0, "24x24,3x3", max_error=1e-4),
            record("exact", 1.0, "24x24,3x3", max_error=1e-6),
            record("beaten", 4.0, "24x24,3x3", max_error=1e-5)]  # fmt: skip
    (first_s, first_error), *_, (last_s, last_error) = found = picks(ranked(to_frame(made)))
    assert len(found) == 2 and first_s == pytest.approx(1.0) and last_s == pytest.approx(2**0.5)
    assert first_error / last_error == pytest.approx(10.0), "of one spec in two, 100 times"


def test_a_problem_in_several_types_has_a_picture_of_them():
    of = "1x1x64x64,1x1x3x3,p1{}".format
    records = [
        record("a", 1e-3, of(""), max_error=1e-6), record("b", 2e-3, of(""), max_error=1e-7),
        record("a", 3e-3, of(",bfloat16"), max_error=1e-2),
        record("b", 4e-3, of(",complex64"), max_error=1e-6),
        record("a", 5e-3, of(",uint8*int8>int32,zp3:0"), max_error=0.0), record("a", 1, "9x9,3x3,int8"),
    ]  # fmt: skip
    made, notes = pictures(to_frame(records), {"m1": MACHINE})
    (picture,) = [picture for picture in made if picture.name.startswith("types")]
    assert not notes and picture.name == "types-t2"
    assert picture.seen == (
        f"{of('')}, from the fastest type on: float32 1.00 ms (a), bfloat16 3.00 ms (a), "
        "complex64 4.00 ms (b), uint8*int8>int32 5.00 ms (a)."
    )
    rows = ranked(to_frame(records))
    (problem,) = in_types(rows)
    table = typed(rows, problem)
    assert table["error"].tolist() == pytest.approx([1e-6 / 3, 1e-7 / 3, 1e-2 / 3, 1e-6 / 6, 0])
    assert in_order(table["dtype"]) == ["bfloat16", "float32", "complex64", "uint8*int8>int32"]
    assert "types-t2" not in names_of(records[:2])


def way(name, prepare_s, median_s):
    return SimpleNamespace(algorithm=name, prepare_s=prepare_s, median_s=median_s)


def test_whoever_takes_least_changes_with_the_number_of_calls():
    ways = [way("lazy", 0, 10), way("middle", 20, 5), way("eager", 100, 1), way("never", 200, 5)]
    ways.append(way("unknown", float("nan"), 0.1))
    stretches = envelope((w.prepare_s, w.median_s, w.algorithm) for w in ways)
    assert [tuple(s) for s in stretches] == [(1, "lazy"), (5, "middle"), (21, "eager")]
    assert stretches_text(stretches) == "lazy; from 5 calls on middle; from 21 calls on eager"
    for calls in range(1, 60):
        least = min(w.prepare_s + calls * w.median_s for w in ways[:4])
        name = [s.algorithm for s in stretches if s.calls <= calls][-1]
        assert next(w.prepare_s + calls * w.median_s for w in ways if w.algorithm == name) == least


def test_break_even_leaves_out_auto_and_imports():
    frame = to_frame(
        [record("a"), record("auto", 1e-9, family="auto", chosen="a"), record("b", 1e-9, origin="elsewhere")]
    )
    (row,) = break_even(frame).to_dict("records")
    assert [s.algorithm for s in row["stretches"]] == ["a"]


def test_prepare_against_run_is_drawn_where_the_winner_changes():
    quick, slow = record("lazy", 1e-3), record("eager", 1e-6)
    slow = slow.with_launches(tuple(type(x)(**{**vars(x), "prepare_s": 1.0}) for x in slow.launches))
    assert "calls-t2" in names_of([quick, slow]) and "calls-t2" not in names_of([quick, record("b", 2.0)])


def test_workspace_seen_outside_the_band_is_named():
    def seen(name, predicted, seen_bytes):
        made = record(name, workspace_bytes=predicted)
        return made.with_launches(
            tuple(type(x)(**{**vars(x), "workspace_seen_bytes": seen_bytes}) for x in made.launches)
        )

    records = [seen("good", 3 << 20, 2 << 20), seen("low", 1 << 20, 2 << 20), seen("high", 9 << 20, 2 << 20)]
    made, _ = pictures(to_frame(records), {"m1": MACHINE})
    reading = next(p.reading for p in made if p.name == "workspace-t2")
    assert "1 of 3 lie in it" in reading and "low" in reading and "high" in reading and "good" not in reading


def crowd():
    """Many algorithms with times and errors close together, most of them on some specs
    only, and quickly changing winners.
    """
    made = []
    for name in range(14):
        for place, k in enumerate((3, 5, 7, 9)):
            if (name + place) % 3:
                one = record(f"algorithm_number_{name}", 1e-4 * 1.01**name,
                             f"1x1x64x64,1x1x{k}x{k},p{k // 2}", max_error=1e-6 * 1.02**name)  # fmt: skip
                prepare_s = 1e-6 * (14 - name) ** (1 + place)
                made.append(
                    one.with_launches(
                        tuple(type(x)(**{**vars(x), "prepare_s": prepare_s}) for x in one.launches)
                    )
                )
    return made


GPU = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06 (dvs-builder)"
    " | Model: NVIDIA H100 80GB HBM3"
)


def longest():
    """Layers of a network with long names, in long times, that some algorithms refuse."""
    spec = "1x{0}x14x14,512x{0}x3x3,s2,p1"
    layers = [(f"features.denseblock{i}.denselayer{i}.conv1", spec.format(64 * i), i) for i in range(1, 7)]
    names = [f"an_algorithm_with_a_long_name_{i}" for i in range(12)]
    return ("timm_network", layers), [
        record(name, 1.234e-4 * (1 + at) * (1 + layer % 3), spec, family="peer" if at % 4 == 0 else "direct")
        for layer, (_, spec, _) in enumerate(layers)
        for at, name in enumerate(names)
        if (at + layer) % 5 or not at
    ]


def test_no_text_stands_on_another_and_none_is_cut(monkeypatch):
    figures = []
    monkeypatch.setattr("reports.plots.render", lambda figure: figures.append(figure) or (b"png", b"svg"))
    network, records = longest()
    about = {"m1": MACHINE | {"peaks": PEAKS, "gpu": GPU}}
    made = [*pictures(to_frame(crowd()), about)[0], *pictures(to_frame(records), about, (), [network])[0]]
    assert {"error-t2", "calls-t2", "roofline-t2", "layers-t2", "network-timm-network-b1-t2"} <= {
        p.name for p in made
    }
    for picture, figure in zip(made, figures, strict=True):
        figure.draw_without_rendering()
        unseen = set()  # labels of ticks that the limits leave out
        for axis in figure.axes:
            low, high = axis.bbox.min - 1, axis.bbox.max + 1
            for side, labels in enumerate((axis.get_xticklabels(), axis.get_yticklabels())):
                middles = [
                    (text, text.get_window_extent().get_points().mean(axis=0)[side]) for text in labels
                ]
                unseen |= {text for text, middle in middles if not low[side] <= middle <= high[side]}
        shown = [
            t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen
        ]
        # Of an annotation the text without its arrow.
        boxes = [(text.get_text(), Text.get_window_extent(text).padded(-1)) for text in shown]
        for (one, a), (other, b) in combinations(boxes, 2):
            assert not a.overlaps(b), f"{picture.name}: {one!r} and {other!r}"
        for one, a in boxes:
            assert figure.bbox.x0 <= a.x0 and a.x1 <= figure.bbox.x1, f"{picture.name}: {one!r} is cut"


# ---- networks ----------------------------------------------------------------------------------------------


NETWORK = (
    "net",
    [("one", "1x8x16x16,8x8x3x3,p1", 1), ("two", "1x8x8x8,8x8x3x3,p1", 3), ("three", "1x8x4x4,8x8x1x1", 1)],
)


def timed(times, batch=4):
    specs = {layer: f"{batch}{spec[1:]}" for layer, spec, _ in NETWORK[1]}
    return [
        record(name, t, specs[layer], family="peer" if name == "peer" else "fft")
        for (name, layer), t in times.items()
    ]


def test_a_network_is_the_sum_of_its_layers_as_often_as_they_occur():
    times = {("a", "one"): 1.0, ("a", "two"): 2.0, ("a", "three"): 3.0, ("b", "one"): 4.0, ("b", "two"): 1.0,
             ("peer", "one"): 9.0, ("peer", "two"): 9.0, ("peer", "three"): 0.5}  # fmt: skip
    (found,) = networks_of(ranked(to_frame(timed(times))), [NETWORK])
    bars = {bar.name: bar for bar in found.bars}
    assert (found.batch, found.missing, found.bars[0].name) == (4, 0, BEST)
    assert bars["a"].time_s == pytest.approx(10) and bars["a"].own == 5
    assert bars[BEST].time_s == pytest.approx(1 + 3 * 1 + 0.5)
    assert bars[BEST_OWN].time_s == pytest.approx(1 + 3 * 1 + 3)
    assert bars["b"].time_s == pytest.approx(4 + 3 * 1 + 3) and bars["b"].own == 4, (
        "one is borrowed from our best"
    )
    assert "network-net-b4-t2" in names_of(timed(times), networks=[NETWORK])


def test_a_network_mostly_measured_says_what_is_missing_and_less_is_none():
    most = timed({("a", "one"): 1.0, ("a", "two"): 2.0})
    made, _ = pictures(to_frame(most), {"m1": MACHINE}, networks=[NETWORK])
    assert "Not measured, and in no bar: 1 of 5 layers" in next(
        p.reading for p in made if p.name.startswith("network")
    )
    assert not networks_of(ranked(to_frame(timed({("a", "one"): 1.0, ("a", "three"): 1.0}))), [NETWORK])
    mixed = timed({("a", "one"): 1.0}, batch=2) + timed({("a", "two"): 2.0}, batch=4)
    assert not [n for n in networks_of(ranked(to_frame(mixed)), [NETWORK]) if n.missing == 0], (
        "batches are not mixed"
    )


# ---- directions --------------------------------------------------------------------------------------------


def test_each_direction_has_its_own_pictures_that_name_it(monkeypatch):
    written = lambda figure: "|".join(text.get_text() for text in figure.findobj(Text)).encode()  # noqa: E731
    monkeypatch.setattr("reports.plots.render", lambda figure: (b"png", written(figure)))
    base = sweep()
    both = [record(r.algorithm, r.launches[0].median_s, f"{r.spec},{direction}", threads=threads)
            for r in base for direction in ("input_gradient", "weight_gradient")
            for threads in (1, 2)]  # fmt: skip
    made, _ = pictures(to_frame([*base, *both]), {"m1": MACHINE})
    ends = {
        "forward": "-t2-forward",
        "input gradient": "-t2-input-gradient",
        "weight gradient": "-t2-weight-gradient",
    }
    for words, end in ends.items():
        mine = [
            p
            for p in made
            if p.section.endswith(f", {words}") and "2 threads" in p.section and "1" not in p.name
        ]
        assert {"times", "winners", "speedup"} <= {
            p.name.removesuffix(end) for p in mine if p.name.endswith(end)
        }
        for picture in mine:
            assert (
                picture.reading.startswith(f"{words.capitalize()}. ")
                and f"|{words}; Example CPU".encode() in picture.svg
            )
    assert {"scaling-input-gradient", "scaling-weight-gradient"} <= {p.name for p in made}
    assert names_of(base) == {
        name.removesuffix("-forward") for name in names_of([*base, *both]) if name.endswith("-t2-forward")
    }


def test_a_network_is_drawn_in_each_direction_it_was_asked_for():
    network, layers = NETWORK
    gradients = (
        f"{network} input gradient",
        [(name, f"{spec},input_gradient", count) for name, spec, count in layers],
    )
    some = [record("a", 1.0, spec) for _, spec, _ in [*layers, *gradients[1]]]
    found = names_of(some, networks=[NETWORK, gradients])
    assert {"network-net-b1-t2", "network-net-input-gradient-b1-t2"} <= found
