"""Clocks, and rivals timed one right after the other, so that whatever else the machine does meets all alike."""

import contextlib
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

SAMPLE_SECONDS = 2e-3  # calls shorter than this are timed several at a time, far above the clock's resolution
FEWEST = 7  # rounds, however slow
FEWEST_OF_A_GUEST = 3
GUESTS_SHARE = 0.5  # of the time of all who are always there: what a guest may take once it has been there so often
UNLIMITED = 1 << 20  # calls in one sample
ALL_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def nothing() -> None:
    """What most rivals need before a sample."""


class Rival(NamedTuple):
    """Something to time: `run(n)` does the work n times; `reset`, never timed, makes it ready for a sample.

    A guest is timed against the others but need not be there in every round: slow peers would leave too few rounds.
    """

    name: str
    run: Callable[[int], object]
    reset: Callable[[], object] = nothing
    most: int = UNLIMITED
    guest: bool = False


def again(call: Callable[[], object]) -> Callable[[int], None]:
    """`run` for a call that may be repeated as it is."""

    def run(times: int) -> None:
        for _ in range(times):
            call()

    return run


def pin(threads: int) -> None:
    """One thread stays on one CPU; more may use all. Where the system cannot pin, nothing is done."""
    if ALL_CPUS:
        os.sched_setaffinity(0, {max(ALL_CPUS)} if threads == 1 else ALL_CPUS)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds(rival: Rival, times: int, clock: Callable[[], float]) -> float:
    """The time of one call, over a sample of so many; quick ones begin with their arrays in the cache."""
    if times > 1:
        rival.reset()
        rival.run(1)
    rival.reset()
    start = clock()
    rival.run(times)
    return (clock() - start) / times


def interleave(rivals: Sequence[Rival], budget: float, threads: int = 1) -> dict[str, np.ndarray]:
    """Seconds per call of each rival in each round, for about `budget` seconds; NaN where a guest sat out.

    With one thread the clock is the process's CPU time, which other work on the machine does not add to; with more,
    the clock on the wall. Each round starts with the next rival, and every other goes backwards: what one leaves in
    the caches is not always to the same one's good.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    with without_garbage_collection():
        times = [calls_in_a_sample(rival, clock) for rival in rivals]
        spent = np.zeros(len(rivals))
        hosts = np.array([not rival.guest for rival in rivals])
        rows: list[list[float]] = []
        begin = time.perf_counter()
        for turn in itertools.count():
            row = [np.nan] * len(rivals)
            order = (np.arange(len(rivals)) + turn) % len(rivals)
            for i in order[:: -1 if turn % 2 else 1]:
                if hosts[i] or turn < FEWEST_OF_A_GUEST or spent[i] <= GUESTS_SHARE * spent[hosts].sum():
                    row[i] = seconds(rivals[i], times[i], clock)
                    spent[i] += row[i] * times[i]
            rows.append(row)
            if time.perf_counter() - begin > budget and len(rows) >= FEWEST:
                break
    return {rival.name: column for rival, column in zip(rivals, np.array(rows).T, strict=True)}


def calls_in_a_sample(rival: Rival, clock: Callable[[], float]) -> int:
    """So many that they take SAMPLE_SECONDS; one call if it is slow."""
    once = seconds(rival, 1, clock)
    if once < SAMPLE_SECONDS / 2:  # the first call of a quick one may have met a cold cache
        once = seconds(rival, 1, clock)
    return max(1, min(rival.most, round(SAMPLE_SECONDS / max(once, 1e-8))))


def ratio(slow: np.ndarray, fast: np.ndarray) -> dict[str, float | int | list[float]]:
    """How many times longer one takes than the other: median and quartiles of the ratio within a round."""
    ratios = slow / fast
    ratios = ratios[np.isfinite(ratios)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"ratio": significant(middle), "quartiles": [significant(low), significant(high)], "rounds": len(ratios)}


def significant(value: float) -> float:
    """Four digits: more would say nothing."""
    return float(f"{value:.4g}")


def median(times: np.ndarray) -> float:
    return significant(float(np.nanmedian(times)))


def readable(duration: float) -> str:
    return f"{duration * 1e3:.3g} ms" if duration >= 1e-3 else f"{duration * 1e6:.3g} us"
