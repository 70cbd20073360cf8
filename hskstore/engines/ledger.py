"""What became of every job: the same rules whoever runs them."""

import logging
import traceback
from collections import Counter, deque
from collections.abc import Iterable
from typing import Generic

from hskstore.engines.contract import JobT
from hskstore.errors import EngineError

TRIES = 3
log = logging.getLogger(__name__)


class Ledger(Generic[JobT]):
    """Jobs to do, and those that were set aside: a job that failed three times by an error of the program itself.

    A job that was lost, with the machine or process that had it, comes again without being counted.
    """

    def __init__(self, jobs: Iterable[JobT]) -> None:
        self._waiting = deque(jobs)
        self._failures: Counter[JobT] = Counter()
        self._aside: dict[JobT, str] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is a job that nobody has."""
        return bool(self._waiting)

    def take(self) -> JobT | None:
        """The next job; None where none waits."""
        return self._waiting.popleft() if self._waiting else None

    def lost(self, job: JobT) -> None:
        """Whoever had the job is gone: it is the next."""
        self._waiting.appendleft(job)

    def failed(self, job: JobT, why: str) -> None:
        """The job ended with an error: it comes again after all others, or is set aside."""
        self._failures[job] += 1
        if self._failures[job] < TRIES:
            log.warning("%s failed (%s); it will be tried again", job, why)
            self._waiting.append(job)
        else:
            log.warning("%s failed %d times (%s) and is set aside", job, TRIES, why)
            self._aside[job] = why

    def close(self) -> None:
        """Raise EngineError where jobs were set aside."""
        if self._aside:
            (job, why), *others = self._aside.items()
            more = f", and {len(others)} more jobs" if others else ""
            raise EngineError(
                f"{job} failed {TRIES} times and was set aside{more}: {why}. Everything else is finished and kept; run the same"
                " command again to try just that"
            )


def why_of(error: BaseException) -> str:
    """An error in one line: its class, what it says, and where it was raised."""
    said = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {frames[-1].filename.rpartition('/')[2]} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {said}{place}" if said else f"{type(error).__name__}{place}"
