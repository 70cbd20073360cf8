"""The feature `attended`: the tokens that each token attends to most, head by head, from which a teacher's trees are grown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hskstore.features.codes import Codebooks
from hskstore.features.contract import FeatureRows, Kind
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import MOST_ATTENDED, Attended
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class AttendedTargets:
    """Of each token of a batch those that it attends to most, the first of them most of all: positions in the teacher's row, -1
    where a row has no more."""

    token: Int[Tensor, "layer batch head token choice"]

    def emptied(self) -> "AttendedTargets":
        """The same without its rows."""
        return AttendedTargets(self.token[:, :0])


def _sight(feature: Attended) -> Sight:
    return Sight(attended=frozenset(feature.layers), choices=MOST_ATTENDED)


def _capture(feature: Attended, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    _, _, attention_mask = batch
    token = torch.stack([seen.attended[layer] for layer in feature.layers], dim=1).to(torch.int16)
    return {"token": token.masked_fill(~attention_mask[:, None, None, :, None], 0)}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> AttendedTargets:
    stored = own.chosen("token", rows, places)[:, :, :, : int(n_tokens.max())]
    return AttendedTargets(torch.from_numpy(stored.swapaxes(0, 1).astype(np.int64)))


ATTENDED: Kind[AttendedTargets] = Kind("attended", _sight, _capture, _targets)
"""The tokens that each token attends to most, head by head, of some teacher layers."""
