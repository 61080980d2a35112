"""The promises of the README, each on every backend, judged in exact arithmetic."""

import math
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
from conftest import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from oracle import TIGHT_ULPS, broken_laws, broken_total_laws, exact_norm, groups_of, same_bits, ulp

AXES = (0,)
ORDERS = (1, 2, math.inf)


def range_of(dtype):
    """Machine parameters; bfloat16 has float32's exponents."""
    return np.finfo("float32") if dtype == "bfloat16" else np.finfo(dtype)


def lowest_exponent(runner, dtype):
    """Of the entries to try: the smallest subnormal's, or where those are flushed, one far enough from them."""
    info = range_of(dtype)
    flushed = not runner.subnormals and dtype != "float16"  # float16 is computed in float32, where nothing is flushed
    return int(info.minexp) + (60 if flushed else -int(info.nmant))


@st.composite
def cases(draw, dtype, low):
    """An array of groups from anywhere in the dtype's range, and a bound that is often near one of their norms."""
    info = range_of(dtype)
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    spread = draw(st.sampled_from([0, 3, 60]))
    x = np.zeros((rows, columns))
    for column in range(columns):
        base = draw(st.integers(low, int(info.maxexp) - 1))
        for row in range(rows):
            shift = draw(st.integers(-spread, 0))
            mantissa = draw(st.one_of(st.floats(-1, 1, width=16), st.sampled_from([0.0, -0.0, 0.75, 1.0, -0.6])))
            x[row, column] = math.ldexp(mantissa, max(base + shift, low))
    with np.errstate(over="ignore"):
        x = x.astype(FLOATS[dtype])
    x = np.where(np.isfinite(x.astype(np.float64)), x, np.zeros((), x.dtype))
    return x, draw(bounds(x))


@st.composite
def bounds(draw, x):
    norms = [float(min(exact_norm(group), Fraction(2) ** 1023)) for group in groups_of(x, AXES)] or [1.0]
    near = draw(st.sampled_from(norms))
    factor = draw(st.sampled_from([1.0, 0.5, 0.999, 1 + 2**-20, 1e-3, 2.0**-30]))
    nudge = draw(st.sampled_from([0.0, np.inf, -np.inf]))
    bound = near * factor
    bound = bound if nudge == 0 else float(np.nextafter(bound, nudge))
    return draw(st.sampled_from([max(bound, 0.0), max(bound, 0.0), 0.1, 1.0, 3.0, 0.0, math.inf]))


@given(data=st.data())
def test_laws_hold_for_any_finite_input(typed, data):
    runner, dtype = typed
    x, max_norm = data.draw(cases(dtype, lowest_exponent(runner, dtype)))
    epsilon = data.draw(st.sampled_from([1e-7, 0.0, 1e-3]))
    before = x.copy()
    y = runner.constrain(x, max_norm, AXES, epsilon, 2)
    assert broken_laws(x, y, max_norm, AXES, epsilon, band=runner.band) == set()
    assert same_bits(x, before)
    assert same_bits(runner.constrain(y, max_norm, AXES, epsilon, 2), y), "not idempotent"


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("axes", [(), (1,), (0, 1), (-2,)])
def test_laws_hold_for_other_axes_and_orders(runner, axes, ord):
    rng = np.random.default_rng(0)
    for dtype in set(runner.dtypes) & {"float32", "float64", "bfloat16"}:
        x = rng.standard_normal((7, 5)).astype(FLOATS[dtype])
        for max_norm in (0.7, 1.9, 0.0, math.inf):
            y = runner.constrain(x, max_norm, axes, 1e-7, ord)
            assert broken_laws(x, y, max_norm, axes, 1e-7, ord, band=runner.band) == set()


@pytest.mark.parametrize(
    "shape, axes", [((2, 3, 4), (1, 2)), ((2, 3, 4, 2), (0, 2, 3)), ((2, 2, 3, 2, 2), (1, 2, 3, 4))]
)
def test_laws_hold_for_convolutions(runner, shape, axes):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert broken_laws(x, runner.constrain(x, 1.5, axes, 1e-7, 2), 1.5, axes, band=runner.band) == set()


def test_whole_exponent_range_scales_bit_for_bit(typed):
    runner, dtype = typed
    info = range_of(dtype)
    x = np.random.default_rng(2).uniform(0.5, 1, (9, 6)).astype(FLOATS[dtype]) * np.array(1, FLOATS[dtype])
    x[:, 5] *= np.array(0.125, x.dtype)  # compliant
    reference = runner.constrain(x, 1.25, AXES, 0.0, 2)
    assert broken_laws(x, reference, 1.25, AXES, 0.0, band=runner.band) == set()
    # Results stay above 2**-6 of x: within the normal range for every k tried, and x below the largest number.
    for k in range(int(info.minexp) + 8, int(info.maxexp), 1 if info.maxexp < 20 else int(info.maxexp) // 12):
        scaled = np.ldexp(x.astype(np.float64), k).astype(x.dtype)
        result = runner.constrain(scaled, math.ldexp(1.25, k), AXES, 0.0, 2)
        assert same_bits(result, np.ldexp(reference.astype(np.float64), k).astype(x.dtype)), k


def test_comparison_with_the_bound_is_exact(typed):
    """At n = c, and with c one float64 ulp to either side of n."""
    runner, dtype = typed
    x = np.array([[3, 5, 8, 20, 1], [4, 12, 15, 21, 0]]).astype(FLOATS[dtype])
    for column, norm in enumerate([5.0, 13.0, 17.0, 29.0, 1.0]):
        group = x[:, column : column + 1]
        for bound in (norm, np.nextafter(norm, np.inf), np.nextafter(norm, 0)):
            y = runner.constrain(group, float(bound), AXES, 1e-7, 2)
            assert broken_laws(group, y, float(bound), AXES, band=runner.band) == set()
            if not runner.band:
                assert same_bits(group, y) == (bound >= norm)


def test_irrational_norms_are_compared_exactly(runner):
    """The two float64 neighbours of an irrational norm decide opposite ways: the sum must be good to far more bits."""
    rng = np.random.default_rng(3)
    for dtype in {"float32", "float64"} & set(runner.dtypes):
        x = rng.standard_normal((6, 100)).astype(dtype)
        norms = [exact_norm(group) for group in groups_of(x, AXES)]
        nearest = [float(norm) for norm in norms]
        above = [n if Fraction(n) >= norm else np.nextafter(n, np.inf) for n, norm in zip(nearest, norms, strict=True)]
        for bound in (np.array([above]), np.nextafter([above], 0)):
            y = runner.constrain(x, bound, AXES, 1e-7, 2)
            assert broken_laws(x, y, bound, AXES, band=runner.band) == set()


def test_smallest_excess_is_seen(runner):
    """Norms above their bound by far less than any sum in two words can tell."""
    for dtype, small in (("float32", 1e-30), ("float64", 1e-200)):
        if dtype not in runner.dtypes:
            continue
        x = np.array([[1.0, 3.0, 0.6], [small, 4.0, 0.8], [0.0, small, small]], dtype)
        for bound in (1.0, 5.0):
            y = runner.constrain(x, bound, AXES, 1e-7, 2)
            assert broken_laws(x, y, bound, AXES, band=runner.band) == set()


def test_same_input_gives_the_same_bits(runner):
    """Whatever was computed in between, and wherever in memory the input lies."""
    x = np.random.default_rng(10).standard_normal((50, 40)).astype(np.float32)
    first = runner.constrain(x, 3.0, AXES, 1e-7, 2).copy()
    runner.constrain(x[::-1] * 2, 1.0, AXES, 1e-7, 2)
    assert same_bits(runner.constrain(x.copy(), 3.0, AXES, 1e-7, 2), first)
    assert not same_bits(runner.constrain(x, 2.5, AXES, 1e-7, 2), first)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_spoilt_group_is_isolated(runner, value):
    for dtype in runner.dtypes:
        x = np.random.default_rng(4).standard_normal((3, 5)).astype(FLOATS[dtype])
        x[1, 2] = value
        for max_norm in (1.0, 1e9, math.inf):
            y = runner.constrain(x, max_norm, AXES, 1e-7, 2)
            assert broken_laws(x, y, max_norm, AXES, band=runner.band) == set()
            others = [0, 1, 3, 4]
            clean = runner.constrain(np.ascontiguousarray(x[:, others]), max_norm, AXES, 1e-7, 2)
            assert same_bits(np.ascontiguousarray(y[:, others]), clean)


def test_per_group_bounds(runner):
    x = np.random.default_rng(5).standard_normal((6, 4)).astype(np.float32)
    bound = np.array([[0.0, 0.5, 2.0, math.inf]])
    y = runner.constrain(x, bound, AXES, 1e-7, 2)
    assert broken_laws(x, y, bound, AXES, band=runner.band) == set()
    assert same_bits(y[:, 3], x[:, 3])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_arrays(runner, shape):
    x = np.zeros(shape, np.float32)
    assert same_bits(runner.constrain(x, 1.0, AXES, 1e-7, 2), x)
    assert same_bits(runner.norms(x, AXES, 2), np.zeros(shape[1:], runner.norm_dtype))


def test_zero_dimensions(runner):
    x = np.array(-3.0, np.float32)
    y = runner.constrain(x, 2.0, (), 0.0, 2)
    assert broken_laws(x, y, 2.0, (), 0.0, band=runner.band) == set()


def test_long_groups_stay_tight(runner):
    """Long enough for a plain sum's error, about sqrt(n) ulp in float64, to break the law."""
    rng = np.random.default_rng(6)
    for dtype in {"float32", "float64"} & set(runner.dtypes):
        x = rng.standard_normal((10**5, 1)).astype(dtype)
        y = runner.constrain(x, 1.5, AXES, 1e-7, 2)
        picked = np.s_[::997]
        factor = Fraction(1.5) / (exact_norm(groups_of(x, AXES)[0]) + Fraction(1e-7))
        for value, result in zip(x[picked, 0], y[picked, 0], strict=True):
            wanted = Fraction(float(value)) * factor
            assert abs(Fraction(float(result)) - wanted) <= TIGHT_ULPS * ulp(wanted, x.dtype)
        assert exact_norm(groups_of(y, AXES)[0]) <= Fraction(1.5)


@pytest.mark.parametrize("ord", ORDERS)
def test_norms_are_right_and_say_who_complies(runner, ord):
    rng = np.random.default_rng(7)
    for dtype in runner.dtypes:
        x = (rng.standard_normal((8, 5)) * 10.0 ** rng.integers(-3, 4, 5)).astype(FLOATS[dtype])
        norms = runner.norms(x, AXES, ord)
        assert norms.dtype == runner.norm_dtype
        for norm, group in zip(norms, groups_of(x, AXES), strict=True):
            assert abs(Fraction(float(norm)) - exact_norm(group, ord)) <= abs(np.spacing(norm))
        bound = 0.75
        constrained = runner.constrain(x, bound, AXES, 1e-7, ord)
        assert (runner.norms(constrained, AXES, ord) <= bound).all()


@pytest.mark.parametrize("ord", ORDERS)
def test_total_is_one_group(runner, ord):
    rng = np.random.default_rng(8)
    dtypes = [name for name in ("float64", "float32", "float16") if name in runner.dtypes]
    xs = [
        rng.standard_normal((3, 4)).astype(dtypes[0]),
        rng.standard_normal(5).astype(dtypes[-1]),
        np.zeros((0, 2), "float32"),
    ]
    for max_norm in (0.3, 2.0, 1e6, 0.0, math.inf):
        ys, norm = runner.total(xs, max_norm, 1e-7, ord)
        assert broken_total_laws(xs, ys, max_norm, 1e-7, ord, band=runner.band) == set()
        whole = exact_norm([float(v) for x in xs for v in x.reshape(-1)], ord)
        assert abs(Fraction(float(norm)) - whole) <= Fraction(float(np.spacing(norm))) * (1 if not runner.band else 4)
        again, _ = runner.total(ys, max_norm, 1e-7, ord)
        assert all(same_bits(a, y) for a, y in zip(again, ys, strict=True))


def test_total_over_the_whole_range(runner):
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        if "float64" not in runner.dtypes:
            continue
        xs = [np.array([3.0, -1.0]) * scale, np.array([[4.0]]) * scale]
        for bound in (scale * 0.5, scale * 100):
            ys, _ = runner.total(xs, bound, 0.0, 2)
            assert broken_total_laws(xs, ys, bound, 0.0, band=runner.band) == set()


def test_total_of_a_spoilt_list_is_nan(runner):
    xs = [np.ones(3, np.float32), np.array([1.0, np.nan], np.float32)]
    ys, norm = runner.total(xs, 1.0, 1e-7, 2)
    assert all(np.isnan(y).all() for y in ys)
    assert np.isnan(norm)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("name", ["numpy", "pytensor", "jax"])
def test_parts_of_a_group_merge_to_its_norm(name, ord):
    pytest.importorskip(name)
    backend = import_module(f"normball.backends.{name}")
    rng = np.random.default_rng(9)
    parts = [rng.standard_normal((rows, 3)) * scale for rows, scale in ((4, 1.0), (1, 1e200), (3, 0.0))]
    for chosen in (parts, parts[:1], parts[::2]):
        if name == "jax":  # in float32, unless the caller turned float64 on
            chosen = [np.asarray(part, np.float32) for part in chosen if part.max(initial=0) < 1e30]
        merged = backend.norm(backend.merge([backend.summarise(part, AXES, ord) for part in chosen], ord), ord)
        merged = np.asarray(merged.eval() if name == "pytensor" else merged)
        assert merged.shape == (1, 3)
        for norm, group in zip(merged[0], groups_of(np.concatenate(chosen), AXES), strict=True):
            assert abs(Fraction(float(norm)) - exact_norm(group, ord)) <= 3 * Fraction(float(np.spacing(norm)))
