"""Tasks keep GLUE's names and the paper's hyperparameters; metrics have their textbook values."""

import json

import numpy as np
import pytest

from hskstore.errors import OptionError, StoreError
from hskstore.text.metrics import compute_metrics
from hskstore.text.tasks import DEFAULT_MAX_LENGTH, DEFAULTS, TASKS, PhaseDefaults, Task, get_task


def custom(kind="classes", labels=("a", "b", "c"), metrics=("accuracy", "f1")) -> Task:
    return Task("custom", kind, ("text",), "label", labels, metrics, DEFAULT_MAX_LENGTH, DEFAULTS)


def one_hot(classes: list[int], width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[classes]


@pytest.mark.parametrize(
    ("spelling", "name"), [("SST-2", "sst2"), ("sts_b", "stsb"), ("STS-B", "stsb"), ("CoLA", "cola"), ("rte", "rte")]
)
def test_a_task_is_found_in_any_spelling(spelling, name):
    assert get_task(spelling) is TASKS[name]


def test_an_unknown_task_lists_the_known_ones_and_the_way_round():
    with pytest.raises(OptionError, match=r"'imdb'.*cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli.*--text and --label"):
        get_task("imdb")


@pytest.mark.parametrize(
    ("name", "hidden", "prediction", "max_length"),
    [
        ("cola", PhaseDefaults(5e-5, 32, 30), PhaseDefaults(2e-5, 32, 5), 64),
        ("sst2", PhaseDefaults(5e-5, 32, 10), PhaseDefaults(2e-5, 32, 5), 64),
        ("qnli", PhaseDefaults(5e-5, 64, 5), PhaseDefaults(2e-5, 64, 5), 128),
        ("mnli", PhaseDefaults(5e-5, 64, 5), PhaseDefaults(5e-5, 64, 5), 128),
        ("mrpc", PhaseDefaults(5e-5, 32, 20), PhaseDefaults(2e-5, 32, 5), 128),
        ("rte", PhaseDefaults(5e-5, 32, 20), PhaseDefaults(2e-5, 32, 5), 128),
        ("stsb", PhaseDefaults(5e-5, 32, 20), PhaseDefaults(2e-5, 32, 5), 128),
    ],
)
def test_hyperparameters_are_those_of_table_4(name, hidden, prediction, max_length):
    task = TASKS[name]
    assert (task.defaults.hidden, task.defaults.prediction, task.max_length) == (hidden, prediction, max_length)


def test_every_task_stands_under_its_own_name():
    assert all(task.name == name for name, task in TASKS.items())
    assert {name: task.num_labels for name, task in TASKS.items()} == {
        "cola": 2, "sst2": 2, "mrpc": 2, "stsb": 1, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2, "wnli": 2,
    }  # fmt: skip


@pytest.mark.parametrize("task", [*TASKS.values(), custom(), custom("score", (), ("spearman", "pearson"))], ids=lambda t: t.name)
def test_a_task_survives_json(task):
    assert Task.from_json(json.loads(json.dumps(task.as_json()))) == task


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "poem"},
        {"kind": None},
        {"name": 5},
        {"text": "sentence"},
        {"labels": [1, 2]},
        {"labels": None},
        {"metrics": []},
        {"metrics": ["bleu"]},
        {"label": 3},
    ],
)
def test_a_strange_task_in_a_store_is_refused(change):
    with pytest.raises(StoreError, match="no task that this hskstore knows"):
        Task.from_json({**TASKS["sst2"].as_json(), **change})
    with pytest.raises(StoreError, match="no task that this hskstore knows"):
        Task.from_json({})


def test_accuracy_and_binary_f1_by_hand():
    # prediction 1 1 0 0 1, label 1 0 0 1 1: 3 of 5 right; class 1: 2 hits, 1 false alarm, 1 miss
    metrics = compute_metrics(TASKS["mrpc"], one_hot([1, 1, 0, 0, 1], 2), np.array([1, 0, 0, 1, 1]))
    assert metrics == pytest.approx({"accuracy": 3 / 5, "f1": 4 / 6})


def test_f1_of_more_than_two_classes_is_their_mean():
    # class 0: F1 1; class 1: 1 hit, 1 miss: 2/3; class 2: 1 hit, 1 false alarm: 2/3
    metrics = compute_metrics(custom(), one_hot([0, 1, 2, 2], 3), np.array([0, 1, 1, 2]))
    assert metrics == pytest.approx({"accuracy": 3 / 4, "f1": 7 / 9})


def test_f1_counts_class_1_even_where_nothing_is_of_class_1():
    assert compute_metrics(TASKS["mrpc"], one_hot([0, 0], 2), np.array([0, 0])) == {"accuracy": 1.0, "f1": 0.0}


def test_matthews_by_hand():
    # TP 2, TN 1, FP 1, FN 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2)
    metrics = compute_metrics(TASKS["cola"], one_hot([1, 1, 0, 0, 1], 2), np.array([1, 0, 0, 1, 1]))
    assert list(metrics) == ["matthews", "accuracy"]
    assert metrics["matthews"] == pytest.approx(1 / 6)


def test_correlations_by_hand():
    # ranks 1 2 4 3 against 1 2 3 4: Spearman 1 - 6 * 2 / (4 * 15); Pearson of (0,1,9,4) with (0,1,2,3)
    metrics = compute_metrics(
        TASKS["stsb"], np.array([[0.0], [1.0], [9.0], [4.0]], np.float32), np.array([0, 1, 2, 3.0], np.float32)
    )
    assert metrics == pytest.approx({"spearman": 0.8, "pearson": 10 / np.sqrt(49 * 5)})


@pytest.mark.parametrize("prediction", [[[2.5]] * 3, [[np.nan]] * 3])
@pytest.mark.filterwarnings("error")
def test_a_prediction_that_tells_nothing_correlates_at_0(prediction):
    assert compute_metrics(TASKS["stsb"], np.array(prediction), np.array([1.0, 2.0, 3.0])) == {"spearman": 0.0, "pearson": 0.0}
