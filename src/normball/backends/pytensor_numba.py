"""The C kernel inside PyTensor's compiled NUMBA functions, called by its symbol: no way through Python objects."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding
from numba import types
from pytensor.link.numba.dispatch.basic import numba_njit

from normball.kernels import _native, native

SYMBOL = "normball_constrain"
# PyTensor's cache on disk knows a function by its Op, not by its code: other code, or another kernel behind the
# symbol, must have another key.
_CODE = b"".join(Path(file).read_bytes() for file in (__file__, _native.__file__))
SALT = int(hashlib.sha256(_CODE).hexdigest()[:8], 16)

# Pointers as integers: the same registers, and `array.ctypes.data` gives them so.
binding.add_symbol(SYMBOL, _native.addresses[SYMBOL])
_constrain = types.ExternalFunction(SYMBOL, types.int32(*[types.int64] * 4))


def norm_constraint(op: Any, node: Any) -> Callable:
    """What `NormConstraint.perform` does, for the linker to compile."""
    x, max_norm, epsilon = node.inputs
    dtype, ord = native.DTYPES[x.dtype], native.ORDERS[op.ord]
    ndim, reduced, inplace = x.ndim, sum(1 << axis for axis in op.axes), bool(op.inplace)
    wide_bound, wide_epsilon = _as_float64(max_norm), _as_float64(epsilon)
    shape_of, strides_of = _shape_of(ndim), _strides_of(ndim)
    bound_strides, epsilon_strides = _bound_strides(max_norm.ndim, op.axes), _bound_strides(epsilon.ndim, op.axes)

    @numba_njit(fastmath=False)
    def call(x, y, shape, x_strides, y_strides, bound, bound_strides, small, small_strides):  # type: ignore[no-untyped-def]
        # Its caller holds all arrays until this returns; in one function, numba frees an array after its last name.
        array = np.empty(12, np.int64)  # normball_array
        array[0] = dtype
        array[1] = ndim
        array[2] = reduced
        array[3] = shape.ctypes.data
        array[4] = x.ctypes.data
        array[5] = x_strides.ctypes.data
        array[6] = y.ctypes.data
        array[7] = y_strides.ctypes.data
        array[8] = bound.ctypes.data
        array[9] = bound_strides.ctypes.data
        array[10] = small.ctypes.data
        array[11] = small_strides.ctypes.data
        _constrain(1, array.ctypes.data, ord, 0)
        return array

    @numba_njit(fastmath=False)
    def constrain(x, max_norm, epsilon):  # type: ignore[no-untyped-def]
        y = x if inplace else np.empty(x.shape, x.dtype)
        shape = shape_of(x)
        bound, small = wide_bound(max_norm), wide_epsilon(epsilon)
        # Checked before anything is written.
        to_bound, to_epsilon = bound_strides(bound, shape), epsilon_strides(small, shape)
        call(x, y, shape, strides_of(x), strides_of(y), bound, to_bound, small, to_epsilon)
        return y

    return constrain


def _as_float64(variable: Any) -> Callable:
    if variable.dtype == "float64":
        return numba_njit(lambda value: value)
    return numba_njit(lambda value: value.astype(np.float64))


def _shape_of(ndim: int) -> Callable:
    if ndim == 0:
        return numba_njit(lambda x: np.zeros(1, np.int64))
    return numba_njit(lambda x: np.array(x.shape, np.int64))


def _strides_of(ndim: int) -> Callable:
    if ndim == 0:
        return numba_njit(lambda x: np.zeros(1, np.int64))
    return numba_njit(lambda x: np.array(x.strides, np.int64))


def _bound_strides(ndim: int, axes: tuple[int, ...]) -> Callable:
    """Strides of a bound as the kernel reads them, zero where it is broadcast; refuses what does not broadcast."""
    if ndim == 0:
        return numba_njit(lambda bound, shape: np.zeros(max(len(shape), 1), np.int64))
    kept = np.array([axis not in axes for axis in range(ndim)])

    @numba_njit
    def strides(bound, shape):  # type: ignore[no-untyped-def]
        result = np.array(bound.strides, np.int64)
        for axis in range(ndim):
            length = bound.shape[axis]
            if length != 1 and not (kept[axis] and length == shape[axis]):
                raise ValueError("max_norm or epsilon: must broadcast against the norms, the reduced axes kept as 1")
            if length == 1:
                result[axis] = 0
        return result

    return strides
