"""Stored values back to numbers: the NumPy half of what stage one packs on the teacher's device; the tokens that a rank chooses
among; and the masks that are the same for every vector."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, Shaped, UInt8

from hskstore.config import Mask, Strategy


def unpack_mask(mask: UInt8[np.ndarray, "*rows octet"], hidden_size: int) -> Bool[np.ndarray, "*rows {hidden_size}"]:
    """Bits, most significant first -> kept."""
    return np.unpackbits(mask, axis=-1, count=hidden_size).view(bool)


def unpack_values(
    values: Shaped[np.ndarray, "*rows stored"], scale: Float[np.ndarray, "*rows"] | None, encoding: str, width: int
) -> Float32[np.ndarray, "*rows {width}"]:
    """Stored values -> numbers, in the order of their coordinates. `scale` for q8 and q4."""
    if encoding in ("f16", "f32"):
        return values.astype(np.float32)
    assert scale is not None
    if encoding == "q4":
        values = unpack_nibbles(values, width)
    return values.astype(np.float32) * scale.astype(np.float32)[..., None]


def unpack_nibbles(packed: UInt8[np.ndarray, "*rows pair"], width: int) -> Int8[np.ndarray, "*rows {width}"]:
    """Two 4-bit two's complement values a byte, the first in the low half -> integers."""
    pairs = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((pairs[..., :width] ^ 8).astype(np.int8)) - np.int8(8)


def is_admitted(
    input_ids: Int[np.ndarray, "*tokens"], separators: Sequence[int], strategy: Strategy
) -> Bool[np.ndarray, "*tokens"]:
    """Which of these real tokens a rank may choose among: all, but for the ids `separators` where it leaves them out."""
    return ~np.isin(input_ids, [] if strategy.ranks_separators else separators)


def static_mask(kind: Mask, *, hidden_size: int, kept: int, seed: int) -> Bool[np.ndarray, " {hidden_size}"]:
    """One mask for every vector: "uniform" is Equation 7 with i from 0, "random" a prefix of one permutation."""
    if kind == "uniform":
        chosen = np.array([round(i * hidden_size / kept) for i in range(kept)])
    else:
        chosen = np.random.default_rng(seed).permutation(hidden_size)[:kept]
    mask = np.zeros(hidden_size, dtype=bool)
    mask[chosen] = True
    return mask
