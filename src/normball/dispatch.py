"""Which backend an array belongs to: looked up by its type, found out on first sight of a type.

The only list of backends. A backend is imported when its first array arrives, never before.
"""

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from normball import arguments

# The package that defines an array's type -> the backend that knows it. Later ones win over earlier ones in a call
# that mixes them: a NumPy array may stand beside a symbolic variable, as everywhere in PyTensor.
BACKENDS = {
    "numpy": "normball.backends.numpy",
    "torch": "normball.backends.torch",
    "pytensor": "normball.backends.pytensor",
}
_ORDER = list(BACKENDS)


def _backend_for(array: type, *others: type) -> ModuleType:
    """The backend of an array's type, and of others in the same call, of bounds say, which may be plain numbers."""
    check_type(array)
    libraries = filter(None, map(_library, (array, *others)))
    return import_module(BACKENDS[max(libraries, key=_ORDER.index)])


# mypy takes no type for Hashable, which functools.cache asks for.
backend_for: Callable[..., ModuleType] = functools.cache(_backend_for)


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


@functools.cache
def _library(kind: type) -> str | None:
    roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((root for root in roots if root in BACKENDS), None)
