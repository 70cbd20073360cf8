"""Each loss: a value worked out by hand, its identity, mask = subset, finite gradients, a teacher that learns nothing.

And of each: what parts of a batch give, added up, is what the batch gives.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskstore.losses import (
    Term,
    cosine_distance,
    hard_cross_entropy,
    hidden_mse,
    kept_hidden_mse,
    logit_mse,
    normalised_mse,
    reverse_kl,
    score_mse,
    soft_cross_entropy,
    standardised,
    whole_batch,
)


def normal(*shape: int, seed: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


# --- soft cross-entropy


def test_soft_cross_entropy_equals_the_value_by_hand():
    # Row 1: student (1/4, 3/4), teacher (1/2, 1/2). Row 2: student (1/2, 1/2), teacher (1/5, 4/5): any target costs ln 2.
    student = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [0.0, math.log(4)]])
    first = -(0.5 * math.log(1 / 4) + 0.5 * math.log(3 / 4))
    second = math.log(2)
    assert soft_cross_entropy(student, teacher, temperature=1.0).value.item() == pytest.approx((first + second) / 2)


def test_soft_cross_entropy_of_equals_is_the_teacher_s_entropy():
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    entropy = (-(1 / 4) * math.log(1 / 4) - (3 / 4) * math.log(3 / 4) + math.log(2)) / 2
    assert soft_cross_entropy(teacher, teacher, temperature=1.0).value.item() == pytest.approx(entropy)


def test_no_student_is_better_than_the_teacher_itself():
    teacher = normal(8, 3, seed=1)
    best = soft_cross_entropy(teacher, teacher, temperature=2.0).value
    for seed in range(20):
        assert soft_cross_entropy(teacher + 0.3 * normal(8, 3, seed=seed), teacher, temperature=2.0).value >= best


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_a_temperature_divides_both_logits_and_its_square_multiplies_the_loss(temperature):
    student, teacher = normal(5, 3, seed=1), normal(5, 3, seed=2)
    cooled = soft_cross_entropy(student / temperature, teacher / temperature, temperature=1.0).value
    assert soft_cross_entropy(student, teacher, temperature=temperature).value.item() == pytest.approx(
        temperature**2 * cooled.item(), rel=1e-5
    )


def test_the_gradient_of_soft_cross_entropy_is_the_difference_of_probabilities():
    student, teacher = normal(4, 3, seed=1, grad=True), normal(4, 3, seed=2)
    soft_cross_entropy(student, teacher, temperature=3.0).value.backward()
    # d/ds of T^2 CE(s/T, t/T) is T (p_s - p_t), and the mean over the batch divides by 4.
    expected = 3.0 * ((student.detach() / 3).softmax(-1) - (teacher / 3).softmax(-1)) / 4
    torch.testing.assert_close(student.grad, expected)


def test_soft_cross_entropy_is_the_mean_of_its_rows():
    student, teacher = normal(6, 3, seed=1), normal(6, 3, seed=2)
    rows = [soft_cross_entropy(student[row : row + 1], teacher[row : row + 1], temperature=2.0).value for row in range(6)]
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature=2.0).value, torch.stack(rows).mean())


def test_soft_cross_entropy_has_finite_gradients_at_extreme_logits():
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(student, torch.tensor([[-1e4, 1e4], [-1e4, 1e4], [1e4, -1e4]]), temperature=1.0).value
    loss.backward()
    # Row 1 is wrong by 2e4 nats, row 2 right, row 3 undecided (ln 2).
    assert loss.item() == pytest.approx((2e4 + 0 + math.log(2)) / 3)
    assert student.grad.isfinite().all()


# --- reverse KL, squared difference of logits, standardised logits


def test_reverse_kl_equals_the_value_by_hand():
    # Row 1: student (1/4, 3/4), teacher (1/2, 1/2). Row 2: student (1/2, 1/2), teacher (1/5, 4/5).
    student = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0], [0.0, math.log(4)]])
    first = 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2)
    second = 1 / 2 * math.log(5 / 2) + 1 / 2 * math.log(5 / 8)
    assert reverse_kl(student, teacher, temperature=1.0).value.item() == pytest.approx((first + second) / 2)
    assert reverse_kl(3 * student, 3 * teacher, temperature=3.0).value.item() == pytest.approx(9 * (first + second) / 2)


def test_soft_cross_entropy_has_the_gradients_of_forward_kl_and_reverse_kl_is_the_other_way_round():
    student, teacher = normal(4, 3, seed=1, grad=True), normal(4, 3, seed=2)
    kl = torch.nn.functional.kl_div
    own, target = (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
    forward = 4 * kl(own, target, reduction="batchmean", log_target=True)
    reverse = 4 * kl(target, own, reduction="batchmean", log_target=True)
    for loss, expected in ((soft_cross_entropy, forward), (reverse_kl, reverse)):
        (found,) = torch.autograd.grad(loss(student, teacher, temperature=2.0).value, student)
        torch.testing.assert_close(found, torch.autograd.grad(expected, student, retain_graph=True)[0])
    torch.testing.assert_close(reverse_kl(student, teacher, temperature=2.0).value, reverse)


def test_logit_mse_equals_the_value_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert logit_mse(student, teacher).value.item() == pytest.approx(((0 + 4 + 9) / 3 + 4 / 3) / 2)


def test_logit_mse_has_twice_the_gradients_of_a_very_high_temperature():
    student, teacher = (normal(4, 5, seed=seed).double() for seed in (1, 2))
    student, teacher = ((each - each.mean(-1, keepdim=True)).requires_grad_() for each in (student, teacher))
    (found,) = torch.autograd.grad(logit_mse(student, teacher).value, student)
    (hot,) = torch.autograd.grad(soft_cross_entropy(student, teacher, temperature=1e4).value, student)
    torch.testing.assert_close(found, 2 * hot, rtol=0, atol=1e-4)


def test_standardised_logits_by_hand_know_neither_scale_nor_shift():
    # Of (0, 0, 3) the mean is 1 and the variance (1 + 1 + 4) / 3 = 2.
    expected = [-1 / 2**0.5, -1 / 2**0.5, 2**0.5]
    for logits in ([0.0, 0.0, 3.0], [7.0, 7.0, 307.0]):
        assert standardised(torch.tensor([logits])).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert standardised(torch.tensor([[0.3, 0.9]])).flatten().tolist() == pytest.approx([-1, 1], rel=1e-4)


def test_logits_that_are_all_alike_are_standardised_to_zeros_with_a_bounded_gradient():
    student = torch.tensor([[2.0, 2.0, 2.0], [1e4, 1e4, 1e4]], requires_grad=True)
    assert (standardised(student) == 0).all()
    soft_cross_entropy(
        standardised(student), standardised(torch.tensor([[0.0, 1.0, 5.0], [1.0, 1.0, 1.0]])), temperature=2.0
    ).value.backward()
    assert student.grad.abs().max() < 1e4 and student.grad[0].abs().max() > 0


@pytest.mark.parametrize("loss", [logit_mse, lambda *both: reverse_kl(*both, temperature=2.0)])
def test_divergences_are_zero_at_equality_the_mean_of_rows_and_finite_at_extremes(loss):
    student, teacher = normal(6, 3, seed=1), normal(6, 3, seed=2)
    assert loss(teacher, teacher).value.item() == 0 < loss(student, teacher).value.item()
    rows = [loss(student[row : row + 1], teacher[row : row + 1]).value for row in range(6)]
    torch.testing.assert_close(loss(student, teacher).value, torch.stack(rows).mean())
    extreme, teacher = (1e4 * student).requires_grad_(), (-1e4 * student).requires_grad_()
    loss(extreme, teacher).value.backward()
    assert extreme.grad.isfinite().all() and teacher.grad is None


# --- hard cross-entropy


def test_hard_cross_entropy_equals_the_value_by_hand():
    student = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [0.0, 0.0]])
    loss = hard_cross_entropy(student, torch.tensor([0, 1, 1])).value
    assert loss.item() == pytest.approx(-(math.log(1 / 4) + math.log(3 / 4) + math.log(1 / 2)) / 3)


def test_hard_cross_entropy_is_soft_cross_entropy_of_a_certain_teacher():
    student, label = normal(5, 3, seed=1), torch.tensor([0, 2, 1, 1, 0])
    certain = torch.nn.functional.one_hot(label, 3) * 1e3
    torch.testing.assert_close(
        hard_cross_entropy(student, label).value, soft_cross_entropy(student, certain, temperature=1.0).value
    )


def test_hard_cross_entropy_of_a_certain_and_right_student_is_zero():
    assert hard_cross_entropy(torch.tensor([[0.0, 1e3]]), torch.tensor([1])).value.item() == 0


def test_hard_cross_entropy_is_the_mean_of_its_rows_and_its_gradients_are_finite():
    student, label = (normal(6, 3, seed=1) * 1e4).requires_grad_(), torch.tensor([0, 1, 2, 2, 1, 0])
    rows = [hard_cross_entropy(student[row : row + 1], label[row : row + 1]).value for row in range(6)]
    loss = hard_cross_entropy(student, label).value
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    loss.backward()
    assert student.grad.isfinite().all()


# --- score


def test_score_mse_equals_the_value_by_hand():
    # (1 - 3)^2 = 4, (2.5 - 2)^2 = 0.25, (0 - 1)^2 = 1: mean 1.75
    assert score_mse(torch.tensor([[1.0], [2.5], [0.0]]), torch.tensor([3.0, 2.0, 1.0])).value.item() == pytest.approx(1.75)


def test_score_mse_of_equals_is_zero():
    score = normal(7, 1, seed=1)
    assert score_mse(score, score.squeeze(1)).value.item() == 0


def test_score_mse_is_the_mean_of_its_rows_and_its_gradient_is_finite():
    student, target = normal(6, 1, seed=1, grad=True), normal(6, seed=2)
    rows = [score_mse(student[row : row + 1], target[row : row + 1]).value for row in range(6)]
    loss = score_mse(student, target).value
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - target[:, None]) / 6)


# --- hidden states

SHAPE = (2, 3, 4, 5)


def kept_tokens(*layers: list[list[bool]]) -> torch.Tensor:
    return torch.tensor(layers)


def random_mask(*shape: int, seed: int) -> torch.Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask.view(-1)[0], mask.view(-1)[-1] = True, False  # never all, never none
    return mask


def test_hidden_mse_equals_the_value_by_hand():
    # Two layers, one row of two tokens, width 2.
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[1.0, 1.0], [5.0, 5.0]]]])
    teacher = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]]], [[[0.0, -1.0], [9.0, 9.0]]]])
    token_kept = kept_tokens([[True, True]], [[True, False]])
    # Layer 1: 1 + 0 + 4 + 16 = 21 over 2 tokens x 2. Layer 2, its first token only: 1 + 4 = 5 over 1 x 2.
    assert hidden_mse(student, teacher, token_kept=token_kept).value.item() == pytest.approx(21 / 4 + 5 / 2)
    # Kept coordinates: layer 1 the first of either token: 1 + 4 over 2; layer 2 the second of its only token: 4 over 1.
    width_kept = torch.tensor([[[[True, False], [True, False]]], [[[False, True], [True, True]]]])
    assert hidden_mse(student, teacher, token_kept=token_kept, width_kept=width_kept).value.item() == pytest.approx(5 / 2 + 4 / 1)


def test_hidden_mse_of_equals_is_zero():
    hidden = normal(*SHAPE, seed=1)
    assert hidden_mse(hidden, hidden, token_kept=random_mask(*SHAPE[:3], seed=2)).value.item() == 0


@given(st.integers(0, 10**6))
def test_hidden_mse_under_a_token_mask_equals_that_of_the_kept_tokens_alone(seed):
    student, teacher = normal(*SHAPE, seed=seed), normal(*SHAPE, seed=seed + 1)
    token_kept = random_mask(*SHAPE[:3], seed=seed + 2)
    subset = sum(
        hidden_mse(
            mine[kept][None, None], theirs[kept][None, None], token_kept=torch.ones(1, 1, int(kept.sum()), dtype=torch.bool)
        ).value
        for mine, theirs, kept in zip(student, teacher, token_kept, strict=True)
    )
    torch.testing.assert_close(hidden_mse(student, teacher, token_kept=token_kept).value, torch.as_tensor(subset))


@given(st.integers(0, 10**6))
def test_hidden_mse_under_a_width_mask_equals_the_mean_over_the_kept_coordinates_alone(seed):
    student, teacher = normal(*SHAPE, seed=seed), normal(*SHAPE, seed=seed + 1)
    token_kept, width_kept = random_mask(*SHAPE[:3], seed=seed + 2), random_mask(*SHAPE, seed=seed + 3)
    counted = width_kept & token_kept[..., None]
    subset = sum(
        (mine[kept] - theirs[kept]).square().sum() / max(1, int(kept.sum()))
        for mine, theirs, kept in zip(student, teacher, counted, strict=True)
    )
    torch.testing.assert_close(
        hidden_mse(student, teacher, token_kept=token_kept, width_kept=width_kept).value, torch.as_tensor(subset)
    )


def test_without_a_width_mask_dropped_coordinates_are_learnt_as_zero():
    student = torch.tensor([[[[2.0, 3.0]]]])
    teacher = torch.tensor([[[[2.0, 0.0]]]])
    token_kept = kept_tokens([[True]])
    width_kept = torch.tensor([[[[True, False]]]])
    assert hidden_mse(student, teacher, token_kept=token_kept).value.item() == pytest.approx(9 / 2)
    assert hidden_mse(student, teacher, token_kept=token_kept, width_kept=width_kept).value.item() == 0


def test_a_layer_with_nothing_kept_adds_zero():
    student, teacher = normal(*SHAPE, seed=1, grad=True), normal(*SHAPE, seed=2)
    token_kept = torch.ones(SHAPE[:3], dtype=torch.bool)
    token_kept[1] = False
    loss = hidden_mse(student, teacher, token_kept=token_kept).value
    torch.testing.assert_close(loss, hidden_mse(student[:1], teacher[:1], token_kept=token_kept[:1]).value)
    loss.backward()
    assert student.grad[0].count_nonzero() > 0
    assert student.grad[1].count_nonzero() == 0


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("poisoned", ["student", "teacher", "both"])
@pytest.mark.parametrize("by_width", [False, True])
def test_what_a_mask_drops_cannot_spoil_the_loss_or_its_gradient(poison, poisoned, by_width):
    student, teacher = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    token_kept = random_mask(*SHAPE[:3], seed=3)
    width_kept = random_mask(*SHAPE, seed=4) if by_width else None
    counted = token_kept[..., None].expand(SHAPE) & (width_kept if by_width else torch.tensor(True))
    clean = student.clone().requires_grad_()
    expected = hidden_mse(clean, teacher, token_kept=token_kept, width_kept=width_kept).value
    expected.backward()
    dirty_student = torch.where(counted, student, poison if poisoned != "teacher" else student).requires_grad_()
    dirty_teacher = torch.where(counted, teacher, poison if poisoned != "student" else teacher)
    loss = hidden_mse(dirty_student, dirty_teacher, token_kept=token_kept, width_kept=width_kept).value
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(dirty_student.grad, clean.grad)
    assert (dirty_student.grad[~counted] == 0).all()


# --- hidden states, from the kept numbers alone

KEPT = 2


def kept_units(seed: int) -> torch.Tensor:
    """Two of the five coordinates of every vector, lowest first."""
    order = torch.rand(*SHAPE, generator=torch.Generator().manual_seed(seed)).argsort(dim=-1)
    return order[..., :KEPT].sort(dim=-1).values


def dense(values: torch.Tensor, coordinate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """M * h and M."""
    empty = torch.zeros(SHAPE, dtype=values.dtype)
    return empty.scatter(-1, coordinate, values), empty.bool().scatter(-1, coordinate, True)


def test_kept_hidden_mse_equals_the_value_by_hand():
    # One layer, two tokens, width 3, of which one coordinate is kept: 5 at 2 of the first token, -1 at 0 of the second.
    student = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 0.0, 1.0]]]])
    values, coordinate = torch.tensor([[[[5.0], [-1.0]]]]), torch.tensor([[[[2], [0]]]])
    both, first = kept_tokens([[True, True]]), kept_tokens([[True, False]])
    # As zero: (1 + 4 + 4) + (25 + 0 + 1) over 2 tokens x 3. Ignored: 4 + 25 over 2 tokens x 1.
    assert kept_hidden_mse(student, values, coordinate, token_kept=both).value.item() == pytest.approx(35 / 6)
    assert kept_hidden_mse(student, values, coordinate, token_kept=both, targets="ignore").value.item() == pytest.approx(29 / 2)
    assert kept_hidden_mse(student, values, coordinate, token_kept=first).value.item() == pytest.approx(9 / 3)
    assert kept_hidden_mse(student, values, coordinate, token_kept=first, targets="ignore").value.item() == pytest.approx(4)


def test_hidden_mse_in_directions_equals_the_value_by_hand():
    # Two layers, a token each, width 2, differences (3, 1) and (2, 5): of the first along (0.6, 0.8), of the second none.
    student, teacher = torch.tensor([[[[4.0, 2.0]]], [[[3.0, 5.0]]]]), torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]]])
    directions = torch.tensor([[[0.6], [0.8]], [[0.0], [0.0]]])
    found = kept_hidden_mse(student, teacher, None, token_kept=kept_tokens([[True]]).expand(2, 1, 1), directions=directions)
    assert found.value.item() == pytest.approx((1.8 + 0.8) ** 2 / 2)


@given(st.integers(0, 10**6))
def test_hidden_mse_in_all_directions_is_hidden_mse(seed):
    student, teacher, token_kept = normal(*SHAPE, seed=seed), normal(*SHAPE, seed=seed + 1), random_mask(*SHAPE[:3], seed=seed)
    turned = torch.linalg.qr(normal(SHAPE[0], SHAPE[-1], SHAPE[-1], seed=seed + 2)).Q
    expected = hidden_mse(student, teacher, token_kept=token_kept).value
    found = hidden_mse(student, teacher, token_kept=token_kept, directions=turned).value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", ["zero", "ignore"])
@given(st.integers(0, 10**6))
def test_kept_hidden_mse_is_hidden_mse_of_the_dense_target_in_value_and_gradient(targets, seed):
    values, coordinate = normal(*SHAPE[:3], KEPT, seed=seed), kept_units(seed + 1)
    token_kept = random_mask(*SHAPE[:3], seed=seed + 2)
    teacher, width_kept = dense(values, coordinate)
    one, other = (normal(*SHAPE, seed=seed + 3, grad=True) for _ in range(2))
    expected = hidden_mse(one, teacher, token_kept=token_kept, width_kept=width_kept if targets == "ignore" else None).value
    found = kept_hidden_mse(other, values, coordinate, token_kept=token_kept, targets=targets).value
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for loss in (expected, found):
        loss.backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-9)


def test_kept_hidden_mse_with_every_unit_kept_is_hidden_mse():
    student, teacher, token_kept = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2), random_mask(*SHAPE[:3], seed=3)
    expected = hidden_mse(student, teacher, token_kept=token_kept).value
    every = torch.arange(SHAPE[-1]).expand(SHAPE)
    for targets in ("zero", "ignore"):
        for coordinate in (None, every):
            torch.testing.assert_close(
                kept_hidden_mse(student, teacher, coordinate, token_kept=token_kept, targets=targets).value,
                expected,
                rtol=1e-6,
                atol=0,
            )


def test_kept_hidden_mse_of_a_student_that_is_the_masked_teacher_is_zero():
    values, coordinate, token_kept = normal(*SHAPE[:3], KEPT, seed=1), kept_units(2), random_mask(*SHAPE[:3], seed=3)
    assert kept_hidden_mse(dense(values, coordinate)[0], values, coordinate, token_kept=token_kept).value.item() == 0


@pytest.mark.parametrize("targets", ["zero", "ignore"])
@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_what_a_token_mask_drops_cannot_spoil_kept_hidden_mse(targets, poison):
    token_kept, coordinate = random_mask(*SHAPE[:3], seed=3), kept_units(4)
    found = []
    for value in (0.0, poison):
        student = torch.where(token_kept[..., None], normal(*SHAPE, seed=1), value).requires_grad_()
        values = torch.where(token_kept[..., None], normal(*SHAPE[:3], KEPT, seed=2), value)
        loss = kept_hidden_mse(student, values, coordinate, token_kept=token_kept, targets=targets).value
        loss.backward()
        found.append((loss, student.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


# --- every loss

LABEL = torch.tensor([0, 2, 1])
LOSSES = {
    "soft_cross_entropy": (lambda s, t: soft_cross_entropy(s, t, temperature=2.0), (3, 4), (3, 4)),
    "soft_cross_entropy, standardised": (
        lambda s, t: soft_cross_entropy(standardised(s), standardised(t), temperature=2.0), (3, 4), (3, 4)
    ),
    "reverse_kl": (lambda s, t: reverse_kl(s, t, temperature=2.0), (3, 4), (3, 4)),
    "logit_mse": (logit_mse, (3, 4), (3, 4)),
    "hard_cross_entropy": (lambda s, t: hard_cross_entropy(s, LABEL), (3, 4), (3,)),
    "score_mse": (score_mse, (3, 1), (3,)),
    "hidden_mse": (lambda s, t: hidden_mse(s, t, token_kept=random_mask(*SHAPE[:3], seed=3)), SHAPE, SHAPE),
    "hidden_mse, width": (
        lambda s, t: hidden_mse(
            s, t, token_kept=random_mask(*SHAPE[:3], seed=3), width_kept=random_mask(*SHAPE, seed=4)
        ),
        SHAPE,
        SHAPE,
    ),
    "kept_hidden_mse": (
        lambda s, t: kept_hidden_mse(s, t, kept_units(5), token_kept=random_mask(*SHAPE[:3], seed=3)), SHAPE, (*SHAPE[:3], KEPT)
    ),
    "kept_hidden_mse, ignore": (
        lambda s, t: kept_hidden_mse(s, t, kept_units(5), token_kept=random_mask(*SHAPE[:3], seed=3), targets="ignore"),
        SHAPE,
        (*SHAPE[:3], KEPT),
    ),
    "normalised_mse": (normalised_mse, SHAPE[:1] + SHAPE[2:], SHAPE[:1] + SHAPE[2:]),
    "cosine_distance": (lambda s, t: cosine_distance(s, t, is_real=random_mask(*SHAPE[1:3], seed=3)), SHAPE, SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_scalar_that_teaches_the_student_alone_and_leaves_its_arguments_as_they_were(name):
    loss, student_shape, teacher_shape = LOSSES[name]
    student, teacher = normal(*student_shape, seed=1, grad=True), normal(*teacher_shape, seed=2, grad=True)
    before = student.detach().clone(), teacher.detach().clone()
    value = loss(student, teacher).value
    assert value.shape == ()
    value.backward()
    assert student.grad.isfinite().all()
    assert student.grad.count_nonzero() > 0
    assert teacher.grad is None
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_s_gradient_is_its_slope(name):
    loss, student_shape, teacher_shape = LOSSES[name]
    student = normal(*student_shape, seed=1).double().requires_grad_()
    teacher = normal(*teacher_shape, seed=2).double()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher).value, (student,))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_same_bit_for_bit_under_autocast(name):
    """A method is called where its aids compute in half precision; what is float32 is compared in float32 there too."""
    loss, student_shape, teacher_shape = LOSSES[name]
    found = []
    for enabled in (False, True):
        student, teacher = normal(*student_shape, seed=1, grad=True), normal(*teacher_shape, seed=2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(student, teacher).value
        value.backward()
        found.append((value, student.grad))
    assert torch.equal(found[0][0], found[1][0]) and found[1][0].dtype == torch.float32
    assert torch.equal(found[0][1], found[1][1])


def test_masks_are_left_as_they_were():
    token_kept, width_kept = random_mask(*SHAPE[:3], seed=3), random_mask(*SHAPE, seed=4)
    before = token_kept.clone(), width_kept.clone()
    hidden_mse(normal(*SHAPE, seed=1), normal(*SHAPE, seed=2), token_kept=token_kept, width_kept=width_kept)
    assert torch.equal(token_kept, before[0])
    assert torch.equal(width_kept, before[1])


# --- parts of a batch


OF_PREDICTIONS = (
    "soft_cross_entropy",
    "soft_cross_entropy, standardised",
    "reverse_kl",
    "logit_mse",
    "hard_cross_entropy",
    "score_mse",
)


def terms_of(rows: slice) -> tuple[dict[str, Term], list[torch.Tensor]]:
    """Every loss on some of the three rows of a batch, and the students' numbers that it is a loss of."""
    logits, score, hidden = (normal(*shape, seed=1)[rows].requires_grad_() for shape in ((3, 4), (3, 1), (3, 2, 4, 5)))
    states, target, values, coordinate = (
        hidden.transpose(0, 1),
        normal(*SHAPE, seed=2),
        normal(*SHAPE[:3], KEPT, seed=2),
        kept_units(5),
    )
    token_kept, width_kept = random_mask(*SHAPE[:3], seed=3)[:, rows], random_mask(*SHAPE, seed=4)[:, rows]
    terms = {
        "soft_cross_entropy": soft_cross_entropy(logits, normal(3, 4, seed=2)[rows], temperature=3.0),
        "soft_cross_entropy, standardised": soft_cross_entropy(
            standardised(logits), standardised(normal(3, 4, seed=2)[rows]), temperature=3.0
        ),
        "reverse_kl": reverse_kl(logits, normal(3, 4, seed=2)[rows], temperature=3.0),
        "logit_mse": logit_mse(logits, normal(3, 4, seed=2)[rows]),
        "hard_cross_entropy": hard_cross_entropy(logits, LABEL[rows]),
        "score_mse": score_mse(score, normal(3, seed=2)[rows]),
        "hidden_mse": hidden_mse(states, target[:, rows], token_kept=token_kept),
        "hidden_mse, width": hidden_mse(states, target[:, rows], token_kept=token_kept, width_kept=width_kept),
    }
    for name, targets in (("kept_hidden_mse", "zero"), ("kept_hidden_mse, ignore", "ignore")):
        terms[name] = kept_hidden_mse(states, values[:, rows], coordinate[:, rows], token_kept=token_kept, targets=targets)
    terms["normalised_mse"] = normalised_mse(states[:, :, 0], target[:, rows, 0])
    terms["cosine_distance"] = cosine_distance(states, target[:, rows], is_real=random_mask(*SHAPE[1:3], seed=3)[rows])
    return terms, [logits, score, hidden]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_the_totals_and_counts_of_two_parts_of_a_batch_add_up_to_those_of_the_whole(rows):
    (first, _), (second, _), (whole, _) = terms_of(slice(0, rows)), terms_of(slice(rows, None)), terms_of(slice(None))
    assert whole.keys() == LOSSES.keys()
    for name, term in whole.items():
        torch.testing.assert_close(first[name].total + second[name].total, term.total, msg=name)
        assert torch.equal(first[name].count + second[name].count, term.count), name
        assert term.total.shape == term.count.shape == (() if name in OF_PREDICTIONS else (2,)), name


def test_a_loss_of_no_rows_is_zero_and_so_are_its_gradients():
    terms, students = terms_of(slice(0, 0))
    assert [term.value.item() for term in terms.values()] == [0] * len(terms)
    torch.stack([term.value for term in terms.values()]).sum().backward()
    assert all(student.grad is not None and student.grad.isfinite().all() for student in students)


def test_a_term_is_the_mean_of_each_layer_summed_over_layers():
    assert Term(torch.tensor([6.0, 5.0, 0.0]), torch.tensor([4, 2, 0])).value.item() == 4.0


def test_the_whole_batch_of_one_process_is_its_own():
    rows = normal(3, 2, seed=1)
    assert whole_batch(rows) is rows
