"""What to keep of one batch of the teacher's features, computed on the teacher's device.

Rounding comes first, then the mask, so that a smaller configuration is a cut of a bigger one; ties go to the lower index
everywhere, so that the choice does not depend on a kernel.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from hskstore.config import Amount, Values, resolve

QUANTISED_MAX = {"q8": 127, "q4": 7}
SMALLEST_SCALE = 2.0**-14
"""The smallest normal f16: below it a scale would lose its own digits, and no encoder's states are that small."""


def token_rank(
    score: Float[Tensor, "batch token"], admitted: Bool[Tensor, "batch token"], *, slots: int, length: Amount
) -> tuple[Int[Tensor, "batch slot"], Int[Tensor, " batch"]]:
    """Positions of the tokens to keep, best first, and how many of the slots are real.

    Only admitted tokens are ranked. A row keeps `length` of them (a fraction is of the row's own admitted tokens);
    slots beyond hold -1.
    """
    batch, tokens = score.shape
    # The admitted come first whatever their scores, which may be -inf.
    score = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~admitted, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    wanted = torch.from_numpy(_wanted(length, slots, tokens)).to(score.device, non_blocking=True)
    n_kept = wanted[admitted.sum(dim=1)]
    positions = torch.full((batch, slots), -1, dtype=torch.long, device=score.device)
    positions[:, : min(slots, tokens)] = order[:, :slots]
    beyond = torch.arange(slots, device=score.device) >= n_kept[:, None]
    return positions.masked_fill(beyond, -1), n_kept


@lru_cache(maxsize=1024, typed=True)  # a count of 1 and the fraction 1.0 are equal, and keep different tokens
def _wanted(length: Amount, slots: int, tokens: int) -> np.ndarray:
    """How many tokens a row keeps, by how many of it are admitted [tokens + 1]; a table, so that no device waits for a count."""
    return np.array([min(resolve(length, count), count, slots) for count in range(tokens + 1)])


def gather_tokens(
    hidden: Float[Tensor, "batch token width"], positions: Int[Tensor, "batch slot"]
) -> Float[Tensor, "batch slot width"]:
    """The hidden vectors at `positions`; zeros where a position is -1."""
    index = positions.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index).masked_fill((positions < 0)[..., None], 0)


def magnitude_mask(values: Float[Tensor, "*rows width"], kept: int) -> Bool[Tensor, "*rows width"]:
    """The `kept` largest of each vector by magnitude ("Mag Mask", section 4.3.1), exactly that many, ties to the lower index."""
    if kept >= values.shape[-1]:
        return torch.ones_like(values, dtype=torch.bool)
    size = values.abs()
    threshold = _largest(size, kept)
    above = size > threshold
    # topk finds the right threshold but, among equals, any index; the room left by `above` goes to the first equals.
    equal = size == threshold
    room = kept - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def _largest(size: Float[Tensor, "*rows width"], which: int) -> Float[Tensor, "*rows 1"]:
    """The `which`-th largest magnitude of each vector."""
    if size.device.type != "cpu":
        return size.topk(which, dim=-1).values[..., -1:]
    # Magnitudes are in the order of the integers of their bits, and to part these takes NumPy a thirtieth of the time of topk.
    bits = size.view(torch.int32 if size.element_size() == 4 else torch.int16).numpy()
    place = bits.shape[-1] - which
    return torch.from_numpy(np.partition(bits, place, axis=-1)[..., place : place + 1]).view(size.dtype)


def random_scores(
    row_ids: Int[np.ndarray, " batch"], n_tokens: Int[np.ndarray, " batch"], *, longest: int, seed: int
) -> Float[np.ndarray, "batch {longest}"]:
    """Scores [batch, longest] that rank a row's tokens in one random order of its own, whatever batch it stands in."""
    scores = np.zeros((len(row_ids), longest), dtype=np.float32)
    for row, (row_id, tokens) in enumerate(zip(row_ids.tolist(), n_tokens.tolist(), strict=True)):
        scores[row, :tokens] = np.random.default_rng([seed, row_id]).permutation(tokens)
    return scores


@dataclass(frozen=True)
class Packed:
    """Vectors as they are stored. `values` [..., K] in the order of their coordinates, `mask` bits, `scale` for q8 and q4."""

    values: Shaped[Tensor, "*rows stored"]
    mask: UInt8[Tensor, "*rows octet"]
    scale: Float[Tensor, "*rows"] | None


def round_values(hidden: Float[Tensor, "*rows width"], encoding: Values) -> Float[Tensor, "*rows width"]:
    """Hidden vectors in the precision that masks are made on: f32 for f32 stores, f16 for all others."""
    return hidden.float() if encoding == "f32" else hidden.half()


def pack(rounded: Float[Tensor, "*rows width"], kept: Bool[Tensor, "*rows width"], *, width: int, encoding: Values) -> Packed:
    """Keep `width` coordinates of each vector and encode them. `kept` has exactly `width` True in every vector."""
    # Each kept coordinate to the place that its mask counts, the others to one behind the last: the shapes are known without
    # asking the device.
    place = torch.where(kept, kept.cumsum(dim=-1) - 1, width)
    values = rounded.new_empty((*rounded.shape[:-1], width + 1)).scatter_(-1, place, rounded)[..., :width].contiguous()
    mask = pack_bits(kept)
    if encoding in ("f16", "f32"):
        return Packed(values, mask, None)
    quantised, scale = quantise(values, QUANTISED_MAX[encoding])
    return Packed(pack_nibbles(quantised) if encoding == "q4" else quantised, mask, scale)


def quantise(values: Float[Tensor, "*rows kept"], largest: int) -> tuple[Int[Tensor, "*rows kept"], Float[Tensor, "*rows"]]:
    """Integers in [-largest, largest] (int8) and one f16 scale per vector: value = integer x scale, within half a scale."""
    wide = values.float()
    scale = (wide.abs().amax(dim=-1) / largest).clamp(min=SMALLEST_SCALE).half()
    integers = (wide / scale.float()[..., None]).round().clamp(-largest, largest)
    return integers.to(torch.int8), scale


def pack_nibbles(integers: Int[Tensor, "*rows kept"]) -> UInt8[Tensor, "*rows pair"]:
    """Two 4-bit two's complement values a byte, the first in the low half; an odd last one is paired with 0."""
    if integers.shape[-1] % 2:
        integers = torch.nn.functional.pad(integers, (0, 1))
    low, high = (integers[..., half::2].to(torch.uint8) & 0xF for half in (0, 1))
    return low | (high << 4)


def pack_bits(kept: Bool[Tensor, "*rows width"]) -> UInt8[Tensor, "*rows octet"]:
    """Bits, most significant first, as `numpy.packbits` has them; the last byte is filled with zeros."""
    padded = torch.nn.functional.pad(kept, (0, -kept.shape[-1] % 8)).view(*kept.shape[:-1], -1, 8)
    weight = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=kept.device)
    return (padded * weight).sum(dim=-1, dtype=torch.uint8)
