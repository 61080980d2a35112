"""Sums in float64, a block of an array at a time, which need no more than one block in float64.

XLA on a CPU takes 2 to 4 times as long over a plain sum of columns, and 10 times over one along the last axis whose
terms are more than a product; that one also keeps all terms. It is for one device: of an array that lies on several a
loop would gather the blocks.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

_FEWEST = 1 << 16  # entries of an array that a loop is worth its start for
_COUNTS = (64, 32, 16, 8)  # of blocks


def summed(terms: Callable, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sums of terms(x) over the axes, which are kept as 1: of columns in blocks of rows."""
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


def summed_apart(terms: Callable, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The same of terms that XLA fuses into no sum along the last axis: along that, too, in blocks."""
    shape = _in_blocks(x.shape, axes, last=True)
    if shape is None:
        return summed(terms, x, axes)
    merged = x.ndim - (len(shape) - 2)
    own = ([0] if 0 in axes else []) + [axis - merged + 1 for axis in axes if axis >= merged]
    parts = lax.map(lambda block: jnp.sum(terms(block), axis=own), x.reshape(shape))
    whole = jnp.sum(parts, axis=0) if 0 in axes else parts
    return whole.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)])


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


def _in_blocks(shape: tuple[int, ...], axes: Sequence[int], last: bool = False) -> tuple[int, ...] | None:
    """(blocks, rows, *rest), the rows along leading axes, of the sum or not as axis 0 is; None for a plain sum.

    For sums without the last axis, where axis 0 is taken to be of the sum, or for those along it.
    """
    if not shape or (len(shape) - 1 in axes) != last or math.prod(shape) < _FEWEST:
        return None
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    reduced = 0 in axes or not last
    merged = next((axis for axis in range(len(shape)) if (axis in axes) != reduced), len(shape))
    rows = math.prod(shape[:merged])
    count = next((count for count in _COUNTS if rows % count == 0), None)
    return None if count is None else (count, rows // count, *shape[merged:])
