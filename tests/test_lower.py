"""Lowerings: what they leave, put together again, is what the definition says,
exactly; and they cost what they say.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import algos
from algos.contract import Algorithm, Support
from algos.lower.border import fold
from algos.lower.compose import compose
from algos.lower.search import TRIED, _known, chain, chains, unsupported
from algos.lower.tree import STEPS, tree
from algos.spec import ConvSpec, SpecError
from bench.check import check
from bench.data import operands
from bench.oracle import oracle
from tests import wrong

TURNS = ((), ("residues",), ("shuffle",), ("spaced",), ("exchange",))
MODES = ("zeros", "zeros", "reflect", "replicate", "circular", "symmetric", "constant:3")


def drawn(rng: random.Random) -> ConvSpec:
    """Small, of every direction and mode, with crops, borders beyond one turn, and channels in groups."""
    while True:
        ndim, groups = rng.choice([1, 2, 2, 2, 3]), rng.choice([1, 1, 2, 3])

        def some(low: int, high: int, ndim: int = ndim) -> tuple[int, ...]:
            return tuple(rng.randint(low, high) for _ in range(ndim))

        try:
            return ConvSpec(
                rng.randint(1, 3), groups * rng.randint(1, 3), some(1, 9), groups * rng.randint(1, 3),
                some(1, 4), some(1, 3), tuple((rng.randint(-2, 4), rng.randint(-2, 4)) for _ in range(ndim)),
                some(1, 3), groups, dtype="float64", padding_mode=rng.choice(MODES), flip=rng.random() < 0.3,
                direction=rng.choice(["forward", "input_gradient", "weight_gradient"]),
            )  # fmt: skip
        except SpecError:
            continue


def by_definition(leaf: ConvSpec, weights: Any, bias: Any) -> Callable[..., np.ndarray]:
    """Runs a leaf; insists on operands as an algorithm gets them."""
    assert weights is None or weights.shape == leaf.weight_shape

    def run(*arrays: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        assert all(a.flags.c_contiguous for a in arrays)
        if leaf.direction == "forward":
            y = oracle(leaf, arrays[0], arrays[1] if weights is None else weights)
        elif leaf.direction == "input_gradient":
            y = oracle(leaf, None, weights, arrays[0])
        else:
            y = oracle(leaf, arrays[0], None, arrays[1])
        if out is None:
            return y
        out[...] = y
        return out

    return run


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in range(1, 8))])
def test_put_together_again_they_are_the_definition(seed: int) -> None:
    rng, seen = random.Random(seed), set()
    for number in range(250):
        spec = drawn(rng)
        data = operands(spec, number, "integer")
        exact = oracle(spec, data.x, data.w, data.grad)
        for turn in TURNS:
            some = rng.sample(TRIED, rng.randint(0, len(TRIED)))
            names = tuple(name for name in STEPS if name in ("border", "flip", "crop", *turn, *some))
            node = tree(spec, names)
            run = compose(node, None if spec.direction == "weight_gradient" else data.w, by_definition)
            first, again = run(*data.call).copy(), run(*data.call)
            out = np.full(spec.result_shape, 7.0)
            assert run(*data.call, out=out) is out
            for y in (first, again, out):
                np.testing.assert_array_equal(y, exact, err_msg=f"{spec} {names}: {node.words}")
            seen.update(lowered.words.partition(" ")[0] for lowered, _ in node.steps())
    assert len(seen) > 8  # each was met


NATIVE = ("1x3x9x10,4x3x3x3,p1", "1x64x8x8,64x64x1x1", "1x1x64x64,1x1x5x5,p2")


@pytest.mark.parametrize("text", NATIVE)
def test_what_is_native_is_called_without_a_detour(text: str) -> None:
    spec = ConvSpec.parse(text)
    for algorithm in algos.algorithms(spec):
        way = chain(algorithm, spec)
        if algorithm.family != "auto" and way.leaves == (spec,):
            assert way.words == "" and way.node.lowered is None


class Plain(Algorithm):
    """Knows one image of valid 2-D correlation, stride 1, and nothing else."""

    def unsupported(self, spec: ConvSpec) -> str | None:
        simple = (spec.direction, spec.ndim, spec.groups, spec.stride, spec.dilation, spec.padding)
        return (
            None
            if simple == ("forward", 2, 1, (1, 1), (1, 1), ((0, 0), (0, 0)))
            else "computes plain problems"
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return spec.min_bytes * int(np.prod(spec.kernel))

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        def run(x: Any, out: Any = None) -> Any:
            windows = np.lib.stride_tricks.sliding_window_view(x, spec.kernel, axis=(2, 3))
            return np.einsum("nchwij,ocij->nohw", windows, weights, out=out)

        return run


class OnlyWeights(Algorithm):
    """Knows the weights' gradient of one valid 2-D correlation, stride 1, and nothing else."""

    support = Support(directions=("weight_gradient",))

    def unsupported(self, spec: ConvSpec) -> str | None:
        plain = spec.groups, spec.stride, spec.dilation, spec.padding
        simple = plain == (1, (1, 1), (1, 1), ((0, 0), (0, 0)))
        return self.support.lacks(spec) or (None if simple else "computes plain gradients")

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return spec.min_bytes * int(np.prod(spec.kernel))

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        def run(x: Any, grad: Any, out: Any = None) -> Any:
            windows = np.lib.stride_tricks.sliding_window_view(x, spec.kernel, axis=(2, 3))
            return np.einsum("nchwij,nohw->ocij", windows, grad, out=out)

        return run


@pytest.mark.parametrize("text", [
    "2x3x9x10,4x3x3x3,p1", "2x4x9x10,6x2x3x3", "2x3x9x10,4x3x3x3,s2,p1", "2x3x12x11,4x3x3x3,d2,p1",
    "2x3x12x11,4x3x3x3,s2,p1,d2", "2x3x12x11,4x3x3x3,s4x3,d2x5,p2:6", "2x4x9x10,6x2x3x3,s2,p1:0,reflect,flip",
    "2x3x40,4x3x5,p2,s3", "2x3x5x6x7,4x3x3x3x3,p1,s2x1x1", "2x3x3x3,4x3x1x1,s3,p3",
])  # fmt: skip
def test_one_plain_weight_gradient_solves_them_all(text: str) -> None:
    spec, plain = ConvSpec.parse(text).directed("weight_gradient"), OnlyWeights("plain", "gemm")
    verdict = check(spec, plain)
    assert verdict.ok, f"{chain(plain, spec).words}: {verdict.reason}"
    assert sum(leaf.macs for leaf in chain(plain, spec).leaves) <= 1.5 * spec.macs  # no zeros between


class TakesWeights(Plain):
    """The same as ``Plain``, its weights with each call."""

    support = Support(weights_as_operands=True)

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        of = super().prepare
        if weights is None:
            return lambda x, w, out=None: of(spec, w)(x, out)
        return of(spec, weights)


def test_weights_may_be_operands_of_each_call() -> None:
    """Then nothing is prepared at a call of what is prepared once."""
    spec, prepared = ConvSpec.parse("2x3x9x10,4x3x3x3,p1,weight_gradient"), []
    for algorithm in (TakesWeights("takes", "gemm"), algos.get("kn2row_gemm")):
        assert check(spec, algorithm).ok
        assert "exchanged" in chain(algorithm, spec).words
        original = type(algorithm).prepare

        def counted(self: Any, *arguments: Any, of: Any = original) -> Any:
            prepared.append(arguments)
            return of(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(algorithm), "prepare", counted)
            run = chain(algorithm, spec).prepare(None, 1)
            before, data = len(prepared), operands(spec, 0)
            first = run(*data.call)
            assert len(prepared) == before and np.array_equal(run(*data.call), first)


def test_reasons_say_what_they_are_about() -> None:
    depthwise = algos.get("depthwise")
    assert unsupported(depthwise, ConvSpec.parse("1x4x9x9,6x2x3x3")) == (
        "computes depthwise layers, with one input channel a group, not 2"
    )
    plain, weights = Plain("plain", "gemm"), OnlyWeights("weights", "gemm")
    reason = unsupported(algos.get("winograd_f4"), ConvSpec.parse("1x3x56x56,4x3x3x3,weight_gradient"))
    assert reason and "not 54x54" in reason and "images and channels exchanged" in reason
    assert unsupported(weights, ConvSpec.parse("1x4x9x9,6x4x3x3")) == "computes weight_gradient, not forward"
    many = ConvSpec.parse("1x34x9x9,34x1x3x3,weight_gradient")  # groups, one problem each
    assert unsupported(weights, many) == "computes plain gradients"
    assert unsupported(plain, ConvSpec.parse("1x4x9x9,6x4x3x3,weight_gradient")) is None


OPERATOR = [
    "2x3x9x10,4x3x3x3,p1", "2x4x9x10,6x2x3x3,p1", "2x3x9x10,4x3x3x3,s2,p1", "2x3x12x11,4x3x3x3,d2",
    "2x3x12x11,4x3x3x3,s2,p1,d2", "2x3x9x10,4x3x3x3,p1,input_gradient",
    "2x3x9x10,4x3x3x3,s2,p1,input_gradient", "2x3x9x10,4x3x3x3,p1,weight_gradient",
    "2x4x9x10,6x2x3x3,s2,p1,weight_gradient", "2x3x40,4x3x5,p2", "2x3x40,4x3x5,s2,p2,input_gradient",
    "2x3x5x6x7,4x3x3x3x3,p1", "1x3x5x6x7,4x3x3x3x3,p1,input_gradient",
    "1x3x5x6x7,4x3x3x3x3,p1,s2x1x1,weight_gradient", "2x3x9x10,4x3x3x3,p1,reflect",
    "2x3x9x10,4x3x3x3,p1,circular,input_gradient", "2x3x9x10,4x3x3x3,p-1:2,flip",
]  # fmt: skip


@pytest.mark.parametrize("text", OPERATOR)
def test_one_plain_forward_algorithm_solves_the_whole_operator(text: str) -> None:
    spec, plain = ConvSpec.parse(text), Plain("plain", "gemm")
    verdict = check(spec, plain)
    assert verdict.ok, f"{chain(plain, spec).words}: {verdict.reason}"


@pytest.fixture
def lowered_anew() -> Iterator[Callable[[], None]]:
    """Forgets how problems were lowered, now, when it is called, and afterwards."""

    def forget() -> None:
        tree.cache_clear()
        _known.clear()

    forget()
    yield forget
    forget()


@pytest.mark.parametrize("name", wrong.LOWERINGS)
def test_a_wrong_lowering_is_refused(name: str, lowered_anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every class of accuracy, of whoever goes that way."""
    step, change, text = wrong.LOWERINGS[name]
    for other in wrong.WITHOUT.get(step, ()):
        monkeypatch.setitem(STEPS, other, lambda spec: None)
    solvers = Plain("plain", "gemm"), wrong.Right(), algos.get("fft"), algos.get("winograd_f2")
    met = [
        a
        for a in solvers
        if unsupported(a, spec := ConvSpec.parse(text)) is None and step in chain(a, spec).identity.split()
    ]
    assert met and all(check(text, solver).ok for solver in met)
    right = STEPS[step]
    lowered_anew()
    monkeypatch.setitem(STEPS, step, lambda spec: (lowered := right(spec)) and change(lowered, spec))
    for solver in met:
        verdict = check(text, solver)
        assert not verdict.ok and verdict.reason, solver.name


def test_a_peer_is_given_no_more_than_border_and_flip() -> None:
    class Peer(Plain):
        pass

    peer = Peer("somebody", "peer")
    assert unsupported(peer, ConvSpec.parse("1x3x9x10,4x3x3x3,reflect")) is None
    for text in (
        "1x3x9x10,4x3x3x3,p1",
        "1x3x9x10,4x3x3x3,s2",
        "1x3x9x10,4x3x3x3,input_gradient",
        "1x3x9x10,4x3x3x3,p-1",
    ):
        assert unsupported(peer, ConvSpec.parse(text)) is not None


def test_what_multiplies_the_operations_is_no_candidate_but_runs_when_named() -> None:
    spec, plain = ConvSpec.parse("1x3x40x40,4x3x3x3,s4"), Plain("plain", "gemm")
    assert "times the operations" in (chain(plain, spec).unwise or "")
    assert check(spec, plain).ok


def test_both_ways_to_an_input_gradient_are_candidates() -> None:
    spec = ConvSpec.parse("1x8x16x16,8x8x4x4,s2,p1,input_gradient")
    assert len(chains(algos.get("im2col_gemm"), spec)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "2x6x4x4,5x6x4x4,input_gradient",
        "1x3x5,4x3x3,s3,input_gradient",
        "1x6x5x9,4x3x3x3,d2x1,p0x-3,input_gradient",
        "1x8x2x2,8x8x4x4,s2,p1,input_gradient",
    ],
)
def test_the_input_gradient_of_a_single_output_takes_no_more_operations_than_it_has(text: str) -> None:
    spec = ConvSpec.parse(text)
    shuffled = tree(spec, ("shuffle", "crop"))
    assert sum(leaf.flops for leaf in shuffled.leaves) <= spec.flops
    data = operands(spec, 0, "integer")
    y = compose(shuffled, data.w, by_definition)(*data.call)
    np.testing.assert_array_equal(y, oracle(spec, data.x, data.w, data.grad))


@pytest.mark.parametrize("text", [
    "2x3x9x10,3x1x3x3,p1", "2x4x19x34,8x1x3x3,s2,p1", "1x3x9x40,3x1x5x11,s3x2,p2:0x5,d2x1", "2x3x40,6x1x9,p4",
    "2x3x7x7,3x1x3x3,p4,d3,s5", "2x3x9x10,3x1x3x3,p2:-1,circular,flip",
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_depthwise_layers_compute_the_gradient_of_their_weights_themselves(text: str, dtype: str) -> None:
    spec = ConvSpec.parse(text).with_(dtype=dtype, direction="weight_gradient")
    depthwise = algos.get("depthwise")
    assert "exchanged" not in chain(depthwise, spec).words and check(spec, depthwise).ok


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_depthwise_layers_of_three_dimensions_are_solved_tap_by_tap(direction: str) -> None:
    spec = ConvSpec.parse("2x3x5x6x9,3x1x3x3x3,p1").directed(direction)
    depthwise = algos.get("depthwise")
    assert "3 taps apart" in chain(depthwise, spec).words and check(spec, depthwise).ok


def test_a_nan_reaches_no_further_by_the_shuffle() -> None:
    """3 taps at stride 2 leave residues of 2 and of 1, to which zeros would be added."""
    spec = ConvSpec.parse("1x8x16x16,8x8x3x3,s2,p1,input_gradient")
    assert len(chains(algos.get("im2col_gemm"), spec)) == 1 and len(chains(algos.get("fft"), spec)) == 2


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in range(2, 8))])
def test_random_problems_are_solved_as_by_torch(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = random.Random(seed)
    made = np.random.default_rng(seed)
    for _ in range(60):
        have, want, told = _as_torch(torch, rng, made.standard_normal)
        np.testing.assert_allclose(
            have, want.numpy(), rtol=0, atol=1e-10 * max(1.0, float(abs(want).max())), err_msg=told
        )


def _as_torch(torch: Any, rng: random.Random, array: Any) -> tuple[Any, Any, str]:
    """One problem of any kind, by us and by torch."""
    functions, gradients, tensor = torch.nn.functional, torch.nn.grad, torch.from_numpy
    while True:
        ndim, groups = rng.choice([1, 2, 2, 3]), rng.choice([1, 1, 2, 3])
        size, k, s, p, d = (
            [rng.randint(*ends) for _ in range(ndim)] for ends in ((3, 11), (1, 4), (1, 3), (0, 3), (1, 3))
        )
        inner, outer = rng.randint(1, 4), rng.randint(1, 4)
        if all(n + 2 * q >= (t - 1) * e + 1 for n, q, t, e in zip(size, p, k, d, strict=True)):
            break
    kind = rng.choice(["forward", "border", "input", "weight", "transposed"])
    x, w = array((rng.randint(1, 3), groups * inner, *size)), array((groups * outer, inner, *k))
    bias, options = array(groups * outer), (s, p, d, groups)
    told = f"{kind}: x {x.shape}, w {w.shape}, stride {s}, padding {p}, dilation {d}, groups {groups}"
    conv, name = getattr(functions, f"conv{ndim}d"), f"conv{ndim}d"
    use = {"algorithm": "im2col_gemm"}
    if kind == "forward":
        return (
            getattr(algos, name)(x, w, bias, *options, **use),
            conv(tensor(x), tensor(w), tensor(bias), *options),
            told,
        )
    if kind == "border":
        mode, p = (
            rng.choice(["reflect", "replicate", "circular"]),
            [(t - 1) * e // 2 for t, e in zip(k, d, strict=True)],
        )
        p = [min(q, n - 1) for q, n in zip(p, size, strict=True)]
        around = functions.pad(tensor(x), [q for q in reversed(p) for _ in range(2)], mode=mode)
        if any(n < (t - 1) * e + 1 for n, t, e in zip(around.shape[2:], k, d, strict=True)):
            return _as_torch(torch, rng, array)
        have = getattr(algos, name)(x, w, None, s, p, d, groups, padding_mode=mode, **use)
        return have, conv(around, tensor(w), None, s, 0, d, groups), f"{told} {mode}"
    if kind == "transposed":
        more = [rng.randint(0, max(a, b) - 1) for a, b in zip(s, d, strict=True)]
        weights = array((groups * inner, outer, *k))
        sizes = (
            (n - 1) * a - 2 * q + e * (t - 1) + m + 1
            for n, a, q, e, t, m in zip(size, s, p, d, k, more, strict=True)
        )
        if min(sizes) < 1:
            return _as_torch(torch, rng, array)
        given = s, p, more, groups, d
        want = getattr(functions, f"conv_transpose{ndim}d")(tensor(x), tensor(weights), tensor(bias), *given)
        return (
            getattr(algos, f"conv_transpose{ndim}d")(x, weights, bias, *given, **use),
            want,
            f"{told} output_padding {more}",
        )
    grad = array(conv(tensor(x), tensor(w), None, *options).shape)
    if kind == "input":
        given = (x.shape, w, grad)
        want = getattr(gradients, f"{name}_input")(x.shape, tensor(w), tensor(grad), *options)
    else:
        given = (x, w.shape, grad)
        want = getattr(gradients, f"{name}_weight")(tensor(x), w.shape, tensor(grad), *options)
    return getattr(algos, f"{name}_{kind}")(*given, *options, **use), want, told


@pytest.mark.parametrize(("length", "taps", "options"), [  # stride, padding, output padding, groups, dilation
    (1, 1, (2, 1, 2, 1, 3)), (1, 1, (2, 2, 4, 1, 5)), (2, 2, (2, 4, 5, 1, 6)), (3, 2, (2, 5, 7, 1, 8)),
])  # fmt: skip
def test_what_a_transposed_convolution_does_not_reach_is_its_bias(
    length: int, taps: int, options: tuple[int, ...]
) -> None:
    """Also where the padding takes all but the output padding."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    made = np.random.default_rng(0).standard_normal
    x, w, bias = made((2, 3, length)), made((3, 4, taps)), made(4)
    want = torch.nn.functional.conv_transpose1d(*map(torch.from_numpy, (x, w, bias)), *options).numpy()
    for name in ("auto", "im2col_gemm", "fft", "direct_shift"):
        out = np.full_like(want, 7)
        have = algos.conv_transpose1d(x, w, bias, *options, algorithm=name)
        assert algos.conv_transpose1d(x, w, bias, *options, algorithm=name, out=out) is out
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(out, have)


def test_output_padding_may_go_beyond_the_stride() -> None:
    made = np.random.default_rng(0).standard_normal
    x, w, bias = made((2, 3, 5)), made((3, 4, 3)), made(4)
    y = algos.conv_transpose1d(x, w, bias, 2, 1, 1)
    longer = algos.conv_transpose1d(x, w, bias, 2, 1, 4)
    np.testing.assert_allclose(longer[..., :-3], y, rtol=0, atol=1e-13)
    # The padding took one place that taps reach; the second and third gained lie beyond
    beyond = np.broadcast_to(bias[:, None], (2, 4, 3))
    np.testing.assert_allclose(longer[..., -3:], beyond, rtol=0, atol=1e-13)


@pytest.mark.parametrize("text", [
    "2x2x1x3,4x2x1x1,s2x1,p5:-5x5:-4,d1x2,input_gradient", "1x3x2,2x3x2,s2,p-2:3,float64,input_gradient",
    "1x2x2,2x2x1,p4:-2,int8>int32,input_gradient",
])  # fmt: skip
def test_a_crop_of_everything_is_checked_like_anything_else(text: str) -> None:
    for name in ("im2col_gemm", "direct_loops", "fft", "winograd_f2"):
        if unsupported(algos.get(name), ConvSpec.parse(text)) is None:
            assert check(text, algos.get(name)).ok
    assert unsupported(algos.get("im2col_gemm"), ConvSpec.parse(text)) is None


def test_gradients_of_a_bias_are_sums() -> None:
    grad = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(algos.conv1d_bias(grad), grad.sum((0, 2)))
    np.testing.assert_array_equal(algos.conv1d_bias(grad[0]), grad[0].sum(1))
    assert algos.conv2d_bias(np.full((2, 1, 5, 5), 2, np.int8)).tolist() == [100]
    with pytest.raises(OverflowError, match="does not fit int8"):
        algos.conv2d_bias(np.full((4, 1, 20, 20), 1, np.int8))


@pytest.mark.parametrize(("call", "says"), [
    (lambda a: algos.conv2d_input((1, 2, 5, 5), a(3, 2, 3, 3), a(1, 3, 4, 4)),
     "the result of that convolution has"),
    (lambda a: algos.conv2d_weight(a(1, 2, 5, 5), (3, 1, 3, 3), a(1, 3, 3, 3)), "must agree"),
    (lambda a: algos.conv2d_input(a(1, 2, 5, 5), a(3, 2, 3, 3), a(1, 3, 3, 3)), "pass its shape"),
    (lambda a: algos.conv_transpose2d(a(1, 3, 4, 4), a(2, 3, 3, 3)), "channels"),
    (lambda a: algos.conv_transpose2d(a(1, 3, 4, 4), a(3, 2, 3, 3), padding=9), "less padding"),
    (lambda a: algos.conv_transpose2d(a(1, 3, 4, 4), a(3, 2, 3, 3), groups=2), "^w takes 3 channels"),
    (lambda a: algos.conv_transpose2d(a(1, 3, 4, 4), a(3, 2, 3, 3), padding="same"), "numbers"),
    (lambda a: algos.conv_transpose2d(a(1, 3, 4, 4), a(3, 2, 3, 3), output_padding=-1), "0 or more"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        call(lambda *shape: np.ones(shape, np.float32))
    assert "\n" not in str(error.value)


PLANS = ["2x4x9x10,6x2x3x3,s2,p1,input_gradient", "2x3x9x10,4x3x4x4,s2,p1,reflect,input_gradient,flip",
         "2x4x9x10,6x2x3x3,p1,weight_gradient", "2x3x40,4x3x5,s2,p2:-1,circular,weight_gradient",
         "1x3x5x6x7,4x3x3x3x3,p1,symmetric,input_gradient"]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["im2col_gemm", "fft", "direct_shift"])
@pytest.mark.parametrize("text", PLANS)
def test_plans_of_gradients_keep_their_results_apart(text: str, algorithm: str) -> None:
    """From call to call, from thread to thread, pickled, and into any ``out``."""
    spec = ConvSpec.parse(text).with_(dtype="float64")
    many = [operands(spec, seed) for seed in range(4)]
    w = None if spec.direction == "weight_gradient" else many[0].w
    exact = [oracle(spec, d.x, w, d.grad) for d in many]
    plan = algos.plan(spec, w, algorithm=algorithm)
    results = [plan(*d.call) for d in many]
    with ThreadPoolExecutor(4) as pool:
        results += pool.map(lambda d: plan(*d.call), many)
    results += [pickle.loads(pickle.dumps(plan))(*d.call) for d in many]
    for d in many:
        assert not any(np.shares_memory(results[0], a) for a in d.call)
        wide = np.full([2 * n for n in spec.result_shape], 7.0)
        every = tuple(slice(None, None, 2) for _ in wide.shape)
        out = wide[every][..., ::-1]
        assert plan(*d.call, out=out) is out
        results.append(out.copy())
        wide[every] = 7
        assert (wide == 7).all()  # nothing was written between
    for have, want in zip(results, 4 * exact, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-12 * float(abs(want).max()))
    for operand in many[0].call:
        if operand.size >= np.prod(spec.result_shape):
            with pytest.raises(ValueError, match="overlaps"):
                plan(
                    *many[0].call,
                    out=operand.reshape(-1)[: np.prod(spec.result_shape)].reshape(spec.result_shape),
                )


@pytest.mark.parametrize("algorithm", ["im2col_gemm", "fft", "direct_shift"])
def test_an_empty_batch_has_an_empty_gradient_or_zeros(algorithm: str) -> None:
    use = {"stride": 2, "padding": 1, "algorithm": algorithm}
    x, w, g = np.ones((0, 3, 9, 9)), np.ones((4, 3, 3, 3)), np.ones((0, 4, 5, 5))
    assert algos.conv2d_input(x.shape, w, g, **use).shape == x.shape
    np.testing.assert_array_equal(algos.conv2d_weight(x, w.shape, g, **use), np.zeros(w.shape))
    np.testing.assert_array_equal(
        algos.conv2d_weight(x, w.shape, g, out=np.full(w.shape, 7.0), **use), np.zeros(w.shape)
    )
    assert algos.conv_transpose2d(g, w, **use).shape == (0, 3, 9, 9)


@pytest.mark.parametrize("text", [
    "1x1x2000000,1x1x1000,s1000000,input_gradient", "1x1x9000x9000,1x1x3x3,s4500,input_gradient",
    "1x1x2000000,1x1x3,s7,d900000,weight_gradient", "1x1x100000,1x1x3,p90000,circular,input_gradient",
    "1x1x100000,1x1x3,p250000,reflect,input_gradient", "1x1x5,1x1x5,p400000,reflect,input_gradient",
])  # fmt: skip
def test_lowering_takes_steps_for_taps_and_not_for_elements(text: str) -> None:
    spec, fft, steps = ConvSpec.parse(text), algos.get("fft"), 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        way = chain(fft, spec)
        if spec.padding_mode != "zeros":
            fold(spec, np.ones((1, 1, *spec.padded_size)), dx := np.empty(spec.input_shape))
            assert dx.sum() == spec.padded_size[0]
    finally:
        sys.setprofile(None)
    assert way.leaves and steps < 40 * max(1000, *spec.kernel)


@pytest.mark.parametrize("anywhere", [False, True])
def test_weights_lie_side_by_side_unless_an_algorithm_takes_them_anywhere(anywhere: bool) -> None:
    seen: list[np.ndarray] = []

    class Taking(Algorithm):
        support = Support(strided_weights=anywhere)

        def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
            seen.append(weights)
            return lambda grad: grad

    spec = ConvSpec.parse("1x3x5x5,4x3x3x3,p1,input_gradient")
    w = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    chain(Taking("taking", "direct"), spec).prepare(w, 1)
    assert np.array_equal(seen[0], w.swapaxes(0, 1)[..., ::-1, ::-1])
    assert seen[0].flags.c_contiguous != anywhere
    assert np.shares_memory(seen[0], w) == anywhere
