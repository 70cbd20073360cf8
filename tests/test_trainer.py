"""Training is a function of its settings: interrupted and resumed it ends where it would have ended."""

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hskstore.stage_two.feed
from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.features import TeacherShape
from hskstore.methods import Finetune, Kd, Method, Mud
from hskstore.methods.finetune import PHASE
from hskstore.methods.mud import gathered
from hskstore.methods.projection import Projection, projection_of
from hskstore.methods.serving import teacher_shape
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_two.checkpoint import Checkpoint, RunState
from hskstore.stage_two.feed import InMemory, open_supply, steps_per_epoch
from hskstore.stage_two.journal import Journal
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import resolve_precision
from hskstore.stage_two.rows import TrainingRows
from hskstore.stage_two.scores import DevScore
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trackers import Log
from hskstore.stage_two.trainer import sum_terms, train
from hskstore.store import open_store
from tests.conftest import make_bert
from tests.made_up import STUDENT, made_hidden, rows_of, shape_of_teacher

ROWS = 96
HIDDEN_STATES = made_hidden(Keep(1, 2, 4))
TEACHER = shape_of_teacher(HIDDEN_STATES)
HIDDEN_PHASE, PREDICTION_PHASE = Mud().phases(TEACHER, STUDENT)


def rows() -> TrainingRows:
    """96 rows whose label is whether a word stands in them; logits and one hidden layer of a made-up teacher, 24 wide."""
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(4, 12, ROWS).astype(np.int32)
    ids = rng.integers(5, 25, (ROWS, 12)).astype(np.int32)
    label = (ids[:, 1] > 14).astype(np.int64)
    kept = 4
    hidden = rows_of(
        HIDDEN_STATES,
        values=rng.normal(size=(ROWS, 1, 2, kept)).astype(np.float16),
        mask=np.packbits(np.arange(24) < kept)[None, None, None].repeat(ROWS, 0).repeat(2, 2),
        token=np.array([0, 1], np.int16)[None, None].repeat(ROWS, 0),
        n_kept=np.full((ROWS, 1), 2, np.int16),
    )
    logits = np.stack([1 - 2 * label, 2 * label - 1], axis=1).astype(np.float32)
    return TrainingRows(ids, np.zeros_like(ids), n_tokens, label, logits, {"hidden": hidden})


def learner(method: Method | None = None, *, seed: int = 4, teacher: TeacherShape = TEACHER) -> Learner:
    model = make_bert(layers=2, hidden=16, seed=seed)
    torch.manual_seed(0)
    return Learner(model, aids=(method or Mud()).aids(teacher, STUDENT))


def settings(method: Method, steps: int = 10, teacher: TeacherShape = TEACHER) -> list[PhaseSettings]:
    return [PhaseSettings(phase, lr=1e-3, batch_size=16, steps=steps) for phase in method.phases(teacher, STUDENT)]


def run(out: Path, method: Any, *, watch: Any = None, of: Learner | None = None, **options: Any) -> tuple[dict[str, Any], Any]:
    mine = of or learner()
    data = InMemory(rows())
    scores = iter(options.pop("scores", [0.5 + step / 1000 for step in range(100)]))
    arguments: dict[str, Any] = {
        "data": "ab" * 32,
        "order": "ab" * 32,
        "seed": 0,
        "precision": "fp32",
        "score": lambda _: DevScore("accuracy", {"accuracy": next(scores)}),
    }
    if watch is not None:
        arguments["watch"] = watch
    results = train(mine, data, method, options.pop("phases", settings(method)), out=out, device="cpu", **(arguments | options))
    return mine.state_dict(), results


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stop_at", [("hidden", 3), ("hidden", 6), ("hidden", 10), ("prediction", 4), ("prediction", 10)])
def test_ctrl_c_and_the_same_call_again_end_in_the_same_weights_bit_for_bit(stop_at: tuple[str, int], tmp_path: Path) -> None:
    whole, expected = run(tmp_path / "whole", Mud(), score=None)

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == (stop_at[0], 16 * stop_at[1]):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Mud(), watch=stop, score=None)
    resumed, results = run(tmp_path / "broken", Mud(), score=None)
    assert equal(whole, resumed)
    without_times = [[replace(result, seconds=0, waited=0, scored=0) for result in found] for found in (expected, results)]
    assert without_times[0] == without_times[1]


def test_the_order_and_dropout_follow_the_seed(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", Kd())
    two, _ = run(tmp_path / "two", Kd())
    other, _ = run(tmp_path / "other", Kd(), seed=1)
    assert equal(one, two) and not equal(one, other)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"data": "cd" * 32}, "data"),
        ({"order": "cd" * 32}, "order"),
        ({"phases": settings(Mud(), 11)}, "phases"),
        ({"of": learner(Mud(projection="per-layer"))}, None),
        ({"of": learner(seed=9)}, "student"),
        ({"phases": [*settings(Mud())[:1], replace(settings(Mud())[1], phase=PHASE)]}, "phases"),
    ],
)
def test_an_unfinished_run_is_not_taken_for_another(changed: dict[str, Any], named: str | None, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 16 * 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Mud(), watch=stop)
    if named is None:  # one kept layer: per layer and shared are the same projection
        run(tmp_path, Mud(), **changed)
        return
    with pytest.raises(OptionError, match=named):
        run(tmp_path, Mud(), **changed)


def test_an_unfinished_run_of_an_earlier_version_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 16 * 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hskstore.stage_two.trainer.RUN_VERSION", 1)
        run(tmp_path, Mud(), watch=stop)
    told = f"{tmp_path} holds an unfinished run of another version of hskstore.*: end it with that version, delete .*checkpoint"
    with pytest.raises(OptionError, match=told):
        run(tmp_path, Mud())


def test_the_best_dev_score_is_kept_in_a_phase_that_predicts(tmp_path: Path) -> None:
    snapshots: list[dict[str, Any]] = []
    values = iter([0.6, 0.9, 0.7])
    mine = learner()

    def score(of: Learner) -> DevScore:
        snapshots.append({name: tensor.clone() for name, tensor in of.state_dict().items()})
        return DevScore("accuracy", {"accuracy": next(values)})

    final, (result,) = run(tmp_path, Finetune(), of=mine, score=score, phases=settings(Finetune(), 18))
    assert [each["step"] for each in result.scores] == [6, 12, 18]
    assert result.best == {"step": 12, "accuracy": 0.9}
    assert equal(final, snapshots[1]) and not equal(final, snapshots[2])


def test_scores_are_told_by_their_number_and_which_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, bool]] = []

    def score(of: Learner) -> DevScore:
        return DevScore("accuracy", {"accuracy": 0.5})

    def killed(self: Checkpoint, *of: Any) -> None:
        if len(told) == 2:
            raise MemoryError

    def go_on() -> None:
        run(tmp_path, Finetune(), score=score, phases=settings(Finetune(), 15), on_score=lambda _, *at: told.append(at))

    write = Checkpoint.write
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", lambda self, *of: (killed(self), write(self, *of)))
        with pytest.raises(MemoryError):
            go_on()
    go_on()
    assert told == [(1, False), (2, False), (2, False), (3, True)], "the checkpoint behind the second was not written"


def test_the_last_step_is_kept_in_a_phase_that_does_not_predict(tmp_path: Path) -> None:
    phases = settings(Mud(), 12)[:1]
    final, (result,) = run(tmp_path, Mud(), phases=phases, score=lambda _: pytest.fail("no dev score means anything here"))
    assert result.best is None and result.scores == []
    assert not equal(final, learner().state_dict())


def test_schedules() -> None:
    constant = PhaseSettings(HIDDEN_PHASE, lr=1.0, batch_size=1, steps=10)
    assert [constant.rate_at(step) for step in range(10)] == [1.0] * 10
    linear = PhaseSettings(PREDICTION_PHASE, lr=1.0, batch_size=1, steps=10, warmup=0.2)
    assert [round(linear.rate_at(step), 4) for step in range(10)] == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert replace(linear, warmup=0.0).rate_at(0) == 1.0


def test_a_diverging_loss_is_refused_and_says_what_would_help(tmp_path: Path) -> None:
    phases = [replace(each, lr=1e30) for each in settings(Kd())]
    with pytest.raises(ModelError, match=r"not finite at step \d+: lower --lr"):
        run(tmp_path, Kd(), phases=phases)


def test_terms_are_weighed_and_added_and_a_wrong_name_is_an_error() -> None:
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert float(sum_terms(terms, {"a": 0.5, "b": 2.0})) == 7.0
    with pytest.raises(AssertionError):
        sum_terms(terms, {"a": 1.0, "match_weghts": 1.0})


def test_a_student_of_the_teachers_width_has_no_projection() -> None:
    assert projection_of(TEACHER, ModelShape("it", 2, (2, 24)), 2, "per-layer") is None
    shared, per_layer = (projection_of(TEACHER, STUDENT, 2, kind) for kind in ("shared", "per-layer"))
    assert shared is not None and per_layer is not None
    assert (len(shared.linears), len(per_layer.linears)) == (1, 2)


def test_a_projection_is_one_for_all_layers_or_one_for_each() -> None:
    vectors = torch.randn(3, 5, 4, dtype=torch.float64)
    shared, per_layer = Projection(4, 6).double(), Projection(4, 6, linears=2).double()
    for index in (0, 1):
        torch.testing.assert_close(shared(vectors, index), shared.linears[0](vectors).float())
        torch.testing.assert_close(per_layer(vectors, index), per_layer.linears[index](vectors).float())
    assert shared(vectors, 0).dtype == torch.float32 and not torch.equal(per_layer(vectors, 0), per_layer(vectors, 1))


def test_students_states_are_gathered_at_the_kept_positions() -> None:
    state = torch.arange(2 * 5 * 16.0).view(2, 5, 16)
    found = gathered(state, torch.tensor([[3, 0], [1, 4]]))
    assert torch.equal(found[0, 0], state[0, 3]) and torch.equal(found[1, 1], state[1, 4])


def test_bf16_and_fp32_train_in_one_process(tmp_path: Path) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        _, results = run(tmp_path / f"{precision}{len(list(tmp_path.iterdir()))}", Mud(), precision=precision)
        assert all(np.isfinite(list(result.losses.values())).all() for result in results)


# --- limits


def test_patience_ends_a_phase_whose_dev_score_no_longer_rises_and_keeps_the_best(tmp_path: Path) -> None:
    falling = [0.7, 0.9, 0.8, 0.85, 0.9, 0.99]
    phases = [replace(each, patience=3) for each in settings(Kd(), 60)]
    _, (result,) = run(tmp_path, Kd(), phases=phases, scores=falling)
    assert [each["accuracy"] for each in result.scores] == falling[:5], "a score that is as good is no better"
    assert (result.ended, result.steps) == ("patience", 30)
    assert result.best == {"step": 12, "accuracy": 0.9}


def test_patience_and_the_seconds_of_scores_count_on_after_a_stop(tmp_path: Path) -> None:
    phases = [replace(each, patience=2) for each in settings(Kd(), 60)]

    def slowly(*values: float) -> Iterator[float]:
        for value in values:
            time.sleep(0.1)
            yield value

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 16 * 14:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Kd(), phases=phases, scores=slowly(0.9, 0.8), watch=stop)
    _, (result,) = run(tmp_path, Kd(), phases=phases, scores=slowly(0.7, 0.99))
    assert [each["accuracy"] for each in result.scores] == [0.9, 0.8, 0.7]
    assert result.ended == "patience"
    assert 0.3 <= result.scored < result.seconds, "the last score is one of its seconds too"


def test_minutes_end_every_phase_in_its_share_with_a_dev_score_and_a_rate_that_has_decayed(tmp_path: Path) -> None:
    phases = [replace(each, seconds=1.0, steps=10**6) for each in settings(Mud())]
    _, (hidden, prediction) = run(tmp_path, Mud(), phases=phases, scores=[0.5] * 10**4)
    assert hidden.ended == prediction.ended == "minutes"
    assert 1.0 <= hidden.seconds < 3 and 1.0 <= prediction.seconds < 3
    assert prediction.scores[-1]["step"] == prediction.steps, "scored where it ended"
    last = phases[1].progress(prediction.steps - 1, prediction.seconds)
    rates = [phases[1].rate_at(phases[1].progress(10, 0.5)), phases[1].rate_at(last)]
    assert rates[0] == pytest.approx(0.5 / 0.9 * 1e-3, rel=0.05) and rates[1] < 1e-6


def test_progress_is_the_step_or_the_time_whichever_is_further() -> None:
    run = PhaseSettings(PREDICTION_PHASE, lr=1.0, batch_size=1, steps=100, seconds=10.0)
    assert [run.progress(*at) for at in [(0, 0.0), (50, 1.0), (10, 5.0), (10, 99.0)]] == [0, 50, 50, 99]
    assert replace(run, seconds=None).progress(10, 99.0) == 10


# --- what is told


def test_the_watch_is_told_losses_the_dev_score_and_the_time_left(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    run(tmp_path, Mud(), watch=lambda *words: told.append(words), scores=[0.5, 0.25])
    assert [words[:3] for words in told[:2]] == [("hidden", 16, 160), ("hidden", 32, 160)]
    assert re.fullmatch(r"mud\.hidden \d\.\d{4}; \d:\d\d:\d\d to the end", told[0][3])
    after = next(words[3] for words in told if words[:2] == ("prediction", 16 * 7))
    assert re.fullmatch(r"prediction \d\.\d{4}; dev accuracy 0\.5000, best 0\.5000; \d:\d\d:\d\d to the end", after)


def test_losses_are_read_back_in_one_piece_and_the_first_bad_one_is_named() -> None:
    journal, state = Journal(Log(Path(), ()), lambda *_: None), RunState("")
    for step, value in enumerate([1.0, 2.0, float("nan"), 4.0]):
        journal.note(step, 0.1, {"a": torch.tensor(value), "b": torch.tensor(10.0 * step)}, torch.tensor(value), {})
        if step == 1:
            journal.read_back("hidden", state)
    assert state.recent == [{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 10.0}]
    with pytest.raises(ModelError, match="phase hidden is not finite at step 2"):
        journal.read_back("hidden", state)


def test_auto_is_bf16_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_precision("auto", torch.device("cpu")) == chosen
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_store_read_in_blocks_trains_as_exactly_and_goes_on_as_exactly(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hskstore.stage_two.feed, "WINDOW_BYTES", 1)
    extract(teacher_folder, data_folder, out=tmp_path / "stores", keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    store = open_store(tmp_path / "stores" / "d1-l3-w8")
    source = open_supply(store, "train", loader="blocks", places={"hidden": (0,)})
    teacher = teacher_shape(store.plan)
    options: dict[str, Any] = {
        "data": store.digest,
        "order": store.digest,
        "seed": 0,
        "score": None,
        "precision": "fp32",
        "device": "cpu",
    }

    def fresh() -> Learner:
        return learner(teacher=teacher)

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == ("hidden", 16 * 17):
            os.kill(os.getpid(), signal.SIGINT)

    steps = steps_per_epoch(source, 16) + 5
    whole, broken, resumed = fresh(), fresh(), fresh()
    train(whole, source, Mud(), settings(Mud(), steps, teacher), out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(broken, source, Mud(), settings(Mud(), steps, teacher), out=tmp_path / "broken", watch=stop, **options)
    with pytest.raises(OptionError, match="loader"):
        ram = open_supply(store, "train", loader="ram", places={"hidden": (0,)})
        train(fresh(), ram, Mud(), settings(Mud(), steps, teacher), out=tmp_path / "broken", **options)
    train(resumed, source, Mud(), settings(Mud(), steps, teacher), out=tmp_path / "broken", **options)
    assert equal(whole.state_dict(), resumed.state_dict())
