"""Jobs of stage one done: rows through the teacher, whole units committed."""

import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

import numpy as np
import torch
import transformers
from jaxtyping import Shaped

from hskstore.errors import ModelError
from hskstore.memory import give_back_memory
from hskstore.models.device import choose_device
from hskstore.stage_one.jobs import JOBS_AT_A_TIME, WRITERS, Job
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_one.teacher_pass import TeacherPass, block_batches, probe, sight_of
from hskstore.store.commit import Receipt, codebooks_named, commit_unit, read_receipt, receipt_key
from hskstore.store.encode import encode_unit
from hskstore.store.layout import Columns
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.reader import read_plan
from hskstore.store.shard import unit_fingerprints
from hskstore.store.words import read_words
from hskstore.text.rows import Rows
from hskstore.version import __version__

StoreUnit = tuple[int, int]
"""Index of the store, number of the unit."""

Laid = dict[str, Shaped[np.ndarray, "_row ..."] | list[Shaped[np.ndarray, "..."]]]
"""A unit's arrays while they are filled, by path: whole, or a list of rows as `encode_unit` takes them."""


class Stopped(Exception):
    """A job was given up because the run is being stopped."""


class UnitWorker:
    """Runs the teacher over jobs and commits whole units, one receipt per store and unit. To be used in a `with` block.

    Pure in (plans, rows, teacher): its only effect is put, so a job may be run twice, here or elsewhere.
    """

    depth = JOBS_AT_A_TIME

    def __init__(
        self,
        stores: Sequence[tuple[Objects, Plan]],
        rows: Mapping[str, Rows],
        teacher: Teacher,
        on_rows: Callable[[int], None],
    ) -> None:
        """`on_rows` is told of rows that are through the teacher; less than 0 if a job is given up, to be run again."""
        self._stores = stores
        self._rows = rows
        self._teacher = teacher
        self._on_rows = on_rows
        self._attempt = uuid.uuid4().hex
        self._pass = TeacherPass([plan for _, plan in stores], teacher, [read_words(*store) for store in stores])
        self._codebooks = [codebooks_named(*store) for store in stores]
        self._writers = ThreadPoolExecutor(WRITERS, "hsk-writer")
        self._stopping = False

    def __enter__(self) -> "UnitWorker":
        return self

    def __exit__(self, *failure: object) -> None:
        self._writers.shutdown(wait=True)
        self._pass.close()

    def stop(self) -> None:
        """Let every job under way end at its next batch, raising Stopped; the units that it finished are committed."""
        self._stopping = True

    def run(self, job: Job) -> None:
        """Make the units of a job that have no receipt yet. Raises ModelError, StoreError, or whatever a library raised."""
        missing = [
            (index, unit)
            for index, (objects, plan) in enumerate(self._stores)
            for unit in job.units(plan)
            if read_receipt(objects, receipt_key(job.split, unit)) is None
        ]
        done = 0
        writes: list[Future[None]] = []
        try:
            for rows in self._run(job, missing, writes):
                done += rows
                self._on_rows(rows)
                if self._stopping:
                    raise Stopped
            for write in writes:
                write.result()
        except BaseException as error:
            self._on_rows(-done)
            if isinstance(error, torch.OutOfMemoryError):
                most = self._stores[0][1].pass_.batch_tokens
                raise ModelError(
                    f"{self._teacher.device} has no memory for a batch of {most} tokens: free some, or start anew with a smaller"
                    " --batch-tokens"
                ) from error
            raise
        finally:
            wait(writes)
        self._on_rows(job.rows - done)

    def _run(self, job: Job, missing: Sequence[StoreUnit], writes: list[Future[None]]) -> Iterator[int]:
        """Rows that are through the teacher, batch by batch; units that are whole go to the writers."""
        began = time.monotonic()
        wanted, lacking = sorted({index for index, _ in missing}), frozenset(missing)
        cut = list(self._blocks(job, missing))
        rows = (self._rows[job.split].take(batch) for batches, _ in cut for batch in batches)
        units: dict[StoreUnit, Laid] = {}
        with closing(self._pass.run(job.split, rows, wanted)) as passed:
            for batches, finished in cut:
                for batch, found in zip(batches, passed, strict=False):
                    for index, columns in zip(wanted, found, strict=True):
                        self._place(job.split, index, batch, columns, lacking, units)
                    yield len(batch)
                if self._teacher.device.type == "cpu":
                    give_back_memory()  # after a block, not each batch: what is given back has to be taken anew
                for index, unit in finished:
                    seconds = time.monotonic() - began
                    laid = units.pop((index, unit))
                    writes.append(self._writers.submit(self._commit, index, job.split, unit, laid, seconds))

    def _blocks(self, job: Job, missing: Sequence[StoreUnit]) -> Iterator[tuple[list[np.ndarray], list[StoreUnit]]]:
        """The blocks that hold rows of a missing unit: their batches, and the missing units whose last row is among theirs."""
        pass_ = self._stores[0][1].pass_
        inside = [(self._rows_of(job.split, unit), unit) for unit in missing]
        n_tokens = self._rows[job.split].slice(job.start, job.stop).n_tokens
        for block, batches in block_batches(n_tokens, pass_.block_rows, pass_.batch_tokens, start=job.start):
            if any(rows.start < block.stop and block.start < rows.stop for rows, _ in inside):
                yield batches, [unit for rows, unit in inside if block.start < rows.stop <= block.stop]

    def _rows_of(self, split: str, unit: StoreUnit) -> range:
        """The stored rows of a unit."""
        index, number = unit
        shape = self._stores[index][1].splits[split]
        return range(number * shape.unit_rows, min((number + 1) * shape.unit_rows, shape.rows))

    def _place(
        self,
        split: str,
        index: int,
        batch: np.ndarray,
        columns: Columns,
        lacking: frozenset[StoreUnit],
        units: dict[StoreUnit, Laid],
    ) -> None:
        """Lay the rows of a batch into the missing units that they belong to."""
        plan = self._stores[index][1]
        size = plan.splits[split].unit_rows
        owner = batch // size
        for number in np.unique(owner).tolist():
            if (index, number) not in lacking:
                continue
            if (index, number) not in units:
                units[index, number] = _empty_unit(plan, split, number)
            inside = np.flatnonzero(owner == number)
            at = batch[inside] - number * size
            for path, laid in units[index, number].items():
                column = columns[path]
                if isinstance(laid, list):
                    for place, row in zip(at.tolist(), inside.tolist(), strict=True):
                        laid[place] = column[row]
                else:
                    # A batch may be shorter along the axis of tokens, bytes or spans.
                    laid[(at, *(slice(size) for size in column.shape[1:]))] = column[inside]

    def _commit(self, index: int, split: str, unit: int, laid: Laid, seconds: float) -> None:
        objects, plan = self._stores[index]
        blobs = encode_unit(plan, split, unit, laid)
        made = {
            "teacher": self._teacher.name,
            "device": _device_name(self._teacher.device),
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "versions": _versions(),
        }
        if split == "train":
            made |= self._codebooks[index]
        entries = unit_fingerprints(plan.arrays_of(split), unit, blobs)
        rows = len(next(iter(laid.values())))
        commit_unit(objects, Receipt(split, unit, rows, self._attempt, entries, made), blobs)


def recruit(
    roots: Sequence[str],
    teacher: str,
    device: str | None,
    open_rows: Callable[[], Mapping[str, Rows]],
    on_rows: Callable[[int], None],
) -> UnitWorker:
    """A worker for the stores at `roots`, whose plans stand there, in a process or on a machine of its own.

    Raises ModelError where `teacher` is another one here than the plans were made with.
    """
    transformers.logging.disable_progress_bar()
    stores = [(Objects(root), read_plan(Objects(root))) for root in roots]
    plan, rows = stores[0][1], open_rows()
    loaded = load_teacher(teacher, device=choose_device(device), precision=plan.pass_.precision)
    if loaded.sha256 != plan.teacher["sha256"]:
        raise ModelError(f"{teacher} is another teacher on {platform.node()} than where the stores were planned")
    probe(loaded, sight_of(plan for _, plan in stores), rows["train"])
    return UnitWorker(stores, rows, loaded, on_rows)


def _empty_unit(plan: Plan, split: str, unit: int) -> Laid:
    """Room for one unit: arrays of what is known before the teacher runs, padded as shorter rows stay; of what it says a list of
    rows, which stay in the batches that they come from until they are encoded, for to lay padding takes longer than that."""
    pads = {f"{split}/input_ids": plan.tokenizer["pad_token_id"], f"{split}/offsets": -1}
    empty: Laid = {}
    for path, spec in plan.arrays_of(split).items():
        shape = (len(spec.rows(unit)), *spec.shape[1:])
        if path.split("/")[1] in plan.said:
            empty[path] = [np.empty(0)] * shape[0]
            continue
        pad = pads.get(path, 0)
        empty[path] = np.full(shape, pad, dtype=spec.dtype) if pad else np.zeros(shape, dtype=spec.dtype)
    return empty


@cache
def _versions() -> dict[str, str]:
    return {"hskstore": __version__} | {name: version(name) for name in ("torch", "transformers", "zarr")}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
