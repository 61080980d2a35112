"""dask: lazy, right for every chunking, and never more of an array in memory than a few chunks."""

import math
import subprocess
import sys

import numpy as np
import pytest
from oracle import broken_laws, broken_total_laws, exact_norm, groups_of

import normball

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

X = np.random.default_rng(0).standard_normal((6, 7, 5))
CHUNKS = [-1, 1, 2, (6, 3, 2), ((1, 5), (7,), (2, 2, 1)), ((2, 2, 2), (6, 1), (5,))]


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def refuse_to_compute():
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    return dask.config.set(scheduler=refuse)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_right_for_every_chunking(chunks, dtype):
    x = X.astype(dtype)
    given = da.from_array(x, chunks=chunks)
    for axes in ((0,), (1, 2), ()):
        y = normball.norm_constraint(given, 1.5, axes)
        assert (y.chunks, y.dtype) == (given.chunks, given.dtype)
        assert broken_laws(x, y.compute(), 1.5, axes, band=4) == set()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("chunks", CHUNKS[:3], ids=str)
def test_norms_and_total_for_every_chunking(chunks, ord):
    given = da.from_array(X, chunks=chunks)
    norms = normball.compute_norms(given, (0, 2), ord=ord).compute()
    wanted = [float(exact_norm(group, ord)) for group in groups_of(X, (0, 2))]
    assert (np.abs(norms - wanted) <= np.spacing(wanted)).all()
    other = np.float32([3, 4])  # a NumPy array beside it becomes one of dask's
    ys, norm = normball.total_norm_constraint([given, other], 2.0, return_norm=True, ord=ord)
    assert broken_total_laws([X, other], [y.compute() for y in ys], 2.0, ord=ord, band=4) == set()
    assert norm.shape == ()
    assert normball.norm_constraint([given, X], 1.0)[1].tobytes() == normball.norm_constraint(X, 1.0).tobytes()
    whole = float(exact_norm([*X.ravel().tolist(), 3.0, 4.0], ord))
    assert abs(float(norm) - whole) <= np.spacing(whole)


def test_spoilt_chunks_spoil_their_groups_alone():
    x = X.copy()
    x[3, 2, 1], x[5, 0, 4] = np.nan, np.inf
    y = normball.norm_constraint(da.from_array(x, chunks=2), 0.5, 0).compute()
    assert broken_laws(x, y, 0.5, (0,), band=4) == set()


def test_nothing_is_computed_before_it_is_asked_for(refuse_to_compute):
    """Neither the arrays nor the bounds, whatever they will turn out to be."""
    x = da.from_array(X, chunks=2)
    bound = da.from_array(np.linspace(-1, 3, 35).reshape(1, 7, 5), chunks=(1, 3, 2))
    with refuse_to_compute:
        y = normball.norm_constraint(x, bound, 0, bound.sum())
        listed = normball.norm_constraint([x, x], bound, 0)
        total = normball.total_norm_constraint([x, x], bound.sum(), return_norm=True)
        norms = normball.compute_norms(x)
        with pytest.raises(AssertionError, match="computed"):
            y.compute()
    del listed, total, norms


def test_lazy_bounds():
    x, bound = da.from_array(X, chunks=2), np.linspace(0, 3, 35).reshape(1, 7, 5)
    for given in (bound, da.from_array(bound, chunks=(1, 3, 2)), da.from_array(bound, chunks=-1)):
        y = normball.norm_constraint(x, given, 0)
        assert broken_laws(X, y.compute(), bound, (0,), band=4) == set()
        mixed = normball.norm_constraint(X, da.asarray(given), 0)
        assert broken_laws(X, mixed.compute(), bound, (0,), band=4) == set()
    negative = normball.norm_constraint(x, da.from_array(bound - 1, chunks=-1), 0).compute()
    assert np.isnan(negative[:, bound[0] < 1]).all()
    assert not np.isnan(negative[:, bound[0] > 1]).any()


def test_chunks_of_unknown_length():
    x = da.from_array(X[..., 0], chunks=(3, 2))
    known = x[da.from_array(np.arange(6) % 3 > 0, chunks=3)]
    kept = X[np.arange(6) % 3 > 0, :, 0]
    for axes in ((0,), (1,), (0, 1)):
        y = normball.norm_constraint(known, 1.5, axes).compute()
        assert broken_laws(kept, y, 1.5, axes, band=4) == set()


def test_a_group_in_one_chunk_is_made_once():
    made = []

    def count(block):
        made.append(block.shape)
        return block

    x = da.from_array(X[..., 0], chunks=(6, 2)).map_blocks(count, dtype=float, meta=np.empty((0, 0)))
    normball.norm_constraint(x, 1.5, 0).compute()
    assert len(made) == 4
    made.clear()
    normball.norm_constraint(x, 1.5, 1).compute()
    assert len(made) == 8


def test_what_is_no_array_of_numbers_is_refused():
    with pytest.raises(TypeError, match="tensor_var of dtype int64: must be one of"):
        normball.norm_constraint(da.ones((3, 3), dtype="int64"), 1.0)
    with pytest.raises(TypeError, match="max_norm of dtype bool: must hold real numbers"):
        normball.norm_constraint(da.ones((3, 3)), da.ones((), dtype=bool))
    with pytest.raises(ValueError, match=r"max_norm of shape \(3, 1\): must broadcast"):
        normball.norm_constraint(da.ones((3, 3)), da.ones((3, 1)))


def test_chunks_without_a_norm_are_refused():
    """Where dask knows what they are, before anything is computed; else then."""
    masked = da.ma.masked_greater(da.from_array(X, chunks=3), 1)
    message = "tensor_var: chunks of masked arrays have no norm; pass dask.array.ma.filled(tensor_var, 0)"
    unknown = da.from_array(X, chunks=3).map_blocks(np.ma.masked_greater, 1, dtype=float, meta=np.empty((0, 0, 0)))
    for call in (
        lambda: normball.norm_constraint(masked, 1.0),
        lambda: normball.compute_norms(masked),
        lambda: normball.norm_constraint(unknown, 1.0).compute(),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(TypeError, match=r"^tensor_var\[1\]: chunks of masked"):
        normball.total_norm_constraint([da.ones(3), np.ma.masked_array(X)], 1.0)
    filled = normball.norm_constraint(da.ma.filled(masked, 0), 1.0).compute()
    assert broken_laws(np.where(X > 1, 0, X), filled, 1.0, (1, 2), band=4) == set()
    sparse = type("COO", (), {"__module__": "sparse._coo"})()
    with pytest.raises(TypeError, match=r"chunks of sparse.COO have no norm; make them dense, with x.map_blocks"):
        __import__("normball.backends.array_api_dask").backends.array_api_dask.check(sparse, "x")


@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_chunks_of_length_zero(ord):
    x = X[..., 0]
    split = da.from_array(x, chunks=((0, 4, 0, 2), (3, 0, 4)))
    for axes in ((0,), (1,), (0, 1)):
        y = normball.norm_constraint(split, 1.5, axes, ord=ord)
        assert broken_laws(x, y.compute(), 1.5, axes, ord=ord, band=4) == set()
        wanted = normball.compute_norms(da.from_array(x, chunks=-1), axes, ord=ord)
        assert (normball.compute_norms(split, axes, ord=ord) == wanted).all().compute()


OUT_OF_CORE = """
import sys
import numpy as np, dask, dask.array as da, normball

def block(block_info=None):
    info = block_info[None]
    return np.random.default_rng(info["chunk-location"][0]).standard_normal(info["chunk-shape"], np.float32)

def peak():  # that of this process alone, which getrusage does not tell after a fork
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

x = da.map_blocks(block, chunks=((64,) * 200, (4096,)), dtype="float32", meta=np.empty((0, 0), "float32"))
if sys.argv[1] == "ours":
    ys = [normball.norm_constraint(x, 10.0), *normball.total_norm_constraint([x], 10.0)]
else:
    ys = [x * da.minimum(1, 10 / da.sqrt((x * x).sum(axis=0, keepdims=True)))]
before = peak()
with dask.config.set(scheduler="threads", num_workers=2):
    for y in ys:
        y.max().compute()
print(x.nbytes / 2**20, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc for the peak")
@pytest.mark.parametrize("way", ["ours", "formula"])
def test_memory_holds_a_few_chunks(way):
    """200 MiB in chunks of 1 MiB; the plain formula, which keeps every chunk, shows that this test can fail."""
    run = subprocess.run([sys.executable, "-c", OUT_OF_CORE, way], capture_output=True, text=True, check=True)
    size, peak = map(float, run.stdout.split())
    print(run.stdout)
    assert (peak < size / 3) == (way != "formula"), (size, peak)
