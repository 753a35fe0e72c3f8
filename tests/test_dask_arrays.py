"""Filters of dask arrays are those of the whole array, however it is cut."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from algos.plans import prepared
from tests.cuda_on_cpu import apart
from tests.pretended_cupy import pretended

da = pytest.importorskip("dask.array")
import dask  # noqa: E402  # after it is known to be there

import algos.dask  # noqa: E402

TYPES = ("float64", "float32", "int16", "uint8", "complex64")


@st.composite
def problems(draw):
    """Image, its chunks, kernel, mode, cval, origins; sizes from 1, kernels up to twice as long."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(ndim))
    kernel = tuple(draw(st.integers(1, 6)) for _ in range(ndim))
    dtype = draw(st.sampled_from(TYPES))
    seed = np.random.default_rng(draw(st.integers(0, 99)))
    image = seed.integers(0, 9, shape).astype(dtype)
    weights = seed.integers(0 if dtype == "uint8" else -3, 4, kernel).astype(float)
    cuts = [sorted(draw(st.sets(st.integers(1, n)))) for n in shape]
    chunks = tuple(tuple(np.diff([0, *(c for c in cut if c < n), n]).tolist())
                   for cut, n in zip(cuts, shape, strict=True))  # fmt: skip
    origin = tuple(draw(st.integers(-(k // 2) + (k % 2 == 0), (k - 1) // 2)) for k in kernel)
    mode, cval = draw(st.sampled_from(list(algos.dask.MODES))), draw(st.sampled_from([0.0, 2.0]))
    return image, chunks, weights, mode, cval, origin


def checked(problem):
    image, chunks, weights, *options = problem
    for name in ("convolve", "correlate"):
        lazy = getattr(algos.dask, name)(da.from_array(image, chunks=chunks), weights, *options)
        want = getattr(ndimage, name)(image, weights, None, *options)
        with dask.config.set(scheduler="synchronous"):
            found = lazy.compute()
        assert found.dtype == lazy.dtype == image.dtype == want.dtype and found.shape == lazy.shape
        assert np.allclose(found, want, rtol=1e-5, atol=1e-3)
        if image.dtype.kind in "iu":
            assert np.array_equal(found, want)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problems())
def test_chunks_change_nothing(problem):
    checked(problem)


@pytest.mark.exhaustive
@settings(max_examples=1000, deadline=None)
@given(problems())
def test_chunks_of_many_kinds_change_nothing(problem):
    checked(problem)


def test_a_plan_is_prepared_for_each_shape_of_chunk_once(monkeypatch):
    prepared = []

    def counted(spec, *arguments):
        prepared.append(spec)
        return algos.plan(spec, *arguments)

    monkeypatch.setattr(algos.dask, "plan", counted)
    algos.dask._plans.cache_clear()
    image = da.ones((40, 40), chunks=(5, 5), dtype=np.float32)
    for _ in range(2):
        found = algos.dask.correlate(image, np.ones((3, 3)), mode="constant")
        assert not prepared or len(prepared) == 9  # laziness; then a corner, an edge, ..., the middle
        with dask.config.set(scheduler="synchronous"):
            assert found.sum().compute() == 9 * 40 * 40 - 4 * 3 * 40 + 4
    assert len(prepared) == 9 == len(set(prepared))


def test_axes_on_which_the_kernel_is_short_are_a_batch():
    image = np.random.default_rng(0).standard_normal((3, 2, 4, 5, 6))
    weights = np.arange(8.0).reshape(1, 1, 2, 2, 2)
    lazy = algos.dask.convolve(da.from_array(image, chunks=(1, 2, 2, 5, 3)), weights)
    assert np.allclose(lazy.compute(scheduler="threads"), ndimage.convolve(image, weights))


def test_complex_weights_make_the_result_complex():
    image, weights = np.arange(12.0).reshape(3, 4), np.array([[1, 2j, 3]])
    found = algos.dask.convolve(image, weights, mode="wrap").compute(scheduler="synchronous")
    assert found.dtype == np.complex128 and np.allclose(found, ndimage.convolve(image, weights, mode="wrap"))


@pytest.mark.parametrize(
    ("weights", "options", "told"),
    [
        (np.ones(3), {}, "weights have shape (3,): give 2 axes"),
        (np.ones((3, 3)), {"mode": "mirrored"}, "mode is 'mirrored': did you mean mirror"),
        (np.ones((3, 3)), {"origin": 2}, "origin 2 moves a kernel of 3"),
        (np.ones((3, 3)), {"origin": (1,)}, "origin has 1 numbers"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_computed(weights, options, told):
    with pytest.raises(ValueError) as error:
        algos.dask.correlate(da.ones((8, 8)), weights, **options)
    assert told in str(error.value) and "\n" not in str(error.value)


SQUARE = np.arange(36).reshape(6, 6)


@pytest.mark.parametrize("image", [SQUARE % 7 + 1j, SQUARE % 3 > 0])
@pytest.mark.parametrize("name", ["convolve", "correlate"])
def test_complex_kernels_and_truth_values_are_taken_as_scipy_does(image, name):
    """A correlation conjugates its kernel; sums of truth values are cut off."""
    weights = np.array([[0.3, 0.4, -0.2], [0.1, 0.5, 0.2]]) * (1j if image.dtype.kind == "c" else 1)
    found = getattr(algos.dask, name)(da.from_array(image, chunks=4), weights).compute()
    want = getattr(ndimage, name)(image, weights)
    assert found.dtype == want.dtype and np.allclose(found, want)


@pytest.mark.parametrize("mode", ["reflect", "constant", "wrap"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_chunks_on_a_device_stay_there(dtype, mode, monkeypatch):
    direct = apart(algos.get("cupy_direct"))

    def planned(spec, w, algorithm, threads):
        assert algorithm == ("cupy_direct" if dtype == "int16" else "auto")
        return prepared(spec, w, direct, 1)

    def picked(spec, *, threads, device, accuracy):
        assert (device, accuracy) == ("cuda", "componentwise")
        return SimpleNamespace(algorithm="cupy_direct")

    monkeypatch.setattr(algos.dask, "plan", planned)
    monkeypatch.setattr(algos.dask, "pick", picked)
    algos.dask._plans.cache_clear()
    seed = np.random.default_rng(5)
    image, weights = seed.integers(-9, 9, (20, 23)).astype(dtype), seed.integers(-3, 4, (3, 5)).astype(float)
    want = ndimage.convolve(image, weights, mode=mode, cval=2.0)
    with pretended() as cupy, dask.config.set(scheduler="synchronous"):
        there = cupy.asarray(image)
        x = da.from_array(there, chunks=(7, 9), asarray=False, meta=there[:0, :0])
        lazy = algos.dask.convolve(x, cupy.asarray(weights), mode=mode, cval=2.0)
        row = 0
        for i, rows in enumerate(lazy.chunks[0]):
            col = 0
            for j, cols in enumerate(lazy.chunks[1]):
                found = lazy.blocks[i, j].compute()
                assert type(found) is cupy.ndarray and found.dtype == dtype
                near = want[row : row + rows, col : col + cols]
                assert np.allclose(found.get(), near, rtol=1e-5, atol=1e-4)
                col += cols
            row += rows
    algos.dask._plans.cache_clear()
