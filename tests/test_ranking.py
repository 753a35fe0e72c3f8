"""Who wins: the launch is the unit, a tie is a tie, the winner deserves it, machines stay apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.record import Launch
from bench.text import three_digits
from reports import tables
from reports.findings.frame import to_frame
from reports.findings.ranking import auto_results, models, speed_ups, winners
from reports.style import ratio_text
from tests.record_makers import SPEC, record, sweep

# ---- the frame ---------------------------------------------------------------------------------------------


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
    launches = tuple(
        Launch(i, "2025", (1e-4,), 1, 0.1, 0.1, first) for i, first in enumerate([0.5, 2e-4, 2e-4])
    )
    assert not to_frame([record(launches=launches)])["prepare_cheats"].iloc[0]


def test_a_newer_build_supersedes_the_older_one():
    frame = to_frame(
        [record("fft", 1e-4, build="old"), record("fft", 3e-3, build="new"), record("separable", 1e-3)]
    )
    assert list(winners(frame)["winner"]) == ["separable"]
    assert "older build" in tables.records_table(frame).text()


# ---- winners and verdicts ----------------------------------------------------------------------------------


def test_a_small_lead_is_the_same_and_a_clear_one_wins():
    times = (("a", 1e-3), ("b", 1.004e-3), ("c", 5e-3))
    near = winners(
        to_frame([record(n, t, f"1x1x{64 + i}x64,1x1x3x3,p1") for n, t in times for i in range(5)])
    ).iloc[0]
    assert near.verdict == "same" and near.tie and near.tied == ("a", "b") and near.high < 1.05
    far = winners(to_frame([record("a", 1e-3), record("b", 1.5e-3), record("c", 5e-3)])).iloc[0]
    assert (far.verdict, far.winner, far.runner_up, far.tied) == ("winner", "a", "b", ("a",)) and not far.tie
    assert far.margin == pytest.approx(1.5) and 1 < far.low < far.ratio < far.high
    alone = winners(to_frame([record("a", 1e-3)])).iloc[0]
    assert alone.verdict == "alone" and not alone.tie


def test_what_is_undecided_says_what_would_decide_it():
    turns = ((1, 1.2, 0.8), (1.2, 0.8, 1), (0.8, 1, 1.2))
    frame = to_frame(
        [
            record(n, t, jitter=j)
            for (n, t), j in zip((("a", 1.0), ("b", 1.1), ("c", 9.0)), turns, strict=True)
        ]
    )
    row = winners(frame).iloc[0]
    assert (
        row.verdict == "undecided"
        and set(row.tied) == {"a", "b"}
        and row.low < 1 < row.high
        and row.needed > 3
    )
    table = tables.winners_table(frame)
    cells = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert (cells["verdict"], cells["next"]) == ("undecided", row.tied[1])
    assert cells["margin"] == f"{ratio_text(row.ratio)} {three_digits(row.low)}-{three_digits(row.high)}"
    assert f"undecided: {row.tied[1]}" in tables.winners_text(frame)
    assert "would take over 20 launches" in tables.winners_text(frame)


def test_one_launch_is_judged_by_the_stated_default():
    frame = to_frame(
        [record("a", 1.0, jitter=(1,)), record("b", 1.05, jitter=(1,)), record("c", 2.0, jitter=(1,))]
    )
    (model,) = models(frame).values()
    assert model.comparisons == 0 and "is assumed" in model.text()
    assert winners(frame).iloc[0].tied == ("a", "b")
    assert "assumed" in tables.winners_text(frame)


def drifting(times, specs=12, launches=3, own=0.01, drift=0.2, apart=False):
    """Records whose launches were all slowed down alike, by ``drift``, and each by ``own``."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(specs):
        common = np.exp(rng.normal(0, drift, launches))
        for name, time_s in times.items():
            jitter = common * np.exp(rng.normal(0, own, launches))
            made = record(name, time_s, f"1x1x{16 + number}x16,1x1x3x3", jitter=tuple(jitter.tolist()))
            if apart:  # every algorithm had its launches on another day
                made = made.with_launches(
                    tuple(replace(x, together=f"{name}{x.index}") for x in made.launches)
                )
            found.append(made)
    return to_frame(found)


def test_what_slows_all_launches_alike_does_not_hide_a_lead():
    times = {"a": 1.0, "b": 1.15, "c": 2.0, "d": 3.0}
    (model,) = models(drifting(times)).values()
    assert model.process < 0.05 < 0.1 < model.apart
    assert set(winners(drifting(times))["verdict"]) == {"winner"}
    apart = winners(drifting(times, apart=True))
    assert set(apart["verdict"]) == {"undecided"}, "launches that did not take turns are not paired"


def test_identical_code_has_no_winner_whatever_is_paired():
    found = winners(drifting(dict.fromkeys("abcdef", 1.0), specs=40))
    assert (found["verdict"] == "winner").sum() <= 1 and (found["tied"].map(len) >= 4).mean() > 0.8


def test_verdicts_of_a_table_are_claimed_together():
    """One lead in forty specs that chance may well explain is not one."""
    same = {f"1x1x{16 + n}x16,1x1x3x3": 1.0 for n in range(40)}
    rng = np.random.default_rng(4)
    records = [
        record(name, 1.0, spec, jitter=tuple(np.exp(rng.normal(0, 0.01, 3)).tolist()))
        for spec in same
        for name in "ab"
    ]
    alone = [model.compare(*frame_of) for model, frame_of in _pairs(to_frame(records))]
    assert any(ratio.verdict in ("faster", "slower") or ratio.p < 0.05 for ratio in alone)
    assert "winner" not in set(winners(to_frame(records))["verdict"])


def _pairs(frame):
    (model,) = models(frame).values()
    return [(model, tuple(group["launches"])) for _, group in frame.groupby("spec")]


def test_what_auto_ran_competes_where_nobody_measured_it_by_its_name():
    frame = to_frame(
        [record("auto", 1e-3, family="auto", chosen="winograd_f4"), record("im2col_gemm", 40e-3)]
    )
    row = winners(frame).iloc[0]
    assert (row.winner, row.verdict, row.runner_up) == ("winograd_f4", "winner", "im2col_gemm")


def test_a_disturbed_launch_decides_nothing():
    """Samples of one launch from 2.4 to 58 ms: its turns tell that they cannot tell."""
    rng = np.random.default_rng(2)
    wild = tuple(rng.choice([2.4e-3, 43e-3, 58e-3], 8).tolist())
    calm, shaken = record("a", 2.3e-3, jitter=(1,)), record("b", 1.0, jitter=(1,))
    shaken = shaken.with_launches(tuple(replace(x, samples_s=wild) for x in shaken.launches))
    frame = to_frame([calm, shaken])
    assert winners(frame).iloc[0].verdict == "undecided"


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
            record("a", 1.0), record("b", 2.0), record("a", 4.0, machine="m2"),
            record("b", 3.0, machine="m2"), record("b", 0.1, threads=1), record("a", 0.01, cold=True),
        ]
    )  # fmt: skip
    found = winners(frame)
    assert list(found["winner"]) == ["a", "b", "b", "a"]
    assert list(found["machine"]) == ["m1", "m2", "m1", "m1"]
    text = tables.winners_text(frame)
    assert "m2" in text and "cold" in text and "threads" in text


def test_the_best_tunables_stand_for_an_algorithm():
    frame = to_frame(
        [record("a", 1.0, tunables='{"t": 1}'), record("a", 0.5, tunables='{"t": 2}'), record("b", 0.7)]
    )
    row = winners(frame).iloc[0]
    assert (row.winner, row.runner_up, row.median_s) == ("a", "b", pytest.approx(0.5))


def test_auto_is_judged_against_our_best_and_against_its_own_choice():
    frame = to_frame(
        [
            record("auto", 2.0, family="auto", chosen="a"),
            record("a", 2.02),
            record("b", 1.0),
            record("p", 0.1, family="peer"),
        ]
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
