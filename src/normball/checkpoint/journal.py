"""What is finished of a result that is being made: lines that are there whole or not at all, under a lock."""

import fcntl
import os
import stat
import zlib
from pathlib import Path

from normball.checkpoint import files
from normball.checkpoint.errors import CheckpointError, printable

_MAGIC = b"normball journal 1 "
_LONGEST = 1 << 26  # bytes of a journal that is read: a line for each tensor is less


class Journal:
    """The file `journal` in a folder, locked until it is closed or the process ends, however that happens."""

    def __init__(self, path: Path, new: bool) -> None:
        """Take it, and read what it says; CheckpointError where another process has it, or it isn't one of ours."""
        self.path = path
        try:
            self._descriptor = _create_or_open(path) if new else files.reopen(path)
        except FileNotFoundError:
            raise _busy(path) from None
        try:
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(self.path) from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise foreign(self.path.parent, "has a journal that is no plain file of yours")
        # Whoever had the lock before us may have finished, and removed it.
        if status.st_nlink == 0 or not os.path.samestat(status, os.lstat(self.path)):
            raise _busy(self.path)

    def _read(self) -> None:
        """The lines that are whole; what follows the first that isn't was being written as the process ended."""
        data = files.read_at(self._descriptor, 0, _LONGEST)
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise foreign(self.path.parent, "has a journal that isn't normball's")
        self.lines: list[str] = []
        self._end = 0
        for line in data.splitlines(keepends=True):
            text, _, check = line.rpartition(b" ")
            if check != b"%08x\n" % zlib.crc32(text):
                break
            self.lines.append(text.decode())
            self._end += len(line)

    @property
    def identity(self) -> str:
        """Whose work is recorded; of a journal that was just begun, nobody's."""
        return self.lines[0].removeprefix(_MAGIC.decode()) if self.lines else ""

    def start(self, identity: str) -> None:
        """Forget all, and begin again."""
        os.ftruncate(self._descriptor, 0)
        self.lines, self._end = [], 0
        self.append(_MAGIC.decode() + identity)
        self.sync()

    def append(self, text: str) -> None:
        """One more line. Where that fails, half of it is no line, and the next is written over it."""
        line = text.encode()
        line += b" %08x\n" % zlib.crc32(line)
        files.write_at(self._descriptor, self._end, memoryview(line))
        self._end += len(line)
        self.lines.append(text)

    def sync(self) -> None:
        """On the disk before anything that follows."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def foreign(folder: Path, reason: str) -> CheckpointError:
    """Something in our way that we won't touch."""
    return CheckpointError(f"{printable(str(folder))!r}: is in the way and left alone, as it {reason}; move it")


def _busy(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{printable(str(path.parent))!r}: another normball is making this result; wait for it to end"
    )


def _create_or_open(path: Path) -> int:
    """Two processes may both find none: then one makes it, and the lock decides."""
    try:
        return files.create(path)
    except FileExistsError:
        return files.reopen(path)
