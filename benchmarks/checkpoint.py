"""Time `normball check` and `normball constrain` against `cp`, on a file far larger than their memory:

    python benchmarks/checkpoint.py [--gib 4] [--rounds 5] [--folder /dev/shm]

The file holds 4096 x 4096 normals, a quarter of whose rows, or columns, are longer than the bound. The result is judged
first: by --verify, and by NumPy in float64. Then whole processes, `cp` and ours one after the other, in rounds; it
prints medians of wall and CPU seconds, the median over rounds of our wall time over `cp`'s, and our peak memory.
`cp` writes to a new file on the same file system, as ours does; a RAM disk shows the work without the disk's part.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import ml_dtypes
import numpy as np

SIDE = 4096
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
LAYOUTS = {"rows": "torch", "columns": "pytensor"}  # of a matrix, over which axis `in` goes
COMMAND = [sys.executable, "-m", "normball"]


class Cost(NamedTuple):
    """What a process took: seconds of wall and CPU time, and MiB of memory at most."""

    wall: float
    cpu: float
    memory: float


def write(path: Path, word: str, gib: float) -> float:
    """A file of normals; the bound that three quarters of its rows' norms keep."""
    dtype = DTYPES[word]
    nbytes = SIDE * SIDE * dtype.itemsize
    count = max(1, round(gib * 2**30 / nbytes))
    header = {
        f"layer{index}.weight": {
            "dtype": word,
            "shape": [SIDE, SIDE],
            "data_offsets": [index * nbytes, (index + 1) * nbytes],
        }
        for index in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index in range(count):  # the same numbers in other places
            file.write(np.roll(values, index, (0, 1)).astype(dtype).view(np.uint8).data)
    return float(np.quantile(np.linalg.norm(values.astype(dtype).astype(np.float64), axis=1), 0.75))


def run(command: list[str]) -> Cost:
    """A process, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def broken(before: Path, after: Path, word: str, axis: int, bound: float) -> str | None:
    """What is wrong with a result, as NumPy sees it in float64: half a million groups, and all their entries."""
    head = int.from_bytes(before.open("rb").read(8), "little") + 8
    old, new = (np.memmap(path, np.uint8, "r") for path in (before, after))
    if old.size != new.size or not np.array_equal(old[:head], new[:head]):
        return "another header"
    nbytes = SIDE * SIDE * DTYPES[word].itemsize
    changed = 0
    for start in range(head, old.size, nbytes):
        first, second = (data[start : start + nbytes].view(DTYPES[word]).reshape(SIDE, SIDE) for data in (old, new))
        norms, wanted = (np.linalg.norm(x.astype(np.float64), axis=axis) for x in (second, first))
        if norms.max() > bound * (1 + 1e-12):
            return "above the bound"
        same = (first.view(np.uint8) == second.view(np.uint8)).reshape(SIDE, SIDE, -1).all(axis=(axis, 2))
        if not np.array_equal(same, wanted <= bound):
            return "changed without need, or left as it was"
        changed += int((~same).sum())
    return None if changed else "nothing to do"


def prove_the_judge_can_fail(folder: Path) -> None:
    """On the input itself, and on a file of zeros."""
    old, new = folder / "old", folder / "new"
    bound = write(old, "F32", 0.0625)
    content = old.read_bytes()
    for wrong in (content, content[:8] + bytes(len(content) - 8), content[:-8] + bytes(8)):
        new.write_bytes(wrong)
        if broken(old, new, "F32", 1, bound) is None:
            raise SystemExit("the judge of the answers cannot fail")
    old.unlink(), new.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--gib", type=float, default=4, help="size of the file (4)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (5)")
    parser.add_argument("--folder", type=Path, help="where the files go: room for three of them (a temporary folder)")
    options = parser.parse_args()
    # What takes memory here is done in another process: Linux counts the memory of a parent as its child's own.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        measure(options, lambda function, *arguments: pool.submit(function, *arguments).result())


def measure(options: argparse.Namespace, apart: Callable) -> None:
    """Every file and job, and a line of each."""
    print("| file | job | wall s | CPU s | x `cp` | peak MiB |\n|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        apart(prove_the_judge_can_fail, folder)
        for word in DTYPES:
            source, result = folder / "in.safetensors", folder / "out.safetensors"
            bound = apart(write, source, word, options.gib)
            jobs = {"`cp`": ["cp", str(source), str(result)]}
            for way, layout in LAYOUTS.items():
                common = [str(source), "--max-norm", repr(bound), "--layout", layout]
                constrain = [*COMMAND, "constrain", *common, "-o", str(result)]
                run([*constrain, "--verify"])
                wrong = apart(broken, source, result, word, 1 if way == "rows" else 0, bound)
                if wrong is not None:
                    raise SystemExit(f"{word}, {way}: {wrong}")
                result.unlink()
                jobs |= {f"`constrain`, {way}": constrain, f"`check`, {way}": [*COMMAND, "check", *common]}
            costs: dict[str, list[Cost]] = {job: [] for job in jobs}
            for _ in range(options.rounds):
                for job, command in jobs.items():
                    costs[job].append(run(command))
                    result.unlink(missing_ok=True)
            for job, own in costs.items():
                ratio = median(cost.wall / base.wall for cost, base in zip(own, costs["`cp`"], strict=True))
                wall, cpu, memory = (median(values) for values in zip(*own, strict=True))
                size = source.stat().st_size / 2**30
                print(
                    f"| {word}, {size:.1f} GiB | {job} | {wall:.2f} | {cpu:.2f} | {ratio:.2f} | {memory:.0f} |",
                    flush=True,
                )
            source.unlink()


if __name__ == "__main__":
    main()
