"""Checkpoints for the tests, written byte by byte, without the package that users write them with."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Content = tuple[str, np.ndarray | bytes, tuple[int, ...]]  # dtype word, entries or raw bytes, shape


def header_of(tensors: Mapping[str, Content], metadata: Mapping[str, str] | None = None) -> dict:
    """The header as a dict: tensors one behind the other, in the order given."""
    header = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name, (dtype, content, shape) in tensors.items():
        end = begin + len(raw(content))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    return header


def raw(content: np.ndarray | bytes) -> bytes:
    """Entries as a file has them: row-major, little-endian."""
    if isinstance(content, bytes):
        return content
    return np.ascontiguousarray(content, content.dtype.newbyteorder("<")).tobytes()


def framed(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A whole file: the length of the header (or what is claimed of it), the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    if not isinstance(header, bytes):
        text += b" " * (-len(text) % 8)  # as the official writer aligns the data
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Content], metadata: Mapping[str, str] | None = None
) -> Path:
    """A .safetensors file of these tensors: name -> (dtype word, array or raw bytes, shape)."""
    data = b"".join(raw(content) for _, content, _ in tensors.values())
    Path(path).write_bytes(framed(header_of(tensors, metadata), data))
    return Path(path)


def write_index(folder: str | Path, shards: Mapping[str, Mapping[str, Content]]) -> Path:
    """A folder of shards (file name -> its tensors) with its model.safetensors.index.json; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places, total = {}, 0
    for shard, tensors in shards.items():
        write_safetensors(folder / shard, tensors)
        places |= dict.fromkeys(tensors, shard)
        total += sum(len(raw(content)) for _, content, _ in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder
