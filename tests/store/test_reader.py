"""What is not sealed is not opened; what is damaged is found before a row of it is returned; torch is not needed."""

import hashlib
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.commit import Manifest
from hskstore.store.objects import Objects
from hskstore.store.schema import canonical_json
from tests.store.conftest import FILES, damage, edit_signed, flipped, make_plan, whole, write_store

VALUES = "train/hidden/values/c/1/0/0/0"


# --- what is read


@pytest.mark.parametrize("values", ["f16", "f32", "q8", "q4", "rq4"])
def test_every_array_of_a_sealed_store_is_what_was_written(values, tmp_path):
    plan = make_plan(values)
    digest = write_store(tmp_path, plan)
    store = open_store(tmp_path)
    assert (store.plan, store.digest, store.root) == (plan, digest, str(tmp_path))
    for path, spec in plan.arrays.items():
        rows = store.read_all(path)
        assert (rows.shape, rows.dtype) == (spec.shape, spec.dtype)
        assert rows.tobytes() == whole(plan, path).tobytes()


@pytest.mark.parametrize("index", [0, 7, 8, 19])
def test_a_row_is_the_same_by_itself_with_its_hidden_states_decoded(plan, sealed_once, index):
    row = open_store(sealed_once).row("train", index)
    assert row.keys() == {path.removeprefix("train/") for path in plan.arrays_of("train")}
    for name in ("input_ids", "label", "logits", "hidden/token"):
        np.testing.assert_array_equal(row[name], whole(plan, f"train/{name}")[index])
    values, mask = (whole(plan, f"train/hidden/{name}")[index] for name in ("values", "mask"))
    assert (row["hidden/values"].dtype, row["hidden/mask"].dtype) == (np.float32, bool)
    np.testing.assert_array_equal(row["hidden/values"], values.astype(np.float32))
    np.testing.assert_array_equal(row["hidden/mask"], np.unpackbits(mask, axis=-1)[..., :20].astype(bool))


def test_a_quantised_row_is_its_integers_times_its_scale(tmp_path):
    plan = make_plan("q8")
    write_store(tmp_path, plan)
    row = open_store(tmp_path).row("train", 11)
    values, scale = (whole(plan, f"train/hidden/{name}")[11].astype(np.float32) for name in ("values", "scale"))
    np.testing.assert_array_equal(row["hidden/values"], values * scale[..., None])


def test_a_validation_row_has_no_hidden_states(sealed_once):
    row = open_store(sealed_once).row("validation", 8)
    assert row.keys() == {"input_ids", "token_type_ids", "n_tokens", "row_id", "logits", "label"}


def test_what_a_store_does_not_hold_is_said(sealed_once):
    store = open_store(sealed_once)
    assert store.has("train/hidden/values")
    assert not store.has("train/cls/values")
    with pytest.raises(StoreError, match=r"holds no train/cls/values$"):
        store.read("train/cls/values", 0)
    with pytest.raises(StoreError, match=r"holds no train/input_ids/c/3/0$"):
        store.read("train/input_ids", 3)
    with pytest.raises(StoreError, match=r"holds no README\.md$"):
        store.file("README.md")
    for index in (-1, 20):
        with pytest.raises(StoreError, match=f"train has rows 0 to 19, not {index}$"):
            store.row("train", index)


def test_files_travel_with_the_store(sealed_once):
    store = open_store(sealed_once)
    assert store.tokenizer_files() == {"tokenizer.json": FILES["tokenizer/tokenizer.json"]}
    assert store.file("teacher.json") == FILES["teacher.json"]


def test_a_store_needs_no_receipts_once_it_is_sealed(plan, sealed):
    for receipt in (sealed / "units").iterdir():
        receipt.unlink()
    np.testing.assert_array_equal(open_store(sealed).read_all("train/label"), whole(plan, "train/label"))


# --- what is refused


def test_a_missing_folder_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"/nowhere is not a store: there is no such folder$"):
        open_store(tmp_path / "nowhere")


def test_a_folder_that_is_no_store_names_the_stores_inside(plan, tmp_path):
    with pytest.raises(StoreError, match=r" is not a store: it has no plan\.json; hsk extract makes stores below its --out$"):
        open_store(tmp_path)
    for name in ("d2-l9-w0.1", "d1-l9-w0.1"):
        write_store(tmp_path / name, plan, only=[])
    (tmp_path / "notes").mkdir()
    with pytest.raises(StoreError, match=r"plan\.json; it holds the stores d1-l9-w0\.1, d2-l9-w0\.1: name one of them$"):
        open_store(tmp_path)


def test_links_in_a_folder_that_is_no_store_are_nobody_s_business(plan, sealed_once, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to("/etc/hosts")
    (tmp_path / "linked").symlink_to(sealed_once)
    with pytest.raises(StoreError, match=r" is not a store: it has no plan\.json; hsk extract makes stores below its --out$"):
        open_store(tmp_path)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_store_that_is_not_sealed_counts_its_units(plan, tmp_path, done):
    write_store(tmp_path, plan, only=list(plan.units())[:done])
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(
        StoreError, match=rf" is not sealed: {done} of 5 units are done\. Run the same hsk extract .*again: it goes on"
    ):
        open_store(tmp_path)


OBJECTS = [VALUES, "train/hidden/values/zarr.json", "zarr.json", "teacher.json", "validation/label/c/0"]


@pytest.mark.parametrize("key", OBJECTS)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_an_object_of_another_size_is_found_when_the_store_is_opened(sealed, key, change):
    damage(sealed / key, change)
    with pytest.raises(StoreError, match=rf"/{key} (is damaged|has \d+ bytes instead of \d+).*good copy"):
        open_store(sealed)


@pytest.mark.parametrize("key", OBJECTS)
def test_a_deleted_object_is_found_when_the_store_is_opened(sealed, key):
    (sealed / key).unlink()
    with pytest.raises(StoreError, match=rf"/{key} (is missing|has no bytes instead of \d+)"):
        open_store(sealed)


def test_an_edited_document_is_found_when_the_store_is_opened(sealed):
    damage(sealed / "train/hidden/mask/zarr.json", lambda data: data.replace(b"uint8", b"uint9"))
    with pytest.raises(StoreError, match=r"/train/hidden/mask/zarr\.json is damaged"):
        open_store(sealed)


def test_an_edited_document_is_refused_even_where_the_seal_agrees(sealed):
    key = "train/hidden/mask/zarr.json"
    before = open_store(sealed).sizes()[key]
    damage(sealed / key, lambda data: data.replace(b"zstd", b"zlib"))
    edit_manifest(
        sealed, lambda m: m["objects"][key].update(sha256=hashlib.sha256((sealed / key).read_bytes()).hexdigest(), size=before)
    )
    with pytest.raises(StoreError, match=r"/train/hidden/mask/zarr\.json does not describe the planned array"):
        open_store(sealed)


def edit_manifest(root, change) -> None:
    edit_signed(root / "manifest.json", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(store_id="0" * 64), "the seal belongs to another plan"),
        (lambda m: m["objects"]["zarr.json"].update(sha256="0" * 64), "/zarr.json is damaged"),
        (lambda m: m["objects"][VALUES].update(size=1), "bytes instead of 1"),
        (lambda m: m["objects"].update({"train/more": {"size": 1, "sha256": "0" * 64}}), "/train/more is missing"),
        (lambda m: m["objects"].update({"../secret": {"size": 1, "sha256": "0" * 64}}), "names '../secret', which is no place"),
        (lambda m: m["objects"].pop("train/zarr.json"), "/manifest.json does not list train/zarr.json"),
        (lambda m: m["objects"][VALUES].pop("sha256"), "/manifest.json is damaged (KeyError('sha256'))"),
        (lambda m: m["objects"][VALUES].update(size=None), f"/manifest.json is damaged (its entry of {VALUES} is none)"),
        (lambda m: m["objects"][VALUES].update(size=-1), f"/manifest.json is damaged (its entry of {VALUES} is none)"),
        (lambda m: m["objects"][VALUES].update(sha256=7), f"/manifest.json is damaged (its entry of {VALUES} is none)"),
        (lambda m: m.update(objects=[VALUES]), "/manifest.json is damaged (AttributeError("),
        (lambda m: m.pop("store_id"), "/manifest.json is damaged (TypeError("),
        (lambda m: m.update(more=1), "/manifest.json is damaged (TypeError("),
    ],
)
def test_an_edited_manifest_is_refused_even_where_its_own_checksum_agrees(sealed, change, message):
    edit_manifest(sealed, change)
    with pytest.raises(StoreError) as refused:
        open_store(sealed)
    assert message in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_manifest_that_cannot_be_read_is_a_damaged_store(sealed, data):
    (sealed / "manifest.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"/manifest\.json is damaged \(.*\)\. Repair it from a good copy: hsk pull GOOD_COPY "):
        open_store(sealed)


def test_a_shard_that_the_manifest_has_another_hash_for_is_not_read(sealed):
    edit_manifest(sealed, lambda m: m["objects"][VALUES].update(sha256="0" * 64))
    store = open_store(sealed)
    store.read("train/hidden/values", 0)
    with pytest.raises(StoreError, match=rf"/{VALUES} is damaged: its sha256 is not the sealed one"):
        store.read("train/hidden/values", 1)


def test_a_shard_that_the_manifest_left_out_is_not_read(sealed):
    edit_manifest(sealed, lambda m: m["objects"].pop(VALUES))
    with pytest.raises(StoreError, match=rf"/manifest\.json does not list {VALUES}\. Repair it"):
        open_store(sealed)


@pytest.mark.parametrize(("name", "message"), [("tidy", "is damaged: its sha256 is not"), ("other", r"has \d+ bytes instead of")])
def test_an_edited_plan_is_refused(plan, sealed, name, message):
    (sealed / "plan.json").write_bytes(replace(plan, task={**plan.task, "name": name}).to_bytes())
    with pytest.raises(StoreError, match=rf"/plan\.json {message}"):
        open_store(sealed)


def test_a_store_of_a_newer_format_asks_for_an_upgrade(plan, sealed):
    (sealed / "plan.json").write_bytes(canonical_json(plan.as_json() | {"version": 4, "new": "field"}))
    with pytest.raises(StoreError, match=r" is a store of format version 4; this hskstore reads up to 3: upgrade it$"):
        open_store(sealed)


def test_a_linked_object_is_refused_and_so_is_a_linked_folder(sealed, tmp_path):
    outside = tmp_path / "outside"
    (sealed / VALUES).rename(outside)
    (sealed / VALUES).symlink_to(outside)
    with pytest.raises(StoreError, match=rf"/{VALUES} is a symbolic link; a store has none"):
        open_store(sealed)
    (sealed / VALUES).unlink()
    outside.rename(sealed / VALUES)
    open_store(sealed)
    (sealed / "tokenizer").rename(tmp_path / "tokenizer")
    (sealed / "tokenizer").symlink_to(tmp_path / "tokenizer")
    with pytest.raises(StoreError, match="/tokenizer is a symbolic link"):
        open_store(sealed)


def huge(plan, rows):
    """The plan with a shard of `rows` rows in every array of train."""
    arrays = {
        path: replace(spec, shard=rows, chunk=rows, shape=(rows, *spec.shape[1:])) if path.startswith("train/") else spec
        for path, spec in plan.arrays.items()
    }
    return replace(plan, arrays=arrays, splits={**plan.splits, "train": replace(plan.splits["train"], rows=rows, unit_rows=rows)})


@pytest.mark.parametrize("sealed_too", [False, True])
def test_a_plan_that_asks_for_a_huge_shard_is_refused_before_memory_is_taken(plan, tmp_path, sealed_too):
    (tmp_path / "plan.json").write_bytes(huge(plan, 2**40).to_bytes())
    if sealed_too:
        (tmp_path / "manifest.json").write_bytes(Manifest(huge(plan, 2**40).store_id, {}).to_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=r"the plan asks for shards of \d{13,} bytes in train/[a-z_/]+; refused$"):
            open_store(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


# --- damage inside a shard


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_bit_flipped_anywhere_in_a_shard_is_found_when_it_is_read(plan, sealed_once, data):
    store = open_store(sealed_once)
    path = data.draw(st.sampled_from(sorted(plan.arrays)))
    unit = data.draw(st.integers(0, plan.splits[path.partition("/")[0]].units - 1))
    shard = sealed_once / plan.arrays[path].key(path, unit)
    before = shard.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    try:
        shard.write_bytes(flipped(before, bit))
        with pytest.raises(StoreError, match="is damaged: its sha256 is not the sealed one"):
            store.read(path, unit)
    finally:
        shard.write_bytes(before)
    assert store.read(path, unit).tobytes() == whole(plan, path)[plan.arrays[path].rows(unit)].tobytes()


def test_two_whole_shards_that_changed_places_are_found(sealed):
    one, other = (sealed / f"train/logits/c/{unit}/0" for unit in (0, 1))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(StoreError, match=r"/train/logits/c/0/0 (is damaged|has \d+ bytes)"):
        open_store(sealed).read("train/logits", 0)


def test_a_shard_deleted_after_opening_is_found(sealed):
    store = open_store(sealed)
    (sealed / VALUES).unlink()
    with pytest.raises(StoreError, match=rf"/{VALUES} is missing \(unit 1 of train\)\. Repair it from a good copy: hsk pull"):
        store.read_all("train/hidden/values")


# --- torch


def test_writing_and_reading_a_store_never_imports_torch(sealed_once):
    program = f"""
import sys
import numpy as np
import hskstore
from hskstore.store import open_store
from hskstore.store import commit, copy, derive, encode, objects, places, plan, reader, schema, shard, verify
from hskstore.store import features, hidden, masks, vectors
spec = schema.ArraySpec((4, 2), "float16", 4, 2, "values", "NaN")
encode.encode_shard(spec, 0, np.ones((4, 2), np.float16))
assert open_store({str(sealed_once)!r}).row("train", 0)["hidden/mask"].any()
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "datasets")))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


def test_a_slash_is_the_root_of_the_disk():
    assert Objects("/").root == "/"
    with pytest.raises(StoreError, match=r"^/ is not a store"):
        open_store("/")
