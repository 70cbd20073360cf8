"""How the vectors of a feature are stored: what an encoding is to the plan, to the disk, and to whoever decodes it.

It is packed on the teacher's device by its torch half, features/pack.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int8, Shaped, UInt8

from hskstore.config import Values
from hskstore.store.schema import ArraySpec, Codec, array_spec

Axis = Literal["layer", "part", "head", "token", "choice", "width", "span", "end"]
"""What an axis of a feature's array counts: `part` is query, key, value, `choice` the tokens that one attends to, `width` as many
elements as a vector is stored in, `end` first and last."""


@dataclass(frozen=True)
class Array:
    """One array of a feature, behind the row: its `axes` and their sizes. "layer" stands first: layers are chunked and hashed
    apart. Format 1's arrays name no axes; see `ArraySpec`."""

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float | int | str
    codec: Codec = "packed"

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def spec(self, rows: int, shard: int) -> ArraySpec:
        return array_spec(rows, self.shape, self.dtype, shard=shard, codec=self.codec, fill=self.fill, axes=self.axes)


@dataclass(frozen=True)
class Encoding:
    """Vectors as elements of `dtype`, `packed` numbers in each; where they are integers, from -`largest` to `largest`, times
    one f16 scale a vector. `fill` never stands for data."""

    dtype: str
    fill: float | int | str
    largest: int | None = None
    packed: int = 1

    @property
    def step(self) -> float:
        """Between neighbouring numbers, as a share of the vector's largest; of floats 0."""
        return 0.0 if self.largest is None else 1 / self.largest

    def stored_width(self, width: int) -> int:
        """Elements of a vector of so many coordinates."""
        return -(-width // self.packed)

    def arrays(self, shape: tuple[int, ...], width: int, *, axes: tuple[Axis, ...] = (), codec: Codec) -> dict[str, Array]:
        """The arrays of vectors of `width` coordinates that stand in `shape`, whose axes are `axes`."""
        whole: tuple[Axis, ...] = (*axes, "width") if axes else ()
        found = {"values": Array(whole, (*shape, self.stored_width(width)), self.dtype, self.fill, codec)}
        return found | ({} if self.largest is None else {"scale": Array(axes, shape, "float16", "NaN")})

    def decode(
        self, values: Shaped[np.ndarray, "*rows stored"], scale: Float[np.ndarray, "*rows"] | None, width: int
    ) -> Float[np.ndarray, "*rows {width}"]:
        """Stored elements -> numbers, in the order of their coordinates: of floats as they are stored, else float32."""
        if self.largest is None:
            return values
        assert scale is not None
        integers = unpack_nibbles(values, width) if self.packed > 1 else values
        return integers.astype(np.float32) * scale.astype(np.float32)[..., None]


ENCODINGS: Mapping[Values, Encoding] = {
    "f16": Encoding("float16", "NaN"),
    "f32": Encoding("float32", "NaN"),
    "q8": Encoding("int8", -128, largest=127),
    "q4": Encoding("uint8", 0x88, largest=7, packed=2),
}


def unpack_nibbles(packed: UInt8[np.ndarray, "*rows pair"], width: int) -> Int8[np.ndarray, "*rows {width}"]:
    """Two 4-bit two's complement values a byte, the first in the low half -> integers."""
    pairs = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((pairs[..., :width] ^ 8).astype(np.int8)) - np.int8(8)
