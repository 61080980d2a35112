"""PyTorch tensors that lie on several processes: which are ours to judge, and how their sums travel.

Knows DTensors, device meshes and process groups; knows no norm. A group's entries may lie on many ranks: each sums its
own, one collective merges the sums, and as all ranks read the same bits, all decide alike.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_dtensor(x: Any) -> bool:
    """Whether x is a DTensor; loads no torch.distributed where nobody did."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Any) -> Tensor:
    """This rank's part of a DTensor, differentiable; a plain tensor is its own part."""
    if not is_dtensor(x):
        return x
    part = x.to_local()
    return part.wait() if hasattr(part, "wait") else part  # one still on its way from another collective


def mesh_dims(x: Any, axes: Sequence[int] | None = None, name: str = "tensor_var") -> tuple[int, ...]:
    """The mesh dimensions over which one of the axes (None: any) is sharded: those that its sums must cross.

    None for a plain tensor. A mesh dimension of replicas is left out, so replicas are counted once; one of a single
    rank is, too.
    """
    if not is_dtensor(x):
        return ()
    for placement in x.placements:
        if placement.is_partial():
            raise TypeError(
                f"{name} is a DTensor placed {list(x.placements)}: {placement} holds summands, from which the norm of "
                "their sum is not known; redistribute it to Replicate() or Shard(dim) first"
            )
    # The _StridedShard of FSDP2 with tensor parallelism is not is_shard() in PyTorch 2.13; but it has a dim, as Shard.
    sharded = [getattr(placement, "dim", None) for placement in x.placements]
    return tuple(
        mesh_dim
        for mesh_dim, dim in enumerate(sharded)
        if dim is not None and (axes is None or dim % x.ndim in axes) and x.device_mesh.size(mesh_dim) > 1
    )


def all_reduce(
    values: Sequence[Tensor], meshes: Sequence[Any], dims: Sequence[tuple[int, ...]], op: str = "sum"
) -> list[Tensor]:
    """Each of the float64 values summed ("sum") or maximised ("max") over these dimensions of its mesh.

    One collective for each set of ranks, whatever the number of values; none for values without dimensions, which come
    back as they are. Several dimensions are one set where they span all processes, or where the mesh was flattened, by
    mesh["dp", "tp"]._flatten() say; else they take one collective each. Every rank of a mesh must call it with as many
    values, of the same shapes, in the same order. NaN is the largest. Not differentiable.
    """

    def reduced(sent: Tensor, group: str) -> Tensor:
        from torch.distributed import _functional_collectives as collectives

        return collectives.all_reduce(sent, op, group)

    if op != "max":
        return [value[0] for value in _exchanged(values, meshes, dims, reduced)]
    # The larger of a number and NaN is either, in gloo and NCCL; so NaN travels beside the numbers, as 1.
    flagged = [
        torch.stack([value.nan_to_num(0, math.inf, -math.inf), value.isnan().to(value.dtype)]) for value in values
    ]
    pairs = [value[0] for value in _exchanged(flagged, meshes, dims, reduced)]
    return [torch.where(spoilt > 0, math.nan, value) for value, spoilt in pairs]


def all_gather(values: Sequence[Tensor], meshes: Sequence[Any], dims: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Each value of all ranks, one below the other along a new first axis; otherwise as `all_reduce`."""

    def gathered(sent: Tensor, group: str) -> Tensor:
        from torch.distributed.distributed_c10d import _get_group_size_by_name

        # The function for it changed its name in PyTorch 2.13; what is under it did not.
        return torch.ops._c10d_functional.all_gather_into_tensor(sent, _get_group_size_by_name(group), group)

    return _exchanged(values, meshes, dims, gathered)


def _exchanged(
    values: Sequence[Tensor],
    meshes: Sequence[Any],
    dims: Sequence[tuple[int, ...]],
    collective: Callable[[Tensor, str], Tensor],
) -> list[Tensor]:
    """What the collective makes of each value, along a new first axis; all of one set of ranks in one go."""
    results = [value[None] for value in values]
    batches: dict[tuple, list[int]] = {}
    for index, (value, mesh, own_dims) in enumerate(zip(values, meshes, dims, strict=True)):
        if own_dims and value.numel() and mesh.get_coordinate() is not None:  # else this rank is none of the mesh's
            from normball.backends.torch_groups import group_names

            batches.setdefault((group_names(mesh, own_dims), value.device, value.dtype), []).append(index)
    on_the_way = {  # all leave before the first is waited for
        key: collective(torch.cat([values[index].reshape(1, -1) for index in indices], 1), key[0][0])
        for key, indices in batches.items()
    }
    for key, indices in batches.items():
        arrived = torch.ops._c10d_functional.wait_tensor(on_the_way[key])
        for group in key[0][1:]:
            arrived = torch.ops._c10d_functional.wait_tensor(collective(arrived, group))
        parts = arrived.split([values[index].numel() for index in indices], 1)
        for index, part in zip(indices, parts, strict=True):
            results[index] = part.reshape(-1, *values[index].shape)
    return results


def refuse_unsharded_placeholders(x: Any, name: str = "tensor_var") -> None:
    """Refuse what looks like a weight, but is a flat piece or an empty stand-in of one: its axes mean nothing."""
    # FSDP1 marks its flat parameters, and with use_orig_params the weights whose data are 1-D pieces of them, too. In
    # summon_full_params the latter have their shapes back, and are welcome.
    if getattr(x, "_is_flat_param", False) or (getattr(x, "_fsdp_flattened", False) and x.ndim <= 1):
        raise TypeError(
            f"{name} of shape {tuple(x.shape)} is a flat parameter of FullyShardedDataParallel, or a piece of one: its "
            "axes are not the weight's; use FullyShardedDataParallel.summon_full_params(module, writeback=True), or "
            "fully_shard (FSDP2)"
        )
    if getattr(x, "ds_id", None) is not None and x.numel() == 0:
        raise TypeError(
            f"{name} of shape {tuple(x.shape)} is a placeholder of DeepSpeed ZeRO-3, whose data lie elsewhere; gather "
            "it first: with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)"
        )
