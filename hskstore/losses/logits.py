"""Losses on a model's predictions."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hskstore.losses.term import Term


def soft_cross_entropy(
    student: Float[Tensor, "batch class"], teacher: Float[Tensor, "batch class"], *, temperature: float
) -> Term:
    """Cross-entropy of the student's softened probabilities under the teacher's, mean over the batch, times temperature^2.

    The factor keeps the gradient's size when the temperature changes (Hinton et al., 2015, section 2). It is not a KL
    divergence: at equality it is the teacher's entropy, not zero.
    """
    target = (teacher.detach() / temperature).softmax(dim=-1)
    cross_entropy = -(target * (student / temperature).log_softmax(dim=-1)).sum(dim=-1)
    return Term(cross_entropy.sum() * temperature**2, _rows(student))


def hard_cross_entropy(student: Float[Tensor, "batch class"], label: Int[Tensor, " batch"]) -> Term:
    """Cross-entropy of the student's probabilities under the gold label, mean over the batch."""
    return Term(torch.nn.functional.cross_entropy(student, label, reduction="sum"), _rows(student))


def score_mse(student: Float[Tensor, "batch 1"], target: Float[Tensor, " batch"]) -> Term:
    """Mean squared difference of the student's score and a target score, the teacher's or the gold one."""
    return Term((student.squeeze(1) - target.detach()).square().sum(), _rows(student))


def _rows(student: Shaped[Tensor, "batch ..."]) -> Int[Tensor, ""]:
    return torch.full((), len(student), device=student.device)  # filled there: a number that is copied to a GPU is waited for
