"""The C kernels and their NumPy fallback against the definition, in exact arithmetic.

Nothing here has a tolerance but the 4 units in the last place that the promise itself allows.
"""

import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from normball import definition
from normball.kernels import fallback

ml_dtypes = pytest.importorskip("ml_dtypes")

try:
    from normball.kernels import _native, native
except ImportError:
    _native = native = None

needs_native = pytest.mark.skipif(
    native is None, reason="the C kernels are not built: pip install -e . with a C compiler"
)
KERNELS = [pytest.param(native, id="native", marks=needs_native), pytest.param(fallback, id="fallback")]
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
ORDERS = [1, 2, math.inf]
# Shapes and axes that reach every loop: rows, short rows, columns, several dims in both roles, entries, a remainder.
CASES = [
    ((7, 5), (0,)),
    ((3, 70), (1,)),
    ((70, 3), (0,)),
    ((157, 5), (0,)),
    ((3, 40, 2), (1,)),
    ((3, 4, 17), (0, 2)),
    ((2, 9, 2, 5), (1, 3)),
    ((4, 2, 3, 3), (1, 2, 3)),
    ((6,), ()),
    ((33,), (0,)),
    ((2, 1100), (1,)),
]


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


def constrained(kernel, x, axes, max_norm, epsilon=0.0, ord=2):
    out = np.empty_like(x)
    kernel.constrain(x, out, axes, np.asarray(max_norm, np.float64), np.asarray(epsilon, np.float64), ord)
    return out


def groups(x, axes):
    """Every group as a list of floats."""
    last = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    length = math.prod(x.shape[axis] for axis in axes)
    return last.reshape(-1, length).astype(np.float64).tolist()


def per_group(value, x, axes):
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    return np.broadcast_to(value, kept).reshape(-1).tolist()


def exact_norm(values, ord):
    return definition.norm(definition.summarise(values, ord), ord)


def ulp(value, dtype):
    """The unit in the last place of an exact value."""
    info = ml_dtypes.finfo(dtype)
    smallest = Fraction(float(info.smallest_subnormal))
    if not value:
        return smallest
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    return max(smallest, Fraction(2) ** (exponent - info.nmant))


def bits(x):
    return np.ascontiguousarray(x).view(np.uint8)


def same_bits(a, b):
    """Equal bit for bit, NaN of any payload included."""
    a, b = np.asarray(a), np.asarray(b)
    spoilt = np.isnan(a.astype(np.float64))
    assert np.array_equal(spoilt, np.isnan(b.astype(np.float64)))
    return np.array_equal(
        bits(np.where(spoilt, np.zeros((), a.dtype), a)), bits(np.where(spoilt, np.zeros((), b.dtype), b))
    )


def assert_law(x, result, axes, max_norm, epsilon, ord):
    """Untouched, bounded, tight and signed, by the definition."""
    cells = zip(
        groups(x, axes), groups(result, axes), per_group(max_norm, x, axes), per_group(epsilon, x, axes), strict=True
    )
    for before, after, bound, small in cells:
        if exact_norm(before, ord) <= Fraction(bound):
            assert before == after
            assert [math.copysign(1, v) for v in before] == [math.copysign(1, v) for v in after]
            continue
        assert exact_norm(after, ord) <= Fraction(bound)
        for v, got, want in zip(before, after, definition.constrain(before, bound, small, ord), strict=True):
            assert abs(Fraction(got) - want) <= 4 * ulp(want, x.dtype)
            assert math.copysign(1, got) == math.copysign(1, v)


def layouts(x):
    """The same values in other memory."""
    yield "C", x
    yield "F", np.asfortranarray(x)
    yield "negative", np.flip(np.flip(x).copy())
    spread = np.empty((*x.shape, 2), x.dtype)
    spread[..., 0] = x
    yield "strided", spread[..., 0]
    if x.ndim > 1:
        yield "swapped", np.swapaxes(np.swapaxes(x, 0, -1).copy(), 0, -1)


def values(rng, shape, dtype, scale):
    x = (rng.standard_normal(shape) * scale).astype(dtype)
    flat = x.reshape(-1)
    flat[:: max(1, flat.size // 3)] = -0.0
    return x


SCALES = {np.float64: (1, 1e-310, 1e300, 1e160, 1e-170), np.float32: (1, 1e-42, 1e37), np.float16: (1, 1e-6, 1e4)}


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_laws_by_the_definition(kernel, dtype, ord):
    rng = np.random.default_rng(1)
    for shape, axes in CASES:
        for scale in SCALES.get(dtype, (1, 1e-38, 1e37)):
            x = values(rng, shape, dtype, scale)
            norms = kernel.norms(x, axes, ord)
            share = rng.choice([0.25, 0.999, 1, 4], norms.shape)
            for max_norm, epsilon in [
                (norms * share, 0.0),
                (norms * 0.5, 1e-7),
                (0.0, 0.0),
                (np.minimum(norms * 1e-250, 1), 0.0),
            ]:
                if not np.isfinite(max_norm).all():
                    continue
                result = constrained(kernel, x, axes, max_norm, epsilon, ord)
                assert_law(x, result, axes, max_norm, epsilon, ord)
                assert same_bits(result, constrained(kernel, result, axes, max_norm, epsilon, ord))  # idempotent


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_faithful(kernel, dtype, ord):
    rng = np.random.default_rng(2)
    for shape, axes in CASES:
        for scale in SCALES.get(dtype, (1, 1e-38, 1e37)):
            x = values(rng, shape, dtype, scale)
            for got, group in zip(per_group(kernel.norms(x, axes, ord), x, axes), groups(x, axes), strict=True):
                want = exact_norm(group, ord)
                if want >= Fraction(2) ** 1024:
                    assert got == math.inf
                    continue
                assert abs(Fraction(got) - want) <= ulp(want, np.float64)
                if Fraction(float(want)) == want:
                    assert Fraction(got) == want
    assert kernel.norms(np.array([3e200, 4e200]), (0,), 2) == np.hypot(3e200, 4e200)
    assert kernel.norms(np.array([3.0, 4.0], dtype), (0,), 2) == 5


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_in_place(kernel, dtype, ord):
    rng = np.random.default_rng(3)
    for shape, axes in CASES:
        x = values(rng, shape, dtype, 1)
        norms = fallback.norms(x, axes, ord)
        max_norm = norms * rng.choice([0.5, 2], norms.shape)
        for _, other in layouts(x):
            result = constrained(kernel, other, axes, max_norm, 0.0, ord)
            assert_law(other, result, axes, max_norm, 0.0, ord)
            # The result does not depend on where it is written: over x, or into memory of any layout.
            for _, target in layouts(np.zeros_like(x)):
                kernel.constrain(other, target, axes, max_norm, np.zeros(()), ord)
                assert same_bits(target, result)
            kernel.constrain(other, other, axes, max_norm, np.zeros(()), ord)
            assert same_bits(other, result)


def test_broadcast_and_read_only_input(kernel):
    for row in (np.arange(5.0)[None, :], np.arange(40.0)[:, None], np.float64(3)[None, None]):
        x = np.broadcast_to(row, (40, 5))
        for axes in [(0,), (1,), (0, 1), ()]:
            out = np.empty((40, 5))
            kernel.constrain(x, out, axes, np.ones(()), np.zeros(()), 2)
            assert_law(x, out, axes, 1.0, 0.0, 2)


def test_bounds_broadcast(kernel):
    x = np.random.default_rng(4).standard_normal((6, 5, 4)).astype(np.float32)
    for shape in [(), (1,), (4,), (1, 4), (6, 1, 1), (6, 1, 4)]:
        max_norm = np.random.default_rng(5).uniform(0.1, 3, shape)
        epsilon = np.random.default_rng(6).uniform(0, 0.1, shape)
        assert_law(x, constrained(kernel, x, (1,), max_norm, epsilon), (1,), max_norm, epsilon, 2)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_powers_of_two_scale_the_result(kernel, axes, ord):
    rng = np.random.default_rng(7)
    for shape in [(300, 40), (5, 40), (301, 3), (9, 7)]:
        x = rng.standard_normal(shape)
        max_norm = kernel.norms(x, axes, ord) * rng.choice([0.1, 0.9, 1, 1.1], kernel.norms(x, axes, ord).shape)
        reference = constrained(kernel, x, axes, max_norm, 0.0, ord)
        for k in [-960, -700, -520, -400, -345, -100, 1, 99, 300, 449, 455, 600, 1000]:
            result = constrained(kernel, np.ldexp(x, k), axes, np.ldexp(max_norm, k), 0.0, ord)
            assert same_bits(result, np.ldexp(reference, k)), k
        narrow = x.astype(np.float32)
        max_norm = max_norm * rng.choice([1, 1e-12, 1e-33], max_norm.shape)
        reference = constrained(kernel, narrow, axes, max_norm, 0.0, ord)
        for k in [-90, -45, -5, 45, 110]:
            result = constrained(kernel, np.ldexp(narrow, k), axes, np.ldexp(max_norm, k), 0.0, ord)
            normal = np.abs(np.ldexp(reference.astype(np.float64), min(k, 0))) >= np.finfo(np.float32).tiny
            assert same_bits(result[normal], np.ldexp(reference, k)[normal]), k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_ties_and_one_ulp_around(kernel, axes, dtype):
    """A norm that float64 holds: untouched at it and above, rescaled one ulp below."""
    whole = np.zeros((40, 40), dtype)
    for i, (a, b) in enumerate([(3, 4), (5, 12), (8, 15), (20, 21), (0, 7), (1, 0)]):
        whole[(0, i) if axes == (0,) else (i, 0)] = a
        whole[(39, i) if axes == (0,) else (i, 39)] = -b
    for ord in ORDERS:
        for scale in (1.0, 0.5, 2.0**-10):
            x = (whole * np.asarray(scale, dtype)).astype(dtype)
            norms = fallback.norms(x, axes, ord)
            for bound in (norms, np.nextafter(norms, np.inf)):
                assert same_bits(constrained(kernel, x, axes, bound, 0.0, ord), x)
            below = np.maximum(np.nextafter(norms, 0), 0)
            result = constrained(kernel, x, axes, below, 0.0, ord)
            assert_law(x, result, axes, below, 0.0, ord)


def test_decisions_that_no_sum_of_doubles_can_make(kernel):
    """2**60 and one more than it: the exact comparison sees the one."""
    for dtype in (np.float64, np.float32):
        x = np.full(40, 0, dtype)
        x[0], x[1] = 1, 2.0**-60
        bound = 1.0
        assert not same_bits(constrained(kernel, x, (0,), bound, 0.0, 2), x)
        assert_law(x, constrained(kernel, x, (0,), bound, 0.0, 2), (0,), bound, 0.0, 2)
        x[1] = 0
        assert same_bits(constrained(kernel, x, (0,), bound, 0.0, 2), x)
    rng = np.random.default_rng(8)
    for _ in range(50):  # bounds next to an irrational norm
        x = rng.standard_normal((3, 40))
        near = fallback.norms(x, (1,), 2)
        for bound in (near, np.nextafter(near, 0), np.nextafter(near, np.inf)):
            assert_law(x, constrained(kernel, x, (1,), bound, 0.0, 2), (1,), bound, 0.0, 2)


def test_extreme_entries_side_by_side(kernel):
    tiny, huge = 5e-324, np.finfo(np.float64).max
    columns = [
        [tiny, -tiny, 0.0, tiny],
        [huge, huge, -huge, huge],
        [huge, tiny, 1.0, -0.0],
        [1e-160, 1e-165, 1e-300, 0.0],
        [2.0**1000, 2.0**-50, 2.0**90, 1.0],
        [2.0**-10, 2.0**-60, 0.0, -(2.0**-10)],
    ]
    x = np.array(columns).T.copy()
    for ord in ORDERS:
        for bound in (tiny, 1e-310, 1e-200, 2.0**-900, 2.0**-11, 2.0**90, 1e200, huge):
            for epsilon in (0.0, tiny, 1.0, 2.0**574, 2.0**1015, huge):
                for axes, array in (((0,), x), ((1,), x.T.copy())):
                    result = constrained(kernel, array, axes, bound, epsilon, ord)
                    assert_law(array, result, axes, bound, epsilon, ord)


def test_subnormal_results(kernel):
    rng = np.random.default_rng(9)
    for dtype, scale, bounds in [
        (np.float64, 1e-300, (1e-320, 5e-324, 1e-308)),
        (np.float32, 1e-30, (1e-44, 1.5e-45, 1e-38, 1e-12, 1e-300)),
        (np.float32, 1e20, (1e-44, 1e-12)),
        (np.float16, 1, (1e-7, 6e-8, 1e-4, 1e-20)),
        (ml_dtypes.bfloat16, 1e-30, (1e-40, 1e-38, 1e-20)),
    ]:
        for axes in [(0,), (1,)]:
            x = values(rng, (40, 6) if axes == (0,) else (6, 40), dtype, scale)
            for bound in bounds:
                for ord in ORDERS:
                    assert_law(x, constrained(kernel, x, axes, bound, 0.0, ord), axes, bound, 0.0, ord)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_nan_and_inf_stay_in_their_group(kernel, axes, dtype, ord):
    clean = np.random.default_rng(10).standard_normal((60, 50)).astype(dtype)
    x = clean.copy()
    places = {3: np.nan, 5: np.inf, 7: -np.inf}
    for group, value in places.items():
        x[(17, group) if axes == (0,) else (group, 17)] = value
    both = (slice(None), 9) if axes == (0,) else (9, slice(None))
    x[both][2:4] = np.inf, np.nan
    for bound, spoilt in ((1.0, {3, 5, 7, 9}), (100.0, {3, 5, 7, 9}), (np.inf, {3, 9})):
        for epsilon in (0.0, np.inf):
            result = constrained(kernel, x, axes, bound, epsilon, ord)
            over = constrained(kernel, clean, axes, bound, epsilon, ord)
            for group in range(50):
                index = (slice(None), group) if axes == (0,) else (group, slice(None))
                if group in spoilt:
                    assert np.isnan(result[index].astype(np.float64)).all()
                elif group in places:
                    assert same_bits(result[index], x[index])
                elif group != 9:
                    assert same_bits(result[index], over[index])
    norms = kernel.norms(x, axes, ord).reshape(-1)
    assert np.isnan(norms[[3, 9]]).all()
    assert (norms[[5, 7]] == np.inf).all()


def test_bad_bounds_spoil_their_group(kernel):
    x = np.random.default_rng(11).standard_normal((50, 4))
    for bad in (np.nan, -1.0):
        max_norm, epsilon = np.array([[1.0, bad, 100.0, 1.0]]), np.array([[0.0, 0.0, 0.0, bad]])
        result = constrained(kernel, x, (0,), max_norm, epsilon)
        assert np.isnan(result[:, [1, 3]]).all()
        assert same_bits(result[:, 2], x[:, 2])
        assert_law(x[:, :1], result[:, :1], (0,), max_norm[:, :1], 0.0, 2)


@pytest.mark.parametrize("ord", ORDERS)
def test_norms_compare_with_a_bound_as_the_exact_norms_do(kernel, ord):
    rng = np.random.default_rng(15)
    for scale in (1.0, 1e200, 1e-200, 1e-310):
        x = rng.standard_normal((40, 36)) * scale
        for axes in [(0,), (1,)]:
            plain = kernel.norms(x, axes, ord)
            for bound in (plain, np.nextafter(plain, 0), np.nextafter(plain, np.inf), plain * 2, np.zeros(())):
                got = kernel.norms(x, axes, ord, bound)
                cells = zip(groups(x, axes), per_group(got, x, axes), per_group(bound, x, axes), strict=True)
                for group, norm, limit in cells:
                    want = exact_norm(group, ord)
                    assert (norm > limit) == (want > Fraction(limit))
                    assert abs(Fraction(norm) - want) <= ulp(want, np.float64)
                total = kernel.constrain_total([x], [x.copy()], bound.flat[0], 0.0, ord)
                assert (total > bound.flat[0]) == (
                    exact_norm(x.reshape(-1).tolist(), ord) > Fraction(float(bound.flat[0]))
                )


@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_first_entries_promise_nothing(kernel, dtype, ord):
    """The C kernel guesses from a block's first entries how large its sum is: too low here, too high, or just so."""
    rng = np.random.default_rng(18)
    for n in (64, 65, 80, 1024, 1100):
        for first in (
            0.0,
            1e-150 if dtype == np.float64 else 1e-30,
            1e-4,
            2.0**-5,
            2.0**-4.5,
            0.03,
            0.1,
            1.0,
            1e4,
            1e9,
        ):
            for late in (1.0, 64.0):  # larger than all before it
                x = np.sort(np.abs(rng.standard_normal(n))).astype(dtype)
                x[:64] = (first * rng.uniform(0.5, 1, 64)).astype(dtype)
                x[-1] *= dtype(late)
                want = exact_norm(x.tolist(), ord)
                norm = float(kernel.norms(x, (0,), ord)[0])
                assert abs(Fraction(norm) - want) <= ulp(want, np.float64)
                for bound in (norm, math.nextafter(norm, 0), math.nextafter(norm, math.inf)):
                    out = np.empty_like(x)
                    total = float(
                        kernel.constrain_total([x[: n // 2], x], [out[: n // 2].copy(), out], bound, 0.0, ord)
                    )
                    both = exact_norm(x[: n // 2].tolist() + x.tolist(), ord)
                    assert abs(Fraction(total) - both) <= ulp(both, np.float64)
                    beside = float(kernel.norms(x, (0,), ord, np.full(1, bound))[0])
                    assert (beside > bound) == (want > Fraction(bound))


def test_small_first_entries_count_to_the_last_bit(kernel):
    """Order 1, where errors of a wrong guess are far below an ulp: the norm is its bound exactly, or a hair above."""
    rng = np.random.default_rng(19)
    for first in (2.0**-50, 2.0**-30, 2.0**-12):
        x = rng.uniform(1, 2, 1024)
        x[:64] = first * rng.uniform(0.5, 1, 64)
        rest = exact_norm(x[2:].tolist(), 1)
        bound = math.nextafter(float(rest), math.inf)
        missing = Fraction(bound) - rest
        x[0] = math.nextafter(float(missing), 0)  # two entries, as one has too few digits
        x[1] = float(missing - Fraction(x[0]))
        assert exact_norm(x.tolist(), 1) == Fraction(bound)
        assert same_bits(constrained(kernel, x, (0,), bound, ord=1), x)
        x[1] = math.nextafter(x[1], math.inf)
        assert not same_bits(constrained(kernel, x, (0,), bound, ord=1), x)


def test_empty(kernel):
    for shape, axes in [((0,), (0,)), ((0, 3), (0,)), ((3, 0), (0,)), ((2, 0, 3), (1,)), ((), ())]:
        x = np.ones(shape)
        out = constrained(kernel, x, axes, 0.5)
        assert out.shape == shape
        kept = tuple(1 if axis in axes else length for axis, length in enumerate(shape))
        norms = kernel.norms(x, axes, 2)
        assert norms.shape == kept
        assert (norms == (1 if x.size else 0)).all()
    assert -0.5 <= constrained(kernel, np.array(-2.0), (), 0.5) <= -0.5 + 2**-51
    at_the_bound = np.array(-0.5, np.float32)  # which a sum cannot decide
    assert same_bits(constrained(kernel, at_the_bound, (), 0.5), at_the_bound)
    assert kernel.norms(at_the_bound, (), 2, 0.5) == 0.5


@pytest.mark.parametrize("ord", ORDERS)
def test_list_is_constrained_as_one_at_a_time(kernel, ord):
    rng = np.random.default_rng(16)
    for count in (0, 1, 2, len(CASES) * len(DTYPES)):
        cells = [(shape, axes, dtype) for shape, axes in CASES for dtype in DTYPES][:count]
        xs = [values(rng, shape, dtype, 1) for shape, _, dtype in cells]
        axes = [axes for _, axes, _ in cells]
        # Bounds as floats and as arrays, side by side.
        bounds = [0.5 if i % 3 else fallback.norms(x, axes[i], ord) * 0.7 for i, x in enumerate(xs)]
        small = [1e-7 if i % 2 else np.zeros(()) for i, _ in enumerate(xs)]
        wanted = [constrained(kernel, *job, ord) for job in zip(xs, axes, bounds, small, strict=True)]
        outs = [x if i % 2 else np.empty_like(x) for i, x in enumerate(xs)]
        kernel.constrain_each(xs, outs, axes, bounds, small, ord)
        assert all(same_bits(out, want) for out, want in zip(outs, wanted, strict=True))


@pytest.mark.parametrize("ord", ORDERS)
def test_floats_are_bounds_too(kernel, ord):
    x = np.random.default_rng(17).standard_normal((40, 6))
    out = np.empty_like(x)
    kernel.constrain(x, out, (0,), 1.5, 1e-7, ord)
    assert same_bits(out, constrained(kernel, x, (0,), 1.5, 1e-7, ord))
    bound = float(kernel.norms(x, (0,), ord)[0, 2])
    assert same_bits(kernel.norms(x, (0,), ord, bound), kernel.norms(x, (0,), ord, np.array(bound)))


@pytest.mark.parametrize("ord", ORDERS)
def test_total(kernel, ord):
    rng = np.random.default_rng(12)
    for scale in (1.0, 1e-30, 1e30):
        xs = [
            values(rng, (30, 7), np.float64, scale),
            values(rng, (3, 4, 50), np.float32, scale)[:, ::2],
            np.zeros((0, 3)),
            values(rng, (1200,), ml_dtypes.bfloat16, scale)[::-1],
            np.asfortranarray(values(rng, (9, 8), np.float16, min(scale, 1.0))),
            np.array(scale),
        ]
        flat = [float(v) for x in xs for v in x.reshape(-1)]
        want = exact_norm(flat, ord)
        for share in (0.3, 1e-20, 0.99999, 1.0001):
            bound = float(want) * share
            outs = [np.empty_like(x) for x in xs]
            norm = kernel.constrain_total(xs, outs, bound, 0.0, ord)
            assert norm.shape == ()
            assert abs(Fraction(float(norm)) - want) <= ulp(want, np.float64)
            after = exact_norm([float(v) for out in outs for v in out.reshape(-1)], ord)
            assert after <= Fraction(bound)
            factor = min(Fraction(1), Fraction(bound) / want)
            for x, out in zip(xs, outs, strict=True):
                for v, got in zip(x.reshape(-1), out.reshape(-1), strict=True):
                    exact = Fraction(float(v)) * factor
                    assert abs(Fraction(float(got)) - exact) <= (4 * ulp(exact, x.dtype) if want > bound else 0)
            again = [out.copy(order="K") for out in outs]
            kernel.constrain_total(again, again, bound, 0.0, ord)
            assert all(same_bits(a, b) for a, b in zip(again, outs, strict=True))


def test_total_ties_extremes_and_nonsense(kernel):
    three, four = np.array([3.0, 0.0]), np.array([[-4.0]], np.float32)
    outs = [np.empty_like(three), np.empty_like(four)]
    for k in (0, 500, -500, 1000):
        xs = [np.ldexp(three, k), np.ldexp(four.astype(np.float64), k)]
        big = [np.empty_like(x) for x in xs]
        assert kernel.constrain_total(xs, big, math.ldexp(5, k), 0.0, 2) == math.ldexp(5, k)
        assert all(same_bits(a, b) for a, b in zip(big, xs, strict=True))
        kernel.constrain_total(xs, big, math.nextafter(math.ldexp(5, k), 0), 0.0, 2)
        assert exact_norm([float(v) for x in big for v in x.reshape(-1)], 2) <= Fraction(
            math.nextafter(math.ldexp(5, k), 0)
        )
    assert np.isnan(kernel.constrain_total([three, np.array([np.nan])], [outs[0], np.empty(1)], 1.0, 0.0, 2))
    assert np.isnan(outs[0]).all()
    assert kernel.constrain_total([three, np.array([np.inf])], [outs[0], np.empty(1)], np.inf, 0.0, 2) == np.inf
    assert same_bits(outs[0], three)
    kernel.constrain_total([three, four], outs, -1.0, 0.0, 2)
    assert np.isnan(outs[0]).all()
    assert np.isnan(outs[1]).all()


def test_every_half_and_bfloat_is_read_and_written(kernel):
    """All 65536 values pass through unchanged within their bound, and truncate like the definition above it."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.arange(65536, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):  # signalling NaNs among them
            finite = x[np.isfinite(x.astype(np.float64))]
        assert same_bits(constrained(kernel, finite, (), np.inf), finite)
        sizes = np.abs(finite.astype(np.float64))
        assert same_bits(kernel.norms(finite, (), 2), sizes)
        some = finite[:: max(1, len(finite) // 3000)]
        bound = np.abs(some.astype(np.float64)) * 0.7
        assert_law(some, constrained(kernel, some, (), bound), (), bound, 0.0, 2)


@needs_native
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half_and_bfloat_is_the_truncated_product_on_every_instruction_set(dtype):
    """All finite values times factors of their own, and all times one, against NumPy's float32 product."""
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs among them
        x = x[np.isfinite(x.astype(np.float64))]
    wide, usual = x.astype(np.float64), _native.select(_native.levels()[0])
    try:
        for level in _native.levels():
            _native.select(level)
            for share in (0.9, 0.3, 2.0**-11):
                bound = np.abs(wide) * share
                each = constrained(native, x, (), bound)
                factor = (bound / np.where(wide, np.abs(wide), 1) * (1 - 2.01 * 2.0**-53)) * (1 - 2.01 * 2.0**-24)
                at = np.abs(bound) > 2.0**-40  # below, not even the product is rounded up
                assert same_bits(
                    each[at], truncated(wide[at].astype(np.float32) * factor[at].astype(np.float32), dtype)
                )
                together = constrained(native, x, (0,), np.linalg.norm(wide / 2**99) * 2**99 * share)
                _native.select("baseline")
                assert same_bits(each, constrained(native, x, (), bound))
                assert same_bits(together, constrained(native, x, (0,), np.linalg.norm(wide / 2**99) * 2**99 * share))
                _native.select(level)
    finally:
        _native.select(usual)


def truncated(values, dtype):
    """Towards zero, by way of rounding to nearest and a step back."""
    near = values.astype(dtype)
    bits = near.view(np.uint16) - (np.abs(near.astype(np.float64)) > np.abs(values.astype(np.float64)))
    return bits.astype(np.uint16).view(dtype)


HUGE = 2**62
# How a call can go about its work, forced for arrays of any size: (threads, limits as `_native.set_limits` takes them).
WAYS = {
    "as ever": (1, None),
    "shared out": (3, (0, 1, HUGE, 2**17, HUGE)),
    "shared out in large tasks": (2, (0, 2**14, HUGE, 0, HUGE)),
    "past the caches": (1, (HUGE, 2**17, 0, 2**17, HUGE)),
    "shared out past the caches, no quick look": (3, (0, 2**10, 0, 0, HUGE)),
    "every group quickly first": (1, (HUGE, 1, HUGE, HUGE, HUGE)),
    "asking to stop all the time": (1, (HUGE, 1, HUGE, 2**17, 1)),
}


@pytest.fixture
def going():
    """Go a way, on an instruction set; and back to the usual ones in the end."""
    level, threads, limits = _native.select(_native.levels()[0]), _native.threads(), _native.set_limits(*[0] * 5)
    _native.set_limits(*limits)

    def go(way, level):
        threads, own = WAYS[way]
        _native.select(level)
        _native.set_threads(threads)
        _native.set_limits(*(own or limits))

    yield go
    _native.select(level)
    _native.set_threads(threads)
    _native.set_limits(*limits)


def everything_about(x, axes, max_norm, ord):
    """What the kernels make of an array, out of place, in place, in a list and as a total."""
    out, over, total, listed = np.empty_like(x), x.copy(order="K"), np.empty_like(x), [np.empty_like(x), x.copy()]
    native.constrain(x, out, axes, max_norm, 1e-7, ord)
    native.constrain(over, over, axes, max_norm, 1e-7, ord)
    native.constrain_each([x, listed[1]], listed, [axes, axes], [max_norm, max_norm], [1e-7, 1e-7], ord)
    norm = native.constrain_total([x, x], [total, np.empty_like(x)], float(np.max(max_norm)) / 3, 0.0, ord)
    return out, over, *listed, native.norms(x, axes, ord), native.norms(x, axes, ord, max_norm), total, norm


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_and_every_instruction_set_gives_the_same_bits(going, dtype):
    rng = np.random.default_rng(13)
    shapes = [((500, 130), (0,)), ((3, 5000), (0,)), ((20, 3000), (1,)), ((2003, 3), (0,)), ((300, 2, 9), (0, 2))]
    for shape, axes in [*CASES, *shapes, ((9000,), (0,)), ((700, 1100), (0,)), ((90, 8), (1,))]:
        for ord in ORDERS:
            for scale, share in zip(SCALES.get(dtype, (1, 1e-38, 1e37)), [0.7, 1.0, 1.4] * 2, strict=False):
                x = values(rng, shape, dtype, scale)
                max_norm = native.norms(x, axes, ord) * rng.choice([share, 3, 3, 3], 1)
                if not np.isfinite(max_norm).all():
                    continue
                want = None
                for level in _native.levels():
                    for way in WAYS:
                        going(way, level)
                        got = everything_about(x, axes, max_norm, ord)
                        want = got if want is None else want
                        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True)), (shape, axes, way, level)
                assert same_bits(want[0], want[1])
                assert same_bits(want[0], want[2])


@needs_native
def test_layouts_in_every_way(going):
    """What is not contiguous, too, and where x and y lie differently."""
    rng = np.random.default_rng(16)
    for dtype in DTYPES:
        for shape, axes in [*CASES, ((305, 5), (0,)), ((40, 6, 7), (1,))]:
            x = values(rng, shape, dtype, 1)
            max_norm = fallback.norms(x, axes, 2) * 0.7
            going("as ever", _native.levels()[0])
            for _, other in layouts(x):
                want = constrained(native, other, axes, max_norm)
                for way in WAYS:
                    going(way, _native.levels()[0])
                    for _, target in layouts(np.zeros_like(x)):
                        native.constrain(other, target, axes, max_norm, 0.0, 2)
                        assert same_bits(target, want), (shape, axes, way)


@needs_native
def test_a_column_has_its_bits_wherever_it_lies(going):
    """Columns are summed eight or four at a time by a short form, where no term is above the sum; the last ones one by
    one, always by the long form."""
    rng = np.random.default_rng(17)
    for dtype, level in itertools.product((np.float64, np.float32), _native.levels()):
        going("as ever", level)
        for seed in range(60):
            column = rng.standard_normal((24 + seed, 1))
            if seed % 2:  # terms are above the sum, and far above, now and then
                column *= 10.0 ** rng.integers(-9, 9, column.shape)
            x = np.repeat(column.astype(dtype), 23, axis=1)
            for ord in (1, 2):
                norms = native.norms(x, (0,), ord)
                y = constrained(native, x, (0,), norms / 3, 0.0, ord)
                assert (norms == norms[:, :1]).all()
                assert (y == y[:, :1]).all()


COUNTING = """
import sys
import numpy as np
from normball.kernels import _native
threads = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("Threads:")).split()[1])
_native.set_threads(int(sys.argv[1]))
_native.set_limits(int(sys.argv[2]), 1, 2**62, 2**17, 2**62)
x, before = np.ones((2000, 100)), threads()
_native.constrain(2, 0, x, x, 0, (0,), 1.0, 0.0)
print(threads() - before)
"""


@needs_native
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here to count threads in")
@pytest.mark.parametrize("threads, least, helpers", [(3, 0, "2"), (3, 2**62, "0"), (1, 0, "0")])
def test_a_way_that_is_forced_is_gone(threads, least, helpers):
    """Twin of the two above: where work is to be shared out, helpers are there, and elsewhere none."""
    command = [sys.executable, "-c", COUNTING, str(threads), str(least)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == helpers


@needs_native
def test_long_groups_keep_their_law():
    """The errors of many blocks stay within the margins, in rows, columns and totals."""
    rng = np.random.default_rng(14)
    for dtype in (np.float64, np.float32):
        x = rng.standard_normal(30_000).astype(dtype)
        for array, axes in ((x, (0,)), (x.reshape(-1, 3).copy(), (0, 1)), (x.reshape(-1, 3).copy(), (0,))):
            assert_law(array, constrained(native, array, axes, 1.5), axes, 1.5, 0.0, 2)


@needs_native
def test_wrong_memory_is_refused():
    x = np.ones((3, 4))
    zero, one = np.zeros(()), np.ones(())
    unaligned = np.zeros(97, np.uint8)[1:].view(np.float64).reshape(3, 4)
    for args in [
        (2, 0, x, np.ones((4, 3)), 0, (0,), one, zero),
        (2, 0, x, np.ones(3), 0, (0,), one, zero),
        (2, 0, x, x.copy(), 1, (0,), one, zero),
        (2, 0, x, x.copy(), 0, (0,), np.ones(3), zero),
        (2, 0, x, x.copy(), 0, (0,), np.ones((3, 1)), zero),
        (2, 0, x, x.copy(), 0, (0,), 1.0, np.ones((1, 1, 1))),
        (7, 0, x, x.copy(), 0, (0,), one, zero),
        (2, 0, x, x.copy(), 9, (0,), one, zero),
        (2, 0, x, x.copy(), 0, (-1,), one, zero),
        (2, 0, x, x.copy(), 0, (64,), one, zero),
        (2, 0, x, x.copy(), 0, (0,), np.ones((), np.float32), zero),
        (2, 0, x, unaligned, 0, (0,), one, zero),
        (2, 0, unaligned, x.copy(), 0, (0,), one, zero),
    ]:
        with pytest.raises(ValueError):
            _native.constrain(*args)
        first = x.copy()
        with pytest.raises(ValueError):  # as the second of two; the first is not written to either
            _native.constrain(args[0], 0, x, first, 0, (0,), 0.5, 0.0, *args[2:])
        assert same_bits(first, x)
    for args in [
        (),
        (2, 0, x),
        (2, 0, x, x.copy(), 0, (0,), 1.0),
        (2, 0, x, x.copy(), 0, [0], one, zero),
        (2, 0, x, 1, 0, (), 1.0, 0.0),
    ]:
        with pytest.raises((TypeError, SystemError)):
            _native.constrain(*args)
    frozen = np.ones((3, 4))
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        _native.constrain(2, 0, x, frozen, 0, (0,), one, zero)


@needs_native
def test_flushed_subnormals_of_the_host_do_not_matter():
    torch = pytest.importorskip("torch")
    x = np.full(40, 1e-40, np.float32)
    want = constrained(native, x, (0,), 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        got = constrained(native, x, (0,), 1e-40)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, want)
