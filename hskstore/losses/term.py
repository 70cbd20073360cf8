"""What a loss is before it is divided."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

NEVER = -1e9
"""Of a softmax: what is not to be chosen. No infinity, so that a row of nothing else has gradients."""


def wide(vectors: Float[Tensor, "..."]) -> torch.dtype:
    """That a term of these is computed in: float32, or what is finer."""
    return torch.promote_types(vectors.dtype, torch.float32)


@dataclass(frozen=True)
class Term:
    """A loss as a sum and what it is divided by, such as rows or kept numbers: each one number, or one per layer.

    They stay apart until both are those of the whole batch: where processes share one, the mean of their means is another
    number than the mean.
    """

    total: Float[Tensor, "*layer"]
    count: Shaped[Tensor, "*layer"]

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean, of layers their sum. Where nothing counts it is zero."""
        return (self.total / self.count.clamp(min=1)).sum()
