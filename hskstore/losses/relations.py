"""Losses on how vectors stand to each other, in pairs and in triples: of words in a layer, of a word's layers (CKD)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hskstore.losses.geometry import SAME, inner_products, inverse_root
from hskstore.losses.term import NEVER, Term, wide

Relation = Literal["cosine", "l2"]
Edges = Literal["cut", "clamped"]
Divisor = Literal["valid", "code"]


def word_pair(
    student: Float[Tensor, "layer batch token own"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    is_real: Bool[Tensor, "batch token"],
    relation: Relation = "cosine",
    delta: int | None = 10,
    divisor: Divisor = "valid",
) -> Term:
    """How the words of a layer stand to each other by twos; the term is [layer].

    The first sum of Equation 1 of Contextual Knowledge Distillation (Park et al., EMNLP 2021), over pairs of different real
    words at most `delta` apart (None: any). By "cosine" it is KL(teacher || student) of each word's cosines with the others
    after a softmax, as in the public code; by "l2" the squared difference of distances. Divided by the pairs, or as the public
    code does by layers x the sum over rows of tokens^2.
    """
    place = torch.arange(is_real.shape[1], device=is_real.device)
    apart = (place[:, None] - place).abs()
    near = apart > 0 if delta is None else (apart > 0) & (apart <= delta)
    counted = near & is_real[:, :, None] & is_real[:, None, :]
    own, target = (torch.where(is_real[..., None], each, 0) for each in (student, teacher.detach()))
    total = _pair_loss(own, target, counted, relation).sum(dim=(1, 2, 3)).to(wide(student))
    count = counted.sum() if divisor == "valid" else len(student) * is_real.sum(dim=1).square().sum()
    return Term(total, count.expand(len(total)))


def word_angle(
    student: Float[Tensor, "layer batch token own"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    is_real: Bool[Tensor, "batch token"],
    delta: int = 10,
    edges: Edges = "cut",
    divisor: Divisor = "valid",
) -> Term:
    """How the words of a layer stand to each other by threes; the term is [layer].

    The second sum of Equation 1 of Contextual Knowledge Distillation (Park et al., EMNLP 2021): the squared difference of the
    cosines of the angle at a middle word between two others, each at most `delta` from it (Equation 2), all three different and
    real. With "clamped" edges, as in the public code, whatever stands around a real word counts, itself and padding too, and
    places beyond the ends are the first or the last of the padded row. Divided by the triples, or as the public code does by
    layers x real words x (2 delta + 1)^2.

    Memory is that of the angles, 2 delta^2 a token, and of a row's products, tokens^2: no difference of vectors is kept.
    """
    tokens = is_real.shape[1]
    if edges == "cut":
        delta = min(delta, tokens - 1)
    before, after = (torch.arange(*ends, device=is_real.device) for ends in ((-delta, 0), (int(edges == "cut"), delta + 1)))
    offset = torch.cat([before, after])
    wanted = torch.arange(tokens, device=is_real.device)[:, None] + offset
    place = wanted.clamp(0, tokens - 1)
    first, second = _twos(len(offset), is_real.device)
    if edges == "cut":
        beside = (wanted == place) & is_real[:, place] & is_real[:, :, None]
        counted = beside[..., first] & beside[..., second]
        student, teacher = (torch.where(is_real[..., None], each, 0) for each in (student, teacher))
    else:
        counted = is_real[:, :, None].expand(-1, -1, len(first))
    own, target = (_angles(inner_products(each.double()), place, wide(student)) for each in (student, teacher.detach()))
    total = 2 * torch.where(counted, own - target, 0).square().sum(dim=(1, 2, 3))
    count = 2 * counted.sum() if divisor == "valid" else len(student) * is_real.sum() * (2 * delta + 1) ** 2
    return Term(total, count.expand(len(total)))


def layer_pair(
    student: Float[Tensor, "layer batch token own"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    is_real: Bool[Tensor, "batch token"],
    relation: Relation = "cosine",
    divisor: Divisor = "valid",
) -> Term:
    """How a real word's vectors in several layers stand to each other by twos.

    The first sum of Equation 3 of Contextual Knowledge Distillation (Park et al., EMNLP 2021), by the relations of `word_pair`.
    Divided by the pairs, or as the public code does by real words x layers^2. By "cosine" the softmax has nothing to choose among
    two layers: zero.
    """
    layers, words = len(student), is_real.sum()
    counted = ~torch.eye(layers, dtype=torch.bool, device=is_real.device) & is_real[..., None, None]
    own, target = (_by_word(each, is_real) for each in (student, teacher.detach()))
    total = _pair_loss(own, target, counted, relation).sum().to(wide(student))
    return Term(total, words * (layers * (layers - 1) if divisor == "valid" else layers**2))


def layer_angle(
    student: Float[Tensor, "layer batch token own"],
    teacher: Float[Tensor, "layer batch token width"],
    *,
    is_real: Bool[Tensor, "batch token"],
    divisor: Divisor = "valid",
) -> Term:
    """How a real word's vectors in several layers stand to each other by threes.

    The second sum of Equation 3 of Contextual Knowledge Distillation (Park et al., EMNLP 2021): the squared difference of the
    cosines of the angle at one layer between two others, all three different; of two layers there is none. Divided by the
    triples, or as the public code does by real words x layers^3.
    """
    layers, words = len(student), is_real.sum()
    layer = torch.arange(layers, device=is_real.device)
    first, second = _twos(layers, is_real.device)
    counted = (layer[:, None] != first) & (layer[:, None] != second) & is_real[..., None, None]
    place = layer.expand(layers, -1)
    products = (inner_products(_by_word(each, is_real).double()) for each in (student, teacher.detach()))
    own, target = (_angles(each, place, wide(student)) for each in products)
    total = 2 * torch.where(counted, own - target, 0).square().sum()
    return Term(total, words * (layers * (layers - 1) * (layers - 2) if divisor == "valid" else layers**3))


def _by_word(states: Float[Tensor, "layer batch token width"], is_real: Tensor) -> Float[Tensor, "batch token layer width"]:
    return torch.where(is_real[..., None], states, 0).movedim(0, 2)


def _twos(count: int, device: torch.device) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Any two of so many, once: an angle is the same from either end."""
    first, second = torch.triu_indices(count, count, 1, device=device)
    return first, second


def _pair_loss(
    student: Float[Tensor, "*rows place own"],
    teacher: Float[Tensor, "*rows place width"],
    counted: Bool[Tensor, "*#rows place place"],
    relation: Relation,
) -> Float[Tensor, "*rows place place"]:
    """What each pair costs. `counted` may lack the layers."""
    if relation == "l2":
        own, target = (_distances(inner_products(each.double())) for each in (student, teacher))
        return torch.where(counted, own - target, 0).square()
    log_own, log_target = (torch.where(counted, _cosines(each), NEVER).log_softmax(dim=-1) for each in (student, teacher))
    return torch.where(counted, log_target.exp() * (log_target - log_own), 0)


def _cosines(vectors: Float[Tensor, "*rows place width"]) -> Float[Tensor, "*rows place place"]:
    """Of all with all. A vector of zeros is at a right angle to all."""
    products = inner_products(vectors.to(wide(vectors)))
    squares = products.diagonal(dim1=-2, dim2=-1).double()  # the gradients of whose roots leave the range of float32
    shrink = inverse_root(squares, squares > 0).to(products.dtype)
    return products * shrink[..., None] * shrink[..., None, :]


def _distances(products: Float[Tensor, "*rows place place"]) -> Float[Tensor, "*rows place place"]:
    """0 between vectors that are one, from which no gradient comes."""
    squares = products.diagonal(dim1=-2, dim2=-1)
    both = squares[..., :, None] + squares[..., None, :]
    apart = both - 2 * products
    return apart * inverse_root(apart, apart > SAME * both)


def _angles(
    products: Float[Tensor, "*rows token token"], place: Int[Tensor, "token window"], dtype: torch.dtype
) -> Float[Tensor, "*rows token pair"]:
    """Equation 2: cosines of the angle at each j between any two i, k of those at `place` beside it, from inner products alone:
    <i - j, k - j> = <i, k> - <i, j> - <j, k> + <j, j>. 0 where an end is one with the middle. Once the differences are taken,
    `dtype` will do.
    """
    first, second = _twos(place.shape[1], place.device)
    squares = products.diagonal(dim1=-2, dim2=-1)
    with_middle = products.gather(-1, place.expand(*products.shape[:-2], -1, -1))
    both = squares[..., place] + squares[..., None]
    apart = both - 2 * with_middle
    shrink = inverse_root(apart, apart > SAME * both).to(dtype)
    of_two = place[:, first] * len(place) + place[:, second]
    ends = _picked(products.flatten(-2), of_two.flatten()).view(*products.shape[:-2], *of_two.shape)
    dots: Tensor = ends + _picked(squares[..., None] - with_middle, first) - _picked(with_middle, second)
    return dots.to(dtype) * (_picked(shrink, first) * _picked(shrink, second))


def _picked(values: Float[Tensor, "*rows value"], index: Int[Tensor, " picked"]) -> Float[Tensor, "*rows picked"]:
    """The values at some places, the same in every row; of a gather the way back is quick."""
    return values.gather(-1, index.expand(*values.shape[:-1], -1))
