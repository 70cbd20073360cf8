"""A shard's anatomy: where its chunks lie, and what they claim to be before anything is decoded.

Zarr's sharding codec puts an index behind the chunks: offset and size of each, little-endian uint64, and a crc32c.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from hskstore.store.schema import ArraySpec

Blob = TypeVar("Blob", bytes, memoryview)

ABSENT = 2**64 - 1
"""Offset and size of a chunk that is not there; stores have none, also where a chunk equals the fill value."""

CRC_BYTES = 4
ZSTD_MAGIC = 0xFD2FB528
ZSTD_REPEATED = 1
"""The type of a block that is one byte, repeated."""

LEAST_BLOCK_BYTES = 2**10
"""Of a block, decoded, on average; zstd makes blocks of 128 KiB and splits few of them. More blocks are not walked through."""

BLOSC_HEADER = struct.Struct("<BBBBIII")
"""Version, version of the inner codec, flags, typesize, decoded bytes, block bytes, encoded bytes."""


def index_bytes(spec: ArraySpec) -> int:
    """The size of the index at a shard's end."""
    return 16 * spec.chunks_per_shard + CRC_BYTES


def chunk_ranges(spec: ArraySpec, unit: int, index: bytes, size: int) -> list[list[range]]:
    """Where the chunks of a unit lie in its shard of `size` bytes: [layer][run of rows]; an array without layers has one.

    Raises ValueError where one is absent or would lie outside.
    """
    body = size - index_bytes(spec)
    if body < 0 or len(index) != index_bytes(spec):
        raise ValueError("it is shorter than its own index")
    runs = -(-len(spec.rows(unit)) // spec.chunk)
    table = np.frombuffer(index[:-CRC_BYTES], dtype="<u8").reshape(-1, spec.layers, 2)[:runs]
    ranges = [[range(int(offset), int(offset) + int(size)) for offset, size in layer] for layer in table.swapaxes(0, 1)]
    for place in (place for layer in ranges for place in layer):
        if place.start == ABSENT:
            raise ValueError("its index says that a chunk is absent")
        if place.stop > body or len(place) <= CRC_BYTES:
            raise ValueError("its index leads out of it")
    if sum(len(place) for layer in ranges for place in layer) > body:
        raise ValueError("its index names some bytes twice")
    return ranges


def ranges_of(spec: ArraySpec, unit: int, blob: bytes) -> list[list[range]]:
    """`chunk_ranges` of a shard at hand."""
    return chunk_ranges(spec, unit, blob[max(0, len(blob) - index_bytes(spec)) :], len(blob))


def layer_sha256(chunks: Sequence[bytes | memoryview]) -> str:
    """The hash of one layer: of its chunks one after the other, so that a layer can be fetched and checked alone."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def check_chunk(spec: ArraySpec, chunk: bytes) -> None:
    """Raise ValueError unless a chunk's header says that it decodes to exactly the bytes that it must: no memory is taken."""
    payload = chunk[:-CRC_BYTES]
    if spec.codec == "packed":
        claimed, blocks = _zstd_header(payload)
    else:
        claimed, blocks = _blosc_bytes(payload), 0
    if claimed != spec.chunk_bytes:
        raise ValueError(f"a chunk would decode to {claimed} bytes instead of {spec.chunk_bytes}")
    if spec.codec == "packed" and _zstd_end(payload, blocks, claimed) != len(payload):
        # Numcodecs takes memory for the sizes of all frames together.
        raise ValueError("a chunk is not one frame from its first byte to its last")


def _blosc_bytes(payload: bytes) -> int:
    if len(payload) < BLOSC_HEADER.size:
        raise ValueError("a chunk has no header")
    *_, decoded, block, encoded = BLOSC_HEADER.unpack_from(payload)
    if encoded != len(payload) or block > max(decoded, 1):
        raise ValueError("a chunk's header does not agree with its size")
    return int(decoded)


def _zstd_header(payload: bytes) -> tuple[int, int]:
    """The content size that a zstd frame states (RFC 8878, section 3.1.1), and where its blocks begin.

    A frame that states no size is refused.
    """
    if len(payload) < 6 or int.from_bytes(payload[:4], "little") != ZSTD_MAGIC:
        raise ValueError("a chunk has no header")
    descriptor = payload[4]
    single_segment = descriptor >> 5 & 1
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = payload[start : start + width]
    if not width or len(field) < width:
        raise ValueError("a chunk does not say how many bytes it decodes to")
    return int.from_bytes(field, "little") + (256 if width == 2 else 0), start + width


def _zstd_end(payload: bytes, blocks: int, decoded: int) -> int:
    """Where a frame of `decoded` bytes ends whose blocks begin at `blocks` (section 3.1.1.2)."""
    end = blocks
    for _ in range(decoded // LEAST_BLOCK_BYTES + 2):
        header = int.from_bytes(payload[end : end + 3], "little")
        end += 3 + (1 if header >> 1 & 3 == ZSTD_REPEATED else header >> 3)
        if header & 1:  # the last block
            break
    return end + (4 if payload[4] & 4 else 0)  # a checksum


def take_chunks(blob: Blob, ranges: Sequence[range]) -> list[Blob]:
    """These parts of a shard; of a memoryview without a copy."""
    return [blob[place.start : place.stop] for place in ranges]


def fingerprint(blob: bytes) -> dict[str, object]:
    """An object's size and sha256, as a receipt and the seal have them."""
    return {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}


def shard_fingerprint(spec: ArraySpec, unit: int, blob: bytes) -> dict[str, object]:
    """`fingerprint` of a shard; one with layers has the hash of each besides."""
    entry = fingerprint(blob)
    if not spec.layered:
        return entry
    return entry | {"layers": [layer_sha256(take_chunks(memoryview(blob), layer)) for layer in ranges_of(spec, unit, blob)]}


def unit_fingerprints(specs: Mapping[str, ArraySpec], unit: int, blobs: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """What a receipt says of a unit's objects, by key. `specs` are the arrays of its split, by path."""
    return {spec.key(path, unit): shard_fingerprint(spec, unit, blobs[spec.key(path, unit)]) for path, spec in specs.items()}
