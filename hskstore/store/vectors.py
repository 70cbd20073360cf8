"""How the vectors of a feature are stored: what an encoding is to the plan, to the disk, and to whoever decodes it.

It is packed on the teacher's device by its torch half, features/pack.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32, Int8, Shaped, UInt8

from hskstore.config import Values
from hskstore.store.schema import ArraySpec, Codec, array_spec

Axis = Literal["layer", "part", "head", "token", "choice", "width", "span", "end", "stage", "word"]
"""What an axis of a feature's array counts: `part` is query, key, value, `choice` the tokens that one attends to, `width` as many
elements as a vector is stored in, `end` first and last, `stage` the codebooks of a vector, `word` the words of one."""

WORDS = 256
"""Of a codebook: as many as a byte can name."""


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
class Numbers:
    """Vectors as elements of `dtype`, `packed` numbers in each; where they are integers, from -`largest` to `largest`, times
    one f16 scale a vector. `fill` never stands for data."""

    dtype: str
    fill: float | int | str
    largest: int | None = None
    packed: int = 1

    @property
    def exact(self) -> bool:
        """Whether they are the very numbers that were rounded."""
        return self.largest is None

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

    def decode(self, stored: Mapping[str, Shaped[np.ndarray, "_ ..."]], width: int) -> Float[np.ndarray, "*rows {width}"]:
        """`values` [..., elements], and their `scale` [...] if there is one -> numbers [..., width], in the order of their
        coordinates: of floats as they are stored, else float32."""
        values = stored["values"]
        if self.largest is None:
            return values
        scale = stored["scale"]
        integers = unpack_nibbles(values, width) if self.packed > 1 else values
        return integers.astype(np.float32) * scale.astype(np.float32)[..., None]


@dataclass(frozen=True)
class Codes:
    """Vectors as one byte of each of `stages` codebooks: a vector is the sum of the words that its bytes name (residual
    quantisation: Juang and Gray, 1982). Codebooks are learnt of each layer, and lie in the store.

    Every word was the nearest to what the words before left over, so that fewer stages are a cut.
    """

    stages: int
    dtype: ClassVar = "uint8"
    exact: ClassVar = False

    def stored_width(self, width: int) -> int:
        """Elements of a vector of so many coordinates."""
        return self.stages

    def arrays(self, shape: tuple[int, ...], width: int, *, axes: tuple[Axis, ...] = (), codec: Codec) -> dict[str, Array]:
        """The arrays of vectors of `width` coordinates that stand in `shape`, whose axes are `axes`. They have no `codec` of
        their own: one byte is as good as another."""
        whole: tuple[Axis, ...] = (*axes, "stage") if axes else ()
        return {"values": Array(whole, (*shape, self.stages), self.dtype, 0)}

    def codebooks(self, places: tuple[int, ...], width: int) -> dict[str, Array]:
        """The arrays of their codebooks, behind the layer: `places` are what of a layer has codebooks of its own, as of
        attention its parts."""
        axes: tuple[Axis, ...] = ("part",) if places else ()
        return {
            "words": Array((*axes, "stage", "word", "width"), (*places, self.stages, WORDS, width), "float16", "NaN", "vectors"),
            "error": Array((*axes, "stage"), (*places, self.stages), "float32", "NaN"),
        }

    def decode(self, stored: Mapping[str, Shaped[np.ndarray, "_ ..."]], width: int) -> Float32[np.ndarray, "*rows {width}"]:
        """`values` [row, layer, ..., stage] and the `words` [layer, ..., stage, word, width] of their codebooks -> numbers
        [row, layer, ..., width]."""
        values, words = stored["values"], stored["words"]
        found = np.zeros((*values.shape[:-1], width), dtype=np.float32)
        for place in np.ndindex(words.shape[:-3]):
            at = (slice(None), *place)
            for stage, codebook in enumerate(words[place]):
                found[at] += codebook.astype(np.float32)[values[at][..., stage]]
        return found


Encoding = Numbers | Codes

ENCODINGS: Mapping[Values, Encoding] = {
    "f16": Numbers("float16", "NaN"),
    "f32": Numbers("float32", "NaN"),
    "q8": Numbers("int8", -128, largest=127),
    "q4": Numbers("uint8", 0x88, largest=7, packed=2),
    "rq4": Codes(4),
    "rq8": Codes(8),
    "rq16": Codes(16),
    "rq32": Codes(32),
}


def are_codes(values: Values) -> bool:
    """Whether vectors that are stored so are codes. Raises KeyError for what is no encoding."""
    return isinstance(ENCODINGS[values], Codes)


def unpack_nibbles(packed: UInt8[np.ndarray, "*rows pair"], width: int) -> Int8[np.ndarray, "*rows {width}"]:
    """Two 4-bit two's complement values a byte, the first in the low half -> integers."""
    pairs = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((pairs[..., :width] ^ 8).astype(np.int8)) - np.int8(8)
