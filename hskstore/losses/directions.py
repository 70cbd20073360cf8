"""Losses on where vectors point, whatever their lengths."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from hskstore.losses.term import Term

ROUNDING = 1e-5
"""Of a distance of vectors of length 1 that two ways to the same float32 vectors make."""


def normalised_mse(student: Float[Tensor, "layer batch width"], teacher: Float[Tensor, "layer batch width"]) -> Term:
    """Mean squared difference of vectors of length 1, over rows and coordinates, summed over layers; the term is [layer].

    Equation 7 of Patient Knowledge Distillation (Sun et al., 2019), which sums; its public code averages, as its grid of beta
    from 10 to 1000 asks for.
    """
    difference = normalize(student, dim=-1) - normalize(teacher.detach().to(student.dtype), dim=-1)
    squares = difference.square()
    return Term(squares.sum(dim=(1, 2)), squares.new_full((len(squares),), squares[0].numel()))


def direction_distance(student: Float[Tensor, "layer batch width"], teacher: Float[Tensor, "layer batch width"]) -> Term:
    """Distance of vectors of length 1, mean over rows, summed over layers; the term is [layer].

    Equation 15 of KSM (Wang et al., EMNLP Findings 2023), whose norm is not squared: its gradient is as long however near the
    vectors are, so that distances below `ROUNDING` are nothing and have none.
    """
    squares = (normalize(student, dim=-1) - normalize(teacher.detach().to(student.dtype), dim=-1)).square().sum(dim=-1)
    apart = squares > ROUNDING**2
    distance = torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)
    return Term(distance.sum(dim=1), torch.full((len(distance),), distance.shape[1], device=distance.device))


def cosine_distance(
    student: Float[Tensor, "layer batch token width"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    is_real: Bool[Tensor, "batch token"],
) -> Term:
    """1 - cosine of each real token's two vectors, mean over these tokens, summed over layers; the term is [layer].

    Section 3 of DistilBERT (Sanh et al., 2019), and its public code's cosine embedding loss.
    """
    distance = torch.where(is_real, 1 - cosine_similarity(student, teacher.detach().to(student.dtype), dim=-1), 0)
    return Term(distance.sum(dim=(1, 2)), is_real.sum().expand(len(distance)))
