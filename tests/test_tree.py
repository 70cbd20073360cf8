"""Trees of tokens, and the method that learns them: by hand, by slow loops of Algorithm 1, in degenerate rows, and refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.config import Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.features import TeacherShape
from hskstore.features.attended import AttendedTargets
from hskstore.features.states import StateTargets
from hskstore.losses import random_tree, slices_mse, student_tree, teacher_tree
from hskstore.methods import Tkd
from hskstore.methods.batch import Batch
from hskstore.methods.tkd import TreePhase
from hskstore.models.load import load_classifier
from hskstore.models.observe import QueryKeyValue, Seen, Sight, observe, showing
from hskstore.models.run import ModelShape
from hskstore.models.widths import PruneTo
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import open_store
from hskstore.store.features import MOST_ATTENDED
from tests.conftest import hsk, make_bert, save_folder, write_tsv

IS_REAL = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
LAYERS, HEADS = 3, 2


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attentions(tokens: int = 6) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    query, key = (normal(LAYERS, 3, HEADS, tokens, 4, seed=seed) for seed in (1, 2))
    return list(query), list(key)


def slow_tree(scores: torch.Tensor, lengths: list[int], children: int) -> torch.Tensor:
    """Algorithm 1, lines 7 to 16, of scores [layer, row, head, token, token]."""
    layers, rows, heads, tokens, _ = scores.shape
    found = torch.zeros(layers, rows, heads, tokens, dtype=torch.bool)
    for row in range(rows):
        for head in range(heads):
            before = {0}
            for layer in reversed(range(layers)):
                chosen: set[int] = set()
                for token in before:
                    among = scores[layer, row, head, token, : lengths[row]].tolist()
                    chosen |= set(sorted(range(len(among)), key=lambda at: -among[at])[:children])
                for token in chosen:
                    found[layer, row, head, token] = True
                before = chosen
    return found


@pytest.mark.parametrize("children", [1, 2, 3, 9])
def test_a_tree_is_that_of_algorithm_1(children: int) -> None:
    query, key = attentions()
    scores = torch.stack([one @ other.mT for one, other in zip(query, key, strict=True)])
    expected = slow_tree(scores, IS_REAL.sum(dim=1).tolist(), children)
    assert torch.equal(student_tree(query, key, is_real=IS_REAL, children=children), expected)
    hidden = scores.masked_fill(~IS_REAL[:, None, None], -torch.inf)
    most = hidden.topk(min(children, 6))
    attended = most.indices.masked_fill(most.values == -torch.inf, -1)
    assert torch.equal(teacher_tree(attended, is_real=IS_REAL, children=children), expected)


def test_a_tree_by_hand() -> None:
    """[CLS] attends to 1 and 2 at the top; below, 1 to 3 and 0, and 2 to 3 and 2: 0, 2 and 3, once each."""
    attended = torch.zeros(2, 1, 1, 4, 2, dtype=torch.long)
    attended[1, 0, 0, 0] = torch.tensor([1, 2])
    attended[0, 0, 0, 1], attended[0, 0, 0, 2] = torch.tensor([3, 0]), torch.tensor([3, 2])
    nodes = teacher_tree(attended, is_real=torch.ones(1, 4, dtype=torch.bool), children=2)
    assert nodes[:, 0, 0].tolist() == [[True, False, True, True], [False, True, True, False]]


def test_what_a_stranger_writes_for_a_token_is_no_child_where_it_is_none() -> None:
    attended = torch.full((1, 1, 1, 3, 4), 2)
    attended[0, 0, 0, 0] = torch.tensor([-1, 1, 32767, -32768])
    nodes = teacher_tree(attended, is_real=torch.ones(1, 3, dtype=torch.bool), children=4)
    assert nodes[0, 0, 0].tolist() == [False, True, False]


def test_a_random_tree_has_so_many_real_tokens_of_each_row() -> None:
    torch.manual_seed(0)
    nodes = random_tree(LAYERS, HEADS, 3, is_real=IS_REAL)
    assert (nodes.sum(dim=-1) == torch.tensor([3, 3, 1])[:, None]).all() and not nodes[~IS_REAL[:, None].expand_as(nodes)].any()
    assert not torch.equal(nodes[0], nodes[1])


def test_slices_by_hand() -> None:
    """Slices (3, 4) and (0, 2) are (0.6, 0.8) and (0, 1) at length 1; of the teacher (1, 0) and (0, 1): 0.4^2 + 0.8^2, and 0."""
    own, target = torch.tensor([3.0, 4, 0, 2]).view(1, 1, 1, 4), torch.tensor([5.0, 0, 0, 7]).view(1, 1, 1, 4)
    both = torch.ones(1, 1, 2, 1, dtype=torch.bool)
    assert float(slices_mse(own, target, kept=both).value) == pytest.approx(0.8 / 4)
    assert float(slices_mse(own, target, kept=both, reduction="sum").value) == pytest.approx(0.8)
    first = torch.tensor([True, False]).view(1, 1, 2, 1)
    assert float(slices_mse(own, target, kept=first).value) == pytest.approx(0.8 / 2)
    whole = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    cosine = (3 * 5 + 2 * 7) / math.sqrt(29 * 74)
    assert float(slices_mse(own, target, kept=whole).value) == pytest.approx((2 - 2 * cosine) / 4, rel=1e-5)


def test_slices_equal_a_slow_loop_and_have_gradients_of_the_student_alone() -> None:
    """1 / (nodes x size) sum over rows, slices and nodes of |s / |s| - t / |t||^2, of each layer (Equation 6)."""
    own, target = normal(2, 3, 6, 8, seed=1).requires_grad_(), normal(2, 3, 6, 8, seed=2).requires_grad_()
    kept = (normal(2, 3, 4, 6, seed=3) > 0) & IS_REAL[:, None]
    found = slices_mse(own, target, kept=kept)
    for layer in range(2):
        total, count = 0.0, 0
        for row, piece, token in kept[layer].nonzero().tolist():
            vectors = [side[layer, row, token, 2 * piece : 2 * piece + 2].tolist() for side in (own, target)]
            mine, theirs = ([x / math.hypot(*vector) for x in vector] for vector in vectors)
            total += sum((x - y) ** 2 for x, y in zip(mine, theirs, strict=True))
            count += 2
        assert float(found.total[layer].detach() / found.count[layer]) == pytest.approx(total / count, rel=1e-6)
    found.value.backward()
    assert target.grad is None and own.grad is not None
    untouched = ~kept.any(dim=2)
    assert not own.grad[untouched].any()


@pytest.mark.parametrize("vector", [0.0, 1.0])
def test_gradients_of_vectors_of_zeros_and_of_equal_ones_are_finite(vector: float) -> None:
    own = torch.full((1, 2, 3, 4), vector, requires_grad=True)
    kept = torch.tensor([[True, True, False], [True, False, False]])[None, :, None].expand(1, 2, 2, 3)
    for target in (torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)):
        found = slices_mse(own, target, kept=kept)
        (gradient,) = torch.autograd.grad(found.value, own)
        assert gradient.isfinite().all() and found.value.isfinite()
    assert float(slices_mse(own, own, kept=torch.zeros_like(kept)).value.detach()) == 0


# --- the method

SHAPE = ModelShape("it", 2, (3, 8), heads=((2, 4),) * 3)


def batch_of(position: torch.Tensor | None = None, **options: Any) -> tuple[Tkd, TreePhase, Seen, Batch]:
    """A teacher of as many layers, and of 4 heads where its attention is known."""
    method = Tkd(**options)
    teacher = TeacherShape(3, 8, heads=4 if "teacher" in method.trees else None)
    (phase,) = method.phases(teacher, SHAPE)
    assert isinstance(phase, TreePhase)
    query, key = attentions()
    inside = {layer: QueryKeyValue(query[layer - 1], key[layer - 1], key[layer - 1]) for layer in (1, 2, 3)}
    hidden = {layer: normal(3, 6, 8, seed=20 + layer) for layer in (1, 2, 3)}
    states = StateTargets(normal(3, 3, 6, 8, seed=9), IS_REAL, position)
    attended = AttendedTargets(torch.randint(0, 6, (3, 3, 4, 6, MOST_ATTENDED), generator=torch.Generator().manual_seed(4)))
    knowledge = dict(zip(phase.reads, (states, attended), strict=False))
    logits = normal(3, 2, seed=7)
    ids = torch.zeros(3, 6, dtype=torch.long)
    batch = Batch(ids, ids, IS_REAL, torch.tensor([0, 1, 1]), logits, knowledge)
    return method, phase, Seen(normal(3, 2, seed=8), hidden, qkv=inside), batch


def test_terms_are_those_of_the_tree_of_cls_and_of_all() -> None:
    method, phase, seen, batch = batch_of(tree="student+teacher", all_tokens=True, alpha=0.0)
    assert phase.weights == {"tkd.cls": 1000, "tkd.tree": 100, "tkd.all": 1000, "prediction": 1} and phase.slices == 4
    own, target = torch.stack([seen.hidden[layer] for layer in (1, 2, 3)]), normal(3, 3, 6, 8, seed=9)
    nodes = student_tree(*attentions(), is_real=IS_REAL, children=2)[:, :, [0, 0, 1, 1]]
    others = teacher_tree(batch[phase.reads[1]].token, is_real=IS_REAL, children=2)
    expected = sum(slices_mse(own, target, kept=kept).value for kept in (nodes, others))
    found = method(phase, seen, batch, None)
    torch.testing.assert_close(found["tkd.tree"].value, expected)
    first = torch.zeros(3, 3, 1, 6, dtype=torch.bool)
    first[..., 0] = True
    torch.testing.assert_close(found["tkd.cls"].value, slices_mse(own, target, kept=first).value)
    every = IS_REAL[:, None].expand(3, 3, 1, 6)
    torch.testing.assert_close(found["tkd.all"].value, slices_mse(own, target, kept=every).value)


def test_a_tree_is_not_learnt_before_its_epoch() -> None:
    method, phase, seen, batch = batch_of(tree_from=0.5)
    before, after = (method(phase, seen, dataclasses.replace(batch, epoch=epoch), None) for epoch in (0.49, 0.5))
    assert float(before["tkd.tree"].value) == 0 < float(after["tkd.tree"].value)
    torch.testing.assert_close(before["tkd.cls"].value, after["tkd.cls"].value)


def test_a_student_with_another_tokenizer_learns_where_its_own_tree_stands() -> None:
    """The teacher's tokens are the student's in another order: the same nodes, the same term."""
    method, phase, seen, batch = batch_of()
    order = torch.tensor([[0, 3, 1, 2, 4, 5]] * 3)
    moved, _, _, other = batch_of(position=order)
    values = batch[phase.reads[0]].values.gather(2, order[None, ..., None].expand(3, -1, -1, 8))
    other.knowledge[phase.reads[0]] = StateTargets(values, IS_REAL[:2].gather(1, order[:2]).new_ones(3, 6), order)  # type: ignore[index]
    one, two = (each(phase, seen, rows, None)["tkd.tree"] for each, rows in ((method, batch), (moved, other)))
    torch.testing.assert_close(one.total, two.total)
    assert torch.equal(one.count, two.count)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tree": "student+oak"}, r"--tree student\+oak: choose student, teacher or random, several joined by \+, or none"),
        ({"tree": "student+student"}, "--tree student\\+student: name each once"),
        ({"tree": ""}, "--tree : choose student, teacher or random"),
        ({"children": 0}, "--children 0: must be a whole number from 1"),
        ({"tree": "teacher", "children": 5}, "a store keeps the 4 tokens that each attends to most"),
        ({"nodes": 9}, "--nodes 9: --tree student grows no tree that has it: leave it out"),
        ({"tree": "random", "children": 1}, "--children 1: --tree random grows no tree that has it"),
        ({"nodes": 0}, "--nodes 0: must be"),
        ({"tree_from": -1.0}, "--tree-from -1.0: must be from zero"),
        ({"reduction": "max"}, "--reduction max: choose one of mean, sum"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Tkd(**options)


def test_heads_that_make_no_tree_are_refused() -> None:
    uneven = ModelShape("it", 2, (3, 8), heads=((2, 4), (4, 2), (2, 4)))
    with pytest.raises(ModelError, match=r"it has layers of 2, 4 heads: the method tkd grows a tree in each head, from layer"):
        Tkd().phases(TeacherShape(3, 8), uneven)
    assert Tkd(tree="teacher").phases(TeacherShape(3, 8, heads=4), uneven)
    with pytest.raises(ModelError, match="it has 3 heads, which do not divide the teacher's width of 8"):
        Tkd().phases(TeacherShape(3, 8), ModelShape("it", 2, (3, 12), heads=((3, 4),) * 3))


# --- from a store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tkd")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = save_folder(make_bert(layers=4, hidden=32, **still), place / "teacher")
    save_folder(make_bert(layers=2, hidden=32, seed=1, **still), place / "student")
    (place / "data").mkdir()
    write_tsv(place / "data" / "train.tsv", 60, seed=1)
    write_tsv(place / "data" / "dev.tsv", 9, seed=2)
    extract(
        teacher,
        str(place / "data"),
        task="sst2",
        out=place / "store",
        methods=[Tkd(tree="teacher")],
        strategies=[Strategy(2, values="f32")],
    )
    return place


def test_a_store_holds_what_every_token_attends_to_most(place: Path) -> None:
    store = open_store(place / "store" / "tkd")
    assert store.plan.features["attended"].as_json() == {"layers": [2, 4], "heads": 4}
    model, _ = load_classifier(str(place / "teacher"))
    columns = {name: store.read_all(f"train/{name}") for name in ("input_ids", "token_type_ids", "n_tokens", "attended/token")}
    for row in range(0, 60, 7):
        length = int(columns["n_tokens"][row])
        ids, types = (
            torch.from_numpy(columns[name][row : row + 1, :length].astype(np.int64)) for name in ("input_ids", "token_type_ids")
        )
        sight = Sight(qkv=frozenset({2, 4}))
        with torch.no_grad(), showing(model, sight):
            seen = observe(model.eval(), ids, types, torch.ones_like(ids, dtype=torch.bool), sight)
        kept = torch.from_numpy(columns["attended/token"][row])
        for at, layer in enumerate((2, 4)):
            scores = (seen.qkv[layer].query @ seen.qkv[layer].key.mT)[0]
            most = min(MOST_ATTENDED, length)
            assert torch.equal(kept[at, :, :length, :most].long(), scores.topk(most).indices)
            assert (kept[at, :, :length, most:] == -1).all() and not kept[at, :, length:].any()


@pytest.mark.parametrize("tree", ["student", "teacher", "random", "none"])
def test_every_tree_is_learnt(tree: str, place: Path, tmp_path: Path) -> None:
    method = Tkd(tree=tree, all_tokens=tree == "none")
    recipe = Recipe(str(place / "student"), method, max_steps=4, batch_size=(12,), precision="fp32")
    (phase,) = distill(place / "store" / "tkd", recipe, out=tmp_path / "out").phases
    assert phase.losses.keys() == {"tkd.cls", "tkd.all" if tree == "none" else "tkd.tree", "prediction", "gold"}
    assert all(0 < value < math.inf for value in phase.losses.values())


def test_a_student_whose_heads_go_has_no_tree_of_its_own_but_the_teachers(place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 8, "batch_size": (12,), "precision": "fp32", "prune_to": PruneTo(heads=2)}
    for tree in ("student", "random", "student+teacher"):
        with pytest.raises(
            OptionError, match="--prune-to 2,all,all: the method tkd learns the attention of the heads that would"
        ):
            distill(place / "store" / "tkd", Recipe(str(place / "student"), Tkd(tree=tree), **options), out=tmp_path / "none")
    recipe = Recipe(str(place / "student"), Tkd(tree="teacher"), **options)
    (phase,) = distill(place / "store" / "tkd", recipe, out=tmp_path / "out").phases
    assert 0 < phase.losses["tkd.tree"] < math.inf
    assert json.loads((tmp_path / "out" / "config.json").read_text())["heads_per_layer"] == [2, 2]


def test_show_says_of_which_layers_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("show", place / "store" / "tkd") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "attended of teacher layers 2, 4, int16" in told and "train/attended/token 60x2x4x15x4 int16" in told
    assert "serves tkd: students of 1, 2 layers" in told


def test_a_copy_of_the_teacher_has_nothing_to_learn_but_its_predictions(place: Path, tmp_path: Path) -> None:
    extract(
        str(place / "teacher"),
        str(place / "data"),
        task="sst2",
        out=tmp_path,
        methods=[Tkd(tree="student+teacher", all_tokens=True)],
        strategies=[Strategy(4, values="f32")],
    )
    method = Tkd(tree="student+teacher", all_tokens=True)
    recipe = Recipe(str(place / "teacher"), method, max_steps=1, batch_size=(12,), lr=(1e-9,), precision="fp32")
    (phase,) = distill(tmp_path / "tkd", recipe, out=tmp_path / "out").phases
    assert all(phase.losses[f"tkd.{term}"] < 1e-9 for term in ("tree", "cls", "all"))
