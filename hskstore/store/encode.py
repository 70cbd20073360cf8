"""One unit's arrays to shard objects and back. Pure: bytes in, bytes out, nothing touches a disk.

A unit is written through the full-shape array's own metadata into memory and the shard's bytes are lifted out: the key
and the bytes are those of a direct write, without Zarr's read-modify-write of shards. It is read chunk by chunk, so that
no chunk is decoded before its header was believed, and layers can be read alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from google_crc32c import value as crc32c
from jaxtyping import Shaped
from numcodecs import blosc, zstd
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from hskstore.errors import StoreError
from hskstore.store.layout import Columns
from hskstore.store.plan import Plan
from hskstore.store.schema import ArraySpec, array_document, chunk_codecs
from hskstore.store.shard import CRC_BYTES, check_chunk, ranges_of, take_chunks


def encode_unit(plan: Plan, split: str, unit: int, columns: Columns) -> dict[str, bytes]:
    """Every array of one unit as {key: shard bytes}, each decoded back and compared before it is returned.

    `columns` maps array paths to [rows of the unit, ...], exactly those that the plan lists for the split.
    """
    specs = plan.arrays_of(split)
    assert columns.keys() == specs.keys(), sorted(columns.keys() ^ specs.keys())
    blobs: dict[str, bytes] = {}
    for path, spec in specs.items():
        column = columns[path]
        blob = encode_shard(spec, unit, column)
        if not _decodes_to(spec, unit, blob, column):
            raise StoreError(f"{path}, unit {unit}: the encoded bytes do not decode to what was encoded; nothing was written")
        blobs[spec.key(path, unit)] = blob
    return blobs


def encode_shard(spec: ArraySpec, unit: int, column: Shaped[np.ndarray, "row ..."]) -> bytes:
    """One array of one unit [rows of the unit, ...] as its shard's bytes."""
    rows = spec.rows(unit)
    expected = (len(rows), *spec.shape[1:])
    assert column.shape == expected and column.dtype == np.dtype(spec.dtype), (column.shape, expected, column.dtype)
    objects: dict[str, Any] = {}
    # A chunk that equals the fill value is written like any other: an absent chunk then always means damage.
    # `open_array` ignores its own `config` where the array exists (zarr-python#2931).
    array = _in_memory(array_document(spec), objects).with_config({"write_empty_chunks": True})
    array[rows.start : rows.stop] = column
    return bytes(objects[spec.key("", unit).lstrip("/")].to_bytes())


def decode_shard(spec: ArraySpec, unit: int, blob: bytes) -> Shaped[np.ndarray, "row ..."]:
    """One array of one unit [rows of the unit, ...] from its shard's bytes. Raises ValueError where they are damaged."""
    return decode_layers(spec, unit, [take_chunks(blob, layer) for layer in ranges_of(spec, unit, blob)])


def decode_layers(spec: ArraySpec, unit: int, layers: Sequence[Sequence[bytes]]) -> Shaped[np.ndarray, "row ..."]:
    """Some layers of one unit [rows of the unit, layers, ...] from their chunks; an array without layers has one list of them.

    Raises ValueError where a chunk is damaged, or claims to decode to anything but a chunk.
    """
    objects: dict[str, Any] = {}
    tail = ["0" for _ in spec.shape[2 if spec.layered else 1 :]]
    for layer, chunks in enumerate(layers):
        for run, chunk in enumerate(chunks):
            check_chunk(spec, chunk)
            objects["/".join(["c", str(run), *([str(layer)] if spec.layered else []), *tail])] = Buffer.from_bytes(chunk)
    rows = len(spec.rows(unit))
    document = array_document(spec) | {
        "shape": [rows, *([len(layers)] if spec.layered else []), *spec.shape[2 if spec.layered else 1 :]],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.chunk_shape)}},
        "codecs": chunk_codecs(spec),
    }
    try:
        return np.asarray(_in_memory(document, objects)[:])
    except (RuntimeError, MemoryError) as error:  # what numcodecs raises where a checksum is right and its content is not
        raise ValueError(str(error) or "it asks for more memory than there is") from None


def _in_memory(document: Mapping[str, Any], objects: dict[str, Any]) -> Any:
    objects["zarr.json"] = Buffer.from_bytes(json.dumps(document).encode())
    return zarr.open_array(store=MemoryStore(objects), mode="r+", zarr_format=3)


def _decodes_to(spec: ArraySpec, unit: int, blob: bytes, column: np.ndarray) -> bool:
    """Whether a shard holds these bytes: chunk by chunk, by the codecs alone, whose memory is used again. A read of it all at
    once takes nine times as long, most of it for pages of memory that nobody has touched."""
    layers = ranges_of(spec, unit, blob)
    for run in range(len(layers[0])):
        rows = column[run * spec.chunk : (run + 1) * spec.chunk]
        for place, layer in enumerate(layers):
            (chunk,) = take_chunks(blob, layer[run : run + 1])
            wanted = (rows[:, place] if spec.layered else rows).tobytes()
            if crc32c(chunk[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != chunk[-CRC_BYTES:]:
                return False
            # The last chunk goes on behind the last row, with what nobody reads.
            if _decompressed(spec, chunk[:-CRC_BYTES])[: len(wanted)] != wanted:
                return False
    return True


def _decompressed(spec: ArraySpec, payload: bytes) -> bytes:
    found: bytes = zstd.decompress(payload) if spec.codec == "packed" else blosc.decompress(payload)
    return found
