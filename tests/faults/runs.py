"""Extractions in processes of their own, which can be killed, crashed, raced and starved of room."""

import multiprocessing
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import torch

from hskstore.config import Keep, Strategy
from hskstore.errors import HskError
from hskstore.stage_one.extract import extract
from hskstore.store import open_store
from hskstore.store.commit import Receipt, begin, commit_unit, examine, seal
from hskstore.store.objects import Objects
from hskstore.store.verify import verify
from tests.store.conftest import FILES, make_plan, make_unit, tree

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hskstore.stage_one.extract", "transformers.models.bert.modeling_bert", "tests.faults.runs"])
"""Every child starts with the libraries loaded, in a hundredth of a second."""

PATIENCE = 120
"""Seconds after which a child counts as hung."""


@dataclass(frozen=True)
class Extraction:
    """One extract command, but for where it writes."""

    teacher: str
    data: str
    keeps: tuple[str, ...]

    def into(self, out: Path) -> tuple[str, ...]:
        """Run it in this process, on one thread, for their number shows in a digest: the digests of its stores."""
        torch.set_num_threads(1)
        keeps = [Keep.parse(keep) for keep in self.keeps]
        stores = extract(self.teacher, self.data, out=out, keeps=keeps, strategies=[Strategy(2)], task="sst2")
        return tuple(store.digest for store in stores)

    def roots(self, out: Path) -> list[Path]:
        return [out / Keep.parse(keep).name for keep in self.keeps]


class Child:
    """A process that does one piece of work, begun when this returns."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._answers, theirs = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=_work, args=(theirs, work, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self._answers.recv() == "begun"

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after so many seconds; False if it was done before."""
        if self._answers.poll(seconds):
            return False
        self.process.kill()
        self.process.join()
        return True

    def result(self) -> Any:
        """What the work returned or the HskError it raised; None from a process that died. A hung one fails the test."""
        if not self._answers.poll(PATIENCE):
            self.process.kill()
            raise AssertionError(f"a process was still at work after {PATIENCE} s")
        try:
            found = self._answers.recv()
        except EOFError:
            found = None
        self.process.join()
        return found


def _work(answers: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    answers.send("begun")
    try:
        found = work(*arguments)
    except HskError as error:
        found = error
    answers.send(found)


def puts_of(extraction: Extraction, out: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """Run an extraction that nothing happens to: its digests, and every put in order, as path below `out` and bytes."""
    puts: list[tuple[str, int]] = []
    put = obstore.put

    def noting(store: Any, key: str, data: bytes, **options: Any) -> Any:
        puts.append((f"{Path(store.prefix).name}/{key}", len(data)))
        return put(store, key, data, **options)

    obstore.put = noting
    return extraction.into(out), puts


def assert_whole(root: Path, digest: str, where: str) -> None:
    """A sealed store with this digest and every row once, in which nothing is damaged and beside which nothing was left."""
    store = open_store(root)
    assert store.digest == digest, where
    for split, rows in store.plan.splits.items():
        row_id = store.read_all(f"{split}/row_id")
        np.testing.assert_array_equal(np.sort(row_id), np.arange(rows.rows), err_msg=where)
    assert verify(str(root), deep=True).problems == (), where
    assert Objects(root).stranded() == [], where


PLAN = make_plan(rows=9, validation_rows=5, labels=None)
"""Of a store that is made in an instant: three units."""


@cache
def units() -> dict[tuple[str, int], tuple[Receipt, dict[str, bytes]]]:
    return {unit: make_unit(PLAN, *unit) for unit in PLAN.units()}


def make_store(root: str | Path) -> str:
    """One run of whatever makes stores, going on where an earlier one stopped: the digest."""
    objects = Objects(root)
    standing = examine(objects, PLAN)
    if standing.digest is not None:
        return standing.digest
    begin(objects, PLAN, FILES)
    for unit, (receipt, blobs) in units().items():
        if unit not in standing.finished:
            commit_unit(objects, replace(receipt, attempt=uuid.uuid4().hex), blobs)
    return seal(objects, PLAN)


def sealed_bytes(root: Path) -> dict[str, bytes]:
    return {key: data for key, data in tree(root).items() if not key.startswith("units/")}
