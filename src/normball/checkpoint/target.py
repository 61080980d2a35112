"""One file of a result, as it is written: its head, then its tensors, from any number of threads, each once."""

import os
from collections.abc import Callable

from normball.checkpoint import files
from normball.checkpoint.journal import Journal
from normball.checkpoint.plan import Plan
from normball.checkpoint.signals import Stopped
from normball.checkpoint.tensors import Source, Tensor

SYNC_EVERY = 256 << 20  # bytes written until they are put on the disk and the journal says so: what a crash may cost


class Target:
    """One file that is being written."""

    def __init__(self, plan: Plan, journal: Journal, number: int, count: int) -> None:
        self._plan, self._journal, self._number, self._count = plan, journal, number, count
        self._recorded, self._unsynced = count, 0

    def __enter__(self) -> "Target":
        path, size = self._plan.path, self._plan.size
        if files.own(path, size):
            os.chmod(path, 0o600)  # it may have got its own mode already, which may not let us in
            self._descriptor = files.reopen(path)
        else:
            if os.path.lexists(path):
                os.unlink(path)
            self._descriptor = files.create(path)
        try:
            os.ftruncate(self._descriptor, size)
            files.sync_folder(path.parent)  # before the journal says that something is in it
            for offset, source, length in self._plan.heads:
                _pour(source, length, self._descriptor, offset)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                assert self._count == len(self._plan.offsets), "not every tensor is finished"
                os.fchmod(self._descriptor, self._plan.mode)
                os.fsync(self._descriptor)
                self._record()
            elif issubclass(kind, Stopped):
                self._sync()  # only then: after an error, a second sync may say that all is well when it isn't
        finally:
            os.close(self._descriptor)

    def done(self, tensor: Tensor) -> bool:
        """Whether an earlier run, or this one, finished it."""
        return self._plan.numbers[tensor.name] < self._count

    def writer(self, tensor: Tensor) -> Callable[[int, memoryview], None]:
        """A function (offset within the tensor, bytes) for any thread."""
        begin = self._plan.offsets[self._plan.numbers[tensor.name]]
        return lambda offset, data: files.write_at(self._descriptor, begin + offset, data)

    def finish(self, tensor: Tensor) -> None:
        """All its bytes were written. That is recorded when they are on the disk, with others' for speed."""
        assert self._plan.numbers[tensor.name] == self._count, "tensors are finished in their order"
        self._count += 1
        self._unsynced += tensor.nbytes
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        files.sync_data(self._descriptor)
        self._record()

    def _record(self) -> None:
        """Say what is on the disk."""
        if self._count > self._recorded:
            self._journal.append(f"done {self._number} {self._count}")
        self._recorded, self._unsynced = self._count, 0


def _pour(source: Source, length: int, descriptor: int, offset: int) -> None:
    """Bytes from the beginning of a source to a file, in pieces."""
    buffer = memoryview(bytearray(min(length, 1 << 20)))
    for begin in range(0, length, 1 << 20):
        piece = buffer[: length - begin]
        source.read_into(begin, piece)
        files.write_at(descriptor, offset + begin, piece)
