"""A pruned BERT computes what the masked one computes, importance is what it says, and its files say how wide it is."""

import copy
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError
from hskstore.methods import Mud
from hskstore.models.load import load_classifier
from hskstore.models.observe import Sight
from hskstore.models.pruned_bert import (
    FactorisedEmbedding,
    PrunedBertConfig,
    PrunedBertForSequenceClassification,
    word_vectors,
)
from hskstore.models.pruning import Importance, as_pruned_bert, factorise, most_important, narrow, widths_of
from hskstore.models.widths import PruneTo, Widths
from hskstore.stage_one.extract import extract
from hskstore.stage_one.teacher import Teacher
from hskstore.stage_two.distill import distill
from hskstore.stage_two.feed import Feed, InMemory
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import TrainingRows
from hskstore.students import slice_teacher
from hskstore.students.pruned import measure_importance, prune_teacher
from hskstore.students.slices import take_layers
from tests.conftest import WORDS, hsk, make_bert, make_tokenizer, save_folder, write_tsv
from tests.test_trainer import equal, rows

HEADS, FFN, HIDDEN, HEAD_SIZE = 4, 64, 32, 8
Kept = list[list[int]]


def bert(*, layers: int = 3, labels: int = 2, seed: int = 0, **options: Any) -> Any:
    """A BERT none of whose biases or norms is what it is at the start, as after training."""
    model = make_bert(layers=layers, labels=labels, seed=seed, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        # Word embeddings of every padding too: a published BERT's is not zero.
        model.bert.embeddings.word_embeddings.weight[0].normal_()
    return model


def padded_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 5 + len(WORDS), (4, 12), generator=generator)
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 1])[:, None]
    types = (torch.arange(12) > 4).long().expand(4, 12)
    return {"input_ids": ids.masked_fill(~mask, 0), "token_type_ids": types, "attention_mask": mask.long()}


def best_approximation(table: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(table.double(), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).to(table.dtype)


def masked(model: Any, heads: Kept, units: Kept, rank: int | None) -> Any:
    """The bottom layers of a BERT, all but these heads and units masked, its word embeddings approximated."""
    model = copy.deepcopy(model)
    model.bert.encoder.layer = model.bert.encoder.layer[: len(heads)]
    model.config.num_hidden_layers = len(heads)
    for layer, kept_heads, kept_units in zip(model.bert.encoder.layer, heads, units, strict=True):
        for head in set(range(HEADS)) - set(kept_heads):
            layer.attention.output.dense.weight.data[:, head * HEAD_SIZE : (head + 1) * HEAD_SIZE] = 0
        for unit in set(range(FFN)) - set(kept_units):
            layer.output.dense.weight.data[:, unit] = 0
    if rank is not None:
        table = model.bert.embeddings.word_embeddings.weight
        table.data = best_approximation(table.data, rank)
    return model


def pruned(model: Any, heads: Kept, units: Kept, rank: int | None) -> PrunedBertForSequenceClassification:
    student = as_pruned_bert(model, "it")
    take_layers(student, range(1, len(heads) + 1))
    narrow(student, heads=[*map(torch.tensor, heads)], units=[*map(torch.tensor, units)], embedding_rank=rank)
    return student


@torch.no_grad()
def assert_same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    """Logits and every hidden state of real tokens on a padded batch."""
    batch = padded_batch()
    mine, theirs = (model(**batch, output_hidden_states=True) for model in (one, other))
    torch.testing.assert_close(mine.logits, theirs.logits, atol=tolerance, rtol=tolerance)
    assert len(mine.hidden_states) == len(theirs.hidden_states)
    real = batch["attention_mask"].bool()
    for left, right in zip(mine.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(left[real], right[real], atol=tolerance, rtol=tolerance)


def some(of: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(0, of - 1), min_size=1).map(sorted)


# --- what is left computes what it computed


@settings(max_examples=30)
@given(
    parts=st.lists(st.tuples(some(HEADS), some(FFN)), min_size=1, max_size=3),
    rank=st.none() | st.integers(1, HIDDEN),
    seed=st.integers(0, 3),
)
def test_a_pruned_student_computes_what_the_masked_teacher_computes(
    parts: list[tuple[list[int], list[int]]], rank: int | None, seed: int
) -> None:
    heads, units = [kept for kept, _ in parts], [kept for _, kept in parts]
    teacher = bert(seed=seed)
    student = pruned(teacher, heads, units, rank)
    assert_same(student, masked(teacher, heads, units, rank))
    assert student.config.heads_per_layer == [*map(len, heads)] and student.config.ffn_per_layer == [*map(len, units)]


def test_a_student_can_be_pruned_again() -> None:
    teacher = bert()
    student = pruned(teacher, [[0, 1, 3]] * 3, [[*range(0, FFN, 2)]] * 3, 12)
    narrow(student, heads=[torch.tensor([0, 2])] * 3, units=[torch.arange(5)] * 3, embedding_rank=4)
    assert_same(student, masked(teacher, [[0, 3]] * 3, [[0, 2, 4, 6, 8]] * 3, 4))
    attention = student.bert.encoder.layer[1].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (2, 8, 16)


def test_pruning_leaves_the_teacher_as_it_was() -> None:
    teacher = bert()
    before = copy.deepcopy(teacher.state_dict())
    pruned(teacher, [[1]] * 2, [[3]] * 2, 5)
    assert equal(before, teacher.state_dict()) and teacher.config.num_hidden_layers == 3


def test_a_bert_as_a_pruned_bert_computes_exactly_the_same() -> None:
    teacher = bert(labels=3, hidden_act="relu", layer_norm_eps=1e-3)
    teacher.config.id2label = {0: "no", 1: "so so", 2: "yes"}
    student = as_pruned_bert(teacher, "it")
    assert_same(student, teacher, tolerance=0)
    assert equal(student.state_dict(), teacher.state_dict())
    assert student.config.id2label == teacher.config.id2label and not student.training
    assert as_pruned_bert(student, "it") is student
    assert as_pruned_bert(teacher.train(), "it").training


class Twisted(tf.BertForSequenceClassification):
    """One of BERT's family that computes something else."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES)), "this is roberta"),
        (lambda: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(vocab_size=60, dim=32, n_heads=4)), "distilbert"),
        (lambda: nn.Linear(2, 2), "this is Linear"),
        (lambda: tf.BertModel(tf.BertConfig(**SIZES)), "only BERT"),
        (lambda: Twisted(tf.BertConfig(**SIZES)), "only BERT"),
    ],
)
def test_other_families_are_refused_by_name(model: Any, said: str) -> None:
    with pytest.raises(ModelError, match=f"^my-model: only BERT.*{said}|^my-model: {said}"):
        as_pruned_bert(model(), "my-model")


SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
}


# --- the embeddings


@pytest.mark.parametrize("rank", [1, 7, HIDDEN - 1])
def test_factorised_embeddings_are_the_truncated_svd(rank: int) -> None:
    table = nn.Embedding(200, HIDDEN, padding_idx=0)
    nn.init.normal_(table.weight)
    factorised = factorise(table, rank, 0)
    expected = best_approximation(table.weight.detach(), rank)
    torch.testing.assert_close(word_vectors(factorised), expected, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(table.weight.double())
    error = (word_vectors(factorised).double() - table.weight.double()).square().sum()
    torch.testing.assert_close(error, values[rank:].square().sum(), rtol=1e-5, atol=0)
    ids = torch.tensor([[0, 5], [199, 7]])
    torch.testing.assert_close(factorised(ids), word_vectors(factorised)[ids], atol=1e-6, rtol=1e-6)
    assert (factorised.table.weight.shape, factorised.projection.weight.shape) == ((200, rank), (HIDDEN, rank))
    assert factorised.table.padding_idx == 0 and factorised.projection.bias is None


def test_full_rank_is_the_identity_and_a_factorised_table_can_be_factorised_again() -> None:
    table = nn.Embedding(100, HIDDEN)
    full = factorise(table, HIDDEN, None)
    torch.testing.assert_close(word_vectors(full), table.weight, atol=1e-5, rtol=1e-5)
    twice = factorise(factorise(table, 20, None), 6, None)
    torch.testing.assert_close(word_vectors(twice), word_vectors(factorise(table, 6, None)), atol=1e-5, rtol=1e-5)


def test_a_table_of_fewer_words_than_units_or_of_low_rank_is_factorised_too() -> None:
    table = nn.Embedding(10, HIDDEN)
    torch.testing.assert_close(word_vectors(factorise(table, 20, 0)), table.weight, atol=1e-5, rtol=1e-5)
    table.weight.data = torch.outer(torch.randn(10), torch.randn(HIDDEN))
    torch.testing.assert_close(word_vectors(factorise(table, 1, 0)), table.weight, atol=1e-5, rtol=1e-5)


def test_a_vocabulary_of_bert_is_factorised_in_seconds_and_without_a_table_of_words_by_words() -> None:
    """Words x words would be 3.7 GB in float32."""
    table = nn.Embedding(30522, 768)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    factorised = factorise(table, 128, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert time.monotonic() - began < 30
    assert grown < 1.5e9 and factorised.table.weight.shape == (30522, 128)


# --- what is left


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=12), st.data())
def test_the_most_important_are_the_highest_in_their_own_order_and_ties_go_to_the_lower_index(
    score: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(score)))
    expected = sorted(sorted(range(len(score)), key=lambda index: (-score[index], index))[:keep])
    assert most_important(torch.tensor(score), keep).tolist() == expected
    assert most_important(torch.tensor(score).repeat(500), 1).tolist() == [score.index(max(score))]


def tiny_rows() -> TrainingRows:
    return replace(rows(), features={}, logits=None)


def by_hand(model: Any, of: TrainingRows, key: str) -> list[tuple[list[float], list[float]]]:
    """Each layer's importance of heads and of units, weight by weight, batches of 32."""
    model = copy.deepcopy(model).eval()
    found = [(np.zeros(HEADS), np.zeros(FFN)) for _ in model.bert.encoder.layer]
    for step in Feed(InMemory(of), 32, key, seed=0).epoch(0):
        batch = step.batch
        logits = model(
            input_ids=batch.input_ids, token_type_ids=batch.token_type_ids, attention_mask=batch.attention_mask.long()
        ).logits
        loss = nn.functional.cross_entropy(logits, batch.label)
        for layer, (heads, units) in zip(model.bert.encoder.layer, found, strict=True):
            parts = [layer.attention.output.dense.weight, layer.intermediate.dense.weight, layer.output.dense.weight]
            grads = torch.autograd.grad(loss, parts, retain_graph=True)
            attention, first, second = ((grad * part).abs().detach().numpy() for grad, part in zip(grads, parts, strict=True))
            for head in range(HEADS):
                heads[head] += attention[:, head * HEAD_SIZE : (head + 1) * HEAD_SIZE].sum()
            for unit in range(FFN):
                units[unit] += first[unit].sum() + second[:, unit].sum()
    return [(heads.tolist(), units.tolist()) for heads, units in found]


def test_importance_is_gradient_times_weight_of_heads_and_units_summed_over_batches() -> None:
    model = as_pruned_bert(bert(), "it")
    before = copy.deepcopy(model.state_dict())
    found = measure_importance(model, tiny_rows(), order="ab" * 32)
    for layer, (heads, units) in enumerate(by_hand(model, tiny_rows(), "ab" * 32)):
        torch.testing.assert_close(found.heads(layer), torch.tensor(heads), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(found.units(layer), torch.tensor(units), rtol=1e-4, atol=1e-7)
    assert equal(before, model.state_dict())


def test_importance_counts_a_batch_once_and_starts_again_in_the_models_widths() -> None:
    model = as_pruned_bert(bert(), "it")
    importance = Importance(model)
    importance.note(model)  # no gradients yet
    assert importance.heads(0).sum() == 0
    model(**padded_batch()).logits.sum().backward()
    importance.note(model)
    once = importance.units(1).clone()
    importance.note(model)
    torch.testing.assert_close(importance.units(1), 2 * once)
    narrow(model, heads=[torch.tensor([1])] * 3, units=[torch.tensor([4, 9])] * 3)
    importance.restart(model)
    assert [importance.heads(2).tolist(), importance.units(2).tolist()] == [[0], [0, 0]]


@pytest.mark.parametrize("where", ["a layer", "a word that no row has"])
def test_weights_that_are_not_finite_are_refused(where: str) -> None:
    model = as_pruned_bert(bert(), "it")
    if where == "a layer":
        model.bert.encoder.layer[1].output.dense.weight.data[0] = torch.nan
        with pytest.raises(ModelError, match=r"^it: its loss on the train rows is not finite"):
            measure_importance(model, tiny_rows(), order="ab" * 32, name="it")
    else:
        model.bert.embeddings.word_embeddings.weight.data[-1] = torch.nan
        with pytest.raises(ModelError, match="word embeddings that are not finite"):
            factorise(model.bert.embeddings.word_embeddings, 2, None)


def test_a_unit_that_the_loss_does_not_hang_on_is_the_first_to_go() -> None:
    teacher = bert()
    for number, layer in enumerate(teacher.bert.encoder.layer):
        layer.output.dense.weight.data[:, [number, 10 + number]] = 0
        layer.attention.output.dense.weight.data[:, number * HEAD_SIZE : (number + 1) * HEAD_SIZE] = 0
    model = as_pruned_bert(teacher, "it")
    importance = measure_importance(model, tiny_rows(), order="ab" * 32)
    importance.keep(model, Widths(HEADS - 1, FFN - 2, HIDDEN))
    assert_same(model, teacher)  # of each layer just those that were masked: no layer used another's scores


def test_weights_of_zero_among_what_is_kept_are_kept() -> None:
    teacher = bert()
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            for part in (layer.attention.self.query, layer.attention.output.dense, layer.intermediate.dense, layer.output.dense):
                part.weight[torch.rand_like(part.weight) < 0.3] = 0
                part.weight[:, 0] = 0
                part.bias[:2] = 0
    heads, units = [[0, 2], [1, 3]], [[0, 1, 60], [7, 8, 9]]
    student = pruned(teacher, heads, units, None)
    assert_same(student, masked(teacher, heads, units, None))
    assert student.bert.encoder.layer[0].attention.output.dense.weight.shape == (HIDDEN, 2 * HEAD_SIZE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 160, seed=1)
    write_tsv(folder / "dev.tsv", 40, seed=2)
    return folder


def test_a_teacher_is_pruned_by_its_own_importance_without_dropout(data: Path, tmp_path: Path) -> None:
    """Each layer by its own scores, heads in their order, the bottom layers, whatever dropout the teacher was trained with."""
    teacher = bert(seed=1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    folder = save_folder(teacher, tmp_path / "teacher")
    made = prune_teacher(folder, str(data), task="sst2", out=tmp_path / "student", layers=2, to=PruneTo(2, 20, 8))
    from hskstore.stage_two.rows import rows_from_data
    from hskstore.text.dataset import read_dataset
    from hskstore.text.tokenise import tokenise

    examples = read_dataset(str(data), task="sst2", splits=("train",)).splits["train"]
    tokenised = tokenise(examples, make_tokenizer(), 64, split="train")
    scores = by_hand(teacher, rows_from_data(tokenised, 0), tokenised.sha256())
    heads = [sorted(np.argsort(found)[-2:].tolist()) for found, _ in scores[:2]]
    units = [sorted(np.argsort(found)[-20:].tolist()) for _, found in scores[:2]]
    assert heads[0] != heads[1], "layers that agree prove nothing"
    student, _ = load_classifier(made.folder)
    assert_same(student.eval(), masked(teacher, heads, units, 8))
    assert widths_of(student) == (2, 20, 8) and made.layers == 2 and made.parameters == student.num_parameters()


def test_a_regression_teacher_is_pruned_by_its_squared_error(data: Path, tmp_path: Path) -> None:
    lines = (data / "train.tsv").read_text().splitlines()[1:]
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(f"{line.replace(chr(9), ',')}.5\n" for line in lines))
    folder = save_folder(bert(labels=1), tmp_path / "teacher")
    made = prune_teacher(
        folder, str(tmp_path / "scores.csv"), text=["text"], label="label", out=tmp_path / "student", to=PruneTo(3, None, None)
    )
    student, trained = load_classifier(made.folder)
    assert trained and student.config.problem_type == "regression" and student.config.heads_per_layer == [3, 3, 3]


# --- the architecture in files


def odd_student(seed: int = 0, labels: int = 2) -> PrunedBertForSequenceClassification:
    """Other widths in each layer, and heads whose number and size have nothing to do with the hidden size."""
    torch.manual_seed(seed)
    config = PrunedBertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=31,
        num_hidden_layers=3,
        max_position_embeddings=64,
        heads_per_layer=[1, 3, 2],
        ffn_per_layer=[40, 7, 64],
        head_size=8,
        embedding_size=6,
        num_labels=labels,
        initializer_range=0.3,
    )
    return PrunedBertForSequenceClassification(config).eval()


def test_a_saved_student_is_loaded_by_the_auto_classes_after_one_import(tmp_path: Path) -> None:
    student = odd_student()
    student.save_pretrained(tmp_path / "student")
    with torch.no_grad():
        output = student(**padded_batch(), output_hidden_states=True)
    torch.save({"batch": padded_batch(), "logits": output.logits, "last": output.hidden_states[-1]}, tmp_path / "expected.pt")
    code = (
        "import sys, torch, hskstore.pruned_bert\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification\n"
        f"folder, seen = {str(tmp_path / 'student')!r}, torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "config = AutoConfig.from_pretrained(folder)\n"
        "whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()\n"
        "encoder = AutoModel.from_pretrained(folder).eval()\n"
        "with torch.no_grad():\n"
        "    print(torch.equal(whole(**seen['batch']).logits, seen['logits']))\n"
        "    print(torch.equal(encoder(**seen['batch']).last_hidden_state, seen['last']))\n"
        "print(config.heads_per_layer, config.ffn_per_layer, config.head_size, config.embedding_size)\n"
        "print(type(whole).__name__, type(encoder).__name__, sorted(name for name in sys.modules if name[:9] == 'hskstore.'))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [
        "True",
        "True",
        "[1, 3, 2] [40, 7, 64] 8 6",
        "PrunedBertForSequenceClassification PrunedBertModel"
        " ['hskstore.models', 'hskstore.models.pruned_bert', 'hskstore.pruned_bert', 'hskstore.version']",
    ]


def test_the_widths_survive_files_whatever_the_defaults_are(tmp_path: Path) -> None:
    """64 units a head and no factorisation are a BERT's defaults: they must not be left out of the file."""
    config = PrunedBertConfig(heads_per_layer=[2] * 12, ffn_per_layer=[768] * 12)
    assert (config.head_size, config.num_attention_heads) == (64, 2)
    config.save_pretrained(tmp_path)
    again = PrunedBertConfig.from_pretrained(tmp_path)
    assert (again.head_size, again.heads_per_layer, again.embedding_size) == (64, [2] * 12, None)


def test_a_students_parts_have_the_sizes_its_config_says() -> None:
    student = odd_student()
    layers = student.bert.encoder.layer
    assert [layer.attention.self.query.weight.shape for layer in layers] == [(8, 31), (24, 31), (16, 31)]
    assert [layer.attention.output.dense.weight.shape for layer in layers] == [(31, 8), (31, 24), (31, 16)]
    assert [layer.intermediate.dense.weight.shape for layer in layers] == [(40, 31), (7, 31), (64, 31)]
    assert all(layer.attention.self.scaling == 8**-0.5 for layer in layers)
    assert all(abs(float(layer.output.dense.weight.detach().std()) - 0.3) < 0.1 for layer in layers), "initialised like BERT"
    student.resize_token_embeddings(40)
    assert student.bert.embeddings.word_embeddings.table.weight.shape == (40, 6)
    assert isinstance(student.bert.embeddings.word_embeddings, FactorisedEmbedding)


@pytest.mark.parametrize(
    "change",
    [
        {"heads_per_layer": [1, 3]},
        {"heads_per_layer": [1, 0, 2]},
        {"heads_per_layer": 5},
        {"heads_per_layer": ["1", 3, 2]},
        {"heads_per_layer": []},
        {"ffn_per_layer": [40, -7, 64]},
        {"ffn_per_layer": "abc"},
        {"ffn_per_layer": [40, 7.5, 64]},
        {"embedding_size": 0},
        {"embedding_size": "6"},
        {"head_size": 0},
        {"num_hidden_layers": 4},
    ],
    ids=str,
)
def test_a_config_of_no_widths_is_refused_in_one_message(
    change: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(save_folder(odd_student(), tmp_path / "student"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    capfd.readouterr()
    assert hsk("student", "slice", folder, "--layers", "1", "--out", tmp_path / "new") == 2
    err = capfd.readouterr().err
    assert err.startswith(f"hsk: {folder}: no model could be loaded (") and "are no BERT" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_pruned_teachers_states_and_ranks_are_those_of_eager_attention() -> None:
    batch = padded_batch()
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].bool())
    student = odd_student()
    student.set_attn_implementation("eager")
    with torch.no_grad():
        eager = student(**batch, output_hidden_states=True, output_attentions=True)
    teacher = Teacher(student, None, name="pruned", device=torch.device("cpu"))
    teacher.probe(*inputs)
    assert not teacher.eager
    features = teacher.forward(*inputs, Sight(frozenset(range(4)), frozenset({1, 2, 3})))
    for layer, map_ in enumerate(eager.attentions, start=1):
        assert map_.shape[1] == student.config.heads_per_layer[layer - 1]
        torch.testing.assert_close(features.cls_row[layer], map_[:, :, 0].mean(dim=1), atol=1e-6, rtol=1e-5)
    real = inputs[2]
    for ours, theirs in zip(features.hidden.values(), eager.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


def test_a_pruned_teacher_is_extracted_sliced_and_taught(data: Path, tmp_path: Path) -> None:
    teacher = odd_student()
    folder = save_folder(teacher, tmp_path / "teacher")
    (made,) = extract(folder, str(data), out=tmp_path / "stores", keeps=[Keep(1, 4, 0.5)], strategies=[Strategy(2)], task="sst2")
    sliced = slice_teacher(folder, "3,1", tmp_path / "sliced")
    student, _ = load_classifier(sliced.folder)
    assert (student.config.heads_per_layer, student.config.ffn_per_layer) == ([2, 1], [64, 40])
    for mine, theirs in ((0, 2), (1, 0)):
        assert equal(student.bert.encoder.layer[mine].state_dict(), teacher.bert.encoder.layer[theirs].state_dict())
    assert equal(student.bert.embeddings.state_dict(), teacher.bert.embeddings.state_dict())
    taught = distill(made.root, Recipe(sliced.folder, Mud(), max_steps=6), out=tmp_path / "run")
    after, _ = load_classifier(taught.folder)
    assert after.config.heads_per_layer == [2, 1]
    for name, before in student.state_dict().items():
        if name.endswith("weight") and "pooler" not in name:
            assert not torch.equal(before, after.state_dict()[name]), name
