"""Gradient clipping by the total norm: what `torch.nn.utils` has, exact, and right on any mix of sharded gradients."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normball import arguments
from normball.backends import torch_mesh
from normball.backends.torch_operators import readable
from normball.backends.torch_portable import Norms
from normball.torch import total
from normball.torch.gradients import (
    Gradient,
    Name,
    check_writable,
    of_parameter,
    of_tensor,
    read_gradient,
    read_gradients,
    read_norm_type,
    read_parameters,
    read_tensors,
    result_dtype,
)
from normball.torch.report import ClipReport

POLICIES = ("propagate", "raise", "skip", "zero")


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor] | None,
    max_norm: Any,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    nonfinite: str = "propagate",
    named: Any = None,
    groups: Iterable[Any] = (),
    report: ClipReport | None = None,
) -> Tensor:
    """Gradient clipping by the total norm, in place: all gradients as one group inside a ball.

    With n the p-norm of all entries of all gradients g, in exact arithmetic, and c the `max_norm`, each g becomes

        g            where n <= c  (the same bits)
        g * c / n    where n >  c

    and the norm of what comes out, in exact arithmetic, is at most c, whatever the dtype.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor or None
        Parameters, as of ``model.parameters()``; a generator will do. Those without a gradient are left out, and one
        that is there twice counts once. Gradients may be float64, float32, float16, bfloat16 or complex, dense or
        sparse, of mixed dtypes, on several devices, plain tensors and DTensors on one or several meshes. None where
        `named` has them.
    max_norm : float or Tensor
        The largest total norm allowed; a tensor of one number, too. `inf` means no constraint.
    norm_type : 1, 2 or inf, optional
        The order p of the norm. Complex gradients have order 2 only.
    error_if_nonfinite : bool, optional
        The same as ``nonfinite="raise"``.
    foreach : bool, optional
        Not used; it is here for programs that pass it.
    nonfinite : {"propagate", "raise", "skip", "zero"}, optional
        What becomes of gradients of which one holds an inf or NaN. "propagate": NaN in every entry. "raise": a
        RuntimeError that names the first such parameter, and nothing is written. "skip": every ``.grad`` becomes None,
        so that an optimizer leaves its parameters and its state alone. "zero": zeros. "raise" and "skip" wait for a
        GPU; the others never do. Finite gradients are finite, however large their norm.
    named : iterable of (str, Tensor), or dict, optional
        As ``model.named_parameters()``: names for errors and for the report, and, without `parameters`, these.
    groups : iterable of ProcessGroup, optional
        Groups of processes of which each holds other parameters, as the stages of a pipeline do: their norms are
        merged, in this order. Every rank of them must call this, also one without gradients.
    report : ClipReport, optional
        Where to note what was done; costs a second read of the gradients.

    Returns
    -------
    Tensor
        The total norm before, without dimensions, on the device of the first gradient; 0 where there is none. Its
        dtype is the one that those of the gradients promote to, and at least float32; rounded up, from a float64 that
        is at most an ulp off, and inf where it is beyond the dtype's range.

    Raises
    ------
    TypeError
        For gradients in place of parameters: plain tensors without ``.grad``, of which nothing would be clipped. For a
        `max_norm` that is None, text or bool; for DTensors that hold summands (``Partial``), flat parameters of
        FullyShardedDataParallel and parameters of ZeRO-3, of which only their trainers know where the rest is.
    ValueError
        For a `max_norm` that is negative or NaN (on a GPU: the gradients become NaN), an order other than 1, 2 and inf,
        gradients whose entries share memory.
    RuntimeError
        With ``nonfinite="raise"``. Nothing is written then, nor in any of the other cases.

    Notes
    -----
    Sums are kept in float64, whatever the dtypes, so nothing overflows: gradients of 1e25 are clipped to `max_norm`.
    Of plain tensors in the memory of the CPU the comparison n <= c is exact. Elsewhere a list whose norm is within
    2**-44 of c, relatively, may be rescaled although it complies, and nothing waits for the device.

    Plain tensors count once, as the same on all ranks, which data-parallel training has; of a DTensor each shard counts
    once, and its replicas do not. There is one small collective for each set of mesh dimensions over which
    gradients are sharded, however many there are, and one for each of `groups`. All ranks decide alike.

    Parameters of a pipeline's stage or an expert go with `groups`; those that several ranks of a group hold would count
    several times. Where a model has both, take their norms apart:

        dense = get_total_norm([p.grad for p in shared])
        experts = get_total_norm([p.grad for p in own], groups=[expert_group])
        clip_grads_with_norm_([*shared, *own], 1.0, get_total_norm([dense, experts]))

    Duplicates in a sparse gradient are summed first, so ``parameter.grad`` is replaced by what ``coalesce()`` gives.

    With `torch.amp.GradScaler`, call ``scaler.unscale_(optimizer)`` first, as for PyTorch's own.

    References
    ----------
    The signature is that of `torch.nn.utils.clip_grad_norm_`, which multiplies by ``c / (n + 1e-6)``. The method: R.
    Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import clip_grad_norm_
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_grad_norm_([weight], 1.0)
    tensor(5.)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    order, policy, bound = read_norm_type(norm_type), _policy(nonfinite, error_if_nonfinite), _bound(max_norm)
    names, listed = read_parameters(parameters, named)
    over = _groups(groups)
    gradients = read_gradients(names, listed, order)
    check_writable(gradients)
    dtype = result_dtype([gradient.stored for gradient in gradients])
    whole = not over and total.plain(gradients)
    if policy == "propagate" and report is None and whole and gradients:
        _store(gradients)
        return _rounded_up(total.constrain_(gradients, bound, order), dtype)
    before = _clip_measured(listed, gradients, bound, order, policy, over, report, whole)
    return _rounded_up(before, dtype)


@torch.no_grad()
def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    groups: Iterable[Any] = (),
) -> Tensor:
    """The total norm of tensors, gradients say: the p-norm of all their entries together.

    Parameters
    ----------
    tensors : Tensor or iterable of Tensor
        The tensors themselves: gradients, not the parameters that have them. Else as in `clip_grad_norm_`.
    norm_type, foreach, groups : optional
        As in `clip_grad_norm_`.
    error_if_nonfinite : bool, optional
        Whether an inf or NaN among the entries is an error; looking waits for a GPU.

    Returns
    -------
    Tensor
        As `clip_grad_norm_` returns it.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As from `clip_grad_norm_`.

    References
    ----------
    `torch.nn.utils.get_total_norm`.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import get_total_norm
    >>> get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    order, over = read_norm_type(norm_type), _groups(groups)
    listed = read_tensors("tensors", tensors)
    gradients = [read_gradient(index, None, tensor, order, of_tensor) for index, tensor in enumerate(listed)]
    measured = total.measure(gradients, order, over, _device(listed, over), each=error_if_nonfinite)
    if error_if_nonfinite and not measured.finite():
        raise _nonfinite(measured, range(len(gradients)), order, of_tensor)
    return _rounded_up(measured.total.value(), result_dtype(listed))


@torch.no_grad()
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: Any,
    total_norm: Any,
    foreach: bool | None = None,
) -> None:
    """Gradient clipping, in place, by a total norm that is known already, from `get_total_norm` say.

    With n the `total_norm` and c the `max_norm`, each gradient g becomes

        g            where n <= c  (the same bits)
        g * c / n    where n >  c

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        As in `clip_grad_norm_`.
    max_norm : float or Tensor
        As in `clip_grad_norm_`.
    total_norm : float or Tensor
        The norm; a tensor of one number, on any device. An infinite or NaN norm makes NaN.
    foreach : bool, optional
        Not used.

    Raises
    ------
    TypeError
        For gradients in place of parameters, of which nothing would be clipped; else as from `clip_grad_norm_`.
    ValueError
        As from `clip_grad_norm_`; for a `total_norm` that is no single number, or negative.

    Notes
    -----
    The result's norm is at most `max_norm` if the gradients' is at most `total_norm`, as what `get_total_norm` and
    `clip_grad_norm_` return is. Nothing is summed, so nothing is sent to other ranks.

    References
    ----------
    `torch.nn.utils.clip_grads_with_norm_`, to which gradients may be passed for parameters; it then does nothing.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import clip_grads_with_norm_
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_grads_with_norm_([weight], 1.0, 10.0)
    >>> weight.grad
    tensor([0.3000, 0.4000])
    """
    bound, norm = _bound(max_norm), _norm(total_norm)
    names, listed = read_parameters(parameters, None)
    gradients = read_gradients(names, listed, 2)
    check_writable(gradients)
    if readable(norm) and readable(bound) and norm <= bound:
        return
    _store(gradients)
    # The norm may be a float64 rounded to the nearest: its true value is within an ulp.
    total.write(gradients, Norms(norm, norm * 2.0**-52, torch.zeros_like(norm, dtype=torch.int64)), bound)


def _clip_measured(
    parameters: Sequence[Tensor],
    gradients: Sequence[Gradient],
    bound: Tensor,
    order: float,
    policy: str,
    over: Sequence[Any],
    report: ClipReport | None,
    whole: bool,
) -> Tensor:
    """Measure first, then write what the policy wants; the norm before, in float64."""
    names = [gradient.name for gradient in gradients]
    device = _device(parameters, over)
    measured = total.measure(gradients, order, over, device, each=report is not None or policy == "raise")
    before, finite = measured.total.value(), measured.finite()
    if policy == "raise" and not finite:
        raise _nonfinite(measured, names, order, of_parameter)
    if policy == "skip" and not finite:
        for parameter in parameters:
            parameter.grad = None
    else:
        _store(gradients)
        if not whole:
            total.write(gradients, measured.total, bound, finite if policy == "zero" else None)
        elif policy == "zero" and not finite:
            for gradient in gradients:
                gradient.values.zero_()
        elif gradients and not total.complies(measured.total, bound):
            before = total.constrain_(gradients, bound, order)
    if report is not None:
        known = torch.where(torch.isfinite(before), before, total.value(measured.total))
        report.record(known, bound, names, measured.names, measured.each, policy in ("skip", "zero"))
    return before


def _store(gradients: Sequence[Gradient]) -> None:
    """Give each parameter the gradient that is about to be written, where it is another."""
    for _, parameter, stored, values, *_ in gradients:
        if stored is not values and parameter is not None and parameter.grad is not stored:
            parameter.grad = stored


def _rounded_up(norm: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 norm in a dtype, never less than it was: a list that complies with it complies."""
    if dtype == torch.float64:
        return norm
    nearest = norm.to(dtype)
    above = torch.nextafter(nearest, torch.full_like(nearest, math.inf))  # torch.tensor would wait for the device
    return torch.where(nearest < norm, above, nearest)


def _bound(max_norm: Any) -> Tensor:
    """`max_norm` as float64, where it was; a number in the memory of the CPU."""
    return _number("max_norm", arguments.read_bound("max_norm", max_norm))


def _norm(total_norm: Any) -> Tensor:
    """`total_norm` likewise; NaN is one."""
    if total_norm is None or isinstance(total_norm, (str, bytes, bool)):
        raise TypeError(f"total_norm={total_norm!r}: must be a number or a tensor of one; get_total_norm gives it")
    return _number("total_norm", total_norm, nan=True)


def _number(name: str, value: Any, nan: bool = False) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.asarray(value), device="cpu")
    if torch_mesh.is_dtensor(value):
        value = value.full_tensor()
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise arguments.wrong_bound_dtype(name, str(value.dtype).removeprefix("torch."))
    if value.ndim:
        raise ValueError(f"{name} of shape {tuple(value.shape)}: must be a single number; pass {name}.squeeze()")
    if readable(value) and not (value >= 0 or (nan and value.isnan())):
        raise arguments.negative_bound(name, value.item())
    return value.detach().to(torch.float64).resolve_neg()


def _policy(nonfinite: Any, error_if_nonfinite: bool) -> str:
    if nonfinite not in POLICIES:
        message = f"nonfinite={nonfinite!r}: must be one of {', '.join(map(repr, POLICIES))}"
        raise ValueError(message)
    if error_if_nonfinite and nonfinite not in ("propagate", "raise"):
        message = f"nonfinite={nonfinite!r}: error_if_nonfinite=True asks for 'raise'; pass one of the two"
        raise ValueError(message)
    return "raise" if error_if_nonfinite else nonfinite


def _groups(groups: Any) -> list[Any]:
    """Process groups that this rank is in."""
    over = list(groups) if isinstance(groups, Iterable) else [groups]
    if over:
        import torch.distributed as dist

        for index, group in enumerate(over):
            what = arguments.entry("groups", index)
            if not isinstance(group, dist.ProcessGroup):
                rule = "must be a ProcessGroup that this rank is in; of a mesh pass mesh.get_group()"
                raise TypeError(f"{what} of type {type(group).__name__}: {rule}")
    return over


def _device(tensors: Sequence[Tensor], over: Sequence[Any]) -> torch.device:
    """Where the norm of no gradients is: with the parameters, or where a group can reduce it."""
    if tensors or not over:
        return tensors[0].device if tensors else torch.device("cpu")
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator()
    return torch.device("cpu") if accelerator is None or dist.get_backend(over[0]) in ("gloo", "mpi") else accelerator


def _nonfinite(
    measured: total.Measured, order: Sequence[Name], norm_type: float, title: Callable[[Name], str]
) -> RuntimeError:
    first = total.first_nonfinite(measured, order)
    where = f"{title(first)} is the first" if first is not None else "it lies on another rank of groups, the gradient"
    return RuntimeError(
        f"the total norm of order {norm_type} is {measured.total.value().item()}: {where} with an entry that is not "
        "finite; nothing was written. To leave out such steps pass nonfinite='skip'"
    )
