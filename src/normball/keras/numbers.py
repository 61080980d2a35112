"""Numbers that the caller wrote: bounds are floats here, as Keras saves them and compiles them into a step."""

from typing import Any

from normball import arguments


def read_number(name: str, value: Any) -> float:
    """A checked float."""
    if value is None or isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name}={value!r}: must be a number >= 0; pass a float")
    number = arguments.read_bound(name, value)
    if isinstance(number, float):
        return number
    if getattr(number, "ndim", None) != 0:
        raise TypeError(f"{name} of type {type(value).__name__}: must be a number; pass a float")
    return read_number(name, float(number))
