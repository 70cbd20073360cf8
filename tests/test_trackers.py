"""Trackers: which there are, what they are told, and that a run which goes on goes on in its own log."""

import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.explore.report_log import read_log
from hskstore.stage_one.extract import extract
from hskstore.stage_two import trackers
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.trackers import LogTo
from hskstore.store import Store, open_store
from tests.conftest import hsk, write_tsv


class Notes(GeneralTracker):
    """A tracker of one's own."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.began: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    @property
    def tracker(self) -> "Notes":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.began.append(values)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, teacher_folder: str) -> Store:
    place = tmp_path_factory.mktemp("store")
    (place / "data").mkdir()
    for name, rows in (("train", 120), ("dev", 20)):
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=len(name))
    (made,) = extract(
        teacher_folder, str(place / "data"), out=place, keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2"
    )
    return open_store(made.root)


def test_a_run_that_was_stopped_goes_on_in_the_same_logs(store: Store, student_folder: str, tmp_path: Path) -> None:
    recipe, notes = Recipe(student_folder, max_steps=9, epochs=(4, 4), precision="fp32"), Notes()
    logs = {"log_with": ("tensorboard", notes), "out": tmp_path / "run"}

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == ("prediction", 32):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(store, recipe, watch=stop, **logs)
    assert notes.ended == 1
    distill(store, recipe, **logs)
    assert notes.ended == 2 and len(notes.began) == 1
    assert notes.began[0]["method"] == "mud" and notes.began[0]["store"] == store.digest
    steps = [step for step, _ in notes.told]
    assert steps == sorted(steps)  # as Weights & Biases wants them
    losses = [step for step, values in notes.told if "hidden/mud.hidden" in values or "prediction/prediction" in values]
    assert losses == list(range(9))
    assert [step for step, values in notes.told if "prediction/dev_accuracy" in values] == [8, 9]
    board = read_log(tmp_path / "run" / "log")
    assert board is not None
    for name, by_step in board.items():
        told = {step: values[name] for step, values in notes.told if name in values}
        assert by_step == pytest.approx(told, rel=1e-6), name
    assert {"hidden/mud.hidden", "prediction/prediction", "prediction/rate"} <= board.keys()
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("command", ["distill", "sweep"])
def test_what_is_unknown_or_not_installed_is_one_message_before_anything_is_loaded(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda: frozenset({"tensorboard"}))
    words = [command, "nowhere", "--student", "nobody", "--out", tmp_path / "out"]
    words += ["--grid", "table5"] if command == "sweep" else []
    for named, said in (
        ("tensorboard,mlflow", "hsk: --log-with mlflow: it is not installed; pip install mlflow"),
        ("wnadb", "hsk: --log-with wnadb: choose among tensorboard, wandb, mlflow"),
        ("", "hsk: --log-with : choose among tensorboard, wandb, mlflow"),
    ):
        assert hsk(*words, "--log-with", named) == 2
        assert capsys.readouterr().err.strip() == said
    assert not (tmp_path / "out").exists()


def module(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> None:
    made = ModuleType(name)
    for part, value in parts.items():
        setattr(made, part, value)
    monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(trackers, "_installed", lambda: frozenset({name}))


def test_weights_and_biases_is_told_which_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, Any]] = []
    told: list[tuple[dict[str, float], int]] = []
    run = SimpleNamespace(log=lambda values, step: told.append((values, step)), finish=lambda: None)
    config = SimpleNamespace(update=lambda values, allow_val_change: began[-1].update(values))
    module(monkeypatch, "wandb", init=lambda **words: began.append(words) or run, config=config)
    for goes_on in (False, True, False):
        log = LogTo(("wandb",), {"seed": 7}).begin(tmp_path / "it", goes_on=goes_on)
        log.write({"loss": 0.5}, 3)
        log.close()
    first, second, third = began
    assert first["project"] == "hskstore" and first["name"] == "it" and first["seed"] == 7 and "seed" not in second
    assert first["id"] == second["id"] != third["id"] and {each["resume"] for each in began} == {"allow"}
    assert told == [({"loss": 0.5}, 3)] * 3


def test_mlflow_is_told_which_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, Any]] = []

    def start_run(**words: Any) -> Any:
        began.append(words)
        return SimpleNamespace(info=SimpleNamespace(run_id=words["run_id"] or f"run{len(began)}"))

    told: list[int] = []
    module(
        monkeypatch,
        "mlflow",
        search_experiments=lambda filter_string: [SimpleNamespace(experiment_id="1")],
        start_run=start_run,
        log_params=lambda values: None,
        log_metrics=lambda values, step: told.append(step),
        end_run=lambda: None,
        utils=SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)),
    )
    for goes_on in (False, True, False):
        log = LogTo(("mlflow",), {"seed": 7}).begin(tmp_path / "it", goes_on=goes_on)
        log.write({"loss": 0.5}, 3)
        log.close()
    assert [each["run_id"] for each in began] == [None, "run1", None] and told == [3, 3, 3]
    assert {each["run_name"] for each in began} == {"it"}


def test_what_a_tracker_raises_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**words: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    module(monkeypatch, "wandb", init=refuse)
    with pytest.raises(
        OptionError, match=r"--log-with wandb: a log could not be written \(RuntimeError: no API key configured\)"
    ):
        LogTo(("wandb",)).begin(tmp_path, goes_on=False)


def test_without_any_tracker_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_installed", frozenset)
    log = LogTo().begin(tmp_path, goes_on=False)
    log.write({"loss": 1.0}, 0)
    log.close()
    assert not list(tmp_path.iterdir())
