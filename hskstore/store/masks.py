"""What may be kept of a row and of a vector: the tokens that a rank chooses among, and masks of coordinates."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from hskstore.config import Mask, Strategy


def unpack_mask(mask: UInt8[np.ndarray, "*rows octet"], hidden_size: int) -> Bool[np.ndarray, "*rows {hidden_size}"]:
    """Bits, most significant first -> kept."""
    return np.unpackbits(mask, axis=-1, count=hidden_size).view(bool)


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
