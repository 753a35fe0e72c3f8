"""Who wins: the launch is the unit, a tie is a tie, the winner deserves it, machines stay apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.record import Launch
from reports import tables
from reports.frame import to_frame
from reports.ranking import DEFAULT_NOISE, auto_results, needed_ratio, noise, ranked, speed_ups, winners
from reports.style import ratio_text
from tests.record_makers import SPEC, record, sweep

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


def test_a_tie_says_what_a_win_would_have_needed():
    """Beside the ratio as it was judged, launch by launch: that of the medians can be larger."""
    turns = ((1, 1.2, 0.8), (1.2, 0.8, 1), (0.8, 1, 1.2))
    frame = to_frame([record(n, t, jitter=j) for (n, t), j in zip((("a", 1.0), ("b", 1.3), ("c", 9.0)), turns, strict=True)])
    row = winners(frame).iloc[0]
    assert row.tied == ("a", "b") and row.lead <= row.needed
    table = tables.winners_table(frame)
    cells = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert (cells["fastest"], cells["next"]) == ("tie: a", "= b")
    assert cells["margin"] == f"{ratio_text(row.lead)} < {ratio_text(row.needed)}"


def test_noisy_records_tie_where_quiet_ones_win():
    quiet = [record(n, t, jitter=(1, 1.001, 0.999)) for n, t in (("a", 1.0), ("b", 1.05), ("c", 9.0))]
    turns = ((1, 1.2, 0.8), (1.2, 0.8, 1), (0.8, 1, 1.2))
    noisy = [record(n, t, jitter=j) for (n, t), j in zip((("a", 1.0), ("b", 1.05), ("c", 9.0)), turns, strict=True)]
    assert not winners(to_frame(quiet)).iloc[0].tie
    assert winners(to_frame(noisy)).iloc[0].tie


def test_a_records_own_spread_counts_beside_the_pooled_noise():
    calm = [record(f"x{i}", 2.0, jitter=(1, 1.001, 0.999)) for i in range(30)]
    shaky = to_frame([*calm, record("a", 1.0, jitter=(1, 1.6, 0.7)), record("b", 1.2, jitter=(1.5, 0.6, 1))])
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


def drifting(times, specs=12, launches=3, own=0.01, drift=0.2, apart=False):
    """Records whose launches were all slowed down alike, by ``drift``, and each by ``own``."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(specs):
        common = np.exp(rng.normal(0, drift, launches))
        for place, (name, time_s) in enumerate(times.items()):
            jitter = common * np.exp(rng.normal(0, own, launches))
            made = record(name, time_s, f"1x1x{16 + number}x16,1x1x3x3", jitter=tuple(jitter.tolist()))
            if apart:  # every algorithm had its launches on another day
                changed = (Launch(**{**vars(x), "started": f"2025-01-0{place + 1}T10:00:00+00:00"}) for x in made.launches)
                made = made.with_launches(tuple(changed))
            found.append(made)
    return to_frame(found)


def test_what_slows_all_launches_alike_does_not_hide_a_lead():
    times = {"a": 1.0, "b": 1.15, "c": 2.0, "d": 3.0}
    (value,) = noise(drifting(times)).values()
    assert value.paired < 0.05 < 0.1 < value.launches and value.paired_sigma < value.sigma
    assert "beyond what slowed all algorithms of a spec alike" in value.text()
    assert not winners(drifting(times))["tie"].any()
    assert winners(drifting(times, apart=True))["tie"].all(), "launches that did not take turns are not paired"


def test_identical_code_ties_whatever_is_paired():
    found = winners(drifting(dict.fromkeys("abcdef", 1.0), specs=40))
    assert found["tie"].mean() > 0.95 and (found["tied"].map(len) >= 5).mean() > 0.9


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
