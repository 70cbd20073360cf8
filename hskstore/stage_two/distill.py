"""Stage two: a student is trained from a store alone. No teacher, no data set, no hub."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import nn
from transformers import set_seed

from hskstore.config import DEFAULT_PRUNE_SHARE, Loader, Projection, TrainPrecision, check_choice, check_seed
from hskstore.errors import ModelError, OptionError
from hskstore.methods import Method
from hskstore.models.anatomy import parameters
from hskstore.models.folder import refuse_existing_model, save_model, set_labels
from hskstore.models.pruning import GradualPruning, PruneTo, as_pruned_bert
from hskstore.models.run import shape_of
from hskstore.stage_two.card import Distilled, model_card
from hskstore.stage_two.checkpoint import forget_checkpoint
from hskstore.stage_two.feed import first_rows, open_supply
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import precision_for
from hskstore.stage_two.processes import from_first, is_main
from hskstore.stage_two.rows import reading_options, rows_from_store, telling_rows
from hskstore.stage_two.scores import dev_score, score_splits
from hskstore.stage_two.settings import Overrides, phase_settings
from hskstore.stage_two.student import (
    check_requirements,
    check_rows,
    load_student,
    match_layers,
    method_name,
    take_published_projection,
    tell_alignment,
)
from hskstore.stage_two.trainer import train
from hskstore.store import Store, open_store
from hskstore.text.tasks import Task
from hskstore.text.tokenizers import tokenizer_from_files, tokenizer_sha256
from hskstore.watch import Watch, unwatched

log = logging.getLogger(__name__)


def distill(
    store: str | Path | Store,
    *,
    student: str | nn.Module,
    method: Method,
    out: str | Path,
    overrides: Overrides | None = None,
    prune_to: PruneTo | None = None,
    prune_share: float | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
    precision: TrainPrecision = "auto",
    loader: Loader = "auto",
    projection: Projection | None = None,
    device: str | None = None,
    command: str | None = None,
    watch: Watch = unwatched,
) -> Distilled:
    """Train `student` (a model folder, a hub name or any torch module) from `store` by `method` and save it in `out`.

    A module is what `classifiers.run_model` can call. It is trained in place (to go on after a stop, build it anew) and left
    where it was trained, in eval mode; of one that is no Hugging Face model the weights alone are saved. Its words are the
    store's, or those of `tokenizer` (a folder or hub name). With `prune_to` a copy of a BERT gets narrower while it learns, over
    `prune_share` of the first phase (None: half). `projection`: of hidden states, where widths differ, one for all layers (None)
    or one for each. Goes on from the last checkpoint in `out`.

    Raises StoreError where the store lacks what the method requires, ModelError where the student does not fit the store,
    OptionError for options that make no sense.
    """
    out = Path(out)
    refuse_existing_model(out)
    uses_hidden = any(phase.uses_hidden for phase in method.phases)
    check_seed(seed)
    check_choice("--precision", precision, get_args(TrainPrecision))
    check_choice("--loader", loader, get_args(Loader))
    if projection is not None:
        check_choice("--projection", projection, get_args(Projection))
        if not uses_hidden:
            raise OptionError(f"--projection: the method {method_name(method)} learns no hidden states; only mud has one")
    if prune_share is not None and prune_to is None:
        raise OptionError("--prune-share goes with --prune-to")
    store = store if isinstance(store, Store) else open_store(store)
    plan = store.plan
    task = Task.from_json(plan.task)
    check_requirements(store, method)
    model, own = load_student(student, store, tokenizer=tokenizer, seed=seed)
    name = student if isinstance(student, str) else type(student).__name__
    reading = reading_options(model, own, store)
    dev = {split: rows_from_store(store, split, **reading) for split in plan.splits if split != "train"}
    check_rows(model, name, max(int(rows.n_tokens.max()) for rows in dev.values()))
    telling = telling_rows(dev["validation"])
    shape = shape_of(model, *telling, hidden=uses_hidden)
    if shape.outputs != len(plan.teacher["labels"]):
        raise ModelError(f"{name} has {shape.outputs} outputs, the store's teacher {len(plan.teacher['labels'])}")
    precision = precision_for(model, name, telling, wanted=precision, device=device, hidden=uses_hidden)
    student_layers: tuple[int, ...] = ()
    stored_layers: tuple[int, ...] = ()
    if uses_hidden:
        if shape.layers is None:
            raise ModelError(
                f"{name} gives no hidden states, which the method learns: return (logits, hidden_states), or choose kd"
            )
        student_layers, stored_layers = match_layers(plan, shape.layers)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    supply = open_supply(store, "train", loader=loader, processes=beside, watch=watch, layers=stored_layers, **reading)
    if reading:
        tell_alignment(first_rows(supply), name)
    else:
        check_rows(model, name, plan.splits["train"].longest)
    settings = phase_settings(method, task.recipe, supply, overrides or Overrides())
    pruning = None
    if prune_to is not None:
        model = as_pruned_bert(model, name)
        pruning = GradualPruning(model, prune_to, DEFAULT_PRUNE_SHARE if prune_share is None else prune_share, name)
        pruning.check_steps(settings[0].steps)
    set_seed(seed)  # for the projection's weights
    learner = Learner(
        model,
        layers=student_layers,
        own=shape.width,
        width=plan.hidden_size,
        per_layer=projection == "per-layer",
        pruning=pruning,
    )
    if learner.projection is not None and isinstance(student, str):
        take_published_projection(learner.projection, student)
    results = train(
        learner,
        supply,
        method,
        settings,
        key=_key(store, reading),
        seed=seed,
        out=out,
        score=dev_score(task, dev["validation"], watch),
        precision=precision,
        device=device,
        watch=watch,
    )
    model.eval()
    set_labels(model, task.labels, task.kind)
    distilled = Distilled(
        folder=str(out),
        digest=store.digest,
        phases=results,
        scores=from_first(lambda: score_splits(task, model, dev, watch)),
        seconds=round(sum(result.seconds for result in results), 3),
        parameters=parameters(model),
        precision=precision,
        loader=supply.name,
    )
    if not is_main():
        return distilled
    result = asdict(distilled) | {"method": repr(method), "student": name, "seed": seed}
    saved = own or tokenizer_from_files(store.tokenizer_files())
    if pruning is not None:
        result |= {"pruning": repr(pruning)}
    save_model(model, saved, out, card=model_card(distilled, store, method, name, command, model), result=result)
    forget_checkpoint(out)
    return distilled


def _key(store: Store, reading: Mapping[str, Any]) -> str:
    """What names the rows: the store's digest, and the student's own tokenizer if it has one."""
    if not reading:
        return store.digest
    words = f"{store.digest} {tokenizer_sha256(reading['tokenizer'])} {reading['max_length']}"
    return hashlib.sha256(words.encode()).hexdigest()
