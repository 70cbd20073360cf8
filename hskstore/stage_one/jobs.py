"""What stage one has to do: the stores that are planned, what they miss, and the jobs that make it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hskstore.store.commit import examine
from hskstore.store.layout import Unit
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan

JOBS_AT_A_TIME = 2
"""Of a worker: while the units of one job are compressed, hashed and put, the teacher runs over the next."""

WRITERS = 4
"""Threads of a worker that compress, hash and put units while the teacher runs on; more than one for a fast teacher."""


@dataclass(frozen=True)
class PlannedStore:
    """A store about to be written, or there already: `missing` are its units to come, `digest` that of a sealed one.

    `most_bytes` is before compression, of the tokens that are really kept.
    """

    plan: Plan
    objects: Objects
    most_bytes: dict[str, int]
    missing: frozenset[Unit]
    digest: str | None

    @classmethod
    def examine(cls, plan: Plan, root: str, most_bytes: dict[str, int]) -> "PlannedStore":
        """Look at what stands at `root`; nothing is written. Raises PlanError where it is another plan's."""
        objects = Objects(root)
        standing = examine(objects, plan)
        return cls(plan, objects, most_bytes, frozenset(plan.units()) - standing.finished, standing.digest)


@dataclass(frozen=True)
class Job:
    """Consecutive stored rows of one split, whole blocks of the pass and whole units of every store."""

    split: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.split} rows {self.start} to {self.stop - 1}"

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def units(self, plan: Plan) -> range:
        """The numbers of the job's units in the store of `plan`."""
        size = plan.splits[self.split].unit_rows
        return range(self.start // size, -(-self.stop // size))


def make_jobs(plans: Sequence[Plan]) -> Iterator[Job]:
    """Every job of a pass; they follow from the plans alone, whatever of them is done."""
    for split, first in plans[0].splits.items():
        size = max(plans[0].pass_.block_rows, *(plan.splits[split].unit_rows for plan in plans))
        for start in range(0, first.rows, size):
            yield Job(split, start, min(start + size, first.rows))


def missing_jobs(stores: Sequence[PlannedStore]) -> list[Job]:
    """The jobs of which some store misses a unit."""
    return [
        job
        for job in make_jobs([store.plan for store in stores])
        if any((job.split, unit) in store.missing for store in stores for unit in job.units(store.plan))
    ]
