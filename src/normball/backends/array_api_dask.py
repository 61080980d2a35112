"""dask arrays: each chunk by `array_api_portable`, norms merged as a tree; nothing is computed before it is asked for.

A chunk is read for its norm, and again to be rescaled. If both were one task of the graph, every chunk would be kept
until the last norm is known. So the second use is of a clone of the array's graph: read, or made, twice, never kept.
"""

import functools
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.graph_manipulation import clone

from normball.backends import array_api_portable as portable


def check(chunk: Any, what: str) -> None:
    """Refuse chunks that have no norm here."""
    if isinstance(chunk, np.ma.MaskedArray):
        raise TypeError(f"{what}: chunks of masked arrays have no norm; pass dask.array.ma.filled({what}, 0)")
    package = type(chunk).__module__.partition(".")[0]
    if package in ("scipy", "sparse"):
        kind = f"{package}.{type(chunk).__name__}"
        raise TypeError(f"{what}: chunks of {kind} have no norm; make them dense, with {what}.map_blocks")


def norms(x: da.Array, axes: tuple[int, ...], ord: float, wide: bool) -> da.Array:
    """The words of every group's norm along a new last axis, reduced axes kept as 1."""
    chunks = tuple((1,) * len(own) if axis in axes else own for axis, own in enumerate(x.chunks))
    of_chunk = functools.partial(_norms_of_chunk, axes=axes, ord=ord, wide=wide)
    words = x.map_blocks(of_chunk, chunks=(*chunks, (4,)), new_axis=x.ndim, dtype=float, meta=_meta(x, x.ndim + 1))
    if _whole(x, axes):
        return words
    return _merged(words, axes, ord)


def value(words: da.Array) -> da.Array:
    """The norms as float64."""
    return words.map_blocks(_value_of_chunk, drop_axis=words.ndim - 1, dtype=float, meta=_meta(words, words.ndim - 1))


def constrain(x: da.Array, max_norm: da.Array, axes: tuple[int, ...], epsilon: da.Array, ord: float) -> da.Array:
    """Every group inside its ball."""
    words = norms(x, axes, ord, x.dtype == np.float64)
    return _rescaled(x if _whole(x, axes) else clone(x), words, max_norm, epsilon)


def constrain_total(
    xs: Sequence[da.Array], max_norm: da.Array, epsilon: da.Array, ord: float
) -> tuple[list[da.Array], da.Array]:
    """All arrays as one group inside its ball, and its norm before."""
    parts = [norms(x, tuple(range(x.ndim)), ord, True).reshape(4) for x in xs]
    total = _merged(da.stack(parts), (0,), ord)[0]
    return [_rescaled(clone(x), total, max_norm, epsilon) for x in xs], value(total)


def _whole(x: da.Array, axes: tuple[int, ...]) -> bool:
    """Whether every group lies in one chunk, so that no chunk waits for others."""
    return all(x.numblocks[axis] == 1 for axis in axes)


def _merged(words: da.Array, axes: tuple[int, ...], ord: float) -> da.Array:
    step = functools.partial(_merged_chunk, ord=ord)
    return da.reduction(
        words, step, step, axis=axes, keepdims=True, dtype=float, concatenate=True, meta=_meta(words, words.ndim)
    )


def _rescaled(x: da.Array, words: da.Array, max_norm: da.Array, epsilon: da.Array) -> da.Array:
    separate = [words[..., index] for index in range(4)]  # which broadcast against x, chunk by chunk
    bounds = (_aligned(max_norm, x), _aligned(epsilon, x))
    return da.map_blocks(_rescaled_chunk, x, *separate, *bounds, dtype=x.dtype, meta=x._meta)


def _aligned(bound: da.Array, x: da.Array) -> da.Array:
    """A bound in x's chunks, where it is not of length 1; unknown lengths are the caller's to align."""
    own = zip(bound.chunks, x.chunks[x.ndim - bound.ndim :], strict=True)
    chunks = tuple(mine if sum(mine) == 1 else theirs for mine, theirs in own)
    return bound if np.isnan(sum(map(sum, chunks))) else bound.rechunk(chunks)


def _norms_of_chunk(x: Any, axes: tuple[int, ...], ord: float, wide: bool) -> Any:
    check(x, "tensor_var")  # dask may not have known
    xp = portable.namespace(x)
    with portable.quiet():
        return xp.stack(portable.norms(xp, x, axes, ord, wide), axis=-1)


def _merged_chunk(words: Any, axis: tuple[int, ...], keepdims: bool, ord: float) -> Any:
    xp = portable.namespace(words)
    with portable.quiet():
        parts = portable.Norms(*(words[..., index] for index in range(4)))
        return xp.stack(portable.merged(xp, parts, axis, ord), axis=-1)


def _value_of_chunk(words: Any) -> Any:
    xp = portable.namespace(words)
    with portable.quiet():
        return portable.value(xp, portable.Norms(*(words[..., index] for index in range(4))))


def _rescaled_chunk(x: Any, high: Any, low: Any, exponent: Any, error: Any, max_norm: Any, epsilon: Any) -> Any:
    norms = portable.Norms(high, low, exponent, error)
    with portable.quiet():
        bounds = (portable.as_float64(bound, x) for bound in (max_norm, epsilon))
        return portable.rescaled(portable.namespace(x), x, norms, *bounds)


def _meta(like: da.Array, ndim: int) -> Any:
    """An empty float64 array of the chunks' library."""
    return meta_from_array(like._meta, ndim=ndim, dtype=np.float64)
