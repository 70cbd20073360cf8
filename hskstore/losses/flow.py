"""A loss on how a vector becomes that of the layer above: flows of solution procedure (Yim et al., CVPR 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from hskstore.losses.term import Term


def flow_mse(
    lower: Float[Tensor, "pair batch width"],
    upper: Float[Tensor, "pair batch width"],
    *,
    teacher_lower: Float[Tensor, "pair batch width"],
    teacher_upper: Float[Tensor, "pair batch width"],
) -> Term:
    """Mean squared difference of the entries of the student's and the teacher's products of two layers' vectors, lower x upper^T
    / |lower|, mean over rows, summed over pairs of layers; the term is [pair].

    Equations 16 and 17 of KSM (Wang et al., EMNLP Findings 2023); |lower| is read as the vector's length. The products, width x
    width each, are never built: with unit vectors a, c and vectors b, d the difference a b^T - c d^T is a (b - d)^T + (a - c)
    d^T, whose squares add up to |b - d|^2 + |a - c|^2 |d|^2 + 2 (a . (a - c)) ((b - d) . d), each small where the vectors agree.
    """
    own, theirs = normalize(lower, dim=-1), normalize(teacher_lower.detach().to(lower.dtype), dim=-1)
    target = teacher_upper.detach().to(upper.dtype)
    off, turned = upper - target, own - theirs
    squares = (
        off.square().sum(dim=-1)
        + turned.square().sum(dim=-1) * target.square().sum(dim=-1)
        + 2 * (own * turned).sum(dim=-1) * (off * target).sum(dim=-1)
    )
    rows, width = upper.shape[1:]
    return Term(squares.sum(dim=1) / width**2, torch.full((len(squares),), rows, device=squares.device))
