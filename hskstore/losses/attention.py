"""Losses on what attention is made of: how queries, keys and values of a row's tokens stand to each other, head by head."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hskstore.losses.term import NEVER, Term, wide


def relation_kl(
    student: Float[Tensor, "batch head token own"],
    teacher: Float[Tensor, "batch head token size"],
    *,
    is_real: Bool[Tensor, "batch token"],
) -> Term:
    """KL(teacher || student) of how each real token's vector stands to those of all: mean over rows, heads and real tokens.

    A relation is the softmax of x x' / sqrt(size) over the real tokens, each side by its own size. Of values in the attention's
    own heads it is the value relation of MiniLM (Wang et al., NeurIPS 2020, section 3.2); of queries, keys or values in relation
    heads it is section 3.1 of MiniLMv2 (Wang et al., Findings of ACL 2021).
    """
    own, target = (_scores(each, each, is_real) for each in (student, teacher.detach()))
    return _divergence(own, target, is_real)


def attention_kl(
    student_query: Float[Tensor, "batch head token own"],
    student_key: Float[Tensor, "batch head token own"],
    teacher_query: Float[Tensor, "batch head token size"],
    teacher_key: Float[Tensor, "batch head token size"],
    *,
    is_real: Bool[Tensor, "batch token"],
) -> Term:
    """KL(teacher || student) of each head's attention, softmax(q k' / sqrt(size)), from every real token to the real ones: mean
    over rows, heads and real tokens. Section 3.1 of MiniLM (Wang et al., NeurIPS 2020).
    """
    own = _scores(student_query, student_key, is_real)
    return _divergence(own, _scores(teacher_query.detach(), teacher_key.detach(), is_real), is_real)


def attention_mse(
    student_query: Float[Tensor, "layer batch head token own"],
    student_key: Float[Tensor, "layer batch head token own"],
    teacher_query: Float[Tensor, "layer batch head token size"],
    teacher_key: Float[Tensor, "layer batch head token size"],
    *,
    is_real: Bool[Tensor, "batch token"],
) -> Term:
    """Squared difference of raw attention scores, q k' / sqrt(size), from every real token to the real ones: mean over rows,
    heads and pairs of tokens, summed over layers; the term is [layer].

    Equation 7 of TinyBERT (Jiao et al., Findings of EMNLP 2020). Its public code also counts what stands at padding, as zeros on
    both sides, so that its mean falls with the padding.
    """
    own = _scores(student_query, student_key, is_real)
    target = _scores(teacher_query.detach(), teacher_key.detach(), is_real)
    counted = is_real[:, None, :, None] & is_real[:, None, None]
    total = (own - target).square().sum(dim=(1, 2, 3, 4))  # both are 0 where one of the two is no token
    return Term(total, (counted.sum() * own.shape[2]).expand(len(total)))


def in_heads(vectors: Float[Tensor, "batch head token size"], heads: int) -> Float[Tensor, "batch _heads token _size"]:
    """The vectors of all heads side by side, cut into so many others: the relation heads of MiniLMv2, which need not be those of
    the attention."""
    batch, own, tokens, size = vectors.shape
    return vectors.transpose(1, 2).reshape(batch, tokens, heads, own * size // heads).transpose(1, 2)


def _divergence(
    student: Float[Tensor, "batch head token token"],
    teacher: Float[Tensor, "batch head token token"],
    is_real: Bool[Tensor, "batch token"],
) -> Term:
    """Of scores before the softmax."""
    own, target = (torch.where(is_real[:, None, None], each, NEVER).log_softmax(dim=-1) for each in (student, teacher))
    counted = is_real[:, None, :, None] & is_real[:, None, None]
    total = torch.where(counted, target.exp() * (target - own), 0).sum()
    return Term(total, is_real.sum() * student.shape[1])


def _scores(
    query: Float[Tensor, "*rows head token size"],
    key: Float[Tensor, "*rows head token size"],
    is_real: Bool[Tensor, "batch token"],
) -> Float[Tensor, "*rows head token token"]:
    """Scaled products of all with all, in float32 or what is finer, whatever autocast says; what is no token counts as zeros."""
    first, second = (torch.where(is_real[:, None, :, None], each.to(wide(each)), 0) for each in (query, key))
    with torch.autocast(first.device.type, enabled=False):
        scores: Tensor = (first * first.shape[-1] ** -0.5) @ second.mT
    return scores
