"""Files of NumPy: one array (.npy), or a zip archive of such files (.npz), stored or deflated."""

import io
import math
import os
import warnings
import zipfile
from typing import Any

import numpy as np

from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.sources import FileSource, Inflated, Part
from normball.checkpoint.tensors import File, Source, Tensor

_WORDS = {"b1": "BOOL", "c8": "C64", "f2": "F16", "f4": "F32", "f8": "F64"} | {
    f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iu" for size in (1, 2, 4, 8)
}
_HEADER = 10_000  # bytes, NumPy's own limit
_DIRECTORY = 2**20  # bytes of an archive's directory: some 10,000 members, each with a header to read
_UTF8 = 0x800  # the flag of names that are not in code page 437
_RATIO = 1032  # bytes that a byte of a deflated member can become: 258 in two bits


def read_npy(source: FileSource) -> File:
    """The one array of a .npy file, called by the file's name."""
    tensor = _array(source, source.nbytes, source.path.stem, source.shown)
    return File(source.path, "npy", source, source.nbytes, tensor.begin, [tensor])


def read_npz(source: FileSource, most: int) -> File:
    """The arrays of a .npz file, called by their members' names, in the archive's order."""
    infos, end = _members(source)
    if len(infos) > most:
        raise CheckpointError(f"{source.shown} has more tensors than are read of one model")
    tensors, spans = [], []
    for info in infos:
        shown = f"{source.shown}: member '{printable(info.filename)}'"
        begin = _place(source, info, shown)
        spans.append((info.header_offset, begin + info.compress_size))
        name = info.filename.removesuffix(".npy")
        if info.compress_type == zipfile.ZIP_STORED:
            part = Part(source, begin, info.file_size, info.filename)
            tensors.append(_array(part, info.file_size, name, shown))
        else:
            member = Inflated(source, begin, info.compress_size, info.file_size, info.CRC, info.filename)
            tensors.append(_array(member, info.file_size, name, shown))
            member.restart()
    _check_places(source, spans, end)
    return File(source.path, "npz", source, source.nbytes, 0, tensors)


def _array(source: Source, nbytes: int, name: str, shown: str) -> Tensor:
    """What the header says of an array, and that the bytes behind it are as many as it takes."""
    dtype, shape, fortran, begin = _header(source, nbytes, shown)
    if dtype.hasobject:
        raise CheckpointError(
            f"{shown} holds Python objects, which NumPy keeps as a pickle, and reading one can run any code: "
            "save it as numbers, numpy.save(path, array.astype(float))"
        )
    size = math.prod(shape) * dtype.itemsize
    if nbytes < begin + size:
        raise CheckpointError(f"{shown} ends {begin + size - nbytes:,} bytes before its array does: cut short?")
    if nbytes > begin + size:
        raise CheckpointError(f"{shown} goes on for {nbytes - begin - size:,} bytes after its array")
    word = _WORDS.get(dtype.str[1:], dtype.name)
    return Tensor(name, word, shape, source, begin, size, fortran and len(shape) > 1, not dtype.isnative)


def _header(source: Source, nbytes: int, shown: str) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, whether the first axis varies fastest, and where the array begins."""
    first = bytearray(min(nbytes, 12 + _HEADER))
    source.read_into(0, memoryview(first))
    if first[:6] != b"\x93NUMPY":
        raise CheckpointError(f"{shown} is no .npy file, which begins with \\x93NUMPY")
    if (version := tuple(first[6:8])) not in ((1, 0), (2, 0), (3, 0)):
        raise CheckpointError(f"{shown} is of version {'.'.join(map(str, version))} of .npy; 1.0 to 3.0 are read")
    file = io.BytesIO(first)
    file.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, fortran, dtype = read(file, max_header_size=_HEADER)
    except Exception:  # whatever Python's parser and dtypes make of foreign text
        raise CheckpointError(f"{shown} has a header that NumPy can't read: cut short, or damaged?") from None
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > 64:
        raise CheckpointError(f"{shown} has the shape {printable(str(shape)[:80])}; up to 64 lengths, none negative")
    if math.prod(length or 1 for length in shape) * dtype.itemsize >= 2**63:
        raise CheckpointError(f"{shown} has the shape {printable(str(shape)[:80])}: no file holds that many bytes")
    return dtype, shape, fortran, file.tell()


class _Directory(io.BufferedIOBase):
    """A file for `zipfile`, which reads a directory as long as the archive says: not beyond a limit."""

    def __init__(self, source: FileSource) -> None:
        self._source, self._at = source, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.nbytes}[whence]
        if at < 0:
            raise OSError("before the first byte")
        self._at = at
        return at

    def read(self, count: int | None = -1, /) -> bytes:
        if count is None or count < 0:
            count = max(0, self._source.nbytes - self._at)
        if count > _DIRECTORY:
            raise CheckpointError(
                f"{self._source.shown} says that its directory has {count:,} bytes; at most {_DIRECTORY:,} are read: "
                "spread its arrays over several files"
            )
        piece = bytes(self._source.read(self._at, count))
        self._at += len(piece)
        return piece


def _members(source: FileSource) -> tuple[list[zipfile.ZipInfo], int]:
    """What the archive's directory lists, if all of it is what numpy.savez writes, and where the directory begins."""
    try:
        with zipfile.ZipFile(_Directory(source)) as archive:  # type: ignore[arg-type]
            infos, end = archive.infolist(), archive.start_dir
    except CheckpointError:
        raise
    except Exception:  # whatever it makes of foreign bytes
        raise CheckpointError(f"{source.shown} is no whole zip archive: a download cut short?") from None
    if any(info.filename.split("/")[-1] == "data.pkl" for info in infos):
        raise CheckpointError(pickled(source.shown))
    names = set()
    for info in infos:
        shown = f"{source.shown}: member '{printable(info.filename)}'"
        if info.filename in names:
            raise CheckpointError(f"{source.shown} has two members called '{printable(info.filename)}'")
        names.add(info.filename)
        if not info.filename.endswith(".npy"):
            raise CheckpointError(f"{shown} is no array: only archives that numpy.savez writes are read")
        if info.flag_bits & 0x1:
            raise CheckpointError(f"{shown} is encrypted: save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{shown} is compressed in a way that numpy.savez_compressed doesn't use: save it anew"
            )
        stored = info.compress_type == zipfile.ZIP_STORED
        if (stored and info.file_size != info.compress_size) or info.file_size > _RATIO * info.compress_size:
            raise CheckpointError(
                f"{shown} can't have {info.file_size:,} bytes in {info.compress_size:,}: damaged, or made to harm?"
            )
    return infos, end


def _place(source: FileSource, info: zipfile.ZipInfo, shown: str) -> int:
    """Where a member's bytes begin: behind a header of their own, which repeats the name."""
    header = source.read(info.header_offset, 30)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    repeated = source.read(info.header_offset + 30, name).decode(
        "utf-8" if info.flag_bits & _UTF8 else "cp437", "replace"
    )
    if header[:4] != b"PK\x03\x04" or repeated != info.orig_filename:
        raise CheckpointError(f"{shown} isn't where the archive says: was it damaged?")
    return info.header_offset + 30 + name + extra


def _check_places(source: FileSource, spans: list[tuple[int, int]], end: int) -> None:
    """Members lie apart, in front of the directory: so an archive can't inflate to more than _RATIO times its bytes."""
    last = 0
    for first, behind in sorted(spans):
        if first < last or behind > end:
            raise CheckpointError(f"{source.shown} has members that overlap: damaged, or made to harm?")
        last = behind


def pickled(shown: str) -> str:
    """Why a pickle isn't read, and what to do."""
    return (
        f"{shown} is a pickle, and reading one can run any code: convert it with torch 2.10 or newer, "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
