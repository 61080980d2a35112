"""What a writer that loses nothing asks of the system: writes that end, syncs, renames that replace nothing or swap."""

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2  # of renameat2
_HERE = -100  # AT_FDCWD
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

# Without it (macOS) a whole fsync.
sync_data = getattr(os, "fdatasync", os.fsync)


def write_at(descriptor: int, offset: int, data: memoryview) -> None:
    """All the bytes, however few the system takes at a time."""
    data = data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        if not written:  # or this would never end
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[written:], offset + written


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """That many bytes, fewer at the end of the file."""
    data = b""
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


def create(path: Path) -> int:
    """A new file that only its owner may open; an error where anything has that name, be it a link to nowhere."""
    return os.open(path, _NEW, 0o600)


def reopen(path: Path) -> int:
    """A file of ours, to go on writing: never through a link."""
    return os.open(path, _OLD)


def sync_folder(path: Path) -> None:
    """Names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems whose folders need none
            raise
    finally:
        os.close(descriptor)


def own(path: Path, size: int) -> bool:
    """Whether this is a plain file of that size under no other name, so that writing to it writes to nothing else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == size


def allocated(path: Path) -> int:
    """Bytes that a file takes on its disk; 0 where there is none."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def same(path: Path, other: Path) -> bool:
    """Whether both names lead to one file or folder."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def remove_flat(folder: Path) -> None:
    """A folder of plain files and links, if it exists; an error at the first folder within it."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            os.unlink(folder / name)
        os.rmdir(folder)


def move(source: Path, target: Path) -> None:
    """Rename, but an error where the target exists."""
    try:
        _renameat2(source, target, _NOREPLACE)
    except NotImplementedError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)


def swap(one: Path, other: Path) -> None:
    """Each gets the other's name, at once; NotImplementedError where the system or the file system can't."""
    _renameat2(one, other, _EXCHANGE)


def can_swap(folder: Path) -> bool:
    """Whether that can be done in a folder, tried out on two files."""
    one, other = folder / "one", folder / "other"
    for path in (one, other):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(create(path))
    try:
        swap(one, other)
    except NotImplementedError:
        return False
    finally:
        os.unlink(one)
        os.unlink(other)
    return True


def _renameat2(source: Path, target: Path, flag: int) -> None:
    """Linux's rename with a flag, which Python has no function for."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        raise NotImplementedError("renameat2") from None
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise NotImplementedError("renameat2")
    raise OSError(code, os.strerror(code), str(target))
