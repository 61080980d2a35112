"""Derivatives of the operators, as the definition has them; themselves in plain operations, to be differentiated again.

With n the norm of a group v, u the derivative of n, c and e the bounds, s = c / (n + e) and t = v / (n + e):

    dy = dv                                   where n <= c
       = s dv + t (dc - s (dn + de))          where n >  c,      dn = <u, dv>

All in float64, where no entry of a narrower tensor comes near the limits; quotients are formed of v and n themselves,
so that float64 tensors stay within them too. Where n itself is beyond them v, c and e are taken smaller, which changes
no quotient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normball.backends import torch_operators  # noqa: F401  defines torch.ops.normball

OUT_OF_RANGE = 64  # doublings that a norm may be beyond float64


def transformed() -> bool:
    """Whether torch.func is at work, or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def constrain(x: Tensor, max_norm: Any, epsilon: Any, axes: tuple[int, ...], ord: float) -> Tensor:
    """Every group inside its ball."""
    return _apply(_Constrain, x, as_tensor(max_norm), as_tensor(epsilon), axes, ord)


def norms(x: Tensor, axes: tuple[int, ...], ord: float, max_norm: Tensor | None = None) -> Tensor:
    """The norms as float64, reduced axes kept as 1; given a bound they compare with it as the exact norms do."""
    return _apply(_Norms, x, axes, ord, max_norm)


def constrain_total(max_norm: Any, epsilon: Any, ord: float, *xs: Tensor) -> tuple[Tensor, ...]:
    """All tensors as one group inside its ball, and behind them its norm before."""
    return _apply(_ConstrainTotal, as_tensor(max_norm), as_tensor(epsilon), ord, *xs)


def as_tensor(bound: Any) -> Tensor:
    """A bound as the operators take it."""
    return torch.scalar_tensor(bound, dtype=torch.float64, device="cpu") if type(bound) is float else bound


def _apply(function: Any, *args: Any) -> Any:
    """The Function of these arguments; without the machinery of autograd where nothing will be differentiated."""
    compiling = torch.compiler.is_compiling()
    wanted = torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
    if wanted or (not compiling and transformed()):
        return (function if compiling else function.anywhere).apply(*args)
    return function.forward(*args)


def sum_over(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The sum over these axes, which are kept; over none of them x itself."""
    return x.sum(tuple(axes), keepdim=True) if axes else x


def slope_of(x: Tensor, norms: Tensor, axes: tuple[int, ...], ord: float) -> Tensor:
    """The derivative of the norm: v / n, signs, or the largest entries' signs, shared out; zero at zero."""
    if ord == 2:
        return x / torch.where(norms > 0, norms, 1)
    if ord == 1:
        return torch.sign(x)
    largest = torch.where(x.abs() >= norms, torch.sign(x), 0)
    return largest / sum_over(largest.abs(), axes).clamp(min=1)


class _Norms(Function):
    anywhere: Any

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...], ord: float, max_norm: Tensor | None) -> Tensor:
        return torch.ops.normball.norms(x, axes, ord, max_norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.axes, ctx.ord, _ = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x = ctx.saved_tensors[0]
        own = norms(x, ctx.axes, ctx.ord)
        return (gradient * slope_of(x.to(torch.float64), own, ctx.axes, ctx.ord)).to(x.dtype), None, None, None


class _NormsAnywhere(_Norms):
    @staticmethod
    def jvp(ctx: Any, step: Tensor, *rest: Any) -> Tensor:
        x, own = ctx.saved_tensors
        return sum_over(slope_of(x.to(torch.float64), own, ctx.axes, ctx.ord) * step, ctx.axes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, axes: tuple[int, ...], ord: float, max_norm: Tensor | None) -> tuple:
        x = _batched(x, in_dims[0], info.batch_size)
        bound = None if max_norm is None else _batched_bound(max_norm, in_dims[3], x.ndim)
        return norms(x, tuple(axis + 1 for axis in axes), ord, bound), 0


_Norms.anywhere = _NormsAnywhere


class _Constrain(Function):
    """torch.compile takes it as it is; `anywhere` adds what torch.func wants, which torch.compile refuses."""

    anywhere: Any

    @staticmethod
    def forward(x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: tuple[int, ...], ord: float) -> Tensor:
        return torch.ops.normball.constrain(x, max_norm, epsilon, axes, ord)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.axes, ctx.ord = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, max_norm, epsilon = ctx.saved_tensors
        complies, scale, direction, slope = _terms(x, max_norm, epsilon, ctx.axes, ctx.ord)
        wide = gradient.to(torch.float64)
        along = sum_over(wide * direction, ctx.axes)
        to_x = torch.where(complies, wide, scale * (wide - along * slope)).to(x.dtype)
        to_bound = torch.where(complies, 0, along).sum_to_size(max_norm.shape)
        to_epsilon = torch.where(complies, 0, -scale * along).sum_to_size(epsilon.shape)
        return to_x, to_bound, to_epsilon, None, None


class _ConstrainAnywhere(_Constrain):
    @staticmethod
    def jvp(ctx: Any, step: Any, bound_step: Any, epsilon_step: Any, *rest: Any) -> Tensor:
        x, max_norm, epsilon = ctx.saved_tensors
        complies, scale, direction, slope = _terms(x, max_norm, epsilon, ctx.axes, ctx.ord)
        own = torch.zeros_like(direction) if step is None else step.to(torch.float64)
        inward = sum_over(slope * own, ctx.axes) + (0 if epsilon_step is None else epsilon_step)
        radial = (0 if bound_step is None else bound_step) - scale * inward
        return torch.where(complies, own, scale * own + direction * radial).to(x.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: tuple, ord: float) -> tuple:
        x = _batched(x, in_dims[0], info.batch_size)
        bound, small = _batched_bound(max_norm, in_dims[1], x.ndim), _batched_bound(epsilon, in_dims[2], x.ndim)
        return constrain(x, bound, small, tuple(axis + 1 for axis in axes), ord), 0


_Constrain.anywhere = _ConstrainAnywhere


def _terms(x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: tuple[int, ...], ord: float) -> tuple[Tensor, ...]:
    """Whether a group complies, s, t and u."""
    own = norms(x, axes, ord, max_norm)
    complies = own <= max_norm
    if x.dtype == torch.float64:
        x, max_norm, epsilon = (value * in_range(own) for value in (x, max_norm, epsilon))
        own = norms(x, axes, ord)
    return terms_of(x.to(torch.float64), own, complies, max_norm, epsilon, axes, ord)


def in_range(norms: Tensor) -> Tensor:
    """A power of two for each group, by which its norm is in the range of float64."""
    return torch.where(norms == math.inf, 2.0**-OUT_OF_RANGE, torch.ones_like(norms))


def terms_of(
    x: Tensor, norms: Tensor, complies: Tensor, max_norm: Tensor, epsilon: Tensor, axes: tuple[int, ...], ord: float
) -> tuple[Tensor, ...]:
    denominator = torch.where(complies, 1, norms + epsilon)
    scale = torch.where(complies, 1, max_norm) / denominator
    return complies, scale, x / denominator, slope_of(x, norms, axes, ord)


class _ConstrainTotal(Function):
    anywhere: Any

    @staticmethod
    def forward(max_norm: Tensor, epsilon: Tensor, ord: float, *xs: Tensor) -> tuple[Tensor, ...]:
        constrained, total = torch.ops.normball.constrain_total(xs, max_norm, epsilon, ord)
        return *constrained, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        max_norm, epsilon, ctx.ord, *xs = inputs
        ctx.set_materialize_grads(False)  # adding a zero would lose the sign of another
        ctx.save_for_backward(max_norm, epsilon, output[-1], *xs)
        ctx.save_for_forward(max_norm, epsilon, output[-1], *xs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple:
        max_norm, epsilon, settled, *xs = ctx.saved_tensors
        *to_results, to_total = gradients
        terms = _terms_of_all(xs, settled, max_norm, epsilon, ctx.ord)
        wides = _wide(to_results, xs)
        along = sum((wide * direction).sum() for wide, (_, _, direction, _) in zip(wides, terms, strict=True))
        to_xs = []
        for x, wide, (complies, scale, _, slope) in zip(xs, wides, terms, strict=True):
            to_x = torch.where(complies, wide, scale * (wide - along * slope))
            to_xs.append((to_x if to_total is None else to_x + to_total * slope).to(x.dtype))
        complies, scale, *_ = terms[0]
        return torch.where(complies, 0, along), torch.where(complies, 0, -scale * along), None, *to_xs


class _ConstrainTotalAnywhere(_ConstrainTotal):
    @staticmethod
    def jvp(ctx: Any, bound_step: Any, epsilon_step: Any, _: None, *steps: Any) -> tuple:
        max_norm, epsilon, settled, *xs = ctx.saved_tensors
        terms = _terms_of_all(xs, settled, max_norm, epsilon, ctx.ord)
        wides = _wide(steps, xs)
        along = sum((wide * slope).sum() for wide, (*_, slope) in zip(wides, terms, strict=True))
        inward = along + (0 if epsilon_step is None else epsilon_step)
        radial = (0 if bound_step is None else bound_step) - terms[0][1] * inward
        moved = [
            torch.where(complies, wide, scale * wide + direction * radial).to(x.dtype)
            for x, wide, (complies, scale, direction, _) in zip(xs, wides, terms, strict=True)
        ]
        return *moved, along

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        """One list after the other: lists of a batch are rare, and have no operator of their own."""
        pairs = list(zip(args, in_dims, strict=True))
        each = [
            _ConstrainTotalAnywhere.apply(*(arg if dim is None else arg.select(dim, index) for arg, dim in pairs))
            for index in range(info.batch_size)
        ]
        results = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return results, (0,) * len(results)


_ConstrainTotal.anywhere = _ConstrainTotalAnywhere


def _terms_of_all(xs: Sequence[Tensor], settled: Tensor, max_norm: Tensor, epsilon: Tensor, ord: float) -> list[tuple]:
    """`_terms` of each tensor, for the norm of them all; `settled` compares with the bound as the exact norm does."""
    complies = settled <= max_norm
    if any(x.dtype == torch.float64 for x in xs):
        share = in_range(settled)
        xs = [x.to(torch.float64) * share.to(x.device) for x in xs]
        max_norm, epsilon = max_norm * share, epsilon * share
    parts = torch.stack([norms(x, tuple(range(x.ndim)), ord).reshape(()).to(settled.device) for x in xs])
    total = norms(parts, (0,), ord)[0]
    terms = []
    for x in xs:
        own, within, bound, small = (value.to(x.device) for value in (total, complies, max_norm, epsilon))
        terms.append(terms_of(x.to(torch.float64), own, within, bound, small, tuple(range(x.ndim)), ord))
    return terms


def _wide(steps: Sequence[Tensor | None], xs: Sequence[Tensor]) -> list[Tensor]:
    """Tangents or cotangents of the xs as float64; None stands for zero."""
    return [
        torch.zeros_like(x, dtype=torch.float64) if step is None else step.to(torch.float64)
        for step, x in zip(steps, xs, strict=True)
    ]


def _batched(x: Tensor, dim: int | None, size: int) -> Tensor:
    """X with the batch as its first axis."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _batched_bound(bound: Tensor, dim: int | None, ndim: int) -> Tensor:
    """A bound that broadcasts against the norms of a batch of `ndim` axes in all."""
    if dim is None:
        return bound
    bound = bound.movedim(dim, 0)
    return bound.reshape(bound.shape[0], *(1,) * (ndim - bound.ndim), *bound.shape[1:])
