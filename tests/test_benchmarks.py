"""The benchmarks of ``pytest --benchmark``: one group per spec, one test per algorithm. Plain pytest runs
so many once that every algorithm and every spec occurs, with ``--exhaustive`` all.
"""

from __future__ import annotations

from typing import Any

import pytest

import algos
from algos.engine.quiet import quieten
from algos.engine.threads import usable_cores
from algos.lower.search import chain
from algos.plans import prepared
from bench.cases import Settings, cases_of
from bench.check import check
from bench.data import operands
from bench.noise import decisions
from bench.record import Record
from bench.runner import Runner
from bench.store import Store
from bench.timing import Budget
from bench.turns import taken
from tests.covering import code_of, covering
from tests.test_contract import CHOSEN_CODES

SPECS = [
    "1x1x256x256,1x1x3x3,p1",
    "1x1x256x256,1x1x15x15,p7",
    "1x1x256x256,1x1x15x15,p7,rank1",
    "1x16x28x28,32x16x3x3,p1",
    "1x32x56x56,32x1x3x3,p1",
    # training, transposed, video, audio
    "1x16x14x14,32x16x3x3,p1,weight_gradient",
    "1x32x32x32,64x32x3x3,s2,p1,input_gradient",
    "1x16x4x14x14,32x16x3x3x3,p1",
    "1x1x48000,1x1x127,p126:0,flip",
]
CASES = [(text, a) for text in SPECS for a in algos.algorithms(text) if a.name != "auto"]
ONCE = covering(
    [{text, a.name} for text, a in CASES],
    [code_of(a, chain(a, algos.ConvSpec.parse(text)).leaves[0]) for text, a in CASES],
    CHOSEN_CODES,
)
RACE = Settings(launches=2, budget=Budget(turn_s=0.006, rounds=16), slow_s=0.1)
Raced = dict[tuple[str, str], tuple[Record, dict[str, Any]]]


@pytest.fixture(scope="session")
def raced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Raced | None:
    """Where benchmarks are timed: what a run of the suite's own says of each case that was chosen.

    A benchmark times one algorithm after the other, so that its figures alone cannot tell a lead from the
    machine's moods.
    """
    if request.config.option.benchmark_disable:
        return None
    specs, found = [algos.ConvSpec.parse(text) for text in SPECS], {}
    items = [item for item in request.session.items if getattr(item, "function", None) is test_speed]
    chosen = {(item.callspec.params["text"], item.callspec.params["algorithm"].name) for item in items}
    with Store(tmp_path_factory.mktemp("race")) as store:
        cases = cases_of(specs, algos.algorithms(), [usable_cores()], RACE)
        records = Runner(RACE, store).run(
            [c for c in cases if (c.record.spec, c.record.algorithm) in chosen]).records
    groups = [[r for r in records if r.spec == text and r.launches] for text in SPECS]
    for decision in decisions([group for group in groups if group], taken):
        first = decision.first
        found[first.spec, first.algorithm] = first, {"verdict": decision.verdict}
        for record, ratio, verdict in decision.rivals:
            ends = {name: round(getattr(ratio, name), 4) for name in ("ratio", "low", "high")}
            found[record.spec, record.algorithm] = record, {"verdict": verdict, **ends,
                                                            "against": first.algorithm}
    return found | {(r.spec, r.algorithm): (r, {}) for r in records if not r.launches}


@pytest.mark.benchmark(max_time=0.1)
@pytest.mark.parametrize(("text", "algorithm"), [
    pytest.param(text, a, id=f"{text}-{a.name}", marks=[] if i in ONCE else pytest.mark.exhaustive)
    for i, (text, a) in enumerate(CASES)
])  # fmt: skip
def test_speed(benchmark: Any, raced: Raced | None, text: str, algorithm: algos.Algorithm) -> None:
    """Right first, then timed: prepared and warmed, so that neither compilation nor preparation is in the
    clock.
    """
    spec, threads = algos.ConvSpec.parse(text), usable_cores()
    if raced is None:
        verdict = check(spec, algorithm, threads)
        assert verdict.ok, verdict.reason
        error, finding = verdict.max_error, {}
    else:
        record, finding = raced[text, algorithm.name]
        if record.status == "unsupported" and chain(algorithm, spec, threads).unwise():
            pytest.skip(record.reason)  # right, and by the model far too slow here for a race
        assert record.status in ("ok", "too_slow"), record.reason
        error = record.max_error
    made = operands(spec, 0)
    plan = prepared(spec, made.w if spec.direction != "weight_gradient" else None, algorithm, threads)
    call_with = [algorithm.to_device(array) for array in made.call]
    plan(*call_with)
    benchmark.group = text
    benchmark.extra_info.update(
        flops=int(spec.flops), error=error and float(error), threads=int(threads), algorithm=algorithm.name,
        **finding
    )  # fmt: skip

    def call() -> Any:
        result = plan(*call_with)
        algorithm.synchronize()
        return result

    quieten()  # the check's matrix products have left threads that spin
    assert benchmark(call).shape == spec.result_shape
