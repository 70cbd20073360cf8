"""Ctrl-C and SIGTERM, held back while threads are at work.

Python raises what a signal's handler raises between any two instructions of the main thread, also amid the code of a lock: a
thread that needs the lock then waits for ever, and whoever waits for the thread too.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

SAME_SIGNAL_SECONDS = 1.0
"""A launcher sends on what the terminal has sent already: within this time a second signal is the first one again."""

CHECK_SECONDS = 0.2
"""Whoever waits for long asks this often whether a signal came."""

Found = TypeVar("Found")


class Interrupts:
    """Signals that came while they are held back. One that comes a while after another has its way at once."""

    def __init__(self) -> None:
        self.seen: signal.Signals | None = None
        self._when = 0.0
        self._delivered = False
        self._over = False
        self._before: dict[signal.Signals, Any] = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        again = self.seen is not None and time.monotonic() - self._when > SAME_SIGNAL_SECONDS
        if self.seen is None:
            self.seen, self._when = signal.Signals(number), time.monotonic()
        if again or self._over:
            self._pass_on(signal.Signals(number), frame)

    def check(self) -> None:
        """Do what the signal would have done, if one came; what its handler raises is raised here."""
        if self.seen is not None and not self._delivered:
            self._pass_on(self.seen)

    def deliver(self) -> None:
        """End as the signal would have ended the program. In a process that got none, another one of the run did."""
        self._pass_on(signal.SIGINT if self.seen is None else self.seen)
        raise KeyboardInterrupt

    def result_of(self, future: Future[Found]) -> Found:
        """What a thread's work comes to, waited for while `check` is called now and then."""
        while not wait([future], CHECK_SECONDS).done:
            self.check()
        self.check()
        return future.result()

    def _pass_on(self, number: signal.Signals, frame: FrameType | None = None) -> None:
        self._delivered = True
        if number in self._before:
            self._before[number](number, frame)
        self.seen, self._delivered = None, False  # the handler lets the program go on

    def _hold(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler: Any = signal.getsignal(number)
            while isinstance(holder := getattr(handler, "__self__", None), Interrupts) and holder._over:
                handler = holder._before[number]  # which a signal kept from being put back
            # The default of SIGTERM ends the process, which is left so.
            if callable(handler) and not isinstance(holder, Interrupts):
                self._before[number] = handler
                signal.signal(number, self.note)

    def _release(self) -> None:
        self._over = True  # amid these lines a handler that is back may raise, and the others stay
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Hold signals back for a while; one that came and was not asked for is delivered at the end.

    In a thread that is not the main one they cannot be held, and where they are held already whoever did so decides: there
    nothing is ever seen.
    """
    held = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    try:
        held._hold()
        yield held
    finally:
        held._release()
        held.check()


def in_threads(threads: int, function: Callable[..., Found], *arguments: Iterable[Any]) -> list[Found]:
    """What the function makes of each, in their order, so many at a time; the first error ends all."""
    with interrupts() as held, ThreadPoolExecutor(threads) as pool:
        try:
            under_way = [pool.submit(function, *each) for each in zip(*arguments, strict=True)]
            return [held.result_of(future) for future in under_way]
        finally:
            pool.shutdown(cancel_futures=True)
