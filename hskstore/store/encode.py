"""One unit's arrays to shard objects and back. Pure: bytes in, bytes out, nothing touches a disk.

A shard's bytes are those that Zarr itself would write, chunk by chunk through memory that is used again: through Zarr it takes
twice the time (pipelines/LOG.md). Nothing is decoded before its header was believed.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from google_crc32c import value as crc32c
from jaxtyping import Shaped
from numcodecs.abc import Codec as Compressor
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from hskstore.errors import StoreError
from hskstore.store.layout import Column
from hskstore.store.plan import Plan
from hskstore.store.schema import ArraySpec, chunk_codecs
from hskstore.store.shard import ABSENT, CRC_BYTES, check_chunk, ranges_of, take_chunks


def encode_unit(plan: Plan, split: str, unit: int, columns: Mapping[str, Column]) -> dict[str, bytes]:
    """Every array of one unit as {key: shard bytes}, each chunk decoded back and compared before it is returned.

    `columns` maps array paths to [rows of the unit, ...], exactly those that the plan lists for the split.
    """
    specs = plan.arrays_of(split)
    assert columns.keys() == specs.keys(), sorted(columns.keys() ^ specs.keys())
    blobs: dict[str, bytes] = {}
    for path, spec in specs.items():
        try:
            blobs[spec.key(path, unit)] = encode_shard(spec, unit, columns[path])
        except ValueError as error:
            raise StoreError(f"{path}, unit {unit}: {error}; nothing was written") from None
    return blobs


def encode_shard(spec: ArraySpec, unit: int, column: Column) -> bytes:
    """One array of one unit [rows of the unit, ...] as its shard's bytes. Raises ValueError where a chunk does not decode to
    what was encoded."""
    rows = len(spec.rows(unit))
    compressor, runs = _compressor(spec), -(-rows // spec.chunk)
    chunk = np.empty(spec.chunk_shape, spec.dtype)
    back = np.empty(spec.chunk_bytes, np.uint8)
    _check_shape(spec, rows, column)
    index = np.full((spec.shard // spec.chunk, spec.layers, 2), ABSENT, dtype="<u8")
    parts: list[bytes] = []
    end = 0
    for run, layer in _morton(spec.shard // spec.chunk, spec.layers):
        if run >= runs:
            continue
        _lay(spec, column, run, layer, chunk)
        payload = compressor.encode(chunk)
        compressor.decode(payload, back)
        if not np.array_equal(back, chunk.reshape(-1).view(np.uint8)):
            raise ValueError("the encoded bytes do not decode to what was encoded")
        parts += [payload, crc32c(payload).to_bytes(CRC_BYTES, "little")]
        index[run, layer] = end, len(payload) + CRC_BYTES
        end += len(payload) + CRC_BYTES
    table = index.tobytes()
    return b"".join([*parts, table, crc32c(table).to_bytes(CRC_BYTES, "little")])


def decode_shard(spec: ArraySpec, unit: int, blob: bytes) -> Shaped[np.ndarray, "row ..."]:
    """One array of one unit [rows of the unit, ...] from its shard's bytes. Raises ValueError where they are damaged."""
    return decode_layers(spec, unit, [take_chunks(blob, layer) for layer in ranges_of(spec, unit, blob)])


def decode_layers(spec: ArraySpec, unit: int, layers: Sequence[Sequence[bytes]]) -> Shaped[np.ndarray, "row ..."]:
    """Some layers of one unit [rows of the unit, layers, ...] from their chunks; an array without layers has one list of them.

    Raises ValueError where a chunk is damaged, or claims to decode to anything but a chunk.
    """
    rows, compressor = len(spec.rows(unit)), _compressor(spec)
    inner = (len(layers), *spec.shape[2:]) if spec.layered else spec.shape[1:]
    found = np.empty((rows, *inner), spec.dtype)
    back = np.empty(spec.chunk_bytes, np.uint8)
    chunk = back.view(spec.dtype).reshape(spec.chunk_shape)
    for layer, chunks in enumerate(layers):
        for run, encoded in enumerate(chunks):
            check_chunk(spec, encoded)
            payload, check = encoded[:-CRC_BYTES], encoded[-CRC_BYTES:]
            if crc32c(payload).to_bytes(CRC_BYTES, "little") != check:
                raise ValueError("the checksum of a chunk is not that of its bytes")
            try:
                compressor.decode(payload, back)
            except RuntimeError as error:  # what numcodecs raises where a checksum is right and its content is not
                raise ValueError(str(error)) from None
            own = found[run * spec.chunk : (run + 1) * spec.chunk]
            if spec.layered:
                own[:, layer] = chunk[: len(own), 0]
            else:
                own[...] = chunk[: len(own)]
    return found


def _lay(spec: ArraySpec, column: Column, run: int, layer: int, chunk: np.ndarray) -> None:
    """The rows of one chunk as they are stored, into `chunk`."""
    rows = column[run * spec.chunk : (run + 1) * spec.chunk]
    inside = chunk[:, 0] if spec.layered else chunk
    tokens = spec.token_axis - spec.layered
    if isinstance(rows, np.ndarray):
        inside[: len(rows)] = rows[:, layer] if spec.layered else rows
    else:
        for place, row in enumerate(rows):
            own = row[layer] if spec.layered else row
            if own.ndim:
                own, there = own.swapaxes(0, tokens), inside[place].swapaxes(0, tokens)
                there[: len(own)] = own
                there[len(own) :] = 0
            else:
                inside[place] = own
    inside[len(rows) :] = spec.fill  # nobody reads what is behind the last row


def _check_shape(spec: ArraySpec, rows: int, column: Column) -> None:
    if isinstance(column, np.ndarray):
        expected = (rows, *spec.shape[1:])
        assert column.shape == expected and column.dtype == np.dtype(spec.dtype), (column.shape, expected, column.dtype)
        return
    assert len(column) == rows, (len(column), rows)
    inner, tokens = spec.shape[1:], spec.token_axis
    for row in column:
        fits = all(
            own == most or (axis == tokens and own < most) for axis, (own, most) in enumerate(zip(row.shape, inner, strict=True))
        )
        assert row.ndim == len(inner) and fits and row.dtype == np.dtype(spec.dtype), (row.shape, inner, row.dtype)


@lru_cache(maxsize=64)
def _morton(runs: int, layers: int) -> list[tuple[int, int]]:
    """The order in which Zarr lays a shard's chunks (`run`, `layer`): Morton's, that neighbours lie close."""

    def code(place: tuple[int, int]) -> int:
        bits = max(runs, layers).bit_length()
        return sum((number >> bit & 1) << (2 * bit + axis) for bit in range(bits) for axis, number in enumerate(place))

    return sorted(((run, layer) for run in range(runs) for layer in range(layers)), key=code)


def _compressor(spec: ArraySpec) -> Compressor:
    _, compressor, _ = chunk_codecs(spec)
    settings = compressor["configuration"]
    if compressor["name"] == "zstd":
        return Zstd(**settings)
    shuffles = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
    return Blosc(**settings | {"shuffle": shuffles[settings["shuffle"]]})
