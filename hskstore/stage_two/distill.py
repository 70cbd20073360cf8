"""Stage two: a student is trained from a store alone. No teacher, no data set, no hub."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from hskstore.config import DEFAULT_PRUNE_SHARE, Loader, TrainPrecision
from hskstore.errors import OptionError
from hskstore.models.anatomy import parameters
from hskstore.models.folder import refuse_existing_model, save_model, set_labels
from hskstore.models.pruning import GradualPruning, as_pruned_bert
from hskstore.stage_two.card import Distilled, model_card
from hskstore.stage_two.checkpoint import forget_checkpoint
from hskstore.stage_two.feed import open_supply
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import precision_for
from hskstore.stage_two.processes import from_first, is_main
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import telling_rows
from hskstore.stage_two.scores import dev_score, score_splits
from hskstore.stage_two.settings import PhaseSettings, for_task, phase_settings
from hskstore.stage_two.student import Student, fit_student, take_published_projection
from hskstore.stage_two.trainer import train
from hskstore.store import Store, open_store
from hskstore.text.tasks import Task
from hskstore.text.tokenizers import tokenizer_from_files, tokenizer_sha256
from hskstore.watch import Watch, unwatched


def distill(
    store: str | Path | Store,
    recipe: Recipe,
    *,
    out: str | Path,
    student: nn.Module | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    command: str | None = None,
    watch: Watch = unwatched,
) -> Distilled:
    """Train the recipe's student, or in its place `student`, any torch module, from `store` and save it in `out`.

    A module is what `models.run.run_model` can call. It is trained in place (to go on after a stop, build it anew) and left
    where it was trained, in eval mode; of one that is no Hugging Face model the weights alone are saved. Its words are the
    store's, or those of `tokenizer` (a folder or hub name). Goes on from the last checkpoint in `out`. The whole recipe lies
    beside the student, as recipe.toml; `command` stands in its card.

    Raises StoreError where the store lacks what the method requires, ModelError where the student does not fit the store,
    OptionError for options that make no sense.
    """
    out = Path(out)
    refuse_existing_model(out)
    chosen = _chosen(recipe, student)
    store = store if isinstance(store, Store) else open_store(store)
    task = Task.from_json(store.plan.task)
    fitted = fit_student(chosen, store, recipe.method, tokenizer=tokenizer, seed=recipe.seed)
    telling = telling_rows(fitted.dev["validation"])
    precision = precision_for(
        fitted.model, fitted.name, telling, wanted=recipe.precision, device=device, hidden=recipe.uses_hidden
    )
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    supply = open_supply(
        store, "train", loader=recipe.loader, processes=beside, watch=watch, layers=fitted.places, **fitted.reading
    )
    fitted.check_train(store, supply)
    recipe = _completed(recipe, task, precision, supply.name)
    settings = phase_settings(recipe, task.defaults, supply)
    learner = _learner(fitted, recipe, settings, store.plan.hidden_size)
    results = train(
        learner,
        supply,
        recipe.method,
        settings,
        key=_key(store, fitted.reading),
        seed=recipe.seed,
        out=out,
        score=dev_score(task, fitted.dev["validation"], watch),
        precision=precision,
        device=device,
        watch=watch,
    )
    learner.student.eval()
    set_labels(learner.student, task.labels, task.kind)
    distilled = Distilled(
        folder=str(out),
        digest=store.digest,
        phases=results,
        scores=from_first(lambda: score_splits(task, learner.student, fitted.dev, watch)),
        seconds=round(sum(result.seconds for result in results), 3),
        parameters=parameters(learner.student),
        precision=precision,
        loader=supply.name,
    )
    if is_main():
        _save(distilled, store, fitted, recipe, learner, command)
    return distilled


def _chosen(recipe: Recipe, student: nn.Module | None) -> str | nn.Module:
    """The student to train, however it was named."""
    if student is None:
        if recipe.student is None:
            raise OptionError("--student names the student to train: a folder or hub name")
        return recipe.student
    if recipe.student is not None:
        raise OptionError(f"one student at a time: the recipe names {recipe.student}, and a module was handed over as well")
    return student


def _completed(recipe: Recipe, task: Task, precision: TrainPrecision, loader: Loader) -> Recipe:
    """The recipe with nothing left open, so that it makes the same student wherever it is followed."""
    share = recipe.prune_share if recipe.prune_to is None or recipe.prune_share is not None else DEFAULT_PRUNE_SHARE
    return replace(for_task(recipe, task.defaults), precision=precision, loader=loader, prune_share=share)


def _learner(student: Student, recipe: Recipe, settings: Sequence[PhaseSettings], width: int) -> Learner:
    """The student with its projection to the teacher's `width`, and its pruning if it gets narrower."""
    model, pruning = student.model, None
    if recipe.prune_to is not None:
        assert recipe.prune_share is not None
        model = as_pruned_bert(model, student.name)
        pruning = GradualPruning(model, recipe.prune_to, recipe.prune_share, student.name)
        pruning.check_steps(settings[0].steps)
    set_seed(recipe.seed)  # for the projection's weights
    learner = Learner(
        model,
        layers=student.layers,
        own=student.width,
        width=width,
        per_layer=recipe.projection == "per-layer",
        pruning=pruning,
    )
    if learner.projection is not None and recipe.student is not None:
        take_published_projection(learner.projection, recipe.student)
    return learner


def _save(distilled: Distilled, store: Store, student: Student, recipe: Recipe, learner: Learner, command: str | None) -> None:
    """The student's folder; its checkpoint is then of no more use."""
    out, model = Path(distilled.folder), learner.student
    result = asdict(distilled) | {"method": repr(recipe.method), "student": student.name, "seed": recipe.seed}
    if learner.pruning is not None:
        result |= {"pruning": repr(learner.pruning)}
    card = model_card(distilled, store, recipe.method, student.name, command, model)
    words = student.tokenizer or tokenizer_from_files(store.tokenizer_files())
    save_model(model, words, out, card=card, result=result, recipe=recipe.to_toml())
    forget_checkpoint(out)


def _key(store: Store, reading: Mapping[str, Any]) -> str:
    """What names the rows: the store's digest, and the student's own tokenizer if it has one."""
    if not reading:
        return store.digest
    words = f"{store.digest} {tokenizer_sha256(reading['tokenizer'])} {reading['max_length']}"
    return hashlib.sha256(words.encode()).hexdigest()
