"""Where each byte of a new file goes: where it was, but in an npz, whose members lie one behind the other at first."""

import stat
from dataclasses import dataclass
from pathlib import Path

from normball.checkpoint.tensors import File, Source


@dataclass(frozen=True)
class Plan:
    """A file to be written."""

    path: Path
    size: int
    mode: int
    heads: list[tuple[int, Source, int]]  # at which offset to repeat how many first bytes of what
    offsets: list[int]  # where each tensor begins
    numbers: dict[str, int]  # which of them has a name


def plan(file: File, path: Path, members: Path) -> Plan:
    """Of a file that comes to lie at `path`; an npz is written to a file in `members` and packed from there."""
    numbers = {tensor.name: number for number, tensor in enumerate(file.tensors)}
    mode = stat.S_IMODE(file.path.stat().st_mode)
    if file.kind != "npz":
        offsets = [tensor.begin for tensor in file.tensors]
        return Plan(path, file.nbytes, mode, [(0, file.source, file.head)], offsets, numbers)
    heads, offsets, end = [], [], 0
    for tensor in file.tensors:
        heads.append((end, tensor.source, tensor.begin))
        offsets.append(end + tensor.begin)
        end = offsets[-1] + tensor.nbytes
    return Plan(members / path.name, end, mode, heads, offsets, numbers)
