"""Inner products of vectors, from which cosines, distances and angles follow without any difference of vectors."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SAME = 1e-12
"""Of the sum of two vectors' squares. Where the square of their distance is no more, they are one: its direction is rounding."""


def inner_products(vectors: Float[Tensor, "*rows item width"]) -> Float[Tensor, "*rows item item"]:
    """Of all with all, whatever autocast says.

    Distances and angles want them in float64: a difference of products loses as many digits as the vectors are alike, and of
    products of float32 numbers enough are left down to a millionth of the vectors' length.
    """
    products: Tensor = _Products.apply(vectors)  # type: ignore[no-untyped-call]
    return products


class _Products(torch.autograd.Function):
    """The vectors stand on both sides, so that the way back is one product, where two different sides have two."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(vectors)
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        with torch.autocast(vectors.device.type, enabled=False):
            found: Tensor = (gradients[0] + gradients[0].mT) @ vectors
        return found


def inverse_root(squares: Float[Tensor, "*shape"], there: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 / sqrt; where there is nothing, 0 and no gradient."""
    return torch.where(there, torch.where(there, squares, 1).rsqrt(), 0)
