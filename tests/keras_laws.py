"""normball.keras on one backend of Keras, which KERAS_BACKEND fixes for a process: `test_keras.py` runs this for each.

The laws in exact arithmetic, Keras' own constraints beside ours, and real models.
"""

import doctest
import importlib
import itertools
import math
import re
from fractions import Fraction

import keras
import ml_dtypes  # noqa: F401  NumPy's name for bfloat16
import numpy as np
import pages
import pytest
from keras import layers, ops
from oracle import TIGHT_ULPS, broken_laws, broken_total_laws, exact_norm, groups_of, same_bits, ulp

import normball.keras
from normball.keras import MaxNorm, MinMaxNorm, UnitNorm, clip_by_global_norm, describe, optimizers
from normball.keras.constraints import Constraint

# Of Keras on PyTorch, whenever it makes a NumPy array of a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
BACKEND = keras.backend.backend()
BAND = 0 if BACKEND == "torch" else 4  # ulp just under the bound, as documented
DTYPES = ["float32", "float16", "bfloat16"] + (["float64"] if BACKEND != "jax" else [])  # JAX: not in 32-bit mode
SUBNORMALS = BACKEND == "torch"  # XLA and TensorFlow read them as zeros


def tensor(x):
    """A tensor of Keras' backend with the same bits."""
    if x.dtype.name == "bfloat16":
        return ops.cast(ops.convert_to_tensor(x.astype(np.float32)), "bfloat16")
    return ops.convert_to_tensor(x)


def array(y):
    """Its bits as a NumPy array."""
    name = keras.backend.standardize_dtype(y.dtype)
    if name == "bfloat16":
        return np.asarray(ops.convert_to_numpy(ops.cast(y, "float32"))).astype("bfloat16")
    return np.asarray(ops.convert_to_numpy(y))


def compiled(function):
    """A function of tensors as Keras compiles a training step: with XLA, where there is one."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


def graphed(function):
    """TensorFlow's graphs without XLA; elsewhere as it is."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


MODES = {"torch": [graphed], "jax": [compiled], "tensorflow": [compiled, graphed]}[BACKEND]


def draw(seed, dtype, shape=(7, 9), spread=3):
    """Entries of columns of very different lengths, none of them subnormal."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-spread, spread, shape[-1])
    if dtype == "float16":
        x = np.sign(x) * np.maximum(abs(x), 2.0**-14)
    return x.astype(dtype)


# --- the constraints


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_laws_of_max_norm(dtype, mode):
    for bound in (1.5, 0.1, 40.0, 0.0, math.inf):
        constrain = mode(MaxNorm(bound, axis=0))
        for seed in range(3):
            x = draw(seed, dtype, spread=2)
            y = array(constrain(tensor(x)))
            assert broken_laws(x, y, bound, (0,), epsilon=0, band=BAND) == set()
            assert same_bits(array(constrain(tensor(y))), y)


@pytest.mark.parametrize("axis", [0, -1, [0, 1], (1,), [], np.int64(1), [0, 1, 2]])
def test_axes(axis):
    x = draw(0, "float32", (3, 4, 5))
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else (int(axis),)
    y = array(MaxNorm(0.5, axis=axis)(tensor(x)))
    assert broken_laws(x, y, 0.5, axes, epsilon=0, band=BAND) == set()


def test_extremes_and_spoilt_groups():
    x = np.array([[3e38, 1e-30, np.nan, 0.0, np.inf, 1.0], [3e38, 1e-30, 1.0, -0.0, 1.0, 0.0]], np.float32)
    for mode in MODES:
        y = array(mode(MaxNorm(1.0, axis=0))(tensor(x)))
        assert broken_laws(x, y, 1.0, (0,), epsilon=0, band=BAND) == set()
        for constraint in (MinMaxNorm(0.25, 1.0, axis=0), UnitNorm(axis=0), MinMaxNorm(0.25, 1.0, 0.5, axis=0)):
            y = array(mode(constraint)(tensor(x)))
            assert np.isnan(y[:, [2, 4]]).all()
            assert same_bits(y[:, 3], x[:, 3])  # zeros have no direction, and signs
            assert np.isfinite(y[:, [0, 1, 5]]).all()
            assert (y[:, 1] > 0.08).all()


def broken_between(x, y, low, high, axes, room=True):
    """Which laws y breaks as x with every norm from low to high. Without room between them, `low` is not reached."""
    broken, dtype = set(), x.dtype
    slack = 16 * (ulp(Fraction(1), dtype) * Fraction(low) + ulp(Fraction(0), dtype) * math.isqrt(x.size + 1))
    for values, results in zip(groups_of(x, axes), groups_of(y, axes), strict=True):
        before, after = exact_norm(values), exact_norm(results)
        goal = min(max(before, Fraction(low)), Fraction(high))
        kept = [math.copysign(1, v) * (v != 0) for v in values] == [math.copysign(1, v) * (v != 0) for v in results]
        if before == 0 or low <= before <= high:
            near = before > high - BAND * ulp(Fraction(high), dtype)
            broken |= set() if values == results or (near and before) else {"untouched"}
            continue
        broken |= set() if kept else {"signs"}
        broken |= {"bounded"} if after > high else set()
        broken |= {"short"} if after < low - (0 if room else slack) else set()
        broken |= {"long"} if after > goal + slack else set()
        extra = ulp(Fraction(low), dtype) * 16 / low if before < low else 0  # the room above low
        for value, result in zip(values, results, strict=True):
            wanted = Fraction(value) * goal / before
            if abs(Fraction(result) - wanted) > TIGHT_ULPS * ulp(wanted, dtype) + abs(wanted) * extra:
                broken.add("tight")
    return broken


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_laws_of_min_max_norm(dtype, mode):
    for low, high in ((0.3, 0.7), (3.0, 4.0), (0.1, 1000.0), (0.0, 1.1)):
        constrain = mode(MinMaxNorm(low, high, axis=0))
        for seed in range(3):
            x = draw(seed, dtype, spread=2)
            y = array(constrain(tensor(x)))
            assert broken_between(x, y, low, high, (0,)) == set() if low else {"long"}
            if low == 0:
                assert broken_laws(x, y, high, (0,), epsilon=0, band=BAND) == set()
            assert same_bits(array(constrain(tensor(y))), y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_laws_of_unit_norm(dtype, mode):
    for constraint, c in ((UnitNorm(axis=0), 1.0), (MinMaxNorm(0.7, 0.7, axis=0), 0.7)):
        constrain = mode(constraint)
        for seed in range(4):
            x = draw(seed, dtype, spread=2)
            y = array(constrain(tensor(x)))
            for values, results in zip(groups_of(x, (0,)), groups_of(y, (0,)), strict=True):
                assert exact_norm(results) <= Fraction(c)
                for value, result in zip(values, results, strict=True):
                    wanted = Fraction(value) * Fraction(c) / exact_norm(values)
                    assert abs(Fraction(result) - wanted) <= TIGHT_ULPS * ulp(wanted, x.dtype)
            assert same_bits(array(constrain(tensor(y))), y)


def test_judge_of_norms_between_can_fail():
    x = draw(0, "float32", spread=2)
    y = array(MinMaxNorm(0.5, 2.0, axis=0)(tensor(x)))
    assert broken_between(x, y, 0.5, 2.0, (0,)) == set()
    assert "untouched" in broken_between(y, np.nextafter(y, np.float32(0)), 0.5, 2.0, (0,))
    assert "signs" in broken_between(x, -y, 0.5, 2.0, (0,))
    assert "short" in broken_between(x, y * np.float32(1 - 1e-5), 0.5, 2.0, (0,))
    assert {"bounded", "tight", "long"} <= broken_between(x, y * np.float32(1 + 1e-5), 0.5, 2.0, (0,))
    theirs = array(keras.constraints.MinMaxNorm(0.5, 2.0, axis=0)(tensor(x)))
    assert "untouched" in broken_between(x, theirs, 0.5, 2.0, (0,))


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_rate(rate):
    low, high = 0.5, 2.0
    for seed, mode in itertools.product(range(4), MODES):
        x = draw(seed, "float32", spread=2)
        y = array(mode(MinMaxNorm(low, high, rate, axis=0))(tensor(x)))
        for values, results in zip(groups_of(x, (0,)), groups_of(y, (0,)), strict=True):
            before, after = exact_norm(values), exact_norm(results)
            if low <= before <= high or rate == 0:
                assert after == before or rate == 0
            goal = (1 - Fraction(rate)) * before + Fraction(rate) * min(max(before, Fraction(low)), Fraction(high))
            assert abs(after - goal) <= goal / 2**19
            assert after >= before if before < low else after <= before


def test_subnormal_groups():
    """Lifted on PyTorch; XLA and TensorFlow read them as zeros, and they stay."""
    narrow = np.array([[1e-45, 3e-42, 1e-38], [0.0, 4e-42, 0.0]], np.float32)
    if not SUBNORMALS:
        y = array(UnitNorm(axis=0)(tensor(narrow[:, :2])))
        assert same_bits(y, narrow[:, :2])
        return
    for x in (narrow, np.array([[5e-324, 1e-310], [0.0, 1e-310]])):
        y = array(UnitNorm(axis=0)(tensor(x)))
        for values, results in zip(groups_of(x, (0,)), groups_of(y, (0,)), strict=True):
            assert exact_norm(results) <= 1
            for value, result in zip(values, results, strict=True):
                wanted = Fraction(value) / exact_norm(values)
                assert abs(Fraction(result) - wanted) <= TIGHT_ULPS * ulp(wanted, x.dtype)
    y = array(MaxNorm(1e-42, axis=0)(tensor(narrow)))
    assert broken_laws(narrow, y, 1e-42, (0,), epsilon=0) == set()


def test_what_keras_does_with_the_same_calls():
    """The figures of docs/keras.md."""
    x = draw(1, "float32", spread=1)
    ours, theirs = (array(m.MaxNorm(1.0, axis=0)(tensor(x))) for m in (normball.keras, keras.constraints))
    np.testing.assert_allclose(ours, theirs, rtol=3e-7 + 1e-7 / exact_norm(groups_of(x, (0,))[0]).__float__())
    assert "untouched" in broken_laws(x, theirs, 1.0, (0,), epsilon=0)
    kernel = np.full((3, 3, 8, 4), 0.5, np.float32)  # of norm 4.24 per filter
    theirs = array(keras.constraints.MaxNorm(2.0)(tensor(kernel)))
    assert np.linalg.norm(theirs[..., 0]) > 4
    layer = layers.Conv2D(4, 3, kernel_constraint=MaxNorm(2.0))
    layer.build((None, 5, 5, 8))
    ours = array(layer.kernel.constraint(tensor(kernel)))
    assert broken_laws(kernel, ours, 2.0, (0, 1, 2), epsilon=0, band=BAND) == set()


def noop_steps(constraint, steps):
    """The weights before and after steps of SGD with gradients of zero."""
    weight = keras.Variable(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 0.02)
    weight.constraint = constraint
    sgd = keras.optimizers.SGD(0.1)
    sgd.build([weight])
    before, zeros = weight.numpy(), ops.zeros((5, 4))
    if BACKEND == "jax":
        step = compiled(lambda state, variables, zeros: sgd.stateless_apply(state, [zeros], variables))
        variables, state = [weight.value], [v.value for v in sgd.variables]
        for _ in range(steps):
            variables, state = step(state, variables, zeros)
        return before, np.asarray(variables[0])
    import contextlib

    step, free = graphed(lambda zeros: sgd.apply([zeros], [weight])), contextlib.nullcontext()
    if BACKEND == "torch":
        import torch

        free = torch.no_grad()
    with free:
        for _ in range(steps):
            step(zeros)
    return before, weight.numpy()


def test_ten_thousand_steps_that_do_nothing():
    before, after = noop_steps(MaxNorm(1.0, axis=0), 10_000)
    assert same_bits(before, after)
    before, after = noop_steps(MinMaxNorm(0.001, 1.0, axis=0), 1_000)
    assert same_bits(before, after)


def test_steps_that_do_nothing_can_fail():
    before, after = noop_steps(keras.constraints.MaxNorm(1.0, axis=0), 1_000)
    assert not same_bits(before, after)
    assert (abs(after) < abs(before)).all()


# --- which axes are incoming


LINEAR = [
    (layers.Dense, {"units": 3}, (2,), (0,)),
    (layers.Conv1D, {"filters": 3, "kernel_size": 2}, (4, 2), (0, 1)),
    (layers.Conv2D, {"filters": 3, "kernel_size": 2}, (4, 4, 2), (0, 1, 2)),
    (layers.Conv2D, {"filters": 4, "kernel_size": 2, "groups": 2}, (4, 4, 6), (0, 1, 2)),
    (layers.Conv3D, {"filters": 3, "kernel_size": 2}, (3, 3, 3, 2), (0, 1, 2, 3)),
    (layers.Conv1DTranspose, {"filters": 3, "kernel_size": 2}, (4, 2), (0, 2)),
    (layers.Conv2DTranspose, {"filters": 3, "kernel_size": 2}, (4, 4, 2), (0, 1, 3)),
    (layers.Conv3DTranspose, {"filters": 3, "kernel_size": 2}, (3, 3, 3, 2), (0, 1, 2, 4)),
    (layers.DepthwiseConv1D, {"kernel_size": 2, "depth_multiplier": 2}, (4, 3), (0,)),
    (layers.DepthwiseConv2D, {"kernel_size": 2, "depth_multiplier": 2}, (4, 4, 3), (0, 1)),
    (layers.EinsumDense, {"equation": "ab,bc->ac", "output_shape": 3}, (2,), (0,)),
    (layers.EinsumDense, {"equation": "ab,cb->ac", "output_shape": 3}, (2,), (1,)),
    (layers.EinsumDense, {"equation": "abc,cde->abde", "output_shape": (None, 3, 2)}, (4, 5), (0,)),
    (layers.EinsumDense, {"equation": "abde,dec->abc", "output_shape": (None, 4)}, (4, 3, 2), (0, 1)),
    (layers.EinsumDense, {"equation": "...x,xy->...y", "output_shape": 3}, (4, 2), (0,)),
]


@pytest.mark.parametrize("kind, config, shape, axes", LINEAR, ids=lambda value: getattr(value, "__name__", None))
def test_each_group_feeds_one_unit(kind, config, shape, axes):
    """Not by a table: a kernel that is zero but in one group reaches one unit alone, and as many units as groups."""
    name = "depthwise_constraint" if "Depthwise" in kind.__name__ else "kernel_constraint"
    bias = {} if kind is layers.EinsumDense else {"use_bias": False}
    layer = kind(**config, **bias, **{name: MaxNorm(1.0)})
    layer.build((None, *shape))
    kernel = layer.kernel
    assert kernel.constraint.place_of(kernel).layout.axes == axes
    kept = [axis for axis in range(len(kernel.shape)) if axis not in axes]
    units = []
    for group in itertools.product(*(range(kernel.shape[axis]) for axis in kept)):
        weights = np.zeros(kernel.shape, np.float32)
        weights[tuple(group[kept.index(axis)] if axis in kept else slice(None) for axis in range(weights.ndim))] = 1
        kernel.assign(weights)
        reached = array(layer(np.ones((1, *shape), np.float32))) != 0
        unit_dims = 2 if config.get("equation", "").endswith("abde") else 1
        seen = reached.reshape(-1, *reached.shape[reached.ndim - unit_dims :]).any(0)
        assert seen.sum() == 1
        units.append(int(seen.argmax()))
    assert sorted(units) == list(range(seen.size))


def incoming(layer, *shape):
    """The axes of each constrained weight of a layer, by name."""
    if not layer.built:
        layer.build((None, *shape))
    return {row.weight.rpartition("/")[2]: row.axes for row in describe(layer).rows}


def test_layouts_of_the_other_layers():
    both = {"kernel_constraint": MaxNorm(1.0), "recurrent_constraint": MaxNorm(1.0)}
    for kind in (layers.SimpleRNN, layers.LSTM, layers.GRU):
        assert incoming(kind(4, **both), 6, 5) == {"kernel": (0,), "recurrent_kernel": (0,)}
        assert incoming(layers.Bidirectional(kind(4, **both)), 6, 5) == {"kernel": (0,), "recurrent_kernel": (0,)}
    lstm = layers.ConvLSTM2D(4, 3, **both)
    assert incoming(lstm, 6, 8, 8, 2) == {"kernel": (0, 1, 2), "recurrent_kernel": (0, 1, 2)}
    assert incoming(layers.Embedding(9, 4, embeddings_constraint=MaxNorm(1.0))) == {"embeddings": (1,)}
    pair = {"depthwise_constraint": MaxNorm(1.0), "pointwise_constraint": MaxNorm(1.0)}
    wanted = {"depthwise_kernel": (0,), "pointwise_kernel": (0, 1)}
    assert incoming(layers.SeparableConv1D(4, 3, **pair), 8, 2) == wanted
    wanted = {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)}
    assert incoming(layers.SeparableConv2D(4, 3, depth_multiplier=2, **pair), 8, 8, 2) == wanted
    for format, shape in (("channels_first", (2, 8, 8)), ("channels_last", (8, 8, 2))):
        layer = layers.Conv2D(4, 3, data_format=format, kernel_constraint=MaxNorm(1.0))
        assert incoming(layer, *shape) == {"kernel": (0, 1, 2)}
        assert layer.kernel.shape == (3, 3, 2, 4)
    attention = layers.MultiHeadAttention(2, 3, kernel_constraint=MaxNorm(1.0))
    attention.build((None, 6, 5), (None, 6, 5))
    found = {row.weight.split("/")[-2]: (row.axes, row.shape) for row in describe(attention).rows}
    inwards = ((0,), (5, 2, 3))
    assert found == {**dict.fromkeys(("query", "key", "value"), inwards), "attention_output": ((0, 1), (2, 3, 5))}


def test_a_subclass_counts_as_its_layer():
    class Mine(layers.Dense):
        pass

    assert incoming(Mine(3, kernel_constraint=MaxNorm(1.0)), 2) == {"kernel": (0,)}


def test_one_constraint_for_several_layers():
    shared = MaxNorm(1.0)
    dense, conv = layers.Dense(3, kernel_constraint=shared), layers.Conv1D(3, 2, kernel_constraint=shared)
    assert incoming(dense, 2) == {"kernel": (0,)}
    assert incoming(conv, 4, 2) == {"kernel": (0, 1)}
    assert dense.kernel.constraint.place_of(dense.kernel).layout.axes == (0,)
    assert shared.place_of(dense.kernel) is None


def test_other_constraints_are_left_alone():
    theirs = keras.constraints.NonNeg()
    layer = layers.Dense(3, kernel_constraint=theirs)
    layer.build((None, 2))
    assert layer.kernel.constraint is theirs
    assert layer.bias.constraint is None
    taught = keras.Layer.add_weight
    importlib.reload(importlib.import_module("normball.keras.incoming"))
    assert keras.Layer.add_weight is taught


class Scale(layers.Layer):
    def __init__(self, constraint):
        super().__init__(name="scale")
        self.constraint = constraint

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 3), name="matrix", constraint=self.constraint)


def refused(call):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return f"{caught.type.__name__}: {caught.value}"


REFUSALS = [
    (
        lambda: Scale(MaxNorm(1.0)).build((None, 2)),
        "ValueError: axis='incoming': scale/matrix of shape (2, 3), of a layer of type Scale, is stored in a way that is "
        "not known here; pass axis, for example axis=0 where it is (in, out)",
    ),
    (
        lambda: layers.Dense(3, name="out", bias_constraint=MaxNorm(1.0)).build((None, 2)),
        "ValueError: axis='incoming': out/bias of shape (3,), of a layer of type Dense, has no incoming weights; "
        "pass axis, for example axis=0 for the norm of all",
    ),
    (
        lambda: layers.Dense(3, kernel_constraint=MaxNorm(1.0, axis=[0, 1, 2])).build((None, 2)),
        "ValueError: norm_axes=[0, 1, 2]: axis 2 is out of range for an array of 2 dimensions; use -2 to 1",
    ),
    (
        lambda: MaxNorm(1.0)(ops.ones((2, 3))),
        "ValueError: axis='incoming': a tensor of shape (2, 3) was made by no layer with this constraint; "
        "pass axis, for example axis=0",
    ),
    (
        lambda: MaxNorm(1.0)(keras.Variable(np.ones((2, 3), np.float32), name="w")),
        "ValueError: axis='incoming': the variable w was made by no layer with this constraint; "
        "pass axis, for example axis=0",
    ),
    (lambda: MaxNorm(-1.0), "ValueError: max_value=-1.0: must be >= 0 and not NaN; a norm is never negative"),
    (lambda: MaxNorm(math.nan), "ValueError: max_value=nan: must be >= 0 and not NaN; a norm is never negative"),
    (lambda: MaxNorm(np.float32(-2)), "ValueError: max_value=-2.0: must be >= 0 and not NaN; a norm is never negative"),
    (
        lambda: MaxNorm("3"),
        "TypeError: max_value='3': must be a number >= 0; pass a float",
    ),
    (lambda: MaxNorm(np.ones(3)), "TypeError: max_value of type ndarray: must be a number; pass a float"),
    (lambda: MaxNorm(1.0, "in"), "ValueError: axis='in': must be 'incoming', or axes; for example axis=0"),
    (
        lambda: MaxNorm(1.0, None),
        "TypeError: axis=None: must be 'incoming', an int or a sequence of ints; for example axis=0",
    ),
    (
        lambda: MaxNorm(1.0, [0.5]),
        "TypeError: axis=[0.5]: must be 'incoming', an int or a sequence of ints; for example axis=0",
    ),
    (lambda: MinMaxNorm(2.0, 1.0), "ValueError: min_value=2.0: must be at most max_value=1.0; exchange them"),
    (
        lambda: MinMaxNorm(math.inf, math.inf),
        "ValueError: min_value=inf: must be finite; no norm can be brought there",
    ),
    (lambda: MinMaxNorm(rate=2), "ValueError: rate=2: must be from 0 to 1; for the bounds at once leave it out"),
    (
        lambda: MinMaxNorm(3e4, 5e4, axis=0)(ops.ones((2, 3), "float16")),
        "ValueError: min_value=30000.0: must be at most a fifth of the largest float16; use a smaller one",
    ),
    (lambda: describe(3), "TypeError: model of type int: must be a keras.Model or keras.Layer; pass one"),
    (
        lambda: describe(layers.Dense(3, name="d")),
        "ValueError: model: d has no trainable weights; build it first, or call it on data",
    ),
    (
        lambda: clip_by_global_norm(ops.ones(2), 1.0),
        f"TypeError: tensor_vars of type {type(ops.ones(2)).__name__}: must be a list of arrays; for one array pass [array]",
    ),
    (
        lambda: clip_by_global_norm([], -1),
        "ValueError: clip_norm=-1: must be >= 0 and not NaN; a norm is never negative",
    ),
    (
        lambda: optimizers.SGD(0.1, global_clipnorm=-1.0),
        "ValueError: global_clipnorm=-1.0: must be >= 0 and not NaN; a norm is never negative",
    ),
    (
        lambda: optimizers.SGD(0.1).clip_report(),
        "ValueError: clip_report: this optimizer clips nothing; make it with global_clipnorm or clipnorm",
    ),
    (
        lambda: optimizers.clipping(3),
        "TypeError: optimizer=3: must be a class of optimizers; for example keras.optimizers.Adam",
    ),
]


@pytest.mark.parametrize("call, message", REFUSALS, ids=[message[:60] for _, message in REFUSALS])
def test_refusals(call, message):
    assert refused(call) == message


def test_integers_are_refused():
    for constraint in (MaxNorm(1.0, axis=0), UnitNorm(axis=0)):
        assert "int32" in refused(lambda: constraint(ops.ones((2, 3), "int32")))  # noqa: B023


# --- models


def network(constraint=None, optimizer=None, head=None):
    """Of convolution, attention-free, with every kind of constraint; deterministic."""
    keras.utils.set_random_seed(0)
    constraint = constraint or MaxNorm(0.5)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu", kernel_constraint=constraint, name="conv"),
            layers.DepthwiseConv2D(2, depthwise_constraint=MinMaxNorm(0.2, 0.6), name="depthwise"),
            layers.Flatten(),
            layers.Dense(8, kernel_constraint=UnitNorm(), bias_constraint=MaxNorm(0.1, axis=0), name="hidden"),
            layers.Dense(3, kernel_constraint=head or constraint, name="out"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.5, momentum=0.9), loss)
    return model


X = np.random.default_rng(0).normal(size=(24, 6, 6, 1)).astype(np.float32)
Y = np.arange(24, dtype=np.int32) % 3  # int64 makes JAX warn, without its 64-bit mode


def outside(model):
    """Weights whose exact norms are above their bound."""
    found = set()
    for row in describe(model).rows:
        [variable] = [v for v in model.trainable_variables if v.path == row.weight]
        bound = getattr(row.constraint, "max_value", 1.0)
        norms = [exact_norm(group) for group in groups_of(array(variable.value), row.axes)]
        found |= {row.weight} if max(norms) > Fraction(bound) else set()
    return found


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_bounds_hold_after_every_step(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network(optimizer=optimizers.SGD(0.5, momentum=0.9, global_clipnorm=1.0))
        for _ in range(4):
            model.train_on_batch(X, Y)
            assert outside(model) == set()
        kernel = array(model.get_layer("conv").kernel.value)
        touching = sum(exact_norm(group) > Fraction(0.49) for group in groups_of(kernel, (0, 1, 2)))
        assert touching  # the constraint had something to do
    finally:
        keras.config.set_dtype_policy(before)


def test_bounds_can_be_broken():
    model = network()
    for variable in model.trainable_variables:
        if isinstance(variable.constraint, Constraint):
            place = variable.constraint
            variable.constraint = None
            for _ in range(3):
                model.train_on_batch(X, Y)
            variable.constraint = place
            assert outside(model)
            return


def test_fit():
    """Compiled with XLA, on JAX and TensorFlow; Keras leaves PyTorch eager, unless it is told otherwise."""
    model = network(optimizer=optimizers.Adam(0.1, clipnorm=0.5))
    model.compile(model.optimizer, model.loss, jit_compile=BACKEND != "torch")
    model.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    assert outside(model) == set()
    report = model.optimizer.clip_report()
    assert report.calls == 6
    assert report.norm_before > 0


def test_saved_and_loaded(tmp_path):
    model = network(optimizer=optimizers.Adam(0.05, global_clipnorm=0.1))
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for old, new in zip(model.variables, loaded.variables, strict=True):
        assert same_bits(array(old.value), array(new.value))
    rows, again = describe(model).rows, describe(loaded).rows
    assert [row[1:5] for row in rows] == [row[1:5] for row in again]
    assert [repr(row.constraint) for row in rows] == [repr(row.constraint) for row in again]
    assert loaded.optimizer.clip_report() == model.optimizer.clip_report()
    assert loaded.get_layer("conv").kernel_constraint.get_config() == {"max_value": 0.5, "axis": "incoming"}
    for one in (model, loaded):
        one.train_on_batch(X, Y)
    for old, new in zip(model.variables, loaded.variables, strict=True):
        assert same_bits(array(old.value), array(new.value))
    assert outside(loaded) == set()


def test_configs_round_trip():
    every = [
        MaxNorm(),
        MaxNorm(3, [0, 1]),
        MinMaxNorm(0.5, math.inf, 0.5, -1),
        UnitNorm(),
        MaxNorm(np.float32(2), (0,)),
    ]
    for constraint in every:
        again = keras.constraints.deserialize(keras.constraints.serialize(constraint))
        assert type(again) is type(constraint)
        assert again.get_config() == constraint.get_config()
        assert keras.constraints.get(keras.constraints.serialize(constraint)).get_config() == constraint.get_config()
    clone = keras.models.clone_model(network())
    assert [row[1:5] for row in describe(clone).rows] == [row[1:5] for row in describe(network()).rows]
    again = keras.models.model_from_json(network().to_json())
    assert [row[1:5] for row in describe(again).rows] == [row[1:5] for row in describe(network()).rows]


def test_describe():
    model = network(head=keras.constraints.MaxNorm(1.0, axis=0))
    model.get_layer("conv").bias.constraint = MaxNorm(1.0)
    model.get_layer("depthwise").bias.constraint = MaxNorm(1.0, axis=0)
    text = re.sub(r"sequential(_\d+)?/", "", str(describe(model)))
    assert [line.split("  ")[0] for line in text.splitlines()[:1]] == ["weight"]
    assert re.sub(" +", " ", text).splitlines() == [
        "weight layer shape layout axes constraint",
        "conv/kernel Conv2D (3, 3, 1, 4) (*kernel, in, out) 0 1 2 MaxNorm(max_value=0.5)",
        "depthwise/kernel DepthwiseConv2D (2, 2, 4, 1) (*kernel, in, multiplier) 0 1 "
        "MinMaxNorm(min_value=0.2, max_value=0.6, rate=1.0)",
        "depthwise/bias (4,) as given 0 MaxNorm(max_value=1.0, axis=0)",
        "hidden/kernel Dense (36, 8) (in, out) 0 UnitNorm()",
        "hidden/bias Dense (8,) as given 0 MaxNorm(max_value=0.1, axis=0)",
        "left out, made by no layer with this constraint: pass axis: conv/bias",
        "left out, under another constraint, MaxNorm: out/kernel",
        "left out, no constraint: out/bias",
    ]


# --- clipping


@pytest.mark.parametrize("mode", MODES)
def test_laws_of_the_global_norm(mode):
    for seed, dtypes in enumerate([DTYPES[:3], ["float32"] * 2, DTYPES]):
        xs = [draw(seed, dtype, (3, 4), 1) for dtype in dtypes]
        n = float(exact_norm([float(v) for x in xs for v in x.ravel()]))
        for bound in (n / 3, n * (1 - 1e-6), n, n * (1 + 1e-6), 2 * n, 0.0):
            bound = float(np.float32(bound))
            ys, norm = mode(lambda *xs, bound=bound: clip_by_global_norm(xs, bound))(*map(tensor, xs))
            assert broken_total_laws(xs, list(map(array, ys)), bound, epsilon=0, band=BAND) == set()
            assert abs(float(norm) - n) <= n * 2.0**-22


def test_clipping_of_odd_lists():
    assert clip_by_global_norm([], 1.0)[0] == []
    clipped, norm = clip_by_global_norm(iter([None, tensor(np.float32(2.0)), None]), 1.0)
    assert clipped[0] is clipped[2] is None
    assert broken_laws(np.full(1, 2, np.float32), array(clipped[1])[None], 1.0, (0,), epsilon=0, band=BAND) == set()
    assert float(norm) == 2.0
    clipped, norm = clip_by_global_norm(
        [tensor(np.array([np.nan, 1], np.float32)), tensor(np.ones(2, np.float32))], 1.0
    )
    assert np.isnan(array(clipped[1])).all()


class Given(keras.optimizers.Optimizer):
    """Writes the gradients that it is handed into the variables."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, gradient)


def step(optimizer, gradients, times=1):
    """What the optimizer makes of gradients, after its clipping."""
    variables = [keras.Variable(np.zeros(np.shape(g), np.float32)) for g in gradients]
    for _ in range(times):
        optimizer.apply([tensor(np.asarray(g, np.float32)) for g in gradients], variables)
    return [v.numpy() for v in variables]


def test_clipping_of_optimizers():
    gradients = [draw(0, "float32", (3, 4), 0), draw(1, "float32", (5,), 0), np.float32(0.25)]
    given = optimizers.clipping(Given)
    own = given(0.1, global_clipnorm=1.0)
    assert own.clip_report() == (0, 0.0, False, 0.0)
    clipped = step(own, gradients)
    assert broken_total_laws(gradients, clipped, 1.0, epsilon=0, band=BAND) == set()
    assert own.clip_report()[:1] + own.clip_report()[2:] == (1, True, 1.0)
    assert abs(own.clip_report().norm_before - np.sqrt(sum((g * g).sum() for g in gradients))) < 1e-5
    wide = given(0.1, global_clipnorm=100.0)
    assert all(map(same_bits, step(wide, gradients), map(np.asarray, gradients)))
    assert wide.clip_report()[2:] == (False, 0.0)
    each = given(0.1, clipnorm=1.0)
    for before, after in zip(gradients, step(each, gradients), strict=True):
        assert broken_total_laws([before], [after], 1.0, epsilon=0, band=BAND) == set()
    assert each.clip_report().clipped
    zero = given(0.1, clipnorm=0.0)
    assert not any(v.any() for v in step(zero, gradients))
    values = given(0.1, clipvalue=0.1)
    assert max(abs(v).max() for v in step(values, gradients)) == np.float32(0.1)
    huge = given(0.1, global_clipnorm=1.0)
    [big] = step(huge, [np.full(4, 1e30, np.float32)])
    assert broken_laws(np.full(4, 1e30, np.float32), big, 1.0, (0,), epsilon=0, band=BAND) == set()
    assert str(huge.clip_report()) == "total norm 2e+30, clipped; clipped in 100.0% of 1 steps"
    spoilt = given(0.1, global_clipnorm=1.0)
    assert all(np.isnan(v).all() for v in step(spoilt, [np.array([np.inf]), np.array([1.0])]))
    assert spoilt.clip_report().clipped


@pytest.mark.parametrize("setting", ["clipnorm", "global_clipnorm"])
def test_reports_of_several_steps(setting):
    """Which step was clipped, and in how many: not where the norm is the bound itself."""
    optimizer = optimizers.clipping(Given)(0.1, **{setting: 5.0})
    weight = keras.Variable(np.zeros(2, np.float32))
    reports = []
    for gradient in ([3.0, 4.0], [6.0, 8.0], [30.0, 40.0], [0.3, 0.4]):
        optimizer.apply([tensor(np.array(gradient, np.float32))], [weight])
        reports.append((optimizer.clip_report().clipped, optimizer.clip_report().clip_fraction))
    assert reports == [(False, 0.0), (True, 1 / 2), (True, 2 / 3), (False, 2 / 4)]


def test_accumulated_gradients_are_clipped_when_used():
    given = optimizers.clipping(Given)(0.1, global_clipnorm=1.0, gradient_accumulation_steps=2)
    weight = keras.Variable(np.zeros(2, np.float32))
    for gradient in ([6.0, 0.0], [0.0, 8.0]):
        given.apply([tensor(np.array(gradient, np.float32))], [weight])
    np.testing.assert_allclose(weight.numpy(), [0.6, 0.8], rtol=1e-6)  # of [3, 4], their mean
    assert given.clip_report().norm_before == 5.0
    assert given.clip_report().calls == 1


def test_every_optimizer_of_keras_is_here():
    theirs = {
        n for n, kind in vars(keras.optimizers).items() if isinstance(kind, type) and hasattr(kind, "update_step")
    }
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    ours = {name for name in vars(optimizers) if hasattr(getattr(optimizers, name), "clip_report")}
    assert ours - {"_Clips", "_made"} == theirs - wrappers


def test_optimizers_move_as_keras_own_where_nothing_clips():
    for name in ("Adam", "SGD", "RMSprop", "AdamW"):
        kinds = (getattr(m, name) for m in (optimizers, keras.optimizers))
        ours, theirs = (step(kind(0.1), [np.array([3.0, -1.0])], times=3) for kind in kinds)
        assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize("module", ["constraints", "table", "clip", "optimizers"])
def test_examples_of_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"normball.keras.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_guide():
    keras.backend.clear_session()  # which counts names anew
    assert pages.faults(pages.guide("keras.md"), "keras.md") == []
