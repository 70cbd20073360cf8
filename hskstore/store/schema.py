"""The arrays of a store: shapes, dtypes, chunks, codecs, and the `zarr.json` documents that say so to any Zarr reader.

The documents are written here rather than by a Zarr library, so that their bytes are a function of the plan alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np

FORMAT_VERSION = 3
"""The latest that is read. A store carries the least that reads it: 1 where it holds `hidden`, which every reader knows, 3 where
vectors are codes."""

BLOCK_ROWS = 512
"""The least rows that are sorted by length and batched together; see `block_rows`."""

MAX_BLOCK_ROWS = 2048

MAX_UNIT_ROWS = 8192
SHARD_BYTES = 64 * 2**20
CHUNK_BYTES = 512 * 2**10
MAX_SHARD_BYTES = 2**30
"""Of one shard, decoded or not; what a reader accepts at most, whatever a plan says."""

MAX_SHARD_CHUNKS = 2**16
"""Of one shard; likewise."""

MAX_BLOSC_TYPESIZE = 255

MAX_UNITS = 2**20
"""Of one store; likewise."""

MAX_LAYERS = 2**12
"""Of a teacher or a student; likewise."""

KindT = TypeVar("KindT")
Codec = Literal["values", "vectors", "mask", "packed"]


@dataclass(frozen=True)
class ArraySpec:
    """One array: `shape` has the rows first, `shard` rows make one object, `chunk` rows one compressed chunk.

    Where layers stand second they are chunked one by one, so that one layer can be read alone: `axes` name them first. Format
    1's arrays name no axes; a fourth means that layers stand second.
    """

    shape: tuple[int, ...]
    dtype: str
    shard: int
    chunk: int
    codec: Codec
    fill: float | int | str
    axes: tuple[str, ...] = ()

    @property
    def layered(self) -> bool:
        return self.axes[0] == "layer" if self.axes else len(self.shape) == 4

    @property
    def token_axis(self) -> int:
        """Of a row's axes the one along which it is as long as its tokens."""
        return self.axes.index("token") if "token" in self.axes else int(self.layered)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk, 1, *self.shape[2:]) if self.layered else (self.chunk, *self.shape[1:])

    @property
    def shard_shape(self) -> tuple[int, ...]:
        return (self.shard, *self.shape[1:])

    @property
    def layers(self) -> int:
        """Chunks of a shard that lie side by side; 1 for an array without layers."""
        return self.shape[1] if self.layered else 1

    @property
    def chunks_per_shard(self) -> int:
        return self.shard // self.chunk * self.layers

    @property
    def chunk_bytes(self) -> int:
        """Of one decoded chunk."""
        return math.prod(self.chunk_shape) * np.dtype(self.dtype).itemsize

    @property
    def shard_bytes(self) -> int:
        """Of one decoded shard."""
        return math.prod(self.shard_shape) * np.dtype(self.dtype).itemsize

    def key(self, path: str, unit: int) -> str:
        """The shard object of one unit, as Zarr's default chunk keys name it."""
        return "/".join([path, "c", str(unit), *("0" for _ in self.shape[1:])])

    def rows(self, unit: int) -> range:
        """The stored rows of one unit; the last unit may be short."""
        return range(unit * self.shard, min((unit + 1) * self.shard, self.shape[0]))

    def as_json(self) -> dict[str, Any]:
        document = asdict(self) | {"shape": list(self.shape), "axes": list(self.axes)}
        if not self.axes:
            del document["axes"]
        return document


def power_of_two_below(number: int) -> int:
    """The largest power of two that is at most `number`; 1 for anything smaller."""
    return 1 << (max(1, number).bit_length() - 1)


def block_rows(rows: int) -> int:
    """Rows that are sorted by length and batched together: a power of two from 512 to 2048, and about a quarter of the set.

    Bigger blocks waste less on padding (SST-2 in batches of 4096 tokens: 58 % at 512 rows, 19 % at 2048), and an interrupted run
    loses one at most. Part of the plan, because batches decide a state's last bits.
    """
    return min(MAX_BLOCK_ROWS, max(BLOCK_ROWS, power_of_two_below(rows // 4)))


def unit_rows(bytes_per_row: int, rows: int) -> int:
    """Rows of a unit: a power of two whose largest shard is at most 64 MiB, 8192 rows and (from 512 on) a 16th of the set.

    The last bound is what an interrupted run can lose, and what makes its progress visible.
    """
    by_size = power_of_two_below(SHARD_BYTES // max(1, bytes_per_row))
    by_share = max(BLOCK_ROWS, power_of_two_below(rows // 16))
    return min(MAX_UNIT_ROWS, by_size, by_share)


def array_spec(
    rows: int,
    inner: tuple[int, ...],
    dtype: str,
    *,
    shard: int,
    codec: Codec = "packed",
    fill: float | int | str,
    axes: tuple[str, ...] = (),
) -> ArraySpec:
    """An array of `rows` x `inner`, in chunks of about 512 KiB."""
    spec = ArraySpec((rows, *inner), dtype, shard, shard, codec, fill, axes)
    per_row = math.prod(spec.chunk_shape[1:]) * np.dtype(dtype).itemsize
    return replace(spec, chunk=min(shard, power_of_two_below(CHUNK_BYTES // max(1, per_row))))


def chunk_codecs(spec: ArraySpec) -> list[dict[str, Any]]:
    """What a chunk goes through: bytes, a compressor, crc32c."""
    dtype = np.dtype(spec.dtype)
    to_bytes: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        to_bytes["configuration"] = {"endian": "little"}
    if spec.codec == "packed":
        compressor: dict[str, Any] = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    else:
        # A mask's vector counts as one element, so that bitshuffle lays each coordinate's bits side by side: a coordinate is
        # kept nearly always or nearly never, and its row of bits all but vanishes (21.4 bytes a mask instead of 23.3, d = 384).
        # Whole vectors compress little by whatever means, and are many: lz4 takes a fifth of zstd's time for 5 % more bytes.
        octets = spec.shape[-1] if spec.shape[-1] <= MAX_BLOSC_TYPESIZE else 1
        compressor = {
            "name": "blosc",
            "configuration": {
                "typesize": octets if spec.codec == "mask" else dtype.itemsize,
                "cname": "lz4" if spec.codec == "vectors" else "zstd",
                "clevel": 5,
                "shuffle": "shuffle" if spec.codec == "values" else "bitshuffle",
                "blocksize": 0,
            },
        }
    return [to_bytes, compressor, {"name": "crc32c"}]


def array_document(spec: ArraySpec) -> dict[str, Any]:
    """The array's `zarr.json`: sharding around `chunk_codecs`, all core codecs of Zarr v3."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.shard_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": spec.fill,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(spec.chunk_shape),
                    "codecs": chunk_codecs(spec),
                    "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "storage_transformers": [],
    }


def hierarchy(arrays: Mapping[str, ArraySpec], attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Every `zarr.json` of a store by key; the root also carries them all (consolidated).

    `attributes` are those of groups, by path; "" is the root.
    """
    groups = {""} | {parent for path in arrays for parent in _parents(path)}
    nodes: dict[str, dict[str, Any]] = {
        path: {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes.get(path, {}))} for path in sorted(groups)
    }
    nodes |= {path: array_document(arrays[path]) for path in sorted(arrays)}
    below = {path: nodes[path] for path in sorted(nodes) if path}
    nodes[""] |= {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": below}}
    return {f"{path}/zarr.json".lstrip("/"): canonical_json(document) for path, document in nodes.items()}


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def with_check(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON that carries the sha256 of the rest of itself as `check`: a receipt, a manifest."""
    check = hashlib.sha256(canonical_json(document)).hexdigest()
    return canonical_json({**document, "check": check})


def checked(data: bytes) -> dict[str, Any]:
    """What `with_check` wrote. Raises ValueError where one bit is another."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    document.pop("check", None)
    if with_check(document) != data:
        raise ValueError("its own checksum does not agree with it")
    return document


def known_fields(kind: type[KindT], document: Mapping[str, Any]) -> KindT:
    """A dataclass from the fields of a document that it has; a later version may write more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def canonical_json(document: object) -> bytes:
    """One byte string per document: sorted keys, no spaces, ASCII, and no NaN (which JSON does not have)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
