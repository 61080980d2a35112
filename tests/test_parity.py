"""Side by side with the real peer: PyMC's norm_constraint and total_norm_constraint, as installed.

Two parts. Where their result is sensible, ours is theirs up to epsilon. Where it is not, one test per defect says so
of both: that theirs still has it (so this file tells us when they mend it) and that ours does not.

The peer's rule, from Lasagne: every group times min(n, c) / (n + epsilon).
"""

import doctest
import functools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import normball
from normball import arguments, definition

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyMC's own imports warn: ArviZ of its future, PyTensor of a missing BLAS
    pymc = pytest.importorskip("pymc")
    import pytensor
    import pytensor.tensor as pt
    from pymc.variational import updates as peer

EPSILON = 1e-7
MODES = ("CVM", "NUMBA")
BOUNDS = (0.0, 0.1, 3.0, 100.0)
SHAPES = {2: (4, 3), 3: (3, 4, 2), 4: (3, 2, 2, 3), 5: (2, 3, 2, 2, 2)}


def variable(x, name="x"):
    return pt.tensor(name, dtype=x.dtype, shape=(None,) * x.ndim)


def apply(rule, x, *args, mode=None, **kwargs):
    """The value of rule(x, ...) in a compiled function that has x as an input: nothing is folded beforehand."""
    x = np.asarray(x)
    symbol = variable(x)
    return pytensor.function([symbol], rule(symbol, *args, **kwargs), mode=mode)(x)


def apply_total(rule, xs, *args, mode=None, **kwargs):
    """The same for a rule that takes a list; the outputs as a flat list, a returned norm last."""
    xs = [np.asarray(x) for x in xs]
    symbols = [variable(x, f"x{index}") for index, x in enumerate(xs)]
    result = rule(symbols, *args, **kwargs)
    outputs = [*result[0], result[1]] if isinstance(result, tuple) else result
    return pytensor.function(symbols, outputs, mode=mode)(*xs)


def gradient(rule, x, max_norm):
    x = np.asarray(x)
    symbol = variable(x)
    return pytensor.function([symbol], pytensor.grad(rule(symbol, max_norm).sum(), symbol))(x)


def columns(x):
    return [[float(v) for v in column] for column in np.asarray(x).T]


def exact_norm(values):
    return definition.norm(definition.summarise(values))


# --- how far theirs may lie from the formula -------------------------------------------------------------------------
#
# u is the unit roundoff, N a group's length. Squaring costs 1 u and summing in any order at most (N - 1) u; the root
# halves that and adds 1 u: the norm is good to (N / 2 + 1) u. Then n + epsilon, the quotient and the product cost 1 u
# each, and fast-math may write the quotient as a product with a reciprocal for 1 u more; c and epsilon rounded to
# floatX, at most 1 u each. Together (N / 2 + 7) u; second-order terms are below 1 u for any N that a test uses.


def peer_rounding(length):
    """The peer's relative error, in units of roundoff."""
    return Fraction(length, 2) + 8


OUR_ROUNDING = 8  # law 3: 4 ulp, and an ulp is at most two units of roundoff


def unit_roundoff(dtype):
    return Fraction(float(np.finfo(dtype).eps)) / 2


def distance_is_below_epsilon(ours, theirs, before, max_norm, dtype="float64"):
    """Whether |ours - theirs| < epsilon in norm for one group, but for the rounding of both; in exact arithmetic.

    Without rounding: the rules agree where n > c; where n <= c they are n * epsilon / (n + epsilon) < epsilon apart.
    """
    apart = exact_norm([Fraction(a) - Fraction(b) for a, b in zip(ours, theirs, strict=True)])
    size = min(exact_norm(before), Fraction(max_norm))
    rounding = (OUR_ROUNDING + peer_rounding(len(before))) * unit_roundoff(dtype) * size
    return apart < Fraction(EPSILON) + rounding


def entries_agree(ours, theirs, before, max_norm, dtype="float64"):
    """Whether each entry of one violator agrees up to the rounding of both; in exact arithmetic."""
    allowed = (OUR_ROUNDING + peer_rounding(len(before))) * unit_roundoff(dtype)
    right = definition.constrain(before, max_norm, float(np.asarray(EPSILON, dtype)))
    return all(abs(Fraction(a) - Fraction(b)) <= allowed * abs(r) for a, b, r in zip(ours, theirs, right, strict=True))


def exceeding(x, max_norm):
    """The columns whose norm, in exact arithmetic, is above max_norm."""
    return [column for column in columns(x) if definition.summarise(column) > Fraction(max_norm) ** 2]


def test_the_distance_can_be_too_large():
    before = [0.5, 0.5]
    assert distance_is_below_epsilon(before, [0.5 - 0.7e-7, 0.5 - 0.7e-7], before, 3.0)
    assert not distance_is_below_epsilon(before, [0.5 - 0.8e-7, 0.5 - 0.8e-7], before, 3.0)


def test_the_entries_can_disagree():
    before, right = [3.0, 4.0], [3.0 * (1.0 / (5.0 + EPSILON)), 4.0 * (1.0 / (5.0 + EPSILON))]
    assert entries_agree(right, right, before, 1.0)
    assert not entries_agree(right, [right[0] * (1 + 20 * 2.0**-53), right[1]], before, 1.0)


def test_a_column_can_exceed():
    assert exceeding(np.array([[3.0], [4.0]]), 5.0) == []
    assert exceeding(np.array([[3.0], [math.nextafter(4.0, 5.0)]]), 5.0) != []


# --- where theirs is sensible, ours is theirs ------------------------------------------------------------------------


def violators(shape):
    """Entries above 1, so that every group violates the bound of 0.5 and both rules are the same formula."""
    return np.random.default_rng(1).uniform(1, 2, size=shape)


@pytest.mark.parametrize("ndim", SHAPES)
def test_same_default_axes(ndim):
    """Naming our default axes to the peer changes no bit of its answer; naming others does."""
    x = violators(SHAPES[ndim])
    axes = arguments.default_axes(ndim)
    default = apply(peer.norm_constraint, x, 0.5)
    np.testing.assert_array_equal(default, apply(peer.norm_constraint, x, 0.5, norm_axes=axes))
    assert not np.array_equal(default, apply(peer.norm_constraint, x, 0.5, norm_axes=(ndim - 1,)))
    np.testing.assert_allclose(apply(normball.norm_constraint, x, 0.5), default, rtol=1e-14)
    np.testing.assert_allclose(normball.norm_constraint(x, 0.5), default, rtol=1e-14)


@pytest.mark.parametrize("ndim", [0, 1, 6])
def test_same_error_without_default_axes(ndim):
    x = np.ones((2,) * ndim)
    for rule, argument in [
        (peer.norm_constraint, variable(x)),
        (normball.norm_constraint, variable(x)),
        (normball.norm_constraint, x),
    ]:
        with pytest.raises(ValueError, match="norm_axes"):
            rule(argument, 1.0)


@pytest.mark.parametrize("axes", [(0,), [1], (0, 2), (-1,), (-3, -1), (2, 0)])
def test_same_explicit_axes(axes):
    x = violators((3, 4, 2))
    theirs = apply(peer.norm_constraint, x, 0.5, norm_axes=axes)
    np.testing.assert_allclose(apply(normball.norm_constraint, x, 0.5, norm_axes=axes), theirs, rtol=1e-14)
    np.testing.assert_allclose(normball.norm_constraint(x, 0.5, axes), theirs, rtol=1e-14)


@pytest.mark.parametrize(("axis", "axes"), [(0, (0,)), (-1, (2,)), (np.int64(1), (1,)), ((), ())])
def test_our_axes_may_be_an_int_and_negative(axis, axes):
    x = violators((3, 4, 2))
    expected = normball.norm_constraint(x, 0.5, axes)
    np.testing.assert_array_equal(apply(normball.norm_constraint, x, 0.5, norm_axes=axis), expected)
    np.testing.assert_array_equal(normball.norm_constraint(x, 0.5, axis), expected)


@functools.cache
def compiled(rule, dtype, mode):
    """The rule for every one of BOUNDS at once: one compilation serves all examples."""
    x = pt.matrix("x", dtype=dtype)
    with pytensor.config.change_flags(floatX=dtype):  # their way to keep the dtype
        return pytensor.function([x], [rule(x, max_norm) for max_norm in BOUNDS], mode=mode)


def both(x, mode):
    """(ours, theirs, before, max_norm) for every column under every bound."""
    dtype = x.dtype.name
    ours, theirs = (compiled(rule, dtype, mode)(x) for rule in (normball.norm_constraint, peer.norm_constraint))
    for max_norm, our, their in zip(BOUNDS, ours, theirs, strict=True):
        assert our.dtype == their.dtype == x.dtype
        np.testing.assert_array_equal(our, normball.norm_constraint(x, max_norm))
        bound = float(np.asarray(max_norm, x.dtype))
        yield from ((*group, bound) for group in zip(columns(our), columns(their), columns(x), strict=True))


ORDINARY = st.floats(-1e6, 1e6)
AWAY_FROM_EXTREMES = st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3) | st.just(0.0)
MATRICES = array_shapes(min_dims=2, max_dims=2, max_side=6)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=60)
@given(x=arrays("float64", MATRICES, elements=ORDINARY))
def test_closer_than_epsilon(mode, x):
    for ours, theirs, before, max_norm in both(x, mode):
        assert distance_is_below_epsilon(ours, theirs, before, max_norm)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=60)
@given(x=arrays("float64", MATRICES, elements=AWAY_FROM_EXTREMES))
def test_violators_agree_to_rounding(mode, x):
    for ours, theirs, before, max_norm in both(x, mode):
        if exact_norm(before) > Fraction(max_norm) * (1 + Fraction(1, 10**12)):  # theirs decides ties by rounding
            assert entries_agree(ours, theirs, before, max_norm)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_float32_violators_agree_to_rounding(scale):
    x = (np.random.default_rng(6).normal(size=(50, 40)) * scale).astype("float32")
    compared = 0
    for dtype_bound in [np.float32(0.1 * scale), np.float32(3 * scale)]:
        max_norm = float(dtype_bound)  # a bound that float32 holds: theirs rounds others
        with pytensor.config.change_flags(floatX="float32"):
            theirs = apply(peer.norm_constraint, x, max_norm)
        ours = apply(normball.norm_constraint, x, max_norm)
        for group in zip(columns(ours), columns(theirs), columns(x), strict=True):
            assert entries_agree(*group, max_norm, "float32")
            compared += 1
    assert compared == 80


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e3])
def test_total_norm_closer_than_epsilon(max_norm):
    rng = np.random.default_rng(7)
    xs = [rng.normal(size=(4, 3)), rng.normal(size=5), np.asarray(rng.normal())]
    *ours, our_norm = apply_total(normball.total_norm_constraint, xs, max_norm, return_norm=True)
    *theirs, their_norm = apply_total(peer.total_norm_constraint, xs, max_norm, return_norm=True)
    before = flat(xs)
    assert distance_is_below_epsilon(flat(ours), flat(theirs), before, max_norm)
    rounding = peer_rounding(len(before)) * unit_roundoff("float64")
    assert abs(Fraction(float(our_norm)) - Fraction(float(their_norm))) <= rounding * exact_norm(before)
    arrays_ours, arrays_norm = normball.total_norm_constraint(xs, max_norm, return_norm=True)
    assert flat(arrays_ours) == flat(ours)
    assert arrays_norm == our_norm


def flat(xs):
    return [float(v) for x in xs for v in np.asarray(x).ravel()]


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.5])
def test_same_epsilon_for_violators(epsilon):
    x = np.array([[3.0, 6.0], [4.0, 8.0]])
    theirs = apply(peer.norm_constraint, x, 1.0, epsilon=epsilon)
    np.testing.assert_allclose(apply(normball.norm_constraint, x, 1.0, epsilon=epsilon), theirs, rtol=1e-14)
    np.testing.assert_allclose(normball.norm_constraint(x, 1.0, None, epsilon), theirs, rtol=1e-14)


# --- one test per defect of theirs -----------------------------------------------------------------------------------


def test_gradient_at_a_zero_column():
    x = np.array([[0.0, 3.0], [0.0, 4.0]])
    assert np.isnan(gradient(peer.norm_constraint, x, 3.0)[:, 0]).all()
    ours = gradient(normball.norm_constraint, x, 3.0)
    np.testing.assert_array_equal(ours[:, 0], [1.0, 1.0])
    assert np.isfinite(ours).all()


def test_gradient_of_the_total_norm_at_zero():
    x = pt.vector("x")
    for rule, expected in [(peer.total_norm_constraint, [np.nan] * 2), (normball.total_norm_constraint, [1.0] * 2)]:
        slope = pytensor.grad(rule([x], 3.0)[0].sum(), x)
        np.testing.assert_array_equal(pytensor.function([x], slope)([0.0, 0.0]), expected)


def test_float32_stays_float32_under_floatx_float64():
    """An update of a float32 parameter: theirs does not compile."""
    start = np.full((2, 2), 5, "float32")
    with pytensor.config.change_flags(floatX="float64"):
        weights = pytensor.shared(start)
        assert peer.norm_constraint(weights, 3.0).dtype == "float64"
        assert peer.total_norm_constraint([weights], 3.0)[0].dtype == "float64"
        with pytest.raises(TypeError, match="same type"):
            pytensor.function([], updates=[(weights, peer.norm_constraint(weights, 3.0))])
        pytensor.function([], updates=[(weights, normball.norm_constraint(weights, 3.0))])()
        pytensor.function([], updates=[(weights, normball.total_norm_constraint([weights], 2.0)[0])])()
    assert weights.get_value().dtype == "float32"
    assert exceeding(weights.get_value(), 2.0) == []


@pytest.mark.parametrize("name", ["max_norm", "epsilon"])
def test_symbolic_bounds(name):
    """A schedule: one compiled function, several bounds."""
    x, bound = pt.matrix("x"), pt.scalar("bound")
    bounds = {"max_norm": 3.0, "epsilon": EPSILON, name: bound}
    for broken, argument in [(peer.norm_constraint, x), (peer.total_norm_constraint, [x])]:
        with pytest.raises((ValueError, TypeError)):
            broken(argument, **bounds)
    ours = [normball.norm_constraint(x, **bounds), *normball.total_norm_constraint([x], **bounds)]
    function = pytensor.function([x, bound], ours)
    value = np.array([[3.0, 6.0], [4.0, 8.0]])
    for number in (0.5, 1.0):
        numbers = bounds | {name: number}
        columnwise, total = function(value, number)
        np.testing.assert_array_equal(columnwise, normball.norm_constraint(value, **numbers))
        np.testing.assert_array_equal(total, normball.total_norm_constraint([value], **numbers)[0])


def test_shared_max_norm():
    x = np.array([[3.0], [4.0]])
    bound = pytensor.shared(np.asarray(2.0))
    with pytest.raises((ValueError, TypeError)):
        peer.norm_constraint(variable(x), bound)
    symbol = variable(x)
    function = pytensor.function([symbol], normball.norm_constraint(symbol, bound, epsilon=0))
    for value in (2.0, 1.0):
        bound.set_value(value)
        np.testing.assert_array_equal(function(x), normball.norm_constraint(x, value, epsilon=0))


def test_int_axis():
    x = np.array([[3.0, 6.0], [4.0, 8.0]])
    with pytest.raises(TypeError, match="not iterable"):
        peer.norm_constraint(variable(x), 3.0, norm_axes=0)
    np.testing.assert_array_equal(
        apply(normball.norm_constraint, x, 3.0, norm_axes=0), apply(normball.norm_constraint, x, 3.0, norm_axes=(0,))
    )


@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e20), ("float64", 1e200)])
def test_squares_that_overflow(dtype, huge):
    """Theirs silently makes zeros of them."""
    x = np.full((4, 1), huge, dtype)
    assert not apply(peer.norm_constraint, x, 3.0).any()
    assert not apply_total(peer.total_norm_constraint, [x], 3.0)[0].any()
    for ours in (apply(normball.norm_constraint, x, 3.0), apply_total(normball.total_norm_constraint, [x], 3.0)[0]):
        np.testing.assert_allclose(ours, 1.5, rtol=4 * np.finfo(dtype).eps)
        assert exceeding(ours, 3.0) == []


@pytest.mark.parametrize(("dtype", "tiny"), [("float32", 1e-25), ("float64", 1e-170)])
def test_squares_that_underflow(dtype, tiny):
    """Far inside the ball: theirs silently makes zeros of them."""
    x = np.full((2, 1), tiny, dtype)
    assert not apply(peer.norm_constraint, x, 3.0).any()
    np.testing.assert_array_equal(apply(normball.norm_constraint, x, 3.0), x)


def test_float16_whose_square_overflows():
    """In the C backend; PyTensor's numba backend has no float16 at all."""
    x = np.full((2, 1), 300, "float16")
    with pytensor.config.change_flags(floatX="float16"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTensor's, of C code it has not and of the overflow
        assert not apply(peer.norm_constraint, x, 3.0, mode="CVM").any()
    ours = apply(normball.norm_constraint, x, 3.0, mode="CVM")
    assert ours.dtype == "float16"
    np.testing.assert_allclose(ours, 3 / math.sqrt(2), rtol=4 * np.finfo("float16").eps)
    assert exceeding(ours, 3.0) == []


def test_compliant_vectors_are_left_alone():
    """Their page: "Vectors violating the constraint are rescaled". Theirs halves one of norm 1e-7."""
    x = np.array([[1e-7, 0.5], [0.0, 0.5]])
    theirs = apply(peer.norm_constraint, x, 3.0)
    np.testing.assert_allclose(theirs[:, 0], [5e-8, 0.0])
    assert (theirs[:, 1] < x[:, 1]).all()
    np.testing.assert_array_equal(apply(normball.norm_constraint, x, 3.0), x)


@pytest.mark.parametrize("mode", MODES)
def test_the_bound_holds(mode):
    """In exact arithmetic about half of all violators end above the bound in theirs."""
    x = np.random.default_rng(8).normal(size=(100, 200)).astype("float32")
    with pytensor.config.change_flags(floatX="float32"):
        theirs = apply(peer.norm_constraint, x, 0.1, mode=mode)
    assert len(exceeding(theirs, 0.1)) > 40
    assert exceeding(apply(normball.norm_constraint, x, 0.1, mode=mode), 0.1) == []


def test_a_second_call_changes_nothing():
    x = np.random.default_rng(9).normal(size=(100, 200))
    once, twice = iterated(peer.norm_constraint, x, 0.1)
    assert np.mean(once != twice) > 0.9
    once, twice = iterated(normball.norm_constraint, x, 0.1)
    np.testing.assert_array_equal(once, twice)


def iterated(rule, x, max_norm):
    symbol = variable(x)
    function = pytensor.function([symbol], rule(symbol, max_norm))
    once = function(x)
    return once, function(once)


def test_negative_max_norm():
    """Theirs turns every vector round."""
    x = np.full((2, 1), 0.5)
    np.testing.assert_allclose(apply(peer.norm_constraint, x, -1.0), -1 / math.sqrt(2), rtol=1e-6)
    for rule, argument in refusing(x):
        with pytest.raises(ValueError, match="max_norm=-1"):
            rule(argument, -1.0)


def test_nan_max_norm():
    """Theirs constrains nothing, or makes NaN, by the linker; silently in any case."""
    x = np.full((2, 1), 5.0)
    theirs = apply(peer.norm_constraint, x, np.nan, mode="CVM")
    assert np.isclose(theirs, x).all()
    for rule, argument in refusing(x):
        with pytest.raises(ValueError, match="max_norm=nan"):
            rule(argument, np.nan)


def refusing(x):
    yield normball.norm_constraint, x
    yield normball.norm_constraint, variable(x)
    yield normball.total_norm_constraint, [x]
    yield normball.total_norm_constraint, [variable(x)]


def test_total_norm_of_a_generator():
    """Theirs reads it twice, so that the gradients are dropped."""
    xs = [np.array([3.0]), np.array([4.0])]
    assert peer.total_norm_constraint((variable(x) for x in xs), 1.0) == []
    ours = apply_total(lambda symbols, c: normball.total_norm_constraint((s for s in symbols), c), xs, 1.0)
    assert len(ours) == 2
    np.testing.assert_allclose(flat(ours), [0.6, 0.8], rtol=1e-7)
    np.testing.assert_array_equal(flat(normball.total_norm_constraint(iter(xs), 1.0)), flat(ours))


def test_total_norm_of_mixed_dtypes():
    xs = [np.array([3.0], "float32"), np.array([4.0], "float64")]
    theirs = apply_total(peer.total_norm_constraint, xs, 1.0)
    assert [x.dtype.name for x in theirs] == ["float64", "float64"]
    ours = apply_total(normball.total_norm_constraint, xs, 1.0)
    assert [x.dtype.name for x in ours] == ["float32", "float64"]
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-6)


def test_inf_in_one_gradient():
    """Theirs leaves a step of zeros for the others, which looks like convergence; ours is NaN throughout."""
    xs = [np.array([np.inf]), np.array([1.0, 2.0])]
    np.testing.assert_array_equal(flat(apply_total(peer.total_norm_constraint, xs, 1.0)), [np.nan, 0.0, 0.0])
    np.testing.assert_array_equal(flat(apply_total(normball.total_norm_constraint, xs, 1.0)), [np.nan] * 3)


def test_inf_in_one_column():
    x = np.array([[np.inf, 0.5], [1.0, 0.5]])
    np.testing.assert_array_equal(apply(peer.norm_constraint, x, 3.0)[:, 0], [np.nan, 0.0])
    np.testing.assert_array_equal(apply(normball.norm_constraint, x, 3.0), [[np.nan, 0.5], [np.nan, 0.5]])


def test_integers():
    """Theirs squares in int8, where 100 * 100 wraps to 16."""
    x = np.full((2, 1), 100, "int8")
    assert exact_norm(columns(apply(peer.norm_constraint, x, 3.0))[0]) > 70
    for argument in (x, variable(x)):
        with pytest.raises(TypeError, match="int8"):
            normball.norm_constraint(argument, 3.0)


# --- the seed's example, and what Lasagne's own tests check ----------------------------------------------------------

EXAMPLE = """
>>> from normball import norm_constraint, compute_norms
>>> param = pytensor.shared(np.random.randn(100, 200).astype(pytensor.config.floatX))
>>> update = param + 100
>>> update = norm_constraint(update, 10)
>>> func = pytensor.function([], [], updates=[(param, update)])
>>> # Apply constrained update
>>> _ = func()
>>> norms = compute_norms(param.get_value())
>>> np.isclose(np.max(norms), 10)
True
"""


def failures(example):
    test = doctest.DocTestParser().get_doctest(example, {"np": np, "pytensor": pytensor}, "example", None, 0)
    with np.printoptions(legacy="1.25"):  # NumPy 2 writes np.True_
        return doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed


@pytest.mark.parametrize("floatx", ["float32", "float64"])
def test_the_example_of_the_seed(floatx):
    with pytensor.config.change_flags(floatX=floatx):
        assert failures(EXAMPLE) == 0
        assert failures(EXAMPLE.replace("max(norms), 10)", "max(norms), 11)")) == 1


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7, 5), None),
        ((5, 7, 3), None),
        ((5, 3, 4, 2), None),
        ((5, 3, 2, 2, 3), None),
        ((4, 6, 3, 2), (0, 2, 3)),
        ((3, 2, 2, 2, 2, 2), (1, 5)),
    ],
)
def test_every_group_ends_on_or_inside_the_ball(shape, axes):
    """Lasagne's: all groups above the bound before, at it afterwards; the direction kept."""
    x = np.random.default_rng(10).normal(size=shape) + 1
    reduced = arguments.read_axes(len(shape), axes)
    before = np.sqrt((x**2).sum(reduced, keepdims=True))
    max_norm = float(before.min()) / 2
    for result in (
        apply(normball.norm_constraint, x, max_norm, norm_axes=axes),
        normball.norm_constraint(x, max_norm, axes),
    ):
        norms = normball.compute_norms(result, axes)
        assert norms.shape == tuple(n for axis, n in enumerate(shape) if axis not in reduced)
        assert (norms <= max_norm).all()
        np.testing.assert_allclose(norms, max_norm, rtol=2 * EPSILON / before.min())
        np.testing.assert_allclose(result, x * max_norm / (before + EPSILON), rtol=1e-14)


def test_six_dimensions_need_axes():
    x = np.ones((1,) * 6)
    for argument in (x, variable(x)):
        with pytest.raises(ValueError, match="norm_axes"):
            normball.norm_constraint(argument, 1.0)
        with pytest.raises(ValueError, match="norm_axes"):
            normball.compute_norms(argument)


@pytest.mark.parametrize("return_norm", [False, True])
def test_total_norm_with_and_without_the_norm(return_norm):
    """Lasagne's: the parts together end at the threshold, and point where they did."""
    xs = [np.full((2, 2), 3.0), np.full(7, 4.0)]
    total = math.sqrt(4 * 9 + 7 * 16)
    results = apply_total(normball.total_norm_constraint, xs, 5.0, return_norm=return_norm)
    assert len(results) == 2 + return_norm
    if return_norm:
        assert results.pop() == total
    assert exact_norm(flat(results)) <= 5
    np.testing.assert_allclose(flat(results), np.array(flat(xs)) * 5 / total, rtol=1e-7)
    inside = apply_total(normball.total_norm_constraint, xs, 2 * total, return_norm=return_norm)
    assert flat(inside)[: len(flat(xs))] == flat(xs)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((6,), None, ()),
        ((4, 5), None, (0,)),
        ((4, 5), (1,), (1,)),
        ((4, 5), 1, (1,)),
        ((4, 3, 2), None, (1, 2)),
        ((4, 3, 2, 2), None, (1, 2, 3)),
        ((4, 3, 2, 2), (0, 2), (0, 2)),
        ((2, 3, 2, 2, 2), None, (1, 2, 3, 4)),
    ],
)
def test_norms_of_arrays_variables_and_shared_variables(shape, axes, expected):
    x = np.random.default_rng(11).normal(size=shape)
    right = np.sqrt((x**2).sum(expected)) if expected else np.abs(x)
    norms = normball.compute_norms(x, axes)
    assert norms.shape == right.shape
    np.testing.assert_allclose(norms, right, rtol=1e-15)
    np.testing.assert_array_equal(apply(normball.compute_norms, x, axes), norms)
    np.testing.assert_array_equal(normball.compute_norms(pytensor.shared(x), axes).eval(), norms)


def test_norms_of_a_list_are_refused():
    with pytest.raises(TypeError, match="list"):
        normball.compute_norms([[1.0, 2.0]])


# --- in PyMC's own place ---------------------------------------------------------------------------------------------


def fitted_loss(**kwargs):
    data = np.random.default_rng(12).normal(3.0, 2.0, size=50)
    with pymc.Model():
        mean = pymc.Normal("mean", 0.0, 10.0)
        pymc.Normal("observed", mean, pymc.HalfNormal("spread", 5.0), observed=data)
        return pymc.fit(60, random_seed=13, progressbar=False, **kwargs).hist


def test_fit_with_ours_in_the_place_of_theirs(monkeypatch):
    """`pm.fit` looks the function up when it runs. The clip must bite, or the comparison would prove nothing."""
    theirs = fitted_loss(total_grad_norm_constraint=5.0)
    for module in (pymc, peer):
        monkeypatch.setattr(module, "norm_constraint", normball.norm_constraint)
        monkeypatch.setattr(module, "total_norm_constraint", normball.total_norm_constraint)
    np.testing.assert_allclose(fitted_loss(total_grad_norm_constraint=5.0), theirs, rtol=1e-6)
    assert not np.allclose(fitted_loss(), theirs, rtol=1e-3)


def test_fit_with_a_threshold_that_may_change(monkeypatch):
    threshold = pytensor.shared(np.asarray(5.0))
    with pytest.raises((ValueError, TypeError)):
        fitted_loss(total_grad_norm_constraint=threshold)
    monkeypatch.setattr(pymc, "total_norm_constraint", normball.total_norm_constraint)
    assert np.isfinite(fitted_loss(total_grad_norm_constraint=threshold)).all()
