"""Losses on how tokens, spans and samples stand to each other: products by twos in many heads, angles by threes (MGSKD).

Multi-Granularity Structural Knowledge Distillation (Liu et al., ACL 2022), section 3. A head is a run of a vector's coordinates.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from hskstore.losses.geometry import SAME, inner_products, inverse_root
from hskstore.losses.relations import Divisor
from hskstore.losses.term import NEVER, Term, wide


def product_mse(
    student: Float[Tensor, "layer batch item width"],
    teacher: Float[Tensor, "layer batch item width"],
    *,
    is_real: Bool[Tensor, "batch item"],
    heads: int,
) -> Term:
    """Squared difference of the products x y / sqrt(width / heads) of all real items with all, themselves included (Equation 3):
    mean over rows, heads and pairs, summed over layers; the term is [layer].

    No product of two items is kept: with D = S - T the sum of squares of S S' - T T' is <D'D, S'S + T'T> + 2 tr(D'T D'S), of
    matrices as large as a head, which all follow from those of D and T.
    """
    own, target = (_in_heads(torch.where(is_real[..., None], each, 0), heads).mT for each in (student, teacher.detach()))
    size = own.shape[3]
    products = inner_products(torch.cat([own - target, target], dim=3))
    of_apart, crossed, of_target = products[..., :size, :size], products[..., :size, size:], products[..., size:, size:]
    of_own = of_apart + crossed + crossed.mT + of_target
    total = (of_apart * (of_own + of_target) + 2 * crossed * (of_apart + crossed).mT).sum(dim=(1, 2, 3, 4)) / size
    count = heads * is_real.sum(dim=1).square().sum()
    return Term(total, count.expand(len(total)))


def angle_huber(
    student: Float[Tensor, "layer batch item width"],
    teacher: Float[Tensor, "layer batch item width"],
    *,
    is_real: Bool[Tensor, "batch item"],
    heads: int,
    vertices: int,
    neighbours: int,
    divisor: Divisor = "valid",
) -> Term:
    """Huber loss on cosines of angles (Equation 4) at the `vertices` most salient items of a row, each between any two of its
    `neighbours` most salient others, by the teacher (Equation 5): mean over rows, heads and triples, summed over layers; the term
    is [layer]. Divided by the triples of three different real items, or, as by the public code, by those whose angle of the
    student is not exactly zero.

    Memory is that of vertices x neighbours^2 angles, and of items^2 products a head, in float64.
    """
    own, target = (_in_heads(torch.where(is_real[..., None], each, 0), heads) for each in (student, teacher.detach()))
    vertex, near, counted = _salient(target, is_real, vertices, neighbours)
    mine, theirs = (_angles(inner_products(each.double()), vertex, near).to(wide(student)) for each in (own, target))
    valid = (counted[:, :, None] & (mine != 0)) if divisor == "code" else counted[:, :, None].expand_as(mine)
    total = torch.where(valid, _huber(mine, theirs), 0).sum(dim=(1, 2, 3, 4, 5))
    return Term(total, valid.sum(dim=(1, 2, 3, 4, 5)))


def sample_angle_huber(
    student: Float[Tensor, "layer batch width"],
    teacher: Float[Tensor, "layer batch width"],
    *,
    heads: int,
    divisor: Divisor = "valid",
) -> Term:
    """Huber loss on cosines of the angles at each row of a batch between any two others (Equation 7): mean over heads and
    triples, summed over layers; the term is [layer]. Divided by the triples of different rows, or, as by the public code, by
    batch^3.

    Memory is that of heads x batch^3 angles, and of width x batch^2 numbers in float64.
    """
    own, target = (_in_heads(each[:, None], heads)[:, 0] for each in (student, teacher.detach()))
    batch = student.shape[1]
    every = torch.arange(batch, device=student.device)
    same = every[:, None] == every
    counted = ~(same[:, :, None] | same[:, None, :] | same[None])  # vertex, end, end
    mine, theirs = (inner_products(_directions(each)) for each in (own, target))
    total = torch.where(counted, _huber(mine, theirs), 0).sum(dim=(1, 2, 3, 4))
    triples = batch**3 if divisor == "code" else batch * (batch - 1) * (batch - 2)
    return Term(total, torch.full_like(total, heads * triples, dtype=torch.long))


def span_means(
    states: Float[Tensor, "layer batch token width"],
    start: Int[Tensor, "batch span"],
    end: Int[Tensor, "batch span"],
    *,
    is_real: Bool[Tensor, "batch token"],
) -> tuple[Float[Tensor, "layer batch span width"], Bool[Tensor, "batch span"]]:
    """The mean of the real tokens from `start` to the one before `end` (Equation 1), and which spans have one; others: zeros."""
    place = torch.arange(states.shape[2], device=states.device)
    inside = (place >= start[..., None]) & (place < end[..., None]) & is_real[:, None]
    tokens = inside.sum(dim=-1)
    share = inside.to(states.dtype) / tokens.clamp(min=1)[..., None]
    with torch.autocast(states.device.type, enabled=False):
        return share @ torch.where(is_real[..., None], states, 0), tokens > 0


def _in_heads(vectors: Float[Tensor, "layer batch item width"], heads: int) -> Float[Tensor, "layer batch head item size"]:
    """In float32, or what is finer."""
    size = vectors.shape[-1] // heads
    return vectors.to(wide(vectors)).view(*vectors.shape[:-1], heads, size).transpose(2, 3)


def _salient(
    teacher: Float[Tensor, "layer batch head item size"], is_real: Bool[Tensor, "batch item"], vertices: int, neighbours: int
) -> tuple[
    Int[Tensor, "layer batch 1 vertex"], Int[Tensor, "layer batch 1 vertex near"], Bool[Tensor, "layer batch vertex near near"]
]:
    """Equation 5: the items that all attend to most, for each of them those that it attends to most, itself apart; and which
    triples are of three different real items."""
    items = is_real.shape[1]
    with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
        scores = (teacher @ teacher.mT * teacher.shape[-1] ** -0.5).masked_fill(~is_real[:, None, None], NEVER)
        local = scores.softmax(dim=-1).sum(dim=2)
        of_real = torch.where(is_real[..., None], local, 0)
        everywhere = of_real.sum(dim=2).masked_fill(~is_real, -1)
        found = everywhere.topk(min(vertices, items))
        vertex, is_vertex = found.indices, found.values >= 0
        others = local.masked_fill(~is_real[:, None], -1)
        others.diagonal(dim1=-2, dim2=-1).fill_(-1)
        best = others.gather(2, vertex[..., None].expand(-1, -1, -1, items)).topk(min(neighbours, items))
        is_near = (best.values >= 0) & is_vertex[..., None]
        same = torch.eye(best.indices.shape[-1], dtype=torch.bool, device=teacher.device)
        counted = is_near[..., :, None] & is_near[..., None, :] & ~same
    return vertex[:, :, None], best.indices[:, :, None], counted


def _angles(
    inner: Float[Tensor, "*rows item item"], vertex: Int[Tensor, "*#rows vertex"], near: Int[Tensor, "*#rows vertex near"]
) -> Float[Tensor, "*rows vertex near near"]:
    """Equation 4: cosines of the angle at each vertex j between any two i, k of those near it, from inner products alone:
    <i - j, k - j> = <i, k> - <i, j> - <j, k> + <j, j>. 0 where an end is one with the vertex."""
    rows, items = inner.shape[:-2], inner.shape[-1]
    vertex, near = vertex.expand(*rows, vertex.shape[-1]), near.expand(*rows, *near.shape[-2:])
    squares = inner.diagonal(dim1=-2, dim2=-1)
    middle = squares.gather(-1, vertex)[..., None]
    with_middle = inner.gather(-2, vertex[..., None].expand(*vertex.shape, items)).gather(-1, near)
    ends = squares.gather(-1, near.flatten(-2)).view(near.shape)
    both = ends + middle
    apart = both - 2 * with_middle
    shrink = inverse_root(apart, apart > SAME * both)
    of_two = near[..., :, None] * items + near[..., None, :]
    between = inner.flatten(-2).gather(-1, of_two.flatten(-3)).view(of_two.shape)
    dots: Tensor = between - with_middle[..., :, None] - with_middle[..., None, :] + middle[..., None]
    return dots * shrink[..., :, None] * shrink[..., None, :]


def _directions(vectors: Float[Tensor, "*rows item size"]) -> Float[Tensor, "*rows item item size"]:
    """From each item to each, at length 1; 0 to itself and to one that is the same. In float64 differences of float32 numbers
    are exact."""
    fine = vectors.double()
    apart = fine[..., None, :, :] - fine[..., :, None, :]
    squares = fine.square().sum(dim=-1)
    distance = apart.square().sum(dim=-1)
    there = distance > SAME * (squares[..., :, None] + squares[..., None, :])
    return (apart * inverse_root(distance, there)[..., None]).to(vectors.dtype)


def _huber(student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return smooth_l1_loss(student, teacher, reduction="none")
