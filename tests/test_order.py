"""The order of batches follows the rows and the seed: runs from two stores of the same rows can be compared in pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hskstore.stage_two.feed
from hskstore.config import Keep, Strategy
from hskstore.methods import Kd, Mud, Pkd
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.feed import Feed, open_supply
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store


@pytest.fixture(scope="module")
def stores(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Of the same rows, but for `other`, which has them in another order, and `shorter`, which has cut them."""
    out = tmp_path_factory.mktemp("order")
    keeps = [Keep(1, 3, 0.25), Keep.parse("all")]
    common: dict[str, Any] = {"strategies": [Strategy(2)], "task": "sst2"}
    small, big = extract(teacher_folder, data_folder, out=out, keeps=keeps, **common)
    asked = {
        "cls": {"methods": [Pkd()]},
        "text": {"methods": [Kd()], "keep_offsets": True},
        "q8": {"keeps": keeps[:1], "strategies": [Strategy(2, values="q8")]},
        "other": {"methods": [Kd()], "seed": 1},
        "shorter": {"methods": [Kd()], "max_length": 6},
    }
    made = {name: extract(teacher_folder, data_folder, out=out / name, **(common | words))[0] for name, words in asked.items()}
    return {name: open_store(one.root) for name, one in (made | {"small": small, "big": big}).items()}


def order(store: Store, *, seed: int = 0, loader: Any = "ram") -> list[list[int]]:
    """The rows of each batch of an epoch, by their number in the data set as it was read."""
    row_ids = store.read_all("train/row_id")
    ids, n_tokens = store.read_all("train/input_ids"), store.read_all("train/n_tokens")
    by_words = {ids[row, : n_tokens[row]].tobytes(): int(row_ids[row]) for row in range(len(ids))}
    supply = open_supply(store, "train", loader=loader)
    steps = Feed(supply, 16, store.rows_sha256("train"), seed).epoch(0)
    return [
        [
            by_words[ids_of[:count].numpy().astype(np.int32).tobytes()]
            for ids_of, count in zip(step.batch.input_ids, step.batch.attention_mask.sum(dim=1).tolist(), strict=True)
        ]
        for step in steps
    ]


@pytest.mark.parametrize("name", ["big", "cls", "text", "q8"])
def test_two_stores_of_the_same_rows_give_the_same_batches_whatever_they_keep(name: str, stores: dict[str, Store]) -> None:
    assert stores[name].digest != stores["small"].digest
    assert stores[name].rows_sha256("train") == stores["small"].rows_sha256("train")
    assert order(stores[name]) == order(stores["small"]) != order(stores["small"], seed=1)


@pytest.mark.parametrize("name", ["other", "shorter"])
def test_other_rows_have_another_name(name: str, stores: dict[str, Store]) -> None:
    assert stores[name].rows_sha256("train") != stores["small"].rows_sha256("train")


def test_it_does_not_matter_how_the_rows_are_cut_into_units(stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = stores["small"].plan
    whole = {name: stores["small"].read_all(f"train/{name}") for name in ("input_ids", "n_tokens", "row_id")}
    split = plan.splits["train"]
    assert split.units > 1
    monkeypatch.setattr(type(split), "units", 1)
    monkeypatch.setattr(Store, "read", lambda self, path, unit, layers=None: whole[path.partition("/")[2]])
    cut = stores["small"].rows_sha256("train")
    monkeypatch.undo()
    assert cut == stores["small"].rows_sha256("train")


def batches_of(store: Store, student: str, out: Path, loader: Any, method: Any) -> str:
    recipe = Recipe(student, method, max_steps=4, batch_size=(16,), loader=loader, precision="fp32")
    return distill(store, recipe, out=out).batches


def test_the_result_names_its_batches_and_in_blocks_the_windows_with_them(
    stores: dict[str, Store], student_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hskstore.stage_two.feed, "WINDOW_BYTES", 300_000)  # more units of one than of the other
    named = {
        (name, loader): batches_of(stores[name], student_folder, tmp_path / f"{name}-{loader}", loader, Mud())
        for name in ("small", "big")
        for loader in ("ram", "blocks")
    }
    assert named["small", "ram"] == named["big", "ram"]
    assert len(set(named.values())) == 3, "blocks are other batches, and windows of other units others again"
    again = batches_of(stores["small"], student_folder, tmp_path / "kd", "ram", Kd())
    assert again != named["small", "ram"], "one phase is not two"
