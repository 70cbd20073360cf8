"""The feature `cls`: the vectors of the first token, [CLS], of some teacher layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hskstore.features.contract import FeatureRows, Kind
from hskstore.features.pack import are_finite, encode, round_values
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Cls
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class ClsTargets:
    """The teacher's vectors of a batch's first tokens: f16 where the store's are, else float32."""

    values: Float[Tensor, "layer batch width"]

    def emptied(self) -> "ClsTargets":
        """The same without its rows."""
        return ClsTargets(self.values[:, :0])


def _sight(feature: Cls) -> Sight:
    return Sight(hidden=frozenset(feature.layers), first=True)


def _capture(feature: Cls, plan: Plan, seen: Seen, batch: Inputs, rows: Rows) -> dict[str, Tensor]:
    rounded = torch.stack([round_values(seen.hidden[layer][:, 0], feature.values) for layer in feature.layers], dim=1)
    return encode(rounded, feature.values) | {"finite": are_finite(rounded)}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> ClsTargets:
    stored = {name: own.chosen(name, rows, places) for name in own.arrays}
    values = own.feature.encoding.decode(stored["values"], stored.get("scale"), own.feature.hidden_size)
    return ClsTargets(torch.from_numpy(np.ascontiguousarray(values.swapaxes(0, 1))))


CLS: Kind[ClsTargets] = Kind("cls", _sight, _capture, _targets)
