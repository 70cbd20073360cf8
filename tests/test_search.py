"""A search: within its budget, and going on where it stopped."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from hskstore.cli.print_explore import print_searched
from hskstore.errors import OptionError
from hskstore.explore import runner as runners
from hskstore.explore import search as searching
from hskstore.explore.knowledge import bytes_read, sizes_with_view
from hskstore.explore.recommend import recommend
from hskstore.explore.runner import Pruned, Runner, Sweeping
from hskstore.explore.runs import RunRow, SweepFolder
from hskstore.explore.search import DATABASE, Searched, front, search
from hskstore.methods.serving import teacher_shape
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.scores import DevScore, OnScore
from hskstore.store import Store
from tests.conftest import hsk
from tests.test_sweep import run as run_sweep
from tests.test_sweep import world  # noqa: F401

BUDGET = 20_000


def run(world: SimpleNamespace, out: Path, **options: Any) -> Searched:  # noqa: F811
    recipe = world.place / "few.toml"
    recipe.write_text('max_steps = 6\nlr = 0.001\nepochs = "1,3"\n')
    return search(world.rich, world.student, **{"out": out, "budget": BUDGET, "trials": 4, "recipe": recipe, **options})


def answer(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float | BaseException]) -> None:
    """In place of training: these dev scores, or what ends a run amid them."""

    def learn(store: Store, recipe: Recipe, *, on_score: OnScore | None, **_: Any) -> Recipe:
        for number, score in enumerate(scores, 1):
            if isinstance(score, BaseException):
                raise score
            if on_score is not None:
                on_score(DevScore("accuracy", {"accuracy": score}), number, number == len(scores))
        return recipe

    def ended(self: Runner, row: RunRow, store: Store, recipe: Recipe) -> RunRow:
        read = bytes_read(store, recipe.phases(teacher_shape(store.plan), self.student), sizes_with_view(store))
        return replace(row, score=scores[-1], scores={"validation/accuracy": scores[-1]}, bytes=read)

    monkeypatch.setattr(runners, "learn", learn)
    monkeypatch.setattr(Runner, "_ended", ended)


def test_no_run_is_ended_at_its_last_score(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optuna.trial import Trial

    runner = Runner(Sweeping(world.rich, world.student, str(tmp_path)))
    options = {"method": "mud", "epochs": "1,3"}
    assert searching._Space(runner, options, None).scores() == 3
    assert searching._Space(runner, {**options, "max_steps": 6}, None).scores() == 2  # of 6 steps 4, and 3 are an epoch
    monkeypatch.setattr(Trial, "should_prune", lambda self: True)
    answer(monkeypatch, [0.5])
    odd = tmp_path / "a?b%41{c}"
    assert {row.status for row in run(world, odd, trials=1, budget=None).rows} == {"done"}
    assert (odd / DATABASE).exists() and not (tmp_path / "a").exists()
    answer(monkeypatch, [0.4, 0.5])
    result = run(world, tmp_path / "two", trials=1, budget=None)
    assert [row.status for row in result.rows] == ["done", "pruned"]
    assert result.rows[-1].why == "ended by Hyperband after 1 dev scores, the last accuracy 0.4000"


def test_what_failed_is_told_and_tried_again_and_a_sweep_trains_what_a_search_has_ended(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from optuna.trial import Trial

    told: list[tuple[str, str, int]] = []

    def again(scores: Sequence[float | BaseException]) -> Searched:
        answer(monkeypatch, scores)
        told.clear()
        return run(
            world, tmp_path, trials=2, budget=None, on_run=lambda row, ended, of: told.append((row.method, row.status, ended))
        )

    failed = again([OSError("out of luck")])
    assert told == [("kd", "failed", 0), ("mud", "failed", 1), ("mud", "failed", 2)]
    print_searched(failed)
    said = capsys.readouterr().out
    assert "2 configurations and kd alone tried: 0 ended early by Hyperband, 3 failed" in said and "front" not in said
    assert all(f"failed: {row.name}, seed 0: out of luck" in said for row in failed.rows)
    monkeypatch.setattr(Trial, "should_prune", lambda self: True)
    pruned = again([0.4, 0.5])
    assert told == [("kd", "done", 0), ("mud", "pruned", 1), ("mud", "pruned", 2)]
    assert [row.run for row in pruned.rows] == [row.run for row in failed.rows]
    print_searched(pruned)
    assert pruned.rows[1].name in capsys.readouterr().out
    again([0.5])
    assert told == [], "a search is done with what it has ended"
    grid, row = tmp_path / "grid.toml", pruned.rows[1]
    few = (world.place / "few.toml").read_text()
    grid.write_text(f'keep = "{row.keep}"\ntop_layer = {row.top_layer}\n{few}')
    swept = run_sweep(world, tmp_path, grid=str(grid), seeds=1, data=None)
    assert next(each.status for each in swept.rows if each.run == row.run) == "done"


def test_a_search_with_a_budget_has_no_run_of_one_without(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer(monkeypatch, [0.5])
    free = run(world, tmp_path, trials=2, budget=None)
    assert max(row.bytes or 0 for row in free.rows) > BUDGET
    held = run(world, tmp_path, trials=2)
    assert len(held.rows) == 3 and max(row.bytes or 0 for row in held.rows) <= BUDGET


def test_a_score_that_is_found_again_after_a_kill_counts_once(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    import optuna

    with monkeypatch.context() as patched:
        answer(patched, [0.5])
        run(world, tmp_path, trials=1, budget=None)
    answer(monkeypatch, [0.4, 0.6, KeyboardInterrupt()])
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: False)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path, trials=2, budget=None)
    answer(monkeypatch, [0.4, 0.6, 0.5])
    run(world, tmp_path, trials=2, budget=None)
    database = f"sqlite:///{tmp_path / DATABASE}"
    (name,) = optuna.get_all_study_names(database)
    trials = optuna.load_study(study_name=name, storage=database).trials
    assert [each.intermediate_values for each in trials] == [{1: 0.5}, {1: 0.4, 2: 0.6}, {1: 0.4, 2: 0.6, 3: 0.5}]
    assert not [each for each in recwarn if "already reported" in str(each.message)]


@pytest.mark.long
def test_no_configuration_is_above_the_budget_and_a_search_goes_on(world: SimpleNamespace, tmp_path: Path) -> None:  # noqa: F811
    told: list[tuple[int, int]] = []
    first = run(world, tmp_path, on_run=lambda row, ended, of: told.append((ended, of)))
    trained = [row for row in first.rows if row.trial is not None]
    assert first.rows[0].method == "kd" and len(trained) == 4 and told[-1] == (4, 4)
    assert all(0 < int(row.bytes or 0) <= BUDGET for row in first.rows if row.status == "done")
    assert all(row.seed == 0 and row.steps == 6 for row in first.rows if row.status == "done")
    left = SweepFolder(tmp_path).run_folder(first.rows[0].run) / "checkpoint"
    left.mkdir(parents=True)  # as a search leaves it that was killed behind its last row
    again = run(world, tmp_path)
    assert not left.exists()
    assert [row.run for row in again.rows] == [row.run for row in first.rows], "nothing is left to do"
    more = run(world, tmp_path, trials=6)
    assert [row.run for row in more.rows][:5] == [row.run for row in first.rows] and len(more.rows) == 7
    assert pq.read_table(more.table).num_rows == 7
    assert set(map(id, more.front)) and {row.run for row in more.front} <= {row.run for row in more.rows}
    assert recommend(tmp_path).chosen is not None


@pytest.mark.long
def test_a_trial_that_was_under_way_comes_again_first(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optuna.study import Study

    do, planned = searching.Runner.do, list[str]()

    def killed(self: Any, each: Any, **options: Any) -> Any:
        if len(planned) == 3:
            raise KeyboardInterrupt
        planned.append(each.run)
        if len(planned) == 3:
            raise KeyboardInterrupt
        return do(self, each, **options)

    with monkeypatch.context() as patched:
        patched.setattr(searching.Runner, "do", killed)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path)
    with monkeypatch.context() as patched:  # and once more, while it takes up what was under way
        patched.setattr(Study, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path)
    result = run(world, tmp_path)
    assert [row.run for row in result.rows][:3] == planned[:3] and len(result.rows) == 5


@pytest.mark.long
def test_a_run_that_hyperband_ends_is_a_row_that_says_so(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optuna.trial import Trial

    monkeypatch.setattr(Trial, "should_prune", lambda self: self.number == 1)
    result = run(world, tmp_path, trials=3)
    status = {row.trial: row.status for row in result.rows}
    assert status == {None: "done", 0: "done", 1: "pruned", 2: "done"}
    (pruned,) = (row for row in result.rows if row.status == "pruned")
    assert "ended by Hyperband after 1 dev scores, the last accuracy" in str(pruned.why) and pruned.score is None
    assert pruned.run not in {row.run for row in result.front} and not issubclass(Pruned, KeyboardInterrupt)


def test_what_cannot_be_searched_is_told(
    world: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OptionError, match=r"--budget 100: the smallest configuration, 1,1,0.1, reads \d+ bytes"):
        run(world, tmp_path, budget=100)
    recipe = tmp_path / "it.toml"
    recipe.write_text('method = "pkd"\n')
    with pytest.raises(OptionError, match="method is pkd; a search is of what mud reads"):
        run(world, tmp_path, recipe=recipe)
    assert hsk("search", world.rich, "--student", world.student, "--out", tmp_path, "--budget", "much") == 2
    assert "--budget much: expected a number of bytes" in capfd.readouterr().err
    monkeypatch.setattr(searching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"hsk search needs Optuna: pip install 'hskstore\[search\]'"):
        run(world, tmp_path)
    assert "optuna" not in sys.modules or json


def test_the_front_is_what_no_other_run_beats_in_all() -> None:
    def row(name: str, score: float, size: int, seconds: float, status: Any = "done") -> RunRow:
        words = dict.fromkeys(("name", "series", "method", "options", "recipe", "store", "view", "command", "finished"), "")
        return RunRow(run=name, status=status, seed=0, versions={}, score=score, bytes=size, seconds_training=seconds, **words)

    rows = [
        row("best", 0.9, 100, 9.0),
        row("small", 0.7, 10, 9.0),
        row("beaten", 0.7, 11, 9.0),
        row("quick", 0.6, 100, 1.0),
        row("same as best", 0.9, 100, 9.0),
        row("failed", 0.99, 1, 0.1, "failed"),
    ]
    assert [each.run for each in front(rows)] == ["small", "best", "same as best", "quick"]
    assert SweepFolder("nowhere").row("it") is None
