"""Sums block by block: right for every choice of axes, taken where they should be, and of little memory."""

import math
from fractions import Fraction

import numpy as np
import pytest
from oracle import broken_laws

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import normball  # noqa: E402
from normball.backends import jax_rows as rows  # noqa: E402

# Shape, axes, and the shape of the blocks: none where the last axis is among them, rows do not divide, or few entries.
CASES = [
    ((1024, 128), (0,), (64, 16, 128)),
    ((1000, 128), (0,), (8, 125, 128)),
    ((3, 3, 64, 128), (0, 1, 2), (64, 9, 128)),
    ((64, 8, 16, 16), (0, 2), (64, 1, 8, 16, 16)),
    ((2, 512, 128), (1,), None),
    ((1001, 128), (0,), None),
    ((128, 1024), (1,), None),
    ((512, 128), (0, 1), None),
    ((64, 128), (0,), None),
]


def drawn(shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def squares(x):
    return jnp.square(x.astype(np.float64))


def times(x, groups):
    return (x.astype(np.float64) * groups).astype(np.float32)


@pytest.mark.parametrize(("shape", "axes", "blocks"), CASES)
def test_sums(shape, axes, blocks):
    x = drawn(shape)
    assert rows._in_blocks(shape, axes) == blocks
    with jax.enable_x64(True):
        loops = "scan" in str(jax.make_jaxpr(lambda x: rows.summed(squares, x, axes))(x))
        total = np.asarray(jax.jit(lambda x: rows.summed(squares, x, axes))(x))
    assert loops == (blocks is not None)
    assert total.shape == tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    length = math.prod(shape[axis] for axis in axes)
    columns = np.moveaxis(x, axes, range(len(axes))).reshape(length, -1)
    for column, found in list(zip(columns.T, total.reshape(-1), strict=True))[:3]:
        exact = sum(Fraction(float(v)) ** 2 for v in column)
        assert abs(Fraction(float(found)) - exact) <= length * Fraction(2) ** -53 * exact


@pytest.mark.parametrize(("shape", "axes", "blocks"), CASES)
def test_spread_and_its_transpose(shape, axes, blocks):
    x, step = drawn(shape), drawn((*shape, 1))[..., 0]
    groups = np.random.default_rng(1).standard_normal([1 if axis in axes else n for axis, n in enumerate(shape)])
    with jax.enable_x64(True):
        result, transpose = jax.vjp(lambda groups: rows.spread(times, x, groups), groups)
        assert np.asarray(result).tobytes() == (x.astype(np.float64) * groups).astype(np.float32).tobytes()
        back = np.asarray(transpose(step)[0])
        loops = "scan" in str(jax.make_jaxpr(lambda groups: rows.spread(times, x, groups))(groups))
    assert loops == (blocks is not None)
    terms = x.astype(np.float64) * step  # exact, as are their moduli
    error = math.prod(shape[axis] for axis in axes) * 2.0**-52 * abs(terms).sum(axes, keepdims=True)
    assert (abs(back - terms.sum(axes, keepdims=True)) <= error).all()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "axes"), [case[:2] for case in CASES[:4:2]])
def test_laws_where_it_loops(shape, axes, dtype, ord):
    x = drawn(shape).astype(jnp.dtype(dtype))
    norms = np.linalg.norm(np.moveaxis(x.astype(np.float64), axes, range(len(axes))).reshape(-1, shape[-1]), ord, 0)
    bound = np.float32(np.median(norms))
    y = np.asarray(jax.jit(lambda x, bound: normball.norm_constraint(x, bound, axes, ord=ord))(x, bound))
    few = np.s_[..., ::16]
    assert broken_laws(x[few], y[few], float(bound), axes, ord=ord, band=4) == set()
    assert 0 < (x == y).all(axes).sum() < shape[-1]  # some comply, some do not


@pytest.mark.parametrize("bound", [30.0, None])
@pytest.mark.parametrize("backward", [False, True])
def test_needs_no_more_than_one_array(bound, backward):
    x = jax.ShapeDtypeStruct((1024, 1024), np.float32)

    def constrain(x, given):
        return normball.norm_constraint(x, given if bound is None else bound, 0)

    def back(x, given):
        return jax.vjp(lambda x: constrain(x, given), x)[1](x)[0]

    compiled = jax.jit(back if backward else constrain).lower(x, np.float32(30)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 1024 * 1024


def test_the_memory_check_can_fail():
    x = jax.ShapeDtypeStruct((1024, 1024), np.float32)

    def sorted_twice(x):
        return jnp.sort(jnp.sort(x, 0) @ x, 0) @ x

    assert jax.jit(sorted_twice).lower(x).compile().memory_analysis().temp_size_in_bytes >= 4 * 1024 * 1024
