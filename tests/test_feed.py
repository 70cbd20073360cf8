"""What training is fed: every row once an epoch, padded little, in an order that settings alone decide, from any step on."""

import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hskstore.stage_two.feed
from hskstore.config import Keep, Strategy
from hskstore.errors import StoreError
from hskstore.methods.batch import Batch
from hskstore.stage_one.extract import extract
from hskstore.stage_two.feed import (
    Feed,
    InMemory,
    InWindows,
    Prefetched,
    Share,
    Step,
    Window,
    group_by_length,
    open_supply,
    steps_per_epoch,
)
from hskstore.stage_two.rows import TrainingRows, bytes_per_row, rows_from_store
from hskstore.store import Store, open_store
from tests.made_up import want_of

KEY = "ab" * 32


def numbered(n_tokens: np.ndarray) -> TrainingRows:
    """Rows whose first word says which they are."""
    ids = np.zeros((len(n_tokens), int(n_tokens.max())), dtype=np.int32)
    ids[:, 0] = np.arange(len(n_tokens))
    return TrainingRows(ids, np.zeros_like(ids), n_tokens, None, None)


class Pieces:
    """A source of several windows, as a store read in blocks is one."""

    name = "blocks"

    def __init__(self, lengths: list[int], size: int) -> None:
        self.rows = numbered(np.array(lengths))
        self.size = size
        self.read_windows: list[int] = []

    def windows(self, rng: np.random.Generator, batch_size: int) -> list[Window]:
        whole, rest = divmod(len(self.rows), self.size)
        order = rng.permutation(whole).tolist()
        return [Window((unit,), self.size) for unit in order] + ([Window((whole,), rest)] if rest else [])

    def read(self, window: Window) -> TrainingRows:
        (unit,) = window.units
        self.read_windows.append(unit)
        at = np.arange(unit * self.size, unit * self.size + window.rows)
        return TrainingRows(self.rows.input_ids[at], self.rows.token_type_ids[at], self.rows.n_tokens[at], None, None, None)


def rows_of(batch: Batch) -> list[int]:
    return batch.input_ids[:, 0].tolist()


def order(source: Any, steps: slice = slice(None), **changed: Any) -> list[list[int]]:
    options = {"batch_size": 16, "order": KEY, "seed": 0} | {k: v for k, v in changed.items() if k != "epoch"}
    feed = Feed(source, **options)
    return [rows_of(step.batch) for step in feed.epoch(changed.get("epoch", 0))][steps]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_row_once_and_no_batch_is_too_big(lengths: list[int], size: int, window: int, epoch: int) -> None:
    for source in (InMemory(numbered(np.array(lengths))), Pieces(lengths, window)):
        steps = list(Feed(source, size, KEY, 0).epoch(epoch))
        assert sorted(row for step in steps for row in rows_of(step.batch)) == list(range(len(lengths)))
        assert max(len(step.batch) for step in steps) <= size
        assert [step.number for step in steps] == list(range(steps_per_epoch(source, size)))
        assert [step.ends_epoch for step in steps] == [False] * (len(steps) - 1) + [True]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 50), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_processes_share_every_batch_without_overlap_or_loss(rows: int, size: int, window: int, of: int, epoch: int) -> None:
    lengths = np.random.default_rng(rows).integers(1, 60, rows).tolist()
    whole = order(Pieces(lengths, window), batch_size=size, epoch=epoch)
    shares = [list(Feed(Pieces(lengths, window), size, KEY, 0, Share(rank, of)).epoch(epoch)) for rank in range(of)]
    for batch, *parts in zip(whole, *shares, strict=True):
        counted = [row for part in parts if part.counts for row in rows_of(part.batch)]
        assert sorted(counted) == sorted(batch)
        assert all(len(part.batch) == 1 for part in parts if not part.counts), "a row to run the student on"


@pytest.mark.parametrize("source", [InMemory(numbered(np.arange(1, 501) % 60 + 1)), Pieces([*range(1, 501)], 128)])
def test_the_order_is_a_pure_function_of_rows_seed_and_epoch(source: Any) -> None:
    assert order(source) == order(source)
    different = [order(source), order(source, seed=1), order(source, epoch=1), order(source, order="cd" * 32)]
    assert len({str(each) for each in different}) == 4


@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 80), st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped(rows: int, size: int, window: int, data: st.DataObject) -> None:
    lengths = np.random.default_rng(rows).integers(1, 60, rows).tolist()
    feed = Feed(Pieces(lengths, window), size, KEY, 0)
    stop = 3 * steps_per_epoch(feed.supply, size)
    whole = [(step.number, step.ends_epoch, rows_of(step.batch)) for step in feed.steps(start=0, stop=stop)]
    start = data.draw(st.integers(0, stop))
    rest = [(step.number, step.ends_epoch, rows_of(step.batch)) for step in feed.steps(start=start, stop=stop)]
    assert rest == whole[start:]


def test_windows_that_were_trained_on_before_are_not_read_again() -> None:
    source = Pieces([5] * 640, 64)
    list(Feed(source, 16, KEY, 0).epoch(0, start=30))
    assert len(source.read_windows) == 3


def test_batches_of_similar_length_pad_little() -> None:
    lengths = np.random.default_rng(0).integers(4, 60, 4000)
    batches = group_by_length(lengths, 32, np.random.default_rng(0))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()


# --- stores


@pytest.fixture(scope="module")
def store(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("stores")
    extract(teacher_folder, data_folder, out=place, keeps=[Keep(2, 3, 8)], strategies=[Strategy(2)], task="sst2")
    return open_store(place / "d2-l3-w8")


def test_blocks_read_the_very_rows_of_the_store(store: Store) -> None:
    whole = rows_from_store(store, "train", places={"hidden": (1,)})
    source = InWindows(store, "train", {"places": {"hidden": (1,)}})
    (window,) = source.windows(np.random.default_rng(0), 16)
    found = source.read(window)
    starts = np.cumsum([0, *(store.plan.splits["train"].rows_of(unit) for unit in range(store.plan.splits["train"].units))])
    at = np.concatenate([np.arange(starts[unit], starts[unit + 1]) for unit in window.units])
    np.testing.assert_array_equal(found.input_ids, whole.input_ids[at])
    both = rows_from_store(store, "train", places={"hidden": (0, 1)})
    for name in ("values", "mask", "token", "n_kept"):
        one, window_of_one, two = (rows.features["hidden"].arrays[name] for rows in (whole, found, both))
        np.testing.assert_array_equal(window_of_one, one[at])
        np.testing.assert_array_equal(one[:, 0], two[:, 1])


def test_windows_hold_whole_units_up_to_their_bytes_and_at_least_a_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source, split = InWindows(store, "train", {}), store.plan.splits["train"]
    monkeypatch.setattr(hskstore.stage_two.feed, "WINDOW_BYTES", 1)
    windows = source.windows(np.random.default_rng(0), 16)
    assert [len(window.units) for window in windows] == [1] * split.units
    assert sorted(unit for window in windows for unit in window.units) == list(range(split.units))
    assert sum(window.rows for window in windows) == split.rows
    assert windows[-1].units[-1] == split.units - 1
    assert len(source.windows(np.random.default_rng(0), 2 * split.unit_rows)[0].units) == min(2, split.units)


@pytest.mark.parametrize(
    ("loader", "share", "chosen"),
    [("auto", 0.41, "blocks"), ("auto", 0.39, "ram"), ("ram", 0.7, "ram"), ("blocks", 0.01, "blocks")],
)
def test_the_loader_is_chosen_by_memory_unless_it_is_named(
    loader: Any, share: float, chosen: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = store.plan.splits["train"].rows * bytes_per_row(store, "train", {"hidden": (0,)})
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": needed / share})())
    assert open_supply(store, "train", loader=loader, places={"hidden": (0,)}).name == chosen
    if chosen == "ram" and loader == "auto":
        assert open_supply(store, "train", loader=loader, places={"hidden": (0,)}, processes=2).name == "blocks"


def test_a_damaged_shard_is_named_when_its_window_is_read(store: Store, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(store.root, tmp_path / "store")
    source = InWindows(open_store(tmp_path / "store"), "train", {"places": {"hidden": (0,)}})
    shard = tmp_path / "store" / "train" / "logits" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"train/logits/c/0/0 is damaged"):
        list(Prefetched(Feed(source, 16, KEY, 0).epoch(0, reads=[want_of(store, 0)])))


# --- the thread


def test_prefetched_items_come_in_order_and_an_error_where_it_happened() -> None:
    def items() -> Generator[int]:
        yield from range(5)
        raise StoreError("broken")

    seen: list[int] = []
    with pytest.raises(StoreError, match="broken"):
        for item in Prefetched(items()):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]


def test_no_more_is_made_than_is_asked_for_and_a_few_ahead() -> None:
    made: list[int] = []

    def items() -> Generator[int]:
        for item in range(100):
            made.append(item)
            yield item

    prefetched = Prefetched(items(), ahead=3)
    iterator = iter(prefetched)
    assert next(iterator) == 0
    time.sleep(0.1)
    assert len(made) <= 6
    prefetched.close()
    assert len(made) <= 8
    assert not any(thread.name == "makes-batches" and thread.is_alive() for thread in threading.enumerate())


def test_waits_are_counted_where_items_come_too_late() -> None:
    def slow() -> Generator[int]:
        for item in range(4):
            time.sleep(0.03)
            yield item

    late = Prefetched(slow())
    assert list(late) == [0, 1, 2, 3]
    assert late.waited > 0.04
    ready = Prefetched(iter_of(4))
    for _ in ready:
        time.sleep(0.02)
    assert ready.waited == 0


def iter_of(count: int) -> Generator[int]:
    yield from range(count)


def test_batches_are_made_off_the_training_thread() -> None:
    rows = numbered(np.arange(1, 65))
    where: set[int] = set()
    batch = TrainingRows.batch

    class Watched(TrainingRows):
        def batch(self, rows: np.ndarray, reads: Any = ()) -> Batch:
            where.add(threading.get_ident())
            return batch(self, rows, reads)

    steps: list[Step] = list(Prefetched(Feed(InMemory(Watched(**vars(rows))), 16, KEY, 0).epoch(0)))
    assert len(steps) == 4 and threading.get_ident() not in where
    assert all(isinstance(step.batch.input_ids, torch.Tensor) for step in steps)
