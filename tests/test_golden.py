"""Stores of every format version that was ever released: they open, and read to the same numbers, for good."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hskstore.config import Keep
from hskstore.store import Store, open_store
from hskstore.store.derive import Derived, derive
from hskstore.store.schema import FORMAT_VERSION
from hskstore.store.verify import verify
from tests.golden import make

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, dict[str, Any]] = {
    version.name: json.loads((version / "expected.json").read_text()) for version in sorted(GOLDEN.glob("v*"))
}
STORES = [(version, name) for version, stores in EXPECTED.items() for name in sorted(stores)]


def test_every_format_version_has_its_golden_stores() -> None:
    assert EXPECTED.keys() == make.STORES.keys() == {f"v{number}" for number in range(1, FORMAT_VERSION + 1)}
    for version, stores in EXPECTED.items():
        assert stores.keys() == make.STORES[version].keys()
        assert {open_store(GOLDEN / version / name).plan.version for name in stores} == {int(version[1:])}


@pytest.mark.parametrize(("version", "name"), STORES)
def test_a_golden_store_opens_under_its_digest_and_is_whole(version: str, name: str) -> None:
    root = GOLDEN / version / name
    assert open_store(root).digest == EXPECTED[version][name]["digest"]
    found = verify(str(root), deep=True)
    assert not found.problems and found.units_done == found.units == (4 if version == "v3" else 3)


def cut(store: Store, out: Path, keep: Keep | None = None) -> Derived:
    """All that a store holds, but of `hidden` the configuration `keep` if one is given."""
    hidden = store.plan.hidden
    layers = {name: feature.layers for name, feature in store.plan.features.items() if name != "hidden"}
    return derive(store.root, out, keep=None if hidden is None else keep or hidden.keep, layers=layers)


@pytest.mark.parametrize(("version", "name"), STORES)
def test_a_golden_plan_is_still_written_as_it_was(version: str, name: str, tmp_path: Path) -> None:
    """By a plan that is read, and by one that is made anew: what was added since stands only in plans that ask for it."""
    store = open_store(GOLDEN / version / name)
    before = (GOLDEN / version / name / "plan.json").read_bytes()
    assert store.plan.to_bytes() == before
    cut(store, tmp_path / "same")
    assert (tmp_path / "same" / "plan.json").read_bytes() == before


@pytest.mark.parametrize(("version", "name"), STORES)
def test_the_rows_of_a_golden_store_are_what_they_were(version: str, name: str) -> None:
    store = open_store(GOLDEN / version / name)
    for place, row in EXPECTED[version][name]["rows"].items():
        split, number = place.split()
        found = store.row(split, int(number))
        assert found.keys() == row.keys()
        for array, numbers in row.items():
            np.testing.assert_array_equal(found[array], np.array(numbers), err_msg=f"{place} {array}")


@pytest.mark.parametrize(("version", "name"), STORES)
def test_plain_zarr_reads_a_golden_store_to_the_same_arrays(version: str, name: str) -> None:
    store = open_store(GOLDEN / version / name)
    group: Any = zarr.open_group(GOLDEN / version / name, mode="r")
    for path in store.plan.arrays:
        np.testing.assert_array_equal(group[path][:], store.read_all(path))


def test_a_golden_store_can_be_cut(tmp_path: Path) -> None:
    for version, name in STORES:
        store = open_store(shutil.copytree(GOLDEN / version / name, tmp_path / version / name))
        hidden = store.plan.hidden
        width = 0.125 if hidden is None else {"q8": 0.25, "q4": 0.25, "rq4": 1.0}.get(hidden.values, 0.125)
        made = cut(store, tmp_path / f"{version}-{name}", Keep(1, 2, width))
        row, smaller = store.row("train", 3), open_store(made.root).row("train", 3)
        if hidden is not None:
            np.testing.assert_array_equal(smaller["hidden/token"][0], row["hidden/token"][1][:2])
        else:
            assert made.digest == store.digest


def test_a_golden_store_that_kept_its_text_has_every_token_in_it() -> None:
    for version, name in (("v1", "text"), ("v2", "q8")):
        row = open_store(GOLDEN / version / name).row("train", 0)
        text = row["text"][: row["n_bytes"].sum()].tobytes().decode()
        words = [text[start:stop] for start, stop in row["offsets"][: row["n_tokens"]] if stop > start]
        assert words == text.split() and len(words) == row["n_tokens"] - 2
