"""Losses on hidden states."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def hidden_mse(
    student: Float[Tensor, "layer batch token width"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    token_kept: Bool[Tensor, "layer batch token"],
    width_kept: Bool[Tensor, "layer batch token width"] | None = None,
) -> Float[Tensor, ""]:
    """Equation 3 of Marginal Utility Diminishes: the mean squared difference of each layer, summed over layers.

    The mean is over kept tokens x width. Without `width_kept`, coordinates that the teacher's mask dropped count with
    the target they have in `teacher`, which is zero: M * h is the target (paper and public code). With `width_kept`
    only kept coordinates count, in the sum and in the mean. A layer with nothing kept adds zero.
    """
    counted = token_kept[..., None].expand_as(student)
    if width_kept is not None:
        counted = counted & width_kept
    difference = torch.where(counted, student - teacher.detach(), 0)
    return (difference.square().sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)).sum()
