"""A score comes with the error that the choice of rows gives it, and a word where another order of the classes is better."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.config import Strategy
from hskstore.methods import Kd
from hskstore.stage_one.extract import extract
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.scores import score_rows
from hskstore.store import open_store
from hskstore.text.metrics import better_order, standard_errors
from hskstore.text.tasks import get_task
from tests.conftest import SHARED, make_bert, make_tokenizer, save_folder, sentences


def test_the_standard_error_of_an_accuracy_is_that_of_a_proportion() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2000)
    right = rng.random(2000) < 0.8
    guess = np.where(right, label, 1 - label)
    found = score_rows(get_task("sst2"), np.eye(2, dtype=np.float32)[guess], label)
    share = right.mean()
    assert found.score["accuracy"] == pytest.approx(share) and found.rows == 2000
    assert found.standard_error["accuracy"] == pytest.approx(np.sqrt(share * (1 - share) / 2000), rel=0.2)


def test_the_standard_error_of_a_correlation_shrinks_with_the_root_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=3200).astype(np.float32)
    logits = (label + rng.normal(size=3200))[:, None].astype(np.float32)
    task = get_task("stsb")
    few, many = (standard_errors(task, logits[:rows], label[:rows])["spearman"] for rows in (200, 3200))
    assert few / many == pytest.approx(4, rel=0.35)


def test_a_perfect_score_has_no_error() -> None:
    label = np.arange(40) % 2
    task = replace(get_task("cola"), name="cola")
    assert standard_errors(task, np.eye(2, dtype=np.float32)[label], label)["matthews"] == 0.0


# --- the order of the classes


def judged(label: np.ndarray, order: Sequence[int], *, right: float, seed: int = 0) -> np.ndarray:
    """Logits of a model whose output for class c is order[c], and which is right in that share of the rows."""
    rng, classes = np.random.default_rng(seed), len(order)
    said = np.where(rng.random(len(label)) < right, label, (label + rng.integers(1, classes, len(label))) % classes)
    return np.eye(classes, dtype=np.float32)[np.array(order)[said]]


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_the_order_that_fits_far_better_is_found_with_both_accuracies(order: tuple[int, ...]) -> None:
    label = np.random.default_rng(1).integers(0, 3, 200)
    logits = judged(label, order, right=0.8)
    found = better_order(logits, label)
    assert found is not None and found[0].tolist() == list(order)
    assert found[1] == (logits.argmax(axis=1) == label).mean() < 0.5
    assert found[2] == (logits.argmax(axis=1) == np.array(order)[label]).mean() > 0.7


@pytest.mark.parametrize(
    ("rows", "shares", "order", "right"),
    [
        (200, (0.5, 0.5), (0, 1), 0.9),
        (200, (0.5, 0.5), (1, 0), 0.55),  # hardly better than guessing, whichever way
        (8, (0.5, 0.5), (1, 0), 0.9),  # too few to tell
        (1, (0.5, 0.5), (1, 0), 1.0),
        (200, (0.2, 0.2, 0.6), (0, 1, 2), 0.4),
    ],
)
def test_nothing_is_said_where_the_order_is_right_or_nobody_can_tell(
    rows: int, shares: tuple[float, ...], order: tuple[int, ...], right: float
) -> None:
    for seed in range(20):
        label = np.random.default_rng(seed).choice(len(shares), rows, p=shares)
        assert better_order(judged(label, order, right=right, seed=seed), label) is None


def test_a_model_that_always_says_the_same_has_no_better_order() -> None:
    label = np.random.default_rng(0).choice(2, 1000, p=(0.9, 0.1))
    logits = np.tile(np.array([[0, 1]], dtype=np.float32), (1000, 1))
    assert better_order(logits, label) is None


def test_a_rare_class_that_is_swapped_is_found() -> None:
    label = np.random.default_rng(0).choice(2, 1000, p=(0.9, 0.1))
    assert better_order(judged(label, (1, 0), right=0.95), label) is not None


CLASSES = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, str]]:
    """A teacher that is right of every row, with its outputs in another order and named or not; and those rows."""
    torch.manual_seed(3)
    model, tokenizer = make_bert(layers=1, labels=3).eval(), make_tokenizer()

    def said(text: str) -> Any:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).logits[0]

    texts = sentences(160, seed=4)
    logits = torch.stack([said(text) for text in texts])
    with torch.no_grad():
        model.classifier.bias -= logits.median(dim=0).values  # so that it says each of the three
    label = [int(said(text).argmax()) for text in texts]
    assert min(label.count(each) for each in range(3)) > 20

    def made(order: Sequence[int], *, named: bool, ids: bool = False) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp("taught")
        other = make_bert(layers=1, labels=3)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            for own, old in ((other.classifier.weight, model.classifier.weight), (other.classifier.bias, model.classifier.bias)):
                own[list(order)] = old
        if named:
            other.config.id2label = {output: CLASSES[index] for index, output in enumerate(order)}
            other.config.label2id = {name: output for output, name in other.config.id2label.items()}
        for split, rows in (("train", slice(0, 40)), ("dev", slice(40, 160))):
            lines = [f"{text}\t{index if ids else CLASSES[index]}" for text, index in zip(texts[rows], label[rows], strict=True)]
            (folder / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
        return save_folder(other, folder / "teacher"), str(folder)

    return made


COLUMNS: dict[str, Any] = {"text": ["text"], "label": "label"}


def test_extract_and_eval_tell_a_head_without_names_whose_order_is_another(
    taught: Callable[..., tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, data = taught((2, 0, 1), named=False, ids=True)  # as heads of MNLI are
    extract(teacher, data, out=tmp_path, strategies=[Strategy(1)], methods=[Kd()], **COLUMNS)
    told = [record.getMessage() for record in caplog.records if "another order" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith(
        f"{teacher}: its outputs fit the labels far better in another order: accuracy 0."
    )
    assert "as they are taken (0, 1, 2), 1.000 as 1, 2, 0. If that is what they stand for, write it as id2label" in told[0]
    caplog.clear()
    assert evaluate(teacher, data, latency=False, **COLUMNS).score["accuracy"] < 0.5
    assert [record.getMessage() for record in caplog.records if "another order" in record.getMessage()] == told


def test_nothing_is_said_where_the_names_say_the_order(
    taught: Callable[..., tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, data = taught((2, 0, 1), named=True)
    (made,) = extract(teacher, data, out=tmp_path, strategies=[Strategy(1)], methods=[Kd()], **COLUMNS)
    store = open_store(made.root)
    assert store.plan.task["labels"] == store.plan.teacher["labels"] == ["neutral", "contradiction", "entailment"]
    for split in ("train", "validation"):
        np.testing.assert_array_equal(store.read_all(f"{split}/logits").argmax(axis=1), store.read_all(f"{split}/label"))
    assert evaluate(teacher, data, latency=False, **COLUMNS).score["accuracy"] == 1
    assert "another order" not in caplog.text


def test_a_score_has_no_order(teacher_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = save_folder(make_bert(layers=1, labels=1), tmp_path / "teacher")
    for split in ("train", "dev"):
        rows = "".join(f"{text}\t{len(text) / 7}\n" for text in sentences(30, seed=1))
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + rows)
    extract(teacher, str(tmp_path), out=tmp_path / "out", strategies=[Strategy(1)], methods=[Kd()], **COLUMNS)
    evaluate(teacher, str(tmp_path), latency=False, **COLUMNS)
    assert "another order" not in caplog.text


@pytest.mark.real
@pytest.mark.long
def test_a_real_teacher_whose_outputs_changed_places_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = SHARED / "models" / "minilm-l6-sst2"
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        for numbers in model.classifier.parameters():
            numbers.copy_(numbers.flip(0))
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    teacher = save_folder(model, tmp_path / "teacher", AutoTokenizer.from_pretrained(source))
    lines = (SHARED / "data" / "sst2_small" / "dev.tsv").read_text().splitlines(keepends=True)
    for split, rows in (("train", lines[1:41]), ("dev", lines[41:241])):
        (tmp_path / f"{split}.tsv").write_text("".join([lines[0], *rows]))
    extract(teacher, str(tmp_path), out=tmp_path / "out", strategies=[Strategy(1)], methods=[Kd()], task="sst2")
    assert "as positive, negative. If that" in caplog.text
