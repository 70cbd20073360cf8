"""A copy is the store, byte for byte, or no store: whatever stops, is damaged or is in the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.commit import begin, commit_unit, seal
from hskstore.store.copy import Copied, copy_store
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.verify import verify
from tests.store.conftest import FILES, damage, flipped, make_plan, make_unit, tree, write_store

TRAIN = "train/hidden/values/c/1/0/0/0"


def copy(source: Path, target: Path) -> Copied:
    return copy_store(str(source), str(target))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def middle_flipped(data: bytes) -> bytes:
    return flipped(data, 8 * (len(data) // 2))


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: damage(path, middle_flipped),
    lambda path: damage(path, half),
    lambda path: path.unlink(),
]
DAMAGE_NAMES = ["flipped", "cut short", "gone"]


@pytest.fixture
def target(sealed_once: Path, tmp_path: Path) -> Path:
    """A copy that stands."""
    copy(sealed_once, tmp_path / "target")
    return tmp_path / "target"


def test_a_copy_has_the_digest_and_every_byte_receipts_too(sealed_once: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = copy_store(str(sealed_once), str(tmp_path / "target"), watch=lambda _, done, total: told.append((done, total)))
    store = open_store(tmp_path / "target")
    assert made.digest == store.digest == open_store(sealed_once).digest
    assert tree(tmp_path / "target") == tree(sealed_once)
    assert made.sent == made.objects == len(store.manifest.objects)
    assert made.sent_bytes == made.bytes == sum(store.sizes().values())
    assert told[-1] == (29, 29) and told == sorted(told), "20 rows of train, 9 of validation"


def test_what_arrived_does_not_travel_again(sealed_once: Path, target: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    again = copy(sealed_once, target)
    assert (again.sent, again.sent_bytes) == (0, 0) and again.objects == len(open_store(sealed_once).manifest.objects)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


@pytest.mark.parametrize("puts", [0, 1, 8, 23, 50, 70])
def test_a_stopped_copy_goes_on_with_what_is_missing(
    puts: int, sealed_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hskstore.store.copy.BATCH_BYTES", 1)
    put, done = Objects.put, list[str]()

    def stopping(self: Objects, key: str, data: bytes, **options: Any) -> bool:
        if len(done) >= puts:
            raise KeyboardInterrupt
        done.append(key)
        return put(self, key, data, **options)

    monkeypatch.setattr(Objects, "put", stopping)
    with pytest.raises(KeyboardInterrupt):
        copy(sealed_once, tmp_path / "target")
    monkeypatch.setattr(Objects, "put", put)
    with pytest.raises(StoreError):
        open_store(tmp_path / "target")
    sealed = open_store(sealed_once).manifest.objects
    arrived = {key for key in sealed if (tmp_path / "target" / key).exists()}
    assert len(arrived) == sum(not key.startswith("units/") for key in done)
    again = copy(sealed_once, tmp_path / "target")
    assert again.sent == len(sealed) - len(arrived)
    assert again.sent_bytes == sum(entry["size"] for key, entry in sealed.items() if key not in arrived)
    assert tree(tmp_path / "target") == tree(sealed_once)


@pytest.mark.parametrize("hurt", DAMAGES, ids=DAMAGE_NAMES)
@pytest.mark.parametrize(
    ("key", "sent"),
    [
        (TRAIN, 1),
        ("train/input_ids/c/2/0", 1),
        ("validation/logits/c/0/0", 1),
        ("plan.json", 1),
        ("zarr.json", 1),
        ("train/hidden/mask/zarr.json", 1),
        ("teacher.json", 1),
        ("tokenizer/tokenizer.json", 1),
        ("units/train-000001.json", 0),
        ("manifest.json", 0),
    ],
)
def test_a_damaged_folder_is_repaired(
    key: str, sent: int, hurt: Callable[[Path], object], sealed_once: Path, target: Path
) -> None:
    hurt(target / key)
    assert tree(target) != tree(sealed_once)
    assert copy(sealed_once, target).sent == sent
    assert tree(target) == tree(sealed_once)


def test_a_folder_damaged_all_over_is_repaired(sealed_once: Path, target: Path) -> None:
    for path in target.rglob("*"):
        if path.is_file() and path.name != "plan.json":
            damage(path, middle_flipped)
    copy(sealed_once, target)
    assert tree(target) == tree(sealed_once)


def test_what_was_condemned_is_repaired_by_a_copy(sealed_once: Path, target: Path) -> None:
    damage(target / TRAIN, middle_flipped)
    damage(target / "tokenizer/tokenizer.json", middle_flipped)
    assert verify(str(target), deep=True, condemn=True).condemned
    assert (target / "condemned.json").exists() and not (target / "manifest.json").exists()
    copy(sealed_once, target)
    assert tree(target) == tree(sealed_once)


def another_store(root: Path) -> None:
    write_store(root, make_plan(seed=1))


def other_bytes(root: Path) -> None:
    """What another machine may have made of the same plan."""
    unsealed_other_bytes(root)
    plan = make_plan()
    for unit in list(plan.units())[1:]:
        commit_unit(Objects(root), *make_unit(plan, *unit, seed=1))
    seal(Objects(root), plan)


def unsealed_other_bytes(root: Path) -> None:
    plan = make_plan()
    begin(Objects(root), plan, FILES)
    commit_unit(Objects(root), *make_unit(plan, *next(plan.units()), seed=1))


def another_tokenizer(root: Path) -> None:
    begin(Objects(root), make_plan(), {**FILES, "tokenizer/tokenizer.json": b"{}"})


def another_plan(root: Path) -> None:
    write_store(root, make_plan(seed=1), only=[("train", 0)])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (another_store, "holds another sealed store"),
        (other_bytes, "holds another sealed store"),
        (unsealed_other_bytes, r"has a unit of its own, units/train-000000.json, with other bytes"),
        (another_tokenizer, r"has a unit of its own, units/files-000000.json, with other bytes"),
        (another_plan, "was planned for something else"),
    ],
)
def test_a_place_with_anything_else_is_refused_and_left_alone(
    make: Callable[[Path], None], why: str, sealed_once: Path, tmp_path: Path
) -> None:
    make(tmp_path / "target")
    before = tree(tmp_path / "target")
    with pytest.raises(StoreError, match=f"target {why}.*: copy to an empty place"):
        copy(sealed_once, tmp_path / "target")
    assert tree(tmp_path / "target") == before


def test_an_unfinished_extraction_of_the_same_bytes_is_completed(sealed_once: Path, plan: Plan, tmp_path: Path) -> None:
    write_store(tmp_path / "target", plan, only=[("train", 1), ("validation", 0)])
    before = tree(tmp_path / "target")
    made = copy(sealed_once, tmp_path / "target")
    assert made.sent == len(open_store(sealed_once).manifest.objects.keys() - before.keys())
    expected = tree(sealed_once) | {"units/files-000000.json": before["units/files-000000.json"]}
    assert tree(tmp_path / "target") == expected


@pytest.mark.parametrize("key", [TRAIN, "validation/logits/c/1/0", "tokenizer/tokenizer.json"])
def test_a_damaged_source_is_named_never_put_and_when_mended_the_copy_goes_on(
    key: str, sealed: Path, sealed_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hskstore.store.copy.BATCH_BYTES", 1)
    damage(sealed / key, middle_flipped)
    with pytest.raises(StoreError, match=f"{sealed}/{key} is damaged: its sha256 is not the sealed one"):
        copy(sealed, tmp_path / "target")
    assert not (tmp_path / "target" / key).exists() and not (tmp_path / "target" / "manifest.json").exists()
    arrived = set(tree(tmp_path / "target"))
    shutil.copyfile(sealed_once / key, sealed / key)
    made = copy(sealed, tmp_path / "target")
    assert made.sent == len(open_store(sealed).manifest.objects.keys() - arrived)
    assert tree(tmp_path / "target") == tree(sealed_once)


def test_a_source_without_a_seal_is_no_source(sealed: Path, tmp_path: Path) -> None:
    (sealed / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not sealed"):
        copy(sealed, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_source_without_receipts_is_copied_and_the_copy_has_some(sealed: Path, tmp_path: Path) -> None:
    before = tree(sealed)
    shutil.rmtree(sealed / "units")
    made = copy(sealed, tmp_path / "target")
    assert made.digest == open_store(tmp_path / "target").digest
    assert tree(tmp_path / "target").keys() == before.keys()
    assert not verify(str(tmp_path / "target"), deep=True).problems
    assert copy(tmp_path / "target", tmp_path / "third").digest == made.digest


def test_a_store_can_be_copied_onto_itself(sealed: Path) -> None:
    before = tree(sealed)
    assert copy(sealed, sealed).sent == 0
    assert tree(sealed) == before
