"""Bytes done and time left, on a terminal's stderr; elsewhere nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes done, from any thread."""
    try:
        from rich import progress as bars
        from rich.console import Console
    except ImportError:
        bars = None
    if bars is None or not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    columns = ("{task.description}", bars.BarColumn(), bars.DownloadColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
