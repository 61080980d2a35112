"""An npz, packed from members that lie one behind the other in a file: the old order, names, dates and compression."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from normball.checkpoint import files
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.plan import Plan
from normball.checkpoint.tensors import File

_PIECE = 1 << 20


def pack(file: File, plan: Plan, path: Path) -> None:
    """Write the new archive at `path`, wholly, and put it on the disk."""
    if os.path.lexists(path):
        os.unlink(path)
    source = files.reopen(plan.path)
    try:
        descriptor = files.create(path)
        try:
            with zipfile.ZipFile(file.path) as old:
                _fill(old, file, plan, source, descriptor)
            os.fchmod(descriptor, plan.mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(source)


def sound(path: Path) -> bool:
    """Whether every member has the bytes that its checksum was made of."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _fill(old: zipfile.ZipFile, file: File, plan: Plan, source: int, descriptor: int) -> None:
    members = old.infolist()
    if len(members) != len(file.tensors):
        raise CheckpointError(f"{printable(str(file.path))}: changed while it was read; run again")
    begin = 0
    with zipfile.ZipFile(_Appending(descriptor), "w", allowZip64=True) as new:
        new.comment = old.comment
        for member, tensor in zip(members, file.tensors, strict=True):
            info = zipfile.ZipInfo(member.filename, member.date_time)  # not its extra fields, which tell old sizes
            info.compress_type, info.external_attr = member.compress_type, member.external_attr
            info.create_system, info.comment = member.create_system, member.comment
            end = begin + tensor.begin + tensor.nbytes
            wide = member.extract_version >= zipfile.ZIP64_VERSION or end - begin > 1 << 30  # as NumPy has it
            with new.open(info, "w", force_zip64=wide) as target:
                while begin < end:
                    piece = files.read_at(source, begin, min(_PIECE, end - begin))
                    if not piece:
                        raise CheckpointError(f"{printable(str(plan.path))}: ends too early; start over: --no-resume")
                    target.write(piece)
                    begin += len(piece)


class _Appending(io.RawIOBase):
    """A file for zipfile, without a buffer that would have to be written as an error is on its way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at = descriptor, 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: os.fstat(self._descriptor).st_size}[whence]
        return self._at

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        files.write_at(self._descriptor, self._at, data)
        self._at += len(data)
        return len(data)
