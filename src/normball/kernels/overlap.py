"""Which arrays share memory: what is written must not be what something else is read from."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from normball import arguments


def overlap(out: np.ndarray, x: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype share memory, without being the same entries of it."""
    if not np.may_share_memory(out, x) or (out.ctypes.data == x.ctypes.data and out.strides == x.strides):
        return False
    return np.shares_memory(out, x)


def check_apart(xs: Sequence[np.ndarray], outs: Sequence[Any]) -> None:
    """Refuse an out that shares memory with another entry's x or out: no order of reading and writing is promised."""
    written = [(index, "out", out) for index, out in enumerate(outs) if out is not None]
    if not written:
        return
    arrays = [(index, "tensor_var", x) for index, x in enumerate(xs)] + written
    entry_of: dict[int, int] = {}
    if all(array.flags.owndata and entry_of.setdefault(id(array), index) == index for index, _, array in arrays):
        return  # different owners of memory share none
    reaching: list = []  # those that may share memory with what comes next by address
    spans = sorted(((*_span(array), index, name, array) for index, name, array in arrays), key=operator.itemgetter(0))
    for low, high, *this in spans:
        reaching = [(end, other) for end, other in reaching if end > low]
        for _, other in reaching:
            (index, name, array), (other_index, other_name, other_array) = sorted((this, other), key=_reads)
            if index != other_index and name == "out" and np.shares_memory(array, other_array):
                rule = f"it overlaps {arguments.entry(other_name, other_index)}"
                raise arguments.wrong_out(rule, "pass arrays with memory of their own", index)
        reaching.append((high, this))


def _reads(array: Sequence) -> tuple[bool, int]:
    index, name, _ = array
    return name == "tensor_var", -index


def _span(x: np.ndarray) -> tuple[int, int]:
    """The addresses of x's first byte, and of the one after its last."""
    reaches = [(length - 1) * step for length, step in zip(x.shape, x.strides, strict=True)] if x.size else []
    low = x.ctypes.data + sum(reach for reach in reaches if reach < 0)
    return low, low + sum(map(abs, reaches)) + (x.itemsize if x.size else 0)
