"""Losses on a model's predictions."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import layer_norm

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


def reverse_kl(student: Float[Tensor, "batch class"], teacher: Float[Tensor, "batch class"], *, temperature: float) -> Term:
    """KL divergence of the student's softened probabilities from the teacher's, mean over the batch, times temperature^2.

    KL(student || teacher), with the student's probabilities as the weights: Equation 3 of MiniLLM (Gu et al., ICLR 2024), of one
    prediction. It is zero at equality, and what the teacher thinks unlikely is what costs.
    """
    own = (student / temperature).log_softmax(dim=-1)
    target = (teacher.detach() / temperature).log_softmax(dim=-1)
    return Term((own.exp() * (own - target)).sum() * temperature**2, _rows(student))


def logit_mse(student: Float[Tensor, "batch class"], teacher: Float[Tensor, "batch class"]) -> Term:
    """Squared difference of logits, mean over classes and the batch (Ba and Caruana, 2014, Equation 1, but for its factor 1/2).

    Where each row's logits have the mean 0 its gradients are twice those of `soft_cross_entropy` at a very high temperature
    (Hinton et al., 2015, Equation 4).
    """
    return Term((student - teacher.detach()).square().mean(dim=-1).sum(), _rows(student))


def standardised(logits: Float[Tensor, "batch class"]) -> Float[Tensor, "batch class"]:
    """Each row's logits less their mean, in standard deviations over the classes: Logit Standardization in Knowledge
    Distillation (Sun et al., CVPR 2024), Algorithm 1.

    Constant logits become zeros: 1e-6 is added to the variance, which bounds the gradient. Of two classes nothing is left but
    which is ahead: -1 and 1.
    """
    return layer_norm(logits, logits.shape[-1:], eps=1e-6)


def hard_cross_entropy(student: Float[Tensor, "batch class"], label: Int[Tensor, " batch"]) -> Term:
    """Cross-entropy of the student's probabilities under the gold label, mean over the batch."""
    return Term(torch.nn.functional.cross_entropy(student, label, reduction="sum"), _rows(student))


def score_mse(student: Float[Tensor, "batch 1"], target: Float[Tensor, " batch"]) -> Term:
    """Mean squared difference of the student's score and a target score, the teacher's or the gold one."""
    return Term((student.squeeze(1) - target.detach()).square().sum(), _rows(student))


def _rows(student: Shaped[Tensor, "batch ..."]) -> Int[Tensor, ""]:
    return torch.full((), len(student), device=student.device)  # filled there: a number that is copied to a GPU is waited for
