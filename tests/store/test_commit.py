"""A unit exists when its receipt does; a store is sealed once every unit is; nothing else tells two runs apart."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from hskstore.errors import PlanError, StoreError
from hskstore.store import open_store
from hskstore.store.commit import Receipt, Standing, begin, commit_unit, examine, read_receipt, receipt_key, receipts, seal
from hskstore.store.objects import Objects
from hskstore.store.schema import canonical_json, with_check
from hskstore.store.shard import fingerprint
from tests.store.conftest import FILES, damage, edit_signed, flipped, make_plan, make_unit, tree, write_store


def in_memory() -> Objects:
    """An object store that is no folder."""
    objects = Objects("memory:///store")
    objects._store = MemoryStore()
    return objects


FILES_UNIT = ("files", 0)
FILES_RECEIPT = "units/files-000000.json"
"""That of the tokenizer's files and teacher.json, which no unit of rows owns."""


@pytest.fixture
def begun(plan, tmp_path) -> Objects:
    objects = Objects(tmp_path / "store")
    begin(objects, plan, FILES)
    return objects


# --- begin


def test_begin_lays_down_the_plan_the_documents_and_the_files_with_their_receipt(plan, begun):
    found = {key: begun.get(key) for key in begun.sizes()}
    receipt = Receipt.from_bytes(found.pop(FILES_RECEIPT), FILES_RECEIPT)
    assert receipt.objects == {key: fingerprint(data) for key, data in FILES.items()}
    assert found == {"plan.json": plan.to_bytes(), **plan.documents(), **FILES}
    assert receipts(begun) == {}, "files are no unit of rows"


def test_begin_again_changes_nothing(plan, begun, tmp_path):
    before = tree(tmp_path)
    begin(begun, plan, FILES)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-1], lambda data: data[:99] + bytes(len(data) - 99)])
def test_begin_again_mends_a_torn_plan_and_keeps_what_else_is_there(plan, begun, tmp_path, change):
    before = tree(tmp_path)
    damage(tmp_path / "store" / "plan.json", change)
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


def test_a_file_that_is_gone_is_not_replaced_by_one_that_its_receipt_does_not_name(plan, begun, tmp_path):
    (tmp_path / "store" / "teacher.json").unlink()
    begin(begun, plan, {**FILES, "teacher.json": b"spelt otherwise"})
    assert begun.get("teacher.json") is None
    begin(begun, plan, FILES)
    assert begun.get("teacher.json") == FILES["teacher.json"]


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
    found = tree(tmp_path / "store")
    receipt = Receipt.from_bytes(found.pop(FILES_RECEIPT), FILES_RECEIPT)
    assert receipt.objects == {"teacher.json": fingerprint(b"another teacher")}
    assert found == {"plan.json": other.to_bytes(), **other.documents(), "teacher.json": b"another teacher"}


def test_a_folder_s_other_files_outlive_a_change_of_plan(plan, begun, tmp_path):
    begun.put("notes/thesis.tex", b"years of work")
    begin(begun, other_plan(plan), FILES)
    assert begun.get("notes/thesis.tex") == b"years of work"


def test_of_a_plan_that_gives_way_nothing_is_deleted_but_what_it_names_itself(plan, tmp_path):
    """A stranger's plan may have a split, and a receipt an object, that is called like something of the user's."""
    objects = Objects(tmp_path)
    splits = {**plan.splits, "photos": plan.splits["validation"]}
    arrays = {path.replace("validation", split): spec for split in splits for path, spec in plan.arrays.items()}
    strange = replace(plan, splits=splits, arrays=arrays)
    begin(objects, strange, FILES)
    receipt = Receipt(
        *FILES_UNIT, 0, "a stranger's", {"tokenizer/mine.txt": fingerprint(b""), "notes.txt": fingerprint(b"mine")}, {}
    )
    objects.put(FILES_RECEIPT, receipt.to_bytes())
    theirs = [
        "notes.txt",
        "photos/holiday.jpg",
        "photos/label/2031/holiday.jpg",
        "photos/logits/c/7/0",
        "photos/logits/c/0/0/0",
        "photos/mine/c/0",
        "tokenizer/mine.txt",
        "train/photo.jpg",
        "units/lesson.json",
        "units/photos-000007.json",
    ]
    for key in theirs:
        objects.put(key, b"mine")
    for split in splits:
        objects.put(f"{split}/logits/c/1/0", b"of a unit that was never finished")
        objects.put(receipt_key(split, 1), b"torn")
    other = other_plan(plan)
    begin(objects, other, FILES)
    found = tree(tmp_path)
    del found[FILES_RECEIPT]
    assert found == {"plan.json": other.to_bytes(), **other.documents(), **FILES, **dict.fromkeys(theirs, b"mine")}


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


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-9], flipped, lambda data: b"\0" * len(data)])
def test_a_torn_manifest_is_none_and_the_seal_is_made_again(plan, sealed, change):
    whole = tree(sealed)
    damage(sealed / "manifest.json", change)
    assert examine(Objects(sealed), plan) == Standing(frozenset(plan.units()), None)
    assert seal(Objects(sealed), plan) == hashlib.sha256(whole["manifest.json"]).hexdigest()
    assert tree(sealed) == whole


def test_the_manifest_of_another_plan_is_no_seal(plan, sealed):
    edit_signed(sealed / "manifest.json", lambda manifest: manifest.update(store_id="0" * 64))
    assert examine(Objects(sealed), plan) == Standing(frozenset(plan.units()), None)


def test_a_sealed_store_that_lost_a_receipt_is_not_whole(plan, sealed):
    (sealed / receipt_key("train", 1)).unlink()
    assert examine(Objects(sealed), plan) == Standing(frozenset(plan.units()) - {("train", 1)}, None)


# --- receipts


def test_a_receipt_comes_back_from_its_bytes(plan):
    receipt, blobs = make_unit(plan, "train", 1, made={"device": "cpu", "seconds": 1.5})
    assert Receipt.from_bytes(receipt.to_bytes(), receipt.key) == receipt
    assert receipt.key == receipt_key("train", 1) == "units/train-000001.json"
    told = {key: {name: entry[name] for name in ("size", "sha256")} for key, entry in receipt.objects.items()}
    assert told == {key: {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()} for key, blob in blobs.items()}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"split":"train"}', b"\xff", b"null", pytest.param(b"[" * 10**6, id="nested")]
)
def test_bytes_that_are_no_receipt_are_a_damaged_one_and_named(data):
    with pytest.raises(StoreError, match=r"^the receipt units/train-000001\.json is damaged \("):
        Receipt.from_bytes(data, "units/train-000001.json")


def test_a_receipt_carries_its_own_checksum(plan):
    receipt, _ = make_unit(plan, "train", 1)
    document = json.loads(receipt.to_bytes())
    assert document.pop("check") == hashlib.sha256(canonical_json(document)).hexdigest()
    for bit in range(0, 8 * len(receipt.to_bytes()), 7):
        with pytest.raises(StoreError, match="is damaged"):
            Receipt.from_bytes(flipped(receipt.to_bytes(), bit), receipt.key)


def test_another_unit_s_receipt_is_none(plan):
    receipt, _ = make_unit(plan, "train", 1)
    with pytest.raises(StoreError, match=r"units/train-000002\.json is damaged \(it is that of units/train-000001\.json\)$"):
        Receipt.from_bytes(receipt.to_bytes(), "units/train-000002.json")


STRANGE = [None, -1, 0.5, "x", [], {"a": 1}, [[]], True]


@pytest.mark.parametrize("field", ["split", "unit", "rows", "objects", "new"])
@pytest.mark.parametrize("value", STRANGE)
def test_a_receipt_with_a_strange_field_and_a_right_checksum_is_none(plan, begun, field, value):
    receipt, _ = make_unit(plan, "train", 1)
    begun.put(receipt.key, with_check({**receipt.__dict__, field: value}))
    assert receipts(begun) == {}


@pytest.mark.parametrize("entry", [None, 7, {}, {"size": 1}, {"sha256": "ab"}, {"size": 1, "sha256": 7}])
def test_a_receipt_with_a_strange_object_and_a_right_checksum_is_none(plan, begun, entry):
    receipt, _ = make_unit(plan, "train", 1)
    begun.put(receipt.key, with_check({**receipt.__dict__, "objects": {**receipt.objects, "train/x": entry}}))
    assert receipts(begun) == {}


@pytest.mark.parametrize("field", ["attempt", "made"])
@pytest.mark.parametrize("value", STRANGE)
def test_a_receipt_counts_whatever_it_says_of_who_made_the_unit(plan, begun, field, value):
    receipt, _ = make_unit(plan, "train", 1)
    begun.put(receipt.key, with_check({**receipt.__dict__, field: value}))
    assert receipts(begun).keys() == {("train", 1)}


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-9], flipped, lambda data: b"\0" * len(data)])
def test_a_torn_receipt_is_none_and_is_made_again(plan, begun, tmp_path, change):
    receipt, blobs = make_unit(plan, "train", 1)
    commit_unit(begun, receipt, blobs)
    whole = tree(tmp_path)
    damage(tmp_path / "store" / receipt.key, change)
    assert (read_receipt(begun, receipt.key), receipts(begun)) == (None, {})
    commit_unit(begun, receipt, blobs)
    assert tree(tmp_path) == whole


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
    assert sorted(order[:-1]) == sorted(blobs)
    assert order[-1] == receipt.key


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


# --- lost answers and rivals


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path) -> Objects:
    return in_memory() if request.param == "memory" else Objects(tmp_path / "store")


@pytest.fixture
def wire(monkeypatch):
    """What happens when an object of some key is put: `wire[key] = lambda put: ...`, where `put()` would really put it."""
    real, happens = obstore.put, {}

    def put(store, key, data, **options):
        return happens.get(key, lambda put: put())(lambda: real(store, key, data, **options))

    monkeypatch.setattr(obstore, "put", put)
    return happens


def lose_the_answer(put):
    put()
    raise GenericError("the connection was lost")


def lose_the_request(put):
    raise GenericError("the connection was lost")


@pytest.mark.parametrize("lost", ["plan.json", "units/train-000000.json", FILES_RECEIPT])
def test_an_answer_that_got_lost_is_no_failure_where_what_was_put_stands_there(plan, place, wire, lost):
    wire[lost] = lose_the_answer
    begin(place, plan, FILES)
    receipt, blobs = make_unit(plan, "train", 0)
    commit_unit(place, receipt, blobs)
    assert (place.get("plan.json"), place.get(receipt.key)) == (plan.to_bytes(), receipt.to_bytes())
    assert examine(place, plan) == Standing(frozenset({("train", 0)}), None)


@pytest.mark.parametrize("lost", ["plan.json", "units/train-000000.json"])
def test_a_request_that_got_lost_is_a_failure_and_the_next_attempt_makes_it_good(plan, place, wire, lost):
    receipt, blobs = make_unit(plan, "train", 0)
    wire[lost] = lose_the_request
    with pytest.raises(StoreError, match=rf"could not be written \({lost}\): the connection was lost"):
        begin(place, plan, FILES)
        commit_unit(place, receipt, blobs)
    assert place.get(lost) is None
    wire.clear()
    begin(place, plan, FILES)
    commit_unit(place, receipt, blobs)
    assert receipts(place) == {("train", 0): receipt}


def overtaken(place, key, data):
    """A put before which a rival's bytes arrive."""

    def put(ours):
        del wire_of_rival[key]
        place.put(key, data)
        return ours()

    wire_of_rival = {key: put}
    return lambda ours: wire_of_rival.get(key, lambda ours: ours())(ours)


@pytest.mark.parametrize("answer", [lambda put: put(), lose_the_answer])
def test_a_rival_s_receipt_for_the_same_bytes_is_as_good_as_ours(plan, place, wire, answer):
    begin(place, plan, FILES)
    rival, blobs = make_unit(plan, "train", 0, attempt="the rival's")
    ours, _ = make_unit(plan, "train", 0, attempt="ours")
    arrive = overtaken(place, rival.key, rival.to_bytes())
    wire[rival.key] = lambda put: answer(lambda: arrive(put))
    commit_unit(place, ours, blobs)
    assert place.get(rival.key) == rival.to_bytes()


@pytest.mark.parametrize("answer", [lambda put: put(), lose_the_answer])
def test_a_rival_with_other_bytes_is_reported(plan, place, wire, answer):
    begin(place, plan, FILES)
    rival, _ = make_unit(plan, "train", 0, attempt="the rival's", seed=1)
    arrive = overtaken(place, rival.key, rival.to_bytes())
    wire[rival.key] = lambda put: answer(lambda: arrive(put))
    with pytest.raises(StoreError, match=r"another process made the unit of units/train-000000\.json with other bytes\. "):
        commit_unit(place, *make_unit(plan, "train", 0, attempt="ours"))
    assert place.get(rival.key) == rival.to_bytes()


def test_a_rival_s_receipt_that_arrives_while_a_torn_one_is_being_replaced_is_not_written_over(plan, monkeypatch):
    place = in_memory()
    begin(place, plan, FILES)
    rival, _ = make_unit(plan, "train", 0, attempt="the rival's", seed=1)
    place.put(rival.key, rival.to_bytes()[:-9])
    put = obstore.put

    def overtaken(store, key, data, *, mode):
        if key == rival.key and mode != "create":
            put(store, key, rival.to_bytes())
        return put(store, key, data, mode=mode)

    monkeypatch.setattr(obstore, "put", overtaken)
    with pytest.raises(StoreError, match="with other bytes"):
        commit_unit(place, *make_unit(plan, "train", 0, attempt="ours"))
    assert place.get(rival.key) == rival.to_bytes()


def test_an_attempt_that_made_other_bytes_than_before_is_told_so_whatever_it_calls_itself(plan, begun, wire):
    first, _ = make_unit(plan, "train", 0, attempt="ours", seed=1)
    wire[first.key] = overtaken(begun, first.key, first.to_bytes())
    with pytest.raises(StoreError, match=r"made the unit of units/train-000000\.json with other bytes"):
        commit_unit(begun, *make_unit(plan, "train", 0, attempt="ours"))
    assert begun.get(first.key) == first.to_bytes()


def test_a_replacement_whose_answer_got_lost_is_no_failure_and_one_whose_request_got_lost_is(plan, place, wire):
    begin(place, plan, FILES)
    receipt, blobs = make_unit(plan, "train", 0)
    torn = receipt.to_bytes()[:-9]
    place.put(receipt.key, torn)
    wire[receipt.key] = lose_the_request
    with pytest.raises(StoreError, match="the connection was lost"):
        commit_unit(place, receipt, blobs)
    assert place.get(receipt.key) == torn
    wire[receipt.key] = lose_the_answer
    commit_unit(place, receipt, blobs)
    assert place.get(receipt.key) == receipt.to_bytes()


def test_a_rival_s_plan_is_reported(plan, place, wire):
    wire["plan.json"] = overtaken(place, "plan.json", other_plan(plan).to_bytes())
    with pytest.raises(PlanError, match="another process is planning something else here; give it another --out"):
        begin(place, plan, FILES)
    assert place.get("plan.json") == other_plan(plan).to_bytes()


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


def test_an_object_is_replaced_only_while_it_is_what_it_was_found_to_be(place):
    assert not place.replace("a/b", b"torn", b"ours")
    assert place.get("a/b") is None, "what is gone is not replaced"
    place.put("a/b", b"torn")
    assert not place.replace("a/b", b"other", b"ours")
    assert place.get("a/b") == b"torn"
    assert place.replace("a/b", b"torn", b"ours")
    assert not place.replace("a/b", b"torn", b"theirs")
    assert place.get("a/b") == b"ours"


def test_of_several_who_replace_an_object_at_once_one_does(tmp_path):
    objects = Objects(tmp_path)
    for number in range(20):
        objects.put("a/b", b"torn")
        with ThreadPoolExecutor(4) as pool:
            replaced = list(pool.map(lambda ours: objects.replace("a/b", b"torn", ours), [b"0", b"1", b"2", b"3"]))
        assert sum(replaced) == 1, number
        assert objects.get("a/b") == str(replaced.index(True)).encode()


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """What `os.fsync` was called on, in order."""
    found = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (found.append(Path(f"/proc/self/fd/{handle}").readlink()), fsync(handle))[1])
    return found


def test_a_local_put_is_synced_with_its_folder(tmp_path, synced):
    (tmp_path / "a").mkdir()
    Objects(tmp_path).put("a/b", b"bytes")
    assert synced == [tmp_path / "a" / "b", tmp_path / "a"]


def test_every_folder_that_a_put_made_is_synced_in_the_one_above_it_before_the_object(tmp_path, synced):
    Objects(tmp_path / "stores" / "one").put("a/b", b"bytes")
    stores, one, a = (tmp_path / "stores", tmp_path / "stores" / "one", tmp_path / "stores" / "one" / "a")
    assert synced == [tmp_path, stores, one, a / "b", a]


def test_a_deletion_is_synced(tmp_path, synced):
    objects = Objects(tmp_path)
    objects.put("a/b", b"bytes")
    del synced[:]
    objects.delete("a/b")
    assert synced == [tmp_path / "a"]


@pytest.mark.parametrize("create", [False, True])
def test_a_put_whose_temporary_file_was_swept_away_is_tried_once_more(tmp_path, monkeypatch, create):
    put, calls = obstore.put, []

    def swept_the_first_time(*arguments, **options):
        calls.append(arguments[1])
        if len(calls) == 1:
            raise FileNotFoundError("a/b#1")
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", swept_the_first_time)
    assert Objects(tmp_path).put("a/b", b"bytes", create=create)
    assert (calls, (tmp_path / "a" / "b").read_bytes()) == (["a/b", "a/b"], b"bytes")


@pytest.mark.parametrize("error", [FileNotFoundError("a/b#1"), GenericError("broken pipe")])
def test_a_put_that_fails_twice_has_failed(tmp_path, monkeypatch, error):
    calls = []

    def fail(*arguments, **_):
        calls.append(arguments[1])
        raise error

    monkeypatch.setattr(obstore, "put", fail)
    with pytest.raises(StoreError, match=r"could not be written \(a/b\): "):
        Objects(tmp_path).put("a/b", b"bytes")
    assert calls == ["a/b", "a/b"]


def test_a_create_only_put_to_an_object_store_is_not_tried_again_because_it_would_find_its_own_first(monkeypatch):
    objects = in_memory()
    put, calls = obstore.put, []

    def lose_the_answer(*arguments, **options):
        calls.append(arguments[1])
        put(*arguments, **options)
        raise GenericError("the connection was lost")

    monkeypatch.setattr(obstore, "put", lose_the_answer)
    with pytest.raises(StoreError, match="the connection was lost"):
        objects.put("a/b", b"bytes", create=True)
    assert calls == ["a/b"]


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
    with pytest.raises(StoreError, match=r"/file/store could not be written \(plan\.json\): .*File exists: '.*/file'"):
        Objects(tmp_path / "file" / "store").put("plan.json", b"{}")


def test_looking_makes_no_folder(tmp_path):
    objects = Objects(tmp_path / "store")
    assert (objects.exists(), objects.get("plan.json"), objects.sizes()) == (False, None, {})
    assert not any(tmp_path.iterdir())


# --- seal


def test_a_seal_covers_every_object_but_the_receipts(plan, sealed):
    manifest = json.loads((sealed / "manifest.json").read_bytes())
    objects = {key: data for key, data in tree(sealed).items() if not key.startswith("units/") and key != "manifest.json"}
    assert manifest.keys() == {"check", "store_id", "objects"}
    assert manifest["store_id"] == plan.store_id
    assert manifest["objects"].keys() == objects.keys()
    for key, entry in manifest["objects"].items():
        assert {name: entry[name] for name in ("size", "sha256")} == fingerprint(objects[key])
        layered = key.startswith(("train/hidden/values/c/", "train/hidden/mask/c/"))
        assert entry.keys() - {"size", "sha256"} == ({"layers"} if layered else set())


def test_a_manifest_carries_its_own_checksum(sealed):
    document = json.loads((sealed / "manifest.json").read_bytes())
    assert document.pop("check") == hashlib.sha256(canonical_json(document)).hexdigest()
    damage(sealed / "manifest.json", lambda data: data.replace(b'"size":2', b'"size":3'))
    with pytest.raises(StoreError, match=r"/manifest\.json is damaged \(its own checksum does not agree with it\)"):
        open_store(sealed)


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
    with pytest.raises(StoreError, match=r": 2 units are missing, the first is units/validation-000000\.json: run the same"):
        seal(Objects(tmp_path), plan)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("key", ["train/hidden/values/c/1/0/0/0", "train/zarr.json", "teacher.json", "plan.json"])
def test_a_missing_or_short_object_is_not_sealed(plan, tmp_path, key):
    write_store(tmp_path, plan, only=[*plan.units()])
    (tmp_path / "manifest.json").unlink()
    size = (tmp_path / key).stat().st_size
    damage(tmp_path / key, lambda data: data[:-1])
    with pytest.raises(StoreError, match=rf"/{key} has {size - 1} bytes instead of {size}; the store was not sealed"):
        seal(Objects(tmp_path), plan)
    (tmp_path / key).unlink()
    with pytest.raises(StoreError, match=rf"/{key} is missing; the store was not sealed\. .*--deep --condemn"):
        seal(Objects(tmp_path), plan)
    assert not (tmp_path / "manifest.json").exists()


def unsealed(root, plan) -> Objects:
    write_store(root, plan, only=[*plan.units()])
    (root / "manifest.json").unlink()
    return Objects(root)


OBJECTS = ["train/hidden/values/c/1/0/0/0", "validation/label/c/0", "train/zarr.json", "tokenizer/tokenizer.json", "plan.json"]


@pytest.mark.parametrize("key", OBJECTS)
def test_a_bit_that_flipped_before_the_seal_is_named_and_not_sealed(plan, tmp_path, key):
    objects = unsealed(tmp_path, plan)
    damage(tmp_path / key, flipped)
    with pytest.raises(StoreError, match=rf"/{key} is damaged: its sha256 is another; the store was not sealed\. .*--condemn"):
        seal(objects, plan)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("change", [lambda listed, _: listed.popitem(), lambda listed, more: listed.update({"plan.json": more})])
def test_a_receipt_that_does_not_list_its_unit_s_objects_is_named_and_not_sealed(plan, tmp_path, change):
    objects = unsealed(tmp_path, plan)
    more = fingerprint((tmp_path / "plan.json").read_bytes())
    edit_signed(tmp_path / receipt_key("train", 1), lambda document: change(document["objects"], more))
    with pytest.raises(StoreError, match=r"/units/train-000001\.json does not list the unit's objects; the store was not sealed"):
        seal(objects, plan)
    assert not (tmp_path / "manifest.json").exists()


def test_the_seal_sweeps_what_killed_writers_left_and_leaves_what_others_own(plan, tmp_path):
    objects = unsealed(tmp_path, plan)
    before = tree(tmp_path)
    left = [
        "train/logits/c/1/0#3",
        "units/train-000001.json#1",
        "plan.json#12",
        "tokenizer/tokenizer.json#1",
        "train/logits/c/7/0",
        "train/hidden/scale/c/0/0/0",
        "train/hidden/scale/zarr.json",
        "validation/text/c/0/0#2",
        "units/train-000009.json",
    ]
    theirs = {
        "notes/thesis.tex": b"years of work",
        "notes/draft#2": b"a week of work",
        "train/draft#2": b"a day of work",
        "validation/note.txt": b"to do",
        "train/photos/c/0/0": b"a photo",
        "units/lesson.json": b"a lesson",
        "README.md": b"hello",
    }
    for key in (*left, *theirs):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(theirs.get(key, b"rubbish"))
    seal(objects, plan)
    found = tree(tmp_path)
    manifest = json.loads(found.pop("manifest.json"))
    assert found == {**before, **theirs}
    assert not manifest["objects"].keys() & {*left, *theirs}


def test_a_seal_that_is_refused_sweeps_nothing(plan, tmp_path):
    objects = unsealed(tmp_path, plan)
    damage(tmp_path / "validation/label/c/0", flipped)
    (tmp_path / "units" / "train-000009.json").write_bytes(b"rubbish")
    before = tree(tmp_path)
    with pytest.raises(StoreError, match="was not sealed"):
        seal(objects, plan)
    assert tree(tmp_path) == before


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
