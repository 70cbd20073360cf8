"""Every job in this process, one after the other."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

JobT = TypeVar("JobT", contravariant=True)


class Worker(Protocol[JobT]):
    """Pure in (plans, data); its only effect is put. A job may be run twice: the second run is as good as the first."""

    def run(self, job: JobT) -> None: ...


def run_inline(jobs: Iterable[JobT], worker: Callable[[], AbstractContextManager[Worker[JobT]]]) -> None:
    """Run every job on one worker, built here and closed at the end, also after an error."""
    with worker() as hands:
        for job in jobs:
            hands.run(job)
