"""normball.pytensor_ml: networks of pytensor-ml, whose weights are inside their balls after every step."""

import doctest

import numpy as np
import pytest
from oracle import broken_laws, exact_norm, groups_of

pytest.importorskip("pytensor_ml", reason="pytensor-ml is for Python 3.12 or newer")
load_digits = pytest.importorskip("sklearn.datasets", reason="the data come with scikit-learn").load_digits

import pytensor  # noqa: E402
import pytensor.tensor as pt  # noqa: E402
from pytensor_ml import optim  # noqa: E402
from pytensor_ml.activations import ReLU  # noqa: E402
from pytensor_ml.layers import GRU, Conv1D, Conv2D, ConvTranspose1D, Embedding, Flatten, Input, Linear  # noqa: E402
from pytensor_ml.loss import SquaredError, supervised_loss  # noqa: E402
from pytensor_ml.params import trainable  # noqa: E402
from pytensor_ml.pytensorf import collect_trainable_params  # noqa: E402

import normball.pytensor_ml  # noqa: E402
from normball.pytensor_ml import max_norm  # noqa: E402

IMAGES, DIGITS = load_digits(return_X_y=True)
AXES = {2: (0,), 4: (0, 1, 2)}  # outputs are last


def largest(parameters, axes=AXES):
    """The largest exact norm of any unit's incoming weights, by parameter."""
    values = {p.name: p.get_value() for p in parameters if p.ndim > 1}
    return {name: max(map(exact_norm, groups_of(value, axes[value.ndim]))) for name, value in values.items()}


def network(seed=0):
    """A small convolution on the digits: its loss and its parameters, as drawn by the seed."""
    images = Input("images", shape=(None, 8, 8, 1))
    hidden = ReLU()(Conv2D("conv", in_channels=1, out_channels=4, kernel_size=3)(images))
    scores = Linear("fc", n_in=4 * 6 * 6, n_out=10)(Flatten(hidden))
    loss, target = supervised_loss(scores, SquaredError())
    parameters, rng = collect_trainable_params(loss), np.random.default_rng(seed)
    for p in sorted(parameters, key=lambda p: p.name):
        p.set_value(rng.normal(0, 0.2, p.get_value().shape).astype(p.dtype))
    return loss, parameters, [images, target]


def digits(batch):
    chosen = np.arange(64 * batch, 64 * (batch + 1)) % len(DIGITS)
    images = (IMAGES[chosen] / 16).reshape(-1, 8, 8, 1)
    return images.astype(pytensor.config.floatX), np.eye(10, dtype=pytensor.config.floatX)[DIGITS[chosen]]


def train(transform, steps=25, after=lambda parameters: None, **options):
    loss, parameters, inputs = network()
    step = optim.compile_train(loss, transform, inputs=inputs, **options)
    losses = []
    for batch in range(steps):
        losses.append(float(step(*digits(batch))))
        after(parameters)
    return losses, parameters


@pytest.mark.parametrize(
    ("floatx", "mode"), [("float64", "NUMBA"), ("float32", "NUMBA"), ("float64", "CVM"), ("float32", "JAX")]
)
def test_digits(floatx, mode):
    """Of all units, after every step, in exact arithmetic; and the network learns."""
    with pytensor.config.change_flags(floatX=floatx):
        seen = []
        transform = optim.chain(optim.adam(0.02), max_norm(0.75))
        options = {"compile_kwargs": {"mode": mode}}
        losses, parameters = train(transform, after=lambda ps: seen.append(largest(ps)), **options)
    assert {p.dtype for p in parameters} == {floatx}
    assert len(seen) == 25
    assert all(norm <= 0.75 for norms in seen for norm in norms.values())
    assert all(norm > 0.7499 for norm in seen[-1].values())
    assert losses[-1] < losses[0] / 2


def test_digits_can_fail():
    """Without it the same training leaves the ball; and with the axes of PyMC's default the convolution does."""
    _, free = train(optim.adam(0.02))
    assert all(norm > 0.75 for norm in largest(free).values())
    _, wrong = train(optim.chain(optim.adam(0.02), max_norm(0.75, lambda p: (1, 2, 3) if p.ndim == 4 else None)))
    assert largest(wrong)["conv_W"] > 0.75


def test_it_is_the_constraint_of_what_the_rule_would_do():
    """By the laws; biases and the optimizer's state are as without it."""
    results = []
    for transform in (optim.adam(0.2), optim.chain(optim.adam(0.2), max_norm(1.0))):
        loss, parameters, inputs = network()
        updates = transform(loss, parameters)
        optim.compile_train(loss, updates, inputs=inputs)(*digits(0))
        results.append({variable.name: variable.get_value() for variable in updates})
    free, held = results
    assert list(free) == list(held)
    for name in free:
        if name in ("conv_W", "fc_W"):
            assert broken_laws(free[name], held[name], 1.0, AXES[free[name].ndim]) == set()
            assert (free[name] != held[name]).any()
        else:
            np.testing.assert_array_equal(free[name], held[name])


def axes_of(graph, **options):
    """Which axes a constraint has chosen, by parameter, from what it made of them."""
    parameters = collect_trainable_params(graph)
    parameters = [p for p in parameters if p.name != "out_b"]
    updates = optim.chain(optim.sgd(1.0), max_norm(1.0, **options))((graph**2).sum(), parameters)
    nodes = {p.name: updates[p].owner for p in parameters}
    return {name: node.op.axes for name, node in nodes.items() if hasattr(node.op, "axes")}


def test_incoming_axes():
    ids = Input("ids", shape=(None, 6), dtype="int64")
    embedded = Embedding("embed", n_embeddings=11, n_features=4)(ids)
    hidden = Conv1D("conv", in_channels=4, out_channels=4, kernel_size=2)(embedded)
    hidden = ConvTranspose1D("back", in_channels=4, out_channels=4, kernel_size=2)(hidden)
    hidden = GRU("gru", n_in=4, n_hidden=3)(hidden)
    graph = Linear("fc", n_in=3, n_out=2)(hidden)
    assert axes_of(graph) == {
        "embed_W": (1,),
        "conv_W": (0, 1),
        "back_W": (0, 1),
        "gru_W_ih": (0,),
        "gru_W_hh": (0,),
        "fc_W": (0,),
    }


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (1, {"fc_W": (1,)}),
        ((0, 1), {"fc_W": (0, 1)}),
        (lambda p: {"fc_b": 0}.get(p.name), {"fc_b": (0,)}),
        (lambda p: "incoming", {"fc_W": (0,)}),
    ],
)
def test_named_axes(axes, expected):
    assert axes_of(Linear("fc", n_in=3, n_out=2)(Input("x", shape=(None, 3))), axes=axes) == expected


@pytest.mark.parametrize("kind", ["shared", "schedule", "of pytensor-ml"])
def test_bounds_change_between_steps(kind):
    shared = pytensor.shared(np.float64(1.0))
    bound, expected = {
        "shared": (shared, [1.0, 0.5, 0.25]),
        "schedule": (lambda step: 1 / (1.0 + step), [1.0, 1 / 2, 1 / 3]),
        "of pytensor-ml": (optim.linear_schedule(1.0, 0.0, 4), [1.0, 0.75, 0.5]),
    }[kind]
    seen = []

    def after(parameters):
        seen.append(largest(parameters)["fc_W"])
        shared.set_value(shared.get_value() / 2)

    train(optim.chain(optim.adam(0.5), max_norm(bound)), steps=3, after=after)
    for norm, c in zip(seen, expected, strict=True):
        assert 0.9999 * c < norm <= c


def test_with_guards_and_two_clocks():
    """Inside a guard that skips steps, and twice in one chain."""
    both = optim.chain(
        optim.adam(0.5),
        max_norm(lambda step: 0.5 + 0 * step, lambda p: "incoming" if p.ndim == 2 else None, namespace="dense"),
        max_norm(lambda step: 0.25 + 0 * step, lambda p: "incoming" if p.ndim == 4 else None, namespace="filters"),
    )
    _, parameters = train(optim.apply_if_finite(both), steps=3)
    norms = largest(parameters)
    assert 0.4999 < norms["fc_W"] <= 0.5
    assert 0.2499 < norms["conv_W"] <= 0.25


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda loss, params: max_norm(-1.0),
            ValueError,
            "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda loss, params: max_norm(1.0, epsilon=-1.0),
            ValueError,
            "epsilon=-1.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda loss, params: max_norm(1.0, ord=3),
            ValueError,
            "ord=3: must be 1, 2 or inf; for the Euclidean norm leave it out",
        ),
        (
            lambda loss, params: optim.chain(max_norm(1.0), optim.adam(0.1))(loss, params),
            ValueError,
            "max_norm: there are gradients here, not yet the weights of a step; "
            "put it after the rule: chain(adam(1e-3), max_norm(3.0))",
        ),
        (
            lambda loss, params: after_a_rule(max_norm(1.0, 2), loss, params),
            ValueError,
            "parameter w: norm_axes=2: axis 2 is out of range for an array of 2 dimensions; use -2 to 1",
        ),
        (
            lambda loss, params: after_a_rule(max_norm(1.0, "outgoing"), loss, params),
            ValueError,
            "axes='outgoing': must be 'incoming', axes, or a function of a parameter; leave it out",
        ),
        (
            lambda loss, params: after_a_rule(max_norm(1.0), loss, params[1:]),
            ValueError,
            "axes='incoming': no parameter would be constrained, of b; name their axes by a function",
        ),
    ],
)
def test_refusals(call, error, message):
    w, b = trainable(np.ones((3, 2)), "w"), trainable(np.ones(2), "b")
    with pytest.raises(error) as caught:
        call(pt.sum((w + b) ** 2), [w, b])
    assert str(caught.value) == message


def after_a_rule(constraint, loss, parameters):
    return optim.chain(optim.sgd(0.1), constraint)(loss, parameters)


def test_example():
    results = doctest.testmod(normball.pytensor_ml)
    assert results.attempted > 0
    assert results.failed == 0
