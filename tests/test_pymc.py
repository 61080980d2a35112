"""normball.pymc: constrained optimizers, in graphs and in pm.fit; a tracker of norms; our functions in PyMC's place."""

import contextlib
import doctest
import importlib
import subprocess
import sys

import numpy as np
import pages
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


def test_one_bound_for_each_unit():
    """A tuple or an array is bounds, one for each group; only within a mapping or from a function is a pair."""
    w = weights()
    bounds = (0.5, 1.0, 1.5, 2.0)
    for bound in (bounds, np.array([bounds])):
        updates = constrained(pm.sgd(learning_rate=10.0), bound)(loss_of(w), [w])
        assert all(
            n <= c < 1.001 * n for n, c in zip(norms_of(pytensor.function([], updates[w])()), bounds, strict=True)
        )


def test_order_of_the_norm():
    w = weights()
    updates = constrained(pm.sgd(learning_rate=10.0), 2.0, ord=1)(loss_of(w), [w])
    largest = max(exact_norm(column, 1) for column in pytensor.function([], updates[w])().T)
    assert 1.999 < largest <= 2


def test_order_and_epsilon_of_clipping():
    v = weights(shape=(6,), name="v")
    seen = []
    optimizer = constrained(lambda grads, params: seen.extend(grads) or {}, total_norm=2.0, epsilon=0.5, ord=1)
    optimizer(loss_of(v), [v])
    n = exact_norm(2 * v.get_value(), 1)
    assert abs(exact_norm(pytensor.function([], seen)()[0], 1) - n * 2 / (n + 0.5)) < 1e-15


def test_epsilon():
    w = weights()
    updates = constrained({w: 3 * w}, {w: 1.0}, epsilon=0.5)
    value = pytensor.function([], updates[w])()
    assert broken_laws(3 * w.get_value(), value, 1.0, (0,), epsilon=0.5) == set()


def test_a_parameter_that_the_optimizer_does_not_move():
    w = weights()
    pytensor.function([], [], updates=constrained(lambda loss, params: {}, 0.5)(loss_of(w), [w]))()
    assert max(norms_of(w.get_value())) <= 0.5


def test_two_parameters_of_one_name():
    """Those of two groups of an approximation, say."""
    ws = [weights(), weights()]
    updates = constrained(pm.sgd(learning_rate=10.0), {"w": 1.0})(loss_of(*ws), ws)
    assert all(max(norms_of(pytensor.function([], updates[w])())) <= 1 for w in ws)


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
@pytest.mark.filterwarnings("ignore:The RandomType SharedVariables")  # and in JAX mode, of PyMC's random numbers
@pytest.mark.parametrize(
    ("method", "parameter", "mode"),
    [
        # PyMC 5 cannot be fitted in JAX mode, by its own optimizers either
        *(("advi", "mu", mode) for mode in (MODES if int(pm.__version__.split(".")[0]) > 5 else MODES[:2])),
        ("fullrank_advi", "mu", None),
        ("svgd", "histogram", None),
    ],
)
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
    options = {"approx": approx} if named == "by approx" else {}
    optimizer = constrained(pm.adam(learning_rate=1.0), {"w": 1.5}, 0, **options)
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
    """The same places, found by the model: of transformed and scalar variables, and before a parameter of a name."""
    with pm.Model() as model:
        pm.HalfNormal("tau")
        pm.Normal("u", shape=(2, 3))
        pm.Dirichlet("p", np.ones(4))
        pm.Normal("mu")
        approx = method().approx
        here = blocks_here(approx.params)
    assert list(here) == ["tau_log__", "u", "p_simplex__", "mu"]
    assert here == blocks(approx)
    assert blocks_here(approx.params) == {}
    with model:
        assert blocks_here([weights(shape=(3,), name="mu")]) == {}
        assert blocks_here([weights()]) == {}
        assert blocks_here([*approx.params, *approx.params]) == {}


def test_a_variable_has_axes_of_its_own(model):
    """Axes in the mapping, negative ones, and a bound for each unit; entries of others keep their bits."""
    with model:
        inference = pm.ADVI(random_seed=1)
    block = blocks(inference.approx)["w"]
    mean = block.parameter
    plain = {mean: mean * 3 + 5}
    bounds = np.array([[1.0], [2.0], [3.0]])
    value = pytensor.function([], constrained(plain, {"w": (bounds, -1)}, approx=inference.approx)[mean])()
    free = pytensor.function([], plain[mean])()
    for row, c in zip(value[:6].reshape(3, 2), (1.0, 2.0, 3.0), strict=True):
        assert 0.999 * c < exact_norm(row) <= c
    assert value[6:].tolist() == free[6:].tolist()


def test_groups_in_an_order_of_their_own():
    """An approximation put together by hand keeps its variables where it wants."""
    with pm.Model() as model:
        a, b, c = pm.Normal("a", shape=2), pm.Normal("b", shape=2), pm.Normal("c", shape=2)
        approx = pm.variational.Approximation(
            [pm.variational.Group([c, a], vfam="mf"), pm.variational.Group([b], vfam="fr")], model=model
        )
    known = blocks(approx)
    assert {name: known[name].entries for name in "abc"} == {"a": slice(2, 4), "b": slice(0, 2), "c": slice(0, 2)}
    params = list(dict.fromkeys(known[name].parameter for name in "abc"))
    plain = {p: p + 3.0 for p in params}
    held = constrained(plain, {"a": 1.0, "b": 2.0}, 0, approx=approx)
    values = {p: pytensor.function([], held[p])() for p in params}
    for name, bound in (("a", 1.0), ("b", 2.0)):
        assert 0.999 * bound < exact_norm(values[known[name].parameter][known[name].entries]) <= bound
    assert values[known["c"].parameter][:2].tolist() == [3.0, 3.0]


def test_parameters_that_are_graphs_have_no_variables():
    """A user may give a mean that is computed; no optimizer updates it."""
    with pm.Model() as model:
        a = pm.Normal("a", shape=2)
        mean = pytensor.shared(np.zeros(2), name="mean")
        given = {"mu": 2 * mean, "rho": pytensor.shared(np.zeros(2), name="rho")}
        approx = pm.variational.Approximation([pm.variational.Group([a], params=given)], model=model)
    assert blocks(approx) == {}
    with pytest.raises(ValueError, match=r"^max_norm\['a'\]: no variable of this name; there are none$"):
        constrained(pm.sgd, {"a": 1.0}, 0, approx=approx)(loss_of(mean), [mean])


def test_minibatches_and_a_schedule():
    """Rows at random, a bound that falls while it is fitted, one compilation."""
    rows = np.random.default_rng(0).standard_normal((50, 3))
    bound = pytensor.shared(4.0)
    with pm.Model():
        x, y = pm.Minibatch(rows, rows @ [3.0, -4.0, 5.0], batch_size=10)
        w = pm.Normal("w", 0, 10, shape=3)
        pm.Normal("y", x @ w, 0.1, observed=y, total_size=50)
        inference = pm.ADVI(random_seed=1)
    seen = []

    def fall(approx, losses, step):
        seen.append((exact_norm(approx.params[0].get_value()), bound.get_value()))
        bound.set_value(4.0 - step / 20)

    optimizer = constrained(pm.adam(learning_rate=1.0), {"w": bound}, 0, approx=inference.approx)
    inference.fit(50, obj_optimizer=optimizer, callbacks=[fall], progressbar=False)
    assert all(norm <= c for norm, c in seen)
    assert seen[-1][0] > 0.999 * seen[-1][1]


def test_what_keeps_the_constraint_and_what_does_not(model):
    """The compiled step does, so refine; another fit needs the optimizer again."""
    with model:
        inference = pm.ADVI(random_seed=1)
    mean = inference.approx.params[0]
    optimizer = constrained(pm.adam(learning_rate=1.0), {"mu": 1.0}, 0)
    inference.fit(20, obj_optimizer=optimizer, progressbar=False)
    inference.refine(20, progressbar=False)
    assert 0.99 < exact_norm(mean.get_value()) <= 1
    inference.fit(20, obj_optimizer=pm.adam(learning_rate=1.0), progressbar=False)
    assert exact_norm(mean.get_value()) > 2


def test_tracker(model):
    tracker = NormTracker(every=10)
    named = NormTracker({"w": 0, "mu": 0}, every=15)
    approx = fit(model, "advi", callbacks=[tracker, named])
    assert tracker.steps == [10, 20, 30]
    assert named.steps == [15, 30]
    assert named["w"].shape == (2, 2)
    mean = next(p for p in approx.params if p.name == "mu").get_value()
    assert tracker["mu"].shape == (3,)
    assert (list(tracker.hist), list(named.hist)) == (["mu", "rho"], ["w", "mu"])
    assert tracker["mu"][-1] == named["mu"][-1] == normball.compute_norms(mean, 0)
    np.testing.assert_array_equal(named["w"][-1], normball.compute_norms(mean[:6].reshape(3, 2)))
    tracker.clear()
    assert (tracker.steps, tracker.hist) == ([], {})


def test_tracker_of_particles(model):
    tracker = NormTracker({"w": 0, "sigma_log__": ()}, ord=1)
    approx = fit(model, "svgd", callbacks=[tracker], inf_kwargs={"n_particles": 5})
    particles = approx.params[0].get_value()
    assert (tracker["w"].shape, tracker["sigma_log__"].shape) == ((30, 5, 2), (30, 5))
    np.testing.assert_array_equal(tracker["w"][-1], normball.compute_norms(particles[:, :6].reshape(5, 3, 2), 1, ord=1))
    np.testing.assert_array_equal(tracker["sigma_log__"][-1], abs(particles[:, 6]))


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
            "optimizer of type float: must be a function or a dict; for example pm.adam(learning_rate=0.02)",
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
            "max_norm['W']: no variable of this name; there are w, v; for those of a model call in its context, or pass approx=",
        ),
        (
            lambda w, v: constrained(pm.sgd, {v: 2.0})(loss_of(w), [w]),
            ValueError,
            "max_norm[v]: is not among the parameters; pass those of the optimizer, or a model's variables by their names",
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
            lambda w, v: constrained(pm.adam, {"w": -1.0}),
            ValueError,
            "max_norm['w']=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda w, v: constrained(pm.adam, {"w": None}),
            TypeError,
            "max_norm['w']=None: must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf",
        ),
        (
            lambda w, v: constrained(pm.adam, total_norm="1"),
            TypeError,
            "total_norm='1': must be a number, an array or a symbolic value >= 0; for no constraint pass total_norm=math.inf",
        ),
        (
            lambda w, v: constrained(pm.adam, 2.0, epsilon=-1.0),
            ValueError,
            "epsilon=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda w, v: constrained(pm.adam, {"w": (1.0, 2.0, 3.0)}),
            ValueError,
            "max_norm: (1.0, 2.0, 3.0) must be a bound, or a pair of a bound and norm axes",
        ),
        (
            lambda w, v: constrained(pm.sgd, {})(loss_of(w), [w]),
            ValueError,
            "max_norm: chooses no parameter, so nothing would be constrained; leave it out",
        ),
        (
            lambda w, v: constrained(pm.sgd, lambda p: None)(loss_of(w), [w]),
            ValueError,
            "max_norm: chooses no parameter, so nothing would be constrained; leave it out",
        ),
        (
            lambda w, v: constrained(pm.sgd, {"v": (2.0, 1)})(loss_of(v), [v]),
            ValueError,
            "parameter v: norm_axes=1: axis 1 is out of range for an array of 1 dimension; use -1 to 0",
        ),
        (
            lambda w, v: constrained(pm.sgd, 2.0, "rows")(loss_of(v), [v]),
            TypeError,
            "parameter v: norm_axes='rows': must be None, an int or a sequence of ints; for example norm_axes=(0, 2)",
        ),
        (
            lambda w, v: constrained(pm.adam, 2.0, approx=object()),
            TypeError,
            "approx: is for a mapping of the model's variables; pass max_norm={name: bound}",
        ),
        (
            lambda w, v: NormTracker(every=0),
            ValueError,
            "every=0: must be an int >= 1; 1 records every step",
        ),
        (
            lambda w, v: NormTracker(every=2.5),
            TypeError,
            "every=2.5: must be an int >= 1; 1 records every step",
        ),
        (
            lambda w, v: NormTracker(ord=3),
            ValueError,
            "ord=3: must be 1, 2 or inf; for the Euclidean norm leave it out",
        ),
        (
            lambda w, v: NormTracker()["w"],
            KeyError,
            "\"'w' was not recorded; there are no records\"",
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
        str(caught.value) == "norm_axes['u']: no variable or parameter of this name; there are mu, rho, w, sigma_log__"
    )


def test_patched(model):
    """A shared threshold for pm.fit, and gradients at zero; and everything as before."""
    before = (pm.norm_constraint, pm.total_norm_constraint)
    zero = pt.vector("zero")
    with patched():
        for module in (pm, pm.variational, pm.variational.updates):
            assert module.norm_constraint is normball.norm_constraint
            assert module.total_norm_constraint is normball.total_norm_constraint
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


def test_what_pymc_makes_of_the_same():
    """The table of docs/pymc.md, and our side of it."""
    v, narrow, bound = pytensor.shared(np.ones(3), name="v"), weights("float32"), pytensor.shared(1.0)
    with pytest.raises(ValueError, match="Unsupported tensor dimensionality 1"):
        pm.norm_constraint(v, 1.0)
    with pytest.raises(ValueError):
        pm.norm_constraint(weights(), bound)
    with pytest.raises(ValueError):
        pm.total_norm_constraint([v], bound)
    with pytest.raises(TypeError):
        pytensor.function([], [], updates=[(narrow, pm.norm_constraint(narrow, 1.0))])
    gradients = [
        pytensor.grad(f([v], 1.0)[0].sum(), v) for f in (pm.total_norm_constraint, normball.total_norm_constraint)
    ]
    v.set_value(np.zeros(3))
    theirs, own = pytensor.function([], gradients)()
    assert np.isnan(theirs).all()
    assert own.tolist() == [1, 1, 1]
    updates = constrained({v: v + 1, narrow: narrow}, {"v": (bound, 0), "w": bound})
    pytensor.function([], [], updates=updates)()
    assert narrow.get_value().dtype == np.float32


def test_guide():
    assert pages.faults(pages.guide("pymc.md").split("## pytensor-ml")[0], "pymc.md") == []


@pytest.mark.parametrize("name", ["constrained", "NormTracker"])
def test_documented(name):
    doc = getattr(normball.pymc, name).__doc__
    assert all(f"{part}\n" in doc for part in ("Parameters", "Raises", "Notes", "References", "Examples"))


@pytest.mark.parametrize("hidden, told", [("pymc", True), ("pytensor", False)])
def test_without_pymc(hidden, told):
    """What to install, but for a fault within PyMC's own imports that fault."""
    code = f"import sys; sys.modules[{hidden!r}] = None; import normball.pymc"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert (last == "ImportError: normball.pymc needs PyMC: pip install 'normball[pymc]'") == told
    assert run.returncode == 1


@pytest.mark.parametrize("name", ["optimizer", "tracker", "patch"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"normball.pymc.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
