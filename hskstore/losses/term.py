"""What a loss is before it is divided."""

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor


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
