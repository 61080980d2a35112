"""Which backend an array belongs to: a dict from type to module, filled on first sight of a type.

The only list of backends. A backend is imported when its first array arrives, never before.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

# The package that defines an array's type -> the backend that knows it. Later ones win over earlier ones in a call
# that mixes them: a NumPy array may stand beside a symbolic variable, as everywhere in PyTensor.
BACKENDS = {
    "numpy": "normball.backends.numpy",
    "pytensor": "normball.backends.pytensor",
}
_ORDER = list(BACKENDS)
_seen: dict[type, str | None] = {float: None, int: None}


def backend_for(*values: Any) -> ModuleType:
    """The backend of the values, some of which may be plain numbers."""
    names = {name for name in (_library(type(value)) for value in values) if name is not None}
    if not names:
        types = ", ".join(type(value).__name__ for value in values[:1]) or "nothing"
        message = (
            f"tensor_var of type {types}: must be an array of {' or '.join(BACKENDS)}; "
            "turn a list or number into one with numpy.asarray"
        )
        raise TypeError(message)
    return import_module(BACKENDS[max(names, key=_ORDER.index)])


def _library(kind: type) -> str | None:
    if kind not in _seen:
        roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
        _seen[kind] = next((root for root in roots if root in BACKENDS), None)
    return _seen[kind]
