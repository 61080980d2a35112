"""What PyTorch's users pass in: which tensors have a norm ball here, their bounds, and where results may go."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from normball import arguments
from normball.backends import torch_gradients
from normball.backends.torch_operators import memory, readable
from normball.kernels.overlap import overlap

_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COMPLEX = {torch.complex64, torch.complex128}


def check(x: Any, ord: float, index: int | None = None) -> None:
    """Refuse what has no norm ball here."""
    if x.dtype not in _DTYPES:
        what = arguments.entry("tensor_var", index)
        if x.dtype not in _COMPLEX:
            raise arguments.wrong_dtype(str(x.dtype).removeprefix("torch."), what, ".to(torch.float32)")
        if ord != 2:
            message = f"ord={ord!r}: a complex tensor has order 2 only; for {what} pass its modulus, or ord=2"
            raise ValueError(message)
    if x.layout != torch.strided or x.is_nested:
        what, layout = arguments.entry("tensor_var", index), str(x.layout).removeprefix("torch.")
        message = f"{what} of layout {layout}: must be dense; pass the values that it stores, or {what}.to_dense()"
        raise TypeError(message)


def as_real(x: Tensor, axes: tuple[int, ...] = ()) -> tuple[Tensor, tuple[int, ...]]:
    """X, or a complex x as the pairs of its parts; and the axes of a group then."""
    if x.dtype not in _COMPLEX:
        return x, axes
    return torch.view_as_real(x.conj() if x.is_conj() else x), (*axes, x.ndim)  # parts of the same size either way


def like(result: Tensor, x: Tensor) -> Tensor:
    """The result as complex numbers where x is complex."""
    if x.dtype not in _COMPLEX:
        return result
    return torch.view_as_complex(result).conj() if x.is_conj() else torch.view_as_complex(result)


def groups(x: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of x's norms, the reduced axes kept as 1."""
    return tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))


def bounds(x: Tensor, max_norm: Any, epsilon: Any, groups: tuple[int, ...]) -> tuple[Any, Any]:
    """Both bounds of x's groups: floats, or float64 tensors that broadcast against the norms of its real view."""
    if type(max_norm) is float and type(epsilon) is float:  # checked when they were read
        return max_norm, epsilon
    pair = (bound("max_norm", max_norm, groups, x.device), bound("epsilon", epsilon, groups, x.device))
    if x.dtype in _COMPLEX:
        return _with_parts(pair[0]), _with_parts(pair[1])
    return pair


def _with_parts(value: Any) -> Any:
    """A bound of complex numbers as one of pairs of parts."""
    return value if type(value) is float or not value.ndim else value.unsqueeze(-1)


def bound(name: str, value: Any, groups: tuple[int, ...], device: torch.device) -> Any:
    """`max_norm` or `epsilon`, a float or a float64 tensor."""
    if type(value) is float:
        return value
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise arguments.wrong_bound_dtype(name, array.dtype)
        value = torch.from_numpy(array.astype(np.float64))
    if value.dtype in _COMPLEX or value.dtype == torch.bool:
        raise arguments.wrong_bound_dtype(name, str(value.dtype).removeprefix("torch."))
    lengths = zip(reversed(value.shape), reversed(groups), strict=False)
    if value.ndim > len(groups) or any(length not in (1, group) for length, group in lengths):
        raise arguments.wrong_bound_shape(name, value.shape, groups)
    value = value.to(torch.float64).resolve_neg()  # the kernels read what is in memory
    if value.ndim or device.type == "cpu":  # a single number may stay on the CPU, for all devices can read it there
        value = value.to(device)
    if concrete(value) and not (value >= 0).all():
        raise arguments.negative_bound(name, value[~(value >= 0)].reshape(-1)[0].item())
    return value


def derived(*values: Any) -> bool:
    """Whether what is made of these will have a derivative."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def concrete(value: Tensor) -> bool:
    """Whether its entries can be looked at, and written, without waiting for a device, and with nobody to tell."""
    return readable(value) and not torch_gradients.transformed()


def check_out(out: Any, x: Tensor, index: int | None) -> None:
    """Refuse an `out` that cannot take the result of x without spoiling anything."""
    name = arguments.entry("tensor_var", index)
    if not isinstance(out, Tensor):
        what = f"{arguments.entry('out', index)} of type {type(out).__name__}"
        raise TypeError(f"{what}: must be a tensor like {name}; leave it out for a new one")
    rule, remedy = "", f"pass torch.empty_like({name})"
    if out.shape != x.shape:
        rule = f"its shape {tuple(out.shape)} is not {name}'s {tuple(x.shape)}"
    elif out.dtype != x.dtype:
        rule = f"its dtype {out.dtype} is not {name}'s {x.dtype}"
    elif out.device != x.device:
        rule = f"its device {out.device} is not {name}'s {x.device}"
    elif derived(out, x):
        rule, remedy = "no gradient passes through it", "call this under torch.no_grad(), or leave it out"
    elif not out.is_contiguous() and entries_overlap(out):
        rule = "several of its entries share memory"
    elif out is not x and concrete(out) and concrete(x) and overlap(memory(out), memory(x)):
        rule, remedy = f"it overlaps {name} without being it", f"pass {name} itself, or a fresh tensor"
    if rule:
        raise arguments.wrong_out(rule, remedy, index)


def entries_overlap(x: Tensor) -> bool:
    """Whether two entries may lie at one address: each stride must reach beyond all that is inside of it."""
    reach = 0
    for stride, length in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return x.numel() > 0
        reach += stride * (length - 1)
    return False
