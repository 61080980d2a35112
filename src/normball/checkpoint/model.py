"""Opening what the user named, in whatever format it is, with every check done before any of it is read."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.numpy_files import pickled, read_npy, read_npz
from normball.checkpoint.safetensors import HEADER_LIMIT, read_safetensors
from normball.checkpoint.sources import FileSource
from normball.checkpoint.strict_json import Text
from normball.checkpoint.tensors import File, Model

TENSORS = 300_000  # of one model: twice what the largest known have; each takes some 300 bytes of memory
_NAME = 4096  # characters of a tensor's name
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHERS = 65536  # bytes of what else an index holds
_INDEX = "model.safetensors.index.json"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# What files that were given by mistake begin with.
_FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: fetch it with git lfs pull",
    b"GGUF": "is a GGUF file, which isn't read: name the safetensors file it was made of",
    b"\x89HDF": "is an HDF5 file, which isn't read: save its arrays with numpy.savez",
    b"\x93NUMPY": "is a .npy file: give it that ending",
    b"PK\x03\x04": "is a zip archive, not a safetensors file; if numpy.savez wrote it: give it the ending .npz",
    b"<!": "is a web page, not the file itself: was it downloaded from the right address?",
    b"<html": "is a web page, not the file itself: was it downloaded from the right address?",
}


def open_model(paths: Sequence[str | Path]) -> Model:
    """A file, several, or a folder of safetensors files: open, each of its tensors found and checked."""
    given = [Path(path) for path in paths]
    if not given:
        raise CheckpointError("no model was named")
    with ExitStack() as opened:
        if len(given) == 1 and given[0].is_dir():
            model = _open_folder(given[0], opened)
        else:
            model = Model([])
            for path in given:
                _add(model.files, _open(path, opened))
        _check_names(model)
        model.closers.append(opened.pop_all().close)
    return model


def _add(files: list[File], source: FileSource) -> None:
    """One more file of a model."""
    most = TENSORS - sum(len(file.tensors) for file in files)
    if most == 0:
        raise CheckpointError(f"{source.shown} has more tensors than are read of one model")
    files.append(_read(source, most))


def _read(source: FileSource, most: int) -> File:
    """The tensors of a file, at most so many, in the format that its name says; where it says none, its bytes do."""
    first, suffix = source.read(0, 24), source.path.suffix.lower()
    known = suffix in (".npy", ".npz", ".safetensors")
    if suffix == ".npy" or (not known and first.startswith(b"\x93NUMPY")):
        return read_npy(source)
    if suffix == ".npz" or (not known and first.startswith(b"PK\x03\x04")):
        return read_npz(source, most)
    if first[8:9] != b"{":
        _explain(source, first)
    return read_safetensors(source, most)


def _explain(source: FileSource, first: bytearray) -> None:
    """Say what a file is that can't be a safetensors file, where that shows."""
    if first.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(pickled(source.shown))
    for magic, what in _FOREIGN.items():
        if first.startswith(magic):
            raise CheckpointError(f"{source.shown} {what}")


def _check_names(model: Model) -> None:
    """Names differ, and can be printed and typed; what else they look like does no harm: they are never paths."""
    places: dict[str, File] = {}
    for file in model.files:
        for tensor in file.tensors:
            name = tensor.name
            if _CONTROL.search(name) or len(name) > _NAME:
                raise CheckpointError(
                    f"{printable(str(file.path))}: the name of tensor '{printable(name[:80])}' has control characters, "
                    f"or more than {_NAME:,} in all"
                )
            if places.setdefault(name, file) is not file:
                raise CheckpointError(
                    f"tensor '{printable(name)}' is in {printable(str(places[name].path))} and in "
                    f"{printable(str(file.path))}: name files of one model, each once"
                )


def _open_folder(folder: Path, opened: ExitStack) -> Model:
    """A folder with an index, or with one file."""
    shown = printable(str(folder))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{shown} can't be read: {error.strerror}") from None
    files: list[File] = []
    if _INDEX in names:
        _open_index(folder, files, opened)
        return Model(files, folder, folder / _INDEX)
    found = [name for name in names if name.endswith(".safetensors")]
    if not found and any(name.lower().endswith(_PICKLES) for name in names):
        name = next(name for name in names if name.lower().endswith(_PICKLES))
        raise CheckpointError(pickled(printable(str(folder / name))))
    if not found:
        raise CheckpointError(f"{shown} holds no .safetensors file; name .npy and .npz files themselves")
    if len(found) > 1:
        raise CheckpointError(
            f"{shown} holds {len(found)} .safetensors files and no {_INDEX} that says how they belong together: "
            "name the files themselves"
        )
    _add(files, _inside(folder, found[0], opened))
    return Model(files, folder)


def _open_index(folder: Path, files: list[File], opened: ExitStack) -> None:
    """Every file that the index names; it and they must say the same of which tensors there are, and where."""
    index = _inside(folder, _INDEX, opened)
    places = _read_index(index)
    for shard in dict.fromkeys(places.values()):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{index.shown} names the file '{printable(shard)}'; only files of its own folder are read: "
                "if you trust it, name the files themselves"
            )
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index.shown} names '{printable(shard)}', which is no .safetensors file")
    for shard in dict.fromkeys(places.values()):
        try:
            os.lstat(folder / shard)
        except OSError as error:
            raise CheckpointError(
                f"{index.shown} names the file '{printable(shard)}': {error.strerror}; a download cut short?"
            ) from None
        _add(files, _inside(folder, shard, opened))
        for tensor in files[-1].tensors:
            if (place := places.pop(tensor.name, None)) != shard:
                raise CheckpointError(
                    f"tensor '{printable(tensor.name)}' is in {printable(str(files[-1].path))}; "
                    f"{index.shown} has it in " + (f"'{printable(place)}'" if place else "no file")
                )
    for name, shard in places.items():
        raise CheckpointError(f"{index.shown} has tensor '{printable(name)}' in '{printable(shard)}', where it isn't")


def _read_index(index: FileSource) -> dict[str, str]:
    """Which file each tensor is in."""
    if index.nbytes > HEADER_LIMIT:
        raise CheckpointError(
            f"{index.shown} has {index.nbytes:,} bytes; at most {HEADER_LIMIT:,} are read of an index"
        )
    text = Text(index.read(0, index.nbytes), index.shown)
    places: dict[str, str] = {}
    shards: dict[str, str] = {}

    def place(name: str, at: int) -> int:
        shard, end = text.string(at)
        if len(places) == TENSORS:
            raise CheckpointError(f"{index.shown} has more tensors than are read of one model")
        places[name] = shards.setdefault(shard, shard)  # one string for all
        return end

    def member(name: str, at: int) -> int:
        return text.members(at, place) if name == "weight_map" else text.value(at, _OTHERS)[1]

    text.finish(text.members(0, member))
    if not places:
        raise CheckpointError(f"{index.shown} has no weight_map, which says what file each tensor is in")
    return places


def _inside(folder: Path, name: str, opened: ExitStack) -> FileSource:
    """Open a file of the folder: it may be a link to another one in it, but not lead out of it."""
    path, real = folder / name, Path(os.path.realpath(folder / name))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise CheckpointError(
            f"{printable(str(path))} is a link out of its folder, to {printable(str(real))}: "
            "if you trust it, name the files themselves"
        )
    return _open(path, opened, real)


def _open(path: Path, opened: ExitStack, real: Path | None = None) -> FileSource:
    """Open a file until the model is closed."""
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(pickled(printable(str(path))))
    source = FileSource(path, real)
    opened.callback(source.close)
    return source
