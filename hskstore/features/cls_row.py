"""The feature `cls_row`: the [CLS] row of the attention of some layers, mean over heads, by which any rank can be made later."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hskstore.features.codes import Codebooks
from hskstore.features.contract import FeatureRows, Kind
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import ClsRow
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class ClsRowTargets:
    """The teacher's probabilities of a batch's tokens, as the first token attends to them; behind a row's last token zeros."""

    probability: Float[Tensor, "layer batch token"]

    def emptied(self) -> "ClsRowTargets":
        """The same without its rows."""
        return ClsRowTargets(self.probability[:, :0])


def _sight(feature: ClsRow) -> Sight:
    layers = frozenset(feature.layers)
    return Sight(cls_row=layers, raw_cls_row=layers if feature.raw else frozenset())


def _capture(feature: ClsRow, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    _, _, attention_mask = batch
    padding = ~attention_mask[:, None, :]
    found = {"probability": seen.cls_row, "raw": seen.raw_cls_row} if feature.raw else {"probability": seen.cls_row}
    arrays = {
        name: torch.stack([by_layer[layer].float() for layer in feature.layers], dim=1).masked_fill(padding, 0)
        for name, by_layer in found.items()
    }
    finite = torch.stack([array.isfinite().all(dim=2) for array in arrays.values()]).all(dim=0)
    return arrays | {"finite": finite}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> ClsRowTargets:
    stored = own.chosen("probability", rows, places)[:, :, : int(n_tokens.max())]
    return ClsRowTargets(torch.from_numpy(np.ascontiguousarray(stored.swapaxes(0, 1))))


CLS_ROW: Kind[ClsRowTargets] = Kind("cls_row", _sight, _capture, _targets)
"""The [CLS] row of the attention, mean over heads, of some teacher layers."""
