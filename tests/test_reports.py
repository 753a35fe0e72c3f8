"""Reports: hostile text stays text, every file is whole, what is shown can be read."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.text import seconds, size
from reports import tables
from reports.cells import markdown_text
from reports.findings.frame import to_frame
from reports.page import Options, write_report
from reports.spreadsheet import csv_cell
from reports.style import DARK, HUES, KNOWN, OTHER, clean, machine_text, readable_on, styles
from tests.record_makers import HOSTILE, MACHINE, SPEC, record, sweep


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


# ---- looks -------------------------------------------------------------------------------------------------


def test_a_family_has_one_hue_and_no_two_algorithms_look_alike():
    families = {name: family for family, names in KNOWN.items() for name in names} | {"auto": "auto"}
    look = styles(families)
    for family, names in KNOWN.items():
        assert {look[name].colour for name in names} <= set(HUES[family])
        assert len({look[name].marker for name in names}) == len(names), "told apart without colour"
    assert len({look[names[0]].marker for names in KNOWN.values()}) == len(KNOWN)
    many = styles(families | {f"new_{i}": "fft" for i in range(12)})
    assert len({(style.colour, style.marker) for style in many.values()}) == len(many)
    assert {name: many[name] for name in families} == look, "newcomers don't change the looks of the others"
    assert styles({"new_1": "fft"})["new_1"] == styles({"new_1": "fft", "separable": "separable"})["new_1"]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [colour for shades in (*HUES.values(), OTHER) for colour in shades])
def test_colours_of_data_are_seen_on_white_and_on_a_dark_page_and_text_is_read_on_them(colour):
    assert contrast(colour, "#ffffff") >= 3 and contrast(colour, DARK["#ffffff"]) >= 3
    assert contrast(colour, readable_on(colour)) >= 4.5
    assert colour.lower() not in DARK, "colours of data stay on a dark page"


def test_a_pictures_device_is_its_model_and_no_build_of_a_driver():
    driver = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)"
    about = {"cpu": "Example CPU", "cores": 16, "gpu": f"{driver} | Model: NVIDIA H100 80GB HBM3"}
    assert machine_text("m1", {"m1": about}) == "Example CPU, 16 cores, NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234e-9, "1.23 ns"), (45.64e-6, "45.6 us"), (0.9996e-3, "1.00 ms"), (0.123, "123 ms"), (1, "1.00 s"),
     (1234, "1234 s"), (0, "0 ns"), (math.inf, "-"), (math.nan, "-"), (None, "-")],
)  # fmt: skip
def test_times_are_read_by_people(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "0.999 KiB"),
        (1536, "1.50 KiB"),
        (5 << 30, "5.00 GiB"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_sizes_are_read_by_people(value, text):
    assert size(value) == text


def test_text_tables_are_aligned():
    lines = tables.winners_table(to_frame(sweep())).text().splitlines()
    assert lines[1].replace("-", "").strip() == ""
    starts = [i for i in range(1, len(lines[1])) if lines[1][i - 2 : i + 1] == "  -"]
    assert all(line[i - 1] == " " for line in lines for i in starts if len(line) > i)


def test_the_winners_fit_a_terminal_and_their_specs_are_whole():
    names = [f"an_algorithm_with_a_long_name_{i}" for i in range(12)]
    spec = "1x1024x14x14,2048x1024x3x3,s2,p0:1,float64,reflect"
    families = {name: "peer" if name.endswith("3") else "fft" for name in names}
    records = [
        record(name, 1e-3, text, family=family) for text in (SPEC, spec) for name, family in families.items()
    ]
    records.append(record("auto", 2e-3, spec, family="auto", chosen=names[5]))
    text = tables.winners_text(to_frame(records))
    assert max(map(len, text.splitlines())) < 120 and spec in text and SPEC in text
    assert all(name in tables.winners_table(to_frame(records)).markdown() for name in names), (
        "the page has all that tie"
    )


def test_what_needs_no_second_reading_is_said_once():
    why = {"status": "unavailable", "reason": "x is not installed"}
    missing = [record(name, spec=spec, **why) for spec in (SPEC, "9x9,3x3") for name in "ab"]
    third = record("c", **why)
    frame = to_frame([*missing, third, record("slow", 2.0), record("fast", 1.0)])
    table = tables.exclusions_table(frame)
    assert [row[0].text for row in table.rows] == ["a, b", "c"]
    assert [row[table.columns.index("specs")].text for row in table.rows] == ["2", "1"]
    records = tables.records_table(frame)
    assert [row[records.columns.index("algorithm")].text for row in records.rows] == ["fast", "slow"], (
        "the fastest first"
    )
    calls = tables.calls_table(frame)
    assert [cell.text for cell in calls.rows[0]][1:4] == ["fast", "the same", "-"]


def test_auto_is_not_blamed_for_noise():
    def verdict(auto_s, chosen):
        frame = to_frame(
            [record("auto", auto_s, family="auto", chosen=chosen), record("a", 1.0), record("b", 2.0)]
        )
        table = tables.auto_table(frame)
        return table.rows[0][table.columns.index("verdict")].text

    assert (verdict(1.3, "a"), verdict(2.0, "b")) == ("chose the best", "slower")
    assert verdict(1.001, "b") == "not surely slower"


def test_json_holds_no_nan_and_plain_values():
    frame = to_frame([record("a", jitter=(1,))])
    text = json.dumps(tables.winners_dicts(frame), allow_nan=False)
    assert json.loads(text)[0]["margin"] is None and json.loads(text)[0]["tied"] == ["a"]


def test_regret_is_shown_or_said_to_be_missing():
    assert "Not computed" in tables.regret_table(None).text()
    row = {"source": "nearest", "specs": 9, "geometric_mean": 1.04, "worst": 2.5, "worst_spec": SPEC}
    shown = tables.regret_table([row]).text()
    assert "1.04x" in shown and "2.50x" in shown and SPEC in shown


# ---- escaping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), ("\t=x", "'=x"), ("\rx", "'x"),
     (" =x", "'=x"), ("-1.5e-3", "-1.5e-3"), (-1.5, -1.5), ("plain", "plain"), (math.nan, ""),
     ("a\x00b\x1b", "a?b?"), (None, "")],
)  # fmt: skip
def test_csv_cells_are_no_formulas(cell, written):
    assert csv_cell(cell) == written


def test_markdown_cells_stay_one_cell():
    written = markdown_text("a|b\n<b>`c` *d* [e](f) my_name_x _g_")
    assert "\n" not in written and "<" not in written
    assert all(part in written for part in ("\\|", "\\`", "my_name_x \\_g\\_"))


def test_hostile_text_is_shown_as_text(tmp_path):
    machine = {"id": "m1", "cpu": HOSTILE[0], "note": HOSTILE[1], "versions": {HOSTILE[2]: HOSTILE[3]}}
    specs = (SPEC, "1x1x32x32,1x1x3x3,p1")
    records = [record(name, (i + 1) * 1e-4, spec) for spec in specs for i, name in enumerate(HOSTILE)]
    records += [record(name, status="crashed", reason=name, spec="1x1x8x8,1x1x3x3") for name in HOSTILE]
    records += [record("x", spec=name, origin=name) for name in HOSTILE]
    records += [
        record("elsewhere", machine=HOSTILE[1]),
        record("tuned", tunables=HOSTILE[0], chosen=HOSTILE[0]),
    ]
    regret = [{"source": HOSTILE[0], "worst_spec": HOSTILE[1]}]
    page = write_report(records, {"m1": machine}, tmp_path, Options(command=HOSTILE[0], regret=regret))
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.tags.count("script") == 1
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    links = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) or (page.parent / value).is_file() for value in links)
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
        assert not any(
            cell.startswith(("=", "+", "@")) or (cell.startswith("-") and not cell[1:2].isdigit())
            for cell in row
        )
        assert all(cell == clean(cell) for cell in row)
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".md", ".csv", ".png", ".svg"}
    assert all(path.name.isascii() and " " not in path.name for path in tmp_path.iterdir())


# ---- the report --------------------------------------------------------------------------------------------


def test_the_report_is_whole_and_self_contained(tmp_path):
    from matplotlib.image import imread

    frame_records = [*sweep(), record("scipy_x", 1e-2, family="peer"), record("broken", status="wrong")]
    page = write_report(
        frame_records, {"m1": MACHINE}, tmp_path / "deep" / "report", Options(command="convbench run quick")
    )
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
        "Winners", "Pictures", "The picker's regret", "All records", "What was excluded, and why", "Machine",
        "How times were taken", "How to reproduce a row",
    ):  # fmt: skip
        assert f">{heading}</h2>" in text
    assert "Example CPU" in text and "convbench run quick" in text and "broken" in text
    assert "http" not in text.replace("http-equiv", "")
    with (page.parent / "records.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(frame_records) and float(rows[0]["median_s"]) > 0
    markdown = (page.parent / "report.md").read_text()
    linked = re.findall(r"\]\(([^()\s]+)\)", markdown)
    assert len(linked) == 2 * text.count("<figure>") > 0 and set(linked) <= names


def test_a_report_can_be_written_over_an_earlier_one(tmp_path):
    write_report([record("a")], {}, tmp_path)
    first = (tmp_path / "records.csv").read_text()
    write_report([record("a"), record("b")], {}, tmp_path)
    assert (tmp_path / "records.csv").read_text() != first
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_measured_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^nothing measured yet: .*convbench run") as caught:
        write_report([], {}, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    assert tables.winners_text(to_frame([])).startswith("nothing measured yet")


def test_failures_alone_make_a_report_without_pictures(tmp_path):
    page = write_report(
        [record(status="wrong"), record("y", status="unavailable")], {"m1": MACHINE}, tmp_path
    )
    assert (
        "No picture" in page.read_text()
        and "it differs" in page.read_text()
        and not list(tmp_path.glob("*.png"))
    )
    assert "1 wrong" in tables.winners_text(to_frame([record(status="wrong")]))


def test_an_unwritable_place_raises_and_leaves_no_rest(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_report([record()], {}, tmp_path / "file")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with pytest.raises(OSError):
        write_report([record()], {}, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_templates_travel_with_the_package():
    import reports

    folder = Path(reports.__file__).parent / "templates"
    assert {"index.html.j2", "report.md.j2", "page.css", "page.js"} <= {
        path.name for path in folder.iterdir()
    }


# ---- directions and lowerings ------------------------------------------------------------------------------


@pytest.mark.usefixtures("unpainted")
def test_tables_say_the_direction_and_how_a_problem_was_lowered(tmp_path):
    gradient, words = f"{SPEC},input_gradient", "input gradient as 4 forward problems"
    records = [record("im2col_gemm", 1e-3, gradient, via=words),
               record("torch_nchw", 2e-3, gradient, family="peer"), record("fft", 1e-3),
               record("auto", 1e-3, gradient, family="auto", chosen="im2col_gemm", via=words)]  # fmt: skip
    write_report(records, {"m1": MACHINE}, tmp_path)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert page.text.count(f"im2col_gemm via {words}") == 5, (
        "winners, calls, what auto chose, the best of ours, all records"
    )
    assert "torch_nchw" in page.text and "direction" in page.text and "forward" in page.text
    assert "weight gradient" not in page.text and any("transposed convolution" in text for text in page.text)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "records.csv").read_text(encoding="utf-8"))))
    assert [(row["direction"], row["via"]) for row in rows] == [("input_gradient", words),
                                                                ("input_gradient", ""), ("forward", ""),
                                                                ("input_gradient", words)]  # fmt: skip


@pytest.mark.usefixtures("unpainted")
def test_where_all_is_forward_there_is_no_word_of_it(tmp_path):
    write_report(sweep(), {"m1": MACHINE}, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "direction" not in text and " via " not in text
