"""Bytes done and time left, on a terminal's stderr; elsewhere nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes done, from any thread."""
    if not (sys.stderr.isatty() and find_spec("rich")):
        yield lambda nbytes: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = ("{task.description}", bars.BarColumn(), bars.DownloadColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
