"""Damage to a sealed store: verify finds it and names it, and the reader never returns a wrong number."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.commit import FILES, Manifest, Receipt, receipt_key
from hskstore.store.verify import verify
from tests.faults.conftest import Campaign
from tests.store.conftest import make_plan, whole, write_store

PLAN = make_plan()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage") / "store"
    write_store(root, PLAN)
    return root


def objects_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


TRUTH = {path: whole(PLAN, path) for path in PLAN.arrays}


def assert_no_wrong_number(root: Path) -> None:
    """Every array of every unit reads as it was written, or not at all."""
    try:
        opened = open_store(root)
    except StoreError:
        return
    for path, spec in PLAN.arrays.items():
        for unit in range(PLAN.splits[path.partition("/")[0]].units):
            try:
                found = opened.read(path, unit)
            except StoreError:
                continue
            rows = spec.rows(unit)
            np.testing.assert_array_equal(found, TRUTH[path][rows.start : rows.stop])


def named(root: Path) -> set[str]:
    """The objects that verify --deep calls bad; of a store that it refuses as a whole, those that the refusal names."""
    try:
        return {problem.key for problem in verify(str(root), deep=True).problems}
    except StoreError as refused:
        return {key for key in objects_of(root) if f"/{key} " in f"{refused} "}


def test_one_flipped_bit_is_found_wherever_it_is(store: Path, campaign: Campaign) -> None:
    began = time.monotonic()
    tries = campaign.tries(120, 1000)
    rng = np.random.default_rng(0)
    keys = objects_of(store)
    assert named(store) == set()
    for step in range(tries):
        key = keys[rng.integers(len(keys))]
        path = store / key
        before = path.read_bytes()
        bit = int(rng.integers(8 * len(before)))
        flipped = bytearray(before)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        assert key in named(store), (step, key, bit)
        assert_no_wrong_number(store)
        path.write_bytes(before)
    assert named(store) == set()
    outcome = f"{tries} found and named by verify --deep; the reader never returned a wrong number"
    campaign.record("one bit flipped at a random place of a random object", tries, outcome, began)


def cut_one_byte(root: Path, key: str) -> set[str]:
    (root / key).write_bytes((root / key).read_bytes()[:-1])
    return {key}


def cut_half(root: Path, key: str) -> set[str]:
    data = (root / key).read_bytes()
    (root / key).write_bytes(data[: len(data) // 2])
    return {key}


def empty(root: Path, key: str) -> set[str]:
    (root / key).write_bytes(b"")
    return {key}


def delete(root: Path, key: str) -> set[str]:
    (root / key).unlink()
    return {key}


def swap_with_the_next_of_its_kind(root: Path, key: str) -> set[str]:
    """Another unit's shard or receipt, another array's document, another file of the tokenizer: each whole in itself."""
    kind = key.split("/c/")[0] if "/c/" in key else key.rpartition("/")[0] if key.startswith("units/") else Path(key).name
    alike = [other for other in objects_of(root) if other != key and kind in other and ("/c/" in other) == ("/c/" in key)]
    others = [other for other in alike if (root / other).read_bytes() != (root / key).read_bytes()]
    if not others:
        return set()
    mine, theirs = (root / key).read_bytes(), (root / others[0]).read_bytes()
    (root / key).write_bytes(theirs)
    (root / others[0]).write_bytes(mine)
    return {key, others[0]}


def edit(root: Path, key: str) -> set[str]:
    """A receipt or the manifest written anew with one hash changed, its own checksum right; nothing for other objects."""
    data = (root / key).read_bytes()
    if key == "manifest.json":
        manifest = Manifest.from_bytes(data)
        victim = "train/logits/c/0/0"
        entries = {**manifest.objects, victim: {**manifest.objects[victim], "sha256": "0" * 64}}
        (root / key).write_bytes(Manifest(manifest.store_id, entries).to_bytes())
        return {victim}
    if not key.startswith("units/"):
        return set()
    receipt = Receipt.from_bytes(data, key)
    victim = next(iter(receipt.objects))
    entries = {**receipt.objects, victim: {**receipt.objects[victim], "sha256": "0" * 64}}
    altered = Receipt(receipt.split, receipt.unit, receipt.rows, receipt.attempt, entries, receipt.made)
    (root / key).write_bytes(altered.to_bytes())
    return {key}


KINDS = [cut_one_byte, cut_half, empty, delete, swap_with_the_next_of_its_kind, edit]


def restored(root: Path, change: Callable[[Path, str], set[str]], key: str) -> Iterator[set[str]]:
    before = {other: (root / other).read_bytes() for other in objects_of(root)}
    yield change(root, key)
    for other, data in before.items():
        (root / other).write_bytes(data)


def test_every_kind_of_damage_to_every_object_is_found_and_named(store: Path, campaign: Campaign) -> None:
    """A sealed store without its manifest is an unsealed one: readers refuse it, and verify calls it so."""
    began = time.monotonic()
    tried = 0
    keys = objects_of(store)
    step = campaign.tries(3, 1)
    for kind in KINDS:
        for key in keys[:: 1 if kind is edit else step]:
            for damaged in restored(store, kind, key):
                if not damaged:
                    continue
                tried += 1
                if key == "manifest.json" and kind is delete:
                    assert verify(str(store), deep=True).digest is None
                elif key == "plan.json" and kind is delete:
                    assert "plan.json" in named(store)
                else:
                    assert damaged <= named(store), (kind.__name__, key, damaged, named(store))
                assert_no_wrong_number(store)
    assert named(store) == set()
    assert (store / receipt_key(*FILES)).exists()
    outcome = f"all of {len(keys)} objects in {len(KINDS)} ways: found and named; the reader never returned a wrong number"
    campaign.record(
        "object cut, emptied, deleted, swapped with another unit's, receipt or manifest edited", tried, outcome, began
    )
