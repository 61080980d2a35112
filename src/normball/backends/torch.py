"""PyTorch tensors: on CPUs by the kernels, on other devices by `torch_portable`, everywhere with derivatives.

This file reads and checks. `torch_operators` does the work, in operators that torch.compile sees as one step each, and
`torch_gradients` stands around them with the derivatives of the definition.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normball import arguments, kernels
from normball.backends import torch_gradients
from normball.backends.torch_operators import count_write, in_memory, memory
from normball.kernels.overlap import check_apart, overlap

_CLAIMS = frozenset(
    ["float64", "float32", "float16", "bfloat16", "bounded", "tight", "subnormals", "per-group bounds"]
) | {"symbolic bounds", "gradient", "in place"}
SUPPORTS = {
    "PyTorch CPU": _CLAIMS | {"exact decision"},
    "PyTorch GPU": _CLAIMS,
}


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> Tensor:
    """Each group's norm as float64, the reduced axes kept as 1."""
    tensor, own_axes = _as_real(_checked(x, ord), axes)
    norms = torch_gradients.norms(tensor, own_axes, ord)
    return norms if tensor.ndim == x.ndim else norms.squeeze(-1)


def merge(summaries: Sequence[Tensor], ord: float) -> Tensor:
    """The norms of groups from those of their parts: the norm of the norms."""
    return summarise(torch.stack(torch.broadcast_tensors(*summaries)), (0,), ord)[0]


def norm(summary: Tensor, ord: float) -> Tensor:
    """The norms: on CPUs at most one ulp off, exact where a float64 holds the norm."""
    return summary


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> Tensor:
    """Every group inside its ball; into `out`, or a new tensor with its derivative."""
    if out is not None:
        return constrain_each([x], [max_norm], [axes], epsilon, ord, [out])[0]
    return _constrain(_checked(x, ord), max_norm, axes, epsilon, ord)


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list[Tensor]:
    """Every tensor as `constrain` would; those with an `out` in one call of the kernel."""
    tensors = [_checked(x, ord, index if len(xs) > 1 else None) for index, x in enumerate(xs)]
    jobs = list(zip(tensors, max_norms, axes, outs, strict=True))
    for index, (x, _, _, out) in enumerate(jobs):
        if out is not None:
            _check_out(out, x, index if len(xs) > 1 else None)
    if any(out is not None for out in outs):
        _write([job for job in jobs if job[3] is not None], epsilon, ord)
    return [
        _constrain(x, max_norm, own_axes, epsilon, ord) if out is None else out for x, max_norm, own_axes, out in jobs
    ]


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[Tensor], Tensor]:
    """All tensors as one group inside its ball, and its norm before."""
    tensors = [_checked(x, ord, index) for index, x in enumerate(xs)]
    bound, small = _bounds(tensors[0], max_norm, epsilon, ())
    reals = [_as_real(tensor)[0] for tensor in tensors]
    *constrained, total = torch_gradients.constrain_total(bound, small, ord, *reals)
    return [_like(y, x) for y, x in zip(constrained, tensors, strict=True)], total


def constrain_total_(xs: Sequence[Tensor], max_norm: Any, epsilon: Any, ord: float) -> Tensor:
    """All tensors as one group inside its ball, written over, without derivatives; its norm before."""
    tensors = [_checked(x, ord, index) for index, x in enumerate(xs)]
    for index, tensor in enumerate(tensors):
        _check_out(tensor, tensor, index)
    bound, small = _bounds(tensors[0], max_norm, epsilon, ())
    with torch.no_grad():
        return torch.ops.normball.constrain_total_([_as_real(tensor)[0] for tensor in tensors], bound, small, ord)


def _constrain(x: Tensor, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float) -> Tensor:
    bound, small = _bounds(x, max_norm, epsilon, _groups(x, axes))
    tensor, own_axes = _as_real(x, axes)
    return _like(torch_gradients.constrain(tensor, bound, small, own_axes, ord), x)


def _write(jobs: list[tuple], epsilon: Any, ord: float) -> None:
    """Every tensor of (tensor, bound, axes, out), constrained, into its out."""
    rows = [
        (*_as_real(x, own_axes), _as_real(out)[0], *_bounds(x, max_norm, epsilon, _groups(x, own_axes)))
        for x, max_norm, own_axes, out in jobs
    ]
    xs, axes, outs, bounds, smalls = zip(*rows, strict=True)
    with torch.no_grad():
        if all(_concrete(x) and _concrete(out) for x, out in zip(xs, outs, strict=True)):
            arrays, targets = [memory(x) for x in xs], [memory(out) for out in outs]
            check_apart(arrays, targets)
            kernels.constrain_each(arrays, targets, axes, [memory(b) for b in bounds], [memory(s) for s in smalls], ord)
            count_write(outs)
        else:
            for x, out, own_axes, bound, small in zip(xs, outs, axes, bounds, smalls, strict=True):
                out.copy_(torch.ops.normball.constrain(x, bound, small, own_axes, ord))


_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COMPLEX = {torch.complex64, torch.complex128}


def _checked(x: Any, ord: float, index: int | None = None) -> Tensor:
    """X, where it has a norm ball here."""
    what = arguments.entry("tensor_var", index)
    if x.dtype not in _DTYPES:
        if x.dtype not in _COMPLEX:
            raise arguments.wrong_dtype(str(x.dtype).removeprefix("torch."), what, ".to(torch.float32)")
        if ord != 2:
            message = f"ord={ord!r}: a complex tensor has order 2 only; for {what} pass its modulus, or ord=2"
            raise ValueError(message)
    if x.layout != torch.strided or x.is_nested:
        layout = str(x.layout).removeprefix("torch.")
        message = f"{what} of layout {layout}: must be dense; pass the values that it stores, or {what}.to_dense()"
        raise TypeError(message)
    return x


def _as_real(x: Tensor, axes: tuple[int, ...] = ()) -> tuple[Tensor, tuple[int, ...]]:
    """X, or a complex x as the pairs of its parts; and the axes of a group then."""
    if x.dtype not in _COMPLEX:
        return x, axes
    return torch.view_as_real(x.conj() if x.is_conj() else x), (*axes, x.ndim)  # parts of the same size either way


def _like(result: Tensor, x: Tensor) -> Tensor:
    """The result as complex numbers where x is complex."""
    if x.dtype not in _COMPLEX:
        return result
    return torch.view_as_complex(result).conj() if x.is_conj() else torch.view_as_complex(result)


def _groups(x: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of x's norms, the reduced axes kept as 1."""
    return tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))


def _bounds(x: Tensor, max_norm: Any, epsilon: Any, groups: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Both bounds of x's groups, as float64 tensors that broadcast against the norms of its real view."""
    bound, small = _bound("max_norm", max_norm, groups, x.device), _bound("epsilon", epsilon, groups, x.device)
    if x.dtype in _COMPLEX:
        return bound.unsqueeze(-1) if bound.ndim else bound, small.unsqueeze(-1) if small.ndim else small
    return bound, small


def _bound(name: str, value: Any, groups: tuple[int, ...], device: torch.device) -> Tensor:
    if type(value) is float:  # checked when it was read
        return torch.scalar_tensor(value, dtype=torch.float64)
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
    if _concrete(value) and not (value >= 0).all():
        raise arguments.negative_bound(name, value[~(value >= 0)].reshape(-1)[0].item())
    value = value.to(torch.float64)
    return value.to(device) if value.ndim else value  # a single number may stay where it is


def _concrete(value: Tensor) -> bool:
    """Whether its entries can be looked at without waiting for a device or for a transformation."""
    return not torch.compiler.is_compiling() and not torch_gradients.transformed() and in_memory(value)


def _check_out(out: Any, x: Tensor, index: int | None) -> None:
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
    elif torch.is_grad_enabled() and (out.requires_grad or x.requires_grad):
        rule, remedy = "no gradient passes through it", "call this under torch.no_grad(), or leave it out"
    elif _entries_overlap(out):
        rule = "several of its entries share memory"
    elif out is not x and _concrete(out) and _concrete(x) and overlap(memory(out), memory(x)):
        rule, remedy = f"it overlaps {name} without being it", f"pass {name} itself, or a fresh tensor"
    if rule:
        raise arguments.wrong_out(rule, remedy, index)


def _entries_overlap(x: Tensor) -> bool:
    """Whether two entries may lie at one address: each stride must reach beyond all that is inside of it."""
    reach = 0
    for stride, length in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return x.numel() > 0
        reach += stride * (length - 1)
    return False
