"""Lists of arrays: each constrained by itself, with the bits of one at a time."""

import math

import numpy as np
import pytest
from conftest import FLOATS
from oracle import broken_laws, same_bits

from normball import norm_constraint

RNG = np.random.default_rng(0)
SHAPES = [(6, 10), (3, 4, 2), (2, 3, 3, 3), (0, 3), (300, 40), (5, 1)]


def weights():
    """Arrays of every dtype, of shapes that have default axes, and of several layouts."""
    xs = [RNG.standard_normal(shape).astype(dtype) for shape in SHAPES for dtype in FLOATS.values()]
    return [*xs, np.asfortranarray(xs[0]), xs[0][::-1, ::2], xs[1].astype(xs[1].dtype.newbyteorder())]


def one_at_a_time(xs, bounds, **options):
    return [norm_constraint(x, bound, **options) for x, bound in zip(xs, bounds, strict=True)]


def all_same_bits(ys, wanted):
    return len(ys) == len(wanted) and all(same_bits(y, want) for y, want in zip(ys, wanted, strict=True))


@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_list_has_the_bits_of_one_at_a_time(ord):
    xs = weights()
    before = [x.copy() for x in xs]
    ys = norm_constraint(xs, 1.5, ord=ord)
    assert type(ys) is list
    assert all_same_bits(ys, one_at_a_time(xs, [1.5] * len(xs), ord=ord))
    assert all_same_bits(xs, before)
    assert not any(np.may_share_memory(x, y) for x, y in zip(xs, ys, strict=True) if x.size)
    assert broken_laws(xs[0], ys[0], 1.5, (0,), ord=ord) == set()


def test_same_bits_can_fail():
    xs = weights()
    assert not all_same_bits(norm_constraint(xs, 1.5), one_at_a_time(xs, [1.4] * len(xs)))
    assert not all_same_bits(norm_constraint(xs, 1.5), one_at_a_time(xs[1:], [1.5] * len(xs[1:])))


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda xs: (x for x in xs)])
def test_any_iterable_will_do(kind):
    xs = weights()
    assert all_same_bits(norm_constraint(kind(xs), 1.5), norm_constraint(xs, 1.5))
    assert norm_constraint(kind([]), 1.5) == []


def test_bounds_are_one_for_all_or_one_for_each():
    xs = [RNG.standard_normal((6, 4)).astype(np.float32) for _ in range(3)]
    per_unit = np.array([[0.5, 1.0, 2.0, 4.0]])
    assert all_same_bits(norm_constraint(xs, per_unit), one_at_a_time(xs, [per_unit] * 3))
    for bounds in ([0.5, 2, math.inf], (1.0, per_unit, np.float32(2))):
        assert all_same_bits(norm_constraint(xs, bounds), one_at_a_time(xs, bounds))
    assert all_same_bits(norm_constraint(xs, 1.0, epsilon=per_unit), one_at_a_time(xs, [1.0] * 3, epsilon=per_unit))


@pytest.mark.parametrize("axes", [1, -1, (0, 1), (), [1]])
def test_axes_are_those_of_all(axes):
    xs = [RNG.standard_normal(shape) for shape in ((4, 3), (5, 2))]
    assert all_same_bits(norm_constraint(xs, 1.0, axes), one_at_a_time(xs, [1.0] * 2, norm_axes=axes))


def test_axes_from_a_generator_are_those_of_all():
    xs = [RNG.standard_normal(shape) for shape in ((4, 3), (5, 2))]
    assert all_same_bits(norm_constraint(xs, 1.0, iter((0, 1))), norm_constraint(xs, 1.0, (0, 1)))


def test_out_and_in_place():
    xs = weights()
    wanted = norm_constraint(xs, 1.5)
    outs = [np.empty_like(x) for x in xs]
    ys = norm_constraint(xs, 1.5, out=outs)
    assert all(y is out for y, out in zip(ys, outs, strict=True))
    assert all_same_bits(outs, wanted)
    inside = [x if i % 2 else None for i, x in enumerate(xs)]  # the others into new arrays
    inside[-1] = inside[-2] = None  # those share memory with the first
    ys = norm_constraint(xs, 1.5, out=inside)
    assert all(out is None or y is out for y, out in zip(ys, inside, strict=True))
    assert all_same_bits(ys, wanted)


def test_tied_arrays_may_be_read_twice():
    x = RNG.standard_normal((6, 4))
    assert all_same_bits(norm_constraint([x, x, x[:]], 1.0), [norm_constraint(x, 1.0)] * 3)


def test_views_of_one_buffer_in_place():
    """Weights in one flat piece of memory, one after the other and interleaved."""
    flat = RNG.standard_normal(48)
    for views in (
        lambda m: [m[:24].reshape(6, 4), m[24:].reshape(4, 6)],
        lambda m: [m.reshape(6, 8)[:, :3], m.reshape(6, 8)[:, 3:]],
        lambda m: [m[::2].reshape(6, 4), m[1::2].reshape(6, 4)[::-1]],
    ):
        wanted = norm_constraint(views(flat), 1.0)
        inside = views(flat.copy())
        norm_constraint(inside, 1.0, out=inside)
        assert all_same_bits([x.copy() for x in inside], [y.copy() for y in wanted])


A, B = np.ones((2, 3)), np.ones((3, 2))
FLAT = np.ones(12)


@pytest.mark.parametrize(
    "xs, options, error, message",
    [
        (
            [A, B, A, A.astype(int)],
            {},
            TypeError,
            "tensor_var[3] of dtype int64: must be one of float64, float32, float16, bfloat16; "
            "cast it first, for example tensor_var[3].astype('float32')",
        ),
        (
            [A, [1.0]],
            {},
            TypeError,
            "tensor_var[1] of type list: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; "
            "turn a list or number into one with numpy.asarray",
        ),
        (
            [[1.0]],
            {},
            TypeError,
            "tensor_var of type list: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; "
            "turn a list or number into one with numpy.asarray",
        ),
        (
            {"w": A},
            {},
            TypeError,
            "tensor_var of type dict: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; "
            "turn a list or number into one with numpy.asarray",
        ),
        (
            [A, np.ma.masked_array(A)],
            {},
            TypeError,
            "tensor_var[1]: a masked array has no norm here; pass x.filled(0), or the entries that count",
        ),
        (
            [A, np.ones(3)],
            {},
            ValueError,
            "norm_axes=None: no default axes for tensor_var[1] of 1 dimension (only for 2 to 5); "
            "pass norm_axes: 0 makes the whole array one group, () each entry",
        ),
        (
            [A, np.ones(3)],
            {"norm_axes": 1},
            ValueError,
            "norm_axes=1: axis 1 is out of range for tensor_var[1] of 1 dimension; use -1 to 0",
        ),
        (
            [A, B],
            {"max_norm": [1.0, -2.0]},
            ValueError,
            "max_norm[1]=-2.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            [A, B],
            {"max_norm": [1.0]},
            ValueError,
            "max_norm: 1 bounds for 2 arrays; pass one for all, or a list of as many",
        ),
        (
            [A, B],
            {"max_norm": np.ones((1, 3))},
            ValueError,
            "max_norm of shape (1, 3): must broadcast against the norms of tensor_var[1], of shape (1, 2) "
            "(the reduced axes kept as 1); add axes of length 1 where the norm is taken",
        ),
        ([A, B], {"out": [A]}, ValueError, "out: 1 arrays for 2 arrays; pass a list of as many"),
        (
            [A, B],
            {"out": A},
            TypeError,
            "out of type ndarray: must be a list like tensor_var; leave it out for new arrays",
        ),
        (
            [A, B],
            {"out": [A, A]},
            ValueError,
            "out[1]: its shape (2, 3) is not tensor_var[1]'s (3, 2); pass np.empty_like(tensor_var[1])",
        ),
        (
            [A, A],
            {"out": [None, [1]]},
            TypeError,
            "out[1] of type list: must be a NumPy array like tensor_var[1]; leave it out for a new one",
        ),
        (
            [A, A],
            {"out": [A, A]},
            ValueError,
            "out[0]: it overlaps tensor_var[1]; pass arrays with memory of their own",
        ),
        (
            [A, A],
            {"out": [FLAT[:6].reshape(2, 3), FLAT[5:11].reshape(2, 3)]},
            ValueError,
            "out[1]: it overlaps out[0]; pass arrays with memory of their own",
        ),
        (
            [A, A],
            {"out": [None, A]},
            ValueError,
            "out[1]: it overlaps tensor_var[0]; pass arrays with memory of their own",
        ),
        (
            [FLAT[:6].reshape(2, 3), FLAT[4:10].reshape(2, 3)],
            {"out": [np.ones((2, 3)), FLAT[4:10].reshape(2, 3)]},
            ValueError,
            "out[1]: it overlaps tensor_var[0]; pass arrays with memory of their own",
        ),
    ],
)
def test_refusals_name_the_entry_and_write_nothing(xs, options, error, message):
    with pytest.raises(error) as caught:
        norm_constraint(xs, **{"max_norm": 0.5} | options)
    assert str(caught.value) == message
    assert (A == 1).all()
    assert (FLAT == 1).all()


def test_variables_give_variables():
    pytensor = pytest.importorskip("pytensor")
    xs = [RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (3, 2, 2))]
    variables = [pytensor.tensor.tensor(dtype="float32", shape=(None,) * x.ndim) for x in xs]
    bound = pytensor.tensor.scalar(dtype="float64")
    ys = norm_constraint(variables, [bound, 1.0])
    assert type(ys) is list
    assert [y.type for y in ys] == [variable.type for variable in variables]
    results = pytensor.function([*variables, bound], ys)(*xs, 0.5)
    assert all_same_bits(results, one_at_a_time(xs, [0.5, 1.0]))
    mixed = norm_constraint([xs[0], variables[1]], 1.0)  # an array beside a variable is a constant
    assert all_same_bits(pytensor.function(variables[1:], mixed)(xs[1]), one_at_a_time(xs, [1.0] * 2))


def test_refusals_of_variables_name_the_entry():
    pytensor = pytest.importorskip("pytensor")
    x, integers = pytensor.tensor.matrix(), pytensor.tensor.lmatrix()
    with pytest.raises(TypeError, match=r"^tensor_var\[1\] of dtype int64: must be one of"):
        norm_constraint([x, integers], 1.0)
    with pytest.raises(TypeError, match=r"^out: a PyTensor variable is never written to"):
        norm_constraint([x, x], 1.0, out=[np.ones((2, 2)), None])
