"""xarray: names for axes, and everything around the numbers kept."""

import doctest

import numpy as np
import pytest

import normball

xarray = pytest.importorskip("xarray")

import normball.xarray as ours  # noqa: E402
from normball.xarray import compute_norms, norm_constraint, total_norm_constraint  # noqa: E402

X = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)


def weights(chunked=False):
    array = xarray.DataArray(
        X,
        dims=("input", "unit", "head"),
        coords={"unit": list("abcd"), "depth": ("input", np.arange(6)), "both": (("input", "unit"), X[..., 0])},
        name="w",
        attrs={"units": "1"},
    )
    return array.chunk(2) if chunked else array


@pytest.fixture(params=[False, True], ids=["numpy", "dask"])
def array(request):
    if request.param:
        dask = pytest.importorskip("dask")
        with dask.config.set(scheduler="synchronous"):
            yield weights(True)
    else:
        yield weights()


@pytest.mark.parametrize("dim, axes", [("input", 0), (["head", "input"], (0, 2)), (..., (0, 1, 2)), ([], ())])
def test_names_are_axes(array, dim, axes):
    y = norm_constraint(array, 1.25, dim)
    assert y.chunks == array.chunks
    xarray.testing.assert_allclose(y, array.copy(data=normball.norm_constraint(X, 1.25, axes)), rtol=1e-6)
    norms = compute_norms(array, dim)
    assert (norms.chunks is None) == (array.chunks is None)
    assert norms.dtype == np.float64
    np.testing.assert_allclose(norms, normball.compute_norms(X, axes), rtol=1e-15)
    assert (compute_norms(y, dim) <= 1.25).all()


def test_everything_around_is_kept(array):
    y, norms = norm_constraint(array, 1.25, "input"), compute_norms(array, "input")
    for result in (y, norms):
        assert (result.name, result.attrs) == ("w", {"units": "1"})
    assert y.dims == array.dims
    assert set(y.coords) == set(array.coords)
    assert norms.dims == ("unit", "head")
    assert set(norms.coords) == {"unit"}


def test_bounds_have_names_too(array):
    bound = xarray.DataArray(np.linspace(0, 3, 12).reshape(3, 4), dims=("head", "unit"))
    wanted = normball.norm_constraint(X, bound.values.T[None], 0)
    np.testing.assert_allclose(norm_constraint(array, bound, "input"), wanted, rtol=1e-6)
    if array.chunks:
        lazy = norm_constraint(array, bound.chunk(2), "input")
        np.testing.assert_allclose(lazy, wanted, rtol=1e-6)
        np.testing.assert_allclose(norm_constraint(weights(), bound.chunk(2), "input"), wanted, rtol=1e-6)
    single = norm_constraint(array, xarray.DataArray(1.5), "input", xarray.DataArray(0.5))
    np.testing.assert_allclose(single, normball.norm_constraint(X, 1.5, 0, 0.5), rtol=1e-6)
    labelled = bound.assign_coords(unit=list("abcd"))
    np.testing.assert_allclose(norm_constraint(array, labelled, "input"), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="unit"):
        norm_constraint(array, bound.assign_coords(unit=list("abce")), "input")


def test_total_of_a_dataset(array):
    dataset = xarray.Dataset({"w": array, "b": ("unit", np.array([3.0, 4, 0, 0]))}, attrs={"title": "model"})
    clipped, norm = total_norm_constraint(dataset, 1.5, return_norm=True)
    (w, b), wanted = normball.total_norm_constraint([X, dataset["b"].values], 1.5, return_norm=True)
    np.testing.assert_allclose(clipped["w"], w, rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], b, rtol=1e-6)
    np.testing.assert_allclose(norm, wanted, rtol=1e-15)
    assert norm.dims == ()
    assert (clipped.attrs, clipped["w"].attrs) == (dataset.attrs, array.attrs)
    assert list(clipped.data_vars) == ["w", "b"]
    assert set(clipped.coords) == set(dataset.coords)
    listed = total_norm_constraint([dataset["w"], dataset["b"]], xarray.DataArray(1.5))
    for one in listed:
        xarray.testing.assert_equal(one, clipped[one.name])
    assert total_norm_constraint([], 1.0) == []


def test_nothing_is_computed_before_it_is_asked_for():
    dask = pytest.importorskip("dask")

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    array, bound = weights(True), xarray.DataArray(np.ones((4, 3)), dims=("unit", "head")).chunk(2)
    with dask.config.set(scheduler=refuse):
        norm_constraint(array, bound, "input")
        compute_norms(array, "input")
        total_norm_constraint({"w": array}.values(), bound.sum(), return_norm=True)
        total_norm_constraint(array.to_dataset(), 1.0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x: norm_constraint(x, 1.0, "inputs"),
            ValueError,
            "dim='inputs': 'inputs' is no dimension of the array, which has ('input', 'unit', 'head')",
        ),
        (
            lambda x: norm_constraint(x, xarray.DataArray([1.0], dims="input"), "input"),
            ValueError,
            "max_norm with dimension 'input': must have dimensions of the norms only, ('unit', 'head')",
        ),
        (
            lambda x: norm_constraint(x.data, 1.0, "input"),
            TypeError,
            "array of type ndarray: must be an xarray.DataArray; wrap it in one",
        ),
        (
            lambda x: total_norm_constraint([x, 1.0], 1.0),
            TypeError,
            "arrays[1] of type float: must be an xarray.DataArray; wrap it in one",
        ),
        (
            lambda x: normball.norm_constraint(x, 1.0),
            TypeError,
            "tensor_var of type xarray.DataArray: use normball.xarray, which takes the names of dimensions; "
            "or pass tensor_var.data",
        ),
        (
            lambda x: norm_constraint(x, 1.0, ["input", "input"]),
            ValueError,
            "norm_axes=(0, 0): axis 0 is named twice; name each axis once",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call(weights())
    assert str(caught.value) == message


def test_coordinates_of_every_kind():
    """None; and several names for one dimension, which no bound may contradict."""
    bare = xarray.DataArray(X)
    np.testing.assert_array_equal(norm_constraint(bare, 1.0, "dim_0"), normball.norm_constraint(X, 1.0, 0))
    stacked = weights().stack(place=("unit", "head"))
    y, norms = norm_constraint(stacked, 1.0, "input"), compute_norms(stacked, "input")
    assert list(y.indexes["place"]) == list(norms.indexes["place"]) == list(stacked.indexes["place"])
    np.testing.assert_array_equal(y.unstack("place"), norm_constraint(weights(), 1.0, "input"))
    np.testing.assert_array_equal(norms.unstack("place"), compute_norms(weights(), "input"))
    bounds = xarray.full_like(norms, 1.0)
    xarray.testing.assert_identical(norm_constraint(stacked, bounds, "input"), y)
    with pytest.raises(ValueError, match="place"):
        norm_constraint(stacked, bounds[::-1], "input")


def test_examples_of_docstrings():
    result = doctest.testmod(ours)
    assert result.attempted > 0
    assert result.failed == 0
