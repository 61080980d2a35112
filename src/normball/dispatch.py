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


def _array_api() -> ModuleType:
    from normball.backends import array_api

    return array_api


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
# "array_api" is no package, but every library that has no backend of its own and keeps to the Array API standard.
BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "numpy": _numpy,
    "array_api": _array_api,
    "jax": _jax,
    "torch": _torch,
    "pytensor": _pytensor,
}

# Where types are arrays of the standard without saying so.
WRAPPED = ("cupy.", "dask.array.")

# Packages whose arrays no backend takes -> what to do instead.
REMEDIES = {
    "sparse": "it must be dense; pass {0}.todense(), or constrain the values that it stores",
    "scipy": "it must be dense; pass {0}.toarray(), or constrain the values that it stores",
    "xarray": "use normball.xarray, which takes the names of dimensions; or pass {0}.data",
    "zarr": "it lies in storage; pass dask.array.from_zarr({0}), and write the result with dask.array.to_zarr",
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
    if "array_api" in libraries and not {"array_api", "numpy", None}.issuperset(libraries):
        names = {_package(kind) if _library(kind) == "array_api" else _library(kind) or "numpy" for kind in types}
        raise TypeError(f"arrays of {' and '.join(sorted(names - {'numpy'}))} in one call: pass arrays of one library")
    [*_, backend] = [load for library, load in BACKENDS.items() if library in libraries]
    _backends[types] = backend()
    return _backends[types]


def check_type(array: type, what: str = "tensor_var") -> None:
    """Refuse a type that no backend knows."""
    if _library(array) is None:
        package = _package(array)
        if package in REMEDIES:
            raise TypeError(f"{what} of type {package}.{array.__name__}: {REMEDIES[package].format(what)}")
        libraries = " or ".join(name for name in BACKENDS if name != "array_api")
        raise TypeError(
            f"{what} of type {array.__name__}: must be an array of {libraries}, or of the Array API standard; "
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
        modules = [f"{base.__module__}." for base in kind.__mro__]
        roots = [module.partition(".")[0] for module in modules]
        known = next((root for root in roots if root in BACKENDS), None)
        standard = hasattr(kind, "__array_namespace__") or any(module.startswith(WRAPPED) for module in modules)
        _libraries[kind] = known or ("array_api" if standard and REMEDIES.keys().isdisjoint(roots) else None)
    return _libraries[kind]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
