"""What a run owes to a GPU: an error costs its worker and not the sweep; where there is none, one line says
why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from algos import algorithms
from algos.spec import ConvSpec
from bench.cases import Settings
from bench.suites import resolve, suited, suites
from bench.timing import Budget
from tests.conftest import HUNG_S
from tests.runs import algorithms_from, measured

SPECS = [ConvSpec.parse(text) for text in ("1x1x32x32,1x1x3x3", "1x1x24x24,1x1x5x5")]
SETTINGS = Settings(launches=2, answer_s=20, slow_s=0.5, budget=Budget(case_s=0.02, rounds=4))

# Algorithms that live on a device which is a flag: once it is lost, every call fails, as after an illegal
# address.
PRETENDED = '''
import traceback
from dataclasses import dataclass

import numpy as np

from algos.contract import Algorithm

STATE = {"lost": False}


class OutOfMemoryError(RuntimeError):
    pass


def use():
    if STATE["lost"]:
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")


@dataclass(frozen=True)
class Steady(Algorithm):
    name: str = "steady"
    family: str = "direct"
    device: str = "cuda"
    runtime: str = "cupy"

    def unsupported(self, spec):
        return None

    def workspace_bytes(self, spec, threads=1):
        return spec.min_bytes

    def prepare(self, spec, weights, threads=1):
        def run(x, out=None):
            use()
            windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], spec.kernel, axis=(1, 2))
            y = np.einsum("nhwij,ij->nhw", windows, weights[0, 0])[:, None]
            self.misbehave()
            return y
        return run

    def misbehave(self):
        pass

    def to_device(self, array):
        use()
        return array

    def to_host(self, array):
        use()
        return array

    def synchronize(self):
        use()


@dataclass(frozen=True)
class Lost(Steady):
    name: str = "loses_the_device"

    def misbehave(self):
        STATE["lost"] = True


@dataclass(frozen=True)
class LostLater(Steady):
    """While it is sampled, with its neighbours open."""

    name: str = "loses_the_device_later"

    def misbehave(self):
        if any(call.name == "sample" for call in traceback.extract_stack()):
            STATE["lost"] = True


@dataclass(frozen=True)
class Refused(Steady):
    """A kernel that cannot be called fails, and the device goes on."""

    name: str = "refused"

    def misbehave(self):
        raise RuntimeError("cudaErrorInvalidConfiguration: invalid configuration argument")


@dataclass(frozen=True)
class Greedy(Steady):
    name: str = "greedy_on_the_device"

    def misbehave(self):
        raise OutOfMemoryError("tried to allocate 1 TiB")


ALGORITHMS = [Steady(), Steady("steady_too"), Lost(), LostLater(), Refused(), Greedy()]
'''


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "pretended"
    folder.mkdir()
    (folder / "pretended.py").write_text(PRETENDED)
    with algorithms_from(folder, tmp_path / "data", monkeypatch):
        yield


@pytest.mark.usefixtures("pretended")
def test_an_error_on_the_device_costs_its_worker_and_no_neighbour(tmp_path: Path) -> None:
    expected = {
        "steady": ("ok", ""),
        "loses_the_device": ("crashed", "the CUDA context is lost: RuntimeError: cudaErrorIllegalAddress"),
        "steady_too": ("ok", ""),
        "loses_the_device_later": ("crashed", "cudaErrorIllegalAddress"),
        "refused": ("error", "cudaErrorInvalidConfiguration"),
        "greedy_on_the_device": ("too_large", "out of memory on the device"),
    }
    outcome = measured(tmp_path / "out", SPECS, list(expected), replace(SETTINGS, launches=1))
    assert len(outcome.records) == len(expected) * len(SPECS)
    for record in outcome.records:
        status, reason = expected[record.algorithm]
        assert record.status == status and reason in record.reason, (
            f"{record.algorithm} {record.spec}: {record.reason}"
        )
        assert len(record.launches) == (1 if status == "ok" else 0)
        for launch in record.launches:
            assert launch.h2d_s is not None and launch.d2h_s is not None


@pytest.mark.usefixtures("pretended")
def test_cold_runs_empty_the_caches_of_the_device(tmp_path: Path) -> None:
    outcome = measured(tmp_path / "out", SPECS, ["steady"], replace(SETTINGS, cold=True, launches=1))
    assert [record.status for record in outcome.records] == ["ok", "ok"]
    assert {launch.loops for record in outcome.records for launch in record.launches} == {1}


@pytest.mark.usefixtures("pretended")
def test_the_suite_measures_what_lives_on_a_gpu() -> None:
    chosen = suited(["gpu"], algorithms())
    assert {"steady", "cupy_fft", "torch_cuda_nchw"} <= {a.name for a in chosen}
    assert {a.device for a in chosen} == {"cuda"}
    for targets in (["gpu", "quick"], ["9x9,3x3"], []):
        assert suited(targets, algorithms()) == algorithms()


def test_the_suite_is_small_and_shows_every_kind() -> None:
    specs, settings = resolve(["gpu"])
    assert len(specs) == len(suites()["gpu"].layers) <= 50
    assert {spec.batch for spec in specs} == {1, 32} and {spec.rank for spec in specs} == {None, 1}
    assert (
        any(spec.groups == spec.in_channels > 1 for spec in specs)
        and max(spec.size[0] for spec in specs) == 4096
    )
    assert max(spec.min_bytes for spec in specs) < 1 << 30
    assert settings.launches == 3


@pytest.mark.skipif(
    any(a.device == "cuda" and a.unavailable() is None for a in algorithms()), reason="a GPU answers here"
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_without_a_gpu_one_line_says_why(convbench, command: str) -> None:
    done = convbench(command, "gpu", timeout=HUNG_S)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("convbench: gpu needs an algorithm on cuda and none runs here: cupy_direct")
