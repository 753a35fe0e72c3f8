"""Reports: ties are ties, the winner deserves it, hostile text stays text, every file is whole, machines stay apart."""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.record import Launch, Record
from reports import tables
from reports.frame import DEFAULT_NOISE, auto_results, needed_ratio, noise, ranked, speed_ups, to_frame, winners
from reports.page import write_report
from reports.plots import pictures
from reports.style import COLOURS, KNOWN, clean, readable_on, styles, time_text

SPEC = "1x1x64x64,1x1x3x3,p1"
MACHINE = {"id": "m1", "cpu": "Example CPU", "cores": 2, "simd": "AVX2", "caches_bytes": {"L1d": 32768}}
JITTER = (1.0, 1.01, 0.99)  # launches of one case
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "a|b\nnew line`code`[x](http://example.org)",
    "$\\alpha$ \x1b[31mred\x07 \u202eflipped",
    "_leading_underscore",
    "ünïcode 日本語",
    "name_of_more_than_one_hundred_characters_" * 3,
)


def record(algorithm="fft", time_s=1e-3, spec=SPEC, jitter=JITTER, status="ok", **changes):
    """A record whose launches took ``time_s`` times ``jitter``."""
    first = changes.pop("first_run_s", None)
    first = first or 1.5 * time_s
    launches = tuple(
        Launch(i, f"2025-01-01T10:00:0{i}+00:00", (time_s * factor,) * 5, 3, 0.2, 1e-4, first)
        for i, factor in enumerate(jitter)
    )
    values = {"threads": 2, "machine": "m1", "build": "b1", "family": "fft", "error_ratio": 0.1, "workspace_bytes": 4096}
    values |= {"launches": launches} if status == "ok" else {"reason": "it differs", "error_ratio": None}
    return Record(spec=spec, algorithm=algorithm, status=status, **(values | changes))


def sweep(names=("fft", "numba_direct", "im2col_gemm"), sizes=(64, 256), kernels=(3, 7), **changes):
    """A small grid in which every algorithm wins somewhere."""
    return [
        record(name, 1e-9 * s * s * k * (1 + (i + s // 64 + k) % len(names)), f"1x1x{s}x{s},1x1x{k}x{k},p{k // 2}", **changes)
        for s in sizes
        for k in kernels
        for i, name in enumerate(names)
    ]


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


# ---- the frame -------------------------------------------------------------------------------------------------


def test_the_launch_is_the_unit_of_the_median():
    taken = [(1, 1, 9), (2, 2, 2), (3, 3, 0.1)]
    launches = tuple(Launch(i, "2025", samples, 1, 0.1, 0.1, 0.1) for i, samples in enumerate(taken))
    row = to_frame([record(launches=launches)]).iloc[0]
    assert (row.median_s, row.low_s, row.high_s, row.launch_count, row.sample_count) == (2, 1, 3, 3, 9)


def test_the_frame_knows_the_spec_and_the_rate():
    row = to_frame([record(spec="2x8x32x30,4x4x3x5,s2,p1", time_s=1e-3, jitter=(1,))]).iloc[0]
    assert (row.batch, row.channels, row.out_channels, row.groups) == (2, 8, 4, 2)
    assert (row["size"], row.kernel, row.height, row.width, row.stride) == ("32x30", "3x5", 32, 30, "2x2")
    assert row.gflops == pytest.approx(row.flops / 1e6)
    assert math.isnan(row.noise)


def test_specs_that_differ_in_size_and_kernel_only_are_one_sweep():
    frame = to_frame([*sweep(), record(spec="1x1x64x64,1x1x3x3,p1,rank1"), record(spec="1x1x64x64,1x1x3x3")])
    assert frame["sweep"].nunique() == 3


def test_an_imported_name_that_is_no_spec_is_kept_and_never_competes():
    frame = to_frame([record(spec="test_fft[big]", origin="pytest-benchmark"), record()])
    assert list(frame["valid"]) == [False, True]
    assert list(winners(frame)["spec"]) == [SPEC]


def test_first_runs_that_do_the_work_of_prepare_are_flagged():
    def flagged(**changes):
        return bool(to_frame([record(**changes)])["prepare_cheats"].iloc[0])

    assert flagged(time_s=1e-4, first_run_s=0.3)
    assert not flagged(time_s=1e-4, first_run_s=4e-4)
    assert not flagged(time_s=1e-6, first_run_s=9e-4), "under a millisecond anything may happen"
    large = "1x64x224x224,64x64x3x3,p1"
    assert not flagged(time_s=1e-3, first_run_s=25e-3, spec=large), "page faults of a fresh output of 13 MB"
    assert flagged(time_s=1e-3, first_run_s=0.5, spec=large)


def test_one_slow_launch_is_bad_luck_not_cheating():
    launches = tuple(Launch(i, "2025", (1e-4,), 1, 0.1, 0.1, first) for i, first in enumerate([0.5, 2e-4, 2e-4]))
    assert not to_frame([record(launches=launches)])["prepare_cheats"].iloc[0]


def test_a_newer_build_supersedes_the_older_one():
    frame = to_frame([record("fft", 1e-4, build="old"), record("fft", 3e-3, build="new"), record("separable", 1e-3)])
    assert list(winners(frame)["winner"]) == ["separable"]
    assert "older build" in tables.records_table(frame).text()


# ---- winners and ties ------------------------------------------------------------------------------------------


def test_a_lead_within_the_noise_is_a_tie_and_beyond_it_a_win():
    near = winners(to_frame([record("a", 1e-3), record("b", 1.01e-3), record("c", 5e-3)])).iloc[0]
    assert near.tie and near.tied == ("a", "b")
    far = winners(to_frame([record("a", 1e-3), record("b", 1.5e-3), record("c", 5e-3)])).iloc[0]
    assert not far.tie and (far.winner, far.runner_up, far.tied) == ("a", "b", ("a",))
    assert far.margin == pytest.approx(1.5) and far.needed < 1.5


def test_noisy_records_tie_where_quiet_ones_win():
    quiet = [record(n, t, jitter=(1, 1.001, 0.999)) for n, t in (("a", 1.0), ("b", 1.05), ("c", 9.0))]
    noisy = [record(n, t, jitter=(1, 1.2, 0.8)) for n, t in (("a", 1.0), ("b", 1.05), ("c", 9.0))]
    assert not winners(to_frame(quiet)).iloc[0].tie
    assert winners(to_frame(noisy)).iloc[0].tie


def test_a_records_own_spread_counts_beside_the_pooled_noise():
    calm = [record(f"x{i}", 2.0, jitter=(1, 1.001, 0.999)) for i in range(30)]
    shaky = to_frame([*calm, record("a", 1.0, jitter=(1, 1.6, 0.7)), record("b", 1.2, jitter=(1, 1.5, 0.6))])
    assert winners(shaky).iloc[0].tied == ("a", "b")


def test_more_launches_need_a_smaller_lead():
    def error(count):
        return ranked(to_frame([record(n, 1.0, jitter=(1.02, 0.98) * (count // 2)) for n in "abcd"]))["error"].max()

    assert error(10) < error(4) < error(2)
    assert needed_ratio(0, 0) > 1, "no lead below a percent is one"


def test_one_launch_is_judged_by_the_stated_default():
    frame = to_frame([record("a", 1.0, jitter=(1,)), record("b", 1.15, jitter=(1,)), record("c", 2.0, jitter=(1,))])
    (value,) = noise(frame).values()
    assert not value.measured and value.sigma == DEFAULT_NOISE and "5% is assumed" in value.text()
    assert winners(frame).iloc[0].tied == ("a", "b")
    assert "assumed" in tables.winners_text(frame)


def test_auto_beside_its_choice_measures_the_noise():
    specs = [f"1x1x{s}x{s},1x1x3x3" for s in (16, 32, 64, 128)]
    records = [record("fft", 1.0, spec=s, jitter=(1,)) for s in specs]
    for spec, time_s in zip(specs, (1.1, 0.9, 1.1, 0.9), strict=True):
        records.append(record("auto", time_s, spec=spec, family="auto", chosen="fft", jitter=(1,)))
    (value,) = noise(to_frame(records)).values()
    assert value.measured and value.pair_count == 4 and 0.05 < value.pairs < 0.15


def test_wrong_imported_and_auto_records_never_win():
    frame = to_frame(
        [
            record("wrong_one", status="wrong"),
            record("import_one", 1e-9, origin="pytest-benchmark"),
            record("auto", 1e-8, family="auto", chosen="slow"),
            record("slow", 1.0),
        ]
    )
    row = winners(frame).iloc[0]
    assert (row.winner, row.contenders, row.runner_up) == ("slow", 1, "") and math.isnan(row.margin)
    assert "only one" in tables.winners_text(frame)
    assert "wrong_one" in tables.exclusions_table(frame).text()
    assert "imported from pytest-benchmark" in tables.records_table(frame).text()


def test_peers_compete_and_are_marked():
    frame = to_frame([record("scipy_x", 1.0, family="peer"), record("fft", 2.0)])
    row = winners(frame).iloc[0]
    assert (row.winner, row.best_own, row.best_peer, row.peer) == ("scipy_x", "fft", "scipy_x", True)
    assert row.own_over_peer == pytest.approx(0.5)
    assert "scipy_x (peer)" in tables.winners_text(frame)


def test_machines_threads_and_caches_are_kept_apart():
    frame = to_frame(
        [
            record("a", 1.0), record("b", 2.0), record("a", 4.0, machine="m2"), record("b", 3.0, machine="m2"),
            record("b", 0.1, threads=1), record("a", 0.01, cold=True),
        ]
    )  # fmt: skip
    found = winners(frame)
    assert list(found["winner"]) == ["a", "b", "b", "a"]
    assert list(found["machine"]) == ["m1", "m2", "m1", "m1"]
    text = tables.winners_text(frame)
    assert "m2" in text and "cold" in text and "threads" in text


def test_the_best_tunables_stand_for_an_algorithm():
    frame = to_frame([record("a", 1.0, tunables='{"t": 1}'), record("a", 0.5, tunables='{"t": 2}'), record("b", 0.7)])
    row = winners(frame).iloc[0]
    assert (row.winner, row.runner_up, row.median_s) == ("a", "b", pytest.approx(0.5))


def test_auto_is_judged_against_our_best_and_against_its_own_choice():
    frame = to_frame(
        [record("auto", 2.0, family="auto", chosen="a"), record("a", 2.02), record("b", 1.0), record("p", 0.1, family="peer")]
    )
    row = auto_results(frame).iloc[0]
    assert (row.chosen, row.best, row.behind) == ("a", "b", True)
    assert row.ratio == pytest.approx(2.0) and row.chosen_ratio == pytest.approx(2 / 2.02)


def test_the_baseline_is_the_best_of_the_named_on_each_spec():
    other = "1x1x64x64,1x1x5x5,p2"
    records = [record("a", 1.0), record("b", 2.0), record("c", 0.5)]
    records += [record("a", 4.0, other), record("b", 3.0, other), record("c", 1.0, other)]
    table, label = speed_ups(to_frame(records), ["a", "b"])
    ours = table[table["algorithm"] == "c"].set_index("spec")["speed_up"]
    assert ours[SPEC] == pytest.approx(2) and ours[other] == pytest.approx(3) and label == "best of a, b"
    with pytest.raises(ValueError, match="'nobody' was not measured: choose from a, b, c"):
        speed_ups(to_frame(records), ["nobody"])


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ({"p": "peer", "fft": "fft"}, "p"),
        ({"direct_shift": "direct", "fft": "fft"}, "direct_shift"),
        ({"slow": "fft", "fast": "fft"}, "the slowest"),
    ],
)
def test_the_default_baseline_is_sensible(names, label):
    records = [record(n, 1.0 if n in ("slow", "p") else 0.5, family=f) for n, f in names.items()]
    assert speed_ups(to_frame(records))[1] == label


# ---- looks -----------------------------------------------------------------------------------------------------


def test_every_algorithm_has_a_colour_of_its_own_and_no_two_look_alike():
    families = dict.fromkeys([*KNOWN, "auto"], "direct")
    look = styles(families)
    assert len({style.colour for style in look.values()}) == len(families)
    many = styles(families | {f"new_{i}": "fft" for i in range(60)})
    assert len({(style.colour, style.marker) for style in many.values()}) == len(many)
    assert {name: many[name] for name in families} == look, "newcomers don't change the colours of the others"
    assert styles({"new_1": "fft"})["new_1"] == styles({"new_1": "fft", "fft": "fft"})["new_1"]
    assert all(readable_on(colour) in ("#000000", "#FFFFFF") for colour in COLOURS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-9, "1.23 ns"), (45.64e-6, "45.6 us"), (0.9996e-3, "1.00 ms"), (0.123, "123 ms"), (1, "1.00 s"),
     (1234, "1234 s"), (0, "0 ns"), (math.nan, "-"), (None, "-")],
)  # fmt: skip
def test_times_are_read_by_people(seconds, text):
    assert time_text(seconds) == text


def test_text_tables_are_aligned():
    lines = tables.winners_table(to_frame(sweep())).text().splitlines()
    assert lines[1].replace("-", "").strip() == ""
    starts = [i for i in range(1, len(lines[1])) if lines[1][i - 2 : i + 1] == "  -"]
    assert all(line[i - 1] == " " for line in lines for i in starts if len(line) > i)


def test_json_holds_no_nan_and_plain_values():
    frame = to_frame([record("a", jitter=(1,))])
    text = json.dumps(tables.winners_dicts(frame), allow_nan=False)
    assert json.loads(text)[0]["margin"] is None and json.loads(text)[0]["tied"] == ["a"]


def test_regret_is_shown_or_said_to_be_missing():
    assert "Not computed" in tables.regret_table(None).text()
    row = {"source": "nearest", "specs": 9, "geometric_mean": 1.04, "worst": 2.5, "worst_spec": SPEC}
    shown = tables.regret_table([row]).text()
    assert "1.04x" in shown and "2.50x" in shown and SPEC in shown


# ---- escaping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), ("\t=x", "'=x"), ("\rx", "'x"), (" =x", "'=x"),
     ("-1.5e-3", "-1.5e-3"), (-1.5, -1.5), ("plain", "plain"), (math.nan, ""), ("a\x00b\x1b", "ab"), (None, "")],
)  # fmt: skip
def test_csv_cells_are_no_formulas(cell, written):
    assert tables.csv_cell(cell) == written


def test_markdown_cells_stay_one_cell():
    written = tables.markdown_text("a|b\n<b>`c` *d* [e](f) my_name_x _g_")
    assert "\n" not in written and "<" not in written
    assert all(part in written for part in ("\\|", "\\`", "my_name_x \\_g\\_"))


def test_hostile_text_is_shown_as_text(tmp_path):
    machine = {"id": "m1", "cpu": HOSTILE[0], "note": HOSTILE[1], "versions": {HOSTILE[2]: HOSTILE[3]}}
    specs = (SPEC, "1x1x32x32,1x1x3x3,p1")
    records = [record(name, (i + 1) * 1e-4, spec) for spec in specs for i, name in enumerate(HOSTILE)]
    records += [record(name, status="crashed", reason=name, spec="1x1x8x8,1x1x3x3") for name in HOSTILE]
    records += [record("x", spec=name, origin=name) for name in HOSTILE]
    records += [record("elsewhere", machine=HOSTILE[1]), record("tuned", tunables=HOSTILE[0], chosen=HOSTILE[0])]
    regret = [{"source": HOSTILE[0], "worst_spec": HOSTILE[1]}]
    page = write_report(records, {"m1": machine}, tmp_path, command=HOSTILE[0], regret=regret)
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert all(value.startswith(("data:", "#")) for name, value in parsed.attributes if name in ("src", "href"))
    assert any(HOSTILE[0] in text for text in parsed.text)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.split("## How to reproduce")[0] and "<img" not in markdown
    widths = {}
    for number, line in enumerate(markdown.splitlines()):
        if line.startswith("|"):
            bars = line.replace("\\|", "").count("|")
            assert bars == widths.get(number - 1, bars)
            widths[number] = bars
    for row in csv.reader(io.StringIO((tmp_path / "records.csv").read_text(encoding="utf-8"))):
        assert not any(cell.startswith(("=", "+", "@")) or (cell.startswith("-") and not cell[1:2].isdigit()) for cell in row)
        assert all(cell == clean(cell) for cell in row)
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".md", ".csv", ".png", ".svg"}
    assert all(path.name.isascii() and " " not in path.name for path in tmp_path.iterdir())


# ---- the report ------------------------------------------------------------------------------------------------


def test_the_report_is_whole_and_self_contained(tmp_path):
    from matplotlib.image import imread

    frame_records = [*sweep(), record("scipy_x", 1e-2, family="peer"), record("broken", status="wrong")]
    page = write_report(frame_records, {"m1": MACHINE}, tmp_path / "deep" / "report", command="convbench run quick")
    assert page == tmp_path / "deep" / "report" / "index.html"
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "report.md", "records.csv"} <= names
    for kind in ("times", "winners", "speedup"):
        assert {f"{kind}-t2.png", f"{kind}-t2.svg"} <= names
    for path in page.parent.glob("*.png"):
        assert imread(path).shape[0] > 200
    for path in page.parent.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/svg+xml;base64,") == len(list(page.parent.glob("*.svg")))
    for heading in (
        "Winners", "Plots", "The picker's regret", "All records", "What was excluded, and why", "Machine",
        "How times were taken", "How to reproduce a row",
    ):  # fmt: skip
        assert f">{heading}</h2>" in text
    assert "Example CPU" in text and "convbench run quick" in text and "broken" in text
    assert "http" not in text.replace("http-equiv", "")
    with (page.parent / "records.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(frame_records) and float(rows[0]["median_s"]) > 0
    markdown = (page.parent / "report.md").read_text()
    linked = [line.split("](")[1].rstrip(")") for line in markdown.splitlines() if line.startswith("![")]
    assert linked and set(linked) <= names


def test_a_report_can_be_written_over_an_earlier_one(tmp_path):
    write_report(sweep(), {}, tmp_path)
    first = (tmp_path / "records.csv").read_text()
    write_report(sweep(names=("fft", "other")), {}, tmp_path)
    assert (tmp_path / "records.csv").read_text() != first
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_measured_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^nothing measured yet: .*convbench run") as caught:
        write_report([], {}, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    assert tables.winners_text(to_frame([])).startswith("nothing measured yet")


def test_failures_alone_make_a_report_without_pictures(tmp_path):
    page = write_report([record(status="wrong"), record("y", status="unavailable")], {"m1": MACHINE}, tmp_path)
    assert "No picture" in page.read_text() and "it differs" in page.read_text() and not list(tmp_path.glob("*.png"))
    assert "1 wrong" in tables.winners_text(to_frame([record(status="wrong")]))


def test_an_unwritable_place_raises_and_leaves_no_rest(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_report(sweep(), {}, tmp_path / "file")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with pytest.raises(OSError):
        write_report(sweep(), {}, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def layers(count):
    return [
        record(name, 1e-3 * (1 + i % 7) * f, f"1x{16 + i}x14x14,{32 + i}x{16 + i}x3x3,p1")
        for i in range(count)
        for name, f in (("a", 1), ("torch", 1.5), ("b", 1.01))
    ]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("a"), record("b", 2e-3)], {"times-few-t2"}),
        ([record("only")], {"times-few-t2"}),
        (sweep(jitter=(1,)), {"times-t2", "winners-t2", "speedup-t2"}),
        (sweep(sizes=(64,)), {"times-t2", "winners-t2", "speedup-t2"}),
        (sweep(kernels=(3,)), {"times-t2", "winners-t2", "speedup-t2"}),
        (layers(8), {"layers-t2", "speedup-layers-t2"}),
        ([*sweep(), *layers(8)], {"times-t2", "winners-t2", "speedup-t2", "layers-t2", "speedup-layers-t2"}),
        ([record(n, t, s) for s in ("1x1x100,1x1x5", "1x1x9x9x9,1x1x3x3x3") for n, t in (("a", 1), ("b", 2))],
         {"times-few-t2"}),
        ([*sweep(sizes=(64,)), *sweep(sizes=(64,), threads=1, machine="m2")],
         {f"{kind}-{m}" for kind in ("times", "winners", "speedup") for m in ("m1-t2", "m2-t1")}),
    ],
    ids=["few", "one", "one-launch", "one-size", "one-kernel", "layers", "mixed", "other-dimensions", "two-machines"],
)  # fmt: skip
def test_every_kind_of_records_gets_fitting_pictures(records, expected):
    made, notes = pictures(to_frame(records), {"m1": MACHINE})
    assert {picture.name for picture in made} == expected and not notes
    assert all(picture.png.startswith(b"\x89PNG") and picture.reading for picture in made)


def test_pictures_of_two_machines_name_theirs():
    other = MACHINE | {"id": "m2", "cpu": "Other CPU"}
    made, _ = pictures(to_frame([record(), record(machine="m2")]), {"m1": MACHINE, "m2": other})
    assert {picture.section.split(",")[0] for picture in made} == {"Example CPU", "Other CPU"}


def test_too_many_specs_are_paged_and_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr("reports.plots.ROWS", 8)
    monkeypatch.setattr("reports.plots.PAGES", 2)
    records = [record("a", 1e-3, f"1x{i}x8x8,1x{i}x3x3") for i in range(1, 19)]
    made, notes = pictures(to_frame(records), {})
    assert [p.name for p in made if p.name.startswith("layers")] == ["layers-t2-page1", "layers-t2-page2"]
    assert any("16 of 18 specs" in note for note in notes)


def test_templates_travel_with_the_package():
    import reports

    folder = Path(reports.__file__).parent / "templates"
    assert {"index.html.j2", "report.md.j2", "page.css", "page.js"} <= {path.name for path in folder.iterdir()}
