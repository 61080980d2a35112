"""Which process groups a sum over dimensions of a device mesh travels through: one, wherever one exists.

A file of its own, loaded where a group is needed, for `torch.compiler` loads seconds of compiler with its mark.
"""

import math
from typing import Any

import torch
import torch.distributed as dist


@torch.compiler.assume_constant_result  # in a trace, names of groups are constants
def group_names(mesh: Any, dims: tuple[int, ...]) -> tuple[str, ...]:
    """The groups that together join the ranks that differ from this one in these mesh dimensions alone.

    None is made here: ranks that have no such tensor, of other pipeline stages say, would not take part, and the next
    group that anybody makes would wait forever (PyTorch names groups by how many a rank has seen, also those of
    `use_local_synchronization`).
    """
    if len(dims) == 1:
        return (mesh.get_group(dims[0]).group_name,)
    world, count = dist.group.WORLD, math.prod([mesh.size(dim) for dim in dims])
    if count == world.size() and torch.device(mesh.device_type) in world._device_types:
        return (world.group_name,)
    coordinate = tuple(slice(None) if dim in dims else at for dim, at in enumerate(mesh.get_coordinate()))
    ranks = sorted(mesh.mesh[coordinate].flatten().tolist())
    for flat in mesh._get_root_mesh()._flatten_mapping.values():  # by mesh["dp", "tp"]._flatten()
        if sorted(dist.get_process_group_ranks(flat.get_group())) == ranks:
            return (flat.get_group().group_name,)
    return tuple(mesh.get_group(dim).group_name for dim in dims)  # one after the other
