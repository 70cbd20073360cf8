"""What lies on disk reads like what lies in memory, leaves nothing behind, and says when there is no room for it."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.errors import DataError
from hskstore.text.dataset import read_dataset
from hskstore.text.spool import SLICE, ArrayFile, Column, in_slices, joined, open_array, spool_text
from tests.test_data import write

values = st.lists(st.text(max_size=3), max_size=12)
bounds = st.none() | st.integers(-15, 15)


def column(held: list[str]) -> Column[str]:
    return Column(len(held), lambda start, stop: held[start:stop])


@given(held=values, start=bounds, stop=bounds, step=st.sampled_from([None, 1, 2, -1, -3]))
def test_a_column_is_indexed_as_a_list_is(held: list[str], start: int | None, stop: int | None, step: int | None) -> None:
    assert column(held)[start:stop:step] == held[start:stop:step]
    assert [column(held)[i] for i in range(-len(held), len(held))] == held + held
    assert (list(column(held)), list(reversed(column(held)))) == (held, held[::-1])
    for outside in (len(held), -len(held) - 1):
        with pytest.raises(IndexError):
            column(held)[outside]


@given(one=values, other=values)
def test_a_column_equals_a_sequence_of_the_same_values(one: list[str], other: list[str]) -> None:
    assert (column(one) == other) == (column(one) == column(other)) == (one == other)
    assert column(one) != 3


@given(parts=st.lists(values, max_size=4), start=bounds, stop=bounds)
def test_joined_columns_read_as_one(parts: list[list[str]], start: int | None, stop: int | None) -> None:
    whole = [value for part in parts for value in part]
    assert joined([column(part) for part in parts])[start:stop] == whole[start:stop]


def test_text_is_read_back_from_disk_in_blocks_of_any_size() -> None:
    rows = [(f"row {i}", "x" * (i % 700), "left out") for i in range(2 * SLICE + 5)]
    first, second = spool_text(rows, 2)
    assert (first, second) == ([row[0] for row in rows], [row[1] for row in rows])
    assert [(start, len(block)) for start, block in in_slices(first)] == [(0, SLICE), (SLICE, SLICE), (2 * SLICE, 5)]
    assert first[SLICE - 2 : SLICE + 2] == [row[0] for row in rows[SLICE - 2 : SLICE + 2]]
    assert spool_text([], 2) == ([], [])


@given(parts=st.lists(st.integers(0, 5), max_size=4), named=st.booleans())
def test_an_array_in_a_file_is_what_was_appended(parts: list[int], named: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array" if named else None
        arrays = [np.arange(2 * n, dtype=np.int64).reshape(n, 2) for n in parts]
        file = ArrayFile(np.int32, (2,), path)
        for array in arrays:
            file.append(array)
        found = file.done()
        expected = np.concatenate([np.zeros((0, 2), dtype=np.int32), *arrays]).astype(np.int32)
        np.testing.assert_array_equal(found, expected)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if path is not None:
            np.testing.assert_array_equal(open_array(path, found.dtype, found.shape), expected)


def test_nothing_is_left_in_the_temporary_folder_not_even_while_it_is_read(tmp_path, monkeypatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = write(tmp_path / "a.tsv", "s\ty\n" + "a\t1\na\t0\n" * 5)
    dataset = read_dataset(path, text=["s"], label="y", validation="0.5")
    assert list(dataset.splits["train"].text[0]) == ["a"] * 5
    with pytest.raises(DataError, match="line 3"):
        read_dataset(write(tmp_path / "b.tsv", "s\ty\na\t1\nb\n"), text=["s"], label="y", validation="0.5")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet", "a.parquet.gz"])
def test_a_full_disk_names_the_temporary_folder_and_how_to_choose_another(tmp_path, monkeypatch, name) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    if ".parquet" in name:
        import gzip

        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"s": ["a"], "y": ["1"]}), tmp_path / "a.parquet")
        (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
        path = str(tmp_path / name)
    else:
        content = {"a.tsv": "s\ty\na\t1\n", "a.csv": "s,y\na,1\n", "a.jsonl": '{"s": "a", "y": "1"}\n'}[name]
        path = write(tmp_path / name, content)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b", 2**16))
    with pytest.raises(DataError, match=rf"cannot write to the folder {tempfile.gettempdir()}: No space left.*TMPDIR"):
        read_dataset(path, text=["s"], label="y", splits=("train",))


def test_without_a_temporary_folder_one_is_asked_for(tmp_path, monkeypatch) -> None:
    def missing() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", missing)
    with pytest.raises(DataError, match="no temporary folder that can be written: name one with TMPDIR"):
        read_dataset(write(tmp_path / "a.tsv", "s\na\n"), text=["s"], splits=("train",))
