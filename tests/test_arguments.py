"""Every refusal, to the letter, and before anything is computed."""

import math
from fractions import Fraction

import numpy as np
import pytest

from normball import arguments, compute_norms, norm_constraint, total_norm_constraint

X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("ndim, axes", [(2, (0,)), (3, (1, 2)), (4, (1, 2, 3)), (5, (1, 2, 3, 4))])
def test_default_axes(ndim, axes):
    assert arguments.read_axes(ndim, None) == axes


@pytest.mark.parametrize(
    "given, read",
    [
        (0, (0,)),
        (-1, (2,)),
        ([2, 0], (0, 2)),
        (range(3), (0, 1, 2)),
        ((), ()),
        (np.int64(1), (1,)),
        (np.array([0, 1]), (0, 1)),
    ],
)
def test_axes_are_read(given, read):
    assert arguments.read_axes(3, given) == read


@pytest.mark.parametrize(
    "ndim, given, error, message",
    [
        (
            1,
            None,
            ValueError,
            "norm_axes=None: no default axes for an array of 1 dimension (only for 2 to 5); "
            "pass norm_axes: 0 makes the whole array one group, () each entry",
        ),
        (
            6,
            None,
            ValueError,
            "norm_axes=None: no default axes for an array of 6 dimensions (only for 2 to 5); "
            "pass norm_axes: tuple(range(6)) makes the whole array one group, () each entry",
        ),
        (
            0,
            None,
            ValueError,
            "norm_axes=None: no default axes for an array of 0 dimensions (only for 2 to 5); pass norm_axes=()",
        ),
        (2, (2,), ValueError, "norm_axes=(2,): axis 2 is out of range for an array of 2 dimensions; use -2 to 1"),
        (2, -3, ValueError, "norm_axes=-3: axis -3 is out of range for an array of 2 dimensions; use -2 to 1"),
        (0, 0, ValueError, "norm_axes=0: axis 0 is out of range for an array of 0 dimensions; pass norm_axes=()"),
        (2, (0, -2), ValueError, "norm_axes=(0, -2): axis 0 is named twice; name each axis once"),
        (2, "0", TypeError, "norm_axes='0': must be None, an int or a sequence of ints; for example norm_axes=(0, 2)"),
        (2, 0.0, TypeError, "norm_axes=0.0: must be None, an int or a sequence of ints; for example norm_axes=(0, 2)"),
        (
            2,
            (0.5,),
            TypeError,
            "norm_axes=(0.5,): must be None, an int or a sequence of ints; for example norm_axes=(0, 2)",
        ),
    ],
)
def test_axes_are_refused(ndim, given, error, message):
    with pytest.raises(error) as caught:
        arguments.read_axes(ndim, given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: norm_constraint(X, -1), ValueError, "max_norm=-1: must be >= 0 and not NaN; a norm is never negative"),
        (
            lambda: norm_constraint(X, math.nan),
            ValueError,
            "max_norm=nan: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda: norm_constraint(X, 1, epsilon=-1e-9),
            ValueError,
            "epsilon=-1e-09: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda: norm_constraint(X, np.array([[1, -2, 3]])),
            ValueError,
            "max_norm=-2.0: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda: norm_constraint(X, None),
            TypeError,
            "max_norm=None: must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf",
        ),
        (
            lambda: norm_constraint(X, "3"),
            TypeError,
            "max_norm='3': must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf",
        ),
        (
            lambda: norm_constraint(X, 1, epsilon=None),
            TypeError,
            "epsilon=None: must be a number, an array or a symbolic value >= 0; for none pass epsilon=0",
        ),
        (
            lambda: norm_constraint(X, np.ones(2)),
            ValueError,
            "max_norm of shape (2,): must broadcast against the norms, of shape (1, 3) (the reduced axes kept as 1); "
            "add axes of length 1 where the norm is taken",
        ),
        (
            lambda: norm_constraint(X, np.ones((2, 3))),
            ValueError,
            "max_norm of shape (2, 3): must broadcast against the norms, of shape (1, 3) (the reduced axes kept as 1); "
            "add axes of length 1 where the norm is taken",
        ),
        (
            lambda: norm_constraint(X, np.array([1j])),
            TypeError,
            "max_norm of dtype complex128: must hold real numbers; convert it to float64 first",
        ),
        (
            lambda: norm_constraint(X, 1, ord=3),
            ValueError,
            "ord=3: must be 1, 2 or inf; for the Euclidean norm leave it out",
        ),
        (
            lambda: norm_constraint(X, 1, ord="fro"),
            ValueError,
            "ord='fro': must be 1, 2 or inf; for the Euclidean norm leave it out",
        ),
        (
            lambda: norm_constraint(X.astype(int), 1),
            TypeError,
            "tensor_var of dtype int64: must be one of float64, float32, float16, bfloat16; "
            "cast it first, for example tensor_var.astype('float32')",
        ),
        (
            lambda: norm_constraint(X > 0, 1),
            TypeError,
            "tensor_var of dtype bool: must be one of float64, float32, float16, bfloat16; "
            "cast it first, for example tensor_var.astype('float32')",
        ),
        (
            lambda: norm_constraint(X.astype(complex), 1),
            TypeError,
            "tensor_var of dtype complex128: must be one of float64, float32, float16, bfloat16; "
            "constrain its modulus, or its real view",
        ),
        (
            lambda: norm_constraint([[1.0]], 1),
            TypeError,
            "tensor_var of type list: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; turn a list or number into one with numpy.asarray",
        ),
        (
            lambda: norm_constraint(None, 1),
            TypeError,
            "tensor_var of type NoneType: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; turn a list or number into one with numpy.asarray",
        ),
        (
            lambda: norm_constraint(np.ma.masked_array(X), 1),
            TypeError,
            "tensor_var: a masked array has no norm here; pass x.filled(0), or the entries that count",
        ),
        (
            lambda: total_norm_constraint(X, 1),
            TypeError,
            "tensor_vars of type ndarray: must be a list of arrays; for one array pass [array]",
        ),
        (
            lambda: total_norm_constraint(None, 1),
            TypeError,
            "tensor_vars of type NoneType: must be a list of arrays; for one array pass [array]",
        ),
        (
            lambda: total_norm_constraint([X, None], 1),
            TypeError,
            "tensor_var of type NoneType: must be an array of numpy or jax or torch or pytensor, or of the Array API standard; turn a list or number into one with numpy.asarray",
        ),
        (
            lambda: total_norm_constraint([X], np.ones(1)),
            ValueError,
            "max_norm of shape (1,): must broadcast against the norms, of shape () (the reduced axes kept as 1); "
            "add axes of length 1 where the norm is taken",
        ),
        (
            lambda: norm_constraint(X, 1, out=[1]),
            TypeError,
            "out of type list: must be a NumPy array like tensor_var; leave it out for a new one",
        ),
        (
            lambda: norm_constraint(X, 1, out=np.ones((3, 2), np.float32)),
            ValueError,
            "out: its shape (3, 2) is not tensor_var's (2, 3); pass np.empty_like(tensor_var)",
        ),
        (
            lambda: norm_constraint(X, 1, out=np.ones((2, 3))),
            ValueError,
            "out: its dtype float64 is not tensor_var's float32; pass np.empty_like(tensor_var)",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_longdouble_is_refused_where_it_is_wider_than_float64():
    if np.dtype(np.longdouble) == np.float64:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(TypeError, match="wider than the float64 that sums are kept in, so cast it first"):
        norm_constraint(X.astype(np.longdouble), 1)


@pytest.mark.parametrize(
    "bound", [1, np.float32(1), np.int8(1), Fraction(1), np.array(1.0), [[1.0]], np.array([1], np.float16)]
)
def test_bounds_of_many_kinds_mean_the_same(bound):
    assert (norm_constraint(X, bound) == norm_constraint(X, 1.0)).all()


def test_bounds_beyond_float64():
    assert (norm_constraint(X, 10**400) == X).all()
    with pytest.raises(ValueError, match="must be >= 0"):
        norm_constraint(X, -(10**400))


def test_nothing_is_written_when_refused():
    out = np.zeros_like(X)
    with pytest.raises(ValueError):
        norm_constraint(X, -1, out=out)
    assert not out.any()


def test_lists():
    assert total_norm_constraint([], 1.0) == []
    assert total_norm_constraint(iter([]), 1.0, return_norm=True) == ([], 0.0)
    with pytest.raises(ValueError, match="max_norm=-1"):
        total_norm_constraint([], -1)
    generator = (x for x in [X, X])
    assert len(total_norm_constraint(generator, 1.0)) == 2


def test_one_dimension_of_norms_is_absolute_values():
    assert compute_norms(np.array([-3.0, 4.0], np.float32)).tolist() == [3.0, 4.0]
    assert compute_norms(np.array([-3.0, 4.0]), 0) == 5.0
