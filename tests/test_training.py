"""Training by the suite's own gradients: they are right, equal seeds give equal numbers, and the command says
how it went.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cli import main
from bench.training import TASKS, Network, lenet5, letters, train, xo


def test_gradients_of_a_network_are_differences_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    network, pictures = xo(rng, 1), letters(rng, 8, 0)
    for layer in network.layers:
        layer.weights = [w.astype(np.float64) for w in layer.weights]
    x, target = pictures.x.astype(np.float64), pictures.target
    network.gradients(x, target)
    kept = [g.copy() for layer in network.layers for g in layer.gradients]
    weights = [w for layer in network.layers for w in layer.weights]
    assert len(kept) == len(weights) == 6
    for w, gradient in zip(weights, kept, strict=True):
        direction, before, step, losses = rng.standard_normal(w.shape), w.copy(), 1e-6, []
        for sign in (1, -1):
            w[...] = before + sign * step * direction
            losses.append(network.gradients(x, target))
        w[...] = before
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-5, abs=1e-8)


def test_gradients_of_lenet5_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    F, rng = torch.nn.functional, np.random.default_rng(1)
    network = lenet5(rng, 2)
    x, target = rng.standard_normal((5, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 5)
    loss = network.gradients(x, target)
    c1, b1, c2, b2, d1, e1, d2, e2 = weights = [
        torch.from_numpy(w).requires_grad_() for layer in network.layers for w in layer.weights
    ]
    y = F.max_pool2d(F.relu(F.conv2d(torch.from_numpy(x), c1, b1, padding=2)), 2)
    y = F.max_pool2d(F.relu(F.conv2d(y, c2, b2, padding=2)), 2).flatten(1)
    y = F.linear(F.relu(F.linear(y, d1, e1)), d2, e2)
    expected = F.cross_entropy(y, torch.from_numpy(target))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    gradients = [g for layer in network.layers for g in layer.gradients]
    for ours, w in zip(gradients, weights, strict=True):
        np.testing.assert_allclose(ours, w.grad.numpy(), 1e-3, 1e-4 * float(w.grad.abs().max()))


def test_equal_seeds_give_equal_numbers() -> None:
    found = [list(train(TASKS["xo"], seed, 1, 2))[-1] for seed in (3, 3, 4)]
    assert found[0].losses == found[1].losses
    assert found[0].losses != found[2].losses
    assert found[0].accuracies == found[1].accuracies


def test_letters_are_of_both_kinds_and_nothing_is_learnt_from_what_is_held_back() -> None:
    pictures = letters(np.random.default_rng(5), 60, 40)
    assert [len(part) for part in pictures] == [60, 60, 40, 40]
    assert set(pictures.target) == set(pictures.held_target) == {0, 1}
    assert not any(np.array_equal(a, b) for a in pictures.x for b in pictures.held_x)


def test_the_command_trains_until_it_tells_x_from_o(capsys: Any, tmp_path: Path) -> None:
    assert main(["train", "xo", "--json", "--threads", "1", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracies"][-1] > 0.98
    assert np.mean(found["losses"][-10:]) < 0.3 * np.mean(found["losses"][:10])
    assert sorted(found["files"]) == ["filters", "loss", "maps"]
    for path in found["files"].values():
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_the_command_says_in_one_line_what_is_missing(capsys: Any, monkeypatch: Any) -> None:
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return plain(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["train", "lenet"]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert main(["train", "xo", "--threads", "1,2"]) == 2


@pytest.mark.exhaustive
def test_lenet5_reads_digits() -> None:
    pytest.importorskip("sklearn")
    assert list(train(TASKS["lenet"], 0, TASKS["lenet"].epochs, 2))[-1].accuracies[-1] > 0.97


def test_scores_are_those_of_layers_one_after_another() -> None:
    rng = np.random.default_rng(2)
    network = xo(rng, 1)
    x = rng.standard_normal((3, 1, 16, 16)).astype(np.float32)
    half = Network(network.layers[:2]).scores(x)
    assert half.shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(Network(network.layers[2:]).scores(half), network.scores(x))
