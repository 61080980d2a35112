"""The total norm of gradients that may lie on several devices and ranks, and what is made of them with it.

Each rank takes the norm of what it holds, in two words and an exponent. Where others hold more, all of them get each
other's norms, and merge them in the same order. So nothing overflows, all decide alike, and there is one small
collective for each set of sharded mesh dimensions, whatever the number of gradients, and one for each process group.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normball.backends import torch_mesh, torch_operators
from normball.backends.torch_portable import Norms, merged, merged_last, norms, rescale_
from normball.torch.gradients import Gradient, Name

_WORDS = len(Norms._fields)
_CLEARLY = 1 - 2.0**-40
_LARGEST = torch.finfo(torch.float64).max


class Measured(NamedTuple):
    """The total norm; and, where asked for, each gradient's, in the order of these names."""

    total: Norms
    names: list[Name]
    each: Tensor | None

    def finite(self) -> Tensor:
        """Whether all entries are, however large the norm."""
        return torch.isfinite(self.total.high)


def plain(gradients: Sequence[Gradient]) -> bool:
    """Whether the kernels can do all at once, in the memory of this process."""
    compiling = torch.compiler.is_compiling()  # to one operator, which looks where they are
    here = torch_operators.in_memory
    return all(mesh is None and (compiling or here(values)) for _, _, _, values, mesh, _ in gradients)


def measure(
    gradients: Sequence[Gradient], ord: float, groups: Sequence[Any], device: torch.device, each: bool = False
) -> Measured:
    """The total norm on the device of the first gradient (of none: on `device`); `each` for that of every gradient."""
    sets: dict[tuple, list[Gradient]] = {}
    for gradient in gradients:
        sets.setdefault((gradient.mesh, gradient.dims) if gradient.dims else (None, ()), []).append(gradient)
    here = gradients[0].values.device if gradients else device
    words = not (plain(gradients) and not groups)
    locals_ = [_local([gradient.values for gradient in members], ord, words) for members in sets.values()]
    totals, singles = _across(list(sets), locals_, ord, each)
    total = _merged(totals, ord, here) if totals else _zero(here)
    for group in groups:
        total = _over(total, group, ord)
    names = [gradient.name for members in sets.values() for gradient in members]
    return Measured(total, names, torch.cat([single.to(here) for single in singles]) if each and singles else None)


def complies(total: Norms, max_norm: Tensor) -> bool:
    """Whether the norm is so far below the bound that it needs no exact decision, where looking waits for nothing."""
    readable = torch_operators.readable
    return readable(total.high) and readable(max_norm) and bool(total.value() < max_norm * _CLEARLY)


def constrain_(gradients: Sequence[Gradient], max_norm: Tensor, ord: float) -> Tensor:
    """All gradients, which are plain, onto the ball as the kernels decide, exactly; the norm before."""
    return torch_operators.constrain_total_in_memory_([gradient.values for gradient in gradients], max_norm, ord)


def write(gradients: Sequence[Gradient], total: Norms, max_norm: Tensor, zero_unless: Tensor | None = None) -> None:
    """Gradients of this total norm onto the ball, in place; zeros, unless this flag is up."""
    if complies(total, max_norm):
        return
    moved: dict[torch.device, Norms] = {}
    epsilon = torch.zeros((), dtype=torch.float64, device="cpu")
    for gradient in gradients:
        values = gradient.values
        if values.device not in moved:
            moved[values.device] = Norms(*(_moved(word, values.device) for word in total))
        bound = max_norm if max_norm.is_cpu else _moved(max_norm, values.device)
        rescale_(values, moved[values.device], bound, epsilon)
        if zero_unless is not None:
            values.masked_fill_(~_moved(zero_unless, values.device), 0)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """X on a device; without waiting, but for the CPU, which would read it before it is there."""
    return x.to(device, non_blocking=device.type != "cpu")


def value(norm: Norms) -> Tensor:
    """The norm in float64; the largest number there is where it is finite, but beyond."""
    return torch.where(torch.isfinite(norm.high), norm.value().clamp(max=_LARGEST), norm.high)


def _local(tensors: Sequence[Tensor], ord: float, words: bool) -> Norms:
    """The norm of each tensor, as vectors; of float64 in two words where a factor is to be made of it."""
    if all(torch_operators.in_memory(x) and not (words and x.dtype == torch.float64) for x in tensors):
        high = torch_operators.norms_in_memory(tensors, ord)
        if not any(x.dtype == torch.float64 for x in tensors):
            return _one_word(high)
        # A norm beyond float64, which only float64 entries have, is inf here; so is one of entries that are not finite.
        if torch.isfinite(high).all():
            mantissa, exponent = torch.frexp(high)  # whose squares are in range
            return Norms(mantissa, torch.zeros_like(mantissa), exponent.to(torch.int64))
    device = tensors[0].device
    zero = _zero(device)
    parts: list[Norms] = [zero] * len(tensors)
    batches: dict[tuple, list[int]] = {}
    for index, x in enumerate(tensors):
        if x.dtype == torch.float64:
            parts[index] = Norms(*(word.reshape(()) for word in norms(x, range(x.ndim), ord)))
        elif x.numel():
            batches.setdefault((x.device, x.dtype), []).append(index)
    for indices in batches.values():  # squares of float32 and narrower are exact in float64, and within its range
        batch = torch._foreach_norm([tensors[index] for index in indices], ord, dtype=torch.float64)
        for index, high in zip(indices, batch, strict=True):
            parts[index] = zero._replace(high=high)
    return Norms(*(torch.stack([word.to(device) for word in words]) for words in zip(*parts, strict=True)))


def _across(
    keys: Sequence[tuple], locals_: Sequence[Norms], ord: float, each: bool
) -> tuple[list[Norms], list[Tensor]]:
    """The norm of each set of gradients over all its ranks, and its gradients' norms, in one collective per set."""
    mine = [merged_last(own, ord) for own in locals_]
    singles = [value(own) if each else own.high[:0] for own in locals_]
    rows = [torch.cat([_row(norm), own]) for norm, own in zip(mine, singles, strict=True)]
    gathered = torch_mesh.all_gather(rows, [mesh for mesh, _ in keys], [dims for _, dims in keys])
    for index, (_, dims) in enumerate(keys):
        if dims:
            mine[index] = _of_rows(gathered[index], ord)
            singles[index] = value(norms(gathered[index][:, _WORDS:], (0,), ord))[0]
    return mine, singles


def _over(total: Norms, group: Any, ord: float) -> Norms:
    """The norm of the totals of a process group's ranks."""
    collectives = torch.ops._c10d_functional
    rows = collectives.all_gather_into_tensor(_row(total)[None], group.size(), group.group_name)
    return _of_rows(collectives.wait_tensor(rows), ord)


def _row(norm: Norms) -> Tensor:
    return torch.stack([word.to(torch.float64) for word in norm])


def _of_rows(rows: Tensor, ord: float) -> Norms:
    """The norm of the norms that ranks have sent."""
    high, low, exponent = rows[:, :_WORDS].T
    return merged_last(Norms(high, low, exponent.to(torch.int64)), ord)


def _merged(parts: Sequence[Norms], ord: float, device: torch.device) -> Norms:
    """The norm of the norms, on this device."""
    first, *rest = (Norms(*(word.to(device) for word in part)) for part in parts)
    return merged([first, *rest], ord) if rest else first


def _one_word(high: Tensor) -> Norms:
    return Norms(high, torch.zeros_like(high), torch.zeros_like(high, dtype=torch.int64))


def _zero(device: torch.device) -> Norms:
    return _one_word(torch.zeros((), dtype=torch.float64, device=device))


def first_nonfinite(measured: Measured, order: Sequence[Name]) -> Name | None:
    """The first gradient, in this order, that has an entry that is not finite; waits for the device."""
    if measured.each is None:
        return None
    spoilt = {
        name for name, norm in zip(measured.names, measured.each.tolist(), strict=True) if not math.isfinite(norm)
    }
    return next((name for name in order if name in spoilt), None)
