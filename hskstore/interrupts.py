"""Ctrl-C and SIGTERM, held back while threads are at work.

Python raises what a signal's handler raises between any two instructions of the main thread, also amid the code of a lock: a
thread that needs the lock then waits for ever, and whoever waits for the thread too.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

SAME_SIGNAL_SECONDS = 1.0
"""A launcher sends on what the terminal has sent already: within this time a second signal is the first one again."""

CHECK_SECONDS = 0.2
"""Whoever waits for long asks this often whether a signal came."""

Found = TypeVar("Found")


class Interrupts:
    """What came while signals were held back. A second one, some time after the first, ends at once."""

    def __init__(self) -> None:
        self.seen: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.seen is not None and time.monotonic() - self._when > SAME_SIGNAL_SECONDS:
            self.deliver()
        if self.seen is None:
            self.seen, self._when = signal.Signals(number), time.monotonic()

    def check(self) -> None:
        """Deliver the signal that came, if one did."""
        if self.seen is not None:
            self.deliver()

    def deliver(self) -> None:
        """End as the signal would have ended the program. In a process that got none, another one of the run did."""
        number, self.seen = signal.SIGINT if self.seen is None else self.seen, None
        handler = self._before.get(number)
        if callable(handler):
            handler(number, None)
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Hold signals back for a while; one that came and was not asked for is delivered at the end.

    In a thread that is not the main one they cannot be held, and where they are held already whoever did so decides: there
    nothing is ever seen.
    """
    held = Interrupts()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            # The default of SIGTERM ends the process, which is left so.
            if callable(handler) and not isinstance(getattr(handler, "__self__", None), Interrupts):
                held._before[number] = handler
                signal.signal(number, held.note)
    try:
        yield held
    finally:
        for number, handler in held._before.items():
            signal.signal(number, handler)
    held.check()


def in_threads(threads: int, function: Callable[..., Found], *arguments: Iterable[Any]) -> list[Found]:
    """What the function makes of each, in their order, so many at a time; the first error ends all."""
    found: list[Found] = []
    with interrupts() as held, ThreadPoolExecutor(threads) as pool:
        try:
            for one in pool.map(function, *arguments):
                found.append(one)
                held.check()
        finally:
            pool.shutdown(cancel_futures=True)
    return found
