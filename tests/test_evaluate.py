"""A score comes with the error that the choice of rows gives it."""

from dataclasses import replace

import numpy as np
import pytest

from hskstore.stage_two.scores import score_rows
from hskstore.text.metrics import standard_errors
from hskstore.text.tasks import get_task


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
