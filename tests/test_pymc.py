"""normball.pymc: constrained optimizers, in graphs and in pm.fit; a tracker of norms; our functions in PyMC's place."""

import contextlib
import doctest
import importlib

import numpy as np
import pytest
from oracle import broken_laws, exact_norm

pytensor = pytest.importorskip("pytensor")
pm = pytest.importorskip("pymc")

import pytensor.tensor as pt  # noqa: E402

import normball  # noqa: E402
from normball.pymc import NormTracker, constrained, patch, patched  # noqa: E402
from normball.pymc.blocks import blocks, blocks_here  # noqa: E402

OPTIMIZERS = {
    "function": pm.adam,
    "partial": pm.adam(learning_rate=0.5),
    "window": pm.adagrad_window(learning_rate=0.5),
    "own": lambda loss, params: {p: p - 0.5 * g for p, g in zip(params, pytensor.grad(loss, params), strict=True)},
}
MODES = ["NUMBA", "CVM", "JAX"]


def weights(dtype="float64", shape=(5, 4), name="w"):
    return pytensor.shared(np.random.default_rng(0).standard_normal(shape).astype(dtype), name=name)


def norms_of(value):
    """The exact norm of each column."""
    return [exact_norm(column) for column in np.asarray(value, np.float64).T]


def loss_of(*params):
    """Grows without end: every step lengthens all columns."""
    return -sum(pt.sum(pt.cast(p, "float64") ** 2) for p in params)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, None) for name in OPTIMIZERS), *(("partial", mode) for mode in MODES)]
)
def test_norms_are_within_the_bound(name, mode):
    w = weights()
    step = pytensor.function([], [], updates=constrained(OPTIMIZERS[name], 0.5)(loss_of(w), [w]), mode=mode)
    for _ in range(20):
        step()
    assert max(norms_of(w.get_value())) <= 0.5
    assert min(norms_of(w.get_value())) > 0.499


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_constraint_of_the_update(mode):
    """The optimizer's own update, then the laws; its memory is left alone."""
    free, held = weights(), weights()
    plain = pm.adam(loss_of(free), [free], learning_rate=0.5)
    ours = constrained(pm.adam(learning_rate=0.5), 2.0)(loss_of(held), [held])
    memory = [[s for s in updates if s.name != "w"] for updates in (plain, ours)]
    assert [s.type for s in memory[0]] == [s.type for s in memory[1]]
    for updates in (plain, ours):
        pytensor.function([], [], updates=updates, mode=mode)()
    band = 4 if mode == "JAX" else 0
    assert broken_laws(free.get_value(), held.get_value(), 2.0, (0,), band=band) == set()
    for a, b in zip(*memory, strict=True):
        np.testing.assert_array_equal(a.get_value(), b.get_value())


def test_dtype_of_the_parameter_is_kept():
    w = weights("float32")
    updates = constrained(pm.sgd(learning_rate=np.float64(0.5)), 2.0)(loss_of(w), [w])
    pytensor.function([], [], updates=updates)()
    value = w.get_value()
    assert value.dtype == np.float32
    assert max(norms_of(value)) <= 2


def test_bounds_change_between_steps():
    w, bound = weights(), pytensor.shared(2.0)
    step = pytensor.function([], [], updates=constrained(pm.sgd(learning_rate=0.5), bound)(loss_of(w), [w]))
    for c in (2.0, 0.5, 3.0):
        bound.set_value(c)
        for _ in range(5):
            step()
        largest = max(norms_of(w.get_value()))
        assert 0.99 * c < largest <= c


@pytest.mark.parametrize(
    ("choice", "axes", "expected"),
    [
        (lambda v, w: {v: 1.0}, 0, (1.0, None)),
        (lambda v, w: {"w": (2.0, 1)}, None, (None, (2.0, 1))),
        (lambda v, w: {v: (1.0, ()), "w": 2.0}, 0, ((1.0, ()), (2.0, 0))),
        (lambda v, w: lambda p: 3.0 if p.ndim == 2 else None, None, (None, (3.0, 0))),
        (lambda v, w: lambda p: (3.0, 0), 1, ((3.0, 0), (3.0, 0))),
    ],
)
def test_choices(choice, axes, expected):
    v, w = weights(shape=(6,), name="v"), weights()
    updates = constrained(pm.sgd(learning_rate=10.0), choice(v, w), axes)(loss_of(v, w), [v, w])
    free = pm.sgd(loss_of(v, w), [v, w], learning_rate=10.0)
    for parameter, wanted in zip((v, w), expected, strict=True):
        value, plain = (pytensor.function([], graph[parameter])() for graph in (updates, free))
        if wanted is None:
            np.testing.assert_array_equal(value, plain)
            continue
        bound, own = wanted if isinstance(wanted, tuple) else (wanted, 0)
        assert broken_laws(plain, value, bound, (own,) if isinstance(own, int) else own) == set()


def test_updates():
    w = weights()
    plain = pm.adam(loss_of(w), [w], learning_rate=0.5)
    for given in (constrained(plain, {w: 2.0}), constrained(plain, {"w": 2.0}), constrained(plain, 2.0, params=[w])):
        assert list(given) == list(plain)
        assert [s for s in plain if given[s] is not plain[s]] == [w]
        values = (pytensor.function([], graph[w])() for graph in (plain, given))
        assert broken_laws(*values, 2.0, (0,)) == set()


def test_gradients_are_clipped_before_the_optimizer_sees_them():
    v, w = weights(shape=(6,), name="v"), weights()
    seen = []

    def optimizer(grads, params):
        seen.extend(grads)
        return {}

    constrained(optimizer, total_norm=0.5)(loss_of(v, w), [v, w])
    clipped = pytensor.function([], seen)()
    whole = exact_norm([float(x) for g in clipped for x in g.reshape(-1)])
    assert 0.4999 < whole <= 0.5
    seen.clear()
    zero = pytensor.shared(np.zeros(3))
    constrained(optimizer, total_norm=0.5)(pt.sum(zero**2), [zero])
    np.testing.assert_array_equal(pytensor.function([], seen)()[0], np.zeros(3))


@pytest.fixture(scope="module")
def model():
    with pm.Model() as model:
        w = pm.Normal("w", 0, 10, shape=(3, 2))
        sigma = pm.HalfNormal("sigma")
        pm.Normal("y", pt.sum(w), sigma, observed=np.full(20, 40.0))
    return model


def fit(model, method, **options):
    with model:
        return pm.fit(30, method=method, progressbar=False, random_seed=1, **options)


@pytest.mark.filterwarnings("ignore:np.dot.* is faster on contiguous arrays")  # PyTensor's own, in NUMBA mode
@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize(("method", "parameter"), [("advi", "mu"), ("fullrank_advi", "mu"), ("svgd", "histogram")])
def test_fit(model, method, parameter, mode):
    axes = 1 if method == "svgd" else 0
    optimizer = constrained(pm.adam(learning_rate=1.0), {parameter: 2.0}, axes, total_norm=100.0)
    approx = fit(model, method, obj_optimizer=optimizer, compile_kwargs={"mode": mode})
    value = next(p for p in approx.params if p.name == parameter).get_value()
    norms = [exact_norm(row) for row in np.atleast_2d(value)]
    assert max(norms) <= 2
    assert max(norms) > 1.9


@pytest.mark.parametrize("named", ["in the context", "by approx"])
@pytest.mark.parametrize("method", [pm.ADVI, pm.FullRankADVI, pm.SVGD])
def test_a_variable_of_the_model(model, method, named):
    """Its norms, in the mean or in every particle; what else the vector holds is not touched."""
    with model:
        inference = method(random_seed=1)
    approx = inference.approx
    optimizer = constrained(pm.adam(learning_rate=1.0), {"w": 1.5}, 0, approx=approx if named == "by approx" else None)
    with model if named == "in the context" else contextlib.nullcontext():
        inference.fit(30, obj_optimizer=optimizer, progressbar=False)
    block = blocks(approx)["w"]
    value = block.parameter.get_value()
    part = block.of(value)
    assert part.shape == (*value.shape[:-1], 3, 2)
    norms = [exact_norm(column) for column in np.moveaxis(part, -2, -1).reshape(-1, 3)]
    assert max(norms) <= 1.5
    assert max(norms) > 1.4
    assert abs(value[..., 6:]).max() > 1.5  # sigma went on


@pytest.mark.parametrize("method", [pm.ADVI, pm.FullRankADVI, pm.SVGD])
def test_variables_in_the_context_are_those_of_the_approximation(method):
    """The same blocks, found by the model; transformed and scalar variables, in any order."""
    with pm.Model() as model:
        pm.HalfNormal("tau")
        pm.Normal("u", shape=(2, 3))
        pm.Dirichlet("p", np.ones(4))
        pm.Normal("mu")  # a model's variable comes before a parameter of its name
        approx = method().approx
        here = blocks_here(approx.params)
    assert list(here) == ["tau_log__", "u", "p_simplex__", "mu"]
    assert here == blocks(approx)
    assert blocks_here(approx.params) == {}
    with model:
        assert blocks_here([weights(shape=(3,), name="mu")]) == {}
        assert blocks_here([weights()]) == {}


def test_tracker(model):
    tracker = NormTracker(every=10)
    named = NormTracker({"w": 0, "mu": 0}, every=15)
    approx = fit(model, "advi", callbacks=[tracker, named])
    assert tracker.steps == [10, 20, 30]
    assert named.steps == [15, 30]
    assert named["w"].shape == (2, 2)
    mean = next(p for p in approx.params if p.name == "mu").get_value()
    assert tracker["mu"].shape == (*named["mu"].shape[:0], 3)
    assert tracker["mu"][-1] == named["mu"][-1] == normball.compute_norms(mean, 0)
    np.testing.assert_array_equal(named["w"][-1], normball.compute_norms(mean[:6].reshape(3, 2)))
    tracker.clear()
    assert tracker.steps == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda w, v: constrained(pm.adam),
            ValueError,
            "max_norm=None, total_norm=None: nothing would be constrained; pass one of them",
        ),
        (
            lambda w, v: constrained(3.0, 2.0),
            TypeError,
            "optimizer of type float: must be a function or updates; for example pm.adam(learning_rate=0.02)",
        ),
        (
            lambda w, v: constrained(pm.adam, -1.0),
            ValueError,
            "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda w, v: constrained(pm.adam, total_norm=-1.0),
            ValueError,
            "total_norm=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda w, v: constrained(pm.sgd, 2.0)(loss_of(v), [v]),
            ValueError,
            "parameter v: norm_axes=None: no default axes for an array of 1 dimension (only for 2 to 5); "
            "pass norm_axes: 0 makes the whole array one group, () each entry",
        ),
        (
            lambda w, v: constrained(pm.sgd, {"W": 2.0})(loss_of(w, v), [w, v]),
            ValueError,
            "max_norm['W']: no variable or parameter of this name; there are w, v; "
            "a model's are known in its context, or by approx=",
        ),
        (
            lambda w, v: constrained(pm.sgd, {v: 2.0})(loss_of(w), [w]),
            ValueError,
            "max_norm[v]: is not among the parameters; pass those of the optimizer, and a model's variables by their names",
        ),
        (
            lambda w, v: constrained({w: w}, 2.0),
            ValueError,
            "params=None: updates hold the optimizer's memory as well as parameters; name them by params=[...], "
            "or in a mapping of bounds",
        ),
        (
            lambda w, v: constrained({w: w}, {w: 2.0}, total_norm=1.0),
            ValueError,
            "total_norm: updates have no gradients any more; pass the optimizer itself",
        ),
        (
            lambda w, v: constrained(pm.sgd, 2.0, params=[w]),
            TypeError,
            "params: is for updates only; an optimizer gets its parameters when it is called",
        ),
        (
            lambda w, v: NormTracker(every=0),
            ValueError,
            "every=0: must be an int >= 1; 1 for the calling thread alone",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call(weights(), weights(shape=(6,), name="v"))
    assert str(caught.value) == message


def test_tracker_refuses_unknown_names(model):
    with pytest.raises(ValueError) as caught:
        fit(model, "advi", callbacks=[NormTracker({"u": 0})])
    assert (
        str(caught.value) == "norm_axes['u']: no variable or parameter of this name; there are w, sigma_log__, mu, rho"
    )


def test_patched(model):
    """A shared threshold for pm.fit, and gradients at zero; and everything as before."""
    before = (pm.norm_constraint, pm.total_norm_constraint)
    zero = pt.vector("zero")
    with patched():
        assert pm.variational.updates.norm_constraint is pm.norm_constraint is normball.norm_constraint
        approx = fit(model, "advi", total_grad_norm_constraint=pytensor.shared(10.0))
        gradient = pytensor.function([zero], pytensor.grad(pm.total_norm_constraint([zero], 1.0)[0].sum(), zero))
        assert gradient(np.zeros(2)).tolist() == [1, 1]
    assert np.isfinite(approx.hist).all()
    assert (pm.norm_constraint, pm.total_norm_constraint) == before
    plain = pytensor.function([zero], pytensor.grad(pm.total_norm_constraint([zero], 1.0)[0].sum(), zero))
    assert np.isnan(plain(np.zeros(2))).all()
    unpatch = patch()
    assert pm.norm_constraint is normball.norm_constraint
    unpatch()
    assert (pm.norm_constraint, pm.total_norm_constraint) == before


def test_patched_is_undone_after_an_error():
    before = pm.norm_constraint
    with pytest.raises(KeyError), patched():
        raise KeyError
    assert pm.norm_constraint is before


@pytest.mark.parametrize("name", ["optimizer", "tracker", "patch"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"normball.pymc.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
