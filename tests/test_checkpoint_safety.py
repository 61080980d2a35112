"""Whatever happens to `normball constrain`, its input stays as it was, and OUT is wholly the old one or wholly the new.

Processes are really killed, and calls to the system really fail (`faults.c`). What finds losses here is shown to find
those of a program that writes straight into OUT.
"""

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_index, write_safetensors

fcntl = pytest.importorskip("fcntl", reason="needs Linux: constrain's locks are POSIX's")

HERE = Path(__file__).parent
THOROUGH = bool(os.environ.get("NORMBALL_THOROUGH"))
KILLS = 1000 if THOROUGH else 50  # for each of the four kinds of results
RAM = Path("/dev/shm")  # where there is one: what is tested here doesn't depend on the disk, which syncs slowly
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_faults = pytest.mark.skipif(
    not sys.platform.startswith("linux") or COMPILER is None,
    reason="needs Linux and a C compiler: faults are injected by a preloaded library",
)


class Fork:
    """The command line in a process of its own for each run, a few milliseconds each."""

    def __init__(self, library: Path | None) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads is not to be forked
        environment |= {"LD_PRELOAD": str(library)} if library else {}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "checkpoint_forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == "ready"

    def run(self, argv: list, **order) -> dict:
        self._process.stdin.write(json.dumps({"argv": list(map(str, argv)), **order}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        with self._process:
            self._process.stdin.close()

    def _answer(self):
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    library = None
    if sys.platform.startswith("linux") and COMPILER:
        library = tmp_path_factory.mktemp("faults") / "faults.so"
        command = [COMPILER, "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
        subprocess.run(command, check=True)
    made = Fork(library)
    yield made
    made.close()


@pytest.fixture
def room(tmp_path):
    """An empty folder, in memory where that can be had."""
    if not (RAM.is_dir() and os.access(RAM, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=RAM) as folder:
        yield Path(folder)


def tree(path: Path) -> dict | None:
    """All there is to see of a file or a folder; None where there is nothing."""
    if not os.path.lexists(path):
        return None
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        return {"": mode, **{inner.name: tree(inner) for inner in path.iterdir()}}
    return {"": mode, "content": os.readlink(path) if path.is_symlink() else stat.S_ISREG(mode) and path.read_bytes()}


def tensors(rows: int, seed: int, parts: int = 4) -> dict:
    """Some of every kind: most of their groups over 3, some with what is left alone."""
    rng = np.random.default_rng(seed)
    made = {
        f"layer.{n}.{seed}.weight": ("F32", rng.normal(size=(rows, 16)).astype("f4"), (rows, 16)) for n in range(parts)
    }
    made[f"bias.{seed}"] = ("F32", np.arange(5, dtype="f4"), (5,))
    made[f"half.{seed}.weight"] = ("F16", rng.normal(size=(rows, 24)).astype("f2"), (rows, 24))
    made[f"ids.{seed}"] = ("I64", np.arange(rows), (rows,))
    return made


class Job:
    """One input, one place for the result, an earlier result in it or not, and what the new one is to be."""

    def __init__(self, fork: Fork, room: Path, kind: str, rows: int = 8, old: bool = True) -> None:
        self.fork, self.kind, self.had = fork, kind, old
        self.syncs: dict[str, int] = {}  # of a whole run
        self.source, self.place = room / "in", room / "place"
        self.source.mkdir()
        self.place.mkdir()
        if kind == "file":
            self.model = write_safetensors(self.source / "a.safetensors", tensors(rows, 0), {"who": "é"})
        elif kind == "folder":
            self.model = write_index(
                self.source / "model", {f"s{n}.safetensors": tensors(rows, n, 2) for n in range(2)}
            )
        else:
            self.model = self.source / "a.npz"
            save = np.savez_compressed if kind == "packed npz" else np.savez
            save(self.model, **{name: content for name, (_, content, _) in tensors(rows, 0, 1).items()})
        self.out = self.place / ("out" if kind == "folder" else f"out{self.model.suffix}")
        self.partial = self.place / f"{self.out.name}.partial"
        self.argv = [
            "constrain",
            self.model,
            "--max-norm",
            "3",
            "--layout",
            "torch",
            "-o",
            self.out,
            "-j",
            "1",
            "--force",
        ]
        self.reset()
        self.before, self.old = tree(self.source), tree(self.out)
        assert self.run()["code"] == 0
        self.new = tree(self.out)
        assert self.new != self.old
        self.reset()

    def reset(self) -> None:
        """As it was before the first run."""
        for path in self.place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if self.had and self.kind == "folder":
            self.out.mkdir()
            for path in self.model.iterdir():
                (self.out / path.name).write_bytes(b"old " + path.name.encode())
        elif self.had:
            self.out.write_bytes(b"an earlier result")

    def run(self, *more: str, **order) -> dict:
        return self.fork.run([*self.argv, *more], **{"watch": str(self.place), "sync_every": 600, **order})

    def losses(self) -> list[str]:
        """What isn't as it must be at any moment."""
        found = [] if tree(self.source) == self.before else ["the input has changed"]
        if tree(self.out) not in (self.old, self.new):
            found.append("OUT is neither the old one nor the new one")
        if others := {path.name for path in self.place.iterdir()} - {self.out.name, self.partial.name}:
            found.append(f"strays: {others}")
        return found

    def completed(self) -> list[str]:
        """Run it again: what isn't as it must be after that."""
        again = self.run()
        found = [] if again["code"] == 0 else [f"the next run ends with {again['code']}: {again['errors']}"]
        if tree(self.out) != self.new:
            found.append("OUT is not the new one")
        if (names := [path.name for path in self.place.iterdir()]) != [self.out.name]:
            found.append(f"strays: {names}")
        return found + self.losses()


def one_line(errors: str) -> bool:
    """Whether this is what a user may be told."""
    return errors.startswith("normball: ") and errors.count("\n") == 1 and errors.endswith("\n")


KINDS = ["file", "folder", "npz", "packed npz"]
every_kind = pytest.mark.parametrize("kind", KINDS)
main_kinds = pytest.mark.parametrize("kind", KINDS if THOROUGH else KINDS[:3])


# Killed at random moments


@pytest.mark.parametrize("kind, old", [("file", True), ("folder", True), ("npz", True), ("folder", False)])
def test_killed_at_random(fork, room, kind, old):
    job = Job(fork, room, kind, rows=1000, old=old)
    longest = max(job.run()["took"] for _ in range(3))
    draw, killed, seen = random.Random(KINDS.index(kind) + old), 0, set()
    while killed < KILLS:
        job.reset()
        ended = job.run(after=draw.uniform(0, longest))
        assert ended["code"] in (0, -signal.SIGKILL), ended
        assert job.losses() == []
        if ended["code"]:
            killed += 1
            seen.add((job.partial.is_dir(), tree(job.out) == job.new))
            assert job.completed() == []
    assert (True, False) in seen, "none was killed at work"


def test_killed_again_and_again(fork, room):
    """Each run goes on from where the last was killed, until one comes through."""
    for kind in ("file", "folder", "npz"):
        folder = room / kind
        folder.mkdir()
        job = Job(fork, folder, kind, rows=1000)
        longest = max(job.run()["took"] for _ in range(3))
        job.reset()
        draw = random.Random(1)
        for _ in range(10):
            job.run(after=draw.uniform(0, longest))
            assert job.losses() == []
        assert job.completed() == []


@needs_faults
@main_kinds
def test_killed_at_each_call(fork, room, kind):
    """Before, after and within each call that changes the place; an orderly end of what random moments may miss."""
    job = Job(fork, room, kind)
    counts = job.run()["counts"]
    for call in ("write", "sync", "rename", "open", "truncate", "unlink", "mkdir", "chmod"):
        assert counts[call], call
        for action in ("kill before", "kill after", *(["kill within"] if call == "write" else [])):
            for n in range(1, counts[call] + 1):
                if not THOROUGH and ((action == "kill before" and n > 1) or (action == "kill within" and n % 2)):
                    continue  # before is much like after the one before
                job.reset()
                assert job.run(fault=(call, n, action, 0, False))["code"] == -signal.SIGKILL, (call, n)
                assert job.losses() == [], (call, n, action)
                assert job.completed() == [], (call, n, action)


@needs_faults
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_can_fail(fork, room, kind):
    """A program that writes straight into OUT."""
    job = Job(fork, room, kind, rows=100)
    made = room / "made"
    job.run()
    shutil.move(job.out, made)
    job.argv = [made, job.out]
    job.new = tree(made)
    found = set()
    for n in range(1, 6):
        job.reset()
        assert job.run(straight=True, fault=("write", n, "kill before", 0, False))["code"] == -signal.SIGKILL
        found |= set(job.losses())
    assert found == {"OUT is neither the old one nor the new one"}


# Calls that fail


FAULTS = {
    "write": ["ENOSPC", "EIO", "EINTR"],
    "sync": ["EIO", "ENOSPC"],
    "rename": ["EIO", "EINTR"],
    "open": ["EIO", "ENOSPC", "EMFILE"],
    "truncate": ["ENOSPC", "EINTR"],
    "unlink": ["EIO", "EINTR"],
    "mkdir": ["ENOSPC"],
    "chmod": ["EIO"],
}


def errors_of(call: str, n: int, kind: str) -> list[str]:
    """With what it fails: with one, each in its turn, and a turn later in each kind; with all where there is time."""
    names = FAULTS[call]
    return names if THOROUGH or call == "rename" else [names[(n + KINDS.index(kind)) % len(names)]]


@needs_faults
@main_kinds
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_each_call_fails(fork, room, kind, lasting):
    """The n-th call of each kind, for every n: one line, exit 2, nothing lost, and the next run comes through."""
    job = Job(fork, room, kind)
    counts = job.run()["counts"]
    for call in FAULTS:
        every = [(n, name) for n in range(1, counts[call] + 1) for name in errors_of(call, n, kind)]
        for n, name in every:
            if lasting and (name == "EINTR" or (not THOROUGH and call not in ("sync", "rename"))):
                continue
            job.reset()
            ended = job.run(fault=(call, n, "fail", getattr(errno, name), lasting))
            where = (call, n, name, ended)
            # Python itself takes up again what was interrupted, but for what may have happened all the same.
            assert ended["code"] == 2 or (name == "EINTR" and ended["code"] == 0), where
            assert one_line(ended["errors"]) == (ended["code"] == 2), where
            assert job.losses() == [], where
            assert ended["code"] == 2 or tree(job.out) == job.new, where
            assert job.completed() == [], where


@needs_faults
@main_kinds
def test_short_writes(fork, room, kind):
    """The system takes half of what it is given: the rest is given again."""
    job = Job(fork, room, kind)
    for n in range(1, job.run()["counts"]["write"] + 1):
        job.reset()
        ended = job.run(fault=("write", n, "short", 0, False))
        assert (ended["code"], tree(job.out) == job.new) == (0, True), (n, ended)
    job.reset()
    assert job.run(fault=("write", 1, "short", 0, True))["code"] == 0  # all of them
    assert tree(job.out) == job.new


@needs_faults
def test_each_read_fails(fork, room):
    job = Job(fork, room, "folder")
    counts = job.run(watch=str(job.source))["counts"]
    for call in ("read", "open"):
        for n in range(1, counts[call] + 1):
            job.reset()
            ended = job.run(watch=str(job.source), fault=(call, n, "fail", errno.EIO, False))
            assert (ended["code"], one_line(ended["errors"])) == (2, True), (call, n, ended)
            assert tree(job.out) == job.old
            assert job.losses() == []
            assert job.completed() == []


@needs_faults
def test_failing_can_fail(fork, room):
    """A program that writes straight into OUT, and a traceback."""
    job = Job(fork, room, "file", rows=100)
    made = room / "made"
    job.run()
    shutil.move(job.out, made)
    job.argv, job.new = [made, job.out], tree(made)
    job.reset()
    ended = job.run(straight=True, fault=("write", 2, "fail", errno.ENOSPC, False))
    assert job.losses() == ["OUT is neither the old one nor the new one"]
    assert not one_line(ended["errors"])
    (job.place / "stray").touch()
    (job.source / "a.safetensors").touch()
    (job.source / "a.safetensors").write_bytes(b"")
    assert len(job.losses()) == 3


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB in memory."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux: a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs, and mount says: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def elsewhere(job: Job, place: Path, kind: str) -> None:
    """Let the job's result go to another place, and an old one be there."""
    job.place, job.out = place, place / job.out.name
    job.partial = place / job.partial.name
    job.argv = to(job, job.out)
    job.reset()
    job.old = tree(job.out)


@every_kind
def test_full_file_system(fork, room, small_disk, kind):
    """A real one: refused before anything is written, and where that was wrong, the old result stays."""
    job = Job(fork, room, kind, rows=300 if kind == "folder" else 700)
    elsewhere(job, small_disk, kind)
    ballast = small_disk / "ballast"
    needed = sum(path.stat().st_size for path in (job.model.iterdir() if kind == "folder" else [job.model]))
    ballast.write_bytes(bytes(256 * 1024 - 16384 - needed // 2))
    refused = job.run()
    assert (refused["code"], one_line(refused["errors"])) == (2, True), refused
    assert "bytes where" in refused["errors"]
    assert not job.partial.exists()
    full = job.run(blind=True)
    assert (full["code"], one_line(full["errors"])) == (2, True), full
    assert os.strerror(errno.ENOSPC) in full["errors"]
    assert "the same command goes on from there" in full["errors"]
    assert tree(job.out) == job.old
    ballast.unlink()
    assert job.losses() == []
    if "npz" not in kind:  # which needs twice the room
        assert job.completed() == []


@needs_faults
@main_kinds
def test_disk_with_so_many_bytes_left(fork, room, kind):
    """As far as the bytes go, and no further."""
    job = Job(fork, room, kind, rows=40)
    written = job.run()["written"]
    steps = 200 if THOROUGH else 10
    for budget in range(0, written, written // steps):
        job.reset()
        ended = job.run(budget=budget)
        assert (ended["code"], one_line(ended["errors"])) == (2, True), (budget, ended)
        assert tree(job.out) == job.old
        assert job.losses() == []
        assert job.completed() == []


# Asked to stop


@needs_faults
@pytest.mark.parametrize("kind", KINDS if THOROUGH else KINDS[:2])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(fork, room, kind, number, code):
    """At each third write or so: one line that says how to go on."""
    job = Job(fork, room, kind)
    counts = job.run()["counts"]
    for call in ("write", "sync", "rename", "unlink"):
        for n in range(1, counts[call] + 1, 1 if THOROUGH else 3):
            job.reset()
            ended = job.run(fault=(call, n, "signal", number, False))
            assert (ended["code"], one_line(ended["errors"])) == (code, True), (call, n, ended)
            assert f"stopped by {number.name}" in ended["errors"]
            assert job.losses() == []
            if tree(job.out) == job.old and any(job.partial.glob("result/*")):
                assert "the same command goes on from there" in ended["errors"]
            assert job.completed() == []


@needs_faults
def test_what_was_finished_before_the_stop_is_kept(fork, room):
    """Though it was not time yet to put it on the disk."""
    job = Job(fork, room, "file")
    whole = job.run()
    job.reset()
    ended = job.run(
        fault=("write", whole["counts"]["write"] // 2 + 2, "signal", signal.SIGINT, False), sync_every=1 << 30
    )
    assert (ended["code"], tree(job.out) == job.old) == (130, True)
    assert job.run()["written"] < whole["written"] * 0.8
    assert tree(job.out) == job.new


# The command, where a shell has put the tests in the background, too: such processes ignore SIGINT.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("normball", run_name="__main__")
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_for_real(room, number, code):
    """The command itself, from a process that sees it at work."""
    model = write_safetensors(room / "a.safetensors", tensors(10_000, 0, parts=20))
    command = [sys.executable, "-c", INTERRUPTIBLE, "constrain", str(model), "--max-norm", "3", "--layout", "torch"]
    command += ["-o", str(room / "out.safetensors")]
    for _ in range(10):
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            while not (room / "out.safetensors.partial" / "result" / "out.safetensors").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.001)
            process.send_signal(number)
            errors = process.communicate()[1]
        if process.returncode:
            break
        (room / "out.safetensors").unlink()  # it had ended before the signal came
    assert (process.returncode, one_line(errors)) == (code, True), errors
    assert not (room / "out.safetensors").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    resumed = (room / "out.safetensors").read_bytes()
    (room / "out.safetensors").unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert (room / "out.safetensors").read_bytes() == resumed


# Going on


def interrupted(job: Job, share: float = 0.7, **order) -> None:
    """Leave a partial result behind, that much of it."""
    if (syncs := job.syncs.get(str(order))) is None:
        syncs = job.syncs[str(order)] = job.run(**order)["counts"]["sync"]
    job.reset()
    assert job.run(fault=("sync", int(syncs * share), "kill after", 0, False), **order)["code"] == -signal.SIGKILL
    assert job.partial.is_dir()


@needs_faults
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_finished_is_not_written_again(fork, room, kind):
    job = Job(fork, room, kind)
    whole = job.run()["written"]
    interrupted(job)
    resumed = job.run()
    assert resumed["code"] == 0
    assert tree(job.out) == job.new
    assert resumed["written"] < 0.75 * whole
    interrupted(job)
    over = job.run("--no-resume")
    assert over["written"] >= whole
    assert tree(job.out) == job.new


@needs_faults
@pytest.mark.parametrize("change", ["limit", "rule", "input", "index", "time", "another"])
def test_other_work_starts_over(fork, room, change):
    """Nothing of another bound, rule or input is taken over."""
    job = Job(fork, room, "folder")
    interrupted(job)
    argv = list(job.argv)
    shard = job.model / "s0.safetensors"
    if change == "limit":
        argv[3] = "2.5"
    elif change == "rule":
        argv += ["--rule", "layer.0.*: axes=out"]
    elif change == "input":
        data = bytearray(shard.read_bytes())
        data[-3:] = b"\1\1\1"
        shard.write_bytes(data)
    elif change == "index":
        index = job.model / "model.safetensors.index.json"
        index.write_text(index.read_text() + " ")
    elif change == "another":  # of the same size and date, as archives with one date for all give them
        data, times = bytearray(shard.read_bytes()), shard.stat()
        data[-3:] = b"\1\1\1"
        shard.write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(shard, ns=(1, 1))
    order = {"watch": str(job.place), "sync_every": 600}
    resumed = job.fork.run(argv, **order)
    assert (resumed["code"], resumed["errors"]) == (0, "")
    made = tree(job.out)
    job.reset()
    fresh = job.fork.run(argv, **order)
    assert made == tree(job.out)
    assert resumed["written"] >= fresh["written"]
    assert [path.name for path in job.place.iterdir()] == ["out"]


@needs_faults
def test_torn_journal(fork, room):
    """Cut at any byte, or damaged: what it doesn't say in whole lines is written again, whatever lies there."""
    job = Job(fork, room, "file")
    interrupted(job, sync_every=1)
    kept = room / "kept"
    shutil.copytree(job.partial, kept)
    journal = (kept / "journal").read_bytes()
    header = 8 + int.from_bytes(job.model.read_bytes()[:8], "little")
    places = json.loads(job.model.read_bytes()[8:header])
    places.pop("__metadata__")
    ends = [0, *(header + place["data_offsets"][1] for place in places.values())]
    assert journal.count(b"\n") > 3
    flipped = [journal[:at] + bytes([journal[at] ^ 1]) + journal[at + 1 :] for at in range(len(journal))]
    cut = [journal[:at] for at in range(journal.index(b"\n") + 1, len(journal))]
    for torn in [*cut, *flipped][:: 1 if THOROUGH else 7]:
        shutil.rmtree(job.partial, ignore_errors=True)
        shutil.copytree(kept, job.partial)
        (job.partial / "journal").write_bytes(torn)
        pairs = zip(torn.splitlines(True), journal.splitlines(True), strict=False)
        said = [line for line, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][1:]
        trusted = ends[int(said[-1].split()[2])] if said else 0
        with open(job.partial / "result" / job.out.name, "r+b") as file:
            file.seek(trusted)
            file.write(b"\xff" * (ends[-1] - trusted))
        ended = job.run()
        if ended["code"] == 2:  # the first line is not one of ours: left alone
            assert "isn't normball's" in ended["errors"] or "empty journal" in ended["errors"], ended
            assert (job.partial / "journal").read_bytes() == torn
            assert job.losses() == []
            shutil.rmtree(job.partial)
        else:
            assert (ended["code"], tree(job.out) == job.new) == (0, True), (torn, ended)
        job.reset()


@needs_faults
@pytest.mark.parametrize("loss", ["gone", "short", "linked", "symlink"])
def test_result_that_is_not_as_it_was_left(fork, room, loss):
    """Tampering with what is half made: it is made anew, and nothing else is written to."""
    job = Job(fork, room, "file")
    interrupted(job)
    half, victim = job.partial / "result" / job.out.name, room / "victim"
    victim.write_bytes(half.read_bytes())
    content = victim.read_bytes()
    half.unlink()
    if loss == "short":
        half.write_bytes(content[:-1])
    elif loss == "linked":
        os.link(victim, half)
    elif loss == "symlink":
        half.symlink_to(victim)
    assert job.completed() == []
    assert victim.read_bytes() == content


@needs_faults
def test_a_finished_rename_is_recognised(fork, room):
    """Killed between the rename and the cleaning up: the next run, even without --force, only cleans up."""
    job = Job(fork, room, "folder")
    renames = job.run()["counts"]["rename"]
    job.reset()
    job.run(fault=("rename", renames, "kill after", 0, False))
    assert (tree(job.out), job.partial.is_dir()) == (job.new, True)
    job.argv.remove("--force")
    ended = job.run()
    assert (ended["code"], ended["errors"]) == (0, "")
    assert ended["written"] == 0
    assert tree(job.out) == job.new
    assert not job.partial.exists()


@needs_faults
def test_what_a_finished_rename_left_is_no_result(fork, room):
    """After a swap the old files lie where the new ones were made, maybe of the same sizes."""
    job = Job(fork, room, "folder")
    for path in job.model.iterdir():
        (job.out / path.name).write_bytes(bytes(path.stat().st_size))
    renames = job.run()["counts"]["rename"]
    shutil.rmtree(job.out)
    job.out.mkdir()
    for path in job.model.iterdir():
        (job.out / path.name).write_bytes(bytes(path.stat().st_size))
    job.run(fault=("rename", renames, "kill after", 0, False))
    assert tree(job.out) == job.new
    shutil.rmtree(job.out)
    assert job.completed() == []


@needs_faults
def test_killed_while_starting_over(fork, room):
    """Half of what other work has left is removed."""
    job = Job(fork, room, "folder")
    for call in ("unlink", "truncate", "write", "mkdir"):
        for n in range(1, 5):
            job.reset()
            interrupted(job)
            other = [*job.argv[:3], "2.5", *job.argv[4:]]
            ended = fork.run(other, watch=str(job.place), fault=(call, n, "kill after", 0, False))
            assert ended["code"] in (-signal.SIGKILL, 0)
            if ended["code"]:
                assert job.losses() == []
                assert job.completed() == []


@needs_faults
def test_a_file_among_those_of_the_result(fork, room):
    """Is not made part of it, nor removed unasked."""
    job = Job(fork, room, "folder")
    interrupted(job)
    (job.partial / "result" / "mine").write_text("mine")
    ended = job.run()
    assert (ended["code"], one_line(ended["errors"])) == (2, True)
    assert "result/mine: is missing, or not of this result" in ended["errors"]
    assert job.losses() == []


# Places


def refused(job: Job, *parts: str, argv: list | None = None, **order) -> None:
    """It must be, in one line with these parts, and nothing may have changed."""
    before = tree(job.place)
    ended = job.fork.run(argv or job.argv, watch=str(job.place), **order)
    assert (ended["code"], one_line(ended["errors"])) == (2, True), ended
    assert all(part in ended["errors"] for part in parts), ended["errors"]
    assert tree(job.place) == before
    assert tree(job.source) == job.before


def to(job: Job, out: Path, force: bool = True) -> list:
    return [*job.argv[:7], out, "-j", "1", *(["--force"] if force else [])]


@every_kind
def test_nothing_is_replaced_unasked(fork, room, kind):
    job = Job(fork, room, kind)
    refused(job, "exists; --force replaces it", argv=to(job, job.out, force=False))


def test_places_that_are_the_input(fork, room):
    """By whatever name."""
    job = Job(fork, room, "file")
    link, hard = job.place / "link.safetensors", job.place / "hard.safetensors"
    link.symlink_to(job.model)
    os.link(job.model, hard)
    refused(job, "is what is read", argv=to(job, job.model))
    refused(job, "is what is read", argv=to(job, job.source / ".." / "in" / job.model.name))
    refused(job, "is what is read", argv=to(job, hard))
    refused(job, "is a symbolic link; name what it points to", argv=to(job, link))
    # A link to read from, and its target to write to.
    argv = to(job, job.model)
    argv[1] = link
    refused(job, "is what is read", argv=argv)
    dangling = job.place / "dangling.safetensors"
    dangling.symlink_to(job.place / "nothing")
    refused(job, "is a symbolic link", argv=to(job, dangling))


def test_places_that_are_the_inputs_folder(fork, room):
    job = Job(fork, room, "folder")
    refused(job, "is what is read, or its folder", argv=to(job, job.model))
    refused(job, "holds 'model', which would be lost", argv=to(job, job.source))
    (job.place / "link").symlink_to(job.model)
    refused(job, "is a symbolic link", argv=to(job, job.place / "link"))
    (job.out / "s0.safetensors").unlink()
    os.link(job.model / "s0.safetensors", job.out / "s0.safetensors")
    refused(job, "holds 's0.safetensors', which is what is read")


def test_places_that_hold_other_things(fork, room):
    """A folder is replaced only by what has all its names."""
    job = Job(fork, room, "folder")
    (job.out / "config.json").write_text("{}")
    refused(job, "holds 'config.json', which would be lost; move it away first")
    (job.out / "config.json").unlink()
    (job.out / "s0.safetensors").unlink()
    (job.out / "s0.safetensors").symlink_to("s1.safetensors")
    refused(job, "holds 's0.safetensors', which would be lost")


def test_places_of_another_kind(fork, room):
    job = Job(fork, room, "file")
    (job.place / "folder.safetensors").mkdir()
    os.mkfifo(job.place / "pipe.safetensors")
    refused(job, "isn't a plain file", argv=to(job, job.place / "folder.safetensors"))
    refused(job, "isn't a plain file", argv=to(job, job.place / "pipe.safetensors"))
    refused(job, "its folder doesn't exist; make it first", argv=to(job, job.place / "no" / "a.safetensors"))
    refused(job, "is a .safetensors file as its input", argv=to(job, job.place / "a.npz"))
    refused(job, "has no name of its own", argv=to(job, Path("..")))
    folder = room / "more"
    folder.mkdir()
    more = Job(fork, folder, "folder")
    refused(more, "isn't a folder", argv=to(more, job.out))


@pytest.mark.parametrize(
    "content", ["a file", "other things", "no journal", "another journal", "an empty journal", "a link"]
)
def test_a_folder_of_somebody_else_is_left_alone(fork, room, content):
    job = Job(fork, room, "file")
    if content == "a file":
        job.partial.write_text("mine")
    elif content == "a link":
        (job.place / "real").mkdir()
        job.partial.symlink_to(job.place / "real")
    else:
        job.partial.mkdir()
        (job.partial / "result").mkdir()
        (job.partial / "result" / "mine").write_text("mine")
        if content == "other things":
            (job.partial / "notes").write_text("mine")
        elif "journal" in content and content != "no journal":
            (job.partial / "journal").write_text("" if "empty" in content else "dear diary\n")
    refused(job, f"{job.partial.name}'", "is in the way and left alone")


def test_a_system_that_cannot_swap_folders(fork, room):
    """Told before the work; a file, and a folder where there was none, need no swap."""
    job = Job(fork, room, "folder")
    refused(job, "can't replace a folder at once; remove it, or name another place", **{"no swap": True})
    shutil.rmtree(job.out)
    assert job.run(**{"no swap": True})["code"] == 0
    assert tree(job.out) == job.new
    (room / "more").mkdir()
    assert Job(fork, room / "more", "file").run(**{"no swap": True})["code"] == 0


@needs_faults
def test_other_things_in_a_partial_folder_of_ours(fork, room):
    job = Job(fork, room, "file")
    interrupted(job)
    (job.partial / "notes").write_text("mine")
    refused(job, "is in the way and left alone, as it holds 'notes'; move it")
    refused(job, "holds 'notes'", argv=[*job.argv, "--no-resume"])


@needs_faults
def test_a_link_in_a_partial_folder_of_ours(fork, room):
    """Nothing is written or removed where it leads to."""
    job = Job(fork, room, "folder")
    interrupted(job)
    elsewhere = room / "elsewhere"
    (job.partial / "result").rename(elsewhere)
    (job.partial / "result").symlink_to(elsewhere)
    before = tree(elsewhere)
    refused(job, "holds 'result' that is no folder")
    refused(job, "holds 'result' that is no folder", argv=[*job.argv, "--no-resume"])
    assert tree(elsewhere) == before


def test_several_files_make_a_folder(fork, room):
    job = Job(fork, room, "file")
    inner = job.source / "inner"
    inner.mkdir()
    names = [
        write_safetensors(path, tensors(8, seed))
        for seed, path in enumerate((inner / "a.safetensors", job.source / "b.safetensors"), 5)
    ]
    job.before = tree(job.source)
    rest = to(job, job.place / "made")[2:]
    refused(
        job, "can't hold two files named 'a.safetensors'; rename one", argv=["constrain", job.model, names[0], *rest]
    )
    refused(job, "is what is read, or its folder", argv=["constrain", *names, *to(job, job.source)[2:]])
    assert fork.run(["constrain", *names, *rest, "--verify"], watch=str(job.place))["code"] == 0
    assert {path.name for path in (job.place / "made").iterdir()} == {"a.safetensors", "b.safetensors"}


def test_two_at_once(fork, room):
    """The second is refused, the first not disturbed."""
    job = Job(fork, room, "file")
    job.partial.mkdir(0o700)
    with open(job.partial / "journal", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(job, "another normball is making this result")
    assert job.completed() == []


def test_input_within_the_partial_folder(fork, room):
    job = Job(fork, room, "file")
    (job.partial / "result").mkdir(parents=True)
    inner = job.partial / "result" / "a.safetensors"
    shutil.copy(job.model, inner)
    argv = list(job.argv)
    argv[1] = inner
    refused(job, "lies where the result is made", argv=argv)


def test_input_that_is_written_to_meanwhile(room):
    """Half of the one and half of the other is no result."""
    from normball.checkpoint import constrain
    from normball.checkpoint.errors import CheckpointError
    from normball.checkpoint.model import open_model
    from normball.checkpoint.rules import Choice
    from normball.checkpoint.workers import Workers

    path = write_safetensors(room / "a.safetensors", tensors(8, 0))
    out = room / "out.safetensors"
    with open_model([path]) as model, Workers(1) as workers:
        choices = {tensor.name: Choice(None, None, "") for tensor in model.tensors}
        options = {"force": False, "resume": True, "dry_run": False, "verify": False, "workers": workers}
        with pytest.raises(CheckpointError, match="written to while it was read"):
            constrain.run(model, choices, out, report=lambda outcome: os.utime(path, ns=(1, 1)), **options)
        assert [file.name for file in room.iterdir()] == [path.name]
        constrain.run(model, choices, out, report=lambda outcome: None, **options)
    assert out.read_bytes() == path.read_bytes()


# What is kept


@pytest.mark.parametrize("mode", [0o640, 0o444, 0o600, 0o755])
def test_modes_are_kept(fork, room, mode):
    for kind in ("file", "folder", "npz"):
        folder = room / kind
        folder.mkdir()
        job = Job(fork, folder, kind)
        paths = sorted(job.model.iterdir()) if kind == "folder" else [job.model]
        for path in paths:
            path.chmod(mode)
        if kind == "folder":
            job.model.chmod(0o750)
            interrupted(job, 0.5)
        assert job.run()["code"] == 0
        made = sorted(job.out.iterdir()) if kind == "folder" else [job.out]
        assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [mode] * len(paths)
        if kind == "folder":
            assert stat.S_IMODE(job.out.stat().st_mode) == 0o750


@pytest.mark.parametrize("kind", ["npz", "packed npz"])
def test_archives_are_packed_as_they_were(fork, room, kind):
    job = Job(fork, room, kind)
    assert job.run("--verify")["code"] == 0
    with zipfile.ZipFile(job.model) as old, zipfile.ZipFile(job.out) as new:
        assert new.testzip() is None
        for attribute in ("filename", "date_time", "compress_type", "external_attr", "file_size"):
            assert [getattr(i, attribute) for i in old.infolist()] == [getattr(i, attribute) for i in new.infolist()]
    with np.load(job.model) as old, np.load(job.out) as new:
        for name in old.files:
            same = old[name].tobytes() == new[name].tobytes()
            assert same == (old[name].ndim < 2), name
    assert fork.run([*job.argv[:3], "1e30", *job.argv[4:]], watch=str(job.place))["code"] == 0
    if kind == "npz":  # which has nothing that another program packs otherwise
        assert job.out.read_bytes() == job.model.read_bytes()


# The order of what must be on the disk before what


def unordered(calls: list[tuple[str, str, str]], out: str) -> list[str]:
    """Which of the calls would leave, if power failed, a name without its bytes, or a word of what isn't there."""
    partial, found = f"{out}.partial", []
    unsynced, moved, settled = set(), False, False
    names = {out.rpartition("/")[0], partial, f"{partial}/result"}  # folders whose entries must be on the disk
    for call, path, other in calls:
        if call == "write":
            if path == f"{partial}/journal" and any("/result/" in p or "/members/" in p for p in unsynced):
                found.append("the journal speaks of bytes that may be lost")
            unsynced.add(path)
        elif call in ("fsync", "fdatasync"):
            unsynced.discard(path)
            names.discard(path)
            settled |= moved and path == out.rpartition("/")[0]
        elif call.startswith("rename") and out in (path, other):
            if unsynced:
                found.append("a rename before its bytes")
            if names:
                found.append("a rename before the names within")
            moved = True
        elif call in ("unlink", "rmdir") and moved and not settled:
            found.append("what was there is removed before the rename is on the disk")
    return found + ([] if settled else ["the rename may be lost"])


def calls_of(job: Job, log: Path, sync_every: int = 1) -> list[tuple[str, str, str]]:
    assert job.run(log=str(log), sync_every=sync_every)["code"] == 0
    return [tuple(line.split("\t")) for line in log.read_text().split("\n")[:-1]]


@needs_faults
@every_kind
@pytest.mark.parametrize("sync_every", [1, 1 << 30])
def test_order_of_syncs(fork, room, kind, sync_every):
    job = Job(fork, room, kind)
    assert unordered(calls_of(job, room / "log", sync_every), str(job.out)) == []


@needs_faults
def test_a_failed_sync_is_not_tried_again(fork, room):
    """The second would succeed, as the system has given up the bytes that it could not write."""
    job = Job(fork, room, "file")
    log, journal = room / "log", f"{job.partial}/journal"
    for n in range(1, job.run(sync_every=1)["counts"]["sync"] + 1):
        job.reset()
        assert job.run(log=str(log), sync_every=1, fault=("sync", n, "fail", errno.EIO, False))["code"] == 2
        calls = [line.split("\t")[:2] for line in log.read_text().split("\n")[:-1]]
        failed = [at for at, (call, _) in enumerate(calls) if "sync" in call][n - 1]
        assert ["write", journal] not in calls[failed:], n
        if calls[failed][1].startswith(f"{job.partial}/result/"):
            assert not [call for call in calls[failed + 1 :] if "sync" in call[0]], n


@needs_faults
def test_order_of_syncs_can_fail(fork, room):
    """Without any one of the syncs that count."""
    job = Job(fork, room, "folder")
    calls = calls_of(job, room / "log")
    assert unordered(calls, str(job.out)) == []
    syncs = [n for n, (call, path, _) in enumerate(calls) if "sync" in call and path != str(job.place)]
    missed = [calls[n][1:] for n in syncs if not unordered(calls[:n] + calls[n + 1 :], str(job.out))]
    assert len(missed) < len(syncs) / 2, missed
    assert unordered(calls[: -[call for call, *_ in calls][::-1].index("renameat2")], str(job.out)) == [
        "the rename may be lost"
    ]


# What is refused


def test_nonfinite_groups(fork, room):
    """Nothing is left behind: no other run would get past it."""
    job = Job(fork, room, "file")
    made = tensors(8, 0)
    made["layer.2.0.weight"][1][3, 3] = np.nan
    write_safetensors(job.model, made)
    job.before = tree(job.source)
    refused(job, "layer.2.0.weight", "NaN, inf or a norm beyond float64", "skip'")
    assert fork.run([*job.argv, "--rule", "layer.2.0.weight: skip"], watch=str(job.place))["code"] == 0


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8(fork, room, dtype):
    job = Job(fork, room, "file")
    write_safetensors(job.model, {**tensors(8, 0), "eight.weight": (dtype, bytes(64), (8, 8))})
    job.before = tree(job.source)
    refused(job, "eight.weight", dtype, "'eight.weight: skip'")
    assert fork.run([*job.argv, "--rule", "eight.weight: skip"], watch=str(job.place))["code"] == 0


# Read back


@pytest.mark.parametrize(
    "kind, where", [(kind, where) for kind in KINDS for where in ([0.3] if "npz" in kind else [20, 0.5, -1])]
)
def test_verify(fork, room, kind, where):
    """A bit that is another, in a header, a rescaled tensor or one left alone: the old result stays, nothing is kept."""
    job = Job(fork, room, kind, rows=80)
    assert job.run("--verify")["code"] == 0
    assert tree(job.out) == job.new
    job.reset()
    assert job.run(flip=where)["code"] == 0
    assert tree(job.out) != job.new
    job.reset()
    refused(job, argv=[*job.argv, "--verify"], flip=where)
    assert job.completed() == []
