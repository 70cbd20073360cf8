"""The feature `cls`: the vectors of the first token, [CLS], of some teacher layers."""

import torch
from torch import Tensor

from hskstore.features.codes import Codebooks
from hskstore.features.contract import Kind
from hskstore.features.of_rows import RowTargets, row_targets
from hskstore.features.pack import are_finite, encode, round_values
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Cls
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


def _sight(feature: Cls) -> Sight:
    return Sight(hidden=frozenset(feature.layers), first=True)


def _capture(feature: Cls, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    rounded = torch.stack([round_values(seen.hidden[layer][:, 0], feature.values) for layer in feature.layers], dim=1)
    return encode(rounded, feature.values, books) | {"finite": are_finite(rounded)}


CLS: Kind[RowTargets] = Kind("cls", _sight, _capture, row_targets)
"""The vector of the first token, of some teacher layers."""
