"""The constraint on DTensors: each rank rescales its own part, by norms that one collective merges.

No communication where no norm axis is sharded: the parts are then plain tensors to the rest of the backend. Where one
is, a norm within 2**-44 of its bound counts as above it, as in `torch_portable`: such a group loses up to 2 ulp, though
it may have complied, on all ranks alike. Backward takes one collective more. Placements stay as they are.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from normball import arguments
from normball.backends import torch as plain
from normball.backends import torch_checks as checks
from normball.backends import torch_gradients as gradients
from normball.backends import torch_mesh as meshes
from normball.backends.torch_portable import Norms, merged, norms, rescaled

# Adding the float64 sums of so many ranks errs by less than 2**-44 of the norm, for which `rescaled` leaves room.
_RANKS_TO_ADD = 512


class _Part(NamedTuple):
    """What one rank holds of a tensor, and of what is needed to constrain it."""

    x: Tensor
    max_norm: Any
    axes: tuple[int, ...]
    epsilon: Any
    mesh: Any
    dims: tuple[int, ...]  # of the mesh, over which groups are split


class _Split(NamedTuple):
    """One rank's part of groups that are split over these dimensions of a mesh."""

    x: Tensor
    axes: tuple[int, ...]
    mesh: Any
    dims: tuple[int, ...]


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float) -> Any:
    """Every group of a DTensor inside its ball, with its first derivative; placed as x is."""
    from torch.distributed.tensor import DTensor

    part = _part(x, max_norm, axes, epsilon, ord)
    if part.mesh.get_coordinate() is None:  # this rank holds nothing of x
        return x
    if not part.dims:
        result = plain.constrain(part.x, part.max_norm, axes, part.epsilon, ord, None)
    else:
        real, real_axes, bound, small = _real(part)
        result = checks.like(_Constrain.apply(real, bound, small, real_axes, ord, part.mesh, part.dims), part.x)
    return DTensor.from_local(result, part.mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list[Any]:
    """Every tensor of a list that holds DTensors, into a new one or, where its `out` is itself, written over."""
    jobs = list(zip(xs, max_norms, axes, outs, strict=True))
    for index, (x, _, _, out) in enumerate(jobs):
        if out is not None and out is not x:
            rule = "beside DTensors tensors are written over or not at all"
            raise arguments.wrong_out(rule, "pass tensor_var itself, or leave it out", index)
        if out is not None and checks.derived(x):
            remedy = "call this under torch.no_grad(), or leave it out"
            raise arguments.wrong_out("no gradient passes through it", remedy, index)
    over = [job for job in jobs if job[3] is not None]
    if over:
        tensors, bounds, own_axes, _ = zip(*over, strict=True)
        constrain_each_(tensors, bounds, own_axes, epsilon, ord)
    return [x if out is not None else constrain(x, bound, own, epsilon, ord) for x, bound, own, out in jobs]


def norms_of(x: Any, axes: tuple[int, ...], ord: float) -> Any:
    """The norms of a DTensor's groups, reduced axes kept as 1: a DTensor, whose groups lie where x's do."""
    from torch.distributed.tensor import DTensor, Replicate

    part = _part(x, math.inf, axes, 0.0, ord)
    if part.dims:
        real, real_axes = checks.as_real(part.x, axes)
        value = _Norms.apply(real, real_axes, ord, part.mesh, part.dims)
        value = value if real is part.x else value.squeeze(-1)
    else:
        value = plain.summarise(part.x, axes, ord)
    shape = torch.Size(checks.groups(x, axes))
    stride = torch.empty(shape, device="meta").stride()
    dims = [getattr(placement, "dim", None) for placement in x.placements]
    placements = [
        Replicate() if dim is None or dim % x.ndim in axes else placement
        for dim, placement in zip(dims, x.placements, strict=True)
    ]
    return DTensor.from_local(value, part.mesh, placements, run_check=False, shape=shape, stride=stride)


@torch.no_grad()
def constrain_each_(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float
) -> None:
    """Every tensor of a list, DTensor or plain, written over; one collective for each set of ranks, for all of them."""
    parts = [
        _part(x, max_norm, own_axes, epsilon, ord, index)
        for index, (x, max_norm, own_axes) in enumerate(zip(xs, max_norms, axes, strict=True))
    ]
    parts = [part for part in parts if part.mesh is None or part.mesh.get_coordinate() is not None]
    split = [part for part in parts if part.dims]
    reals = [_real(part) for part in split]
    splits = [_Split(*real[:2], part.mesh, part.dims) for real, part in zip(reals, split, strict=True)]
    for (real, _, bound, small), own in zip(reals, _merged_norms(splits, ord), strict=True):
        real.copy_(rescaled(real, own, bound, small))
    whole = [part for part in parts if not part.dims]
    if type(epsilon) is float:
        tensors = [part.x for part in whole]
        plain.constrain_each(tensors, [p.max_norm for p in whole], [p.axes for p in whole], epsilon, ord, tensors)
    else:
        for part in whole:
            plain.constrain(part.x, part.max_norm, part.axes, part.epsilon, ord, part.x)
    # The parts were written, whose wrappers autograd watches.
    torch.autograd.graph.increment_version([x for x in xs if meshes.is_dtensor(x) and not x.is_inference()])


def _part(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, index: int | None = None) -> _Part:
    """This rank's part of a tensor and of its bounds, all of them checked."""
    name = arguments.entry("tensor_var", index)
    meshes.refuse_unsharded_placeholders(x, name)
    dims = meshes.mesh_dims(x, axes, name)
    checks.check(x, ord, index)
    bounds = (_local_bound(n, value, x, axes) for n, value in (("max_norm", max_norm), ("epsilon", epsilon)))
    return _Part(meshes.local(x), next(bounds), axes, next(bounds), getattr(x, "device_mesh", None), dims)


def _local_bound(name: str, value: Any, x: Any, axes: tuple[int, ...]) -> Any:
    """`max_norm` or `epsilon` of this rank's groups; what flows back to it is summed over all ranks' groups."""
    if type(value) is float or not meshes.is_dtensor(x):
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    bound = checks.bound(name, value, checks.groups(x, axes), x.device)
    mesh = x.device_mesh
    if not meshes.is_dtensor(bound):
        if bound.numel() == 1 and not bound.requires_grad:
            return bound
        bound = DTensor.from_local(bound, mesh, [Replicate()] * mesh.ndim, run_check=False)
    elif bound.device_mesh != mesh:
        message = f"{name} is a DTensor on another mesh than tensor_var; pass {name}.full_tensor()"
        raise ValueError(message)
    bound = bound.reshape((1,) * (x.ndim - bound.ndim) + tuple(bound.shape))
    wanted, flowing_back = [], []
    for placement in x.placements:
        dim = getattr(placement, "dim", None)
        split = dim is not None and dim % x.ndim not in axes  # ranks along this mesh dimension hold different groups
        split_too = split and bound.shape[dim] > 1  # type: ignore[index]
        wanted.append(placement if split_too else Replicate())
        flowing_back.append(placement if split_too else Partial() if split else Replicate())
    return bound.redistribute(mesh, wanted).to_local(grad_placements=flowing_back)


def _real(part: _Part) -> tuple[Tensor, tuple[int, ...], Tensor, Tensor]:
    """The part with complex numbers as pairs, its axes then, and its bounds as tensors."""
    pair = checks.bounds(part.x, part.max_norm, part.epsilon, checks.groups(part.x, part.axes))
    bound, small = map(gradients.as_tensor, pair)
    return *checks.as_real(part.x, part.axes), bound, small


def _merged_norms(splits: Sequence[_Split], ord: float) -> list[Norms]:
    """The whole groups' norms, for a part of each of several tensors."""
    ranks = [math.prod([split.mesh.size(dim) for dim in split.dims]) for split in splits]
    adding = [split.x.dtype != torch.float64 and n <= _RANKS_TO_ADD for split, n in zip(splits, ranks, strict=True)]
    added = iter(_added_norms([split for split, adds in zip(splits, adding, strict=True) if adds], ord))
    listed = iter(_listed_norms([split for split, adds in zip(splits, adding, strict=True) if not adds], ord))
    return [next(added if adds else listed) for adds in adding]


def _added_norms(splits: Sequence[_Split], ord: float) -> list[Norms]:
    """From sums in float64 that travel: of squares, which of float32 and narrower are in range and exact enough."""
    powers = [torch.ops.normball.norms(split.x, split.axes, ord, None) for split in splits]
    powers = [power * power for power in powers] if ord == 2 else powers
    to = [split.mesh for split in splits], [split.dims for split in splits]
    totals = meshes.all_reduce(powers, *to, "max" if ord == math.inf else "sum")
    highs = [torch.sqrt(total) for total in totals] if ord == 2 else totals
    return [Norms(high, torch.zeros_like(high), torch.zeros_like(high, dtype=torch.int64)) for high in highs]


def _listed_norms(splits: Sequence[_Split], ord: float) -> list[Norms]:
    """From each rank's norms, in two words and an exponent: as float64 asks for, and more ranks than can be added."""
    words = [torch.stack([word.to(torch.float64) for word in norms(split.x, split.axes, ord)]) for split in splits]
    stacks = meshes.all_gather(words, [split.mesh for split in splits], [split.dims for split in splits])
    each = [[Norms(high, low, exponent.to(torch.int64)) for high, low, exponent in stack] for stack in stacks]
    return [merged(of_ranks, ord) if of_ranks[0].high.numel() else of_ranks[0] for of_ranks in each]


class _Constrain(Function):
    """A part of a tensor; the derivative is that of `torch_gradients`, with its sum over a group merged too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: tuple, ord: float, mesh: Any, dims: tuple
    ) -> Tensor:
        own = _merged_norms([_Split(x, axes, mesh, dims)], ord)[0]
        value = own.value()
        inner = own._replace(exponent=own.exponent - gradients.OUT_OF_RANGE * (value == math.inf)).value()
        ctx.save_for_backward(x, max_norm, epsilon, value, inner)
        ctx.way = axes, ord, mesh, dims
        return torch.empty_like(x).copy_(rescaled(x, own, max_norm, epsilon))  # with x's strides, as everywhere

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, max_norm, epsilon, value, inner = ctx.saved_tensors
        axes, ord, mesh, dims = ctx.way
        wide = gradient.to(torch.float64)
        share = gradients.in_range(value)
        complies, scale, direction, slope = gradients.terms_of(
            x.to(torch.float64) * share, inner, value <= max_norm, max_norm * share, epsilon * share, axes, ord
        )
        along = gradients.sum_over(wide * direction, axes)
        along, slope = _merged_sum(along, slope, axes, ord, mesh, dims)
        to_x = torch.where(complies, wide, scale * (wide - along * slope)).to(x.dtype)
        to_bound = torch.where(complies, 0, along).sum_to_size(max_norm.shape)
        to_epsilon = torch.where(complies, 0, -scale * along).sum_to_size(epsilon.shape)
        return to_x, to_bound, to_epsilon, None, None, None, None


class _Norms(Function):
    """The whole groups' norms; backward needs no collective, but of order inf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple, ord: float, mesh: Any, dims: tuple) -> Tensor:
        value = _merged_norms([_Split(x, axes, mesh, dims)], ord)[0].value()
        ctx.save_for_backward(x, value)
        ctx.way = axes, ord, mesh, dims
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        x, value = ctx.saved_tensors
        axes, ord, mesh, dims = ctx.way
        slope = gradients.slope_of(x.to(torch.float64), value, axes, ord)
        if ord == math.inf:
            _, slope = _merged_sum(torch.zeros_like(value), slope, axes, ord, mesh, dims)
        return (gradient * slope).to(x.dtype), None, None, None, None


def _merged_sum(
    along: Tensor, slope: Tensor, axes: tuple[int, ...], ord: float, mesh: Any, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A sum over whole groups, and the derivative of their norms, in one collective."""
    if ord != math.inf:
        return meshes.all_reduce([along], [mesh], [dims])[0], slope
    largest = gradients.sum_over((slope != 0).to(torch.float64), axes)  # which share the slope with other ranks'
    along, everywhere = meshes.all_reduce([torch.stack([along, largest])], [mesh], [dims])[0]
    return along, slope * largest / everywhere.clamp(min=1)
