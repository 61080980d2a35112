"""Time normball against the memory itself and against its peers: `make bench`, or

    python benchmarks/run.py [--quick] [--only TEXT] [--json FILE]

Every answer is checked, exactly, before it is timed. A cell's rivals are timed one right after the other, in rounds;
its figures are medians over rounds of the ratio within a round. `times the floor`: our time over that of a C loop that
only reads the same memory (in place, nothing violates), only scales it (in place), or only copies it (out=).
`times faster`: a peer's time over ours. A cell that fails is reported, the rest goes on, and the exit status is 1.
A whole run writes benchmarks/results and, from it, the tables and the picture of docs/performance.md,
and the README's table.
"""

import os

# Read when the libraries are imported.
os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NORMBALL")})
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import facts
import floors
import latency
import ours
import peers
import report
from cells import Arrays, Cell, arrays, cells
from check import check_close, prove_the_check_can_fail
from timing import interleave, median, pin, ratio, readable

import normball

RESULTS = Path(__file__).parent / "results"
SECONDS = {"cell": 1.6, "cell without peers": 0.8, "graph": 0.7, "latency": 0.5}
QUICK_SECONDS = {"cell": 0.4, "cell without peers": 0.4, "graph": 0.2, "latency": 0.2}


def measure(cell: Cell, budget: float) -> list[dict[str, Any]]:
    """Check a cell's answers, then time them: a row in place and one for `out=`."""
    data = arrays(cell)
    try:
        rivals = [*floors.rivals(data.xs, data.ys, cell.threads), *ours.rivals(cell, data)]
        names = []
        for peer in peers.peers(cell, data) if cell.peers else ():
            check_peer(cell, data, peer)
            names.append(peer.rival.name)
            rivals.append(peer.rival)
        times = interleave(rivals, budget, cell.threads)
        ours.expect_state(cell, data)
    finally:
        if "pymc_update" in sys.modules:
            sys.modules["pymc_update"].release()
    return [row(cell, data, how, times, names) for how in (ours.IN_PLACE, ours.OUT)]


def check_peer(cell: Cell, data: Arrays, peer: peers.Peer) -> None:
    """A peer must compute about what ours left in ys."""
    for y, theirs, axes in zip(data.ys, peer.result(), data.axes, strict=True):
        check_close(y, theirs, axes, peer.rival.name)


def row(cell: Cell, data: Arrays, how: str, times: dict, names: list[str]) -> dict[str, Any]:
    floor_name, floor = floor_of(cell, how, times)
    return {
        "case": cell.case.label,
        "dtype": cell.dtype,
        "violating": cell.violating,
        "threads": cell.threads,
        "how": how,
        "bytes": sum(x.nbytes for x in data.xs),
        "seconds": median(times[how]),
        "floor": {"kind": floor_name, "seconds": median(floor), **ratio(times[how], floor)},
        "peers": {
            name: {
                "seconds": median(times[name]),
                "floors": ratio(times[name], floor)["ratio"],
                **ratio(times[name], times[how]),
            }
            for name in names
        },
    }


def floor_of(cell: Cell, how: str, times: dict) -> tuple[str, Any]:
    """The least that must be done. A total is known after all has been read, and only then can anything be scaled."""
    if how == ours.OUT:
        # Compliant or not, a total's second pass reads again what the first has read.
        return (
            ("read + copy", times["read"] + floors.best_copy(times))
            if cell.case.total
            else ("copy", floors.best_copy(times))
        )
    if cell.violating == "none":
        return "read", times["read"]
    return ("read + scale", times["read"] + times["scale"]) if cell.case.total else ("scale", times["scale"])


class Task(NamedTuple):
    """Something to measure: its label, the list its rows belong to, the thread count, and how."""

    label: str
    section: str
    threads: int
    measure: Callable[[], list[dict[str, Any]]]


def tasks(quick: bool) -> Iterator[Task]:
    budget = QUICK_SECONDS if quick else SECONDS
    for shape in latency.SHAPES:
        label = f"latency {shape[0]} x {shape[1]}"
        yield Task(label, "latency", 1, lambda shape=shape: latency.calls(shape, budget["latency"]))
    yield Task("latency of import and first call", "first call", 1, lambda: [latency.first_call()])
    listed = list(cells(quick))
    for cell in (c for c in listed if c.threads == 1):
        yield task_of(cell, budget)
    if peers.library("pymc"):
        import pymc_update

        for graph in pymc_update.graphs(quick):
            yield Task(graph.label, "graphs", 1, lambda graph=graph: [pymc_update.measure(graph, budget["graph"])])
    for cell in (c for c in listed if c.threads > 1):  # last: then no library has made its helpers on one CPU
        yield task_of(cell, budget)


def task_of(cell: Cell, budget: dict[str, float]) -> Task:
    seconds = budget["cell" if cell.peers else "cell without peers"]
    return Task(cell.label, "cells", cell.threads, lambda: measure(cell, seconds))


def line(section: str, row: dict[str, Any]) -> str:
    """A row for people."""
    if section == "first call":
        return f"{row['seconds'] * 1e3:.1f} ms over NumPy's import"
    if section == "latency":
        times = f"{readable(row['ours_seconds'])} against NumPy's {readable(row['numpy_seconds'])}"
        return f"{row['result']:8} {times}: {spread(row)} times faster"
    if section == "graphs":
        times = f"{readable(row['ours_seconds'])} against {readable(row['peer_seconds'])}"
        return f"{times}: {spread(row)} times faster than PyMC"
    floor = row["floor"]
    text = f"{row['how']:8} {readable(row['seconds']):>8}: {spread(floor)} times the floor ({floor['kind']})"
    faster = ", ".join(f"{name} {peer['ratio']:.3g}" for name, peer in row["peers"].items())
    return f"{text}{'; times faster than ' + faster if faster else ''}"


def spread(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f} [{low:.2f}-{high:.2f}]"


def run(chosen: list[Task]) -> tuple[dict[str, list], list[str]]:
    """All rows by section, and the labels of what failed."""
    rows: dict[str, list] = {"latency": [], "first call": [], "cells": [], "graphs": []}
    failed, threads, begin = [], 1, time.perf_counter()
    for number, task in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}, {time.perf_counter() - begin:.0f} s] {task.label}", flush=True)
        try:
            if task.threads != threads:
                normball.set_num_threads(task.threads)
                threads = task.threads
            pin(threads)
            found = task.measure()
        except Exception as error:
            failed.append(f"{task.label}: {type(error).__name__}: {error}")
            print(f"    FAILED: {type(error).__name__}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc(limit=-2)
            continue
        rows[task.section] += found
        for each in found:
            print(f"    {line(task.section, each)}", flush=True)
    return rows, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells, about a minute")
    parser.add_argument("--only", metavar="TEXT", action="append", default=[], help="cells whose label has all TEXTs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and the docs not at all")
    options = parser.parse_args()
    pin(1)
    prove_the_check_can_fail()
    about = {"machine": facts.machine(), "versions": facts.versions()}
    for values in about.values():
        print(", ".join(f"{name} {value}" for name, value in values.items()))
    chosen = [task for task in tasks(options.quick) if all(text in task.label for text in options.only)]
    if not chosen:
        sys.exit(f"--only {' '.join(options.only)}: no cell has such a label")
    rows, failed = run(chosen)
    for name, why in peers.left_out.items():
        print(f"left out: {name} ({why})")
    whole = not options.quick and not options.only
    if target := options.json or (RESULTS / f"{world(about['versions'])}.json" if whole else None):
        target.parent.mkdir(exist_ok=True)
        target.write_text(
            json.dumps({**about, "whole": whole, "left out": peers.left_out, **rows, "failed": failed}, indent=1) + "\n"
        )
    if whole and not options.json:
        report.write()
    if failed:
        sys.exit("\n".join(("", f"{len(failed)} of {len(chosen)} failed:", *failed)))


def world(versions: dict[str, str]) -> str:
    """The file of a set of versions: those that decide what the peers are."""
    return f"pytensor{versions.get('pytensor', '0').partition('.')[0]}"


if __name__ == "__main__":
    main()
