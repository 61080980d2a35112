"""normball.pytensor: PyMC's formulas in graphs are recognised where they stand, and nothing else is."""

import doctest

import numpy as np
import pytest

pytensor = pytest.importorskip("pytensor")
pm = pytest.importorskip("pymc")

import pytensor.tensor as pt  # noqa: E402

import normball  # noqa: E402
import normball.pytensor  # noqa: E402
from normball.backends.pytensor import NormConstraint, TotalNormConstraint  # noqa: E402
from normball.backends.pytensor_fusion import ProducedNormConstraint  # noqa: E402

X, Y, T = pt.matrix("x"), pt.vector("y"), pt.tensor4("t")
RNG = np.random.default_rng(0)
VALUES = {X: 2 * RNG.standard_normal((5, 4)), Y: 3 * RNG.standard_normal(3), T: RNG.standard_normal((2, 3, 4, 5))}


@pytest.fixture
def recognition():
    disable = normball.pytensor.enable_recognition()
    yield
    disable()


def ours(function):
    """How many constraints a compiled function holds, those included that NUMBA mode fuses with what they read."""
    kinds = (NormConstraint, TotalNormConstraint, ProducedNormConstraint)
    return sum(isinstance(node.op, kinds) for node in function.maker.fgraph.toposort())


FOUND = {
    "dense": ([X], lambda: pm.norm_constraint(X, 3.0)),
    "filters": ([T], lambda: pm.norm_constraint(T, 3.0)),
    "rows": ([X], lambda: pm.norm_constraint(X, 3.0, norm_axes=(1,))),
    "everything": ([X], lambda: pm.norm_constraint(X, 3.0, norm_axes=(0, 1))),
    "vector": ([Y], lambda: pm.norm_constraint(Y, 3.0, norm_axes=(0,))),
    "amid other terms": ([X], lambda: 2 * pm.norm_constraint(X + 1, 3.0) + 1),
    "total": ([X, Y], lambda: pm.total_norm_constraint([X, Y], 3.0)),
    "total and norm": ([X, Y], lambda: pm.total_norm_constraint([X, Y], 3.0, return_norm=True)[0]),
}


def scaled(norm, least=0, epsilon=1e-7):
    return X * (pt.clip(norm, least, 3.0) / (epsilon + norm))


def columns(x):
    return pt.sqrt(pt.sum(pt.sqr(x), axis=0, keepdims=True))


LEFT = {
    "clipped from one": lambda: scaled(columns(X), least=1),
    "another array's norms": lambda: scaled(columns(2 * X)),
    "norms of columns upon rows": lambda: scaled(columns(X).T),
    "fourth powers": lambda: scaled(pt.sqrt(pt.sum(X**4))),
    "another norm below": lambda: X * (pt.clip(columns(X), 0, 3.0) / (1e-7 + columns(X + 1))),
    "a bound for each unit": lambda: pm.norm_constraint(X, np.array([[1.0, 2.0, 3.0, 4.0]])),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name, recognition):
    inputs, graph = FOUND[name]
    function = pytensor.function(inputs, graph())
    assert ours(function) == 1
    plain = pytensor.function(
        inputs, graph(), mode=pytensor.compile.get_default_mode().excluding(normball.pytensor._NAME)
    )
    assert ours(plain) == 0
    values = [VALUES[variable] for variable in inputs]
    results = [call(*values) for call in (function, plain)]
    for a, b in zip(*(r if isinstance(r, list) else [r] for r in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LEFT)
def test_left(name, recognition):
    assert ours(pytensor.function([X], LEFT[name]())) == 0
    assert ours(pytensor.function([X], scaled(columns(X)))) == 1


@pytest.mark.parametrize("bound", [-1.0, np.nan])
def test_a_wrong_bound_is_left_and_hides_no_other(bound, recognition):
    wrong = [pm.norm_constraint(X, bound), pm.norm_constraint(X, 2.0, epsilon=bound)]
    graphs = [*wrong, pm.norm_constraint(X, 3.0), *pm.total_norm_constraint([X, Y], bound)]
    assert ours(pytensor.function([X, Y], graphs)) == 1


def test_a_wrong_bound_in_an_array_is_left(recognition):
    x = pt.tensor("x", shape=(5, 4), dtype="float64")
    for last, found in ((4.0, 2), (-1.0, 1)):
        bounds = np.array([[1.0, 2.0, 3.0, last]])
        assert ours(pytensor.function([x], pm.norm_constraint(pm.norm_constraint(x, bounds), 3.0))) == found


def test_what_it_mends(recognition):
    function = pytensor.function([X], pm.norm_constraint(X, 3.0))
    far = np.array([[1e200, 1e-200], [0.0, 0.0]])
    np.testing.assert_allclose(function(far), [[3.0, 1e-200], [0.0, 0.0]], rtol=1e-15)


def test_updates_and_scan(recognition):
    w = pytensor.shared(VALUES[X])
    step = pytensor.function([], [], updates=[(w, pm.norm_constraint(w + 1, 0.5))])
    step()
    assert normball.compute_norms(w.get_value()).max() <= 0.5
    outputs = pytensor.scan(lambda w: pm.norm_constraint(w * 2, 1.0), outputs_info=[X], n_steps=3, return_updates=False)
    result = pytensor.function([X], outputs[-1])(VALUES[X])
    assert normball.compute_norms(result).max() <= 1


def test_disabled_and_off_by_default():
    graph = pm.norm_constraint(X, 3.0)
    assert ours(pytensor.function([X], graph)) == 0
    disable = normball.pytensor.enable_recognition()
    assert ours(pytensor.function([X], graph)) == 1
    disable()
    assert ours(pytensor.function([X], graph)) == 0


def test_fit(recognition):
    with pm.Model():
        pm.Normal("y", pm.Normal("w", shape=3), observed=np.ones(3))
        step = pm.ADVI(random_seed=1).objective.step_function(total_grad_norm_constraint=10.0)
    assert ours(step) == 1
    step()


def test_example():
    results = doctest.testmod(normball.pytensor)
    assert results.attempted > 0
    assert results.failed == 0
