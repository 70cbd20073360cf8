"""Rows become batches: every row once, padded little, in an order that arguments alone decide."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hskstore.config import Keep, Strategy
from hskstore.errors import StoreError
from hskstore.stage_one.extract import extract
from hskstore.stage_two.rows import rows_from_store
from hskstore.store import open_store
from tests.made_up import scattered, want_of

KEY = "ab" * 32


@pytest.mark.parametrize("values", ["f32", "f16", "q8", "q4"])
def test_targets_are_the_teachers_states_at_the_ranked_tokens_masked_by_magnitude(
    values: str, teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    strategy = Strategy(2, values=values)  # type: ignore[arg-type]
    extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(2, 3, 8)], strategies=[strategy], task="sst2")
    store = open_store(tmp_path / "d2-l3-w8")
    rows, want = rows_from_store(store, "train", places={"hidden": (0, 1)}), want_of(store)
    chosen = np.array([5, 17, 300])
    targets = rows.batch(chosen, [want])[want]
    teacher, width_kept = scattered(targets)
    assert teacher.shape[0] == 2
    for at, row in enumerate(chosen):
        stored = store.row("train", int(row))
        for layer in range(2):
            n_kept = int(stored["hidden/n_kept"][layer])
            assert targets.token_kept[layer, at].sum() == n_kept
            for slot in range(n_kept):
                mask = stored["hidden/mask"][layer, slot]
                assert mask.sum() == 8
                vector = np.zeros(mask.size, np.float32)
                vector[mask] = stored["hidden/values"][layer, slot]
                np.testing.assert_array_equal(teacher[layer, at, slot].numpy(), vector)
                np.testing.assert_array_equal(width_kept[layer, at, slot].numpy(), mask)
                assert targets.position[layer, at, slot] == stored["hidden/token"][layer, slot]


def test_a_batch_is_padded_to_its_own_longest_row_and_slots_beyond_a_short_row_are_empty(
    teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep("all", "all", 4)], strategies=[Strategy(2)], task="sst2")
    store = open_store(tmp_path / "dall-lall-w4")
    rows, want = rows_from_store(store, "train", places={"hidden": (0, 1, 2)}), want_of(store)
    chosen = np.argsort(rows.n_tokens, kind="stable")[[0, 40, 80]]
    batch = rows.batch(chosen, [want])
    lengths = torch.from_numpy(rows.n_tokens[chosen])
    assert batch.input_ids.shape[1] == lengths.max()
    assert (batch.attention_mask.sum(dim=1) == lengths).all()
    assert (batch[want].token_kept.sum(dim=2) == lengths - 1).all()  # all but the one separator
    assert (batch[want].values[~batch[want].token_kept] == 0).all()


def test_a_store_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 1, 1)], strategies=[Strategy(2)], task="sst2")
    store = open_store(tmp_path / "d1-l1-w1")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(StoreError, match="GiB of memory"):
        rows_from_store(store, "train")
