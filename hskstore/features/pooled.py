"""The feature `pooled`: the mean of a row's real tokens, of some teacher layers."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hskstore.features.codes import Codebooks
from hskstore.features.contract import Kind
from hskstore.features.of_rows import RowTargets, row_targets
from hskstore.features.pack import are_finite, encode, round_values
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Pooled
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


def mean_of_tokens(
    state: Float[Tensor, "batch token width"], is_real: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch width"]:
    """The mean of each row's real tokens, [CLS] and [SEP] among them, in float32 at least (Liu et al., 2022, section 3.1)."""
    wide = torch.promote_types(state.dtype, torch.float32)
    total = state.masked_fill(~is_real[..., None], 0).sum(dim=1, dtype=wide)
    return total / is_real.sum(dim=1, keepdim=True)


def _sight(feature: Pooled) -> Sight:
    return Sight(hidden=frozenset(feature.layers))


def _capture(feature: Pooled, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    _, _, attention_mask = batch
    means = (mean_of_tokens(seen.hidden[layer], attention_mask) for layer in feature.layers)
    rounded = torch.stack([round_values(mean, feature.values) for mean in means], dim=1)
    return encode(rounded, feature.values, books) | {"finite": are_finite(rounded)}


POOLED: Kind[RowTargets] = Kind("pooled", _sight, _capture, row_targets)
"""The mean of a row's tokens, of some teacher layers."""
