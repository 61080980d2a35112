"""normball.pytensor_ml: networks of pytensor-ml trained on real data, the bound in exact arithmetic after every step."""

import doctest
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from oracle import broken_laws, exact_norm, groups_of, same_bits

pytest.importorskip("pytensor_ml", reason="pytensor-ml is not installed (it wants Python 3.12)")

import pytensor
import pytensor.tensor as pt
from pytensor_ml.activations import ReLU
from pytensor_ml.layers import (
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dropout,
    Embedding,
    Flatten,
    Input,
    Linear,
    LSTMCell,
    Sequential,
)
from pytensor_ml.loss import CrossEntropy, SquaredError
from pytensor_ml.model import Model
from pytensor_ml.optim import (
    Steps,
    adam,
    add_weight_decay,
    apply_if_finite,
    chain,
    clip_by_global_norm,
    compile_train,
    linear_schedule,
    scale,
    sgd,
    trace,
)
from pytensor_ml.params import StepCounter, trainable

import normball.pytensor_ml
from normball.pytensor_ml import max_norm

BOUND = 0.7
PYTHON = pytensor.compile.Mode("py", "fast_compile")  # nothing to compile, where it is not the linker that is tested
QUICK = {"mode": PYTHON}


@pytest.fixture(scope="module")
def digits():
    """Images with a channel, as pytensor-ml has them, and their digits: the halves are written by different people."""
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    data = sklearn.load_digits()
    images, half = (data.images / 16)[..., None], len(data.target) // 2
    return (images[:half], data.target[:half]), (images[half:], data.target[half:])


def network(mode):
    """A convolution, normalised, and two dense layers, with dropout: the layers by their names, and the model."""
    layers = {
        "conv": Conv2D("conv", in_channels=1, out_channels=6, kernel_size=4, stride=2),
        "hidden": Linear("hidden", n_in=54, n_out=16),
        "output": Linear("output", n_in=16, n_out=10),
    }
    first, second, third = layers.values()
    net = Sequential(first, BatchNorm("bn", n_in=6), ReLU(), Flatten, second, ReLU(), Dropout(p=0.2), third)
    return layers, Model(net(Input("images", shape=(None, 8, 8, 1))), {"mode": mode}).initialize(seed=0)


def dense(n_in=4, n_out=3, seed=0):
    """One dense layer, its loss, and its parameters: the weights first."""
    layer = Linear("fc", n_in=n_in, n_out=n_out)
    layer.W.set_value(np.random.default_rng(seed).normal(size=(n_in, n_out)))
    x, target = pt.matrix("x"), pt.matrix("target")
    return layer, SquaredError()(target, layer(x)), [layer.W, layer.b]


def units(weights):
    """Each unit's incoming weights: pytensor-ml has the units on the last axis."""
    return groups_of(weights, range(weights.ndim - 1))


def above(weights, bound, of=units):
    """How many units lie above a bound, in exact arithmetic."""
    return sum(exact_norm(unit) > Fraction(bound) for unit in of(weights))


def stepped(transform, parameters, steps, mode=PYTHON):
    """What a transform makes of given steps: the new value of each parameter."""
    moved = {parameter: parameter + step for parameter, step in zip(parameters, steps, strict=True)}
    updates = transform(Steps(moved), parameters)
    return pytensor.function([], [updates[parameter] for parameter in parameters], mode=mode)()


def spy(seen):
    """A transform that changes nothing, and notes what it was given."""

    def note(updates, parameters):
        seen.update(updates)
        return updates

    return note


# --- networks


@pytest.mark.parametrize("mode", [PYTHON, "NUMBA"], ids=["Python", "NUMBA"])
def test_trained_on_digits(digits, mode):
    """Every unit of every layer inside its ball after every step, exactly; it learns; without it, some are outside."""
    (images, targets), (test_images, test_targets) = digits

    def train(*constraint):
        layers, model = network(mode)
        rule = chain(clip_by_global_norm(1.0), adam(0.02), *constraint)
        step = model.compile_train(rule, CrossEntropy(expect_logits=True))
        longest = []
        for epoch in range(3):
            order = np.random.default_rng(epoch).permutation(len(targets))
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                step(images[batch], targets[batch])
                longest.append(sum(above(layer.W.get_value(), BOUND) for layer in layers.values()))
        right = model.predict(test_images).argmax(axis=1) == test_targets
        return longest, 100 * right.mean()

    outside, right = train(max_norm(BOUND))
    assert outside == [0] * len(outside)
    assert right > 80
    if mode is PYTHON:  # one is enough
        assert train()[0][-1] > 0, "nothing would have been constrained"


@pytest.mark.parametrize("mode", [PYTHON, "NUMBA", "CVM", "JAX"], ids=["Python", "NUMBA", "CVM", "JAX"])
def test_the_laws_of_a_step(mode):
    """Of each layer: what the optimizer gave, and what came out, by the laws in exact arithmetic."""
    pytest.importorskip("jax", reason="JAX is not installed") if mode == "JAX" else None
    rng = np.random.default_rng(3)
    shapes = [(5, 40), (3, 3, 2, 40), (4, 2, 40)]
    parameters = [
        trainable(rng.normal(size=shape) * 10 ** rng.uniform(-2, 1, shape[-1]), f"p{i}")
        for i, shape in enumerate(shapes)
    ]
    steps = [0.01 * rng.normal(size=shape) for shape in shapes]
    band = 4 if mode == "JAX" else 0
    given = [p.get_value() + step for p, step in zip(parameters, steps, strict=True)]
    for x, y in zip(given, stepped(max_norm(BOUND), parameters, steps, mode), strict=True):
        axes = tuple(range(x.ndim - 1))
        y = np.asarray(y)
        assert broken_laws(x, y, BOUND, axes, epsilon=0, band=band) == set()
        assert 0 < above(x, BOUND) < x.shape[-1]


def test_it_changes_what_the_optimizer_gave_and_nothing_else():
    """State, biases and clocks keep their updates: the same variables."""
    _, loss, parameters = dense()
    seen = {}
    rule = chain(adam(linear_schedule(0.1, 10)), spy(seen), max_norm(BOUND))
    updates = rule(loss, parameters)
    assert isinstance(updates, Steps)
    assert {variable for variable in updates if updates[variable] is not seen[variable]} == {parameters[0]}
    assert any(isinstance(variable, StepCounter) for variable in updates)


def test_the_axes_of_convolutions_are_not_those_of_pymc():
    """PyMC's default would make a group of each row of pixels."""
    conv = Conv2D("conv", in_channels=2, out_channels=5, kernel_size=3)
    given = np.random.default_rng(0).normal(size=(3, 3, 2, 5))
    conv.W.set_value(given)
    [y] = stepped(max_norm(1.0), [conv.W], [np.zeros(given.shape)])
    assert broken_laws(given, y, 1.0, (0, 1, 2), epsilon=0) == set()
    one = np.zeros((3, 3, 2, 5))
    one[..., 0] = 1.0
    assert above(normball.norm_constraint(one, 1.0), 1.0) == 1


def test_a_transposed_convolution_has_its_units_last():
    """What reaches an output channel are the weights that its index holds: set them to zero, and it is silent."""
    up = ConvTranspose2D("up", in_channels=2, out_channels=3, kernel_size=2, stride=2, bias=False)
    weights = up.W.get_value()
    weights[..., 1] = 0
    up.W.set_value(weights)
    y = up(pt.as_tensor(np.ones((1, 2, 2, 2)))).eval()
    assert [bool(y[..., channel].any()) for channel in range(3)] == [True, False, True]


def test_an_embedding_has_its_vectors_in_rows():
    """Which its shape does not tell, but the graph: compliant rows keep their bits, those not looked up too."""
    ids = Input("ids", shape=(None, 5), dtype="int64")
    embed, head = Embedding("embed", n_embeddings=7, n_features=3), Linear("head", n_in=15, n_out=2)
    model = Model(Sequential(embed, Flatten, head)(ids)).initialize(seed=0)
    before = embed.W.get_value()
    step = model.compile_train(chain(sgd(0.1), max_norm(0.3)), SquaredError(), QUICK)
    step(np.arange(10).reshape(2, 5) % 4, np.ones((2, 2)))
    assert above(embed.W.get_value(), 0.3, lambda w: groups_of(w, (1,))) == 0
    assert above(head.W.get_value(), 0.3) == 0
    assert broken_laws(before[4:], embed.W.get_value()[4:], 0.3, (1,), epsilon=0) == set()


def test_each_gate_of_a_recurrent_layer_is_a_unit():
    lstm = LSTMCell("lstm", n_in=3, n_hidden=4)
    for weights in (lstm.W_ih, lstm.W_hh):
        assert weights.get_value().shape[1] == 16
        given = weights.get_value()
        [y] = stepped(max_norm(0.3), [weights], [np.zeros(given.shape)])
        assert broken_laws(given, y, 0.3, (0,), epsilon=0) == set()


def test_an_embedding_is_found_where_nothing_follows_it():
    """Its lookup is in its own gradient, were the loss linear in it: short rows stay, which are long columns."""
    embed = Embedding("embed", n_embeddings=8, n_features=3)
    embed.W.set_value(np.full((8, 3), 0.05))
    ids = pt.lvector("ids")
    updates = chain(sgd(0.1), max_norm(0.1))(embed(ids).sum(), [embed.W])
    value = pytensor.function([ids], updates[embed.W], **QUICK)([0, 1])
    assert same_bits(value[2:], np.full((6, 3), 0.05))
    assert normball.compute_norms(value).max() > 0.1


# --- bounds


def test_a_bound_in_a_shared_variable():
    """Other bounds, no other compilation."""
    _, loss, parameters = dense()
    bound = pytensor.shared(np.float64(0.5))
    step = compile_train(loss, chain(sgd(1.0), max_norm(bound)), compile_kwargs=QUICK)
    data = np.ones((2, 4)), np.ones((2, 3))
    for c in (0.5, 0.25, 0.125):
        bound.set_value(np.float64(c))
        step(*data)
        assert above(parameters[0].get_value(), c) == 0
        assert above(parameters[0].get_value(), c * 0.9) > 0
    bound.set_value(np.float64(-1.0))
    step(*data)
    assert np.isnan(parameters[0].get_value()).all(), "a negative bound must not constrain nothing"


def test_a_schedule_reads_its_own_clock():
    """Of the number of steps before; the clock is in the updates, for a checkpoint."""
    _, loss, parameters = dense()
    rule = chain(sgd(0.0), max_norm(linear_schedule(0.8, 3, 0.2)))
    updates = rule(loss, parameters)
    assert [clock.name for clock in updates if isinstance(clock, StepCounter)] == ["max_norm/step_count"]
    step = compile_train(loss, updates, compile_kwargs=QUICK)
    for taken in range(5):
        step(np.zeros((2, 4)), np.zeros((2, 3)))
        bound = linear_schedule(0.8, 3, 0.2)(pt.as_tensor(taken)).eval()
        weights = parameters[0].get_value()
        assert above(weights, float(bound)) == 0
        assert above(weights, float(bound) * 0.999) == 3
    twice = chain(sgd(0.0), max_norm(linear_schedule(3.0, 9)), max_norm(linear_schedule(3.0, 9), namespace="other"))
    compile_train(loss, twice, compile_kwargs=QUICK)  # which refuses two clocks of one name


def test_one_bound_for_each_unit_and_each_layer():
    _, loss, parameters = dense()
    bounds = np.array([[0.1, 0.2, np.inf]])
    step = compile_train(loss, chain(sgd(0.1), max_norm(bounds)), compile_kwargs=QUICK)
    step(np.ones((2, 4)), np.ones((2, 3)))
    norms = normball.compute_norms(parameters[0].get_value())
    assert (norms[:2] <= bounds[0, :2]).all()
    assert norms[2] > 0.2
    conv, hidden = trainable(np.ones((2, 2, 1, 3)), "conv_W"), trainable(np.ones((4, 3)), "hidden_W")
    rule = chain(
        max_norm(0.5, layout=lambda parameter: (0, 1, 2) if parameter.ndim == 4 else None),
        max_norm(1.5, layout=lambda parameter: 0 if parameter.ndim == 2 else None),
    )
    first, second = stepped(rule, [conv, hidden], [np.zeros((2, 2, 1, 3)), np.zeros((4, 3))])
    assert broken_laws(np.ones((2, 2, 1, 3)), first, 0.5, (0, 1, 2), epsilon=0) == set()
    assert broken_laws(np.ones((4, 3)), second, 1.5, (0,), epsilon=0) == set()


# --- layouts


def test_layouts():
    weights, table = trainable(np.ones((4, 3)), "w"), trainable(np.ones((4, 3)), "table")
    bias = trainable(np.ones(4), "bias")
    parameters, steps = [weights, table, bias], [np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(4)]
    rows, columns = (normball.norm_constraint(np.ones((4, 3)), 1.0, axis, epsilon=0) for axis in (1, 0))
    whole = normball.norm_constraint(np.ones(4), 1.0, 0, epsilon=0)
    for layout, expected in [
        (None, (columns, columns, np.ones(4))),
        ({"table": 1}, (columns, rows, np.ones(4))),
        ({table: (-1,), "w": None}, (np.ones((4, 3)), rows, np.ones(4))),
        ({"bias": 0}, (columns, columns, whole)),
        (lambda parameter: {"table": 1}.get(parameter.name), (np.ones((4, 3)), rows, np.ones(4))),
    ]:
        assert all(map(same_bits, stepped(max_norm(1.0, layout), parameters, steps), expected)), layout


# --- with what else is in a chain


def test_float32_under_floatx_64():
    """An optimizer's float64 would be refused by PyTensor; our result is of the parameter's dtype, the bound exact."""
    narrow = trainable(np.random.default_rng(0).normal(size=(4, 3)).astype("float32"), "narrow")
    target = pt.matrix("target")
    loss = SquaredError()(target, pt.ones((2, 4)) @ narrow)
    rule = chain(sgd(np.float64(0.1)), max_norm(0.3))
    step = compile_train(loss, rule, parameters=[narrow], compile_kwargs=QUICK)
    step(np.ones((2, 3)))
    assert narrow.get_value().dtype == np.float32
    assert above(narrow.get_value(), 0.3) == 0


def test_a_step_that_is_thrown_away():
    """NaN reaches the guard, which keeps the old weights; without the guard the weights are NaN, not inside a ball."""
    for guarded in (True, False):
        _, loss, parameters = dense()
        rule = chain(sgd(0.1), max_norm(1.0))
        step = compile_train(loss, apply_if_finite(rule) if guarded else rule, compile_kwargs=QUICK)
        before = parameters[0].get_value()
        step(np.full((2, 4), np.nan), np.ones((2, 3)))
        after = parameters[0].get_value()
        assert same_bits(before, after) if guarded else np.isnan(after).all()


def test_what_comes_behind_it_moves_the_weights_again():
    """As the docstring says: the bound is that of the end of a chain."""
    _, loss, parameters = dense()
    step = compile_train(loss, chain(sgd(0.0), max_norm(0.1), add_weight_decay(-1.0)), compile_kwargs=QUICK)
    step(np.ones((2, 4)), np.ones((2, 3)))
    assert above(parameters[0].get_value(), 0.1) == 3
    _, loss, parameters = dense()
    step = compile_train(
        loss, chain(sgd(0.1), trace(0.9), scale(0.5), add_weight_decay(0.1), max_norm(0.1)), compile_kwargs=QUICK
    )
    step(np.ones((2, 4)), np.ones((2, 3)))
    assert above(parameters[0].get_value(), 0.1) == 0


def test_a_plain_dict_of_updates():
    """What a transform written by hand may return."""
    weights = trainable(np.full((4, 2), 2.0), "w")
    updates = max_norm(1.0)({weights: weights + 1}, [weights])
    [y] = pytensor.function([], [updates[weights]], **QUICK)()
    assert broken_laws(np.full((4, 2), 3.0), y, 1.0, (0,), epsilon=0) == set()


# --- refusals and the documentation


BEHIND = "max_norm: got gradients, not steps; put it behind the optimizer, at the end of the chain"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda loss, ps: max_norm(1.0)(loss, ps), ValueError, BEHIND),
        (lambda loss, ps: chain(max_norm(1.0), adam(0.1))(loss, ps), ValueError, BEHIND),
        (lambda loss, ps: max_norm(1.0)([p * 2 for p in ps], ps), ValueError, BEHIND),
        (
            lambda loss, ps: max_norm(-1.0),
            ValueError,
            "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda loss, ps: max_norm(None),
            TypeError,
            "max_norm=None: must be a number, an array or a symbolic value >= 0; for no constraint pass "
            "max_norm=math.inf",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0, layout=0))(loss, ps),
            TypeError,
            "layout of type int: must be a mapping or a function; for example {'embed_W': 1}",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0, layout={"fc": 0}))(loss, ps),
            ValueError,
            "layout['fc']: is no parameter; there are fc_W, fc_b",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0, layout={"fc_W": 2}))(loss, ps),
            ValueError,
            "layout of fc_W: norm_axes=2: axis 2 is out of range for an array of 2 dimensions; use -2 to 1",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0, layout={"fc_W": "rows"}))(loss, ps),
            TypeError,
            "layout of fc_W: norm_axes='rows': must be None, an int or a sequence of ints; for example "
            "norm_axes=(0, 2)",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0, layout={"fc_W": None}))(loss, ps),
            ValueError,
            "layout={'fc_W': None}: nothing to constrain among fc_W, fc_b; name the axes of one in layout",
        ),
        (
            lambda loss, ps: chain(sgd(0.1), max_norm(1.0))(loss, ps[1:]),
            ValueError,
            "layout=None: nothing to constrain among fc_b; name the axes of one in layout",
        ),
    ],
)
def test_refusals(call, error, message):
    _, loss, parameters = dense()
    with pytest.raises(error) as caught:
        call(loss, parameters)
    assert str(caught.value) == message


def test_what_to_install():
    """Where pytensor-ml is missing."""
    probe = "import sys; sys.modules['pytensor_ml'] = None; import normball.pytensor_ml"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    message = "normball.pytensor_ml needs pytensor-ml, which wants Python 3.12: pip install 'normball[pytensor-ml]'"
    assert message in run.stderr


def test_examples_of_docstrings():
    result = doctest.testmod(normball.pytensor_ml)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_name_is_documented():
    for name in normball.pytensor_ml.__all__:
        doc = getattr(normball.pytensor_ml, name).__doc__
        for part in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples"):
            assert f"{part}\n" in doc
