"""CKD's losses: values by hand, slow loops over pairs and triples as the paper and its public code have them, masks, degenerate
rows, and what autograd keeps."""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.losses import Term, layer_angle, layer_pair, word_angle, word_pair

Loss = Callable[..., Term]
LOSSES: list[tuple[Loss, dict[str, Any]]] = [
    (word_pair, {"delta": 2}),
    (word_pair, {"delta": None}),
    (word_pair, {"delta": 2, "relation": "l2"}),
    (word_angle, {"delta": 2}),
    (layer_pair, {}),
    (layer_pair, {"relation": "l2"}),
    (layer_angle, {}),
]
PARITY: list[tuple[Loss, dict[str, Any]]] = [
    (word_pair, {"delta": None, "divisor": "code"}),
    (word_angle, {"delta": 2, "edges": "clamped", "divisor": "code"}),
    (layer_pair, {"divisor": "code"}),
    (layer_angle, {"divisor": "code"}),
]


def named(cases: list[tuple[Loss, dict[str, Any]]]) -> Any:
    ids = ["-".join([loss.__name__, *map(str, options.values())]) for loss, options in cases]
    return pytest.mark.parametrize(("loss", "options"), cases, ids=ids)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ragged(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher of different widths, four layers, rows of 7, 5, 3, 2 and 1 tokens and one with a hole."""
    is_real = torch.arange(7) < torch.tensor([7, 5, 3, 2, 1, 6])[:, None]
    is_real[5, 2] = False
    return normal(4, 6, 7, 3, seed=seed, dtype=dtype), normal(4, 6, 7, 5, seed=seed + 1, dtype=dtype), is_real


# --- by hand: KL of (1/2, 1/2) from the softmax of (1, 0), and angles of a right triangle against those of a line

E = math.e
KL = 0.5 * math.log(0.5 * (1 + E) / E) + 0.5 * math.log(0.5 * (1 + E))
STUDENT = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
TEACHER = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [5.0, 5.0, 0.0]])
TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
LINE = torch.tensor([[0.0], [1.0], [2.0]])
AT_FIRST, AT_SECOND, AT_THIRD = 1.0, (0.5**0.5 + 1) ** 2, (0.5**0.5 - 1) ** 2


def words(vectors: torch.Tensor) -> torch.Tensor:
    """One layer of one row."""
    return vectors[None, None]


def layers(vectors: torch.Tensor) -> torch.Tensor:
    """Layers of one word."""
    return vectors[:, None, None]


def test_pairs_of_words_equal_the_value_by_hand() -> None:
    real = torch.ones(1, 3, dtype=torch.bool)
    # Cosines of the student: 1 between the first two, 0 with the third; of the teacher all 1. The first and the third word have
    # one neighbour within 1, the second both. Without a window the first has (1, 0) too, the third (0, 0), which is uniform.
    found = word_pair(words(STUDENT), words(TEACHER), is_real=real, delta=1)
    assert found.total.tolist() == pytest.approx([KL]) and found.count.tolist() == [4]
    found = word_pair(words(STUDENT), words(TEACHER), is_real=real, delta=None)
    assert found.total.tolist() == pytest.approx([2 * KL]) and found.count.tolist() == [6]
    found = word_pair(words(STUDENT), words(TEACHER), is_real=real, delta=None, divisor="code")
    assert float(found.value) == pytest.approx(2 * KL / 9)
    # Distances within 1 of the triangle: 1 and the root of 2; of the line 1 and 1.
    found = word_pair(words(TRIANGLE), words(LINE), is_real=real, delta=1, relation="l2")
    assert found.total.tolist() == pytest.approx([2 * (2**0.5 - 1) ** 2]) and found.count.tolist() == [4]


def test_angles_of_words_equal_the_value_by_hand() -> None:
    real = torch.ones(1, 3, dtype=torch.bool)
    found = word_angle(words(TRIANGLE), words(LINE), is_real=real, delta=1)
    assert found.total.tolist() == pytest.approx([2 * AT_SECOND]) and found.count.tolist() == [2]
    for delta in (2, 10):
        found = word_angle(words(TRIANGLE), words(LINE), is_real=real, delta=delta)
        assert float(found.value) == pytest.approx((AT_FIRST + AT_SECOND + AT_THIRD) / 3) and found.count.tolist() == [6]
    # Clamped within 1, the places about the first word are first, first, second: no angle is left there, nor at the third.
    found = word_angle(words(TRIANGLE), words(LINE), is_real=real, delta=1, edges="clamped", divisor="code")
    assert float(found.value) == pytest.approx(2 * AT_SECOND / (3 * 3**2))


def test_pairs_of_layers_equal_the_value_by_hand() -> None:
    real = torch.ones(1, 1, dtype=torch.bool)
    found = layer_pair(layers(STUDENT), layers(TEACHER), is_real=real)
    assert float(found.total) == pytest.approx(2 * KL) and int(found.count) == 6
    assert float(layer_pair(layers(STUDENT), layers(TEACHER), is_real=real, divisor="code").value) == pytest.approx(2 * KL / 9)
    found = layer_pair(layers(TRIANGLE), layers(LINE), is_real=real, relation="l2")
    assert float(found.value) == pytest.approx((0 + (2**0.5 - 1) ** 2 + 1) / 3)


def test_angles_of_layers_equal_the_value_by_hand() -> None:
    real = torch.ones(1, 1, dtype=torch.bool)
    found = layer_angle(layers(TRIANGLE), layers(LINE), is_real=real)
    assert float(found.value) == pytest.approx((AT_FIRST + AT_SECOND + AT_THIRD) / 3) and int(found.count) == 6
    found = layer_angle(layers(TRIANGLE), layers(LINE), is_real=real, divisor="code")
    assert float(found.value) == pytest.approx(2 * (AT_FIRST + AT_SECOND + AT_THIRD) / 27)


def test_two_layers_have_no_angle_and_a_softmax_of_one_cosine() -> None:
    student, teacher, is_real = ragged(1)
    student = student[:2].requires_grad_()
    for loss in (layer_pair, layer_angle):
        term = loss(student, teacher[:2], is_real=is_real)
        assert term.value.item() == 0
        (gradient,) = torch.autograd.grad(term.value, student)
        assert (gradient == 0).all()
    assert layer_pair(student, teacher[:2], is_real=is_real, relation="l2").value.item() > 0


# --- slow loops


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def angle(vectors: np.ndarray, i: int, j: int, k: int) -> float:
    return float(unit(vectors[i] - vectors[j]) @ unit(vectors[k] - vectors[j]))


def slow_pair(own: np.ndarray, target: np.ndarray, i: int, others: list[int], relation: str) -> float:
    """What the pairs of i with the others cost."""
    if relation == "l2":
        lengths = [[float(np.linalg.norm(each[i] - each[j])) for j in others] for each in (own, target)]
        return sum((mine - theirs) ** 2 for mine, theirs in zip(*lengths, strict=True))
    shares = [np.exp([float(unit(each[i]) @ unit(each[j])) for j in others]) for each in (own, target)]
    mine, theirs = (share / share.sum() for share in shares)
    return float((theirs * np.log(theirs / mine)).sum())


def slow(loss: Loss, own: np.ndarray, target: np.ndarray, real: np.ndarray, options: dict[str, Any]) -> float:
    """By loops over everything; with the options for parity as the public code is described."""
    code, relation, delta = options.get("divisor") == "code", options.get("relation", "cosine"), options.get("delta")
    n_layers, _, n_tokens, _ = own.shape
    if loss in (layer_pair, layer_angle):
        total, count = 0.0, 0
        for row, token in zip(*np.nonzero(real), strict=True):
            mine, theirs = own[:, row, token], target[:, row, token]
            for j in range(n_layers):
                others = [i for i in range(n_layers) if i != j]
                if loss is layer_pair:
                    total += slow_pair(mine, theirs, j, others, relation)
                    count += len(others)
                for i, k in product(others, others) if loss is layer_angle else ():
                    total += (angle(mine, i, j, k) - angle(theirs, i, j, k)) ** 2 if i != k else 0
                    count += i != k
        return total / (real.sum() * n_layers ** (2 if loss is layer_pair else 3)) if code else total / max(1, count)
    sums = []
    for layer in range(n_layers):
        total, count = 0.0, 0
        for row, j in zip(*np.nonzero(real), strict=True):
            mine, theirs = own[layer, row], target[layer, row]
            if options.get("edges") == "clamped":
                window = [min(max(j + offset, 0), n_tokens - 1) for offset in range(-delta, delta + 1)]
                total += sum((angle(mine, i, j, k) - angle(theirs, i, j, k)) ** 2 for i, k in product(window, window))
                continue
            others = [i for i in range(n_tokens) if i != j and real[row, i] and (delta is None or abs(i - j) <= delta)]
            if loss is word_pair:
                total += slow_pair(mine, theirs, j, others, relation) if others else 0
                count += len(others)
                continue
            triples = [(i, k) for i, k in product(others, others) if i != k]
            total += sum((angle(mine, i, j, k) - angle(theirs, i, j, k)) ** 2 for i, k in triples)
            count += len(triples)
        if not code:
            sums.append(total / max(1, count))
        elif loss is word_pair:
            sums.append(total / (n_layers * (real.sum(axis=1) ** 2).sum()))
        else:
            sums.append(total / (n_layers * real.sum() * (2 * delta + 1) ** 2))
    return sum(sums)


@pytest.mark.parametrize("seed", [1, 2])
@named(LOSSES + PARITY)
def test_it_is_what_loops_over_pairs_and_triples_give(loss: Loss, options: dict[str, Any], seed: int) -> None:
    student, teacher, is_real = ragged(seed)
    expected = slow(loss, student.numpy(), teacher.numpy(), is_real.numpy(), options)
    assert float(loss(student, teacher, is_real=is_real, **options).value) == pytest.approx(expected, rel=1e-6) and expected > 0
    single = loss(student.float(), teacher.half(), is_real=is_real, **options)
    assert single.total.dtype == torch.float32 and float(single.value) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
@named([case for case in LOSSES if case[0] in (word_angle, layer_angle) or "relation" in case[1]])
def test_in_float32_vectors_that_are_nearly_one_keep_their_angles_and_distances(
    loss: Loss, options: dict[str, Any], spread: float
) -> None:
    student, teacher, is_real = ragged(3)
    student = (normal(3, seed=9) + spread * student).float()
    teacher = (normal(5, seed=8) + spread * teacher).float()
    expected = slow(loss, student.double().numpy(), teacher.double().numpy(), is_real.numpy(), options)
    assert float(loss(student, teacher, is_real=is_real, **options).value) == pytest.approx(expected, rel=1e-4)


# --- what holds for all


def every() -> Iterator[Any]:
    return named(LOSSES + PARITY)


@every()
def test_of_equals_there_is_nothing_to_learn(loss: Loss, options: dict[str, Any]) -> None:
    student, _, is_real = ragged(1)
    turned, _ = torch.linalg.qr(normal(3, 3, seed=5))  # relations know no directions
    student.requires_grad_()
    value = loss(student, student.detach() @ turned, is_real=is_real, **options).value
    (gradient,) = torch.autograd.grad(value, student)
    assert 0 <= value.item() < 1e-12 and float(gradient.abs().max()) < 1e-6


@named(LOSSES)
def test_padding_changes_nothing_whatever_it_holds(loss: Loss, options: dict[str, Any]) -> None:
    student, teacher, is_real = ragged(1)
    student.requires_grad_()
    expected = loss(student, teacher, is_real=is_real, **options).value
    (gradient,) = torch.autograd.grad(expected, student)
    pad = torch.nn.functional.pad
    for filling in (0.0, 3e4, math.nan):
        longer = pad(torch.where(is_real[..., None], student.detach(), filling), (0, 0, 0, 4), value=filling).requires_grad_()
        target = pad(torch.where(is_real[..., None], teacher, filling), (0, 0, 0, 4), value=filling)
        value = loss(longer, target, is_real=pad(is_real, (0, 4)), **options).value
        (found,) = torch.autograd.grad(value, longer)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(found[:, :, :7], torch.where(is_real[..., None], gradient, 0))
        assert (found[:, :, 7:] == 0).all()


@every()
def test_what_parts_of_a_batch_give_adds_up_to_the_batch(loss: Loss, options: dict[str, Any]) -> None:
    student, teacher, is_real = ragged(1)
    whole = loss(student, teacher, is_real=is_real, **options)
    cuts = [slice(0, 2), slice(2, 2), slice(2, 6)]
    parts = [loss(student[:, cut], teacher[:, cut], is_real=is_real[cut], **options) for cut in cuts]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(sum(part.count for part in parts), whole.count)
    assert parts[1].total.abs().sum() == 0 and parts[1].count.sum() == 0


@every()
def test_the_teacher_learns_nothing_and_only_real_words_of_the_student_do(loss: Loss, options: dict[str, Any]) -> None:
    student, teacher, is_real = (each.requires_grad_() if each.is_floating_point() else each for each in ragged(1))
    loss(student, teacher, is_real=is_real, **options).value.backward()
    assert teacher.grad is None and student.grad is not None
    taught = student.grad.abs().sum(dim=(0, 3)) > 0
    if "edges" not in options:
        assert not taught[~is_real].any()
    assert taught[0].all()


@every()
def test_the_gradient_is_that_of_the_loss(loss: Loss, options: dict[str, Any]) -> None:
    student, teacher, is_real = ragged(1)
    student = student[:, :3].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda own: loss(own, teacher[:, :3], is_real=is_real[:3], **options).value, student, fast_mode=True
    )


def degenerate(how: str, width: int) -> torch.Tensor:
    found = normal(4, 6, 7, width, seed=width, dtype=torch.float32)
    if how == "zeros":
        return torch.zeros_like(found)
    if how == "all alike":
        return found[:1, :1, :1].expand_as(found).clone()
    if how == "some alike":
        found[:, :, 1], found[1] = found[:, :, 0], found[0]
    if how == "some zeros":
        found[:, :, 1], found[1] = 0, 0
    if how == "all but alike":
        return found[:1, :1, :1] * (1 + 1e-7 * found)
    if how == "huge":
        return found * 1e15
    if how == "tiny":
        return found * 1e-15
    return found


HOW = ["sound", "zeros", "all alike", "some alike", "some zeros", "all but alike", "huge", "tiny"]


@every()
def test_degenerate_rows_have_finite_losses_and_gradients(loss: Loss, options: dict[str, Any]) -> None:
    _, _, is_real = ragged(1)
    for how, other in [*((how, "sound") for how in HOW), *(("sound", how) for how in HOW), *((how, how) for how in HOW)]:
        student = degenerate(how, 3).requires_grad_()
        value = loss(student, degenerate(other, 5), is_real=is_real, **options).value
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite() and gradient.isfinite().all(), (how, other)


@every()
def test_rows_of_one_word_and_a_batch_of_none_add_zero(loss: Loss, options: dict[str, Any]) -> None:
    for real in (torch.zeros(2, 1, dtype=torch.bool), torch.ones(0, 3, dtype=torch.bool)):
        student = normal(4, *real.shape, 3, seed=1).requires_grad_()
        value = loss(student, normal(4, *real.shape, 5, seed=2), is_real=real, **options).value
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == 0 and (gradient == 0).all()
    if loss in (word_pair, word_angle):
        student, teacher = normal(4, 2, 1, 3, seed=1), normal(4, 2, 1, 5, seed=2)
        assert float(loss(student, teacher, is_real=torch.ones(2, 1, dtype=torch.bool), **options).value) == 0


@every()
def test_autocast_changes_nothing(loss: Loss, options: dict[str, Any]) -> None:
    student, teacher, is_real = ragged(1, torch.float32)
    expected = loss(student, teacher, is_real=is_real, **options).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, teacher, is_real=is_real, **options).value
        coarse = loss(student.bfloat16(), teacher, is_real=is_real, **options).value
    assert torch.equal(found, expected) and coarse.dtype == torch.float32
    assert float(coarse) == pytest.approx(float(expected), rel=0.2)


@pytest.mark.parametrize(("loss", "most"), [(word_pair, 1.5), (word_angle, 3.5), (layer_pair, 0.75), (layer_angle, 1.25)])
def test_what_is_kept_for_the_way_back_is_a_few_vectors_a_word_and_no_difference_of_two(loss: Loss, most: float) -> None:
    """At most so many vectors in float64, where the differences of a word and its neighbours are `delta` and more."""
    batch, tokens, width, delta = 4, 128, 384, 10
    student, teacher = (normal(2, batch, tokens, width, seed=seed, dtype=torch.float32) for seed in (1, 2))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(student.requires_grad_(), teacher, is_real=torch.ones(batch, tokens, dtype=torch.bool))
    word = 8 * len(student) * batch * tokens  # bytes of one number for each word and layer
    assert max(kept.values()) <= word * max(width, tokens, 2 * delta * (2 * delta + 1) // 2)
    assert sum(kept.values()) < most * word * width
