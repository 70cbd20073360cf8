"""A store of a later version in the same format is read for what this version knows of it; one in a newer format is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.commit import Receipt, receipts
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.schema import canonical_json
from hskstore.store.shard import fingerprint
from hskstore.store.verify import verify
from tests.store.conftest import damage, flipped, forge, whole

SPEC = {"shape": [20, 4], "dtype": "bfloat16", "shard": 8, "chunk": 8, "codec": "wavelets", "fill": 0, "rotation": "hadamard"}
CLS = [f"train/later/values/c/{unit}/0" for unit in range(3)]
"""A feature that this version has never heard of."""


def later_plan(plan: Plan) -> dict[str, Any]:
    document = plan.as_json()
    document |= {"spans": {"by": "syntax"}, "licence": "CC0"}
    document["strategy"] |= {"spans": True}
    document["pass"] |= {"tensor_parallel": 2}
    document["hidden"] |= {"basis": "rotated"}
    document["hidden"]["layers"][0] |= {"head": 3}
    document["splits"]["train"] |= {"language": "en"}
    document["arrays"]["train/input_ids"] |= {"order": "C"}
    document["arrays"] |= {
        "train/later/values": SPEC,
        "train/hidden/basis": {"codec": "later"},
        "validation/later/values": SPEC,
    }
    return document


def later_documents(plan: Plan) -> dict[str, bytes]:
    root = json.loads(plan.documents()["zarr.json"])
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"layers": [6]}}
    array = {"zarr_format": 3, "node_type": "array", "data_type": "bfloat16", "codecs": [{"name": "wavelets"}]}
    root["consolidated_metadata"]["metadata"] |= {"train/cls": group, "train/later/values": array}
    root["attributes"]["hskstore"] |= {"written_by": "hskstore 9"}
    documents = {"zarr.json": root, "train/later/zarr.json": group, "train/later/values/zarr.json": array}
    return {key: canonical_json(document) for key, document in documents.items()}


@pytest.fixture
def later(plan, sealed) -> Path:
    shards = {key: f"something else: {key}".encode() for key in CLS}
    forge(
        sealed,
        {"plan.json": canonical_json(later_plan(plan)), **later_documents(plan), **shards, "CITATION.cff": b"cite us as follows"},
    )
    for (split, unit), receipt in receipts(Objects(sealed)).items():
        if split == "train":
            listed = {**receipt.objects, CLS[unit]: fingerprint(shards[CLS[unit]])}
            (sealed / receipt.key).write_bytes(Receipt(split, unit, receipt.rows, "later", listed, {"moon": "full"}).to_bytes())
    return sealed


def test_what_is_known_of_a_later_store_is_read(plan, later):
    store = open_store(later)
    assert store.plan == plan, "what is not known is passed over"
    assert not store.has("train/later/values")
    for path in plan.arrays:
        assert store.read_all(path).tobytes() == whole(plan, path).tobytes()
    assert store.row("train", 11).keys() == {path.removeprefix("train/") for path in plan.arrays_of("train")}
    assert store.read("train/hidden/values", 1, [1]).tobytes() == whole(plan, "train/hidden/values")[8:16, [1]].tobytes()


def test_what_is_not_known_is_counted_and_kept_under_the_digest(plan, later, sealed_once):
    store = open_store(later)
    assert store.sizes().keys() >= {*CLS, "CITATION.cff", "train/later/zarr.json"}
    assert store.digest != open_store(sealed_once).digest
    assert store.file(CLS[0]) == f"something else: {CLS[0]}".encode()


def test_a_later_store_is_verified_whole_what_is_not_known_included(later):
    assert verify(str(later), deep=True).problems == ()
    for key in (CLS[1], "train/later/zarr.json", "CITATION.cff"):
        before = (later / key).read_bytes()
        damage(later / key, flipped)
        assert [problem.key for problem in verify(str(later), deep=True).problems] == [key]
        (later / key).unlink()
        assert [problem.key for problem in verify(str(later)).problems] == [key]
        with pytest.raises(StoreError, match=rf"/{key} is missing"):
            open_store(later)
        (later / key).write_bytes(before)


@pytest.mark.parametrize("values", ["train/hidden/values", "train/input_ids"])
def test_a_later_root_document_must_still_describe_what_is_known(plan, later, values):
    root = json.loads(later_documents(plan)["zarr.json"])
    root["consolidated_metadata"]["metadata"][values]["shape"][0] = 19
    forge(later, {"zarr.json": canonical_json(root)})
    with pytest.raises(StoreError, match=r"/zarr\.json does not describe the planned arrays"):
        open_store(later)
    del root["consolidated_metadata"]["metadata"][values]
    forge(later, {"zarr.json": canonical_json(root)})
    with pytest.raises(StoreError, match=r"/zarr\.json does not describe the planned arrays"):
        open_store(later)


def test_plain_zarr_reads_what_it_knows_of_a_later_store_too(plan, later):
    array = zarr.open_array(later / "train" / "hidden" / "values", mode="r")
    np.testing.assert_array_equal(array[:], whole(plan, "train/hidden/values"))


@pytest.mark.parametrize("sealed_too", [True, False])
@pytest.mark.parametrize("look", [open_store, lambda root: verify(str(root)), lambda root: verify(str(root), condemn=True)])
def test_a_store_of_a_newer_format_asks_for_an_upgrade_and_is_left_alone(plan, later, look, sealed_too):
    forge(later, {"plan.json": canonical_json({**later_plan(plan), "version": 4, "arrays": "otherwise"})})
    if not sealed_too:
        (later / "manifest.json").unlink()
    with pytest.raises(StoreError, match=rf"^{later} is a store of format version 4; this hskstore reads up to 3: upgrade it$"):
        look(later)
