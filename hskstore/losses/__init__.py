"""Losses as pure functions of tensors: student and teacher in, one term out. Gradients flow to the student alone."""

from hskstore.losses.attention import attention_kl, attention_mse, in_heads, relation_kl
from hskstore.losses.directions import cosine_distance, direction_distance, normalised_mse
from hskstore.losses.flow import flow_mse
from hskstore.losses.hidden import hidden_mse, kept_hidden_mse
from hskstore.losses.logits import hard_cross_entropy, logit_mse, reverse_kl, score_mse, soft_cross_entropy, standardised
from hskstore.losses.relations import layer_angle, layer_pair, word_angle, word_pair
from hskstore.losses.structure import angle_huber, product_mse, sample_angle_huber, span_means
from hskstore.losses.term import Term
from hskstore.losses.tree import Reduction, random_tree, slices_mse, student_tree, teacher_tree
from hskstore.losses.whole_batch import whole_batch

__all__ = [
    "Reduction",
    "Term",
    "angle_huber",
    "attention_kl",
    "attention_mse",
    "cosine_distance",
    "direction_distance",
    "flow_mse",
    "hard_cross_entropy",
    "hidden_mse",
    "in_heads",
    "kept_hidden_mse",
    "layer_angle",
    "layer_pair",
    "logit_mse",
    "normalised_mse",
    "product_mse",
    "random_tree",
    "relation_kl",
    "reverse_kl",
    "sample_angle_huber",
    "score_mse",
    "slices_mse",
    "soft_cross_entropy",
    "span_means",
    "standardised",
    "student_tree",
    "teacher_tree",
    "whole_batch",
    "word_angle",
    "word_pair",
]
