"""JAX: the laws in exact arithmetic, with 64-bit mode on and off; derivatives; and that each check can fail."""

import math
from fractions import Fraction

import numpy as np
import pytest

jax = pytest.importorskip("jax")
ml_dtypes = pytest.importorskip("ml_dtypes")

import jax.numpy as jnp  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from normball import definition  # noqa: E402
from normball.backends import jax as backend  # noqa: E402

ORDERS = (1, 2, math.inf)
# (64-bit mode, dtype): every float a program can hold.
CASES = [(False, "float16"), (False, "bfloat16"), (False, "float32")]
CASES += [(True, "float16"), (True, "bfloat16"), (True, "float32"), (True, "float64")]
ULPS = 4
mode = jax.enable_x64  # on or off, for this thread and no longer
GROUPS, LENGTH = 16, 5


def wide(x64):
    return np.float64 if x64 else np.float32


COMPILED = {}


def constrain(x, bound, epsilon, ord=2, axes=(1,), x64=True):
    """The backend under jit, all three traced; compiled once for each kind of call, small ones in one padded shape."""
    key = (ord, axes)
    if key not in COMPILED:
        COMPILED[key] = jax.jit(lambda x, c, e: backend.constrain(x, c, axes, e, ord, None))
    room, short = np.zeros((GROUPS, LENGTH), x.dtype), x.ndim == 2 and axes == (1,) and 0 < x.size <= GROUPS * LENGTH
    if short and x.shape[0] <= GROUPS and x.shape[1] <= LENGTH:
        room[: len(x), : x.shape[1]] = x
        numbers = [np.broadcast_to(np.asarray(v, wide(x64)), (len(x), 1)) for v in (bound, epsilon)]
        numbers = [np.concatenate([v, np.ones((GROUPS - len(x), 1), v.dtype)]) for v in numbers]
        with mode(x64):
            return np.asarray(COMPILED[key](room, *numbers))[: len(x), : x.shape[1]].copy()
    with mode(x64):
        return np.asarray(COMPILED[key](x, bound, epsilon))


def fractions(values):
    return [Fraction(float(v)) for v in values]


def exact_norm(values, ord):
    return definition.norm(definition.summarise(fractions(values), ord), ord)


def ulp(value, dtype):
    """The spacing of dtype at an exact number."""
    info = ml_dtypes.finfo(dtype)
    digits = info.nmant
    if value == 0:
        return Fraction(float(info.smallest_subnormal))
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    return max(Fraction(2) ** (exponent - digits), Fraction(float(info.smallest_subnormal)))


def is_tight(before, after, factor):
    ideals = [v * factor for v in fractions(before)]
    return all(
        abs(r - ideal) <= ULPS * ulp(ideal, before.dtype) for r, ideal in zip(fractions(after), ideals, strict=True)
    )


def assert_right(before, after, bound, epsilon, ord):
    """Untouched, bounded, tight, signs: for one group."""
    assert before.dtype == after.dtype, "another dtype"
    n, c = exact_norm(before, ord), Fraction(float(bound))
    if before.tobytes() == after.tobytes() and n <= c:
        return
    assert n > c - ULPS * ulp(c, before.dtype), "a group within its bound was changed"
    assert exact_norm(after, ord) <= c, "above the bound"
    # In the band just under its bound a group may count as above it, epsilon included, or as lying on it.
    factors = [c / (n + Fraction(float(epsilon))), *([1] if n <= c else [])]
    assert any(is_tight(before, after, factor) for factor in factors), "too far from the definition"
    assert (np.signbit(before) == np.signbit(after)).all(), "a sign was lost"


def draw_groups(seed, dtype, x64, ord):
    """Groups across the whole range of the dtype, with bounds near, at, far above and far below their norms."""
    rng = np.random.default_rng(seed)
    info = ml_dtypes.finfo(dtype)
    exponents = rng.integers(int(info.minexp) - info.nmant, int(info.maxexp) - 1, (GROUPS, 1))
    exponents = exponents - np.abs(rng.normal(0, rng.choice([0.1, 3, 30], (GROUPS, 1)), (GROUPS, LENGTH))).astype(int)
    x = np.ldexp(rng.uniform(1, 2, (GROUPS, LENGTH)) * rng.choice([-1, 1], (GROUPS, LENGTH)), exponents)
    x = np.where(rng.random((GROUPS, LENGTH)) < 0.2, 0 * x, x).astype(dtype)
    largest = Fraction(float(np.finfo(np.float64).max))
    norms = np.array([[float(min(exact_norm(row, ord), largest))] for row in x])
    near = norms * (1 + rng.normal(0, 1, norms.shape) * 2.0 ** -rng.integers(5, 55, norms.shape))
    far = norms * np.ldexp(1.0, -rng.integers(-2, 200, norms.shape))
    choice = rng.integers(0, 4, norms.shape)
    with np.errstate(all="ignore"):
        bound = np.select([choice == 0, choice == 1, choice == 2], [near, far, norms], norms * rng.random(norms.shape))
        bound = np.minimum(bound, np.finfo(wide(x64)).max).astype(wide(x64))
        epsilon = np.select([choice % 2 == 0, rng.random(norms.shape) < 0.5], [0.0, 1e-7], bound).astype(wide(x64))
    return x, bound, epsilon


@pytest.mark.parametrize(
    ("x64", "dtype", "ord"),
    [(*case, 2) for case in CASES]
    + [(False, "float32", 1), (False, "bfloat16", 1), (True, "float64", 1), (True, "float32", 1)]
    + [(False, "float32", math.inf), (True, "float64", math.inf)],
)
def test_laws(x64, dtype, ord):
    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        x, bound, epsilon = draw_groups(seed, jnp.dtype(dtype), x64, ord)
        once = constrain(x, bound, epsilon, ord, x64=x64)
        for row in range(GROUPS):
            assert_right(x[row], once[row], bound[row, 0], epsilon[row, 0], ord)
        assert constrain(once, bound, epsilon, ord, x64=x64).tobytes() == once.tobytes(), "not idempotent"

    check()


def test_the_checker_fails():
    before, bound = np.array([3.0, 4.0]), 1.0
    right = constrain(before[None], bound, 0.0)[0]
    assert_right(before, right, bound, 0.0, 2)
    for wrong, why in [
        (before / 5 * (1 + 1e-15), "above"),
        (right * (1 - 2e-15), "too far"),
        (right * [1, 1 - 2e-15], "too far"),
        (right.astype(np.float32), "dtype"),
    ]:
        with pytest.raises(AssertionError, match=why):
            assert_right(before, wrong, bound, 0.0, 2)
    with pytest.raises(AssertionError, match="changed"):
        assert_right(before, before * (1 - 1e-15), 6.0, 0.0, 2)
    with pytest.raises(AssertionError, match="sign"):
        assert_right(np.array([3.0, -0.0]), np.array([1 - 2.0**-52, 0.0]), 1.0, 0.0, 2)


def test_the_plain_formula_fails():
    x = np.random.default_rng(0).normal(size=(50, LENGTH))
    plain = x * (0.5 / np.sqrt((x * x).sum(1, keepdims=True)))
    assert any(exact_norm(row, 2) > Fraction(0.5) for row in plain)


@pytest.mark.parametrize(("x64", "dtype"), CASES)
def test_ties_are_untouched_or_lose_an_ulp(x64, dtype):
    """A sum of several float64 terms cannot tell; the exact sums of float64 arrays, and groups of one entry, can."""
    x = np.array([[3, 4, 0], [0.1, 0, 0], [0, -0.3, 0], [0, 0, 0]], dtype=jnp.dtype(dtype))
    bound = np.array([[5], [x[1, 0]], [-x[2, 1]], [0]], dtype=wide(x64))
    result = constrain(x, bound, 0.0, 2, x64=x64)
    for row in range(4):
        assert_right(x[row], result[row], bound[row, 0], 0.0, 2)
    each = constrain(x, abs(x).astype(wide(x64)), 1e-7, 2, (), x64=x64)
    largest = constrain(x, abs(x).max(1, keepdims=True).astype(wide(x64)), 1e-7, math.inf, x64=x64)
    for exact in (each, largest, *([result] if dtype == "float64" else [])):
        assert exact.tobytes() == x.tobytes()


@pytest.mark.parametrize(("x64", "dtype"), CASES)
def test_subnormal_numbers_are_numbers(x64, dtype):
    smallest = float(ml_dtypes.finfo(jnp.dtype(dtype)).smallest_subnormal)
    x = np.array([[8, -6, 0], [3, 1, -0.0]], dtype=np.float64) * smallest
    x = x.astype(jnp.dtype(dtype))
    bound = np.array([[5 * smallest], [100 * smallest]], dtype=wide(x64))
    result = constrain(x, bound, 0.0, 2, x64=x64)
    assert result[1].tobytes() == x[1].tobytes()
    assert_right(x[0], result[0], bound[0, 0], 0.0, 2)
    assert (result[0, :2] != 0).all()


@pytest.mark.parametrize(
    ("x64", "dtype", "ord", "shape", "axes"),  # one of each way through the sums: compiling is what takes the time
    [
        (False, "float32", 2, (2, 10007), (1,)),
        (False, "float32", 1, (5003, 2), (0,)),
        (False, "float16", 2, (6, 2, 1001), (0, 2)),
        (True, "float32", 2, (5003, 2), (0,)),
        (True, "float64", 2, (6, 2, 1001), (0, 2)),
        (True, "float64", 1, (2, 10007), (1,)),
    ],
)
def test_long_groups(x64, dtype, ord, shape, axes):
    x = np.random.default_rng(0).normal(size=shape).astype(jnp.dtype(dtype))
    groups = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim)).reshape(-1, math.prod(shape[a] for a in axes))
    after = constrain(x, 0.5, 1e-7, ord, axes, x64=x64)
    results = np.moveaxis(after, axes, range(x.ndim - len(axes), x.ndim)).reshape(groups.shape)
    bound = wide(x64)(0.5)
    for before, result in zip(groups[:1], results[:1], strict=True):
        assert_right(before, result, bound, 1e-7, ord)


@pytest.mark.parametrize(("x64", "dtype"), CASES)
def test_scaling_by_powers_of_two(x64, dtype):
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(jnp.dtype(dtype))
    for power in (2.0**-3, 2.0**4):
        scaled = constrain((x * power).astype(x.dtype), 0.7 * power, 0.0, x64=x64)
        assert scaled.tobytes() == (constrain(x, 0.7, 0.0, x64=x64) * power).astype(x.dtype).tobytes()


@pytest.mark.parametrize(("x64", "dtype"), CASES)
def test_spoilt_groups_stay_alone(x64, dtype):
    x = np.array([[np.nan, 1], [np.inf, 1], [3, 4], [1, -1]], dtype=jnp.dtype(dtype))
    result = constrain(x, 2.5, 0.0, x64=x64)
    assert np.isnan(result[:2].astype(float)).all()
    assert_right(x[2], result[2], 2.5, 0.0, 2)
    assert result[3].tobytes() == x[3].tobytes()
    free = constrain(x, np.inf, 0.0, x64=x64)
    assert np.isnan(free[0].astype(float)).all()
    assert free[1:].tobytes() == x[1:].tobytes()


@pytest.mark.parametrize("x64", [False, True])
def test_traced_bounds_that_are_no_bounds(x64):
    x = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=wide(x64))
    for bound, epsilon in [(-1.0, 0.0), (np.nan, 0.0), (1.0, -1.0), (1.0, np.nan)]:
        assert np.isnan(constrain(x, bound, epsilon, x64=x64)).all()
    assert (constrain(x, 1.0, np.inf, x64=x64) == 0).all()
    assert (constrain(x, 0.0, 0.0, x64=x64) == 0).all()


def test_concrete_bounds_that_are_no_bounds():
    x = jnp.ones((2, 3))
    for bad in (-1.0, np.nan, np.array([[-1.0, 1, 1]])):
        with pytest.raises(ValueError, match="max_norm"):
            backend.constrain(x, bad, (0,), 0.0, 2, None)
    with pytest.raises(ValueError, match="shape"):
        backend.constrain(x, np.ones(2), (0,), 0.0, 2, None)
    with pytest.raises(TypeError, match="out"):
        backend.constrain(x, 1.0, (0,), 0.0, 2, x)
    with pytest.raises(TypeError, match="int32"):
        backend.constrain(jnp.ones((2, 3), np.int32), 1.0, (0,), 0.0, 2, None)


def test_bounds_that_float32_cannot_hold_are_rounded_down():
    x = np.array([[0.0, 7.0]], dtype=np.float32)
    with mode(False):
        for bound in (0.1, 1 / 3, np.float64(0.7), 16777217):
            result = np.asarray(backend.constrain(jnp.asarray(x * 1e8), bound, (1,), 0.0, 2, None))
            assert exact_norm(result[0], 2) <= Fraction(bound)
        traced = jax.jit(lambda x, c: backend.constrain(x, c, (1,), 0.0, 2, None))(x * 1e8, jnp.asarray(16777217))
    assert exact_norm(np.asarray(traced)[0], 2) <= 16777217


@pytest.mark.parametrize(("x64", "dtype"), [(False, "float32"), (True, "float64")])
def test_eager_jit_vmap_and_constants_agree(x64, dtype):
    x = np.random.default_rng(3).normal(size=(3, 7, 5)).astype(jnp.dtype(dtype))
    with mode(x64):
        eager = np.asarray(backend.constrain(jnp.asarray(x), 1.3, (1,), 1e-7, 2, None))
        constant = np.asarray(jax.jit(lambda: backend.constrain(jnp.asarray(x), 1.3, (1,), 1e-7, 2, None))())
        mapped = np.asarray(jax.vmap(lambda x: backend.constrain(x, 1.3, (0,), 1e-7, 2, None))(x))
        bounds = jnp.full(3, 1.3, wide(x64))
        each = np.asarray(jax.vmap(lambda x, c: backend.constrain(x, c, (0,), 1e-7, 2, None))(x, bounds))
    traced = constrain(x, wide(x64)(1.3), wide(x64)(1e-7), 2, (1,), x64=x64)
    for other in (constant, mapped, traced):
        assert other.tobytes() == eager.tobytes()
    groups, results = (np.moveaxis(a, 1, 2).reshape(-1, 7) for a in (x, each))
    for before, after in zip(groups, results, strict=True):
        assert_right(before, after, wide(x64)(1.3), 1e-7, 2)


@pytest.mark.parametrize(("x64", "ord"), [(True, 1), (True, 2), (True, math.inf), (False, 2)])
def test_total(x64, ord):
    rng = np.random.default_rng(0)
    kinds = ["float16", "bfloat16", "float32"] + (["float64"] if x64 else [])
    arrays = [
        rng.normal(size=shape).astype(jnp.dtype(k)) for k, shape in zip(kinds, [(2, 3), (4,), (), (5, 1)], strict=False)
    ]
    with mode(x64):

        def merged_norm(arrays):
            parts = [backend.summarise(a, tuple(range(a.ndim)), ord) for a in arrays]
            parts = [jax.tree.map(lambda leaf: leaf.reshape(()), part) for part in parts]
            return backend.norm(backend.merge(parts, ord), ord)

        results, before = backend.constrain_total([jnp.asarray(a) for a in arrays], 0.5, 0.0, ord)
        same, _ = backend.constrain_total([jnp.asarray(a) for a in arrays], 1e3, 0.0, ord)
        merged = jax.jit(merged_norm)([jnp.asarray(a) for a in arrays])
    everything = [v for a in arrays for v in fractions(a.ravel())]
    total = exact_norm(everything, ord)
    assert abs(Fraction(float(before)) - total) <= ulp(total, wide(x64))
    assert before.dtype == wide(x64)
    assert float(merged) == float(before)
    assert exact_norm([v for r in results for v in fractions(np.asarray(r).ravel())], ord) <= Fraction(0.5)
    for a, r, s in zip(arrays, results, same, strict=True):
        assert (a.shape, a.dtype) == (r.shape, r.dtype)
        assert np.asarray(s).tobytes() == a.tobytes()
        for v, w in zip(fractions(a.ravel()), np.asarray(r).ravel(), strict=True):
            ideal = v * Fraction(0.5) / total
            assert abs(Fraction(float(w)) - ideal) <= ULPS * ulp(ideal, a.dtype)


@pytest.mark.parametrize("shape_axes", [((0, 3), (0,)), ((3, 0), (0,)), ((), ()), ((4,), ())])
def test_odd_shapes(shape_axes):
    shape, axes = shape_axes
    x = np.full(shape, -2.0, np.float32)
    result = constrain(x, 0.5, 0.0, 2, axes, x64=False)
    assert result.shape == shape
    assert (np.abs(result) <= 0.5).all()
    with mode(False):
        assert backend.norm(backend.summarise(jnp.asarray(x), axes, 2), 2).shape == tuple(
            1 if a in axes else n for a, n in enumerate(shape)
        )


@pytest.mark.parametrize("ord", ORDERS)
def test_derivatives_are_those_of_the_definition(ord):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)) * [1, 0.1, 3, 5]
    c, e = 1.5, 0.3
    with mode(True):
        weights = jnp.asarray(rng.normal(size=x.shape))

        def rule(x, c, e):
            return backend.constrain(x, c, (0,), e, ord, None)

        def plain(x, c, e):  # the definition, where autodiff of it is well-behaved
            sizes = jnp.abs(x)
            n = {1: sizes.sum(0), 2: jnp.sqrt((x * x).sum(0)), math.inf: sizes.max(0)}[ord]
            return jnp.where(n > c, x * (c / (n + e)), x)

        def derivatives(f, *at):
            every = tuple(range(3))
            second = jax.jacfwd(jax.grad(lambda *at: (f(*at) * weights).sum(), every), every)
            return jax.jacfwd(f, every)(*at), jax.jacrev(f, every)(*at), second(*at)

        results = [jax.jit(lambda *at, f=f: derivatives(f, *at))(x, c, e) for f in (rule, plain)]
        for ours, theirs in zip(*(jax.tree.leaves(result) for result in results), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("x64", [False, True])
def test_derivatives_are_finite_everywhere(x64, ord):
    scales = (1e200, 1e-200, 1.7e308, 1.0) if x64 else (1e38, 1e-37, 3e38, 1.0)
    unit = np.array([0.5, -1.0, 1.0, 0.25])

    with mode(x64):

        def rule(x, c):
            return backend.constrain(x, c, (0,), 0.0, ord, None)

        every = jax.jit(
            lambda *at: (jax.jacrev(rule, (0, 1))(*at), jax.jacfwd(rule)(*at), jax.jacfwd(jax.jacrev(rule))(*at))
        )

        def jacobian(*at):
            return every(*at)[0]

        expected = jacobian(unit.astype(wide(x64)), wide(x64)(0.5))
        assert not np.allclose(expected[0], np.eye(4) / 2)
        for scale in scales:
            x, c = (unit * scale).astype(wide(x64)), wide(x64)(0.5 * scale)
            got = jacobian(x, c)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(every(x, c)[1], got[0], rtol=1e-6, atol=1e-7)
        zero = np.zeros(4, wide(x64))
        for c in (0.0, 1.0):
            np.testing.assert_array_equal(jacobian(zero, wide(x64)(c))[0], np.eye(4))
            assert np.isfinite(every(zero, wide(x64)(c))[2]).all()
        tie = np.array([3.0, 4, 0, 0]) if ord == 2 else np.array([5.0, 0, 0, 0])
        np.testing.assert_array_equal(jacobian(tie.astype(wide(x64)), wide(x64)(5.0))[0], np.eye(4))


def test_a_spoilt_group_spoils_no_other_derivative():
    x = np.array([[np.nan, 3.0], [np.inf, 4.0], [3.0, 4.0]], np.float32)
    with mode(False):
        loss = lambda x, c: backend.constrain(x, c, (1,), 0.1, 2, None)[2].sum()
        dx, dc = jax.grad(loss, argnums=(0, 1))(x, np.float32(1.0))
        clean = jax.grad(loss, argnums=(0, 1))(np.full_like(x, 3.0) + x[2:] - 3, np.float32(1.0))
    np.testing.assert_array_equal(dx[2], clean[0][2])
    assert dc == clean[1]


@pytest.mark.parametrize("ord", ORDERS)
def test_norms_have_derivatives(ord):
    x = np.random.default_rng(0).normal(size=(5, 4))
    with mode(True):

        def total(x):
            parts = [backend.summarise(x, (0,), ord), backend.summarise(2 * x, (0,), ord)]
            return backend.norm(backend.merge(parts, ord), ord).sum()

        def plain(x):
            both = jnp.abs(jnp.concatenate([x, 2 * x]))
            return {1: both.sum(0), 2: jnp.sqrt((both * both).sum(0)), math.inf: both.max(0)}[ord].sum()

        for ours, theirs in zip(jax.jit(jax.value_and_grad(total))(x), jax.value_and_grad(plain)(x), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-13)
        xs = [jnp.asarray(x), jnp.asarray(x[0])]
        before = jax.jit(jax.grad(lambda xs: backend.constrain_total(xs, 100.0, 0.0, ord)[1]))(xs)
        expected = jax.grad(lambda xs: plain_norm(jnp.concatenate([v.ravel() for v in xs]), ord))(xs)
        for a, b in zip(before, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


def plain_norm(x, ord):
    return jnp.linalg.norm(x, ord=np.inf if ord == math.inf else ord)


@pytest.mark.parametrize("x64", [False, True])
def test_in_doubt_epsilon_stays_out(x64):
    """A tie that is too long for the words of its sum is not thrown inside by an epsilon far above it."""
    x = np.array([[1.0, 2.0**-20, 2.0**-41, 2.0**-52, 2.0**-58]], dtype=np.float32)
    bound = np.nextafter(np.float32(1), np.float32(2))
    for c in (bound, np.float32(1)):
        result = constrain(x, c, 0.0, 1, x64=x64)
        assert_right(x[0], result[0], c, 0.0, 1)
    # Exactly its norm, in float64: only the exact sum can tell.
    if x64:
        tie = np.array([[1.0, 2.0**-26, 0, 0, 0]])
        assert_right(tie[0], constrain(tie, 1 + 2.0**-26, 1e7, 1)[0], 1 + 2.0**-26, 1e7, 1)
