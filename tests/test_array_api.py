"""Libraries of the Array API standard, besides the laws: what they keep to, and what is refused."""

import math
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from oracle import _finfo, broken_laws, broken_total_laws, exact_norm, groups_of

import normball
from normball.backends import array_api
from normball.backends import array_api_portable as portable

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture
def strict():
    """The library that has nothing but the standard, as of 2022.12."""
    library = pytest.importorskip("array_api_strict")
    with library.ArrayAPIStrictFlags(api_version="2022.12"):
        yield library


def test_the_old_standard_is_kept_to(strict):
    with pytest.raises(RuntimeError, match=r"2023\.12"):
        strict.maximum(strict.asarray([1.0]), strict.asarray([2.0]))


def test_another_device_is_kept(strict):
    x = strict.asarray(X, device=strict.Device("device1"))
    assert normball.norm_constraint(x, 1.0).device == x.device
    bound = strict.asarray([[1.0, 2.0, 0.0, math.inf]], device=x.device)
    assert normball.norm_constraint(x, bound).device == x.device
    assert normball.total_norm_constraint([x, x], 1.0)[1].device == x.device
    assert normball.compute_norms(x).device == x.device


def test_without_the_compatibility_library(strict, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "array_api_compat", None)
    y = normball.norm_constraint(strict.asarray(X), 1.0)
    assert broken_laws(X, np.asarray(y), 1.0, (0,), band=4) == set()


def test_an_array_as_bound_is_not_read(strict):
    """So that nothing waits for a device: what is wrong in it shows as NaN."""
    bound = strict.asarray([[1.0, -1.0, math.nan, math.inf]], dtype=strict.float64)
    y = np.asarray(normball.norm_constraint(strict.asarray(X), bound))
    assert np.isnan(y).all(0).tolist() == [False, True, True, False]
    integers = normball.norm_constraint(strict.asarray(X), strict.asarray(1))
    assert broken_laws(X, np.asarray(integers), 1.0, (0,), band=4) == set()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x, xp: normball.norm_constraint(xp.astype(x, xp.int64), 1.0),
            TypeError,
            "tensor_var of dtype int64: must be one of float64, float32, float16, bfloat16; "
            "cast it first, for example tensor_var.astype('float32')",
        ),
        (
            lambda x, xp: normball.norm_constraint(x, 1.0, out=x),
            TypeError,
            "out: arrays of array_api_strict are not written to here; leave it out for a new one",
        ),
        (
            lambda x, xp: normball.norm_constraint([x, x], 1.0, out=[None, x]),
            TypeError,
            "out[1]: arrays of array_api_strict are not written to here; leave it out for a new one",
        ),
        (
            lambda x, xp: normball.norm_constraint(x, np.array([[1.0], [2.0]])),
            ValueError,
            "max_norm of shape (2, 1): must broadcast against the norms, of shape (1, 4) (the reduced axes kept as 1); "
            "add axes of length 1 where the norm is taken",
        ),
        (
            lambda x, xp: normball.norm_constraint(x, np.array(-1.0)),
            ValueError,
            "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda x, xp: normball.total_norm_constraint([x, X], 1.0),
            TypeError,
            "tensor_var[1] of numpy beside an array of array_api_strict: pass arrays of one library",
        ),
        (
            lambda x, xp: normball.norm_constraint(X, xp.asarray(1.0)),
            TypeError,
            "max_norm of array_api_strict beside an array of numpy: pass arrays of one library",
        ),
        (
            lambda x, xp: normball.norm_constraint([X, x, np.ma.masked_array(X)], 1.0),
            TypeError,
            "tensor_var[2]: a masked array has no norm here; pass x.filled(0), or the entries that count",
        ),
        (
            lambda x, xp: normball.norm_constraint(x, xp.asarray(True)),
            TypeError,
            "max_norm of dtype bool: must hold real numbers; convert it to float64 first",
        ),
    ],
)
def test_refusals(strict, call, error, message):
    with pytest.raises(error) as caught:
        call(strict.asarray(X), strict)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "module, name, message",
    [
        (
            "zarr.core.array",
            "Array",
            "tensor_var of type zarr.Array: it lies in storage; pass dask.array.from_zarr(tensor_var), "
            "and write the result with dask.array.to_zarr",
        ),
        (
            "sparse.numba_backend._coo.core",
            "COO",
            "tensor_var of type sparse.COO: it must be dense; pass tensor_var.todense(), "
            "or constrain the values that it stores",
        ),
        (
            "scipy.sparse._csr",
            "csr_array",
            "tensor_var of type scipy.csr_array: it must be dense; pass tensor_var.toarray(), "
            "or constrain the values that it stores",
        ),
        (
            "xarray.core.dataarray",
            "DataArray",
            "tensor_var of type xarray.DataArray: use normball.xarray, which takes the names of dimensions; "
            "or pass tensor_var.data",
        ),
    ],
)
def test_what_is_no_array_here_is_refused_with_the_remedy(module, name, message):
    """By the name of its type: stand-ins do, and nothing is imported."""
    kind = type(name, (), {"__module__": module, "ndim": 2, "__array_namespace__": None})
    for call in (normball.norm_constraint, lambda x, c: normball.compute_norms(x)):
        with pytest.raises(TypeError) as caught:
            call(kind(), 1.0)
        assert str(caught.value) == message
    with pytest.raises(TypeError, match=message.partition(":")[0]):
        normball.total_norm_constraint([kind()], 1.0)


@pytest.mark.parametrize("name", ["jax", "torch", "pytensor"])
def test_one_library_in_a_call(strict, name):
    """The other would read our values, whatever that costs, and give arrays of its own."""
    pytest.importorskip(name)
    other = {
        "jax": lambda: __import__("jax").numpy.ones((2, 2)),
        "torch": lambda: __import__("torch").ones((2, 2)),
        "pytensor": lambda: __import__("pytensor").tensor.dmatrix(),
    }[name]()
    for call in (
        lambda: normball.norm_constraint(strict.asarray(X), other),
        lambda: normball.norm_constraint(other, strict.asarray(1.0)),
        lambda: normball.norm_constraint([X, other], [1.0, strict.asarray(1.0)]),
        lambda: normball.total_norm_constraint([other, strict.asarray(X)], 1.0),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        names = " and ".join(sorted(["array_api_strict", name]))
        assert str(caught.value) == f"arrays of {names} in one call: pass arrays of one library"


def test_numpy_in_a_list_has_the_bits_it_has_alone(strict):
    tie = np.array([[3.0, 0.3], [4.0, 0.4]])  # decided exactly by the kernels, within the band here
    kept, moved = normball.norm_constraint([tie, strict.asarray(tie)], 5.0)
    assert type(kept) is np.ndarray
    assert kept.tobytes() == tie.tobytes() != np.asarray(moved).tobytes()


def test_array_api_compat_gives_arrays_of_their_own_library():
    pytest.importorskip("array_api_compat")
    torch = pytest.importorskip("torch")
    import array_api_compat.numpy
    import array_api_compat.torch

    assert type(normball.norm_constraint(array_api_compat.torch.ones((2, 2)), 1.0)) is torch.Tensor
    assert type(normball.norm_constraint(array_api_compat.numpy.ones((2, 2)), 1.0)) is np.ndarray


HUGE, TINY = 2.0**1023, 2.0**-1074
EXTREMES = {
    "entries 2**1500 apart": ([[2.0**700, 2.0**-800, -(2.0**-700)]], 2.0**690, 1e-7),
    "entries 2**2000 apart": ([[HUGE, 3 * TINY, 2.0**-1000]], HUGE * 0.75, 0.0),
    "a bound of zero": ([[HUGE, TINY, -1.0]], 0.0, 0.0),
    "an epsilon that dwarfs the norm": ([[0.75, -0.5, TINY]], 0.25, HUGE),
    "an infinite epsilon": ([[HUGE, -0.5, TINY]], 0.25, math.inf),
    "a subnormal bound": ([[HUGE, 1.0, 2.0**-1000]], 5 * TINY, 0.0),
    "subnormal numbers": ([[7 * TINY, -5 * TINY, TINY]], 6 * TINY, 0.0),
    "a subnormal epsilon": ([[7 * TINY, -5 * TINY, TINY]], 6 * TINY, 3 * TINY),
    "the largest": ([[1.75 * HUGE] * 3], 1.75 * HUGE, 1e-7),
    "an epsilon as large as the norm": ([[2.0**600, 2.0**-400, 1.0]], 2.0**599, 2.0**600),
}


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("case", EXTREMES)
def test_the_whole_range_of_float64_in_one_group(strict, case, ord):
    values, bound, epsilon = EXTREMES[case]
    x = np.array(values)
    y = normball.norm_constraint(strict.asarray(x), bound, 1, epsilon, ord=ord)
    assert broken_laws(x, np.asarray(y), bound, (1,), epsilon, ord, band=4) == set()
    (total,) = normball.total_norm_constraint([strict.asarray(x)], bound, epsilon, ord=ord)
    assert broken_total_laws([x], [np.asarray(total)], bound, epsilon, ord, band=4) == set()
    again = normball.norm_constraint(y, bound, 1, epsilon, ord=ord)
    assert np.asarray(again).tobytes() == np.asarray(y).tobytes()


def _unsupported(*args, **kwargs):
    raise ValueError("float64 is not supported on the GPU")


@pytest.mark.parametrize(
    "library",
    [
        {
            "float64": "float32",
            "astype": lambda x, dtype: SimpleNamespace(dtype=dtype),
            "asarray": lambda x, dtype: SimpleNamespace(dtype=dtype),
        },  # as JAX
        {"float64": "float64", "astype": _unsupported, "asarray": _unsupported},  # as MLX on a GPU
        {"astype": None},
    ],
    ids=["narrower", "refused", "absent"],
)
def test_a_library_without_float64_is_refused(library):
    """Silently narrower sums would break every promise."""
    namespace = ModuleType("stranger")
    vars(namespace).update(library)

    class Stranger:
        ndim, shape, dtype = 2, (2, 2), "float32"

        def __array_namespace__(self, api_version=None):
            return namespace

    Stranger.__module__ = "stranger.core"
    for call in (
        lambda: normball.norm_constraint(Stranger(), 1.0),
        lambda: normball.compute_norms(Stranger()),
        lambda: normball.total_norm_constraint([Stranger()], 1.0),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == (
            "arrays of stranger have no float64 here, which sums are kept in: turn it on, choose a device that has it "
            "(in MLX the CPU), or pass NumPy's"
        )


def _constrained(x, bound, epsilon, ord):
    """By the portable file, on NumPy's arrays, which the backend itself leaves to NumPy's."""
    xp = portable.namespace(x)
    with portable.quiet():
        norms = portable.norms(xp, x, (0,), ord, x.dtype == np.float64)
        return portable.rescaled(xp, x, norms, *(portable.as_float64(value, x) for value in (bound, epsilon)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_groups_and_bounds_of_any_size(dtype):
    """Bounds at the norm, within its last bits, and far from it; epsilons of any size."""
    kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    info, rng = _finfo(kind), np.random.default_rng(11)
    low, high = info.minexp - info.nmant, info.maxexp
    for _ in range(150):
        below = rng.integers(0, rng.choice([1, 4, 60, high - low]), (rng.integers(1, 30), 4))
        entries = rng.choice([rng.uniform(-1, 1, below.shape), rng.choice([0, 1, -0.75], below.shape)])
        x = np.ldexp(entries, np.maximum(rng.integers(low, high) - below, low)).astype(kind)
        ord = rng.choice([1, 2, math.inf])
        with np.errstate(over="ignore"):
            near = np.minimum(normball.compute_norms(x.astype(float), 0, ord=ord), HUGE)
            bound = near * rng.choice([1, 1 - 2.0**-52, 1 - 2.0**-50, 1 - 2.0**-40, 0.5, 2.0**-20, 2.0**-1000, 0], 4)
        bound = np.nextafter(bound, rng.choice([0, np.inf, np.nan])) if rng.random() < 0.3 else bound
        bound = np.where(np.isnan(bound), math.inf, bound)[None]
        epsilon = rng.choice([0.0, 1e-7, math.ldexp(1, int(rng.integers(-1074, 1024)))])
        y = _constrained(x, bound, epsilon, ord)
        assert broken_laws(x, y, bound, (0,), epsilon, ord, band=4) == set(), (x, bound, epsilon, ord)
        assert _constrained(y, bound, epsilon, ord).tobytes() == y.tobytes(), (x, bound, epsilon, ord)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_no_rounding_of_the_factor_is_left_out(length):
    """So many groups of equal entries that some meet the worst of every rounding at once."""
    rng = np.random.default_rng(12)
    x = np.tile(rng.uniform(1, 2, 20000), (length, 1))
    bound = rng.uniform(0.5, 1, (1, 20000))
    y = _constrained(x, bound, 0.0, 2)
    for result, c in zip(y[0].tolist(), bound[0].tolist(), strict=True):
        assert length * Fraction(result) ** 2 <= Fraction(c) ** 2
    assert (y[0] >= bound[0] / math.sqrt(length) * (1 - 4 * 2.0**-52)).all()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_spoilt_spoils_its_group_alone(dtype, ord):
    """By an entry, a bound or an epsilon; zeros are a group as any other."""
    values = [1.0, np.nan, np.inf, -np.inf, -0.0]
    x = np.repeat(np.array([values, [-0.0, 1, np.nan, 1, 0]], dtype), 5, axis=1)
    bounds = np.tile([0.0, 0.5, math.inf, math.nan, -1.0], 5)[None]
    wrong = ~(bounds[0] >= 0)
    for epsilon in (0.0, 1e-7, math.inf):
        y = _constrained(x, bounds, epsilon, ord)
        assert np.isnan(y[:, wrong]).all()
        assert broken_laws(x[:, ~wrong], y[:, ~wrong], bounds[:, ~wrong], (0,), epsilon, ord, band=4) == set()
    for epsilon in (math.nan, -1.0):
        assert np.isnan(_constrained(x, bounds, epsilon, ord)).all()


# The second bound makes the largest entry of the result gain all that rounding to float32 can.
@pytest.mark.parametrize("first, bound", [(1.0, 1 + 2.0**-44), (2.0, 1 + 2.0**-23 + 2.0**-46)])
@pytest.mark.parametrize("ord, small", [(1, 2.0**-54), (2, 2.0**-27)])
def test_a_library_may_sum_in_any_order(ord, small, first, bound):
    """One after the other none of the small entries is seen: norms are above what they are as computed."""
    x = first * np.array([[1.0]] + [[small]] * 2**15, np.float32)
    standard = portable.namespace(x)
    in_order = {name: getattr(standard, name) for name in dir(standard)}
    in_order["sum"] = lambda terms, axis: np.cumsum(terms, axis=axis)[..., -1]
    xp = SimpleNamespace(**in_order)
    norms = portable.norms(xp, x, (0,), ord, False)
    assert norms.high == first < float(exact_norm(groups_of(x, (0,))[0], ord)) - first * 2.0**-41
    y = portable.rescaled(xp, x, norms, np.asarray(bound), np.asarray(0.0))
    assert broken_laws(x, y, bound, (0,), 0.0, ord, band=4) == set()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("lazy", [False, True], ids=["strict", "dask"])
def test_parts_of_a_group_merge_to_its_norm(strict, lazy, ord):
    made = pytest.importorskip("dask.array").asarray if lazy else strict.asarray
    x = X.astype(float)
    parts = [x[:4], x[4:5] * 1e200, np.zeros((3, 4)), np.full((1, 4), 2.0**-1074)]
    for chosen in (parts, parts[:1], parts[::2], parts[2:]):
        merged = array_api.norm(
            array_api.merge([array_api.summarise(made(part), (0,), ord) for part in chosen], ord), ord
        )
        norms = np.asarray(merged)
        assert norms.shape == (1, 4)
        for norm, group in zip(norms[0], groups_of(np.concatenate(chosen), (0,)), strict=True):
            assert abs(Fraction(float(norm)) - exact_norm(group, ord)) <= 3 * Fraction(float(np.spacing(norm)))


def test_powers_are_exact():
    """With a library's that are not, too."""
    exponents = np.arange(-1000.0, 1001.0)
    for power in (
        np.power,
        lambda two, k: np.power(two, k) * (1 + 2.0**-40),
        lambda two, k: np.power(two, k) * (1 - 2.0**-40),
    ):
        xp = SimpleNamespace(pow=power, full_like=np.full_like)
        assert (portable._power(xp, exponents) == np.ldexp(1.0, exponents.astype(int))).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_are_never_above(dtype):
    """Over the whole range, subnormal numbers too: at most two ulp below, and with the sign."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    info = _finfo(dtype)
    rng = np.random.default_rng(1)
    low, high = info.minexp - info.nmant - 1, info.maxexp
    x = np.ldexp(rng.uniform(-1, 1, 20000), rng.integers(low, high, 20000)).astype(dtype)
    factor = rng.uniform(0, 1, 20000) * 2.0 ** rng.integers(-30, 1, 20000)
    with portable.quiet():
        result = portable._narrow_product(portable.namespace(x), x, factor).astype(float)
    exact = x.astype(float) * factor  # rounded, but by far less than the ulp of the dtype
    ulp = 2.0 ** (np.maximum(np.frexp(exact)[1] - 1, info.minexp) - info.nmant)
    assert (np.abs(result) <= np.abs(exact)).all()
    assert (np.abs(result - exact) <= 2 * ulp).all()
    assert (np.signbit(result) == (x < 0)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_mlx(dtype):
    mlx = pytest.importorskip("mlx.core")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    mlx.set_default_device(mlx.cpu)  # float64 is not on its GPUs
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = X.astype(kind)
    x[:, 1] = np.array([3.0, 4.0, 0, 0, 0, 0]) * (float(ml_dtypes.finfo(kind).max) / 8)
    given = mlx.array(x.astype(np.float64), dtype=mlx.float64).astype(getattr(mlx, dtype))

    def back(y):
        assert y.dtype == given.dtype
        return np.array(y.astype(mlx.float64)).astype(kind)

    y = back(normball.norm_constraint(given, 1.5))
    assert broken_laws(x, y, 1.5, (0,), band=4) == set()
    bound = np.array([[0.0, 1.5, 2.0, math.inf]])
    assert broken_laws(x, back(normball.norm_constraint(given, bound)), bound, (0,), band=4) == set()
    ys = normball.total_norm_constraint([given, given], 2.0)
    assert broken_total_laws([x, x], list(map(back, ys)), 2.0, band=4) == set()
    assert (np.array(normball.compute_norms(normball.norm_constraint(given, 1.5))) <= 1.5).all()
