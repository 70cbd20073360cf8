"""One unit's arrays to shard objects and back. Pure: bytes in, bytes out, nothing touches a disk.

A unit is written through the full-shape array's own metadata into memory and the shard's bytes are lifted out: the key
and the bytes are those of a direct write, without Zarr's read-modify-write of shards.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from hskstore.errors import StoreError
from hskstore.store.plan import Plan
from hskstore.store.schema import ArraySpec, array_document


def encode_unit(plan: Plan, split: str, unit: int, columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Every array of one unit as {key: shard bytes}, each decoded back and compared before it is returned.

    `columns` maps array paths to [rows of the unit, ...], exactly those that the plan lists for the split.
    """
    specs = plan.arrays_of(split)
    assert columns.keys() == specs.keys(), sorted(columns.keys() ^ specs.keys())
    blobs: dict[str, bytes] = {}
    for path, spec in specs.items():
        column = columns[path]
        blob = encode_shard(spec, unit, column)
        if not _same_bytes(decode_shard(spec, unit, blob), column):
            raise StoreError(f"{path}, unit {unit}: the encoded bytes do not decode to what was encoded; nothing was written")
        blobs[spec.key(path, unit)] = blob
    return blobs


def encode_shard(spec: ArraySpec, unit: int, column: np.ndarray) -> bytes:
    """One array of one unit [rows of the unit, ...] as its shard's bytes."""
    rows = spec.rows(unit)
    expected = (len(rows), *spec.shape[1:])
    assert column.shape == expected and column.dtype == np.dtype(spec.dtype), (column.shape, expected, column.dtype)
    objects: dict[str, Any] = {}
    array = _in_memory(spec, objects)
    array[rows.start : rows.stop] = column
    return bytes(objects[spec.key("", unit).lstrip("/")].to_bytes())


def decode_shard(spec: ArraySpec, unit: int, blob: bytes) -> np.ndarray:
    """One array of one unit [rows of the unit, ...] from its shard's bytes. Raises ValueError where they are damaged."""
    rows = spec.rows(unit)
    array = _in_memory(spec, {spec.key("", unit).lstrip("/"): Buffer.from_bytes(blob)})
    try:
        return np.asarray(array[rows.start : rows.stop])
    except (RuntimeError, MemoryError) as error:  # what numcodecs raises where a checksum is right and its content is not
        raise ValueError(str(error) or "it asks for more memory than there is") from None


def _in_memory(spec: ArraySpec, objects: dict[str, Any]) -> Any:
    objects["zarr.json"] = Buffer.from_bytes(json.dumps(array_document(spec)).encode())
    # A chunk that equals the fill value is written like any other: an absent chunk then always means damage.
    # `open_array` ignores its own `config` where the array exists (zarr-python#2931).
    array = zarr.open_array(store=MemoryStore(objects), mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def _same_bytes(decoded: np.ndarray, column: np.ndarray) -> bool:
    return decoded.tobytes() == np.ascontiguousarray(column).tobytes()
