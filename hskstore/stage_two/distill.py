"""Stage two: a student is trained from a store alone. No teacher, no data set, no hub."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker
from jaxtyping import Float
from torch import nn

from hskstore.config import TrackerName
from hskstore.errors import OptionError
from hskstore.models.anatomy import parameters
from hskstore.models.folder import RECIPE, refuse_existing_model, set_labels
from hskstore.models.observe import showing
from hskstore.stage_two.card import Distilled, save_student
from hskstore.stage_two.feed import open_supply
from hskstore.stage_two.learner import Learner, build_learner
from hskstore.stage_two.precision import precision_for
from hskstore.stage_two.processes import from_first, is_main
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import telling_rows
from hskstore.stage_two.scores import REWARD_ROWS, OnScore, dev_score, dev_worth, predict_splits, score_splits
from hskstore.stage_two.selecting import Selecting
from hskstore.stage_two.settings import PhaseSettings, completed, phase_settings, with_episodes
from hskstore.stage_two.student import Student, fit_student, uneven_pairs
from hskstore.stage_two.trackers import LogTo
from hskstore.stage_two.trainer import train
from hskstore.store import Store, open_store
from hskstore.text.tasks import Task
from hskstore.watch import Watch, unwatched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learnt:
    """A trained student that is not saved yet, in eval mode; its logits on the dev rows by split; what made it; and the seconds
    of its steps, and of all its scores."""

    distilled: Distilled
    store: Store
    fitted: Student
    recipe: Recipe
    learner: Learner
    logits: Mapping[str, Float[np.ndarray, "row class"]]
    seconds_training: float
    seconds_scoring: float

    def save(self, command: str | None = None) -> None:
        """Its folder; `command` stands in its card. The checkpoint is then of no more use."""
        save_student(self.distilled, self.store, self.fitted, self.recipe, self.learner, command)


def distill(
    store: str | Path | Store,
    recipe: Recipe,
    *,
    out: str | Path,
    student: nn.Module | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    command: str | None = None,
    log_with: Sequence[TrackerName | GeneralTracker] | None = None,
    watch: Watch = unwatched,
) -> Distilled:
    """Train the recipe's student, or in its place `student`, any torch module, from `store` and save it in `out`.

    A module is what `models.run.run_model` can call. It is trained in place (to go on after a stop, build it anew) and left
    where it was trained, in eval mode; of one that is no Hugging Face model the weights alone are saved. Its words are the
    store's, or those of `tokenizer` (a folder or hub name). Goes on from the last checkpoint in `out`. The whole recipe lies
    beside the student, as recipe.toml; `command` stands in its card. `log_with`: trackers by name, or of your own; None:
    TensorBoard, where it is installed.

    Raises StoreError where the store lacks what the method requires, ModelError where the student does not fit the store,
    OptionError for options that make no sense.
    """
    out = Path(out)
    more = (
        f"--student {out} goes on from its student, at rates that begin anew; --recipe {out / RECIPE} --epochs ... trains all of"
        " them from the start"
    )
    refuse_existing_model(out, "" if recipe.student is None else more)
    learnt = learn(store, recipe, out=out, student=student, tokenizer=tokenizer, device=device, log_with=log_with, watch=watch)
    if is_main():
        learnt.save(command)
    return learnt.distilled


def learn(
    store: str | Path | Store,
    recipe: Recipe,
    *,
    out: Path,
    student: nn.Module | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    log_with: Sequence[TrackerName | GeneralTracker] | None = None,
    row_bytes: int = 0,
    on_score: OnScore | None = None,
    watch: Watch = unwatched,
) -> Learnt:
    """`distill`, but for saving the student: its checkpoint stays in `out`. `on_score` is told each dev score while it trains;
    `row_bytes` as `InWindows` has it."""
    chosen, log_to = _chosen(recipe, student), LogTo(log_with)
    store = store if isinstance(store, Store) else open_store(store)
    task = Task.from_json(store.plan.task)
    fitted = fit_student(chosen, store, recipe, tokenizer=tokenizer)
    _tell_depths(fitted)
    telling = telling_rows(fitted.dev["validation"])
    hidden = bool(fitted.sight.hidden)
    precision = precision_for(fitted.model, fitted.name, telling, wanted=recipe.precision, device=device, hidden=hidden)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    supply = open_supply(
        store,
        "train",
        loader=recipe.loader,
        processes=beside,
        row_bytes=row_bytes,
        watch=watch,
        places=fitted.places,
        **fitted.reading,
    )
    fitted.check_train(store, supply)
    recipe = completed(recipe, fitted.phases, task, precision, supply.name)
    settings = phase_settings(recipe, fitted.phases, task.defaults, supply)
    learner = build_learner(fitted, recipe, settings)
    dev, own = fitted.dev["validation"], fitted.selecting
    run, worth = settings, None
    if own is not None:
        run = with_episodes(settings, own.selection, own.terms, own.want)
        if own.selection.learns:
            _tell_episodes(own, settings[0], len(dev))
            worth = dev_worth(task, dev, own.selection.reward)
    with showing(fitted.model, fitted.sight):
        results = train(
            learner,
            supply,
            recipe.method,
            run,
            data=fitted.data,
            order=fitted.order,
            seed=recipe.seed,
            out=out,
            score=dev_score(task, dev, watch),
            on_score=on_score,
            worth=worth,
            precision=precision,
            device=device,
            log_to=replace(log_to, options={**recipe.as_options(), "store": store.digest}),
            watch=watch,
        )
    learner.student.eval()
    set_labels(learner.student, task.labels, task.kind)
    began = time.monotonic()
    logits = from_first(lambda: predict_splits(learner.student, fitted.dev, watch))
    predicting = time.monotonic() - began
    distilled = Distilled(
        folder=str(out),
        digest=store.digest,
        phases=results,
        scores=from_first(lambda: score_splits(task, logits, fitted.dev)),
        seconds=round(sum(result.seconds for result in results), 3),
        parameters=parameters(learner.student),
        precision=precision,
        loader=supply.name,
        batches=supply.batches_sha256(fitted.order, [phase.batch_size for phase in settings]),
    )
    scored = sum(result.scored for result in results)
    training = distilled.seconds - scored - sum(result.rewarded for result in results)
    return Learnt(distilled, store, fitted, recipe, learner, logits, round(training, 3), scored + predicting)


def _tell_depths(student: Student) -> None:
    """Say which teachers the layers of a student get, where its depth does not divide the teacher's."""
    pairs, own, theirs = uneven_pairs(student), student.shape, student.teacher
    if pairs:
        mine, teachers = (", ".join(map(str, layers)) for layers in zip(*((p.student, p.teacher) for p in pairs), strict=True))
        log.warning(
            f"a student of {own.layers} layers and a teacher of {theirs.layers}: {own.layers} does not divide {theirs.layers};"
            f" student layers {mine} learn from teacher layers {teachers}"
        )


def _tell_episodes(chosen: Selecting, last: PhaseSettings, dev_rows: int) -> None:
    """Say what a selector costs before the student is trained."""
    episodes, steps = chosen.selection.episodes, last.steps
    rewards = 1 + math.ceil(steps / chosen.selection.phase_steps)
    log.warning(
        f"a selector of {', '.join(chosen.terms)} learns first: {episodes} trainings of {steps} steps, in each of which the"
        f" student is scored {rewards} times on {min(dev_rows, REWARD_ROWS)} of the {dev_rows} validation rows; then"
        f" {steps} steps count"
    )


def _chosen(recipe: Recipe, student: nn.Module | None) -> str | nn.Module:
    """The student to train, however it was named."""
    if student is None:
        if recipe.student is None:
            raise OptionError("--student names the student to train: a folder or hub name")
        return recipe.student
    if recipe.student is not None:
        raise OptionError(f"one student at a time: the recipe names {recipe.student}, and a module was handed over as well")
    return student
