"""Losses on attention, and the methods that learn it: values by hand, slow loops from the equations, masks, degenerate rows,
and what is refused of whom."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hskstore.config import Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.features import TeacherShape
from hskstore.features.qkv import QkvTargets
from hskstore.features.states import STATES, StateTargets
from hskstore.losses import Term, attention_kl, attention_mse, hidden_mse, in_heads, relation_kl
from hskstore.methods import METHODS, Method, MiniLM, MiniLMv2, TinyBert
from hskstore.methods.batch import Batch
from hskstore.models.observe import QueryKeyValue, Seen
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from tests.conftest import make_bert, save_folder, write_tsv
from tests.test_offsets import byte_level
from tests.test_teacher import FAMILIES

Loss = Callable[..., Term]
# Each loss with how many tensors it takes of a side, and whether these have layers in front.
LOSSES: list[tuple[Loss, int, bool]] = [(relation_kl, 1, False), (attention_kl, 2, False), (attention_mse, 2, True)]
each_loss = pytest.mark.parametrize(("loss", "parts", "layered"), LOSSES, ids=[loss.__name__ for loss, *_ in LOSSES])
IS_REAL = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sides(parts: int, layered: bool, rows: int = 3, tokens: int = 5) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Student and teacher of two heads, of size 3 and 4."""
    layers = (2,) if layered else ()
    own = [normal(*layers, rows, 2, tokens, 3, seed=part) for part in range(parts)]
    return own, [normal(*layers, rows, 2, tokens, 4, seed=10 + part) for part in range(parts)]


def slow_kl(student: list[torch.Tensor], teacher: list[torch.Tensor], is_real: torch.Tensor) -> float:
    """1 / (heads |x|) sum over heads a and tokens t of KL(teacher_{a,t} || student_{a,t}), over all rows."""
    total, count = 0.0, 0
    for row, length in enumerate(is_real.sum(dim=1).tolist()):
        for head in range(student[0].shape[1]):
            for token in range(length):
                dists = []
                for side in (student, teacher):
                    query, key = side[0][row, head, token], side[-1][row, head, :length]
                    scores = [sum(q * k for q, k in zip(query.tolist(), one.tolist(), strict=True)) for one in key]
                    powers = [math.exp(score / math.sqrt(len(query))) for score in scores]
                    dists.append([power / sum(powers) for power in powers])
                total += sum(p * math.log(p / q) for q, p in zip(*dists, strict=True))
                count += 1
    return total / count


@pytest.mark.parametrize(("loss", "parts"), [(relation_kl, 1), (attention_kl, 2)])
def test_divergences_equal_a_slow_loop(loss: Loss, parts: int) -> None:
    own, target = sides(parts, layered=False)
    found = loss(*own, *target, is_real=IS_REAL)
    assert float(found.value) == pytest.approx(slow_kl(own, target, IS_REAL), rel=1e-6)
    assert found.count.tolist() == 2 * 9


def test_score_differences_equal_a_slow_loop() -> None:
    """Of each layer 1 / heads sum over heads of MSE(q k' / sqrt(size) of both), over the pairs of real tokens of all rows."""
    own, target = sides(2, layered=True)
    found = attention_mse(*own, *target, is_real=IS_REAL)
    for layer in range(2):
        squares = []
        for row, length in enumerate(IS_REAL.sum(dim=1).tolist()):
            for head in range(2):
                for one in range(length):
                    for other in range(length):
                        mine, theirs = (
                            sum(q * k for q, k in zip(*(each[layer, row, head] for each in side), strict=False))
                            for side in (
                                [own[0][..., one, :], own[1][..., other, :]],
                                [target[0][..., one, :], target[1][..., other, :]],
                            )
                        )
                        squares.append(float(mine / math.sqrt(3) - theirs / math.sqrt(4)) ** 2)
        assert float(found.total[layer] / found.count[layer]) == pytest.approx(sum(squares) / len(squares), rel=1e-6)
        assert found.count[layer].item() == len(squares) == 2 * (25 + 9 + 1)


def test_score_differences_by_hand() -> None:
    """Scores (2, 0; 0, 0) / sqrt(4) of a student and (3, 3; 0, 0) of a teacher: (1 - 3)^2 + 3^2, over four pairs."""
    query, key = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    other = torch.tensor([[3.0], [0.0]]), torch.ones(2, 1)
    two = [each[None, None, None] for each in (query, key, *other)]
    found = attention_mse(*two, is_real=torch.ones(1, 2, dtype=torch.bool))
    assert found.total.tolist() == [4 + 9] and found.count.tolist() == [4]


def test_divergences_by_hand() -> None:
    """Of one token and itself there is nothing to choose. A student of zeros is uniform, (1/2, 1/2); a teacher whose tokens are
    (ln 3)^(1/2) and 0 has the relations (3/4, 1/4) and (1/2, 1/2)."""
    real = torch.ones(1, 2, dtype=torch.bool)
    teacher = torch.tensor([math.log(3) ** 0.5, 0.0]).view(1, 1, 2, 1)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = relation_kl(torch.zeros(1, 1, 2, 1), teacher, is_real=real)
    assert float(found.total) == pytest.approx(expected, rel=1e-5) and found.count.item() == 2
    # Of 4 numbers products are halved: sqrt(2) times each is what one number was.
    found = relation_kl(torch.zeros(1, 1, 2, 1), torch.cat([teacher * 2**0.5, torch.zeros(1, 1, 2, 3)], dim=-1), is_real=real)
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    query = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    key = torch.tensor([math.log(3), 0.0]).view(1, 1, 2, 1)
    found = attention_kl(torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1), query, key, is_real=real)
    assert float(found.value) == pytest.approx(expected / 2, rel=1e-5)


@each_loss
def test_what_stands_behind_a_rows_last_token_changes_nothing(loss: Loss, parts: int, layered: bool) -> None:
    own, target = sides(parts, layered)
    for each in own:
        each.requires_grad_()
    longer = [torch.cat([each, torch.full_like(each, torch.nan)[..., :2, :]], dim=-2) for each in own]
    theirs = [torch.cat([each, torch.full_like(each, torch.inf)[..., :2, :]], dim=-2) for each in target]
    plain = loss(*own, *target, is_real=IS_REAL)
    padded = loss(*longer, *theirs, is_real=torch.nn.functional.pad(IS_REAL, (0, 2)))
    torch.testing.assert_close(padded.total, plain.total)
    assert padded.count.tolist() == plain.count.tolist()
    gradients = [torch.autograd.grad(found.value, own) for found in (plain, padded)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert not one[(~IS_REAL[:, None, :, None]).expand_as(one)].any()


@each_loss
def test_parts_of_a_batch_add_up_to_it_and_none_of_it_is_zero(loss: Loss, parts: int, layered: bool) -> None:
    own, target = sides(parts, layered)
    rows = (slice(None),) if layered else ()
    terms = [
        loss(*(each[(*rows, some)] for each in (*own, *target)), is_real=IS_REAL[some])
        for some in (slice(0, 1), slice(1, 3), slice(0, 0))
    ]
    whole = loss(*own, *target, is_real=IS_REAL)
    torch.testing.assert_close(sum(term.total for term in terms), whole.total)
    assert (sum(term.count for term in terms) == whole.count).all() and not terms[2].total.any()


@each_loss
def test_the_teacher_learns_nothing_and_equality_costs_nothing(loss: Loss, parts: int, layered: bool) -> None:
    own, target = sides(parts, layered)
    theirs = [each.requires_grad_() for each in target]
    term = loss(*(each.requires_grad_() for each in own), *theirs, is_real=IS_REAL)
    term.value.backward()
    assert all(each.grad is None for each in theirs) and all(each.grad is not None and each.grad.any() for each in own)
    same = loss(*theirs, *theirs, is_real=IS_REAL)
    assert not same.total.any()


@pytest.mark.parametrize("kind", ["one token", "zeros", "alike", "huge"])
@each_loss
def test_degenerate_rows_have_finite_gradients(loss: Loss, parts: int, layered: bool, kind: str) -> None:
    own, target = sides(parts, layered)
    is_real = IS_REAL
    if kind == "one token":
        is_real = torch.arange(5).expand(3, -1) < 1
    elif kind == "zeros":
        own = [torch.zeros_like(each) for each in own]
    elif kind == "alike":
        own = [each[..., :1, :].expand_as(each).clone() for each in own]
    else:
        own = [1e4 * each.float() for each in own]
    for each in own:
        each.requires_grad_()
    term = loss(*own, *target, is_real=is_real)
    term.value.backward()
    assert term.value.isfinite() and all(each.grad is not None and each.grad.isfinite().all() for each in own)
    if kind == "one token" and loss is not attention_mse:
        assert not term.total.any() and not any(each.grad.any() for each in own if each.grad is not None)


@each_loss
def test_losses_are_worked_out_in_float32_whatever_autocast_says_and_targets_are_stored_in(
    loss: Loss, parts: int, layered: bool
) -> None:
    own, target = ([each.float() for each in side] for side in sides(parts, layered))
    expected = loss(*own, *(each.half().float() for each in target), is_real=IS_REAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*own, *(each.half() for each in target), is_real=IS_REAL)
    assert found.total.dtype == torch.float32 and torch.equal(found.total, expected.total)


def test_relation_heads_are_cut_out_of_all_heads_side_by_side() -> None:
    vectors = torch.arange(12.0).view(1, 2, 1, 6)
    assert in_heads(vectors, 2).equal(vectors)
    assert in_heads(vectors, 3).tolist() == [[[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]]]]
    assert in_heads(vectors, 1).tolist() == [[[[*range(12)]]]]


# --- methods

TEACHER, STUDENT = TeacherShape(4, 32, heads=4), ModelShape("it", 2, (2, 16), heads=((4, 4), (2, 8)))
ATTENTIVE: list[Method] = [MiniLMv2(), MiniLM(), TinyBert()]
attentive = pytest.mark.parametrize("method", ATTENTIVE, ids=lambda method: method.name)


def known(method: Method, student: ModelShape = STUDENT) -> tuple[Any, Seen, Batch]:
    """The method's first phase, what is seen of the student in it, and a batch of what the teacher knows."""
    assert student.heads is not None
    phase = method.phases(TEACHER, student)[0]
    own = {
        layer: QueryKeyValue(*(normal(3, heads, 5, size, seed=10 * layer + part).float() for part in range(3)))
        for layer, (heads, size) in enumerate(student.heads, 1)
        if layer in phase.sees.qkv
    }
    states = {layer: normal(3, 5, student.width, seed=layer).float() for layer in phase.sees.hidden}
    knowledge: dict[Any, Any] = {}
    for want in phase.reads:
        if want.kind is STATES:
            knowledge[want] = StateTargets(normal(len(want.pairs), 3, 5, 32, seed=99).float(), IS_REAL, None)
            continue
        parts = [normal(len(want.pairs), 3, 4, 5, 8, seed=100 + part).float() for part in range(3)]
        knowledge[want] = QkvTargets(*parts, IS_REAL)
    ids = torch.zeros(3, 5, dtype=torch.int64)
    batch = Batch(ids, ids, IS_REAL, torch.tensor([0, 1, 1]), torch.zeros(3, 2), knowledge)
    return phase, Seen(torch.zeros(3, 2), states, qkv=own), batch


def test_minilmv2_learns_three_relations_of_one_layer_in_relation_heads() -> None:
    for method, teacher_layer, heads in ((MiniLMv2(), 4, 4), (MiniLMv2(relation_heads=8, teacher_layer=3, alpha=0.25), 3, 8)):
        phase, seen, batch = known(method)
        (want,) = phase.reads
        assert want.pairs == ((pair := want.pairs[0]),) and (pair.student, pair.teacher) == (2, teacher_layer)
        terms = method(phase, seen, batch, None)
        assert terms.keys() == phase.weights.keys() and phase.sees.qkv == {2}
        assert {name: weight for name, weight in phase.weights.items() if "." in name} == dict.fromkeys(
            ("minilmv2.query", "minilmv2.key", "minilmv2.value"), 1.0
        )
        for part in ("query", "key", "value"):
            own, target = (in_heads(each, heads) for each in (getattr(seen.qkv[2], part), getattr(batch[want], part)[0]))
            assert own.shape == (3, heads, 5, 16 // heads) and target.shape == (3, heads, 5, 32 // heads)
            assert torch.equal(terms[f"minilmv2.{part}"].value, relation_kl(own, target, is_real=IS_REAL).value)
    only = dataclasses.replace(phase, weights={"minilmv2.key": 1.0})
    assert method(only, seen, batch, None).keys() == only.weights.keys()


def test_relation_heads_and_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^--relation-heads 12 does not divide the teacher's width of 32"):
        MiniLMv2(relation_heads=12).phases(TEACHER, STUDENT)
    odd = dataclasses.replace(STUDENT, heads=((4, 4), (3, 6)))
    with pytest.raises(ModelError, match=r"^it: 4 relation heads do not divide the 18 numbers of .* \(3 heads of 6\): choose"):
        MiniLMv2().phases(TEACHER, odd)
    assert MiniLMv2(relation_heads=2).phases(TEACHER, odd)
    with pytest.raises(OptionError, match=r"^--teacher-layer 5: the teacher has layers 1 to 4$"):
        MiniLMv2(teacher_layer=5).phases(TEACHER, STUDENT)
    for options in ({"relation_heads": 0}, {"teacher_layer": 0}, {"alpha": 2}, {"temperature": 0}):
        with pytest.raises(OptionError, match=f"--{next(iter(options)).replace('_', '-')}"):
            MiniLMv2(**options)  # type: ignore[arg-type]


def test_minilm_learns_attention_and_values_of_the_last_layer() -> None:
    student = dataclasses.replace(STUDENT, heads=((1, 4), (4, 4)))
    phase, seen, batch = known(MiniLM(alpha=0.25), student)
    (want,) = phase.reads
    ((own_layer, teacher_layer),) = [(pair.student, pair.teacher) for pair in want.pairs]
    assert (own_layer, teacher_layer) == (2, 4) and phase.sees.qkv == {2} and phase.reads_labels
    assert phase.weights == {"minilm.attention": 1, "minilm.value": 1, "prediction": 0.75, "gold": 0.25}
    terms, own, target = MiniLM(alpha=0.25)(phase, seen, batch, None), seen.qkv[2], batch[want]
    assert terms.keys() == phase.weights.keys()
    attention = attention_kl(own.query, own.key, target.query[0], target.key[0], is_real=IS_REAL)
    assert torch.equal(terms["minilm.attention"].value, attention.value)
    assert torch.equal(terms["minilm.value"].value, relation_kl(own.value, target.value[0], is_real=IS_REAL).value)
    only = dataclasses.replace(phase, weights={"minilm.value": 1.0})
    assert MiniLM()(only, seen, batch, None).keys() == only.weights.keys()
    for options in ({"alpha": -1}, {"temperature": 0}):
        with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
            MiniLM(**options)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (12, 4, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),  # of the paper
        (12, 6, [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        (12, 5, [(0, 0), (1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]),
    ],
)
def test_tinyberts_layers_are_spread_with_the_last_at_the_top(
    teacher: int, student: int, expected: list[tuple[int, int]]
) -> None:
    first, second = TinyBert().phases(TeacherShape(teacher, 32), ModelShape("it", 2, (student, 16)))
    states, attention = first.reads
    assert [(pair.student, pair.teacher) for pair in states.pairs] == expected
    assert attention.pairs == states.pairs[1:]
    assert first.sees.hidden == set(range(student + 1)) and first.sees.qkv == set(range(1, student + 1))
    assert (first.predicts, first.schedule, second.predicts, second.schedule) == (False, "constant", True, "linear")
    assert not second.reads and not second.sees.qkv and not second.reads_labels


def test_a_teacher_of_fewer_layers_has_attention_in_its_first() -> None:
    (states, attention), _ = (phase.reads for phase in TinyBert().phases(TeacherShape(1, 32), ModelShape("it", 2, (4, 16))))
    assert [pair.teacher for pair in states.pairs] == [0, 0, 0, 1, 1] and {pair.teacher for pair in attention.pairs} == {1}


def test_tinybert_learns_scores_and_states_and_then_predictions() -> None:
    student = dataclasses.replace(STUDENT, heads=((4, 4), (4, 4)))
    method = TinyBert()
    phase, seen, batch = known(method, student)
    torch.manual_seed(0)
    aids = method.aids(TEACHER, student)
    assert aids is not None
    terms = method(phase, seen, batch, aids)
    assert terms.keys() == phase.weights.keys() == {"tinybert.attention", "tinybert.hidden"} == {*dict.fromkeys(phase.weights)}
    states, attention = phase.reads
    query, key = (torch.stack([getattr(seen.qkv[layer], part) for layer in (1, 2)]) for part in ("query", "key"))
    target = batch[attention]
    expected = attention_mse(query, key, target.query, target.key, is_real=IS_REAL)
    assert torch.equal(terms["tinybert.attention"].value, expected.value)
    own = torch.stack([aids(seen.hidden[layer], 0) for layer in range(3)])
    expected = hidden_mse(own, batch[states].values, token_kept=IS_REAL.expand(3, -1, -1))
    assert torch.equal(terms["tinybert.hidden"].value, expected.value) and terms["tinybert.hidden"].count.tolist() == [9 * 32] * 3
    for only in phase.weights:
        assert method(dataclasses.replace(phase, weights={only: 1.0}), seen, batch, aids).keys() == {only}
    for options in ({"projection": "each"}, {"temperature": 0}):
        with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
            TinyBert(**options)  # type: ignore[arg-type]


def test_heads_that_are_compared_one_by_one_must_be_as_many() -> None:
    with pytest.raises(ModelError, match=r"^it has 2 heads in layer 2, and the teacher 4: the method minilm compares"):
        MiniLM().phases(TEACHER, STUDENT)
    assert MiniLM().phases(TEACHER, dataclasses.replace(STUDENT, heads=None)), "before anybody looked"
    with pytest.raises(ModelError, match=r"^it has 3 heads in layer 1, and the teacher 4: the method tinybert compares"):
        TinyBert().phases(TEACHER, dataclasses.replace(STUDENT, heads=((3, 4), (4, 8))))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and a store with its text of all that these methods read for students of 2 and of 3 layers."""
    place = tmp_path_factory.mktemp("attention")
    (place / "data").mkdir()
    for seed, split in enumerate(("train", "dev")):
        write_tsv(place / "data" / f"{split}.tsv", 40, seed=seed)
    teacher = save_folder(make_bert(), place / "teacher")
    methods = [METHODS[method.name]() for method in ATTENTIVE]
    options: dict[str, Any] = {
        "keeps": [],
        "strategies": [Strategy(2), Strategy(3)],
        "methods": methods,
        "task": "sst2",
        "keep_offsets": True,
    }
    extract(teacher, str(place / "data"), out=place / "stores", **options)
    return place


def learn(place: Path, method: Method, student: Any, out: Path, **options: Any) -> None:
    (store,) = (place / "stores").iterdir()
    recipe = Recipe(method=method, max_steps=3, batch_size=(8,), precision="fp32")
    distill(str(store), recipe, student=student, out=out, **options)


@attentive
def test_students_whose_attention_is_not_to_be_had_are_refused_before_they_learn(
    method: Method, place: Path, tmp_path: Path
) -> None:
    for family in ("mpnet", "deberta"):
        model = FAMILIES[family]()
        model.config.num_labels = 2
        model = type(model)(model.config)
        with pytest.raises(ModelError, match=r": its attention shows no queries, keys and values of each layer, from which"):
            learn(place, method, model, tmp_path / "run")
    words = byte_level(trim=True)
    words.save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError, match=rf"has another tokenizer than the teacher, .* the method {method.name} learns"):
        student = make_bert(layers=2)
        student.resize_token_embeddings(len(words))
        learn(place, method, student, tmp_path / "run", tokenizer=str(tmp_path / "words"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@attentive
def test_a_student_runs_and_is_saved_as_before(method: Method, place: Path, tmp_path: Path) -> None:
    student = make_bert(layers=2, seed=1)
    before = student.config._attn_implementation
    learn(place, method, student, tmp_path / "run")
    assert student.config._attn_implementation == before
    assert "hskstore" not in (tmp_path / "run" / "config.json").read_text()
    losses = json.loads((tmp_path / "run" / "metrics.json").read_text())["phases"][0]["losses"]
    assert all(0 < loss < 100 for loss in losses.values())


def test_a_teacher_that_runs_eager_is_refused_where_its_attention_is_asked_for_and_serves_others(
    place: Path, tmp_path: Path
) -> None:
    model = FAMILIES["mpnet"]()
    model.config.num_labels = 2
    teacher = save_folder(type(model)(model.config), tmp_path / "mpnet")
    options: dict[str, Any] = {"keeps": [], "strategies": [Strategy(2)], "task": "sst2", "max_length": 20}
    with pytest.raises(ModelError, match=r"the family mpnet runs with eager attention, which shows no queries, keys and values"):
        extract(teacher, str(place / "data"), out=tmp_path / "stores", methods=[MiniLMv2()], **options)
    assert extract(teacher, str(place / "data"), out=tmp_path / "others", methods=[METHODS["ckd"]()], **options)
