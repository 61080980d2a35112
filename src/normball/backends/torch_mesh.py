"""PyTorch tensors that lie on several processes: which are ours to judge, and how their sums travel.

Knows DTensor, device meshes and process groups; knows no norm. A tensor's group of entries may lie on many ranks:
each rank sums its own part, `all_reduce` adds the sums, and all ranks read the same bits, so all decide alike.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch


def is_dtensor(x: Any) -> bool:
    """Whether x is a DTensor; loads no torch.distributed where nobody did."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Any) -> torch.Tensor:
    """This rank's part of a DTensor, differentiable; a plain tensor is its own part."""
    return x.to_local() if is_dtensor(x) else x


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
                f"{name} is a DTensor placed {tuple(x.placements)}: {placement} holds summands, and the norm of a sum is "
                "not known from them; redistribute it to Replicate() or Shard(dim) first"
            )
    # _StridedShard, of FSDP2 with tensor parallelism, is not is_shard() in PyTorch 2.13; but it has a dim, as Shard.
    sharded = [getattr(placement, "dim", None) for placement in x.placements]
    return tuple(
        mesh_dim
        for mesh_dim, dim in enumerate(sharded)
        if dim is not None and (axes is None or dim % x.ndim in axes) and x.device_mesh.size(mesh_dim) > 1
    )


def all_reduce(
    values: Sequence[torch.Tensor], meshes: Sequence[Any], dims: Sequence[tuple[int, ...]], op: str = "sum"
) -> list[torch.Tensor]:
    """Each of the float64 values summed ("sum") or maximised ("max") over dimensions of its mesh, flat or not.

    One collective for each set of ranks, whatever the number of values; none for values without dims. Every rank of a
    mesh must call it with as many values, of the same shapes, in the same order. Not differentiable.
    """
    from torch.distributed import _functional_collectives as collectives

    reduced = list(values)
    batches: dict[tuple, list[int]] = {}
    for index, (value, mesh, own_dims) in enumerate(zip(values, meshes, dims, strict=True)):
        if own_dims and value.numel() and mesh.get_coordinate() is not None:  # else this rank is none of the mesh's
            batches.setdefault((_group_name(mesh, own_dims), value.device), []).append(index)
    sent = {  # all leave before the first is waited for
        key: collectives.all_reduce(torch.cat([values[index].reshape(-1) for index in indices]), op, key[0])
        for key, indices in batches.items()
    }
    for key, indices in batches.items():
        arrived = collectives.wait_tensor(sent[key])
        parts = arrived.split([values[index].numel() for index in indices])
        for index, part in zip(indices, parts, strict=True):
            reduced[index] = part.reshape(values[index].shape)
    return reduced


def refuse_unsharded_placeholders(x: Any, name: str = "tensor_var") -> None:
    """Refuse what looks like a weight, but is a flat piece or an empty stand-in of one: its axes mean nothing."""
    # FSDP 1 marks its flat parameters, and with use_orig_params the weights whose data are 1-D pieces of them, too; in
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


def _group_name(mesh: Any, dims: tuple[int, ...]) -> str:
    """The process group of the ranks that differ from this one in these mesh dimensions alone."""
    if len(dims) == 1:
        return mesh.get_group(dims[0]).group_name
    return _flat_group_name(mesh, dims)


_flat_groups: dict[tuple, str] = {}


def _flat_group_name(mesh: Any, dims: tuple[int, ...]) -> str:
    """One group over several mesh dimensions: of one all-reduce, where DTensor itself does one for each dimension.

    Made on first sight, by its own ranks alone, so that other pipeline stages need not take part.
    """
    import torch.distributed as dist

    key = (mesh, dims)
    if key not in _flat_groups:
        coordinate = tuple(slice(None) if dim in dims else at for dim, at in enumerate(mesh.get_coordinate()))
        ranks = sorted(mesh.mesh[coordinate].flatten().tolist())
        _flat_groups[key] = dist.new_group(ranks, use_local_synchronization=True).group_name
    return _flat_groups[key]
