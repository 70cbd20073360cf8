"""Losses as pure functions of tensors: student and teacher in, one scalar out. Gradients flow to the student alone."""

from hskstore.losses.hidden import hidden_mse, kept_hidden_mse
from hskstore.losses.logits import hard_cross_entropy, score_mse, soft_cross_entropy

__all__ = ["hard_cross_entropy", "hidden_mse", "kept_hidden_mse", "score_mse", "soft_cross_entropy"]
