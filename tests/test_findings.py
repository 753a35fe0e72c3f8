"""What a report says in plain words, and whom its pictures are about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.twins import Rate, Rates
from reports.findings.advice import MOST_LINES, standouts
from reports.findings.frame import to_frame
from reports.findings.networks import in_network_order, layer_names
from reports.findings.ranking import ranked, winners
from reports.page import Options, write_report
from reports.tables import winners_text
from reports.words import calm, crossovers, false_alarms, in_short, who_wins
from tests.record_makers import MACHINE, layers, record

NETWORK = (
    "net",
    [("stem", "1x8x16x16,8x8x3x3,p1", 1), ("body", "1x8x8x8,8x8x3x3,p1", 3), ("head", "1x8x4x4,8x8x1x1", 1)],
)


def kernels(times, size=64):
    """Records of kernels of 3, 7, 11, ... with the times of each algorithm."""
    return [
        record(
            name,
            time_s,
            f"1x1x{size}x{size},1x1x{k}x{k},p{k // 2}",
            family="peer" if name == "peer" else "fft",
        )
        for name, row in times.items()
        for k, time_s in zip((3, 7, 11, 15), row, strict=True)
    ]


def test_a_sweep_says_what_to_use_for_which_kernels_and_how_far_behind_peers_are():
    frame = to_frame(kernels({"small": (1, 2, 5, 9), "large": (3, 3, 3, 3), "peer": (2, 4, 9, 27)}))
    (text,) = in_short(frame)
    assert text.startswith("Use small for 3x3 and 7x7 and large from 11x11 on.")
    assert "takes 2 to 9 times as long as the best of ours" in text
    assert "Of 4 problems, 4 have a winner, and none is undecided" in text
    assert crossovers(winners(frame)) == "Fastest at 64x64: small at 3x3, large from 11x11 on."


def test_who_is_not_surely_slower_is_advised_and_what_is_undecided_says_why():
    turns = ((1, 1.2, 0.8), (1.2, 0.8, 1))
    records = [record(n, t, jitter=j) for n, t, j in (("a", 1.0, turns[0]), ("b", 1.1, turns[1]))]
    (text,) = in_short(to_frame(records))
    assert (
        text.startswith("Use a for 3x3.")
        and "1 is undecided, because the noise there is larger than the lead" in text
    )
    row = winners(to_frame(records)).iloc[0]
    assert f"{row.low:.3f}x to " in text


def test_advice_that_loses_somewhere_says_how_much():
    measured = {"1x1x64x64,1x1x3x3,p1": (1, 2), "1x1x256x256,1x1x3x3,p1": (3, 1)}
    two = [record(n, t, spec) for spec, times in measured.items()
           for n, t in zip(("a", "b"), times, strict=True)]  # fmt: skip
    (text,) = in_short(to_frame(two))
    assert text.startswith("Use b for 3x3 (up to 2 times the fastest).")


def test_kinds_of_layers_are_told_apart():
    deep = [record("deep", 1.0, "1x8x8x8,8x1x3x3,p1"), record("wide", 2.0, "1x8x8x8,8x1x3x3,p1")]
    full = [record("deep", 2.0, "1x8x8x8,8x8x3x3,s2,p1"), record("wide", 1.0, "1x8x8x8,8x8x3x3,s2,p1")]
    (text,) = in_short(to_frame(deep + full))
    assert text.startswith("Use deep for 3x3 depthwise and wide for 3x3 with stride 2x2.")


def test_every_number_of_threads_has_its_paragraph():
    found = in_short(
        to_frame([record("a", threads=1), record("b", 2e-3, threads=1), record("a"), record("b", 2e-3)])
    )
    assert [text.partition(":")[0] for text in found] == ["With 1 thread", "With 2 threads"]


def test_at_most_eight_stand_out_winners_and_the_best_peer_among_them():
    names = [f"slow_{i}" for i in range(20)]
    records = kernels(
        {name: (9 + i,) * 4 for i, name in enumerate(names)} | {"peer": (99,) * 4, "best": (1,) * 4}
    )
    records.append(record("auto", 1, records[0].spec, family="auto", chosen="best"))
    frame = to_frame(records)
    found = standouts(ranked(frame, with_auto=True), winners(frame))
    assert len(found) == MOST_LINES and {"auto", "best", "peer", "slow_0"} <= set(found)


def test_who_wins_names_places_and_what_nobody_surely_wins():
    frame = to_frame(kernels({"small": (1, 2, 5, 9), "large": (3, 3, 3, 3)}))
    text = who_wins(winners(frame))
    assert (
        "small is fastest on 2 of 4 (64x64, kernel 3x3; 64x64, kernel 7x7)" in text
        and "undecided" not in text
    )
    even = to_frame([record(name, 1.0, jitter=(1.0,) * 9) for name in "ab"])
    assert "the same within 5% as another on 1" in who_wins(winners(even))


@pytest.mark.usefixtures("unpainted")
def test_the_machines_mood_opens_the_report(tmp_path):
    def launched(**mood):
        made = record("a")
        return made.with_launches(tuple(replace(x, **mood) for x in made.launches))

    assert "is not known" in calm(to_frame([record("a")]))
    text = calm(to_frame([launched(steal=0.0, load=0.1, loop=0.01, disturbed=(3,))]))
    assert text.startswith("The machine was calm") and "12.5% of the turns were left out" in text
    busy = [launched(steal=0.3, load=2.0, loop=0.2)]
    page = write_report(busy, {"m1": MACHINE}, tmp_path)
    opening = page.read_text(encoding="utf-8").partition("<h1>")[2]
    assert opening.split("<p>")[1].startswith("The machine was very busy")
    assert false_alarms(["m1"]) in opening


def test_the_machines_own_false_alarms_are_told_where_they_were_measured(monkeypatch):
    kept = Rates("m1", (Rate(0.0, 200, 1, 1, 150, 48),), "2026-01-01")
    monkeypatch.setattr("reports.words.rates", {"m1": kept}.get)
    assert false_alarms(["m1", "m2"]) == "On this machine 200 twins of identical code: 1.0% called different."
    assert "run convbench twins" in false_alarms(["m2"])


@pytest.mark.usefixtures("unpainted")
def test_layers_stand_in_the_order_of_their_network_with_their_names(tmp_path):
    specs = {layer: spec for layer, spec, _ in NETWORK[1]}
    records = [
        record(n, t, specs[layer]) for layer in ("head", "stem", "body") for n, t in (("a", 1.0), ("b", 2.0))
    ]
    records += [record("auto", 1.5, specs[layer], family="auto", chosen="b") for layer in specs]
    frame = in_network_order(to_frame(records), [NETWORK])
    assert list(dict.fromkeys(frame["spec"])) == [specs["stem"], specs["body"], specs["head"]]
    lines = winners_text(frame, layer_names([NETWORK])).splitlines()
    assert [lines[at].split()[0] for at in (0, 2, 3, 4)] == ["layer", "stem", "body", "head"]
    assert all(spec in line for spec, line in zip(specs.values(), lines[2:5], strict=True)), "specs are whole"
    plain = to_frame([record("a"), record("b", 2e-3)])
    assert winners_text(plain, layer_names([NETWORK])) == winners_text(plain)
    write_report(records, {"m1": MACHINE}, tmp_path, Options(networks=[NETWORK]))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = [
        line
        for line in text.partition("## Winners")[2].partition("## Pictures")[0].splitlines()
        if line.startswith("| ")
    ]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["stem", "body x3", "head"]
    assert "auto 7.50 s" in text, "one bar is what auto ran"


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize(
    "records", [layers(8), kernels({"a": (1, 2, 3, 4), "b": (2, 1, 1, 1)})], ids=["layers", "sweep"]
)
def test_texts_for_those_who_cannot_see_a_picture_say_what_is_seen(records, tmp_path):
    write_report(records, {"m1": MACHINE}, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    seen = [line for line in text.splitlines() if line.startswith("[![")]
    assert seen and all(any(name in line for name in ("a ", "b ", "torch ")) for line in seen)
