"""Losses on a model's predictions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def soft_cross_entropy(
    student: Float[Tensor, "batch class"], teacher: Float[Tensor, "batch class"], *, temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's softened probabilities under the teacher's, mean over the batch, times temperature^2.

    The factor keeps the gradient's size when the temperature changes (Hinton et al., 2015, section 2). It is not a KL
    divergence: at equality it is the teacher's entropy, not zero.
    """
    target = (teacher.detach() / temperature).softmax(dim=-1)
    cross_entropy = -(target * (student / temperature).log_softmax(dim=-1)).sum(dim=-1)
    return cross_entropy.mean() * temperature**2


def hard_cross_entropy(student: Float[Tensor, "batch class"], label: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Cross-entropy of the student's probabilities under the gold label, mean over the batch."""
    return torch.nn.functional.cross_entropy(student, label)


def score_mse(student: Float[Tensor, "batch 1"], target: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean squared difference of the student's score and a target score, the teacher's or the gold one."""
    return (student.squeeze(1) - target.detach()).square().mean()
