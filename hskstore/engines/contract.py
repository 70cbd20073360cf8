"""What an engine is given: jobs, and how to make a worker. Never arrays."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

JobT = TypeVar("JobT")
JobIn = TypeVar("JobIn", contravariant=True)

OnRows = Callable[[int], None]
"""Is told of rows that were done; less than 0 if a job is given up, to be run again."""


class Worker(Protocol[JobIn]):
    """Does jobs, `depth` of them at a time, each in a thread of its own. A job may be run twice: its only effect is put."""

    @property
    def depth(self) -> int: ...

    def run(self, job: JobIn) -> None:
        """Do one job. An HskError ends the whole run; any other error is the job's, which is tried again."""

    def stop(self) -> None:
        """Let the jobs under way end soon, by an error. Called from another thread."""


Recruit = Callable[[OnRows], AbstractContextManager[Worker[JobT]]]
"""Makes a worker, in the process or on the machine where it shall work: what engines of several send there."""
