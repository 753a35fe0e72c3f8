"""What the lecture slides say of moved pictures, as laws of drawn ones: convolution moves with them and does
not turn with them; pooling does not see small moves, and over the whole picture none.

Numbers are small and whole, so that sums are exact and both sides of a law are equal bit by bit.
"""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from algos import conv2d, layers

SOME = settings(max_examples=25, deadline=None, derandomize=True)
KERNELS = st.sampled_from([(1, 1), (3, 3), (2, 3)])  # few: compiled algorithms compile for each
SEEDS = st.integers(0, 1 << 30)


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float64)


@SOME
@given(SEEDS, KERNELS, st.integers(-20, 20), st.integers(-20, 20))
def test_a_shift_of_the_input_shifts_the_output(seed: int, kernel: tuple, down: int, along: int) -> None:
    """Everywhere, where the border wraps around."""
    rng = np.random.default_rng(seed)
    x, w = whole(rng, 2, 3, 9, 11), whole(rng, 4, 3, *kernel)
    moved = conv2d(np.roll(x, (down, along), (2, 3)), w, padding="same", padding_mode="circular")
    y = conv2d(x, w, padding="same", padding_mode="circular")
    np.testing.assert_allclose(moved, np.roll(y, (down, along), (2, 3)), atol=1e-9)


@SOME
@given(SEEDS, KERNELS, st.integers(0, 4), st.integers(0, 4), st.integers(1, 2))
def test_so_it_does_with_zeros_around_and_with_strides(
    seed: int, kernel: tuple, down: int, along: int, stride: int
) -> None:
    """A picture that stays inside moves by multiples of the stride, and what it gives by so many outputs."""
    rng = np.random.default_rng(seed)
    w, small = whole(rng, 2, 1, *kernel), whole(rng, 1, 1, 5, 6)
    results = []
    for at in ((4, 4), (4 + down * stride, 4 + along * stride)):
        x = np.zeros((1, 1, 22, 24))
        x[:, :, at[0] : at[0] + 5, at[1] : at[1] + 6] = small
        results.append(conv2d(x, w, stride=stride))
    here, moved = results
    rows, columns = here.shape[2] - down, here.shape[3] - along
    np.testing.assert_allclose(moved[:, :, down:, along:], here[:, :, :rows, :columns], atol=1e-9)


@SOME
@given(SEEDS)
def test_a_turn_of_the_input_does_not_turn_the_output(seed: int) -> None:
    """It would take a turn of the kernel, too: a point in the middle is the same turned, and what a kernel
    makes of it is not, unless the kernel is.
    """
    rng = np.random.default_rng(seed)
    w = whole(rng, 1, 1, 3, 3)
    turned = np.rot90(w, 1, (2, 3))
    assume(not np.array_equal(w, turned))
    x = np.zeros((1, 1, 7, 7))
    x[0, 0, 3, 3] = 1
    assert not np.array_equal(conv2d(np.rot90(x, 1, (2, 3)), w), np.rot90(conv2d(x, w), 1, (2, 3)))
    x = whole(rng, 1, 1, 7, 8)
    both = conv2d(np.rot90(x, 1, (2, 3)), turned)
    np.testing.assert_allclose(both, np.rot90(conv2d(x, w), 1, (2, 3)), atol=1e-9)


@SOME
@given(SEEDS, st.integers(2, 4))
def test_pooling_does_not_see_where_in_a_window_something_is(seed: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    parts = whole(rng, 3, 4, window * window)  # (rows, columns, elements of a window)
    mixed = rng.permuted(parts, axis=2)
    pictures = [some.reshape(3, 4, window, window).swapaxes(1, 2).reshape(1, 1, 3 * window, 4 * window)
                for some in (parts, mixed)]  # fmt: skip
    for pool in (layers.max_pool2d, layers.avg_pool2d):
        assert np.array_equal(*(pool(x, window) for x in pictures))
    assert np.array_equal(*(layers.lp_pool2d(x, 2, window) for x in pictures))


@SOME
@given(SEEDS, st.integers(0, 1), st.integers(0, 1))
def test_a_maximum_stays_where_a_small_move_stays_in_its_window(seed: int, down: int, along: int) -> None:
    """Single peaks, each in the first place of a window of 2 x 2."""
    rng = np.random.default_rng(seed)
    x = np.zeros((1, 1, 8, 10))
    x[:, :, ::2, ::2] = np.abs(whole(rng, 4, 5))
    moved = np.roll(x, (down, along), (2, 3))
    assert np.array_equal(layers.max_pool2d(moved, 2), layers.max_pool2d(x, 2))


@SOME
@given(SEEDS, st.integers(-20, 20), st.integers(-20, 20))
def test_pooling_of_all_places_sees_no_shift(seed: int, down: int, along: int) -> None:
    x = whole(np.random.default_rng(seed), 2, 3, 9, 11)
    moved = np.roll(x, (down, along), (2, 3))
    assert np.array_equal(layers.global_avg_pool(moved), layers.global_avg_pool(x))
    assert np.array_equal(layers.max_pool2d(moved, (9, 11)), layers.max_pool2d(x, (9, 11)))
