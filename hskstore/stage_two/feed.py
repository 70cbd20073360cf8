"""What the training loop is fed: batches in an order that settings alone decide, made on a thread of their own.

Rows lie in memory, or are read from the store in windows of whole units, which were put in a random order when the store was
made. Either way an epoch is every row once, in batches of similar length, and can begin at any of its steps.
"""

import hashlib
import math
import queue
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from hskstore.config import Loader
from hskstore.features import Want
from hskstore.memory import give_back_memory, rows_fit
from hskstore.methods.batch import Batch
from hskstore.stage_two.rows import NOTHING, TrainingRows, bytes_per_row, rows_from_store
from hskstore.store import Store
from hskstore.watch import Watch, unwatched

GROUP_BATCHES = 64
"""Batches whose rows are sorted by length together: enough to pad little, few enough to stay a shuffle."""

WINDOW_BYTES = 32 * 2**20
"""Of rows that are shuffled together where a store is read in windows; three of them may be in memory at once."""

AHEAD = 4
"""Batches that are made before they are asked for."""

Item = TypeVar("Item")


class Supply(Protocol):
    """Rows to train on, in windows: rows of one window are shuffled together, and may be read while another one trains."""

    @property
    def name(self) -> Literal["ram", "blocks"]: ...

    def windows(self, rng: np.random.Generator, batch_size: int) -> list["Window"]:
        """Every row once, in windows whose number and sizes do not depend on `rng`."""
        ...

    def read(self, window: "Window") -> TrainingRows: ...

    def batches_sha256(self, order: str, batch_sizes: Sequence[int]) -> str:
        """Names the batches of these sizes, in the order that `order` and any seed make."""
        ...


@dataclass(frozen=True)
class Window:
    """Units of a store that are read together, and how many rows they have."""

    units: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class InMemory:
    """Rows that are all at hand: one window, so that the shuffle is exact."""

    rows: TrainingRows
    name: Literal["ram"] = "ram"

    def windows(self, rng: np.random.Generator, batch_size: int) -> list[Window]:
        return [Window((), len(self.rows))]

    def read(self, window: Window) -> TrainingRows:
        return self.rows

    def batches_sha256(self, order: str, batch_sizes: Sequence[int]) -> str:
        """Of the rows, and the sizes."""
        return _sha256(self.name, order, *batch_sizes)


@dataclass(frozen=True)
class InWindows:
    """Rows of a store's split that are read anew in every epoch, some units at a time.

    `reading` is what `rows_from_store` takes. Windows are as large as rows of `row_bytes` make them; 0: of what is read.
    """

    store: Store
    split: str
    reading: dict[str, Any] = field(default_factory=dict)
    row_bytes: int = 0
    name: Literal["blocks"] = "blocks"

    def windows(self, rng: np.random.Generator, batch_size: int) -> list[Window]:
        """Random units together, at least a batch of them. The last unit, which may be short, is always in the last window."""
        split = self.store.plan.splits[self.split]
        order = [*rng.permutation(split.units - 1).tolist(), split.units - 1]
        of_row = self.row_bytes or bytes_per_row(self.store, self.split, self.reading.get("places", NOTHING))
        together = max(1, WINDOW_BYTES // max(1, of_row) // split.unit_rows, math.ceil(batch_size / split.unit_rows))
        chosen = [tuple(order[at : at + together]) for at in range(0, len(order), together)]
        return [Window(units, sum(split.rows_of(unit) for unit in units)) for units in chosen]

    def read(self, window: Window) -> TrainingRows:
        rows = rows_from_store(self.store, self.split, units=window.units, **self.reading)
        give_back_memory()
        return rows

    def batches_sha256(self, order: str, batch_sizes: Sequence[int]) -> str:
        """Of the rows, the sizes, and the windows, which follow from the bytes of a row: more of them make smaller windows."""
        windows = [[window.units for window in self.windows(np.random.default_rng(0), size)] for size in batch_sizes]
        return _sha256(self.name, order, *batch_sizes, self.store.plan.splits[self.split].unit_rows, windows)


def open_supply(
    store: Store,
    split: str,
    *,
    loader: Loader = "auto",
    processes: int = 1,
    row_bytes: int = 0,
    watch: Watch = unwatched,
    **reading: Any,
) -> InMemory | InWindows:
    """A split of a store to train on: in memory ("ram") or in windows ("blocks").

    "auto" is `ram` where all rows fit into 40 % of the memory that is free, with each of `processes` on this machine having
    its own. `row_bytes` as `InWindows` has it; `reading` is what `rows_from_store` takes.
    """
    needed = store.plan.splits[split].rows * bytes_per_row(store, split, reading.get("places", NOTHING))
    if loader == "blocks" or (loader == "auto" and not rows_fit(needed, processes)):
        return InWindows(store, split, reading, row_bytes)
    return InMemory(rows_from_store(store, split, **reading, watch=watch))


def _sha256(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def first_rows(supply: Supply) -> TrainingRows:
    """The rows of one window: all of them, or a sample."""
    return supply.read(supply.windows(np.random.default_rng(0), 1)[0])


def steps_per_epoch(supply: Supply, batch_size: int) -> int:
    """Batches of an epoch; the last one of a window may be small."""
    windows = supply.windows(np.random.default_rng(0), batch_size)
    return sum(math.ceil(window.rows / batch_size) for window in windows)


def group_by_length(
    n_tokens: Int[np.ndarray, " row"], batch_size: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " _batch"]]:
    """Every row once, as batches of similar length in random order."""
    order = rng.permutation(len(n_tokens))
    together = GROUP_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), together):
        group = order[start : start + together]
        group = group[np.argsort(n_tokens[group], kind="stable")]
        batches += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


@dataclass(frozen=True)
class Share:
    """Which rows of each batch one of several processes trains on."""

    rank: int = 0
    of: int = 1

    def rows(self, batch: Int[np.ndarray, " batch"]) -> tuple[Int[np.ndarray, " mine"], bool]:
        """This process's rows, and whether they count.

        Every row is some process's, none is two's; a process that gets none sees one that does not count.
        """
        mine = batch[self.rank :: self.of]
        return (mine, True) if len(mine) else (batch[:1], False)


@dataclass(frozen=True)
class Step:
    """One step's batch, and whether its rows count: a process without a share of the batch has one that does not."""

    number: int
    batch: Batch
    counts: bool
    ends_epoch: bool


@dataclass(frozen=True)
class Feed:
    """What decides the batches of a run: its rows, their order, and this process's share.

    The order is a pure function of `order` (a sha256 of the rows), `seed`, the epoch, the batch size, and the supply's windows.
    """

    supply: Supply
    batch_size: int
    order: str
    seed: int
    share: Share = Share()

    def epoch(self, number: int, *, reads: Sequence[Want[Any]] = (), start: int = 0) -> Generator[Step]:
        """An epoch's steps from its step `start` on, with the knowledge that is asked for; windows that were trained on before
        are not read."""
        seed = [int(self.order[:16], 16), self.seed, number]
        windows = self.supply.windows(np.random.default_rng(seed), self.batch_size)
        counts = [math.ceil(window.rows / self.batch_size) for window in windows]
        ends = np.cumsum(counts)
        ahead = [index for index in range(len(windows)) if ends[index] > start]
        with ThreadPoolExecutor(1, "reads-windows") as reader:
            coming = [reader.submit(self.supply.read, windows[index]) for index in ahead[:1]]
            for place, index in enumerate(ahead):
                rows = coming.pop().result()
                if place + 1 < len(ahead):
                    coming.append(reader.submit(self.supply.read, windows[ahead[place + 1]]))
                first = int(ends[index]) - counts[index]
                batches = group_by_length(rows.n_tokens, self.batch_size, np.random.default_rng([*seed, index]))
                for step, batch in enumerate(batches, first):
                    if step >= start:
                        mine, counted = self.share.rows(batch)
                        yield Step(step, rows.batch(mine, reads), counted, step + 1 == int(ends[-1]))

    def steps(self, *, reads: Sequence[Want[Any]] = (), start: int, stop: int) -> Generator[Step]:
        """The steps `start` to `stop` of a run, epoch after epoch, numbered through."""
        length = steps_per_epoch(self.supply, self.batch_size)
        while start < stop:
            epoch, at = divmod(start, length)
            for step in self.epoch(epoch, reads=reads, start=at):
                if start == stop:
                    return
                yield Step(start, replace(step.batch, epoch=start / length), step.counts, step.ends_epoch)
                start += 1


class Prefetched(Generic[Item]):
    """Items of an iterator, made by a thread of their own, `ahead` of whoever takes them; close it when enough is taken.

    `waited` is the seconds until items came that were not there when they were asked for, the first one apart.
    """

    def __init__(self, items: Generator[Item], ahead: int = AHEAD) -> None:
        self.waited = 0.0
        self._items = items
        self._made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, name="makes-batches", daemon=True)
        self._taken = 0
        self._thread.start()

    def __iter__(self) -> Generator[Item]:
        while True:
            began = time.monotonic()
            late = self._made.empty()
            item, error = self._made.get()
            if error is not None:
                raise error
            if item is None:
                return
            if late and self._taken:
                self.waited += time.monotonic() - began
            self._taken += 1
            yield item

    def close(self) -> None:
        """Stop making items, and wait until the thread has."""
        self._closed.set()
        while self._thread.is_alive():
            while not self._made.empty():
                self._made.get_nowait()
            self._thread.join(0.01)

    def _make(self) -> None:
        try:
            for item in self._items:
                self._made.put((item, None))
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._made.put((None, error))
        else:
            self._made.put((None, None))
        finally:
            self._items.close()
