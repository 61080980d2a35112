"""PyTensor derivatives, held to the closed form of law 8 in wider arithmetic, over the whole range of float64."""

import math

import numpy as np
import pytest

pytensor = pytest.importorskip("pytensor")

import pytensor.tensor as pt  # noqa: E402
from closed_form import (  # noqa: E402
    SCALES,
    SUBNORMAL,
    WIDE,
    closed_form,
    columns,
    second_derivative,
    wide_enough,
    wrong_entries,
)
from conftest import installed  # noqa: E402
from oracle import same_bits  # noqa: E402
from pytensor.compile.mode import Mode  # noqa: E402

from normball import compute_norms, norm_constraint, total_norm_constraint  # noqa: E402

PYTHON = Mode("py", "fast_run")  # every rewrite, no compiler
MODES = ["FAST_COMPILE", "CVM", "NUMBA"]
MODES += ["JAX"] if installed("jax") else []
MODES += ["PYTORCH"] if installed("torch") else []
ORDERS = (1, 2, math.inf)
# One order is enough where compiling takes many seconds: what the orders share is what a compiler may break.
CASES = [(mode, ord) for mode in MODES for ord in ORDERS if ord == 2 or mode == "FAST_COMPILE"]
CASES += [("PYTORCH", math.inf)] if "PYTORCH" in MODES else []  # where PyTensor makes torch.equal of pt.eq


def forward(outputs, inputs, tangents):
    """Forward mode through the Ops themselves, under its name in PyTensor 3 or 2."""
    if hasattr(pytensor.gradient, "pushforward"):
        return pytensor.gradient.pushforward(outputs, inputs, tangents, use_op_pushforward=True)
    return pytensor.gradient.Rop(outputs, inputs, tangents, use_op_rop_implementation=True)


@wide_enough
@pytest.mark.parametrize(("mode", "ord"), CASES)
def test_gradients_are_the_closed_form_at_every_scale(mode, ord):
    bound, epsilon = pt.dscalar(), pt.dscalar()
    inputs, outputs, dtypes = [], [], ("float64", "float32")
    for dtype in dtypes:
        x, cotangent = pt.matrix(dtype=dtype), pt.matrix(dtype=dtype)
        y = norm_constraint(x, bound, 0, epsilon, ord=ord)
        gradients = pt.grad(None, [x, bound, epsilon], known_grads={y: cotangent})
        assert [g.type.dtype for g in gradients] == [dtype, "float64", "float64"]
        inputs += [x, cotangent]
        outputs += gradients
    compute = pytensor.function([*inputs, bound, epsilon], outputs, mode=mode)
    for c in (3.0, 0.0, 1e20, 1e-40, 1e250):
        for e in (0.0, 1e-7, 1e10):
            # XLA and inductor flush subnormal numbers to zero in ordinary arithmetic.
            scales = {t: SCALES[t] + (SUBNORMAL[t] if mode not in ("JAX", "PYTORCH") else []) for t in dtypes}
            pairs = [columns(dtype, scales[dtype]) for dtype in dtypes]
            found = compute(*pairs[0], *pairs[1], c, e)
            for k, (dtype, (x, g)) in enumerate(zip(dtypes, pairs, strict=True)):
                to_x, to_bound, to_epsilon = closed_form(x, g, c, e, ord)
                assert np.isfinite(found[3 * k]).all()
                assert wrong_entries(found[3 * k], to_x, np.abs(g).sum(0), dtype) == 0, (dtype, c, e)
                if c >= 3:  # so that subnormal norms, which have too few digits to sum up, comply
                    for one, wanted in ((found[3 * k + 1], to_bound), (found[3 * k + 2], to_epsilon)):
                        assert wrong_entries(one, wanted, WIDE(np.abs(g).sum()), "float64") == 0, (dtype, c, e)
    # 1e150 times 1e200 is beyond float64, the gradient is not: rearranged by rewrites or fast-math it overflowed.
    found = compute(np.full((4, 1), 1e200), np.full((4, 1), 1e150), *columns("float32", [1.0]), 3.0, 1e-7)
    assert (np.abs(found[0]) < 1e-40).all()


def test_the_judge_of_gradients_can_say_no():
    x, g = columns("float64", SCALES["float64"])
    wanted = closed_form(x, g, 3.0, 1e-7, 2)[0]
    assert wrong_entries(wanted, wanted, np.abs(g).sum(0), "float64") == 0
    spoilt = wanted.copy()
    spoilt[0, 0] += 1e-11
    spoilt[1, 3] = np.nan
    assert wrong_entries(spoilt, wanted, np.abs(g).sum(0), "float64") == 2
    # The textbook formula, which every rewrite is free to rearrange, does not pass.
    v = pt.dmatrix()
    norms = pt.sqrt((v**2).sum(0, keepdims=True))
    textbook = pt.grad(None, v, known_grads={v * (pt.clip(norms, 0, 3.0) / (1e-7 + norms)): pt.constant(g)})
    found = pytensor.function([v], textbook, mode="NUMBA")(x)
    assert wrong_entries(found, wanted, np.abs(g).sum(0), "float64") > 4


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "PYTORCH"])  # a minute there
def test_gradient_is_the_identity_wherever_the_group_complies(mode):
    """Bit for bit, the tie n == c and zero vectors included: the cotangent comes back."""
    inputs, outputs, dtypes = [], [], ("float64", "float32")
    for dtype in dtypes:
        x, g = pt.matrix(dtype=dtype), pt.matrix(dtype=dtype)
        (total,) = total_norm_constraint([x], 8.0)
        inputs += [x, g]
        outputs += [pt.grad(None, x, known_grads={y: g}) for y in (norm_constraint(x, 5.0, 0), total)]
    compute = pytensor.function(inputs, outputs, mode=mode)

    def gradients(*pairs):
        return dict(zip((f"{d} {k}" for d in dtypes for k in ("by column", "total")), compute(*pairs), strict=True))

    values, cotangents, over = [], [], []
    for dtype in dtypes:
        below, above = (np.nextafter(np.array(4, dtype), np.array(end, dtype)) for end in (0, 9))
        values.append(np.array([[3, 0, 3, 0], [4, 0, below, -0.0]], dtype))
        cotangents.append(np.array([[1.7, -0.0, 1e30, -3], [-0.1, 2e-30, 1 / 3, 5]], dtype))
        over.append(np.array([[3], [above]], dtype))
    found = gradients(values[0], cotangents[0], values[1], cotangents[1])
    for name, gradient in found.items():
        assert same_bits(np.asarray(gradient), cotangents[dtypes.index(name.split()[0])]), name
    moved = gradients(over[0], cotangents[0][:, :1], over[1], cotangents[1][:, :1])
    for k, dtype in enumerate(dtypes):  # one ulp over, and it is no identity any more
        assert not same_bits(np.asarray(moved[f"{dtype} by column"]), cotangents[k][:, :1])
    extreme = gradients(np.full((4, 1), 1e200), np.full((4, 1), 1e150), over[1], cotangents[1][:, :1])
    assert (np.abs(extreme["float64 total"]) < 1e-40).all()


@pytest.mark.parametrize("ord", ORDERS)
def test_verify_grad(ord):
    """Against finite differences, away from ties and kinks, in all three inputs."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 4)) * np.array([0.1, 3, 5, 7])
    per_unit = np.array([[2.0, 1.5, 1.0, 2.5]])

    def by_column(x, c, e):
        return norm_constraint(x, c, 0, e, ord=ord)

    def by_total(x, c, e):
        (first, second), norm = total_norm_constraint([x[:2], x[2:]], c, e, return_norm=True, ord=ord)
        return pt.concatenate([first.ravel(), second.ravel(), norm[None]])

    for function, bound in ((by_column, np.array(2.0)), (by_column, per_unit), (by_total, np.array(2.0))):
        pytensor.gradient.verify_grad(function, [x, bound, np.array(0.01)], rng=rng, mode=PYTHON)
    cut = pytensor.gradient.disconnected_grad
    with pytest.raises(pytensor.gradient.GradientError):  # and it can say no
        pytensor.gradient.verify_grad(lambda x: by_column(x, 2.0, 0.01) + cut(x), [x], rng=rng, mode=PYTHON)


@pytest.mark.parametrize("ord", ORDERS)
def test_forward_mode_agrees_with_reverse_mode(ord):
    """<g, J t> = <J' g, t> for every input, through the Ops' own pushforward and pullback."""
    rng = np.random.default_rng(4)
    x, u, g, h = pt.dmatrix(), pt.dvector(), pt.dmatrix(), pt.dvector()
    c, e = pt.dscalar(), pt.dscalar()
    tangents = [pt.dmatrix(), pt.dvector(), pt.dscalar(), pt.dscalar()]
    y = norm_constraint(x, c, 0, e, ord=ord)
    (first, second), norm = total_norm_constraint([x, u], c, e, return_norm=True, ord=ord)
    norms = compute_norms(x, 0, ord=ord)
    sums = []
    for outputs, cotangents, wrt in (
        ([y], [g], [0, 2, 3]),
        ([first, second, norm], [g, h, pt.constant(0.7, dtype="float64")], [0, 1, 2, 3]),
        ([norms], [g[0]], [0]),
    ):
        inputs, steps = [[x, u, c, e][k] for k in wrt], [tangents[k] for k in wrt]
        moved = forward(outputs, inputs, steps)
        pulled = pt.grad(None, inputs, known_grads=dict(zip(outputs, cotangents, strict=True)))
        sums.append(sum((a * b).sum() for a, b in zip(moved, cotangents, strict=True)))
        sums.append(sum((a * b).sum() for a, b in zip(pulled, steps, strict=True)))
    # One input alone: the others' tangents are absent, not zero.
    sums += [forward(first, u, tangents[1]).sum(), forward([first, second], [x], [tangents[0] * 0])[1].sum()]
    compute = pytensor.function([x, u, g, h, c, e, *tangents], sums, mode=PYTHON)
    args = [rng.standard_normal(shape) for shape in ((3, 4), 5, (3, 4), 5)]
    steps = [rng.standard_normal(shape) for shape in ((3, 4), 5, (), ())]
    found = compute(*args, 1.2, 0.01, *steps)
    for pushed, pulled in zip(found[0:6:2], found[1:6:2], strict=True):
        np.testing.assert_allclose(pushed, pulled, rtol=1e-12)
    assert found[7] == 0


@wide_enough
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("CVM", "PYTORCH")])
def test_second_derivatives(mode):
    """Also at norms whose squares leave float64: rearranged they were silently wrong by a third at 1e120."""
    x, g, v, c, e = pt.dmatrix(), pt.dmatrix(), pt.dmatrix(), pt.dscalar(), pt.dscalar()
    products = []
    for y in (norm_constraint(x, c, 0, e), total_norm_constraint([x], c, e)[0]):
        gradient = pt.grad(None, x, known_grads={y: g})
        products += [pt.grad((gradient * v).sum(), x), forward(gradient, x, v)]
    compute = pytensor.function([x, g, v, c, e], products, mode=mode)
    rng = np.random.default_rng(5)
    for scale, bound, epsilon in (
        (10, 3.0, 1e-7),
        (10, 3.0, 1.0),
        (1e120, 3.0, 1e-7),
        (1e120, 1e119, 0),
        (1e160, 1e159, 0),
        (1e-120, 1e-121, 0),
        (1e-200, 1e-201, 0),
    ):
        values = rng.uniform(1, 2, (4, 1)) * scale
        weights, direction = rng.standard_normal((2, 4, 1))
        wanted = second_derivative(values, weights, direction, bound, epsilon)
        for found in compute(values, weights, direction, bound, epsilon):
            assert wrong_entries(found, wanted, np.abs(wanted).max(), "float64") == 0, (scale, bound, epsilon)
    # Where the group complies, or is zero, the function is linear.
    for values, bound in ((np.zeros((4, 1)), 0.0), (np.zeros((4, 1)), 1.0), (np.ones((4, 1)), 9.0)):
        for found in compute(values, weights, direction, bound, 1e-7):
            assert (found == 0).all()


@pytest.mark.parametrize("mode", ["FAST_COMPILE", "NUMBA"])
def test_gradient_of_the_returned_norm(mode):
    """x / n over all arrays; zero at zero; each in its own array's dtype."""
    x, u = pt.dmatrix(), pt.fvector()
    norm = total_norm_constraint([x, u], 1.0, return_norm=True)[1]
    gradients = pt.grad(norm, [x, u])
    assert [g.type.dtype for g in gradients] == ["float64", "float32"]
    by_column = pt.grad(compute_norms(x, 0).sum(), x)
    compute = pytensor.function([x, u], [*gradients, by_column], mode=mode)
    for found in compute(np.zeros((2, 2)), np.zeros(3, "float32")):
        assert (found == 0).all()
    for scale in (1, 2.0**660, 2.0**-660):  # 3, 4, 12 -> 13, whose power of two drops out
        to_x, to_u, by_column = compute(np.array([[3.0, 0], [4, 0]]) * scale, np.zeros(1, "float32"))
        np.testing.assert_allclose(to_x, [[0.6, 0], [0.8, 0]], rtol=1e-15)
        np.testing.assert_allclose(by_column, [[0.6, 0], [0.8, 0]], rtol=1e-15)
        assert to_u.tolist() == [0]


@pytest.mark.skipif(not installed("jax"), reason="jax is not installed")
def test_jax_differentiates_a_converted_graph():
    """PyMC hands such graphs to JAX samplers, which differentiate them there: finite at zero and at a tie."""
    from pytensor.graph.fg import FunctionGraph
    from pytensor.link.jax.dispatch import jax_funcify

    x = pt.dmatrix()
    (total,), norm = total_norm_constraint([x], 7.0, return_norm=True)
    loss = (norm_constraint(x, 5.0, 0) * np.arange(6.0).reshape(2, 3)).sum() + total.sum() + norm
    converted = jax_funcify(FunctionGraph([x], [loss], clone=True))

    import jax

    gradient = jax.grad(lambda x: converted(x)[0])
    at_zero = np.asarray(gradient(np.zeros((2, 3))))
    assert (at_zero == np.arange(6.0).reshape(2, 3) + 1).all()
    assert np.isfinite(gradient(np.array([[3.0, 0, 30], [4, 0, 40]]))).all()
    assert np.isfinite(gradient(np.array([[1e200, 1e-200, 0], [1e200, 1e-200, 3]]))).all()
