"""Dropout on a CPU at the speed of the arithmetic around it.

torch draws a Bernoulli number for every element on one core, which is a sixth of a training step in bf16. Here 16 random bits
an element decide, drawn 64 at a time from the same generator.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LEVELS = 2**16
"""Probabilities are rounded to one of so many."""


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """`x` with each element zero with probability `p`, else divided by 1 - p: what torch's dropout is in training."""
    dropped = round(p * LEVELS)
    if dropped == LEVELS:
        return x * 0
    bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - dropped)))


def attention(
    query: Float[Tensor, "batch head query width"],
    key: Float[Tensor, "batch head key width"],
    value: Float[Tensor, "batch head key value"],
    mask: Bool[Tensor, "#batch #head #query #key"] | Float[Tensor, "#batch #head #query #key"] | None,
    p: float,
    scale: float | None,
) -> Float[Tensor, "batch head query value"]:
    """Scaled dot-product attention with dropout on its probabilities, as torch computes it."""
    score = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        score = score.masked_fill(~mask, torch.finfo(score.dtype).min) if mask.dtype == torch.bool else score + mask
    return dropout(score.softmax(dim=-1).to(value.dtype), p) @ value


class FastDropout(TorchFunctionMode):
    """Inside it, dropout of CPU tensors, also that of attention, is the one above; other random numbers, the same rates."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # torch's names
    if not training or p == 0 or input.device.type != "cpu" or inplace or not input.is_floating_point():
        return nn.functional.dropout(input, p, training, inplace)
    return dropout(input, p)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p == 0 or query.device.type != "cpu" or is_causal or enable_gqa:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return attention(query, key, value, attn_mask, dropout_p, scale)


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    nn.functional.dropout: _dropout,
    nn.functional.scaled_dot_product_attention: _attention,
}
