"""Losses as pure functions of tensors: student and teacher in, one term out. Gradients flow to the student alone."""

from hskstore.losses.directions import cosine_distance, normalised_mse
from hskstore.losses.hidden import hidden_mse, kept_hidden_mse
from hskstore.losses.logits import hard_cross_entropy, score_mse, soft_cross_entropy
from hskstore.losses.term import Term
from hskstore.losses.whole_batch import whole_batch

__all__ = [
    "Term",
    "cosine_distance",
    "hard_cross_entropy",
    "hidden_mse",
    "kept_hidden_mse",
    "normalised_mse",
    "score_mse",
    "soft_cross_entropy",
    "whole_batch",
]
