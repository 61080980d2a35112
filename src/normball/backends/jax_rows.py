"""Sums of columns in float64, a block of rows at a time: XLA on a CPU takes 2 to 4 times as long over a plain sum.

A loop adds up blocks, entry by entry, which needs no more than one block in float64. It is for one device: of an array
that lies on several it would gather the blocks.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

_FEWEST = 1 << 16  # entries of an array that a loop is worth its start for
_COUNTS = (64, 32, 16, 8)  # of blocks


def summed(terms: Callable, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sums of terms(x) over the axes, which are kept as 1."""
    shape = _in_blocks(x.shape, axes)
    if shape is None:
        return jnp.sum(terms(x), axis=axes, keepdims=True)
    blocks = x.reshape(shape)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        return total + terms(lax.dynamic_index_in_dim(blocks, index, keepdims=False))

    total = lax.fori_loop(1, shape[0], add, terms(blocks[0]))
    merged = x.ndim - (len(shape) - 2)
    others = tuple(axis - merged + 1 for axis in axes if axis >= merged)
    return jnp.sum(total, axis=(0, *others)).reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])


def spread(terms: Callable, x: jax.Array, groups: jax.Array) -> jax.Array:
    """terms(x, groups), linear in what there is one of for each group, so that its transpose is such a sum."""
    axes = [axis for axis, (n, m) in enumerate(zip(x.shape, groups.shape, strict=False)) if n != m]
    shape = _in_blocks(x.shape, axes) if groups.ndim == x.ndim else None
    if shape is None:
        return terms(x, groups)
    rest = len(shape) - 2
    each = jnp.broadcast_to(groups.reshape(1, *groups.shape[x.ndim - rest :]), (shape[1], *shape[2:]))
    # Made again in the transpose, or it would keep each block in float64.
    block = jax.checkpoint(terms, prevent_cse=False)
    _, result = lax.scan(lambda _, part: (None, block(part, each)), None, x.reshape(shape))
    return result.reshape(x.shape)


def _in_blocks(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...] | None:
    """(blocks, rows, *rest), the rows along leading axes of the sum; None where a plain sum is as good."""
    if not shape or len(shape) - 1 in axes or math.prod(shape) < _FEWEST:
        return None
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    merged = next(axis for axis in range(len(shape)) if axis not in axes)
    rows = math.prod(shape[:merged])
    count = next((count for count in _COUNTS if rows % count == 0), None)
    return None if count is None else (count, rows // count, *shape[merged:])
