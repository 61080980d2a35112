"""One process group over several dimensions of a device mesh: one all-reduce, where DTensor does one for each.

A file of its own, loaded where such a group is needed, for `torch.compiler` loads seconds of compiler with its mark.
"""

from typing import Any

import torch
import torch.distributed

_names: dict[tuple, str] = {}


@torch.compiler.assume_constant_result  # a trace cannot make a group; it takes the name of one that is made beside it
def flat_group_name(mesh: Any, dims: tuple[int, ...]) -> str:
    """The group of the ranks that differ from this one in these mesh dimensions alone; made on first sight.

    By its own ranks alone, so that ranks of another mesh, of other pipeline stages say, need not take part.
    """
    key = (mesh, dims)
    if key not in _names:
        coordinate = tuple(slice(None) if dim in dims else at for dim, at in enumerate(mesh.get_coordinate()))
        ranks = mesh.mesh[coordinate].flatten().tolist()
        _names[key] = torch.distributed.new_group(ranks, use_local_synchronization=True).group_name
    return _names[key]
