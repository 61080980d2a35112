"""Runs the command line many times: a child of a process that has imported all of it takes milliseconds to start.

Reads a line of JSON for each run, and answers with one. With faults.c preloaded a run can be armed with a fault. Also
here: ways of writing a result that lose it, which the tests must notice.
"""

import contextlib
import ctypes
import functools
import gc
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from normball.checkpoint import cli, files, output, place, target

KINDS = ["write", "sync", "rename", "open", "truncate", "unlink", "mkdir", "chmod", "read"]
ACTIONS = ["none", "fail", "short", "kill before", "kill after", "kill within", "signal"]


def straight(argv: list[str]) -> int:
    """The result of a right run elsewhere, copied over OUT as most programs write: the old one is gone at once."""
    made, out = argv
    files = [Path(made)] if os.path.isfile(made) else sorted(Path(made).iterdir())
    for path in files:
        descriptor = os.open(
            out if os.path.isfile(made) else f"{out}/{path.name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        )
        data = path.read_bytes()
        for begin in range(0, len(data), 4096):
            os.write(descriptor, data[begin : begin + 4096])
        os.close(descriptor)
    return 0


def missing(*_: object) -> None:
    """A system without the call."""
    raise NotImplementedError


def flipping(seal: Callable, where: float) -> Callable:
    """A disk that gives back another bit than it was given."""

    def sealed(self: output.Output) -> list[Path]:
        paths = seal(self)
        made = paths[0] if paths[0].is_file() else min(paths[0].glob("*.safetensors"))
        data = bytearray(made.read_bytes())
        data[where if isinstance(where, int) else int(len(data) * where)] ^= 64
        made.write_bytes(data)
        return paths

    return sealed


def child(order: dict, errors: int, answer: int) -> None:
    """One run, to its end; never returns."""
    code = 70
    try:
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target.SYNC_EVERY = order.get("sync_every", target.SYNC_EVERY)
        if order.get("blind"):
            place.Place.refuse_full = lambda self, sizes: None
        if order.get("no swap"):
            files._renameat2 = missing
        if "flip" in order:
            output.Output.seal = flipping(output.Output.seal, order["flip"])
        faults = ctypes.CDLL(None) if "LD_PRELOAD" in os.environ else None
        if faults:
            kind, n, action, value, lasting = order.get("fault", ("write", 0, "none", 0, False))
            faults.faults_budget(ctypes.c_long(order.get("budget", -1)))
            if "log" in order:
                faults.faults_log(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            watched = os.fsencode(order["watch"])
            faults.faults_arm(watched, KINDS.index(kind), n, ACTIONS.index(action), value, lasting)
        code = (straight if order.get("straight") else cli.run)(order["argv"]) or 0
        if faults:
            counts = {kind: faults.faults_count(number) for number, kind in enumerate(KINDS)}
            faults.faults_written.restype = ctypes.c_long
            os.write(answer, json.dumps({"counts": counts, "written": faults.faults_written()}).encode())
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(order: dict) -> dict:
    """Start it, kill it in time, and tell how it ended."""
    reading, answer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            child(order, errors.fileno(), answer)
        os.close(answer)
        if "after" in order:
            time.sleep(max(0.0, order["after"] - (time.perf_counter() - begin)))
            os.kill(pid, order.get("signal", signal.SIGKILL))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        took = time.perf_counter() - begin
        with os.fdopen(reading, "rb") as end:
            said = json.loads(end.read() or b"{}")
        errors.seek(0)
        return {"code": code, "errors": errors.read().decode(), "took": took, **said}


def warm() -> None:
    """Have all that is imported late, and what is made at first use, before the first child."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        np.savez(f"{folder}/a.npz", weight=np.ones((4, 4)))
        argv = [
            "constrain",
            f"{folder}/a.npz",
            "-o",
            f"{folder}/b.npz",
            "--max-norm",
            "1",
            "--layout",
            "torch",
            "-j",
            "1",
        ]
        cli.parser = functools.cache(cli.parser)
        assert cli.run(argv) == 0
    gc.freeze()  # children share the pages of what is not looked through


if __name__ == "__main__":
    warm()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
