"""Where bytes come from: an open file, or a part of one, stored or deflated. All may be read from any thread."""

import os
import stat
import threading
import zlib
from pathlib import Path
from typing import Any, NoReturn

from normball.checkpoint.errors import CheckpointError, printable

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PIECE = 2**18  # bytes of a deflated part read at a time
_KEPT = 64 * 2**20  # bytes kept of what threads that came too early had to pass over


class FileSource:
    """A regular file, open for reading: `path`, which `real` is the place of, if given, and no link."""

    def __init__(self, path: Path, real: Path | None = None) -> None:
        self.path, self.shown = path, printable(str(path))
        place, flags = (path, 0) if real is None else (real, os.O_NOFOLLOW)
        try:
            self._refuse_others(os.stat(place))  # before it is opened: a device may act on that
            # Without waiting: a pipe may have taken the file's place meanwhile.
            self.fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        except OSError as error:
            raise CheckpointError(f"{self.shown} can't be opened: {error.strerror}") from None
        except ValueError:
            raise CheckpointError(f"{self.shown} can't be opened: no file name holds a NUL") from None
        try:
            self._refuse_others(os.fstat(self.fd))
            self.nbytes = os.fstat(self.fd).st_size
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.fd)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, of bytes, from `offset` on."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.shown} can't be read at byte {offset + done:,}: {error.strerror}"
                ) from None
            if count == 0:
                raise CheckpointError(
                    f"{self.shown} ends at byte {offset + done:,}, before byte {offset + len(buffer):,}: "
                    f"it had {self.nbytes:,} when it was opened; is it being written?"
                )
            done += count

    def read(self, offset: int, count: int) -> bytearray:
        """That many bytes, or as many as there are."""
        buffer = bytearray(max(0, min(count, self.nbytes - offset)))
        self.read_into(offset, memoryview(buffer))
        return buffer

    def _refuse_others(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{self.shown} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}, not a file")


class Part:
    """Bytes of a file from `begin` on: what an archive has stored."""

    def __init__(self, file: FileSource, begin: int, nbytes: int, name: str) -> None:
        self.file, self.begin, self.nbytes = file, begin, nbytes
        self.shown = f"{file.shown}: member '{printable(name)}'"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.nbytes:
            raise CheckpointError(f"{self.shown} ends at byte {self.nbytes:,}, before byte {offset + len(buffer):,}")
        self.file.read_into(self.begin + offset, buffer)


class Inflated:
    """Bytes of a file from `begin` on, `packed` of them, which inflate to `nbytes` with this checksum.

    Read from the first byte to the last as often as need be. What a thread passes over that came before its time is
    kept for the others, within limits; beyond them it is inflated again from the start.
    """

    def __init__(self, file: FileSource, begin: int, packed: int, nbytes: int, checksum: int, name: str) -> None:
        self.file, self.begin, self.packed, self.nbytes, self.checksum = file, begin, packed, nbytes, checksum
        self.shown = f"{file.shown}: member '{printable(name)}'"
        self._lock = threading.Lock()
        self.restart()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, of bytes, from `offset` on."""
        if offset + len(buffer) > self.nbytes:
            raise CheckpointError(f"{self.shown} ends at byte {self.nbytes:,}, before byte {offset + len(buffer):,}")
        with self._lock:
            if offset < self._at and self._from_kept(offset, buffer):
                return
            if offset < self._at:
                self.restart()
            while self._at < offset:
                self._pass_over(min(_PIECE, offset - self._at))
            self._inflate(buffer)

    def restart(self) -> None:
        """Go back to the first byte, and take no more memory than that."""
        self._inflater: Any = None
        self._at = self._taken = self._sum = 0  # bytes given out, bytes of the file taken in, the checksum so far
        self._rest: bytes | bytearray = b""  # taken in, but not inflated yet
        self._kept: dict[int, bytes] = {}

    def _pass_over(self, count: int) -> None:
        """Go on, and keep what is passed over in pieces no longer than `_PIECE`."""
        piece, begin = bytearray(count), self._at
        self._inflate(memoryview(piece))
        self._kept[begin] = bytes(piece)
        while len(self._kept) * _PIECE > _KEPT:
            del self._kept[min(self._kept)]

    def _from_kept(self, offset: int, buffer: memoryview) -> bool:
        """Fill the buffer from what was passed over, which nobody needs again then; False where it isn't all there."""
        end, chosen = offset + len(buffer), {}
        for begin, piece in sorted(self._kept.items()):
            if begin < end and begin + len(piece) > offset:
                chosen[begin] = piece
        covered = sum(min(end, begin + len(piece)) - max(offset, begin) for begin, piece in chosen.items())
        if covered < len(buffer):
            return False
        for begin, piece in chosen.items():
            first, last = max(offset, begin), min(end, begin + len(piece))
            buffer[first - offset : last - offset] = piece[first - begin : last - begin]
            del self._kept[begin]
            if begin < offset:
                self._kept[begin] = piece[: offset - begin]
            if end < begin + len(piece):
                self._kept[end] = piece[end - begin :]
        return True

    def _inflate(self, buffer: memoryview) -> None:
        """Fill the buffer with the bytes that come next; look behind the last one."""
        done = 0
        while done < len(buffer):
            piece = self._next(len(buffer) - done)
            if not piece:
                self._fail(f"inflates to {self._at + done:,} bytes, not to {self.nbytes:,} as the archive says")
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        self._at += done
        self._sum = zlib.crc32(buffer, self._sum)
        if self._at == self.nbytes and done:
            if self._next(1):
                self._fail(f"inflates to more than {self.nbytes:,} bytes, which the archive says it has")
            if self._sum != self.checksum:
                self._fail("has other bytes than its checksum says: was the file damaged on its way?")
            self._inflater, self._rest = None, b""  # there may be thousands of members

    def _next(self, limit: int) -> bytes:
        """Up to `limit` more bytes; none at the end."""
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        while not self._inflater.eof:
            if not self._rest:
                self._rest = self.file.read(self.begin + self._taken, min(_PIECE, self.packed - self._taken))
                self._taken += len(self._rest)
            try:
                piece = self._inflater.decompress(self._rest, limit)
            except zlib.error:
                self._fail("can't be inflated: was the file damaged on its way?")
            ended = not self._rest
            self._rest = self._inflater.unconsumed_tail
            if piece:
                return piece
            if ended:
                break
        return b""

    def _fail(self, what: str) -> NoReturn:
        self.restart()
        raise CheckpointError(f"{self.shown} {what}")
