"""What is recommended of a made-up table whose answer is known; and the bootstrap that it rests on."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hskstore.cli.methods import methods_for
from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.explore import bootstrap
from hskstore.explore.bootstrap import draws, groups, interval, is_better
from hskstore.explore.recommend import recommend
from hskstore.explore.runs import Predictions, RunRow, SweepFacts, SweepFolder
from hskstore.features import TeacherShape
from hskstore.layers import plan_strategy
from hskstore.methods import Method
from hskstore.models.run import ModelShape
from hskstore.stage_one.asked import Asked
from hskstore.stage_two.recipe import Recipe
from hskstore.store.hidden import plan_hidden
from hskstore.text.metrics import compute_metrics
from hskstore.text.tasks import TASKS
from tests.conftest import hsk

ROWS = 400
GOLD = np.arange(ROWS) % 2
STRATEGY: dict[str, Any] = {"top_layer": 10, "layer_map": "round", "rank": "attention", "rank_layer": "aligned"}
STRATEGY |= {"rank_score": "probability", "mask": "uniform", "values": "f16"}
"""All as it is usual with a teacher of 12 layers, but for the mask."""


def said_of(right: np.ndarray) -> np.ndarray:
    """Logits that are right in these rows."""
    return np.eye(2, dtype=np.float32)[np.where(right, GOLD, 1 - GOLD)]


def table(out: Path, *runs: tuple[str, str | None, int, np.ndarray], **changed: object) -> Path:
    """Runs of a method and what it kept, the bytes it read, and the rows in which it was right; the seeds count up."""
    folder = SweepFolder(out)
    folder.begin(SweepFacts(1, "digest", "sha", 3, 12, TASKS["sst2"].as_json(), {"validation": 300, "test": 100}, "sha"))
    seeds: dict[str, int] = {}
    for method, keep, size, right in runs:
        name = f"{method}-{keep}".replace(",", "-")
        seed = seeds[name] = seeds.get(name, -1) + 1
        row = RunRow(
            run=f"{name}-s{seed}",
            name=method if keep is None else f"{method} {keep}",
            series="",
            status="done",
            seed=seed,
            method=method,
            options="{}",
            recipe="",
            store="digest",
            view="view",
            command="hsk sweep",
            finished="",
            versions={},
            keep=keep,
            **(STRATEGY if keep else {}),
            metric="accuracy",
            score=float(right.mean()),
            rows=ROWS,
            steps=100,
            bytes=size,
            units_of_hsk=0.0 if keep is None else 0.9,
            share_of_hsk=0.0 if keep is None else 0.01,
            seconds_training=12.3,
        )
        folder.write_row(replace(row, **changed) if changed else row)
        folder.write_predictions(row.run, Predictions(("validation",) * 300 + ("test",) * 100, said_of(right), GOLD))
    folder.join()
    return out


def wrong_in(*rows: range) -> np.ndarray:
    found = np.ones(ROWS, dtype=bool)
    for each in rows:
        found[each] = False
    return found


BEST, LUCK, WORSE, WORST = wrong_in(range(40)), wrong_in(range(200, 245)), wrong_in(range(90)), wrong_in(range(130))
"""Right in 360 rows, in 355 others, and in fewer of those in which the best is right."""


def test_the_smallest_that_cannot_be_told_from_the_best_is_taken(tmp_path: Path) -> None:
    runs = [("mud", "all,all,all", 900_000, BEST), ("mud", "1,9,0.1", 30_000, LUCK), ("kd", None, 2_000, WORST)]
    found = recommend(table(tmp_path, *(run for run in runs for _ in range(3)), ("mud", "1,1,0.1", 10_000, WORSE)))
    assert found.chosen is not None and found.best is not None
    assert (found.chosen.name, found.best.name) == ("mud 1,9,0.1", "mud all,all,all")
    assert [(each.name, each.tied) for each in found.standings] == [
        ("mud all,all,all", True),
        ("mud 1,9,0.1", True),
        ("mud 1,1,0.1", False),
        ("kd", False),
    ]
    assert found.chosen.behind == pytest.approx(5 / 400) and found.chosen.low < 0 < found.chosen.high
    what, why, cost, sure = found.words
    assert what == (
        "Take mud 1,9,0.1: accuracy 0.8875, the mean of 3 seeds (0.8875, 0.8875, 0.8875), from 30.0 kB, 0.9 units of HSK a row,"
        " 1 % of everything."
    )
    assert "2 of 4 configurations cannot be told from the best, mud all,all,all with 0.9000 from 900.0 kB, 30.0 times" in why
    assert f"It is 0.0125 behind, and in 95 % of 1,000 draws of the 400 scored rows from {found.chosen.low:.4f} to" in why
    assert "hsk extract TEACHER DATA --keep 1,9,0.1 --mask uniform --student-layers 3" in cost
    assert f"up to {found.chosen.high:.4f} worse than the best" in sure and "there is one seed of some, and" in sure
    assert "Against the teacher's predictions alone (kd, 0.6750) it is +0.2125, 95 % from +0." in sure


def test_where_the_predictions_alone_teach_as_well_nothing_else_is_needed(tmp_path: Path) -> None:
    runs = [("mud", "all,all,all", 900_000, BEST), ("kd", None, 2_000, LUCK)]
    found = recommend(table(tmp_path, *(run for run in runs for _ in range(3))))
    assert found.chosen is not None and found.chosen.name == "kd"
    assert "hsk extract TEACHER DATA --for kd --student-layers 3" in found.words[2]
    assert "each has 3 seeds or more" in found.words[3] and "nothing of the teacher's inside is needed" in found.words[3]


def test_where_one_is_better_than_all_it_is_that(tmp_path: Path) -> None:
    found = recommend(table(tmp_path, ("mud", "all,all,all", 900, BEST), ("kd", None, 2, WORST)))
    assert found.chosen is found.best and "every other one is worse in 97.5 %" in found.words[1]


def reads_of(method: Method, keep: Keep) -> dict[str, set[int]]:
    """The layers of a teacher of 12 that a student of 3 reads of each feature."""
    kept = plan_hidden(keep, plan_strategy(Strategy(3), 12), teacher_layers=12, hidden_size=32, most_admitted=12)
    phases = method.phases(TeacherShape(12, 32, kept, heads=4), ModelShape("it", 2, (3, 32)))
    wants = [want for phase in phases for want in phase.reads]
    return {want.kind.name: {pair.teacher for pair in want.pairs} for want in wants}


@pytest.mark.parametrize(
    ("options", "keep", "said"),
    [
        ({"method": "mud", "targets": "ignore"}, "1,9,0.1", "--keep 1,9,0.1 --mask uniform"),
        ({"method": "mud+ckd"}, "2,9,0.1", "--for mud+ckd --keep 2,9,0.1 --mask uniform"),
        ({"method": "pkd"}, None, "--for pkd"),
        ({"method": "pkd", "epochs": "3"}, None, "--for pkd"),
        ({"method": "pkd", "patient_layers": "last", "epochs": "3"}, None, "--for recipe.toml"),
        ({"method": "mud+pkd", "patient_layers": "last"}, "1,9,0.1", "--for recipe.toml --keep 1,9,0.1 --mask uniform"),
    ],
)
def test_the_command_makes_a_store_that_has_all_that_the_run_reads(
    options: dict[str, str], keep: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path, (options["method"], keep, 9, BEST), options=json.dumps(options))
    cost = recommend(table(tmp_path, ("kd", None, 2, WORST))).words[2]
    assert f"hsk extract TEACHER DATA {said} --student-layers 3 --out DIR (hsk plan" in cost
    assert ("hsk derive RICH" in cost) == (options["method"] == "mud")
    monkeypatch.chdir(tmp_path)
    _, told, lines = cost.partition("where recipe.toml is a file of the lines ")
    assert ("recipe.toml" in said) == bool(told) and "epochs" not in lines
    Path("recipe.toml").write_text(lines.partition(". A student")[0].replace(" and ", "\n"))
    words = said.split()
    learners = methods_for([words[words.index("--for") + 1]] if "--for" in words else [])
    keeps = [Keep.parse(keep)] if keep else []
    (features,) = Asked(keeps, [Strategy(3)], learners).by_store(TeacherShape(12, 32, heads=4), most_admitted=12).values()
    held = {feature.name: set(feature.layers) for feature in features}
    reads = reads_of(Recipe.of(options).method, Keep.parse(keep or "1,9,0.1"))
    assert reads and all(layers <= held[name] for name, layers in reads.items())


def test_labels_alone_need_no_teacher(tmp_path: Path) -> None:
    cost = recommend(table(tmp_path, ("finetune", None, 2_000, BEST), ("kd", None, 9_000, WORST))).words[2]
    assert cost == (
        "What it costs: no teacher, for it learns from the labels alone: 2.0 kB of tokens and labels, which every store of the"
        " data has. A student trained 12 s, 100 steps."
    )


def test_too_few_runs_say_nothing_and_what_failed_is_named(tmp_path: Path) -> None:
    table(tmp_path / "one", ("mud", "1,9,0.1", 9, BEST), ("mud", "1,9,0.1", 9, LUCK))
    found = recommend(tmp_path / "one")
    assert found.chosen is None and found.words[0].startswith("Nothing can be said yet: one configuration, mud 1,9,0.1, has runs")
    table(tmp_path / "none", ("kd", None, 9, BEST), status="failed", why="the loss is not finite", error="ModelError")
    words = recommend(tmp_path / "none").words
    assert words[0].startswith("Nothing can be said yet: no configuration has a run")
    assert words[1] == "A run failed and is not counted; kd-None-s0: the loss is not finite"
    with pytest.raises(OptionError, match="holds no sweep: make one with hsk sweep"):
        recommend(tmp_path)


def test_predictions_that_are_gone_are_told(tmp_path: Path) -> None:
    table(tmp_path, ("mud", "1,9,0.1", 9, BEST), ("kd", None, 2, LUCK))
    (tmp_path / "predictions" / "kd-None-s0.parquet").write_bytes(b"PAR1")
    with pytest.raises(OptionError, match=r"kd-None-s0.parquet is missing or damaged: delete .*kd-None-s0.json"):
        recommend(tmp_path)


def test_the_command_says_it_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert hsk("recommend", table(tmp_path, ("mud", "1,9,0.1", 9, BEST), ("kd", None, 2, LUCK))) == 0
    assert capfd.readouterr().out.startswith("Take kd: accuracy 0.8875, of one seed, from 2 B.")


def test_configurations_of_one_name_are_told_apart_in_words_and_standings(tmp_path: Path) -> None:
    all_right = np.ones(ROWS, dtype=bool)
    folder = SweepFolder(table(tmp_path, ("kd", None, 2, all_right), ("kd.", None, 3, np.arange(ROWS) % 4 > 0)))
    for row, lr in zip(folder.rows(), ("0.002", "0.003"), strict=True):
        folder.write_row(replace(row, name="kd", recipe=f'lr = "{lr}"\nseed = 0\n'))
    found = recommend(tmp_path)
    assert {each.name for each in found.standings} == {"kd lr=0.002", "kd lr=0.003"}
    assert found.words[0].startswith("Take kd lr=0.00")


# --- the bootstrap


def test_a_draw_is_what_the_metric_is_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(0)
    logits, gold = rng.normal(size=(30, 2)).astype(np.float32), rng.integers(0, 2, 30)
    chosen = np.random.default_rng(0).integers(0, 30, (1000, 30))
    three, of_three = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    for metric, said, label in (
        ("accuracy", logits, gold),
        ("matthews", logits, gold),
        ("matthews", three, of_three),
        ("f1", logits, gold),
        ("f1", three, of_three),
        ("f1", three[:, :2], np.zeros(30, dtype=int)),
        ("matthews", logits, np.zeros(30, dtype=int)),
        ("spearman", three[:, :1], of_three.astype(np.float32)),
        ("pearson", three[:, :1], rng.normal(size=30).astype(np.float32)),
        ("pearson", np.zeros((30, 1), dtype=np.float32), rng.normal(size=30).astype(np.float32)),
    ):
        task = replace(TASKS["sst2" if said.shape[1] > 1 else "stsb"], metrics=(metric,))
        (drawn,) = draws(task, {"it": [said]}, label).values()
        by_hand = [compute_metrics(task, said[rows], label[rows])[metric] for rows in chosen[:10]]
        np.testing.assert_allclose(drawn[:10], by_hand, rtol=1e-6, atol=1e-9, err_msg=metric)
    two = draws(TASKS["sst2"], {"one": [logits, -logits], "same": [-logits, logits]}, gold)
    np.testing.assert_allclose(two["one"], two["same"])


def test_drawn_in_blocks_the_numbers_are_the_same_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name, said, gold in (
        ("sst2", rng.normal(size=(30, 2)).astype(np.float32), rng.integers(0, 2, 30)),
        ("stsb", rng.normal(size=(30, 1)).astype(np.float32), rng.normal(size=30).round(1)),
    ):
        monkeypatch.setattr(bootstrap, "BLOCK", 2**20)
        whole = draws(TASKS[name], {"it": [said, -said], "other": [said]}, gold)
        monkeypatch.setattr(bootstrap, "BLOCK", 100)  # 3 draws at a time, and 1 at the end
        blocks = draws(TASKS[name], {"it": [said, -said], "other": [said]}, gold)
        assert all(np.array_equal(whole[each], blocks[each]) and len(blocks[each]) == 1000 for each in whole)
    monkeypatch.undo()
    many, gold = np.eye(2, dtype=np.float32)[np.arange(20_000) % 2], np.arange(20_000) // 3 % 2
    tracemalloc.start()
    try:
        draws(TASKS["sst2"], {"it": [many]}, gold)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20, "all draws at once take 458 MiB"
    finally:
        tracemalloc.stop()


def test_groups_and_intervals_by_hand() -> None:
    """The quantile 0.025 of 1,000 draws is about the 26th: 20 draws in which the first is not better are too few, 30 tie."""
    base = np.full(1000, 0.5)
    almost, tied = base - 0.01, base - 0.01
    almost[:20], tied[:30] = 0.51, 0.51
    drawn = {"best": base, "almost": almost, "tied": tied}
    assert is_better(base, almost) and not is_better(base, tied)
    assert groups({"best": 0.5, "almost": 0.49, "tied": 0.48}, drawn) == [["best", "tied"], ["almost"]]
    assert interval(np.arange(1001.0), np.zeros(1001)) == (25.0, 975.0)
