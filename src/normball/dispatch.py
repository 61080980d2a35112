"""Which backend an array belongs to: looked up by its type, found out on first sight of a type.

The only list of backends. A backend is imported when its first array arrives, never before. torch.compile traces
through this file: so it keeps what it found in dicts, and imports by statements.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from normball import arguments


def _numpy() -> ModuleType:
    from normball.backends import numpy

    return numpy


def _jax() -> ModuleType:
    from normball.backends import jax

    return jax


def _torch() -> ModuleType:
    from normball.backends import torch

    return torch


def _pytensor() -> ModuleType:
    from normball.backends import pytensor

    return pytensor


# The package that defines an array's type -> the backend that knows it. Later ones win over earlier ones in a call
# that mixes them: a NumPy array may stand beside a symbolic variable, as everywhere in PyTensor.
BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "numpy": _numpy,
    "jax": _jax,
    "torch": _torch,
    "pytensor": _pytensor,
}

_backends: dict[tuple[type, ...], ModuleType] = {}
_libraries: dict[type, str | None] = {float: None, int: None}  # torch.compile cannot walk their bases


def backend_for(*types: type) -> ModuleType:
    """The backend of an array's type, and of others in the same call, of bounds say, which may be plain numbers."""
    try:
        return _backends[types]
    except KeyError:
        pass
    check_type(types[0])
    libraries = [_library(kind) for kind in types]
    [*_, backend] = [load for library, load in BACKENDS.items() if library in libraries]
    _backends[types] = backend()
    return _backends[types]


def check_type(array: type, what: str = "tensor_var") -> None:
    """Refuse a type that no backend knows."""
    if _library(array) is None:
        raise TypeError(
            f"{what} of type {array.__name__}: must be an array of {' or '.join(BACKENDS)}; "
            "turn a list or number into one with numpy.asarray"
        )


def types_of(arrays: Sequence[Any], whole: type) -> set[type]:
    """The types in a list of arrays; refuses an entry that is none, or all of a list, [[1.0]] say, that holds none."""
    types = set(map(type, arrays))
    if None in map(_library, types):
        if not any(map(_library, types)):
            check_type(whole)
        for index, array in enumerate(arrays):
            check_type(type(array), arguments.entry("tensor_var", index))
    return types


def _library(kind: type) -> str | None:
    if kind not in _libraries:
        roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
        _libraries[kind] = next((root for root in roots if root in BACKENDS), None)
    return _libraries[kind]
