"""Units become the bytes that Zarr itself would have written, and come back from them."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from zarr.storage import LocalStore

from hskstore.errors import StoreError
from hskstore.store import encode
from hskstore.store.encode import decode_shard, encode_shard, encode_unit
from hskstore.store.schema import ArraySpec, array_document, canonical_json
from hskstore.store.shard import BLOSC_HEADER, ZSTD_MAGIC, index_bytes
from tests.store.conftest import flipped, forged_shard, make_plan, random_columns, whole


def written_by_zarr(folder, spec: ArraySpec, rows: np.ndarray) -> dict[str, bytes]:
    """The objects of a direct write of the whole array."""
    folder.mkdir(parents=True)
    (folder / "zarr.json").write_bytes(canonical_json(array_document(spec)))
    array = zarr.open_array(store=LocalStore(folder), mode="r+", zarr_format=3)
    array.with_config({"write_empty_chunks": True})[...] = rows
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (folder / "c").rglob("*") if path.is_file()}


@pytest.mark.parametrize("values", ["f16", "f32", "q8", "q4", "rq4"])
def test_keys_and_bytes_are_those_of_a_direct_zarr_write_also_for_the_last_short_shard(values, tmp_path):
    plan = make_plan(values)
    made = {(split, unit): encode_unit(plan, split, unit, random_columns(plan, split, unit)) for split, unit in plan.units()}
    for path, spec in plan.arrays.items():
        assert spec.shape[0] % spec.shard != 0
        split = path.partition("/")[0]
        direct = written_by_zarr(tmp_path / path, spec, whole(plan, path))
        units = [number for name, number in made if name == split]
        assert {f"{path}/{key}": blob for key, blob in direct.items()} == {
            spec.key(path, unit): made[split, unit][spec.key(path, unit)] for unit in units
        }


def test_keys_and_bytes_are_zarr_s_with_many_chunks_a_shard_and_chunks_of_nothing_but_fill(tmp_path):
    spec = ArraySpec(shape=(21, 3, 2, 4), dtype="float16", shard=8, chunk=2, codec="values", fill="NaN")
    rows = np.random.default_rng(0).normal(size=spec.shape).astype(np.float16)
    rows[8:16] = np.nan
    rows[18:] = np.nan
    direct = written_by_zarr(tmp_path / "array", spec, rows)
    assert direct == {spec.key("", unit)[1:]: encode_shard(spec, unit, rows[spec.rows(unit)]) for unit in range(3)}


DTYPES = ["int8", "uint8", "int16", "int32", "int64", "float16", "float32"]


@st.composite
def units(draw):
    """A spec, one of its units, and that unit's rows: any bits at all, or the fill value throughout."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    inner = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    shard = draw(st.sampled_from([1, 4, 8]))
    chunk = draw(st.sampled_from([size for size in (1, 2, 4, 8) if size <= shard]))
    rows = draw(st.integers(1, 3 * shard))
    fill = "NaN" if dtype.kind == "f" else draw(st.sampled_from([0, 7, int(np.iinfo(dtype).max)]))
    codec = draw(st.sampled_from(["values", "mask", "packed"] if inner else ["values", "packed"]))
    spec = ArraySpec((rows, *inner), dtype.name, shard, chunk, codec, fill)
    unit = draw(st.integers(0, (rows - 1) // shard))
    shape = (len(spec.rows(unit)), *inner)
    if draw(st.booleans()):
        return spec, unit, np.full(shape, np.nan if fill == "NaN" else fill, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return spec, unit, np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@settings(max_examples=120, deadline=None)
@given(units())
def test_any_rows_come_back_bit_by_bit(case):
    spec, unit, column = case
    decoded = decode_shard(spec, unit, encode_shard(spec, unit, column))
    assert (decoded.dtype, decoded.shape) == (column.dtype, column.shape)
    assert decoded.tobytes() == column.tobytes()


@pytest.mark.parametrize(
    ("axes", "inner"),
    [
        (("layer", "token", "width"), (3, 5, 2)),
        (("layer", "token"), (3, 5)),
        (("layer",), (3,)),
        (("token", "width"), (5, 2)),
        (("token",), (5,)),
    ],
)
def test_rows_apart_each_of_its_own_length_are_the_array_with_zeros_behind_them(axes, inner):
    spec = ArraySpec((11, *inner), "float16", 8, 2, "values", "NaN", axes)
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 6, 8)
    whole = draw.normal(size=(8, *inner)).astype(np.float16)
    rows = list(whole)
    if "token" in axes:
        place = axes.index("token")
        rows = [row[(slice(None),) * place + (slice(length),)] for row, length in zip(rows, lengths, strict=True)]
        for row, length in zip(whole, lengths, strict=True):
            row[(slice(None),) * place + (slice(length, None),)] = 0
    for unit in range(2):
        some = len(spec.rows(unit))
        assert encode_shard(spec, unit, rows[:some]) == encode_shard(spec, unit, whole[:some])


def test_a_chunk_that_equals_the_fill_value_is_written_all_the_same():
    spec = ArraySpec(shape=(8,), dtype="int32", shard=8, chunk=2, codec="packed", fill=-1)
    blob = encode_shard(spec, 0, np.full(8, -1, np.int32))
    # The index ends the shard: (offset, length) of 4 chunks and a crc32c. Zarr marks an absent chunk with the largest offset.
    index = np.frombuffer(blob[-4 - 4 * 16 : -4], "<u8").reshape(4, 2)
    assert (index[:, 0] < len(blob)).all()


def test_bytes_do_not_depend_on_the_attempt_or_the_thread():
    spec = ArraySpec(shape=(512, 1, 9, 77), dtype="float16", shard=512, chunk=256, codec="values", fill="NaN")
    column = np.random.default_rng(0).normal(size=spec.shape).astype(np.float16)
    blobs = {encode_shard(spec, 0, column) for _ in range(3)}
    thread = threading.Thread(target=lambda: blobs.add(encode_shard(spec, 0, column)))
    thread.start()
    thread.join()
    assert len(blobs) == 1


def test_a_row_order_in_memory_makes_no_difference():
    spec = ArraySpec(shape=(4, 3), dtype="int32", shard=4, chunk=2, codec="packed", fill=-1)
    column = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert encode_shard(spec, 0, np.asfortranarray(column)) == encode_shard(spec, 0, column)


@pytest.mark.parametrize("path", ["train/input_ids", "train/hidden/values"])
def test_a_truncated_shard_does_not_decode(plan, path):
    spec = plan.arrays[path]
    blob = encode_shard(spec, 0, random_columns(plan, "train", 0)[path])
    for size in range(len(blob)):
        with pytest.raises(ValueError, match=r"index|checksum"):
            decode_shard(spec, 0, blob[:size])


@pytest.mark.parametrize("path", ["train/input_ids", "train/hidden/mask"])
def test_a_chunk_with_a_flipped_bit_does_not_decode(plan, path):
    spec = plan.arrays[path]
    blob = encode_shard(spec, 0, random_columns(plan, "train", 0)[path])
    for byte in range(len(blob) - index_bytes(spec)):
        with pytest.raises(ValueError, match=r"checksum|header|would decode to|does not say|is not one frame"):
            decode_shard(spec, 0, flipped(blob, 8 * byte + byte % 8))


ZSTD_BLOCK = (40 << 3 | 2 << 1 | 1).to_bytes(3, "little")
"""The header of a frame's last block: 40 bytes, compressed."""


def blosc_header(decoded: int, encoded: int) -> bytes:
    return BLOSC_HEADER.pack(2, 1, 0x10, 4, decoded, decoded, encoded)


@pytest.mark.parametrize(
    ("codec", "content", "message"),
    [
        ("values", b"", "its index leads out of it"),
        ("packed", b"", "its index leads out of it"),
        ("values", b"no compressed stream begins like this one", "header does not agree with its size"),
        ("packed", b"no compressed stream begins like this one", "a chunk has no header"),
        ("values", blosc_header(16, 16 + 40) + b"\xff" * 40, "(?i)decompression"),
        ("packed", ZSTD_MAGIC.to_bytes(4, "little") + b"\x20\x10" + ZSTD_BLOCK + b"\xff" * 40, "(?i)decompression"),
    ],
    ids=["no blosc", "no zstd", "a text for blosc", "a text for zstd", "blosc of nonsense", "zstd of nonsense"],
)
def test_a_shard_with_right_checksums_and_wrong_content_is_damaged_not_a_crash(codec, content, message):
    spec = ArraySpec(shape=(4,), dtype="int32", shard=4, chunk=4, codec=codec, fill=-1)
    with pytest.raises(ValueError, match=message):
        decode_shard(spec, 0, forged_shard(spec, [content]))


# --- units


def test_a_unit_has_every_array_of_its_split_and_no_other(plan):
    blobs = encode_unit(plan, "train", 2, random_columns(plan, "train", 2))
    assert blobs.keys() == {spec.key(path, 2) for path, spec in plan.arrays_of("train").items()}


def test_missing_and_additional_columns_are_a_defect(plan):
    columns = random_columns(plan, "train", 0)
    with pytest.raises(AssertionError, match="train/label"):
        encode_unit(plan, "train", 0, {path: column for path, column in columns.items() if path != "train/label"})
    with pytest.raises(AssertionError, match="train/extra"):
        encode_unit(plan, "train", 0, {**columns, "train/extra": columns["train/label"]})


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c.astype(np.int64), lambda c: c[:, :-1], lambda c: c.astype(">i4")]
)
def test_a_column_of_another_shape_or_dtype_is_a_defect(plan, change):
    columns = random_columns(plan, "train", 0)
    with pytest.raises(AssertionError):
        encode_unit(plan, "train", 0, {**columns, "train/input_ids": change(columns["train/input_ids"])})


def test_bytes_that_do_not_decode_to_what_was_encoded_are_never_handed_out(plan, monkeypatch):
    class OffByOne(Zstd):
        def encode(self, buf):
            return super().encode(np.asarray(buf) + np.ones((), buf.dtype))

    monkeypatch.setattr(encode, "Zstd", OffByOne)
    with pytest.raises(StoreError, match=r"^train/\w+, unit 1: the encoded bytes do not decode to what was encoded"):
        encode_unit(plan, "train", 1, random_columns(plan, "train", 1))


def test_negative_zero_and_the_bits_of_a_nan_are_data():
    spec = ArraySpec(shape=(4,), dtype="float32", shard=4, chunk=4, codec="packed", fill="NaN")
    column = np.array([0x80000000, 0x7FC00001, 0xFFC00000, 0], np.uint32).view(np.float32)
    plan = make_plan()
    plan = replace(plan, arrays={"train/x": spec})
    (blob,) = encode_unit(plan, "train", 0, {"train/x": column}).values()
    assert decode_shard(spec, 0, blob).tobytes() == column.tobytes()
