"""A result that is made beside its place, goes on where it was stopped, and comes to its place whole, by one rename.

`<OUT>.partial/` holds `journal`, `result/` with the new files, and `members/` with what an npz is packed from. As the
journal stays while `result/`, or the one file in it, is renamed to OUT, whatever moment a crash leaves behind can be
told: a line with the inode of what was about to be renamed says whether it was.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normball.checkpoint import files
from normball.checkpoint.archive import pack
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.journal import Journal, foreign
from normball.checkpoint.place import Place
from normball.checkpoint.plan import plan
from normball.checkpoint.target import Target
from normball.checkpoint.tensors import File, Model

_NAMES = {"journal", "result", "members"}


class Output:
    """The result of one run, of an identity that another run must have to go on with it."""

    _journal: Journal

    def __init__(self, model: Model, out: Path, identity: bytes, force: bool, resume: bool) -> None:
        self._model, self._out, self._identity, self._resume = model, out, identity.hex(), resume
        self._place = Place(model, out, force)
        self.partial = self._place.partial
        self._result, self._members = self.partial / "result", self.partial / "members"
        self._paths = [self._result / name for name in self._place.names]
        self._plans = [plan(file, path, self._members) for file, path in zip(model.files, self._paths, strict=True)]
        self._whole = self._result if self._place.folder else self._paths[0]  # what is renamed to OUT
        self._locked = False
        self.finished = False  # an earlier run came as far as the rename

    def __enter__(self) -> "Output":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._locked:
            self._locked = False
            self._journal.close()

    # How far did an earlier run come?

    def _begin(self) -> None:
        """Refuse what won't do before anything is written; then take or make the partial folder."""
        self._place.refuse()
        if self._present():
            self._take()
            if self._resume and self._recorded() and self._is(self._out):
                self.finished = True
                return
        self._place.refuse_unasked()
        self._place.refuse_full(self._sizes())
        if not self._locked:
            os.mkdir(self.partial, 0o700)
            self._lock(new=True)
        if not (self._resume and self._resumable()):
            self._start_over()
        for folder in (self._result, self._members):
            if not folder.is_dir():
                os.mkdir(folder, 0o700)
        try:
            self._place.refuse_unswappable(self._members)
        except CheckpointError:
            self.discard()
            raise
        files.sync_folder(self.partial)
        files.sync_folder(self._out.parent)

    def _present(self) -> bool:
        """Whether there is a partial folder; an empty one, from between two steps, is as good as none."""
        if self.partial.is_dir() and not self.partial.is_symlink() and not os.listdir(self.partial):
            os.rmdir(self.partial)
        return os.path.lexists(self.partial)

    def _take(self) -> None:
        """The partial folder that is there, if it is ours."""
        if self.partial.is_symlink() or not self.partial.is_dir():
            raise foreign(self.partial, "is no folder")
        names = set(os.listdir(self.partial))
        if names - _NAMES:
            raise foreign(self.partial, f"holds {printable(min(names - _NAMES))!r}")
        if names and "journal" not in names:
            raise foreign(self.partial, "has no journal of normball's")
        for name in names - {"journal"}:  # nothing is written, or removed, through a link
            if not stat.S_ISDIR(os.lstat(self.partial / name).st_mode):
                raise foreign(self.partial, f"holds {name!r} that is no folder")
        self._lock(new=False)
        if not self._journal.lines and len(names) > 1:
            raise foreign(self.partial, "has an empty journal")

    def _lock(self, new: bool) -> None:
        self._journal = Journal(self.partial / "journal", new)
        self._locked = True

    def _recorded(self) -> bool:
        """Whether the journal is about this very work."""
        return self._journal.identity == self._identity

    def _is(self, path: Path) -> bool:
        """Whether this is what was about to be renamed to OUT."""
        return os.path.lexists(path) and _commit_line(path) in self._journal.lines

    def _resumable(self) -> bool:
        """Whether what the journal speaks of is there."""
        if not self._recorded():
            return False
        if any(line.startswith("commit ") for line in self._journal.lines) and not self._is(self._whole):
            return False
        return all(not self._count(n) or files.own(plan.path, plan.size) for n, plan in enumerate(self._plans))

    def _count(self, number: int) -> int:
        """How many tensors of a file are finished; they are, in their order."""
        prefix = f"done {number} "
        counts = [line.removeprefix(prefix) for line in self._journal.lines if line.startswith(prefix)]
        return int(counts[-1]) if counts else 0

    def _start_over(self) -> None:
        """The journal goes last: a file of which it speaks, and which isn't there, starts all over as well."""
        files.remove_flat(self._result)
        files.remove_flat(self._members)
        files.sync_folder(self.partial)
        self._journal.start(self._identity)

    def _sizes(self) -> list[tuple[Path, int]]:
        """Of all that is going to be written."""
        pairs = list(zip(self._model.files, self._paths, strict=True))
        sizes = [(plan.path, plan.size) for plan in self._plans]
        sizes += [(path, file.nbytes) for file, path in pairs if file.kind == "npz"]
        index = self._model.index
        return sizes + ([(self._result / index.name, index.stat().st_size)] if index else [])

    # Writing

    @contextmanager
    def file(self, file: File) -> Iterator[Target]:
        """One file of the result: its head is there already, its tensors are to be written in their order."""
        number = next(n for n, other in enumerate(self._model.files) if other is file)
        with Target(self._plans[number], self._journal, number, self._count(number)) as target:
            yield target

    def seal(self) -> list[Path]:
        """Complete the result, and put it on the disk; the paths to open it at. Only its name is missing then."""
        if self.finished:
            return self._openable(self._out)
        for file, written, path in zip(self._model.files, self._plans, self._paths, strict=True):
            if file.kind == "npz":
                pack(file, written, path)
        if self._model.index:
            _copy(self._model.index, self._result / self._model.index.name)
        if other := set(os.listdir(self._result)) ^ self._place.expected:
            raise CheckpointError(f"{printable(str(self._result / min(other)))}: is missing, or not of this result")
        if self._model.folder:  # whose owner goes on being able to write in it, as a rename needs
            os.chmod(self._result, stat.S_IMODE(self._model.folder.stat().st_mode) | 0o700)
        elif self._place.folder:
            os.chmod(self._result, 0o777 & ~_umask())
        files.sync_folder(self._result)
        return self._openable(self._whole)

    def _openable(self, whole: Path) -> list[Path]:
        """What to open to read the result."""
        return [whole / name for name in self._place.names] if self._place.folder and not self._model.index else [whole]

    def commit(self) -> None:
        """The result comes to its place, and what it was made in goes."""
        if not self.finished:
            self._place.refuse_present()
            self._place.refuse_unasked()
            self._journal.append(_commit_line(self._whole))
            self._journal.sync()
            if not self._place.taken:
                files.move(self._whole, self._out)
            elif self._place.folder:
                files.swap(self._whole, self._out)
            else:
                os.replace(self._whole, self._out)
        files.sync_folder(self._out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the partial folder: after a commit, or where the work is refused. The journal goes last."""
        files.remove_flat(self._result)
        files.remove_flat(self._members)
        os.unlink(self.partial / "journal")
        os.rmdir(self.partial)

    @property
    def kept(self) -> str:
        """How to go on, for the end of a line that says why it stopped."""
        if self._locked and self._is(self._out):
            return "; OUT is complete all the same"
        if not self._locked or not self.partial.is_dir():
            return ""
        return f"; what is done is kept in {printable(str(self.partial))!r}: the same command goes on from there"


def _copy(path: Path, target: Path) -> None:
    """A small file as it is, mode and all."""
    data, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    if os.path.lexists(target):
        os.unlink(target)
    descriptor = files.create(target)
    try:
        files.write_at(descriptor, 0, memoryview(data))
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit_line(path: Path) -> str:
    status = os.lstat(path)
    return f"commit {status.st_dev} {status.st_ino}"


def _umask() -> int:
    """Which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
