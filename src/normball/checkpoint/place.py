"""Where a result may go: never over what it is read from, nor over anything that it doesn't replace."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from normball.checkpoint import files
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.tensors import Model


class Place:
    """OUT, and what is known of it before anything is written. All methods but one raise CheckpointError, or return."""

    def __init__(self, model: Model, out: Path, force: bool) -> None:
        self.out, self.force = out, force
        self.folder = model.folder is not None or len(model.files) > 1  # or else a file
        self.partial = out.with_name(f"{out.name}.partial") if out.name else out
        self._model = model
        self._kind = model.files[0].kind
        self._inputs = [file.path for file in model.files] + ([model.index] if model.index else [])
        self.names = [file.path.name for file in model.files] if self.folder else [out.name]
        self.expected = {*self.names, *([model.index.name] if model.index else [])}

    @property
    def taken(self) -> bool:
        """Whether there is something at OUT."""
        return os.path.lexists(self.out)

    def refuse(self) -> None:
        """A place that won't do."""
        if self.out.name in ("", ".."):
            raise self._error("has no name of its own; name the file or folder to make")
        if not self.out.parent.is_dir():
            raise self._error("its folder doesn't exist; make it first")
        if self.out.is_symlink():
            raise self._error(f"is a symbolic link; name what it points to, {printable(os.readlink(self.out))!r}")
        self._refuse_inputs()
        if not self.folder and self.out.suffix.lower() != f".{self._kind}":
            raise self._error(f"the result is a .{self._kind} file as its input; name it so")
        self.refuse_present()

    def _refuse_inputs(self) -> None:
        """What is read must not be replaced, nor lie in what is replaced."""
        for path in self._inputs:
            for folder in (path.parent, path.resolve().parent):
                if files.same(self.out, path) or files.same(self.out, folder):
                    raise self._error("is what is read, or its folder; name another place")
                if any(files.same(self.partial, near) for near in (folder, folder.parent)):
                    raise self._error(f"{printable(str(path))!r} lies where the result is made; move it away first")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise self._error(f"can't hold two files named {printable(twice)!r}; rename one")

    def refuse_present(self) -> None:
        """What lies at OUT must be of the result's kind; a folder may only hold what it gets anew."""
        if not self.taken:
            return
        mode = os.lstat(self.out).st_mode
        if not (stat.S_ISDIR if self.folder else stat.S_ISREG)(mode):
            wanted = "folder, as for several files" if self.folder else "plain file, as for one file"
            raise self._error(f"exists and isn't a {wanted}; name another")
        for entry in self._entries():
            if not entry.is_file(follow_symlinks=False) or entry.name not in self.expected:
                raise self._error(f"holds {printable(entry.name)!r}, which would be lost; move it away first")
            if any(files.same(Path(entry.path), path) for path in self._inputs):
                raise self._error(f"holds {printable(entry.name)!r}, which is what is read; name another place")

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        if self.folder:
            with os.scandir(self.out) as entries:
                yield from sorted(entries, key=lambda entry: entry.name)

    def refuse_unasked(self) -> None:
        """Nothing is replaced but by --force."""
        if self.taken and not self.force:
            raise self._error("exists; --force replaces it, when the result is complete")

    def refuse_unswappable(self, folder: Path) -> None:
        """A folder must be replaced at once. Tried out in another folder, as it depends on the file system."""
        if self.folder and self.taken and not files.can_swap(folder):
            raise self._error("this file system can't replace a folder at once; remove it, or name another place")

    def refuse_full(self, sizes: list[tuple[Path, int]]) -> None:
        """Better now than after hours. What an earlier run has made is there already."""
        system = os.statvfs(self.out.parent)
        free = system.f_bavail * system.f_frsize
        needed = sum(max(0, size - files.allocated(path)) for path, size in sizes)
        if system.f_blocks and needed > free:
            raise self._error(f"needs {needed:,} bytes where {free:,} are free; make room first")

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"OUT {printable(str(self.out))!r}: {text}")
