"""Trees of tokens, grown from the top layer down by what attends to what, and a loss on the parts of vectors that they choose.

Tree Knowledge Distillation (Xu et al., KSEM 2022), Algorithm 1: the root is [CLS] at the last layer; in every head, the children
of a node are the tokens that it attends to most, in the layer where it stands. A token counts once in a head's tree of a layer.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from hskstore.losses.term import Term, wide

Reduction = Literal["mean", "sum"]
"""Of squared differences: their mean, or the literal sum of the paper."""


def student_tree(
    query: Sequence[Float[Tensor, "batch head token size"]],
    key: Sequence[Float[Tensor, "batch head token size"]],
    *,
    is_real: Bool[Tensor, "batch token"],
    children: int,
) -> Bool[Tensor, "layer batch head token"]:
    """The nodes of each layer, lowest first as in `query`, by a model's own attention: of the rows of nodes alone, so that no
    whole map is made."""

    def best(layer: int, node: Int[Tensor, "batch head node"]) -> Int[Tensor, "batch head node choice"]:
        chosen = query[layer].detach().float().gather(2, node[..., None].expand(-1, -1, -1, query[layer].shape[-1]))
        with torch.autocast(chosen.device.type, enabled=False):
            scores = chosen @ key[layer].detach().float().mT
        found = scores.masked_fill(~is_real[:, None, None], -torch.inf).topk(min(children, scores.shape[-1]))
        return found.indices.masked_fill(found.values == -torch.inf, -1)

    return _grown(best, len(query), query[0].shape[1], is_real, children)


def teacher_tree(
    attended: Int[Tensor, "layer batch head token choice"], *, is_real: Bool[Tensor, "batch token"], children: int
) -> Bool[Tensor, "layer batch head token"]:
    """The nodes of each layer, lowest first, by what each token attends to most, the first of them most of all; what is no token
    of the row is no child."""

    def best(layer: int, node: Int[Tensor, "batch head node"]) -> Int[Tensor, "batch head node choice"]:
        among = attended[layer, ..., :children]
        return among.gather(2, node[..., None].expand(-1, -1, -1, among.shape[-1]))

    return _grown(best, len(attended), attended.shape[2], is_real, children)


def random_tree(
    layers: int, heads: int, nodes: int, *, is_real: Bool[Tensor, "batch token"]
) -> Bool[Tensor, "layer batch head token"]:
    """So many real tokens of each row, or all, drawn for every layer and head: "RAND" of the paper's section 5.2."""
    batch, tokens = is_real.shape
    drawn = torch.rand(layers, batch, heads, tokens, device=is_real.device).masked_fill(~is_real[:, None], -1)
    chosen = torch.zeros_like(drawn, dtype=torch.bool).scatter_(-1, drawn.topk(min(nodes, tokens)).indices, True)
    return chosen & is_real[:, None]


def slices_mse(
    student: Float[Tensor, "layer batch token width"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    kept: Bool[Tensor, "layer batch slice token"],
    reduction: Reduction = "mean",
) -> Term:
    """Squared difference of kept slices of vectors, each of length 1: mean over them and their coordinates, summed over layers;
    the term is [layer]. With "sum" the sum over rows, layers, tokens and slices.

    Each vector is cut into as many slices as `kept` has, side by side. Those that a tree keeps of each head: Equation 6; of
    [CLS], whole: Equation 7; of all tokens, whole: Equation 10.
    """
    slices = kept.shape[2]
    own, target = (
        normalize(each.to(wide(each)).view(*each.shape[:3], slices, each.shape[-1] // slices), dim=-1)
        for each in (student, teacher.detach())
    )
    counted = kept.transpose(2, 3)
    total = torch.where(counted, (own - target).square().sum(dim=-1), 0).sum(dim=(1, 2, 3))
    number = counted.sum(dim=(1, 2, 3)) * own.shape[-1]
    return Term(total, number if reduction == "mean" else torch.zeros_like(number))


def _grown(
    best: Callable[[int, Tensor], Tensor], layers: int, heads: int, is_real: Bool[Tensor, "batch token"], children: int
) -> Bool[Tensor, "layer batch head token"]:
    """`best` gives the children of some nodes [batch, head, node] in a layer: positions; those of no real token are none."""
    batch, tokens = is_real.shape
    nodes = torch.zeros(batch, heads, tokens, dtype=torch.bool, device=is_real.device)
    nodes[..., 0] = is_real[:, :1]
    found: list[Tensor] = []
    most = 1
    for layer in reversed(range(layers)):
        grown_from = nodes.byte().topk(most).indices
        chosen = best(layer, grown_from)
        is_child = nodes.gather(-1, grown_from)[..., None] & (chosen >= 0) & (chosen < tokens)
        place = torch.where(is_child, chosen, tokens).flatten(2)  # what is none goes behind the last token
        nodes = nodes.new_zeros(batch, heads, tokens + 1).scatter_(-1, place, True)[..., :tokens] & is_real[:, None]
        most = min(most * children, tokens)
        found.append(nodes)
    return torch.stack(found[::-1])
