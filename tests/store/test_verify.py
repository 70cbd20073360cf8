"""Damage to a store is found and named; what is condemned, and nothing else, is made again, and the digest is the same."""

from pathlib import Path

import pytest

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.commit import begin, commit_unit, condemned_digest, examine, receipt_key, seal
from hskstore.store.objects import Objects
from hskstore.store.verify import Problem, Verified, verify
from tests.store.conftest import FILES, damage, edit_signed, flipped, forge, make_unit, tree, write_store

SHARD = "train/hidden/values/c/1/0/0/0"
RECEIPT = "units/train-000001.json"


def owner(key: str) -> tuple[str, int] | None:
    """The unit an object belongs to; files are the unit 0 of "files"."""
    name = key.removeprefix("units/").removesuffix(".json") if key.startswith("units/") else ""
    if name:
        return name.rpartition("-")[0], int(name.rpartition("-")[2])
    if key == "teacher.json" or key.startswith("tokenizer/"):
        return "files", 0
    return (key.partition("/")[0], int(key.partition("/c/")[2].partition("/")[0])) if "/c/" in key else None


def named(found: Verified) -> list[tuple[str, tuple[str, int] | None]]:
    return [(problem.key, None if problem.unit is None else (problem.split, problem.unit)) for problem in found.problems]


def unsealed(root: Path, plan, only=None) -> Path:
    write_store(root, plan, only=[*plan.units()] if only is None else only)
    (root / "manifest.json").unlink(missing_ok=True)
    return root


# --- what is whole


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_sealed_store_is_whole(sealed_once, deep):
    store = open_store(sealed_once)
    before = tree(sealed_once)
    assert verify(str(sealed_once), deep=deep) == Verified(
        root=str(sealed_once),
        digest=store.digest,
        deep=deep,
        units_done=5,
        units=5,
        objects=len(before) - 1,
        bytes=sum(store.sizes().values()),
        problems=(),
        condemned=(),
    )
    assert tree(sealed_once) == before


def test_nothing_of_a_whole_store_is_condemned(sealed):
    before = tree(sealed)
    assert verify(str(sealed), deep=True, condemn=True).condemned == ()
    assert tree(sealed) == before


def test_how_far_it_is_is_told_in_rows(sealed_once):
    told = []
    verify(str(sealed_once), deep=True, watch=lambda *word: told.append(word))
    assert told[-1] == ("verify", 29, 29)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize("done", [0, 2, 5])
def test_an_unsealed_store_with_whole_units_has_no_problems_and_no_digest(plan, tmp_path, done):
    unsealed(tmp_path, plan, only=[*plan.units()][:done])
    found = verify(str(tmp_path), deep=True)
    assert (found.digest, found.units_done, found.units, found.problems) == (None, done, 5, ())


def test_where_there_is_no_store_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(StoreError, match=r"is not a store: it has no plan\.json"):
        verify(str(tmp_path))
    with pytest.raises(StoreError, match="is not a store: there is no such folder"):
        verify(str(tmp_path / "nowhere"))


# --- every object, damaged in every way


DAMAGE = {
    "deleted": None,
    "cut short": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "grown": lambda data: data + b"x",
    "with a flipped bit": lambda data: flipped(data, 8 * len(data) // 2),
    "of zeros": lambda data: bytes(len(data)),
}


KINDS = [
    "plan.json",
    "manifest.json",
    "zarr.json",
    "train/hidden/mask/zarr.json",
    "teacher.json",
    "tokenizer/tokenizer.json",
    SHARD,
    "train/n_tokens/c/2",
    "validation/label/c/0",
    RECEIPT,
    "units/validation-000001.json",
    "units/files-000000.json",
]
"""An object of every kind."""


def harm(root: Path, key: str, name: str) -> None:
    change = DAMAGE[name]
    if change is None:
        (root / key).unlink()
    else:
        damage(root / key, change)


def check_that_it_is_named(sealed: Path, key: str, name: str, deep: bool) -> None:
    before = (sealed / key).read_bytes()
    harm(sealed, key, name)
    found = verify(str(sealed), deep=deep)
    (sealed / key).write_bytes(before)
    keeps_its_size = name in ("with a flipped bit", "of zeros")
    if (key, name) == ("manifest.json", "deleted"):
        assert (found.digest, found.problems) == (None, ()), "then the store is simply not sealed"
    elif keeps_its_size and not deep and owner(key) is not None and not key.startswith("units/"):
        assert found.problems == (), "only who reads every byte can know"
    else:
        assert named(found) == [(key, owner(key))]
        assert (found.digest is None) == (key == "manifest.json")


@pytest.mark.parametrize(("name", "deep"), [("deleted", False), ("with a flipped bit", True)])
def test_every_damaged_object_is_found_and_named_and_no_other(sealed, name, deep):
    for key in tree(sealed):
        check_that_it_is_named(sealed, key, name, deep)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_an_object_of_every_kind_that_is_damaged_in_any_way_is_found_and_named_and_no_other(sealed, name, deep):
    for key in KINDS:
        check_that_it_is_named(sealed, key, name, deep)


def test_all_that_is_damaged_is_named_at_once(sealed):
    for key in (SHARD, "validation/label/c/0"):
        damage(sealed / key, flipped)
    for key in ("train/zarr.json", "teacher.json", "units/validation-000001.json"):
        (sealed / key).unlink()
    keys = {"train/zarr.json", "teacher.json", "units/validation-000001.json"}
    assert {key for key, _ in named(verify(str(sealed)))} == keys
    assert {key for key, _ in named(verify(str(sealed), deep=True))} == {*keys, SHARD, "validation/label/c/0"}


def test_two_units_whose_shards_changed_places_are_both_named(sealed):
    one, other = (sealed / f"train/hidden/mask/c/{unit}/0/0/0" for unit in (0, 1))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    expected = [(f"train/hidden/mask/c/{unit}/0/0/0", ("train", unit)) for unit in (0, 1)]
    assert named(verify(str(sealed), deep=True)) == expected


def test_a_receipt_of_another_unit_is_none(sealed):
    (sealed / RECEIPT).write_bytes((sealed / "units/train-000000.json").read_bytes())
    assert named(verify(str(sealed))) == [(RECEIPT, ("train", 1))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda receipt: receipt["objects"][SHARD].update(sha256="0" * 64), "does not agree with the seal"),
        (lambda receipt: receipt["objects"][SHARD].update(size=7), "does not agree with the seal"),
        (lambda receipt: receipt["objects"][SHARD].update(layers=["0" * 64] * 2), "does not agree with the seal"),
        (lambda receipt: receipt["objects"].update({"train/x/c/1": {"size": 1, "sha256": ""}}), "does not agree with the seal"),
        (lambda receipt: receipt["objects"].pop(SHARD), "does not agree with the seal"),
        (lambda receipt: receipt.update(objects={}), "does not agree with the seal"),
        (lambda receipt: receipt.update(rows=7), "tells of 7 rows instead of 8"),
    ],
)
def test_an_edited_receipt_is_found_even_where_its_own_checksum_agrees(sealed, change, message):
    edit_signed(sealed / RECEIPT, change)
    assert verify(str(sealed)).problems == (Problem(RECEIPT, message, "train", 1),)


@pytest.mark.parametrize("change", [lambda receipt: receipt["objects"].pop("teacher.json"), lambda r: r.update(objects={})])
def test_an_edited_receipt_of_the_files_is_found(sealed, change):
    edit_signed(sealed / "units/files-000000.json", change)
    assert named(verify(str(sealed))) == [("units/files-000000.json", ("files", 0))]


def test_who_made_a_unit_is_not_sealed_and_may_be_told_otherwise(sealed):
    edit_signed(sealed / RECEIPT, lambda receipt: receipt.update(made={"device": "another"}, attempt="another"))
    assert verify(str(sealed), deep=True).problems == ()


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (lambda manifest: manifest.update(store_id="0" * 64), ["manifest.json"]),
        (lambda manifest: manifest["objects"].pop(SHARD), ["manifest.json"]),
        (lambda manifest: manifest["objects"].pop("zarr.json"), ["manifest.json"]),
        (lambda manifest: manifest["objects"].pop("plan.json"), ["manifest.json"]),
        (lambda manifest: manifest["objects"].update({"train/more": {"size": 1, "sha256": ""}}), ["train/more"]),
        (lambda manifest: manifest["objects"]["zarr.json"].update(sha256="0" * 64), ["zarr.json"]),
        (lambda manifest: manifest["objects"]["plan.json"].update(sha256="0" * 64), ["plan.json"]),
        (lambda manifest: manifest["objects"]["plan.json"].update(size=7), ["plan.json"]),
        (lambda manifest: manifest["objects"][SHARD].update(sha256="0" * 64), [RECEIPT, SHARD]),
        (lambda manifest: manifest["objects"][SHARD].update(size=7), [RECEIPT, SHARD]),
        (lambda manifest: manifest["objects"]["teacher.json"].update(size=7), ["units/files-000000.json", "teacher.json"]),
        (lambda manifest: manifest["objects"].pop("teacher.json"), ["units/files-000000.json"]),
    ],
)
def test_an_edited_manifest_is_found_even_where_its_own_checksum_agrees(sealed, change, keys):
    edit_signed(sealed / "manifest.json", change)
    assert [key for key, _ in named(verify(str(sealed), deep=True))] == keys


@pytest.mark.parametrize("key", ["zarr.json", "train/hidden/mask/zarr.json"])
def test_a_document_that_was_edited_and_sealed_again_is_found(sealed, key):
    forge(sealed, {key: (sealed / key).read_bytes().replace(b"zstd", b"zlib")})
    assert verify(str(sealed)).problems == (Problem(key, "does not describe the planned arrays"),)


@pytest.mark.parametrize("name", ["deleted", "cut short", "with a flipped bit"])
def test_what_is_refused_to_a_reader_has_problems_and_what_is_opened_has_none_but_with_its_receipts(sealed, name):
    for key in KINDS:
        before = (sealed / key).read_bytes()
        harm(sealed, key, name)
        found = verify(str(sealed))
        try:
            open_store(sealed)
        except StoreError as error:
            assert found.problems or found.digest is None, error
        else:
            assert found.problems == () or key.startswith("units/")
        (sealed / key).write_bytes(before)


# --- before the seal


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_an_unsealed_store_is_found_and_named(plan, tmp_path, name):
    unsealed(tmp_path, plan, only=[("train", 1), ("validation", 0)])
    for key in (SHARD, "validation/label/c/0", "zarr.json", "tokenizer/tokenizer.json"):
        before = (tmp_path / key).read_bytes()
        harm(tmp_path, key, name)
        found = verify(str(tmp_path), deep=True)
        assert (named(found), found.digest) == ([(key, owner(key))], None)
        (tmp_path / key).write_bytes(before)


def test_a_torn_receipt_of_an_unsealed_store_is_named_and_a_missing_one_is_a_unit_that_is_not_made_yet(plan, tmp_path):
    unsealed(tmp_path, plan)
    damage(tmp_path / RECEIPT, lambda data: data[:-5])
    assert (named(verify(str(tmp_path))), verify(str(tmp_path)).units_done) == ([(RECEIPT, ("train", 1))], 4)
    (tmp_path / RECEIPT).unlink()
    assert (verify(str(tmp_path)).problems, verify(str(tmp_path)).units_done) == ((), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda receipt: receipt["objects"].pop(SHARD), "does not list the unit's objects"),
        (lambda receipt: receipt.update(rows=7), "tells of 7 rows instead of 8"),
    ],
)
def test_an_edited_receipt_of_an_unsealed_store_is_found_even_where_its_own_checksum_agrees(plan, tmp_path, change, message):
    unsealed(tmp_path, plan)
    edit_signed(tmp_path / RECEIPT, change)
    assert verify(str(tmp_path)).problems == (Problem(RECEIPT, message, "train", 1),)


@pytest.mark.parametrize("name", ["cut short", "emptied", "grown", "of zeros"])
def test_a_damaged_plan_of_an_unsealed_store_is_an_error_and_nothing_is_condemned(plan, tmp_path, name):
    unsealed(tmp_path, plan)
    harm(tmp_path, "plan.json", name)
    before = tree(tmp_path)
    with pytest.raises(StoreError, match=r"/plan\.json cannot be read as a plan \(.*\): the store is damaged$"):
        verify(str(tmp_path), deep=True, condemn=True)
    assert tree(tmp_path) == before


# --- what is condemned


def made_again(root: Path, plan) -> str:
    """What a run of the same command does: begin, the units that are missing, the seal. The digest."""
    objects = Objects(root)
    standing = examine(objects, plan)
    begin(objects, plan, FILES)
    for unit in plan.units():
        if unit not in standing.finished:
            commit_unit(objects, *make_unit(plan, *unit, attempt="second"))
    return seal(objects, plan)


REPAIRABLE = [
    SHARD,
    "train/label/c/2",
    "validation/input_ids/c/1/0",
    RECEIPT,
    "zarr.json",
    "train/hidden/zarr.json",
    "teacher.json",
    "tokenizer/tokenizer.json",
    "units/files-000000.json",
    "manifest.json",
]


@pytest.mark.parametrize("name", ["deleted", "cut short", "with a flipped bit"])
@pytest.mark.parametrize("key", REPAIRABLE)
def test_what_was_condemned_and_nothing_else_is_made_again_and_the_digest_is_the_same(plan, sealed, key, name):
    before, digest = tree(sealed), open_store(sealed).digest
    harm(sealed, key, name)
    found = verify(str(sealed), deep=True, condemn=True)
    whole = {unit for unit in plan.units() if unit != owner(key)}
    assert examine(Objects(sealed), plan).finished >= whole
    if (key, name) != ("manifest.json", "deleted"):
        assert found.condemned[-1] == (key if owner(key) is None else receipt_key(*owner(key)))
        with pytest.raises(StoreError, match=r"is not sealed: [45] of 5 units are done\."):
            open_store(sealed)
    assert made_again(sealed, plan) == digest
    after = tree(sealed)
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] != before[key]} <= ({receipt_key(*owner(key))} if owner(key) else set())
    assert verify(str(sealed), deep=True).problems == ()


def test_everything_at_once_is_condemned_and_made_again(plan, sealed):
    digest = open_store(sealed).digest
    for key in REPAIRABLE[:-1]:
        damage(sealed / key, flipped)
    found = verify(str(sealed), deep=True, condemn=True)
    assert len(found.problems) == len(REPAIRABLE) - 1
    assert examine(Objects(sealed), plan).finished == {("train", 0), ("validation", 0)}
    assert made_again(sealed, plan) == digest


def test_the_seal_goes_first(sealed, monkeypatch):
    """So that a crash in the middle leaves a store that nobody opens."""
    damage(sealed / SHARD, flipped)
    (sealed / "zarr.json").unlink()
    order = []
    delete, put = Objects.delete, Objects.put
    monkeypatch.setattr(Objects, "delete", lambda self, key: (order.append(f"-{key}"), delete(self, key))[1])
    monkeypatch.setattr(
        Objects, "put", lambda self, key, *rest, **more: (order.append(f"+{key}"), put(self, key, *rest, **more))[1]
    )
    found = verify(str(sealed), deep=True, condemn=True)
    assert order == ["+condemned.json", "-manifest.json", "-zarr.json", f"-{RECEIPT}"]
    assert found.condemned == ("manifest.json", "zarr.json", RECEIPT)


def test_the_digest_that_a_store_had_is_told_until_it_is_sealed_again(plan, sealed):
    digest = open_store(sealed).digest
    assert condemned_digest(Objects(sealed)) is None
    damage(sealed / SHARD, flipped)
    verify(str(sealed), deep=True, condemn=True)
    assert condemned_digest(Objects(sealed)) == digest
    with pytest.raises(StoreError, match=r"What was bad was condemned\. Run the same hsk extract .*; or hsk pull GOOD_COPY "):
        open_store(sealed)
    made_again(sealed, plan)
    assert condemned_digest(Objects(sealed)) is None
    assert not (sealed / "condemned.json").exists()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"digest":"ab"}', b"\xff", b"\0" * 80])
def test_a_torn_note_of_the_condemned_digest_tells_nothing(sealed, data):
    (sealed / "condemned.json").write_bytes(data)
    assert condemned_digest(Objects(sealed)) is None


def test_condemning_again_changes_nothing(plan, sealed):
    digest = open_store(sealed).digest
    damage(sealed / SHARD, flipped)
    (sealed / "zarr.json").unlink()
    verify(str(sealed), deep=True, condemn=True)
    before = tree(sealed)
    verify(str(sealed), deep=True, condemn=True)
    assert tree(sealed) == before
    assert condemned_digest(Objects(sealed)) == digest
    assert made_again(sealed, plan) == digest


def test_condemning_more_before_the_seal_keeps_the_digest_of_the_seal_that_was(plan, sealed):
    digest = open_store(sealed).digest
    damage(sealed / SHARD, flipped)
    verify(str(sealed), deep=True, condemn=True)
    damage(sealed / "validation/label/c/0", flipped)
    found = verify(str(sealed), deep=True, condemn=True)
    assert found.condemned == ("units/validation-000000.json",)
    assert condemned_digest(Objects(sealed)) == digest
    assert made_again(sealed, plan) == digest


def test_without_a_deep_look_a_flipped_bit_is_not_condemned(sealed):
    damage(sealed / SHARD, flipped)
    before = tree(sealed)
    assert verify(str(sealed), condemn=True).condemned == ()
    assert tree(sealed) == before


@pytest.mark.parametrize("name", DAMAGE)
def test_where_the_plan_is_damaged_nothing_is_condemned(sealed, name):
    harm(sealed, "plan.json", name)
    damage(sealed / SHARD, flipped)
    (sealed / "zarr.json").unlink()
    before = tree(sealed)
    found = verify(str(sealed), deep=True, condemn=True)
    assert {key for key, _ in named(found)} == {"plan.json", SHARD, "zarr.json"}
    assert found.condemned == ()
    assert tree(sealed) == before


def test_a_damaged_plan_and_a_damaged_seal_leave_nothing_to_go_by(sealed):
    damage(sealed / "plan.json", flipped)
    damage(sealed / "manifest.json", flipped)
    before = tree(sealed)
    with pytest.raises(StoreError, match=r"/plan\.json cannot be read as a plan"):
        verify(str(sealed), deep=True, condemn=True)
    assert tree(sealed) == before


def test_other_files_in_the_folder_are_nobody_s_problem(sealed):
    (sealed / "notes").mkdir()
    (sealed / "notes" / "thesis.tex").write_bytes(b"years of work")
    (sealed / "train" / "note.txt").write_bytes(b"hello")
    damage(sealed / SHARD, flipped)
    assert named(verify(str(sealed), deep=True, condemn=True)) == [(SHARD, ("train", 1))]
    assert (sealed / "notes" / "thesis.tex").read_bytes() == b"years of work"
