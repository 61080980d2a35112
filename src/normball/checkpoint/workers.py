"""Threads that work on pieces, whose results come in the pieces' order, a few at a time."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

MOST = 64  # threads: more wait for memory or the disk alone


class Workers:
    """A context manager: ends the threads. `progress` is told of bytes done."""

    def __init__(self, threads: int = 1, progress: Callable[[int], None] = lambda nbytes: None) -> None:
        self.threads, self.progress = min(threads, MOST), progress
        self._pool = ThreadPoolExecutor(self.threads) if threads > 1 else None
        self._own = threading.local()

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Each item's result, in order; no more than two a thread are under way or wait to be taken."""
        if self._pool is None:
            yield from map(work, items)
            return
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error in one, or the caller goes: what has not begun does not begin
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()

    def buffer(self, nbytes: int, name: str = "") -> np.ndarray:
        """This thread's own bytes, the same memory at each call: fresh pages would cost more than the arithmetic."""
        kept = self._own.__dict__.get(name)
        if kept is None or kept.size < nbytes:
            kept = self._own.__dict__[name] = np.empty(nbytes, np.uint8)
        return kept[:nbytes]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
