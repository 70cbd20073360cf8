"""What a batch has of a feature that is one vector of a row, such as `cls` and `pooled`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hskstore.features.contract import FeatureRows


@dataclass(frozen=True)
class RowTargets:
    """The teacher's vectors of a batch's rows: f16 where the store's are, else float32."""

    values: Float[Tensor, "layer batch width"]

    def emptied(self) -> "RowTargets":
        """The same without its rows."""
        return RowTargets(self.values[:, :0])


def row_targets(
    own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: Int[np.ndarray, " batch"]
) -> RowTargets:
    """Of some rows and stored layers, whatever the rows' lengths."""
    stored = {name: own.chosen(name, rows, places) for name in own.arrays}
    return RowTargets(own.decoded(stored, places))
