"""NumPy's own ground: layouts, byte orders, `out`, and that the input is left alone."""

import math

import numpy as np
import pytest
from conftest import FLOATS
from oracle import broken_laws, same_bits

from normball import compute_norms, norm_constraint, total_norm_constraint

AXES = (0,)
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((6, 10))


def unaligned(x):
    room = np.zeros(x.nbytes + 1, np.uint8)
    copy = room[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    assert not copy.flags.aligned or x.dtype.itemsize == 1
    return copy


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "strided rows": lambda x: np.repeat(x, 3, axis=0)[::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "inner slice": lambda x: np.pad(x, 2)[2:-2, 2:-2],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read-only": read_only,
}


@pytest.mark.parametrize(
    "layout, dtype",
    # ml_dtypes has no byte-swapped bfloat16
    [(layout, dtype) for layout in LAYOUTS for dtype in FLOATS if (layout, dtype) != ("byte-swapped", "bfloat16")],
)
def test_layout_does_not_matter(layout, dtype):
    x = BASE.astype(FLOATS[dtype])
    laid = LAYOUTS[layout](x)
    before = laid.copy()
    y = norm_constraint(laid, 1.5)
    assert same_bits(laid.copy(), before)
    assert y.dtype == laid.dtype
    assert broken_laws(x, y.astype(x.dtype), 1.5, AXES) == set()
    assert (compute_norms(laid) == compute_norms(x)).all()
    [z] = total_norm_constraint([laid], 1.5)
    assert z.dtype == laid.dtype
    assert not np.may_share_memory(y, laid)


def test_broadcast_input():
    x = np.broadcast_to(np.array([[3.0], [4.0]]), (2, 5))
    y = norm_constraint(x, 1.0)
    assert broken_laws(x, y, 1.0, AXES) == set()
    assert y.flags.writeable


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
def test_out_fresh_and_in_place_have_the_same_bits(layout):
    x = LAYOUTS[layout](BASE.astype(np.float32))
    wanted = norm_constraint(x, 1.5)
    out = np.full_like(x, np.nan)
    assert norm_constraint(x, 1.5, out=out) is out
    assert same_bits(out, wanted)
    inside = LAYOUTS[layout](BASE.astype(np.float32))
    assert norm_constraint(inside, 1.5, out=inside) is inside
    assert same_bits(np.array(inside), np.array(wanted))


def test_out_may_be_a_second_view_of_the_input():
    x = BASE.copy()
    wanted = norm_constraint(x, 1.5)
    assert same_bits(norm_constraint(x, 1.5, out=x[:]), wanted)


def test_out_may_hold_the_bound():
    x = np.array([[3.0, 5.0], [4.0, 12.0]])
    wanted = norm_constraint(x, x[:1].copy())
    assert same_bits(norm_constraint(x, x[:1], out=x), wanted)


@pytest.mark.parametrize(
    "out, rule",
    [
        (lambda x: x[::-1], "overlaps tensor_var"),
        (lambda x: np.lib.stride_tricks.as_strided(np.zeros(1), x.shape, (0, 0)), "share memory"),
        (lambda x: read_only(x), "read-only"),
    ],
)
def test_out_that_cannot_take_the_result_is_refused(out, rule):
    x = BASE.copy()
    with pytest.raises(ValueError, match=rule):
        norm_constraint(x, 1.0, out=out(x))
    assert same_bits(x, BASE)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_and_scalars_become_arrays(tmp_path):
    assert type(norm_constraint(np.float32(3.0), 1.0, ())) is np.ndarray
    assert type(norm_constraint(np.asmatrix(BASE), 1.0)) is np.ndarray
    mapped = np.memmap(tmp_path / "weights", np.float64, "w+", shape=BASE.shape)
    mapped[...] = BASE
    assert norm_constraint(mapped, 1.5, out=mapped) is mapped
    assert same_bits(np.array(mapped), norm_constraint(BASE, 1.5))


@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_floating_point_policy_of_the_caller_is_kept(policy):
    x = np.array([[1e300, np.nan, 5e-324, 0.0], [1e300, 1.0, np.inf, -0.0]])
    with np.errstate(all=policy):
        y = norm_constraint(x, 1e-320)
        assert np.geterr()["over"] == policy
    assert broken_laws(x, y, 1e-320, AXES) == set()


def test_huge_epsilon_only_shrinks():
    x = np.array([[3.0], [4.0]])
    for epsilon in (1e300, 1.7e308, math.inf):
        assert broken_laws(x, norm_constraint(x, 1.0, epsilon=epsilon), 1.0, AXES, epsilon) == set()


def test_norms_keep_no_axes_of_length_one():
    assert compute_norms(np.ones((1, 4, 1, 1))).shape == (1,)
    assert compute_norms(np.ones((2, 3)), ()).shape == (2, 3)
    assert compute_norms(np.ones((2, 3)), (0, 1)).shape == ()
