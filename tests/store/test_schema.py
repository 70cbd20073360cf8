"""The grid of a store is bounded, and its documents are plain Zarr v3."""

import math
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from hskstore.store.schema import (
    CHUNK_BYTES,
    MAX_UNIT_ROWS,
    SHARD_BYTES,
    array_document,
    array_spec,
    canonical_json,
    checked,
    hierarchy,
    power_of_two_below,
    unit_rows,
    with_check,
)
from tests.store.conftest import make_plan, whole


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@given(st.integers(-5, 2**70))
def test_the_power_of_two_below_is_the_largest_that_fits(number):
    power = power_of_two_below(number)
    assert is_power_of_two(power)
    assert power <= max(1, number) < 2 * power


@given(st.integers(0, 2**40), st.integers(0, 10**9))
def test_a_unit_is_a_power_of_two_of_rows_that_fit_a_shard(bytes_per_row, rows):
    unit = unit_rows(bytes_per_row, rows)
    assert is_power_of_two(unit)
    assert unit <= MAX_UNIT_ROWS
    assert unit == 1 or unit * bytes_per_row <= SHARD_BYTES
    assert unit <= max(512, rows // 16)


@pytest.mark.parametrize(
    ("bytes_per_row", "rows", "unit"),
    [
        (693, 392_702, 8192),  # MNLI at (1,9,0.1): by the absolute bound
        (64 * 2**10, 392_702, 1024),  # by the shard's 64 MiB
        (64 * 2**10 + 1, 392_702, 512),
        (100, 67_349, 4096),  # SST-2: a 16th is 4209 rows
        (100, 2_490, 512),  # RTE: a block at least
        (2**30, 10**6, 1),  # a row that is larger than a shard should be
    ],
)
def test_a_unit_has_the_rows_worked_out_by_hand(bytes_per_row, rows, unit):
    assert unit_rows(bytes_per_row, rows) == unit


inner_shapes = st.lists(st.integers(1, 3000), max_size=3).map(tuple)


@given(inner_shapes, st.sampled_from(["uint8", "float16", "int64"]), st.integers(0, 13).map(lambda power: 2**power))
def test_chunks_divide_their_shard_and_hold_half_a_mebibyte_at_most(inner, dtype, shard):
    spec = array_spec(10**5, inner, dtype, shard=shard, fill=0)
    assert shard % spec.chunk == 0
    assert spec.shard_shape[1:] == inner
    assert spec.chunk_shape == ((spec.chunk, 1, *inner[1:]) if len(inner) == 3 else (spec.chunk, *inner))
    assert spec.chunk == 1 or math.prod(spec.chunk_shape) * np.dtype(dtype).itemsize <= CHUNK_BYTES
    assert spec.shard_bytes == shard * math.prod(inner) * np.dtype(dtype).itemsize


def test_units_cover_every_row_once():
    spec = array_spec(20, (3,), "int32", shard=8, fill=-1)
    assert [list(spec.rows(unit)) for unit in range(3)] == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_a_shard_s_key_is_zarr_s_default_one():
    assert array_spec(20, (2, 3, 4), "int8", shard=8, fill=0).key("train/hidden/values", 2) == "train/hidden/values/c/2/0/0/0"
    assert array_spec(20, (), "int8", shard=8, fill=0).key("train/n_tokens", 0) == "train/n_tokens/c/0"


@given(inner_shapes, st.sampled_from(["uint8", "float16", "int64"]), st.integers(0, 13).map(lambda power: 2**power))
def test_the_chunks_of_a_shard_are_all_of_it(inner, dtype, shard):
    spec = array_spec(10**5, inner, dtype, shard=shard, fill=0)
    assert spec.layers == (inner[0] if len(inner) == 3 else 1)
    assert spec.chunks_per_shard * spec.chunk_bytes == spec.shard_bytes


# --- a checksum of its own


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4).filter(lambda d: "check" not in d))
def test_a_document_comes_back_from_its_checked_bytes_and_from_no_others(document):
    data = with_check(document)
    assert checked(data) == document
    for other in (data + b" ", data[:-1], canonical_json(document), canonical_json({**document, "check": "0" * 64})):
        with pytest.raises(ValueError, match=r"checksum|delimiter|Expecting|Unterminated"):
            checked(other)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"7", b"{", b"\xff", b'{"check":"x"}'])
def test_bytes_that_carry_no_checksum_of_their_own_are_refused(data):
    with pytest.raises(ValueError, match=r"checksum|JSON object|Expecting|codec"):
        checked(data)


# --- documents


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("values", ["f16", "f32", "q8", "q4", "rq4"])
def test_plain_zarr_opens_the_documents(values, consolidated, tmp_path):
    plan = make_plan(values)
    for key, document in plan.documents().items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(document)
    group = zarr.open_group(tmp_path, mode="r", use_consolidated=consolidated)
    assert (group.metadata.consolidated_metadata is not None) == consolidated
    assert group.attrs["hskstore"] == {"version": 3 if values == "rq4" else 1}
    assert dict(group["train/hidden"].attrs) == {
        "teacher_layers": [3, 5],
        "rank_layers": [4, 6],
        "student_layers": [2, 3],
        "hidden_size": 20,
        "width": 20 if values == "rq4" else 5,
        "values": values,
    }
    found = {path: array for path, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
    assert found.keys() == plan.arrays.keys()
    for path, spec in plan.arrays.items():
        array = found[path]
        assert (array.shape, array.dtype) == (spec.shape, np.dtype(spec.dtype))
        assert (array.shards, array.chunks) == (spec.shard_shape, spec.chunk_shape)
        fill = np.asarray(array.fill_value)
        assert np.array_equal(fill, np.asarray(spec.fill, dtype=spec.dtype), equal_nan=spec.fill == "NaN")


@pytest.mark.parametrize("consolidated", [True, False])
def test_plain_zarr_reads_every_row_of_a_store_on_disk(plan, sealed_once, consolidated):
    group = zarr.open_group(sealed_once, mode="r", use_consolidated=consolidated)
    for path in plan.arrays:
        np.testing.assert_array_equal(group[path][:], whole(plan, path))


def test_every_array_is_sharded_and_checksummed_by_core_codecs():
    core = {"sharding_indexed", "bytes", "blosc", "zstd", "crc32c"}
    for spec in make_plan().arrays.values():
        (sharding,) = array_document(spec)["codecs"]
        inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
        index = [codec["name"] for codec in sharding["configuration"]["index_codecs"]]
        assert {sharding["name"], *inner, *index} <= core
        assert (inner[-1], index[-1]) == ("crc32c", "crc32c")


def test_layers_are_chunked_one_by_one(plan):
    assert plan.arrays["train/hidden/values"].chunk_shape == (8, 1, 3, 5)


def test_documents_are_a_function_of_the_arrays_whatever_their_order(plan):
    backwards = dict(reversed(plan.arrays.items()))
    assert hierarchy(backwards, {}) == hierarchy(plan.arrays, {})
    assert replace(plan, arrays=backwards).documents() == plan.documents()


def test_canonical_json_has_one_form_and_no_nan():
    assert canonical_json({"b": [1, 2], "a": "ä"}) == b'{"a":"\\u00e4","b":[1,2]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})
