"""Stores of every format version that was ever released: they open, and read to the same numbers, for good."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hskstore.config import Keep
from hskstore.store import open_store
from hskstore.store.derive import derive
from hskstore.store.verify import verify

GOLDEN = Path(__file__).parent / "golden"
STORES = [(version.name, values) for version in sorted(GOLDEN.glob("v*")) for values in ("f16", "q4")]


def expected(version: str, values: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / version / "expected.json").read_text())[values]
    return found


def test_every_format_version_has_its_golden_stores() -> None:
    from hskstore.store.schema import FORMAT_VERSION

    assert {version for version, _ in STORES} == {f"v{number}" for number in range(1, FORMAT_VERSION + 1)}


@pytest.mark.parametrize(("version", "values"), STORES)
def test_a_golden_store_opens_under_its_digest_and_is_whole(version: str, values: str) -> None:
    root = GOLDEN / version / values
    assert open_store(root).digest == expected(version, values)["digest"]
    found = verify(str(root), deep=True)
    assert not found.problems and found.units_done == found.units == 3


@pytest.mark.parametrize(("version", "values"), STORES)
def test_a_golden_plan_is_still_written_as_it_was(version: str, values: str, tmp_path: Path) -> None:
    """By a plan that is read, and by one that is made anew: what was added since stands only in plans that ask for it."""
    store = open_store(GOLDEN / version / values)
    before = (GOLDEN / version / values / "plan.json").read_bytes()
    assert store.plan.to_bytes() == before
    derive(store.root, store.plan.keep, tmp_path / "same")
    assert (tmp_path / "same" / "plan.json").read_bytes() == before


@pytest.mark.parametrize(("version", "values"), STORES)
def test_the_rows_of_a_golden_store_are_what_they_were(version: str, values: str) -> None:
    store = open_store(GOLDEN / version / values)
    for name, row in expected(version, values)["rows"].items():
        split, number = name.split()
        found = store.row(split, int(number))
        assert found.keys() == row.keys()
        for array, numbers in row.items():
            np.testing.assert_array_equal(found[array], np.array(numbers), err_msg=f"{name} {array}")


@pytest.mark.parametrize(("version", "values"), STORES)
def test_plain_zarr_reads_a_golden_store_to_the_same_arrays(version: str, values: str) -> None:
    store = open_store(GOLDEN / version / values)
    group: Any = zarr.open_group(GOLDEN / version / values, mode="r")
    for path in store.plan.arrays:
        np.testing.assert_array_equal(group[path][:], store.read_all(path))


def test_a_golden_store_can_be_cut(tmp_path: Path) -> None:
    for version, values in STORES:
        root = Path(shutil.copytree(GOLDEN / version / values, tmp_path / version / values))
        keep = Keep(1, 2, 0.125) if values == "f16" else Keep(1, 2, 0.25)
        made = derive(root, keep, tmp_path / f"{version}-{values}")
        row, cut = open_store(root).row("train", 3), open_store(made.root).row("train", 3)
        np.testing.assert_array_equal(cut["hidden/token"][0], row["hidden/token"][1][:2])
