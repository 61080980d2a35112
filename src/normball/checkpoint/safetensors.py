"""Files of safetensors: a length of 8 bytes, a JSON header, and the tensors without a gap between them.

The format: https://github.com/huggingface/safetensors#format. Read by ourselves, since the official reader accepts
a name that comes twice, maps the file, and takes gigabytes for a hostile header.
"""

import math
import sys
from typing import Any

from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.sources import FileSource
from normball.checkpoint.strict_json import Text
from normball.checkpoint.tensors import BITS, FP8, File, Tensor

# Bits of an entry, by the format's words.
DTYPES = {
    **BITS,
    **dict.fromkeys(FP8, 8),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "C64": 64,
    **{f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)},
}
# The format allows 100,000,000; but an adapter for every expert of the largest models takes 22 MB, and from here on a
# hostile header costs seconds and hundreds of megabytes.
HEADER_LIMIT = 32 * 2**20
DIMENSIONS = 64  # as NumPy has
_ENTRY_LIMIT = 4096  # bytes of one tensor's entry: 64 dimensions of 20 digits take 1500
_FIELDS = {"dtype", "shape", "data_offsets"}
_INT = {int}


def read_safetensors(source: FileSource, most: int) -> File:
    """The tensors of a file, at most so many, in the order in which they lie; everything about them is checked."""
    head, raw = _header(source)
    entries = _entries(Text(raw, f"{source.shown}: its header"), source.shown, most)
    entries.sort(key=lambda entry: entry[3:])  # those without bytes stay in the header's order
    end, tensors = 0, []
    for name, dtype, shape, begin, stop in entries:
        if begin != end:
            raise CheckpointError(
                f"{source.shown}: tensor '{printable(name[:80])}' begins at byte {begin:,} of the data, but "
                + (
                    f"the {begin - end:,} before it are no tensor's"
                    if begin > end
                    else f"byte {end:,} is the next free one"
                )
            )
        end = stop
        tensors.append(Tensor(name, dtype, shape, source, head + begin, stop - begin, swapped=sys.byteorder == "big"))
    _compare(source, head + end)
    return File(source.path, "safetensors", source, source.nbytes, head, tensors)


def _header(source: FileSource) -> tuple[int, bytearray]:
    """Where the tensors begin, and the header's text."""
    if source.nbytes < 10:
        raise CheckpointError(f"{source.shown} has only {source.nbytes} bytes: a download cut short?")
    length = int.from_bytes(source.read(0, 8), "little")
    if source.read(8, 1) != b"{" or length < 2:
        raise CheckpointError(f"{source.shown} has no safetensors header, which begins with {{ at byte 8")
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"{source.shown} says that its header has {length:,} bytes; at most {HEADER_LIMIT:,} are read: "
            "spread its tensors over several files"
        )
    if (missing := 8 + length - source.nbytes) > 0:
        raise CheckpointError(f"{source.shown} ends {missing:,} bytes before its header does: a download cut short?")
    return 8 + length, source.read(8, length)


def _compare(source: FileSource, end: int) -> None:
    """The file ends where its last tensor does."""
    if source.nbytes < end:
        raise CheckpointError(
            f"{source.shown} ends {end - source.nbytes:,} bytes before its last tensor does: a download cut short?"
        )
    if source.nbytes > end:
        raise CheckpointError(f"{source.shown} goes on for {source.nbytes - end:,} bytes after its last tensor")


Entry = tuple[str, str, tuple[int, ...], int, int]  # name, dtype, shape, first byte, the byte behind the last


def _entries(text: Text, shown: str, most: int) -> list[Entry]:
    """Every tensor of the header, each in itself as it should be."""
    entries: list[Entry] = []
    words = {word: word for word in DTYPES}  # so that 100,000 tensors share one string
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def metadata(name: str, at: int) -> int:
        return text.string(at)[1]

    def entry(name: str, at: int) -> int:
        if name == "__metadata__":
            return text.members(at, metadata)
        if len(entries) == most:
            raise CheckpointError(f"{shown} has more tensors than are read of one model")
        value, end = text.value(at, _ENTRY_LIMIT)
        try:
            dtype, shape, begin, stop = _fields(value)
            if text.raw.find(b"-", at, end) >= 0:
                raise ValueError("-0 is no number of bytes or entries")
            _check_size(dtype, shape, begin, stop)
        except ValueError as error:
            raise CheckpointError(f"{shown}: tensor '{printable(name[:80])}': {error}") from None
        entries.append((name, words[dtype], shapes.setdefault(shape, shape), begin, stop))
        return end

    text.finish(text.members(0, entry))
    return entries


def _fields(value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape and offsets of a tensor's entry, which are of the right types."""
    fields = dict(value) if type(value) is tuple else {}
    if fields.keys() != _FIELDS or len(value) != 3:
        raise ValueError("its entry must have dtype, shape and data_offsets, once each, and nothing else")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise ValueError(f"no dtype of safetensors 0.8 is called {printable(str(dtype)[:40])}")
    for name, numbers in (("shape", shape), ("data_offsets", offsets)):
        if type(numbers) is not list or not set(map(type, numbers)) <= _INT or min(numbers, default=0) < 0:
            raise ValueError(f"{name} must be a list of whole numbers, none negative")
    if len(shape) > DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions; up to {DIMENSIONS} are read")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError("data_offsets must be two numbers: its first byte, and the one behind its last")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _check_size(dtype: str, shape: tuple[int, ...], begin: int, stop: int) -> None:
    """Its bytes are as many as its shape takes."""
    size, bits = math.prod(shape), DTYPES[dtype]
    if bits * (size or math.prod(length or 1 for length in shape)) >= 2**63 or stop >= 2**63:
        raise ValueError(f"no file holds {dtype} {list(shape)} at {begin:,}"[:200])
    if bits * size % 8:
        raise ValueError(f"{size:,} entries of {bits} bits don't fill whole bytes")
    if bits * size != 8 * (stop - begin):
        raise ValueError(f"{dtype} {list(shape)} takes {bits * size // 8:,} bytes; data_offsets span {stop - begin:,}")
