"""Stored values back to numbers: the NumPy half of what `hskstore.select` packs on the teacher's device; the tokens that a rank
chooses among; and the masks that are the same for every vector."""

from collections.abc import Sequence

import numpy as np

from hskstore.config import Mask, Strategy


def unpack_mask(mask: np.ndarray, hidden_size: int) -> np.ndarray:
    """Bits [..., ceil(d/8)] uint8, most significant first -> kept [..., d] bool."""
    return np.unpackbits(mask, axis=-1, count=hidden_size).view(bool)


def unpack_values(values: np.ndarray, scale: np.ndarray | None, encoding: str, width: int) -> np.ndarray:
    """Stored values -> float32 [..., width], in the order of their coordinates. `scale` [...] for q8 and q4."""
    if encoding in ("f16", "f32"):
        return values.astype(np.float32)
    assert scale is not None
    if encoding == "q4":
        values = unpack_nibbles(values, width)
    return values.astype(np.float32) * scale.astype(np.float32)[..., None]


def unpack_nibbles(packed: np.ndarray, width: int) -> np.ndarray:
    """Two 4-bit two's complement values a byte, the first in the low half -> int8 [..., width]."""
    pairs = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((pairs[..., :width] ^ 8).astype(np.int8)) - np.int8(8)


def is_admitted(input_ids: np.ndarray, separators: Sequence[int], strategy: Strategy) -> np.ndarray:
    """Which of these real tokens [...] a rank may choose among: all, but for the ids `separators` where it leaves them out."""
    return ~np.isin(input_ids, [] if strategy.ranks_separators else separators)


def static_mask(kind: Mask, *, hidden_size: int, kept: int, seed: int) -> np.ndarray:
    """One mask [d] bool for every vector: "uniform" is Equation 7 with i from 0, "random" a prefix of one permutation."""
    if kind == "uniform":
        chosen = np.array([round(i * hidden_size / kept) for i in range(kept)])
    else:
        chosen = np.random.default_rng(seed).permutation(hidden_size)[:kept]
    mask = np.zeros(hidden_size, dtype=bool)
    mask[chosen] = True
    return mask
