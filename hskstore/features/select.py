"""Which tokens and coordinates of a batch are kept, computed on the teacher's device.

Ties go to the lower index everywhere, so that the choice does not depend on a kernel.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hskstore.config import Amount, resolve


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
    row = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[row, positions.clamp(min=0)].masked_fill_((positions < 0)[..., None], 0)


def magnitude_mask(values: Float[Tensor, "*rows width"], kept: int) -> Bool[Tensor, "*rows width"]:
    """The `kept` largest of each vector by magnitude ("Mag Mask", section 4.3.1), exactly that many, ties to the lower index."""
    if kept >= values.shape[-1]:
        return torch.ones_like(values, dtype=torch.bool)
    size = values.abs()
    return mask_on_host(size, kept) if size.device.type == "cpu" else mask_on_device(size, kept)


def mask_on_device(size: Float[Tensor, "*rows width"], kept: int) -> Bool[Tensor, "*rows width"]:
    """`magnitude_mask` of magnitudes, in kernels alone: nothing waits for a number."""
    threshold = size.topk(kept, dim=-1).values[..., -1:]
    above = size > threshold
    # topk finds the right threshold but, among equals, any index; the room left by `above` goes to the first equals.
    equal = size == threshold
    room = kept - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def mask_on_host(size: Float[Tensor, "*rows width"], kept: int) -> Bool[Tensor, "*rows width"]:
    """`magnitude_mask` of magnitudes, on a CPU, where only vectors with equals at the threshold are counted through."""
    # Magnitudes are in the order of the integers of their bits, and to part these takes NumPy a thirtieth of the time of topk.
    bits = size.view(torch.int32 if size.element_size() == 4 else torch.int16).numpy()
    place = bits.shape[-1] - kept
    threshold = np.partition(bits, place, axis=-1)[..., place : place + 1]
    mask = bits >= threshold
    tied = mask.sum(axis=-1, dtype=np.int32) > kept
    if tied.any():
        equal = bits[tied] == threshold[tied]
        surplus = mask[tied].sum(axis=-1, dtype=np.int32) - kept
        room = equal.sum(axis=-1, dtype=np.int32) - surplus
        mask[tied] &= ~equal | (equal.cumsum(axis=-1, dtype=np.int32) <= room[:, None])
    return torch.from_numpy(mask)


def random_scores(
    row_ids: Int[np.ndarray, " batch"], n_tokens: Int[np.ndarray, " batch"], *, longest: int, seed: int
) -> Float[np.ndarray, "batch {longest}"]:
    """Scores [batch, longest] that rank a row's tokens in one random order of its own, whatever batch it stands in."""
    scores = np.zeros((len(row_ids), longest), dtype=np.float32)
    for row, (row_id, tokens) in enumerate(zip(row_ids.tolist(), n_tokens.tolist(), strict=True)):
        scores[row, :tokens] = np.random.default_rng([seed, row_id]).permutation(tokens)
    return scores
