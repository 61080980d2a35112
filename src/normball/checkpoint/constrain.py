"""`normball constrain`: the same model with its norms inside their balls, all of it at once or not at all."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from normball import __version__, kernels
from normball.checkpoint import archive, stream
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.model import open_model
from normball.checkpoint.output import Output
from normball.checkpoint.plan import plan
from normball.checkpoint.rules import Choice
from normball.checkpoint.signals import Stopped
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.target import Target
from normball.checkpoint.tensors import FP8, File, Model, Tensor
from normball.checkpoint.workers import Workers


@dataclass(frozen=True)
class Outcome:
    """What became of one tensor."""

    tensor: Tensor
    choice: Choice
    statistics: Statistics | None  # of its norms before; None where it was left alone, or finished by an earlier run
    resumed: bool = False  # finished by an earlier run


def run(
    model: Model,
    choices: Mapping[str, Choice],
    out: Path | None,
    *,
    force: bool,
    resume: bool,
    dry_run: bool,
    verify: bool,
    workers: Workers,
    report: Callable[[Outcome], None],
) -> None:
    """Make the result at `out`, or only tell what would be done; `report` hears of each tensor, in order."""
    _refuse_fp8(model, choices)
    if dry_run:
        _rehearse(model, choices, workers, report)
        return
    assert out is not None, "only a rehearsal needs no place"
    before = _stamps(model)
    try:
        with Output(model, out, identity(model, choices), force, resume) as output, _saying_how_to_go_on(output):
            for file in model.files:
                _file(output, file, choices, workers, report)
            if _stamps(model) != before:
                output.discard()
                raise CheckpointError("the input was written to while it was read; run again when it is complete")
            paths = output.seal()
            if verify:
                _verify(output, model, paths, choices, workers)
            output.commit()
    except OSError as error:
        raise _one_line(error, out) from None


def _verify(output: Output, model: Model, paths: list[Path], choices: Mapping[str, Choice], workers: Workers) -> None:
    """Before OUT is touched; what fails must not be gone on with."""
    try:
        with open_model(paths) as result:
            compare(model, result, choices, workers)
    except CheckpointError:
        if not output.finished:
            output.discard()
        raise


def identity(model: Model, choices: Mapping[str, Choice]) -> bytes:
    """A digest of all that a result depends on, but for the tensors' own bytes.

    Sizes, times and inodes stand for these: two models of one shape may be unpacked with one date for all files.
    """
    digest = hashlib.sha256()
    chosen = [(t.name, *_axes_and_limit(choices[t.name])) for t in model.tensors]
    status = [os.stat(file.path) for file in model.files]
    inodes = [(found.st_ino, found.st_ctime_ns) for found in status]
    digest.update(json.dumps([__version__, kernels.best.__name__, _stamps(model), inodes, chosen]).encode())
    for file in model.files:
        for piece in _heads(file):
            digest.update(piece)
    digest.update(model.index.read_bytes() if model.index else b"")
    return digest.digest()


def compare(model: Model, result: Model, choices: Mapping[str, Choice], workers: Workers) -> None:
    """Read both again, and judge in exact arithmetic; CheckpointError where the result isn't what it should be."""
    for file, other in zip(model.files, result.files, strict=True):
        if (wrong := _wrong(file, other)) is not None:
            raise CheckpointError(f"{printable(str(other.path))}: {wrong}; the result is not used")
        for tensor, made in zip(file.tensors, other.tensors, strict=True):
            axes, limit = _axes_and_limit(choices[tensor.name])
            stream.verify(tensor, made, axes, limit or 0.0, workers)
            if axes is not None and limit is not None:  # the same bits, whatever the number of threads
                stream.constrain(tensor, axes, limit, _comparing(made), Statistics(), workers)


def _wrong(file: File, other: File) -> str | None:
    """What of all but the tensors is not as it was."""
    for tensor, made in zip(file.tensors, other.tensors, strict=True):
        if (tensor.name, tensor.dtype, tensor.shape) != (made.name, made.dtype, made.shape) and file.kind != "npy":
            return f"{printable(made.name)!r} is not {printable(tensor.name)!r}, or of another dtype or shape"
    if any(one != two for one, two in zip(_heads(file), _heads(other), strict=True)):
        return "its header is not the input's"
    if file.kind == "npz" and not archive.sound(other.path):
        return "its checksums do not fit its members"
    return None


def _heads(file: File) -> Iterator[bytes]:
    """What lies before the tensors, in pieces."""
    for _, source, length in plan(file, file.path, file.path.parent).heads:
        for begin in range(0, length, 1 << 20):
            piece = bytearray(min(1 << 20, length - begin))
            source.read_into(begin, memoryview(piece))
            yield bytes(piece)


def _comparing(made: Tensor) -> Callable[[int, memoryview], None]:
    """In place of a writer: what is there already must be what would be written."""

    def compare(offset: int, data: memoryview) -> None:
        data = data.cast("B")
        there = memoryview(bytearray(len(data)))
        made.source.read_into(made.begin + offset, there)
        if there != data:
            raise CheckpointError(
                f"{printable(made.name)}: the result read back is not what was written; check the disk"
            )

    return compare


def _file(
    output: Output, file: File, choices: Mapping[str, Choice], workers: Workers, report: Callable[[Outcome], None]
) -> None:
    """Write one file of the result, or what is missing of it."""
    if output.finished:
        for tensor in file.tensors:
            workers.progress(tensor.nbytes)
            report(Outcome(tensor, choices[tensor.name], None, resumed=True))
        return
    with output.file(file) as target:
        for tensor in file.tensors:
            report(_tensor(output, target, tensor, choices[tensor.name], workers))


def _tensor(output: Output, target: Target, tensor: Tensor, choice: Choice, workers: Workers) -> Outcome:
    """Write one tensor."""
    if target.done(tensor):
        workers.progress(tensor.nbytes)
        return Outcome(tensor, choice, None, resumed=True)
    axes, limit = _axes_and_limit(choice)
    if axes is None or limit is None:
        stream.copy(tensor, target.writer(tensor), workers)
        target.finish(tensor)
        return Outcome(tensor, choice, None)
    statistics = Statistics()
    try:
        stream.constrain(tensor, axes, limit, target.writer(tensor), statistics, workers)
    except CheckpointError:
        if statistics.nonfinite:  # which no other run would get past
            output.discard()
        raise
    target.finish(tensor)
    return Outcome(tensor, choice, statistics.finish())


def _rehearse(model: Model, choices: Mapping[str, Choice], workers: Workers, report: Callable[[Outcome], None]) -> None:
    """Measure only."""
    for tensor in model.tensors:
        axes, limit = _axes_and_limit(choices[tensor.name])
        statistics = None
        if axes is not None:
            statistics = Statistics()
            stream.measure(tensor, axes, limit, statistics, workers)
            statistics.finish()
        report(Outcome(tensor, choices[tensor.name], statistics))


def _axes_and_limit(choice: Choice) -> tuple[tuple[int, ...] | None, float | None]:
    """Both or neither: without a limit there is nothing to do."""
    return (None, None) if choice.axes is None or choice.limit is None else (choice.axes, choice.limit)


def _refuse_fp8(model: Model, choices: Mapping[str, Choice]) -> None:
    """With three bits of mantissa there is no rescaling that means anything, and a scale may lie beside."""
    for tensor in model.tensors:
        if tensor.dtype in FP8 and _axes_and_limit(choices[tensor.name])[0] is not None:
            name = printable(tensor.name)
            raise CheckpointError(
                f"{name}: is of {tensor.dtype}, whose two or three bits can't be rescaled without rounding most of it "
                f"away; leave it alone by a rule '{name}: skip'"
            )


def _stamps(model: Model) -> list[tuple[str, str, int, int]]:
    """What shows that an input was written to."""
    status = [(file, os.stat(file.path)) for file in model.files]
    return [(file.path.name, file.kind, found.st_size, found.st_mtime_ns) for file, found in status]


@contextmanager
def _saying_how_to_go_on(output: Output) -> Iterator[None]:
    """Whatever stops the work, the line that says so also says what is left, and what to do."""
    try:
        yield
    except Stopped as stopped:
        stopped.remedy = output.kept
        raise
    except OSError as error:
        raise _one_line(error, output.partial, output.kept) from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}{output.kept}") from None


def _one_line(error: OSError, path: Path, kept: str = "") -> CheckpointError:
    """What the system has said, and of what."""
    name = error.filename if isinstance(error.filename, str) else str(error.filename or path)
    return CheckpointError(f"{printable(name)!r}: {error.strerror or error}{kept}")
