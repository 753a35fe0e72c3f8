"""Networks as data, their weights, folding, memory and results, against the definition and PyTorch."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from algos.engine.sums import summing
from algos.layers import linear
from bench.cli import main
from bench.networks.arena import Arena, Span, offsets
from bench.networks.builder import Builder
from bench.networks.choose import better, candidates, choose, layouts, least_cut
from bench.networks.executor import Plans, Prepared
from bench.networks.fold import folded
from bench.networks.graph import Network, NetworkError
from bench.networks.reference import reference
from bench.networks.weights import loaded, seeded
from bench.networks.zoo import NETWORKS, network, unet

# Multiply-adds and parameters as published (torchvision's tables; U-Net with normalisation: ours)
COUNTED = {
    "alexnet": (714188480, 61100840), "vgg16": (15470264320, 138357544), "resnet18": (1814073344, 11689512),
    "resnet50": (4089184256, 25557032), "mobilenet_v2": (300774272, 3504872),
}  # fmt: skip
SMALL = {"xo": None, "lenet5": None, "resnet18": 40, "mobilenet_v2": 40}
ERROR = 2e-4  # of the largest output, a float32 network of twenty to fifty layers


def images(net: Network, batch: int = 1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *net.shape), np.float32)


def error(y: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(y - right).max() / np.abs(right).max())


def odd() -> Network:
    """Whatever the known ones have none of: normalisation of its own, shared weights, sums of three, a result
    that is read by many, put together twice, and pools that hang over.
    """
    b = Builder("odd", (2, 13, 11))
    b.batch_norm(name="first")
    b.activation("silu")
    x = b.conv(8, 3, padding=1, name="a")
    y = b.conv(8, 1, name="b", bias=False)
    b.conv(8, 1, weights="b", bias=False, name="again", of=y)
    b.add(x, y, b.last, name="sum")
    b.activation("sigmoid", name="gate")
    b.concat(x, "gate", y, name="both")
    b.average_pool(3, 2, 1, ceil=True)
    b.transposed(6, 3, 2, 1, name="up")
    b.batch_norm()
    x = b.relu()
    t = b.conv(6, 3, padding=1, name="deep")
    b.concat(t, x, t)
    b.max_pool(3, 2, ceil=True)
    b.dense(5)
    return b.network()


def tiny_unet() -> Network:
    return unet.__wrapped__(32, 4)


# ---- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTED)
def test_known_networks_have_their_published_sizes(name):
    net = network(name)
    assert (sum(map(net.macs, net.nodes)), sum(map(net.parameters, net.nodes))) == COUNTED[name]
    trained = [shape for key, shape in net.weight_shapes().items() if "running" not in key]
    assert sum(map(math.prod, trained)) == COUNTED[name][1]


def test_lenet5_is_the_one_of_the_slides():
    shapes = list(network("lenet5").shapes(1).values())
    assert [s[1:] for s in shapes[1:8]] == [
        (20, 28, 28), (20, 28, 28), (20, 14, 14), (50, 14, 14), (50, 14, 14), (50, 7, 7), (500,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda b: b.conv(4, 3, of="nowhere"), "reads nowhere"),
        (lambda b: b.conv(4, 99, name="big"), "big: kernel extent 99 exceeds"),
        (lambda b: [b.conv(4, 3, name="a"), b.conv(4, 3, name="a")], "two nodes are named a"),
        (lambda b: b.add(b.conv(4, 3, name="a"), "input"), "cannot add shapes"),
        (lambda b: [b.dense(3), b.conv(4, 1)], "reads vectors"),
        (lambda b: b.max_pool(40), "a window of 40 exceeds 9"),
        (lambda b: None, "has no nodes"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_line(build, words):
    b = Builder("mine", (1, 9, 9))
    build(b)
    with pytest.raises(NetworkError, match=words) as caught:
        b.network()
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_told_what_was_meant():
    with pytest.raises(NetworkError, match="resnet18"):
        network("resnet81")


# ---- weights ---------------------------------------------------------------------------------------------


def test_seeded_weights_depend_on_the_seed_alone():
    net = network("xo")
    one, other, third = seeded(net), seeded(net), seeded(net, 1)
    assert all((one[name] == other[name]).all() for name in one)
    assert any((one[name] != third[name]).any() for name in one)


def test_own_weights_come_from_npz_and_mistakes_are_told(tmp_path):
    net = network("xo")
    given = seeded(net, 5)
    np.savez(tmp_path / "w.npz", extra=np.zeros(3), **{k: v.astype(np.float64) for k, v in given.items()})
    found = loaded(tmp_path / "w.npz", net)
    assert set(found) == set(given) and all((found[k] == given[k]).all() for k in given)
    np.savez(tmp_path / "less.npz", **{k: v for k, v in given.items() if k != "fc.bias"})
    with pytest.raises(NetworkError, match=r"lacks fc\.bias"):
        loaded(tmp_path / "less.npz", net)
    np.savez(tmp_path / "other.npz", **{**given, "fc.bias": np.zeros(3, np.float32)})
    with pytest.raises(NetworkError, match=r"fc\.bias has shape \(3,\), xo needs \(2,\)"):
        loaded(tmp_path / "other.npz", net)
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(NetworkError, match=r"is no \.npz"):
        loaded(tmp_path / "text.npz", net)


def test_own_weights_come_from_safetensors_where_it_is_installed(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    net = network("xo")
    given = seeded(net, 5)
    library.save_file(given, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors", net)
    assert all((found[k] == given[k]).all() for k in given)


def test_without_safetensors_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(NetworkError, match="pip install safetensors"):
        loaded(tmp_path / "w.safetensors", network("xo"))


# ---- folding, memory, results ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_no_normalisation_and_no_activation_of_its_own(name):
    size = {"vgg16": 32, "alexnet": 63}.get(name, SMALL.get(name))
    net = tiny_unet() if name == "unet" else network(name, size)
    left = {node.op for node in folded(net, seeded(net)).network.nodes}
    assert not left & {"batch_norm", "activation"}


def test_memory_is_reused_and_nothing_lies_on_what_is_still_read():
    for net in (network("resnet18", 64), network("mobilenet_v2", 64), tiny_unet()):
        plain = folded(net, seeded(net)).network
        arena = Arena(plain, 2)
        assert arena.bytes < arena.apart_bytes / 2
    wanted = [Span("a", 100, 0, 1), Span("b", 64, 1, 2), Span("c", 100, 2, 3)]
    at, total = offsets(wanted)
    assert at["a"] == at["c"] == 0 and at["b"] >= 100 and total == at["b"] + 64


@pytest.mark.parametrize("make", [lambda: network("xo"), lambda: network("lenet5"), odd, tiny_unet],
                         ids=["xo", "lenet5", "odd", "unet"])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_results_are_those_of_the_definition(make, batch):
    net = make()
    weights, x = seeded(net), images(net, batch)
    right = reference(net, weights, x)
    run = Prepared(folded(net, weights), batch, threads=2)
    first = run(x)
    assert error(first, right) < ERROR
    out = np.empty_like(first)
    assert run(x, out=out) is out and (out == first).all(), "the same once more, in the caller's memory"
    assert error(run(images(net, batch, 2)), right) > 100 * ERROR, "another picture, another result"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_deep_networks_agree_with_the_definition(name):
    net = network(name, SMALL[name])
    weights, x = seeded(net), images(net)
    assert error(Prepared(folded(net, weights))(x), reference(net, weights, x)) < ERROR


def test_every_algorithm_that_can_runs_the_network():
    net = network("xo")
    weights, x = seeded(net), images(net)
    right = reference(net, weights, x)
    for name in ("direct_channels", "im2row_gemm", "winograd_f2", "fft_fused"):
        run = Prepared(folded(net, weights), algorithms=name, threads=1)
        assert set(run.algorithms.values()) == {name} and error(run(x), right) < ERROR


@pytest.mark.parametrize(
    "make", [lambda: network("lenet5"), lambda: network("mobilenet_v2", 40), odd, tiny_unet],
    ids=["lenet5", "mobilenet_v2", "odd", "unet"],
)  # fmt: skip
def test_pytorch_on_the_same_weights_agrees(make):
    pytest.importorskip("torch")
    from bench.networks.peer import running

    net = make()
    plain, x = folded(net, seeded(net)), images(net, 2)
    theirs = running(plain, "eager channels-last", 1)(x)
    assert error(Prepared(plain, 2)(x), theirs.astype(np.float64)) < ERROR


def test_equal_layers_share_a_plan():
    net = odd()
    run = Prepared(folded(net, seeded(net)))
    convolutions = [node for node in run.net.network.nodes if node.op in ("conv", "transposed")]
    assert len(run.plans) == len(convolutions) - 1  # b and again


def test_wrong_input_is_refused():
    net = network("xo")
    run = Prepared(folded(net, seeded(net)))
    with pytest.raises(NetworkError, match=r"xo takes float32 \(1, 1, 9, 9\)"):
        run(np.zeros((1, 1, 9, 8), np.float32))
    with pytest.raises(NetworkError, match="float64"):
        run(np.zeros((1, 1, 9, 9)))


# ---- choosing and measuring ------------------------------------------------------------------------------


def chain_of(count: int) -> Network:
    b = Builder("chain", (4, 8, 8))
    for at in range(count):
        b.conv(4, 1, name=f"c{at}")
    return b.network()


def test_the_least_cut_is_the_shortest_path_of_a_chain():
    net, draw = chain_of(6), np.random.default_rng(0)
    for _ in range(30):
        near = dict(zip((n.name for n in net.nodes), draw.uniform(1e-4, 1e-3, 6), strict=True))
        far = {name: s * draw.uniform(0.2, 1.4) for name, s in near.items() if draw.random() < 0.8}
        copies = dict.fromkeys(("input", *near), float(draw.uniform(1e-5, 4e-4)))
        here, there = 0.0, math.inf  # the shortest way to either order so far
        for node in net.nodes:
            copy = copies[node.inputs[0]]
            here, there = (
                near[node.name] + min(here, there + copy),
                far.get(node.name, math.inf) + min(there, here + copy),
            )
        layers, seconds = least_cut(net, near, far, copies)
        assert seconds == pytest.approx(min(here, there), abs=1e-7)
        assert set(layers) <= set(far)


def test_candidates_are_chosen_by_their_times_in_the_network():
    net = network("xo")
    plain, x = folded(net, seeded(net)), images(net)
    plans = Plans(plain, 1)
    found = candidates(plain.network, 1, 1, ["direct_channels", "toeplitz", "im2col_gemm"])
    chosen = choose(plain, 1, found, plans, x, 0.2)
    named = {"direct_channels", "toeplitz", "im2col_gemm"}
    assert all(set(times) == named for times in chosen.times.values())
    in_sequence = {layer: min(times, key=times.__getitem__) for layer, times in chosen.times.items()}
    by_model = {layer: found.greedy[layer] if found.greedy[layer] in names else names[0]
                for layer, names in found.by_layer.items()}
    assert chosen.algorithms in (in_sequence, by_model)
    run = Prepared(plain, 1, chosen.algorithms, plans=plans)
    order = layouts(plain, 1, chosen, run, x)
    assert order.seconds <= order.greedy_s * (1 + 1e-6) and (not order.bound or not order.channels_last)


@pytest.mark.parametrize("slow", [0, 1])
def test_of_two_choices_the_one_is_taken_that_is_faster_as_a_whole(slow):
    class Run:
        def use(self, layer, name, call):
            self.call = call

        def __call__(self, x):
            self.call()

    choices = [{"conv": "a"}, {"conv": "b"}]
    calls = {("conv", "ab"[slow]): lambda: time.sleep(5e-3), ("conv", "ba"[slow]): lambda: None}
    assert better(Run(), choices, calls, None, 0.0) == choices[1 - slow]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What one measurement of the smallest network says, without PyTorch's compiler."""
    folder = tmp_path_factory.mktemp("net")
    arguments = ["net", "xo", "--budget", "0.3", "--threads", "1", "--out", str(folder)]
    arguments += ["--algorithms", "direct_channels,im2col_gemm"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as text, redirect_stderr(said):
        patch.setattr("bench.networks.measured.FORMS", ("eager",))
        assert main(arguments) == 0, said.getvalue()
    return text.getvalue(), folder / "net-xo-b1"


def test_the_table_has_every_layer_in_the_networks_order(printed):
    text, folder = printed
    table = text.partition("\n\n")[0].splitlines()[2:]
    assert [row.split()[0] for row in table] == ["conv1", "max_pool1", "conv2", "max_pool2", "fc"]
    data = json.loads((folder / "network.json").read_text())
    assert [layer["parameters"] for layer in data["layers"]] == [30, 0, 168, 0, 50]
    assert {"best", "auto", "direct_channels", "im2col_gemm"} <= {way["name"] for way in data["ways"]}
    assert all(way["error"] < 1e-5 for way in data["ways"])


def test_tables_and_picture_are_written(printed):
    folder = printed[1]
    rows = list(csv.DictReader(io.StringIO((folder / "layers.csv").read_text())))
    assert [row["macs"] for row in rows] == ["1323", "0", "2592", "0", "48"]
    latex = (folder / "layers.tex").read_text()
    assert latex.count(r"\\") == 6 and r"max\_pool1" in latex
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG") and (folder / "picture.svg").exists()


def test_layers_in_sequence_stand_beside_layers_alone(capsys):
    arguments = ["--in-sequence", "xo", "--budget", "0.3", "--threads", "1"]
    assert main(["run", *arguments, "--algorithms", "direct_channels"]) == 0
    text = capsys.readouterr().out
    assert "in sequence / alone" in text and "of end to end" in text
    assert main(["run", "quick", "--in-sequence", "xo"]) == 2


def test_a_network_that_is_none_is_told_in_one_line(capsys):
    assert main(["net", "vgg61"]) == 2
    assert "vgg16" in capsys.readouterr().err


# ---- passes of compiled code -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 10, 500), (3, 7, 33), (4, 5, 1), (2, 70, 4096)])
def test_dense_layers_of_few_images_are_products_of_rows(shape, dtype):
    images, outputs, inputs = shape
    draw = np.random.default_rng(0)
    x, w = (draw.standard_normal((n, inputs)).astype(dtype) for n in (images, outputs))
    bias = draw.standard_normal(outputs).astype(dtype)
    right = x.astype(np.float64) @ w.T
    bound = 2 * inputs * np.finfo(dtype).eps * (np.abs(x) @ np.abs(w).T + 5)
    for threads in (1, 2):
        assert (np.abs(linear(x, w, threads=threads) - right) <= bound).all()
        assert (np.abs(linear(x, w, bias, threads=threads) - right - bias) <= bound).all()


@pytest.mark.parametrize("count", [1, 31, 70_001])
def test_sums_may_take_the_place_of_an_operand(count):
    a, b = np.random.default_rng(0).standard_normal((2, count), np.float32)
    for kind, right in (("none", a + b), ("relu", np.maximum(a + b, 0)), ("relu6", np.clip(4 * a + b, 0, 6))):
        run, first = summing(count, a.dtype, kind, 2), (4 * a if kind == "relu6" else a.copy())
        second = b.copy()
        run(first, second, second)
        assert (second == right).all()
        run(first, b, first)
        assert (first == right).all()
