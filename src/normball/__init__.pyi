"""The types of the public functions, for type checkers: an array comes back as what ``-x`` is.

Of a NumPy array that is one of the same dtype, of a `torch.nn.Parameter` a Tensor, of a `jax.Array` one of the same.
PyTensor's operations have no types: a variable there stands for what comes back, and of shared ones nothing is said.
No framework is imported, so none need be installed. `api.py` has the functions and their documentation.
"""

from collections.abc import Iterable
from typing import Any, Literal, Protocol, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "__version__",
    "compute_norms",
    "get_num_threads",
    "norm_constraint",
    "set_num_threads",
    "total_norm_constraint",
]

__version__: str

_Axes = SupportsIndex | Iterable[SupportsIndex] | None
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_G = TypeVar("_G", bound=_Graph)

class _Array(Protocol[_T_co]):
    """An array with memory, which no symbolic variable has."""

    def __array__(self) -> Any: ...
    def __neg__(self) -> _T_co: ...

class _Graph(Protocol):
    """A variable of PyTensor."""

    owner: Any
    def eval(self) -> Any: ...

class _Shared(Protocol):
    """A shared one. The result is a graph of it, which has no `get_value`."""

    def get_value(self, borrow: bool = ...) -> Any: ...

# Lists of NumPy arrays of one dtype would be arrays of that dtype; but most hold several shapes, or dtypes.
@overload
def norm_constraint(
    tensor_var: _Shared,
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: None = None,
) -> Any: ...
@overload
def norm_constraint(
    tensor_var: _G, max_norm: Any, norm_axes: _Axes = None, epsilon: Any = 1e-7, *, ord: float = 2, out: None = None
) -> _G: ...
@overload
def norm_constraint(
    tensor_var: _Array[_T],
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: Any = None,
) -> _T: ...
@overload
def norm_constraint(
    tensor_var: Iterable[_Shared],
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: None = None,
) -> list[Any]: ...
@overload
def norm_constraint(
    tensor_var: Iterable[_G],
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: None = None,
) -> list[_G]: ...
@overload
def norm_constraint(
    tensor_var: Iterable[NDArray[Any]],
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: Any = None,
) -> list[NDArray[Any]]: ...
@overload
def norm_constraint(
    tensor_var: Iterable[_Array[_T]],
    max_norm: Any,
    norm_axes: _Axes = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: Any = None,
) -> list[_T]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[_Shared], max_norm: Any, epsilon: Any = 1e-7, return_norm: bool = False, *, ord: float = 2
) -> Any: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[_G],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: Literal[False] = False,
    *,
    ord: float = 2,
) -> list[_G]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[NDArray[Any]],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: Literal[False] = False,
    *,
    ord: float = 2,
) -> list[NDArray[Any]]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[_Array[_T]],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: Literal[False] = False,
    *,
    ord: float = 2,
) -> list[_T]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[_G], max_norm: Any, epsilon: Any = 1e-7, return_norm: Literal[True] = ..., *, ord: float = 2
) -> tuple[list[_G], _G]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[NDArray[Any]],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: Literal[True] = ...,
    *,
    ord: float = 2,
) -> tuple[list[NDArray[Any]], NDArray[np.float64]]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[_Array[_T]],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: Literal[True] = ...,
    *,
    ord: float = 2,
) -> tuple[list[_T], _T]: ...
@overload
def total_norm_constraint(
    tensor_vars: Iterable[Any], max_norm: Any, epsilon: Any = 1e-7, return_norm: bool = False, *, ord: float = 2
) -> Any: ...
@overload
def compute_norms(array: _Shared, norm_axes: _Axes = None, *, ord: float = 2) -> Any: ...
@overload
def compute_norms(array: _G, norm_axes: _Axes = None, *, ord: float = 2) -> _G: ...
@overload
def compute_norms(array: NDArray[Any], norm_axes: _Axes = None, *, ord: float = 2) -> NDArray[np.float64]: ...
@overload
def compute_norms(array: _Array[_T], norm_axes: _Axes = None, *, ord: float = 2) -> _T: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
