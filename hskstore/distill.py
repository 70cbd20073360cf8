"""Stage two: a student is trained from a store alone. No teacher, no data set, no hub."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from hskstore.checkpoint import forget_checkpoint
from hskstore.classifiers import check_length, load_classifier
from hskstore.config import DEFAULT_WARMUP, Projection, TrainPrecision
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.evaluate import Scored, check_tokenizer, dev_score, parameters, score_splits
from hskstore.export import refuse_existing_model, save_model, set_labels
from hskstore.layers import layer_pairs
from hskstore.loader import rows_from_store
from hskstore.methods import Method
from hskstore.store import Plan, Store, open_store
from hskstore.tasks import Recipe, Task
from hskstore.tokenizers import tokenizer_from_files
from hskstore.trainer import (
    Learner,
    PhaseResult,
    PhaseSettings,
    train,
)
from hskstore.watch import Watch, unwatched

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class Overrides:
    """What a user sets apart from the task's recipe, one value per phase or one for all; None: the recipe's."""

    epochs: Sequence[int] | None = None
    lr: Sequence[float] | None = None
    batch_size: Sequence[int] | None = None
    max_steps: int | None = None
    warmup: float = DEFAULT_WARMUP


@dataclass(frozen=True)
class Distilled:
    """A trained student: `scores` are those of its saved weights, by split of the store (validation; MNLI has two)."""

    folder: str
    digest: str
    phases: list[PhaseResult]
    scores: dict[str, Scored]
    seconds: float
    parameters: int


def distill(
    store: str | Path | Store,
    *,
    student: str,
    method: Method,
    out: str | Path,
    overrides: Overrides | None = None,
    seed: int = 0,
    precision: TrainPrecision = "fp32",
    projection: Projection = "shared",
    device: str | None = None,
    command: str | None = None,
    watch: Watch = unwatched,
) -> Distilled:
    """Train `student` (a model folder or hub name) from `store` by `method` and save it in `out`.

    Goes on from the last checkpoint in `out`. Raises StoreError where the store lacks what the method requires,
    ModelError where the student does not fit the store, OptionError for options that make no sense.
    """
    out = Path(out)
    refuse_existing_model(out)
    store = store if isinstance(store, Store) else open_store(store)
    plan = store.plan
    task = Task.from_json(plan.task)
    check_requirements(store, method)
    model, tokenizer = load_student(student, store, seed=seed)
    uses_hidden = any(phase.uses_hidden for phase in method.phases)
    student_layers, stored_layers = match_layers(plan, int(model.config.num_hidden_layers)) if uses_hidden else ((), ())
    rows = rows_from_store(store, "train", layers=stored_layers, watch=watch)
    dev = {split: rows_from_store(store, split) for split in plan.splits if split != "train"}
    settings = phase_settings(method, task.recipe, len(rows), overrides or Overrides())
    set_seed(seed)  # for the projection's weights
    learner = Learner(model, layers=student_layers, width=plan.hidden_size, per_layer=projection == "per-layer")
    results = train(
        learner,
        rows,
        method,
        settings,
        key=store.digest,
        seed=seed,
        out=out,
        score=dev_score(task, dev["validation"], watch),
        precision=precision,
        device=device,
        watch=watch,
    )
    set_labels(model, task.labels, task.kind)
    distilled = Distilled(
        folder=str(out),
        digest=store.digest,
        phases=results,
        scores=score_splits(task, model, dev, watch),
        seconds=round(sum(result.seconds for result in results), 3),
        parameters=parameters(model),
    )
    result = asdict(distilled) | {"method": repr(method), "student": student, "seed": seed, "precision": precision}
    save_model(model, tokenizer, out, card=_card(distilled, store, method, student, command), result=result)
    forget_checkpoint(out)
    return distilled


def check_requirements(store: Store, method: Method) -> None:
    """Raise StoreError unless the store holds every array that the method reads."""
    missing = [name for name in method.requires if not store.has(f"train/{name}")]
    if missing:
        advice = "extract with --label" if "label" in missing else "extract again with what it needs"
        name = type(method).__name__.lower()
        raise StoreError(f"{store.root} holds no {', '.join(missing)}, which the method {name} needs: {advice}")


def load_student(student: str, store: Store, *, seed: int) -> tuple[Any, Any]:
    """A student in float32 with as many outputs as the teacher, and the store's tokenizer.

    Raises ModelError for another tokenizer or vocabulary, or too few positions. The seed decides a new head's weights.
    """
    plan = store.plan
    tokenizer = tokenizer_from_files(store.tokenizer_files())
    set_seed(seed)
    model, _ = load_classifier(student, num_labels=len(plan.teacher["labels"]), ignore_mismatched_sizes=True)
    if has_tokenizer(student):
        check_tokenizer(student, store)
    vocabulary = int(model.config.vocab_size)
    if vocabulary < plan.tokenizer["vocabulary"]:
        raise ModelError(
            f"{student} has a vocabulary of {vocabulary} words, the store's tokenizer {plan.tokenizer['vocabulary']}:"
            " choose a student with the teacher's tokenizer"
        )
    check_length(model, student, max(split.longest for split in plan.splits.values()))
    return model, tokenizer


def has_tokenizer(student: str) -> bool:
    """Whether a model comes with a tokenizer; one on the hub is taken to."""
    folder = Path(student)
    return not folder.is_dir() or any((folder / name).exists() for name in TOKENIZER_FILES)


def match_layers(plan: Plan, student_layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student layers to teach and, for each, its place in the store's hidden arrays.

    The store may have been made for a student of another depth: what counts is that it holds every teacher layer that
    g leads to. Raises StoreError where it lacks one.
    """
    strategy = plan.strategy
    assert strategy.top_layer is not None
    pairs = layer_pairs(
        plan.keep.depth,
        student_layers=student_layers,
        teacher_layers=plan.teacher["layers"],
        top_layer=strategy.top_layer,
        layer_map=strategy.layer_map,
        rank_by=strategy.rank_layer,
    )
    stored = {(pair.teacher, pair.rank): index for index, pair in enumerate(plan.pairs)}
    by_layer = {pair.teacher: index for index, pair in enumerate(plan.pairs)}
    lacking = [pair.teacher for pair in pairs if pair.teacher not in by_layer]
    if lacking:
        raise StoreError(
            f"a student of {student_layers} layers needs teacher layers {', '.join(str(pair.teacher) for pair in pairs)};"
            f" the store holds {', '.join(str(layer) for layer in by_layer)}:"
            f" extract with --student-layers {student_layers}"
        )
    places = tuple(stored.get((pair.teacher, pair.rank), by_layer[pair.teacher]) for pair in pairs)
    return tuple(pair.student for pair in pairs), places


def phase_settings(method: Method, recipe: Recipe, rows: int, overrides: Overrides) -> list[PhaseSettings]:
    """Each phase's numbers: the recipe's, the user's where given. `max_steps` is shared in proportion to the phases' steps."""
    phases = method.phases
    epochs = _per_phase("--epochs", overrides.epochs, [phase.numbers(recipe).epochs for phase in phases])
    rates = _per_phase("--lr", overrides.lr, [phase.numbers(recipe).lr for phase in phases])
    sizes = _per_phase("--batch-size", overrides.batch_size, [phase.numbers(recipe).batch_size for phase in phases])
    steps = [math.ceil(rows / size) * count for size, count in zip(sizes, epochs, strict=True)]
    if overrides.max_steps is not None and sum(steps) > overrides.max_steps:
        if overrides.max_steps < len(steps):
            raise OptionError(f"--max-steps {overrides.max_steps}: the method has {len(steps)} phases, of at least a step each")
        steps = _share_steps(overrides.max_steps, steps)
    return [
        PhaseSettings(phase, lr, size, count, overrides.warmup)
        for phase, lr, size, count in zip(phases, rates, sizes, steps, strict=True)
    ]


def _share_steps(most: int, steps: list[int]) -> list[int]:
    """`most` steps in proportion to `steps`, at least one each."""
    shared: list[int] = []
    for index, count in enumerate(steps):
        left, later = most - sum(shared), len(steps) - index - 1
        shared.append(min(left - later, max(1, round(left * count / sum(steps[index:])))))
    return shared


def _per_phase(option: str, given: Sequence[Any] | None, recipe: list[Any]) -> list[Any]:
    if given is None:
        return recipe
    values = list(given) * len(recipe) if len(given) == 1 else list(given)
    if len(values) != len(recipe):
        raise OptionError(f"{option}: {len(values)} values for {len(recipe)} phases; give one for all, or one for each")
    if min(values) <= 0:
        raise OptionError(f"{option} {min(values)}: must be above zero")
    return values


def _card(distilled: Distilled, store: Store, method: Method, student: str, command: str | None) -> str:
    """The student's model card: what it learnt from, how, and how well."""
    plan = store.plan
    scores = "\n".join(
        f"| {split} | {metric} | {value:.4f} | {scored.standard_error[metric]:.4f} |"
        for split, scored in distilled.scores.items()
        for metric, value in scored.score.items()
    )
    phases = "\n".join(f"- {phase.name}: {phase.steps} steps, {phase.seconds:.0f} s" for phase in distilled.phases)
    how = f"\n```\n{command}\n```\n" if command else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [distillation, hskstore]
---

# A student distilled from a hidden-state store

It was trained by hskstore without its teacher, from the store with the digest
`{distilled.digest}`.

- task: {plan.task["name"]}
- teacher: {plan.teacher["model_type"]}, {plan.teacher["layers"]} layers, {plan.teacher["hidden_size"]} wide;
  sha256 of its weights `{plan.teacher["sha256"]}`
- kept of its hidden states: depth, length, width = {plan.keep}, {plan.strategy.values}
- student at the start: {student}; {distilled.parameters:,} parameters
- method: `{method!r}`
{phases}
{how}
| split | metric | score | standard error |
|---|---|---|---|
{scores}
"""
