"""What a model on disk consists of: files, and tensors in them. Knows no format; `model.py` fills it from each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# Bits of an entry of each dtype, by the words of safetensors. The first four have kernels.
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
FLOATS = tuple(BITS)
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


class Source(Protocol):
    """Bytes to read: an open file, or a member of an archive."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from `offset` on, from any thread; CheckpointError where the bytes end or can't be read."""


@dataclass(frozen=True, slots=True)  # of which a file may name some 100,000
class Tensor:
    """Where one tensor lies."""

    name: str
    dtype: str  # safetensors' word: F32, BF16, I64, F8_E4M3 ...; NumPy's own name for what safetensors has no word for
    shape: tuple[int, ...]
    source: Source
    begin: int  # offset of its first byte in the source
    nbytes: int
    fortran: bool = False  # of a .npy: the first axis is the one that varies fastest
    swapped: bool = False  # of a .npy: not in this machine's byte order

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class File:
    """One file of a model, open for reading."""

    path: Path  # as the user named it, or found in the index
    kind: str  # "safetensors", "npy" or "npz"
    source: Source
    nbytes: int
    head: int  # how many bytes lie before the tensors, which a rewritten file repeats: safetensors, npy
    tensors: list[Tensor]


@dataclass(frozen=True)
class Model:
    """All that the user named, open for reading; a context manager that closes it."""

    files: list[File]
    folder: Path | None = None  # where MODEL is a folder
    index: Path | None = None  # its model.safetensors.index.json
    closers: list[Callable[[], None]] = field(default_factory=list)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in the files' order."""
        return [tensor for file in self.files for tensor in file.tensors]

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        for close in self.closers:
            close()
