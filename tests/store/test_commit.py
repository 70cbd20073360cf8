"""A unit exists when its receipt does; a store is sealed once every unit is; nothing else tells two runs apart."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import obstore
import pytest

from hskstore.errors import PlanError, StoreError
from hskstore.store import open_store
from hskstore.store.commit import Receipt, Standing, begin, commit_unit, examine, fingerprint, receipt_key, receipts, seal
from hskstore.store.objects import Objects
from tests.store.conftest import FILES, damage, make_plan, make_unit, write_store


def tree(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def begun(plan, tmp_path) -> Objects:
    objects = Objects(tmp_path / "store")
    begin(objects, plan, FILES)
    return objects


# --- begin


def test_begin_lays_down_the_plan_the_documents_and_the_files(plan, begun):
    assert {key: begun.get(key) for key in begun.sizes()} == {"plan.json": plan.to_bytes(), **plan.documents(), **FILES}


def test_begin_again_changes_nothing(plan, begun, tmp_path):
    before = tree(tmp_path)
    begin(begun, plan, FILES)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("key", ["zarr.json", "train/hidden/values/zarr.json"])
@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-1] + b"?"])
def test_begin_again_mends_documents(plan, begun, tmp_path, key, change):
    before = tree(tmp_path)
    damage(tmp_path / "store" / key, change)
    begin(begun, plan, FILES)
    assert tree(tmp_path) == before


def test_begin_again_keeps_the_files_as_they_were_first_written_and_adds_those_that_are_gone(plan, begun, tmp_path):
    before = tree(tmp_path)
    (tmp_path / "store" / "teacher.json").unlink()
    begin(begun, plan, {"teacher.json": FILES["teacher.json"], "tokenizer/tokenizer.json": b"spelt otherwise"})
    assert tree(tmp_path) == before


def other_plan(plan):
    return replace(make_plan("q8", seed=7), task={"name": "other", "labels": ["no", "yes"]})


@pytest.mark.parametrize("step", [examine, lambda objects, plan: begin(objects, plan, FILES)])
def test_another_plan_is_refused_by_the_fields_that_differ_once_a_unit_is_finished(plan, begun, tmp_path, step):
    commit_unit(begun, *make_unit(plan, "validation", 1))
    before = tree(tmp_path)
    with pytest.raises(PlanError) as refused:
        step(begun, other_plan(plan))
    assert str(refused.value) == (
        f"{tmp_path}/store was planned for something else (there -> here):\n"
        "  pass.seed: 0 -> 7\n"
        "  strategy.values: f16 -> q8\n"
        "  task.name: tiny -> other\n"
        "Give the same options to go on with it, or another --out"
    )
    assert tree(tmp_path) == before


def test_another_layout_alone_is_refused_as_such(plan, begun):
    commit_unit(begun, *make_unit(plan, "train", 0))
    other = replace(plan, arrays={path: replace(spec, chunk=4) for path, spec in plan.arrays.items()})
    with pytest.raises(PlanError, match="the layout of the arrays, by another version of hskstore"):
        begin(begun, other, FILES)


def test_a_sealed_store_without_receipts_is_not_planned_anew(plan, sealed):
    for receipt in (sealed / "units").iterdir():
        receipt.unlink()
    with pytest.raises(PlanError, match="was planned for something else"):
        begin(Objects(sealed), other_plan(plan), FILES)


def test_a_plan_that_finished_no_unit_gives_way_to_another_and_leaves_nothing_behind(plan, begun, tmp_path):
    for key, blob in make_unit(plan, "train", 0)[1].items():
        begun.put(key, blob)
    other = other_plan(plan)
    assert examine(begun, other) == Standing(frozenset(), None)
    begin(begun, other, {"teacher.json": b"another teacher"})
    expected = {"plan.json": other.to_bytes(), **other.documents(), "teacher.json": b"another teacher"}
    assert tree(tmp_path / "store") == expected


def test_a_folder_s_other_files_outlive_a_change_of_plan(plan, begun, tmp_path):
    begun.put("notes/thesis.tex", b"years of work")
    begin(begun, other_plan(plan), FILES)
    assert begun.get("notes/thesis.tex") == b"years of work"


def test_a_plan_json_of_another_program_is_left_alone(plan, tmp_path):
    objects = Objects(tmp_path)
    objects.put("plan.json", b'{"format":"cargo"}')
    objects.put("train/photo.jpg", b"a train")
    before = tree(tmp_path)
    with pytest.raises(StoreError, match=r"plan\.json is not an hskstore plan$"):
        begin(objects, plan, FILES)
    assert tree(tmp_path) == before


# --- examine


def test_what_stands_is_nothing_then_the_finished_units_then_the_digest(plan, tmp_path):
    objects = Objects(tmp_path / "store")
    assert examine(objects, plan) == Standing(frozenset(), None)
    assert not (tmp_path / "store").exists()
    units = list(plan.units())
    write_store(tmp_path / "store", plan, only=units[:2])
    assert examine(objects, plan) == Standing(frozenset(units[:2]), None)
    digest = write_store(tmp_path / "store", plan)
    assert examine(objects, plan) == Standing(frozenset(units), digest)


def test_a_sealed_store_that_lost_a_receipt_is_not_whole(plan, sealed):
    (sealed / receipt_key("train", 1)).unlink()
    assert examine(Objects(sealed), plan) == Standing(frozenset(plan.units()) - {("train", 1)}, None)


# --- receipts


def test_a_receipt_comes_back_from_its_bytes(plan):
    receipt, blobs = make_unit(plan, "train", 1, made={"device": "cpu", "seconds": 1.5})
    assert Receipt.from_bytes(receipt.to_bytes(), receipt.key) == receipt
    assert receipt.key == receipt_key("train", 1) == "units/train-000001.json"
    assert receipt.objects == {
        key: {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()} for key, blob in blobs.items()
    }


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"split":"train"}', b"\xff"])
def test_a_receipt_that_cannot_be_read_is_named(data):
    with pytest.raises(StoreError, match=r"^the receipt units/train-000001\.json cannot be read .*delete it and extract again$"):
        Receipt.from_bytes(data, "units/train-000001.json")


def test_committed_units_are_found_again(plan, begun):
    made = {unit: make_unit(plan, *unit) for unit in (("validation", 1), ("train", 0))}
    for receipt, blobs in made.values():
        commit_unit(begun, receipt, blobs)
    assert receipts(begun) == {unit: receipt for unit, (receipt, _) in made.items()}


def test_the_receipt_comes_after_every_blob(plan, begun, monkeypatch):
    order = []
    put = obstore.put
    monkeypatch.setattr(
        obstore, "put", lambda store, key, *rest, **options: (order.append(key), put(store, key, *rest, **options))
    )
    receipt, blobs = make_unit(plan, "train", 0)
    commit_unit(begun, receipt, blobs)
    assert order == [*blobs, receipt.key]


def test_blobs_without_a_receipt_are_no_unit(plan, begun):
    for key, blob in make_unit(plan, "train", 0)[1].items():
        begun.put(key, blob)
    assert receipts(begun) == {}


def test_committing_the_same_bytes_again_keeps_the_first_receipt(plan, begun):
    first, blobs = make_unit(plan, "train", 0, attempt="first", made={"device": "cpu"})
    again, same = make_unit(plan, "train", 0, attempt="second", made={"device": "cuda"})
    commit_unit(begun, first, blobs)
    commit_unit(begun, again, same)
    assert begun.get(first.key) == first.to_bytes()
    assert all(begun.get(key) == blob for key, blob in blobs.items()), "what the first one put stays"


def test_committing_other_bytes_is_refused(plan, begun):
    first, blobs = make_unit(plan, "train", 0)
    commit_unit(begun, first, blobs)
    with pytest.raises(StoreError, match=r"another process made the unit of units/train-000000\.json with other bytes"):
        commit_unit(begun, *make_unit(plan, "train", 0, seed=1, attempt="second"))
    assert begun.get(first.key) == first.to_bytes()


# --- objects


def test_create_never_writes_over_another_object(tmp_path):
    objects = Objects(tmp_path / "new" / "folder")
    assert objects.put("a/b", b"first", create=True)
    assert not objects.put("a/b", b"second", create=True)
    assert objects.get("a/b") == b"first"
    assert objects.put("a/b", b"third")
    assert (objects.get("a/b"), objects.sizes(), objects.sizes("a")) == (b"third", {"a/b": 5}, {"a/b": 5})
    objects.delete("a/b")
    assert objects.get("a/b") is None


def test_a_local_put_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(Path(f"/proc/self/fd/{handle}").readlink()), fsync(handle))[1])
    Objects(tmp_path).put("a/b", b"bytes")
    assert synced == [tmp_path / "a" / "b", tmp_path / "a"]


def test_a_key_cannot_lead_out_of_the_root(tmp_path):
    (tmp_path / "secret").write_text("secret")
    objects = Objects(tmp_path / "store")
    objects.put("plan.json", b"{}")
    with pytest.raises(StoreError, match="could not be read"):
        objects.get("../secret")
    with pytest.raises(StoreError, match="could not be written"):
        objects.put("a/../../secret", b"mine")
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"/file/store could not be written \(plan\.json\): .*Not a directory"):
        Objects(tmp_path / "file" / "store").put("plan.json", b"{}")


def test_looking_makes_no_folder(tmp_path):
    objects = Objects(tmp_path / "store")
    assert (objects.exists(), objects.get("plan.json"), objects.sizes()) == (False, None, {})
    assert not any(tmp_path.iterdir())


# --- seal


def test_a_seal_covers_every_object_but_the_receipts(plan, sealed):
    manifest = json.loads((sealed / "manifest.json").read_bytes())
    objects = {key: data for key, data in tree(sealed).items() if not key.startswith("units/") and key != "manifest.json"}
    assert manifest == {"store_id": plan.store_id, "objects": {key: fingerprint(data) for key, data in objects.items()}}


def test_sealing_is_idempotent_and_returns_the_manifest_s_hash(plan, sealed):
    before = tree(sealed)
    digest = seal(Objects(sealed), plan)
    assert tree(sealed) == before
    assert digest == hashlib.sha256(before["manifest.json"]).hexdigest() == open_store(sealed).digest


def test_a_digest_does_not_depend_on_the_attempt_the_time_the_device_or_the_order_of_units(plan, sealed_once, tmp_path):
    made = {"device": "NVIDIA H200", "finished": "2031-01-01T00:00:00", "seconds": 99.0, "versions": {"torch": "9"}}
    digest = write_store(tmp_path, plan, only=[*plan.units()][::-1], attempt="another", made=made)
    assert digest == open_store(sealed_once).digest


def test_a_digest_follows_the_rows(plan, sealed, tmp_path):
    before = open_store(sealed).digest
    receipt, blobs = make_unit(plan, "validation", 1, seed=1)
    (sealed / receipt.key).unlink()
    objects = Objects(sealed)
    commit_unit(objects, receipt, blobs)
    assert seal(objects, plan) != before


def test_a_missing_unit_is_not_sealed(plan, tmp_path):
    units = list(plan.units())
    write_store(tmp_path, plan, only=units[:3])
    with pytest.raises(StoreError, match=r": 2 units are missing, the first is units/validation-000000\.json: run extract"):
        seal(Objects(tmp_path), plan)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("key", ["train/hidden/values/c/1/0/0/0", "train/zarr.json", "plan.json"])
def test_a_missing_or_short_object_is_not_sealed(plan, tmp_path, key):
    write_store(tmp_path, plan, only=[*plan.units()])
    (tmp_path / "manifest.json").unlink()
    size = (tmp_path / key).stat().st_size
    damage(tmp_path / key, lambda data: data[:-1])
    with pytest.raises(StoreError, match=rf"/{key} has {size - 1} bytes; {size} were written"):
        seal(Objects(tmp_path), plan)
    (tmp_path / key).unlink()
    with pytest.raises(StoreError, match=rf"/{key} has no bytes; {size} were written"):
        seal(Objects(tmp_path), plan)
    assert not (tmp_path / "manifest.json").exists()


# --- a full disk


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder on a disk that is too small for the store, and a way to make room: a real disk for root, else obstore's error."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        subprocess.run(["umount", folder], check=True)
        return
    put, left = obstore.put, [20]

    def put_while_there_is_room(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", put_while_there_is_room)
    yield folder, lambda: left.append(left.pop() + 1000)


@contextmanager
def refused_for_a_full_disk(root):
    with pytest.raises(StoreError) as refused:
        yield
    assert str(refused.value) == (
        f"{root}: the disk is full. What was finished is kept: make room and run the same command again"
    )


def test_a_full_disk_is_said_to_be_full_and_the_run_goes_on_once_there_is_room(plan, small_disk, sealed_once):
    folder, make_room = small_disk
    root = folder / "store"
    with refused_for_a_full_disk(root):
        write_store(root, plan)
    finished = receipts(Objects(root))
    assert len(finished) < len(list(plan.units()))
    with pytest.raises(StoreError, match=rf"is not sealed: {len(finished)} of 5 units are done"):
        open_store(root)
    make_room()
    objects = Objects(root)
    begin(objects, plan, FILES)
    for unit in plan.units():
        if unit not in finished:
            commit_unit(objects, *make_unit(plan, *unit))
    assert seal(objects, plan) == open_store(sealed_once).digest


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_s_own_words_for_full_and_for_a_quota_are_understood(begun, plan, monkeypatch, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(obstore, "put", full)
    with refused_for_a_full_disk(begun.root):
        commit_unit(begun, *make_unit(plan, "train", 0))
    assert receipts(begun) == {}
