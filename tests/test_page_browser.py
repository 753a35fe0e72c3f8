"""The page in a real browser, offline: it sorts, it filters, the console stays
silent, and hostile text does nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports.page import Options, write_report
from tests.conftest import HUNG_S
from tests.record_makers import HOSTILE, MACHINE, PEAKS, layers, record, sweep

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

NAMES = (*HOSTILE, "</script><script>alert(2)</script>", "<img src=x onerror=alert(3)>", "]]><!--",
         "{{ 7 * 7 }}", "${alert(4)}")  # fmt: skip
# First thing on the page: whatever would betray that a text was executed or that something failed.
BEFORE = """<script>
const seen = {alerts: [], errors: [], refused: []};
window.alert = (text) => seen.alerts.push(String(text));
addEventListener("error", (event) => seen.errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.refused.push(event.blockedURI));
</script>"""
# Last thing: a user's clicks and words; the outcome goes where --dump-dom shows it.
AFTER = """<script>{
const table = document.getElementById("records-table");
const filter = document.querySelector('[data-table="records-table"]');
const rows = () => [...table.tBodies[0].rows].filter((row) => row.getClientRects().length);
const column = (title) => [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === title);
const cells = (title) => rows().map((row) => row.cells[column(title)].textContent);
const click = (title) => table.tHead.rows[0].cells[column(title)].querySelector("button").click();
const type = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
const done = {all: rows().length, before: cells("algorithm")};
click("time"); done.rising = cells("time");
done.mark = table.querySelectorAll('[aria-sort="ascending"]').length;
click("time"); done.falling = cells("time");
click("algorithm"); done.names = cells("algorithm");
type("FFT 64x64"); done.found = rows().map((row) => row.textContent);
done.count = filter.closest("p").querySelector("span").textContent;
type("no such row"); done.none = rows().length;
type("onerror alert(3)"); done.hostile = cells("algorithm");
type(""); done.again = rows().length;
done.texts = [...document.querySelectorAll("td")].map((cell) => cell.textContent);
done.images = [...document.images].filter((image) => !image.src.startsWith("data:")).length;
const handles = (element) => element.getAttributeNames().some((name) => name.startsWith("on"));
done.handlers = [...document.querySelectorAll("*")].filter(handles).length;
done.scripts = document.scripts.length;
addEventListener("load", () => setTimeout(() => {
  document.documentElement.dataset.outcome = JSON.stringify({...done, ...seen});
}, 50));
}</script>"""


class _Outcome(HTMLParser):
    """What the injected script left on the root element."""

    value: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.value = dict(attrs).get("data-outcome")


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The outcome of a visit to a page made of usual and hostile records, and the browser's log."""
    folder = tmp_path_factory.mktemp("page")
    times = [f"1x1x{size}x{size},1x1x3x3,p1" for size in (16, 32)]
    records = [*sweep(), *(record(n, 10.0 ** (i - 7), spec) for spec in times for i, n in enumerate(NAMES))]
    records += [record(name, status="crashed", reason=name, spec="1x1x8x8,1x1x3x3") for name in NAMES]
    records += [record("elsewhere", spec=name, origin=name) for name in NAMES]
    machine = MACHINE | {
        "cpu": NAMES[-5],
        "note": NAMES[-4],
        "peaks": {"flops_per_s": {NAMES[-4]: {NAMES[-4]: 1.0}}},
    }
    text = write_report(records, {"m1": machine}, folder / "report", Options(command=NAMES[-4])).read_text(
        encoding="utf-8"
    )
    assert text.count("<style>") == text.count("</body>") == 1
    copy = folder / "copy.html"
    copy.write_text(
        text.replace("<style>", f"{BEFORE}<style>").replace("</body>", f"{AFTER}</body>"), encoding="utf-8"
    )
    return _visit(copy, folder / "profile")


def _visit(page: Path, profile: Path, *more: str) -> tuple[dict[str, Any], str]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--disable-background-networking", "--disable-extensions", "--no-first-run",
               "--proxy-server=127.0.0.1:9", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *options, *more, page.as_uri()],
        capture_output=True,
        timeout=HUNG_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    parser = _Outcome()
    parser.feed(done.stdout.decode("utf-8", "replace"))
    log = done.stderr.decode("utf-8", "replace")
    assert parser.value, f"the page's script did not end:\n{log[-2000:]}"
    return json.loads(parser.value), log


Visited = tuple[dict[str, Any], str]


def test_a_click_on_a_heading_sorts(visited: Visited) -> None:
    outcome, _ = visited
    assert outcome["mark"] == 1 and len(outcome["rising"]) == outcome["all"]
    units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    rising = [float(value) * units[unit] for value, unit in map(str.split, outcome["rising"])]
    assert rising == sorted(rising) and len(set(rising)) > 5
    assert outcome["falling"] == outcome["rising"][::-1] != outcome["rising"]
    assert sorted(outcome["names"]) == sorted(outcome["before"]) and outcome["names"] != outcome["before"]


def test_the_filter_keeps_the_rows_with_every_word(visited: Visited) -> None:
    outcome, _ = visited
    assert outcome["found"] and all("fft" in row and "64x64" in row for row in outcome["found"])
    assert outcome["count"] == f"{len(outcome['found'])} of {outcome['all']} rows"
    assert outcome["none"] == 0 and outcome["again"] == outcome["all"]


def test_hostile_text_is_shown_and_executes_nothing(visited: Visited) -> None:
    outcome, _ = visited
    assert outcome["alerts"] == [] and outcome["scripts"] == 3  # the page's own and the test's two
    assert outcome["images"] == 0 and outcome["handlers"] == 0
    assert set(outcome["hostile"]) == {"<img src=x onerror=alert(3)>", "elsewhere"}
    shown = set(outcome["texts"])
    assert {name for name in NAMES if name.isprintable() and name.strip() == name} <= shown


def test_the_console_is_silent_and_nothing_is_fetched(visited: Visited) -> None:
    outcome, log = visited
    assert outcome["errors"] == [] and outcome["refused"] == []
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []


AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
RULES = """<script>
const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
axe.run(document, {runOnly: rules}).then((found) => {
  const nodes = (rule) => rule.nodes.slice(0, 3).map((node) => node.html.slice(0, 200));
  const told = found.violations.map((rule) => [rule.id, nodes(rule)]);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const passed = found.passes.map((rule) => rule.id);
  document.documentElement.dataset.outcome = JSON.stringify({told, passed, wide});
});
</script>"""


@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install --no-save axe-core")
@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_amiss_and_a_narrow_page_is_no_wider_than_its_window(tmp_path, dark, width):
    auto = record("auto", 1e-5, family="auto", chosen="fft")
    records = [
        *sweep(),
        *layers(8),
        auto,
        record("scipy_x", 1e-2, family="peer"),
        record("wrong", status="wrong"),
    ]
    page = write_report(records, {"m1": MACHINE | {"peaks": PEAKS}}, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    scripts = f"<script>{AXE.read_text(encoding='utf-8')}</script>{RULES}"
    page.write_text(text.replace("</body>", f"{scripts}</body>"), encoding="utf-8")
    looks = ["--blink-settings=preferredColorScheme=0"] * dark
    outcome, _ = _visit(page, tmp_path / "profile", f"--window-size={width},900", *looks)
    assert outcome["told"] == [] and outcome["wide"] <= 0
    assert {"color-contrast", "image-alt", "scrollable-region-focusable"} <= set(outcome["passed"])
