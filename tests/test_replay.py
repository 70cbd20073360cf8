"""A replay finds every row that the teacher would not have said so, and no other."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.stage_one.extract import extract
from hskstore.stage_one.replay import TOLERANCE, replay
from hskstore.stage_one.teacher import Teacher
from hskstore.store import open_store
from hskstore.store.commit import MANIFEST, Manifest, Receipt, receipt_key
from hskstore.store.encode import encode_unit
from hskstore.store.shard import unit_fingerprints
from hskstore.store.verify import verify
from tests.conftest import hsk, make_bert, save_folder, write_tsv

ROWS = 150
EVERYTHING = 10**6
FAMILIES: dict[str, dict[str, Any]] = {
    "f16": {},
    "f32": {"values": "f32", "rank": "attention-with-sep"},
    "q8": {"values": "q8"},
    "q4": {"values": "q4", "score": "raw", "rank_layer": "same"},
    "random": {"rank": "random", "mask": "random"},
    "left": {"rank": "left", "mask": "uniform"},
    "bf16": {"precision": "bf16"},
}

Extracted = Callable[..., Path]


@pytest.fixture(scope="module")
def extracted(teacher_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """A store of two layers, five tokens and a quarter of the units, made when it is first asked for."""
    data = tmp_path_factory.mktemp("data")
    write_tsv(data / "train.tsv", ROWS, seed=1)
    write_tsv(data / "dev.tsv", 20, seed=2)

    @cache
    def make(family: str) -> Path:
        options = dict(FAMILIES[family])
        run = {"precision": options.pop("precision", "fp32"), "batch_tokens": 256}
        out = tmp_path_factory.mktemp(family)
        strategies = [Strategy(2, **options)]
        (made,) = extract(
            teacher_folder, str(data), out=out, keeps=[Keep.parse("2,5,0.25")], strategies=strategies, task="sst2", **run
        )
        return Path(made.root)

    return make


@pytest.fixture
def own(extracted: Extracted, tmp_path: Path) -> Path:
    """A store to be altered."""
    return Path(shutil.copytree(extracted("f16"), tmp_path / "own"))


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_machine_that_made_a_store_every_row_is_equal_to_the_last_bit(
    family: str, extracted: Extracted, teacher_folder: str
) -> None:
    told: list[tuple[int, int]] = []
    found = replay(
        str(extracted(family)), teacher_folder, rows=EVERYTHING, watch=lambda _, done, total: told.append((done, total))
    )
    assert (found.rows, found.equal, found.differing) == (ROWS, ROWS, ())
    assert (found.same_tokens, found.differences) == (1.0, {"logits": 0.0, "hidden": 0.0})
    assert told == sorted(told) and told[-1] == (ROWS, ROWS)


def test_so_many_rows_are_sampled_in_whole_batches_by_the_seed(
    extracted: Extracted, teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = Teacher.forward, list[tuple[int, int]]()

    def noting(self: Teacher, input_ids: Any, *rest: Any, **options: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(self, input_ids, *rest, **options)

    store = str(extracted("f16"))
    monkeypatch.setattr(Teacher, "forward", noting)
    found = replay(store, teacher_folder, rows=40)
    first = sorted(seen)
    assert 40 <= found.rows < 40 + 256 // 4 and found.equal == found.rows == sum(rows for rows, _ in first)
    assert all(rows * longest <= 256 for rows, longest in first)
    replay(store, teacher_folder, rows=40)
    assert sorted(seen) == sorted(first + first)
    del seen[:]
    replay(store, teacher_folder, rows=40, seed=1)
    assert sorted(seen) != first


@pytest.mark.parametrize("rows", [0, -1, 1.5])
def test_a_number_of_rows_that_is_none_is_refused(rows: Any) -> None:
    with pytest.raises(OptionError, match=r"--replay .*: must be a whole number from 1"):
        replay("no store", "no teacher", rows=rows)


def test_another_teacher_is_refused_by_its_hash(extracted: Extracted, tmp_path: Path) -> None:
    other = save_folder(make_bert(seed=5), tmp_path / "other")
    with pytest.raises(ModelError, match=f"{other} is not the teacher of {extracted('f16')}: its weights have another sha256"):
        replay(str(extracted("f16")), other, rows=8)


@pytest.mark.parametrize(
    ("family", "precision"), [("f16", "fp32"), ("q8", "fp32"), ("q4", "fp32"), ("bf16", "bf16")], ids=lambda name: name
)
@pytest.mark.parametrize("beyond", [False, True], ids=["within", "beyond"])
def test_rounding_otherwise_is_allowed_as_far_as_the_tolerance_goes(
    family: str, precision: str, beyond: bool, extracted: Extracted, teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine: every number is off, relative to the largest of its row, by a third or by thrice of what is allowed."""
    forward = Teacher.forward
    most = TOLERANCE[precision] * (3 if beyond else 1 / 3)

    def off(numbers: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(numbers.shape, generator=generator).sign_() * (
            torch.randint(0, 2, numbers.shape, generator=generator) * 2 - 1
        )
        return numbers + most * noise * numbers.abs().amax(dim=-1, keepdim=True)

    def elsewhere(self: Teacher, *batch: Any, **options: Any) -> Any:
        features = forward(self, *batch, **options)
        return replace(
            features, logits=off(features.logits), hidden={layer: off(state) for layer, state in features.hidden.items()}
        )

    store = str(extracted(family))
    monkeypatch.setattr(Teacher, "forward", elsewhere)
    found = replay(store, teacher_folder, rows=EVERYTHING)
    assert found.equal == 0
    assert len(found.differing) == (ROWS if beyond else 0)


def reseal(root: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Alter train's arrays and make everything agree with them, as somebody would who wants the store to be believed."""
    store = open_store(root)
    (unit,) = range(store.plan.splits["train"].units)
    columns = {path: store.read(path, unit).copy() for path in store.plan.arrays_of("train")}
    change(columns)
    blobs = encode_unit(store.plan, "train", unit, columns)
    entries = unit_fingerprints(store.plan.arrays_of("train"), unit, blobs)
    for key, blob in blobs.items():
        (root / key).write_bytes(blob)
    receipt = root / receipt_key("train", unit)
    receipt.write_bytes(replace(Receipt.from_bytes(receipt.read_bytes(), receipt_key("train", unit)), objects=entries).to_bytes())
    manifest = Manifest(store.manifest.store_id, {**store.manifest.objects, **entries})
    (root / MANIFEST).write_bytes(manifest.to_bytes())
    assert not verify(str(root), deep=True).problems


ALTERED = [3, 77, 149]


def alter_values(columns: dict[str, np.ndarray]) -> None:
    columns["train/hidden/values"][ALTERED, 1, 0] *= np.float16(1.1)


def alter_logits(columns: dict[str, np.ndarray]) -> None:
    columns["train/logits"][ALTERED, 0] += 0.1


def alter_tokens(columns: dict[str, np.ndarray]) -> None:
    """The values of other tokens."""
    columns["train/hidden/token"][ALTERED] = np.roll(columns["train/hidden/token"][ALTERED], 1, axis=-1)


def alter_masks(columns: dict[str, np.ndarray]) -> None:
    """The same values, of units of which the teacher's mask keeps none."""
    mask = np.unpackbits(columns["train/hidden/mask"][ALTERED], axis=-1).astype(bool)
    other = np.zeros_like(mask)
    for place in np.ndindex(mask.shape[:-1]):
        other[place][np.flatnonzero(~mask[place])[: mask[place].sum()]] = True
    columns["train/hidden/mask"][ALTERED] = np.packbits(other, axis=-1)


def drop_tokens(columns: dict[str, np.ndarray]) -> None:
    for row in ALTERED:
        last = columns["train/hidden/n_kept"][row, 0] - 1
        columns["train/hidden/n_kept"][row, 0] = last
        columns["train/hidden/token"][row, 0, last] = -1
        columns["train/hidden/values"][row, 0, last] = 0
        columns["train/hidden/mask"][row, 0, last] = 0


def too_many_tokens(columns: dict[str, np.ndarray]) -> None:
    columns["train/hidden/n_kept"][ALTERED, 0] = 99


def empty_masks(columns: dict[str, np.ndarray]) -> None:
    """Masks that cannot belong to the values."""
    columns["train/hidden/mask"][ALTERED, 0, 0] = 0


def no_number_among_values(columns: dict[str, np.ndarray]) -> None:
    columns["train/hidden/values"][ALTERED, 0, 0, 2] = np.nan


def no_number_among_logits(columns: dict[str, np.ndarray]) -> None:
    columns["train/logits"][ALTERED, 1] = np.nan


def infinite_logits(columns: dict[str, np.ndarray]) -> None:
    columns["train/logits"][ALTERED, 1] = np.inf


def other_words(columns: dict[str, np.ndarray]) -> None:
    columns["train/input_ids"][ALTERED, 1] = np.where(columns["train/input_ids"][ALTERED, 1] == 7, 8, 7)


@pytest.mark.parametrize(
    "change",
    [
        alter_values,
        alter_logits,
        alter_tokens,
        alter_masks,
        empty_masks,
        drop_tokens,
        too_many_tokens,
        no_number_among_values,
        no_number_among_logits,
        infinite_logits,
        other_words,
    ],
)
def test_rows_that_were_altered_are_named_however_well_the_store_is_sealed(
    change: Callable[[dict[str, np.ndarray]], object], own: Path, teacher_folder: str
) -> None:
    reseal(own, change)
    found = replay(str(own), teacher_folder, rows=EVERYTHING)
    assert sorted(found.differing) == ALTERED and found.equal == ROWS - len(ALTERED)


def test_another_order_of_the_tokens_is_not_equal(own: Path, teacher_folder: str) -> None:
    """It is no other knowledge either: near ties may be ranked otherwise on another machine."""

    def reverse(columns: dict[str, np.ndarray]) -> None:
        for name in ("values", "mask", "token"):
            array = columns[f"train/hidden/{name}"]
            array[ALTERED, :, :2] = array[ALTERED, :, 1::-1].copy()

    reseal(own, reverse)
    found = replay(str(own), teacher_folder, rows=EVERYTHING)
    assert found.differing == () and found.equal == ROWS - len(ALTERED)


def test_the_command_replays_and_tells(extracted: Extracted, teacher_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", extracted("f16"), "--replay", 64, "--teacher", teacher_folder]
    assert hsk(*words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "sealed and whole" in told and "100.00 % of the kept tokens chosen again" in told
    assert hsk(*words, "--deep", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replayed"]["rows"] == found["replayed"]["equal"] >= 64 and found["verified"]["deep"]
    assert f"replayed {found['replayed']['rows']} rows: {found['replayed']['rows']} equal to the last bit" in told


def test_the_command_names_rows_that_differ_and_exits_with_2(
    own: Path, teacher_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reseal(own, alter_values)
    assert hsk("verify", own, "--replay", EVERYTHING, "--teacher", teacher_folder) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "3 rows are not what this teacher says" in told and all(str(row) in told for row in ALTERED)
    assert hsk("verify", own, "--replay", EVERYTHING, "--teacher", teacher_folder, "--json") == 2
    assert sorted(json.loads(capsys.readouterr().out)["replayed"]["differing"]) == ALTERED


@pytest.mark.parametrize("words", [["--replay", 8], ["--teacher", "somewhere"]])
def test_a_replay_needs_both_its_options(words: list[Any], extracted: Extracted, capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("verify", extracted("f16"), *words) == 2
    err = capsys.readouterr().err
    assert err == "hsk: --replay and --teacher go together: how many rows, and through which teacher\n"


def test_what_is_damaged_or_unfinished_is_not_replayed(
    own: Path, teacher_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Teacher, "forward", None)
    (own / "train" / "logits" / "c" / "0" / "0").write_bytes(b"")
    assert hsk("verify", own, "--replay", 8, "--teacher", teacher_folder) == 2
    assert "has 0 bytes instead of" in " ".join(capsys.readouterr().out.split())
    (own / MANIFEST).unlink()
    (own / "units" / "train-000000.json").unlink()
    assert hsk("verify", own, "--replay", 8, "--teacher", teacher_folder) == 2
    assert "is not sealed: 1 of 2 units" in capsys.readouterr().err
