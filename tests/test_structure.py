"""Losses on the structure of tokens, spans and samples, and the method that learns it: by hand, by slow loops of the equations,
in degenerate rows, and refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.errors import OptionError
from hskstore.features import POOLED, SPANS, STATES, SpanTargets, TeacherShape
from hskstore.features.of_rows import RowTargets
from hskstore.features.states import StateTargets
from hskstore.losses import Term, angle_huber, product_mse, sample_angle_huber, span_means
from hskstore.methods import Mgskd
from hskstore.methods.batch import Batch
from hskstore.models.observe import Seen
from hskstore.models.run import ModelShape

IS_REAL = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
NEAR: dict[str, Any] = {"heads": 2, "vertices": 3, "neighbours": 2}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(*shape, seed=1), normal(*shape, seed=2)


def cosine_at(i: np.ndarray, j: np.ndarray, k: np.ndarray) -> float:
    """Equation 4."""
    one, other = i - j, k - j
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


# --- by slow loops


def test_products_equal_a_slow_loop() -> None:
    own, target = pair(2, 4, 5, 8)
    found = product_mse(own, target, is_real=IS_REAL, heads=4)
    for layer in range(2):
        squares = []
        for row, length in enumerate(IS_REAL.sum(dim=1).tolist()):
            for head in range(4):
                mine, theirs = (side[layer, row, :length, 2 * head : 2 * head + 2].numpy() for side in (own, target))
                squares += [
                    ((mine[i] @ mine[j] - theirs[i] @ theirs[j]) / math.sqrt(2)) ** 2
                    for i in range(length)
                    for j in range(length)
                ]
        assert float(found.total[layer]) == pytest.approx(sum(squares), rel=1e-9)
        assert found.count[layer].item() == len(squares) == 4 * (25 + 9 + 1)


@pytest.mark.parametrize("divisor", ["valid", "code"])
def test_angles_equal_a_slow_loop(divisor: Any) -> None:
    own, target = pair(2, 4, 5, 8)
    found = angle_huber(own, target, is_real=IS_REAL, divisor=divisor, **NEAR)
    for layer in range(2):
        total, count = 0.0, 0
        for row, length in enumerate(IS_REAL.sum(dim=1).tolist()):
            mine, theirs = (side[layer, row, :length].numpy().reshape(length, 2, 4) for side in (own, target))
            attention = np.zeros((length, length))
            for head in range(2):
                powers = np.exp(theirs[:, head] @ theirs[:, head].T / 2)
                attention += powers / powers.sum(axis=1, keepdims=True)
            for j in np.argsort(-attention.sum(axis=0))[:3]:
                others = sorted((i for i in range(length) if i != j), key=lambda i, j=j: -attention[j, i])[:2]
                for i in others:
                    for k in (k for k in others if k != i):
                        for head in range(2):
                            total += huber(
                                cosine_at(*(mine[x, head] for x in (i, j, k))) - cosine_at(*(theirs[x, head] for x in (i, j, k)))
                            )
                            count += 1
        assert float(found.total[layer]) == pytest.approx(total, rel=1e-6)
        assert found.count[layer].item() == count == 2 * (3 * 2 + 3 * 2)


@pytest.mark.parametrize(("divisor", "count"), [("valid", 2 * 4 * 3 * 2), ("code", 2 * 4**3)])
def test_angles_of_samples_equal_a_slow_loop(divisor: Any, count: int) -> None:
    own, target = pair(3, 4, 8)
    found = sample_angle_huber(own, target, heads=2, divisor=divisor)
    for layer in range(3):
        total = 0.0
        mine, theirs = (side[layer].numpy().reshape(4, 2, 4) for side in (own, target))
        for j in range(4):
            for i in (i for i in range(4) if i != j):
                for k in (k for k in range(4) if k not in (i, j)):
                    for head in range(2):
                        total += huber(
                            cosine_at(*(mine[x, head] for x in (i, j, k))) - cosine_at(*(theirs[x, head] for x in (i, j, k)))
                        )
        assert float(found.total[layer]) == pytest.approx(total, rel=1e-6) and found.count[layer].item() == count


# --- by hand


def test_products_by_hand() -> None:
    """Of (2, 0) and (0, 0) the products are 4, 0, 0, 0; of (1, 1) and (1, 0) 2, 1, 1, 1; by the root of 2 (4 + 1 + 1 + 1) / 2."""
    own, target = torch.tensor([[2.0, 0], [0, 0]])[None, None], torch.tensor([[1.0, 1], [1, 0]])[None, None]
    found = product_mse(own, target, is_real=torch.ones(1, 2, dtype=torch.bool), heads=1)
    assert float(found.total) == pytest.approx(3.5) and found.count.item() == 4


def test_angles_of_samples_by_hand() -> None:
    """Three on a line have the cosines 1, -1, 1; a right angle between equal sides has 1/sqrt 2, 0, 1/sqrt 2; from both ends."""
    line = torch.tensor([[-1.0, 0], [0, 0], [1, 0]])[None]
    right = torch.tensor([[1.0, 0], [0, 0], [0, 1]])[None]
    found = sample_angle_huber(line, right, heads=1)
    aside = 0.5 * (1 - math.sqrt(0.5)) ** 2
    assert float(found.total) == pytest.approx(2 * (0.5 + 2 * aside), rel=1e-5) and found.count.item() == 6


def test_spans_by_hand() -> None:
    states = torch.arange(8.0).view(1, 1, 4, 2)
    start, end = torch.tensor([[0, 2, 3, 0]]), torch.tensor([[2, 3, 4, 0]])
    means, there = span_means(states, start, end, is_real=torch.tensor([[True, True, True, False]]))
    assert means[0, 0].tolist() == [[1, 2], [4, 5], [0, 0], [0, 0]] and there.tolist() == [[True, True, False, False]]


# --- what holds for each

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Term]
OF_ITEMS: dict[str, Loss] = {
    "products": lambda own, target, is_real: product_mse(own, target, is_real=is_real, heads=2),
    "angles": lambda own, target, is_real: angle_huber(own, target, is_real=is_real, **NEAR),
}
of_items = pytest.mark.parametrize("loss", OF_ITEMS.values(), ids=OF_ITEMS)


@of_items
def test_what_stands_behind_a_rows_last_item_changes_nothing(loss: Loss) -> None:
    own, target = pair(2, 4, 5, 8)
    longer, other = (torch.cat([each, torch.full((2, 4, 3, 8), math.nan, dtype=each.dtype)], dim=2) for each in (own, target))
    for each in (own, longer):
        each.requires_grad_()
    plain, padded = loss(own, target, IS_REAL), loss(longer, other, torch.nn.functional.pad(IS_REAL, (0, 3)))
    torch.testing.assert_close(plain.total, padded.total)
    assert plain.count.tolist() == padded.count.tolist()
    one, two = torch.autograd.grad(plain.value, own)[0], torch.autograd.grad(padded.value, longer)[0]
    torch.testing.assert_close(one, two[:, :, :5])
    assert not two[:, :, 5:].any() and not one[:, ~IS_REAL].any()


@of_items
def test_parts_of_a_batch_add_up_to_it(loss: Loss) -> None:
    own, target = pair(2, 4, 5, 8)
    whole = loss(own, target, IS_REAL)
    parts = [loss(own[:, rows], target[:, rows], IS_REAL[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 4))]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts).tolist() == whole.count.tolist()  # type: ignore[union-attr]


@of_items
@pytest.mark.parametrize("vectors", ["zeros", "equal", "the teacher's"])
def test_gradients_are_finite_of_the_student_alone_and_zero_at_the_teacher(loss: Loss, vectors: str) -> None:
    target = normal(2, 4, 5, 8, seed=3).float().requires_grad_()
    made = {"zeros": torch.zeros(2, 4, 5, 8), "equal": torch.ones(2, 4, 5, 8), "the teacher's": target.detach().clone()}
    own = made[vectors].requires_grad_()
    found = loss(own, target, IS_REAL).value
    (gradient,) = torch.autograd.grad(found, own, retain_graph=True)
    assert found.isfinite() and gradient.isfinite().all()
    assert target.grad is None and found.grad_fn is not None
    if vectors == "the teacher's":
        assert float(found.detach()) < 1e-10 and float(gradient.abs().max()) < 1e-5


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_few_samples_have_finite_gradients(batch: int) -> None:
    own, target = torch.zeros(2, batch, 8, requires_grad=True), torch.ones(2, batch, 8)
    found = sample_angle_huber(own, target, heads=4).value
    (gradient,) = torch.autograd.grad(found, own)
    assert float(found.detach()) == 0 and gradient.isfinite().all()


# --- the method

TEACHER, STUDENT = TeacherShape(4, 8), ModelShape("it", 2, (2, 8))


def made(**options: Any) -> tuple[Mgskd, Any, Seen, Batch]:
    method = Mgskd(**{"relation_heads": 4, "boundary": 2} | options)
    phase, _ = method.phases(TEACHER, STUDENT)
    states = StateTargets(normal(2, 4, 5, 8, seed=3), IS_REAL, None)
    spans = SpanTargets(
        torch.tensor([[0, 1, 3], [0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        torch.tensor([[2, 3, 5], [2, 3, 0], [1, 0, 0], [0, 0, 0]]),
        torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, False, False]]),
    )
    known: dict[str, Any] = {STATES.name: states, SPANS.name: spans, POOLED.name: RowTargets(normal(1, 4, 8, seed=4))}
    hidden = {layer: normal(4, 5, 8, seed=10 + layer) for layer in range(3)}
    ids = torch.zeros(4, 5, dtype=torch.long)
    mask = IS_REAL.clone()
    mask[3, 0] = True
    batch = Batch(ids, ids, mask, None, normal(4, 2, seed=6), {want: known[want.kind.name] for want in phase.reads})
    return method, phase, Seen(normal(4, 2, seed=5), hidden), batch


def same(found: Term, expected: Term) -> None:
    torch.testing.assert_close(found.value.double(), expected.value.double(), rtol=1e-5, atol=1e-6)


def test_terms_are_those_of_tokens_spans_and_samples() -> None:
    method, phase, seen, batch = made()
    assert [pair.teacher for pair in phase.reads[0].pairs] == [0, 2] and [pair.teacher for pair in phase.reads[2].pairs] == [4]
    found = method(phase, seen, batch, None)
    own, target = torch.stack([seen.hidden[0], seen.hidden[1]]), normal(2, 4, 5, 8, seed=3)
    near = {"heads": 1, "vertices": 20, "neighbours": 20}
    same(found["mgskd.token_pair"], product_mse(own, target, is_real=IS_REAL, heads=4))
    same(found["mgskd.token_angle"], angle_huber(own, target, is_real=IS_REAL, **near))
    spans = batch[phase.reads[1]]
    (mine, _), (theirs, _) = (span_means(each, spans.start, spans.end, is_real=IS_REAL) for each in (own, target))
    two = spans.is_span & (spans.is_span.sum(dim=1, keepdim=True) >= 2)
    same(found["mgskd.span_pair"], product_mse(mine, theirs, is_real=two, heads=4))
    same(found["mgskd.span_angle"], angle_huber(mine, theirs, is_real=two, **near))
    means = torch.stack([row[real].mean(dim=0) for row, real in zip(seen.hidden[2], batch.attention_mask, strict=True)])[None]
    same(found["mgskd.sample_angle"], sample_angle_huber(means, normal(1, 4, 8, seed=4), heads=4))
    assert phase.weights == {term: 4 if "sample" in term else 1 for term in found}


def test_the_public_code_leaves_out_rows_of_two_spans() -> None:
    method, phase, seen, batch = made(divisor="code")
    assert method(phase, seen, batch, None)["mgskd.span_pair"].count.tolist() == [4 * 9] * 2


@pytest.mark.parametrize(("boundary", "features"), [(0, ["pooled"]), (3, ["states", "spans"]), (9, ["states", "spans"])])
def test_a_boundary_says_what_is_learnt(boundary: int, features: list[str]) -> None:
    _, phase, _, _ = made(boundary=boundary)
    assert [want.kind.name for want in phase.reads] == features
    assert ("mgskd.sample_angle" in phase.weights) is (boundary == 0) and ("mgskd.token_pair" in phase.weights) is (boundary > 0)


def test_heads_must_divide_the_teachers_width() -> None:
    with pytest.raises(OptionError, match="--relation-heads 3 does not divide the teacher's width of 8: choose another"):
        Mgskd(relation_heads=3).phases(TEACHER, STUDENT)
    with pytest.raises(OptionError, match="--boundary -1: must be a whole number from 0"):
        Mgskd(boundary=-1)
