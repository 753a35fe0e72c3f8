"""The noise model on launches whose truth is known: what it claims, what it does not, and how a race ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from bench import turns
from bench.noise import Model, Ratio, decisions, discoveries, judged
from bench.race import standing
from bench.spread import spread_apart
from bench.turns import Taken

SPECS, TABLES = 10, 12
KINDS = {
    "calm": {"process": 0.01, "turn": 0.04, "turns": 16, "launches": 3},
    "a busy neighbour": {"process": 0.015, "turn": 0.15, "turns": 32, "launches": 3},
    "two launches": {"process": 0.01, "turn": 0.05, "turns": 16, "launches": 2},
    "two kinds of turns": {"process": 0.015, "turn": 0.05, "turns": 24, "launches": 3, "heavy": True},
}


def table(
    rng: np.random.Generator, ratio: float, process: float, turn: float, turns: int, launches: int,
    heavy: bool = False
) -> list[list[tuple[Taken, ...]]]:
    """Pairs on ``SPECS`` specs, the second ``ratio`` times as slow; launches differ by far more than that,
    together.

    Disturbances only add; ``heavy`` ones take a core away for two turns in five.
    """
    groups = []
    for spec in range(SPECS):
        common = rng.normal(0, 0.2, (launches, 1)) + rng.normal(0, 0.01, (launches, turns)).cumsum(1)
        pair = []
        for place in range(2):
            luck = rng.normal(0, process / math.sqrt(2), (launches, 1))
            noise = rng.exponential(turn, (launches, turns))
            noise += 0.5 * heavy * (rng.random((launches, turns)) < 0.4)
            logs = common + luck + noise + place * math.log(ratio)
            pair.append(tuple(Taken(f"{spec}|{n}", dict(enumerate(row))) for n,
                              row in enumerate(logs.tolist())))
        groups.append(pair)
    return groups


def verdicts(ratio: float, kind: str) -> list[str]:
    rng, found = np.random.default_rng(7), []
    for _ in range(TABLES):
        made = table(rng, ratio, **KINDS[kind])
        model = Model.of(made)
        found += judged([model.compare(*pair) for pair in made])
    return found


@pytest.mark.parametrize(("centre", "needed"), [(0.0, 16), (0.01, 25), (0.05, 16), (0.1, 5), (0.3, 5)])
def test_an_interval_narrows_with_the_root_of_the_launches(centre: float, needed: int) -> None:
    """From 4 launches and nearly 10% either way to within 5%, or to where it leaves out 1."""
    ratio = Ratio(*(math.exp(centre + x) for x in (0, -0.099, 0.099)), 1.0, 4, True, "undecided")
    assert Model().launches_for(ratio, 0.05) == needed


@pytest.mark.parametrize("kind", KINDS)
def test_identical_code_is_not_called_different(kind: str) -> None:
    found = verdicts(1.0, kind)
    assert sum(v in ("faster", "slower") for v in found) <= 0.02 * len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_five_percent_are_never_called_the_same_beyond_chance_nor_faster(kind: str) -> None:
    found = verdicts(1.05, kind)
    assert found.count("same") <= 0.02 * len(found) and found.count("faster") == 0


def test_what_calm_launches_can_tell() -> None:
    found = verdicts(1.05, "calm")
    assert found.count("slower") >= 0.9 * len(found)
    assert verdicts(1.0, "calm").count("same") >= 0.8 * len(found)
    assert verdicts(1.2, "a busy neighbour").count("slower") >= 0.95 * len(found)


def launch(name: str, *logs: float) -> Taken:
    return Taken(name, dict(enumerate(logs)))


def test_one_disturbed_comparison_does_not_hide_the_others() -> None:
    """It makes the spread between launches less certain, not everybody's large."""
    rng = np.random.default_rng(3)
    groups = table(rng, 1.1, **KINDS["calm"])
    wild = tuple(launch(f"w{n}", *(rng.normal(shift, 0.05, 16).tolist())) for n,
                 shift in enumerate((0.0, 2.0, -1.0)))
    other = tuple(launch(f"w{n}", *(rng.normal(0, 0.05, 16).tolist())) for n in range(3))
    model = Model.of([*groups, [wild, other]])
    assert judged([model.compare(*pair) for pair in groups]).count("slower") >= 0.9 * SPECS
    assert model.compare(other, wild).verdict == "undecided"


def test_now_twice_and_now_nine_times_as_slow_is_slower() -> None:
    fast = tuple(launch(str(n), *[0.0] * 8) for n in range(3))
    slow = tuple(launch(str(n), *[math.log(f)] * 8) for n, f in enumerate((2, 9, 4)))
    ratio = Model().compare(fast, slow)
    assert ratio.verdict == "slower" and 1 < ratio.low < ratio.ratio < ratio.high
    back = Model().compare(slow, fast)
    assert back.verdict == "faster" and back.high < 1


@pytest.mark.parametrize(("seconds", "verdict"), [(6e-6, "undecided"), (6e-4, "slower")])
def test_of_calls_of_microseconds_processes_know_less(seconds: float, verdict: str) -> None:
    """Where the objects of a process lie makes each call of it up to 0.2 us slower."""
    model, base = Model(process=0.005, freedom=30.0), math.log(seconds)
    one, other = (tuple(launch(str(n), *[base + shift] * 8) for n in range(2)) for shift in (0.0, 0.055))
    assert model.compare(one, other).verdict == verdict


def test_launches_that_did_not_take_turns_are_judged_by_the_noise_between_launches() -> None:
    one, other = (tuple(launch(f"{name}{n}", *[base] * 8) for n in range(3)) for name,
                  base in (("a", 0.0), ("b", 0.1)))
    ratio = Model().compare(one, other)
    assert not ratio.paired and ratio.verdict == "undecided"


def test_a_launch_without_turns_is_one_turn() -> None:
    one, other = ((launch("x", 0.0),), (launch("x", 0.03),))
    assert Model().compare(one, other).verdict == "undecided"


def test_benjamini_and_hochberg() -> None:
    """Their own example of fifteen tests claims four at 5%, two by the older rule of Bonferroni."""
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
          0.6528, 0.7590, 1.0]  # fmt: skip
    assert discoveries(ps, 0.05) == [True] * 4 + [False] * 11
    assert discoveries([], 0.05) == [] and discoveries([0.5, 0.001], 0.05) == [False, True]


def race(*rivals: Sequence[float]) -> tuple[frozenset[int], bool]:
    return standing([dict(enumerate(r)) for r in rivals], 0.01)


def test_who_is_surely_behind_leaves_and_who_is_near_stays() -> None:
    near, far = [0.001, 0.0, 0.002, -0.001] * 2, [0.7, 0.72, 0.69, 0.71] * 2
    shaky = [0.3, -0.2, 0.4, 0.0] * 2
    behind, settled = race([0.0] * 8, near, far)
    assert behind == {2} and settled
    behind, settled = race([0.0] * 8, near, shaky)
    assert behind == frozenset() and not settled
    assert race([0.0] * 3, [1.0] * 3) == (frozenset(), False), "three turns do not tell"
    assert race([0.0] * 8)[1] and race()[1], "alone there is nothing to settle"


def test_a_busy_machine_does_not_decide_between_unlike_algorithms() -> None:
    """It slows one more than the other, which the spread of launches cannot
    show; versions of one it slows alike.
    """
    groups = table(np.random.default_rng(5), 1.15, **KINDS["calm"])
    loaded = [[tuple(x._replace(load=1.9) for x in case) for case in pair] for pair in groups]
    model = Model.of(groups)
    assert {model.compare(*pair).verdict for pair in groups} == {"slower"}
    assert {model.compare(*pair).verdict for pair in loaded} == {"undecided"}
    assert {model.compare(*pair, alike=True).verdict for pair in loaded} == {"slower"}


def test_of_launches_that_disagree_the_calmer_ones_say_how_much() -> None:
    fast = tuple(launch(str(n), *[0.0] * 8) for n in range(2))
    slow = tuple(launch(str(n), *[math.log(f)] * 8) for n, f in enumerate((1.7, 600)))
    ratio = Model(freedom=4.0).compare(fast, slow)
    assert (
        ratio.verdict == "slower"
        and ratio.ratio == pytest.approx(1.7)
        and 1 < ratio.low < 1.7
        and ratio.high <= 601
    )


def by_definition(model: Model, one: Sequence[Taken], other: Sequence[Taken]) -> tuple[float, float, float]:
    """Mean, its standard error and the degrees of freedom, launch by launch and turn by turn."""
    values, variances = [], []
    partners = {x.together: x for x in other}
    for launch in one:
        rounds = sorted(launch.turns.keys() & partners[launch.together].turns.keys())
        x, y = ([case.turns[k] for k in rounds] for case in (launch, partners[launch.together]))
        n = len(rounds)
        calm = math.ceil(n / 3)
        lows = [sorted(logs)[:calm] for logs in (x, y)]
        values.append(math.fsum(lows[1]) / calm - math.fsum(lows[0]) / calm)
        cut = [min(b, lows[1][-1]) - min(a, lows[0][-1]) for a, b in zip(x, y, strict=True)]
        known = statistics.variance(cut) * (n / calm) ** 2 / n * (1 + 2 / n) if n >= 4 else model.turn**2
        calmest = [statistics.fmean(sorted(x.turns.values())[: math.ceil(len(x.turns) / 3)]) for x in one]
        variances.append(model.process**2 + (2e-7 / math.exp(statistics.fmean(calmest))) ** 2 + known)
    weights = [1 / v for v in variances]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    squares = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    freedom = model.freedom + len(values) - 1
    mood = 0.04 * statistics.fmean(x.load for x in one)
    return mean, math.sqrt(max((model.freedom + squares) / freedom, 0.5) / sum(weights) + mood**2), freedom


def test_many_pairs_at_once_are_judged_as_each_is_by_definition() -> None:
    """Whatever rounds they have in common, and however many pairs the arrays hold."""
    rng, model = np.random.default_rng(11), Model(process=0.02, freedom=5.0, turn=0.03)
    pairs = []
    for pair in range(60):
        both = []
        for shift in (0.0, rng.choice([0.0, 0.05, 0.2])):
            launches = []
            for n in range(1 + pair % 4):
                rounds = sorted(rng.choice(20, size=rng.choice([3, 4, 9, 16]), replace=False).tolist())
                logs = {k: math.log(1e-4) + shift + rng.exponential(0.03) for k in (0, *rounds)}
                launches.append(Taken(f"{pair}|{n}", logs, 0.1 * n))
            both.append(tuple(launches))
        pairs.append(tuple(both))
    for (one, other), ratio in zip(pairs, model.compare_all(pairs), strict=True):
        mean, error, freedom = by_definition(model, one, other)
        reach = stdtrit(round(freedom, 2), 0.99) * error
        expected = (math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))
        assert ratio[:3] == pytest.approx(expected, rel=1e-12)
        assert ratio.p == pytest.approx(2 * stdtr(freedom, -abs(mean) / error), rel=1e-9)
        assert ratio.launches == len(one) and ratio == model.compare(one, other)


def test_pairs_beyond_what_the_arrays_hold_are_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(np.random.default_rng(2), 1.1, **KINDS["calm"])
    whole = Model().compare_all(made)
    monkeypatch.setattr(turns, "AT_ONCE", 3)
    assert Model().compare_all(made) == whole


def test_a_table_of_turns_that_agree_on_no_order_is_undecided() -> None:
    """Each is faster than the next in the launches that they took turns in."""
    def case(*places: tuple[str, float]) -> tuple[Taken, ...]:
        return tuple(launch(f"{name}{n}", *[log] * 8) for name, log in places for n in range(3))

    a, b, c = (case(("ab", 0.0), ("ca", 0.2)), case(("ab", 0.2), ("bc", 0.0)), case(("bc", 0.2), ("ca", 0.0)))
    (decision,) = decisions([[a, b, c]], lambda one: one, model=lambda one: Model(freedom=30.0))
    assert decision.verdict == "undecided"
    assert decision.first not in [rival for rival, *_ in decision.rivals]


def test_launches_of_either_side_count_alike() -> None:
    few, many = [0.0, 0.02], [0.0, 0.02] * 8
    there, back, best = (
        Model().compare_apart([one], [other])[0] for one, other in ((few, many), (many, few), (many, many))
    )
    assert there.high / there.low == pytest.approx(back.high / back.low)
    assert there.high / there.low > 1.01 * best.high / best.low


def test_a_tenth_of_the_launches_far_out_is_a_part_of_their_spread() -> None:
    """Their middle does not tell: the outer tenth does, where a normal has its own at 1.645 deviations."""
    calm = [(0.0, 0.014)] * 88
    assert spread_apart(calm) == pytest.approx(1.4826 * 0.0099, rel=0.01)
    assert spread_apart(calm + [(0.0, 0.14)] * 12) == pytest.approx(0.099 / 1.6449, rel=0.01)
    assert spread_apart(calm[:82] + [(0.0, 0.14)] * 9) == pytest.approx(1.4826 * 0.0099, rel=0.01)
