"""SIGINT and SIGTERM as one exception, so that whoever holds files open closes them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was asked to end. Its text is the line to show; `128 + number` is the exit code."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.remedy = ""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self.remedy}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile both signals raise Stopped; one that is ignored (nohup, a shell's background) stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)
