"""Stage two: a student is trained from a store alone. No teacher, no data set, no hub."""

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.utils import cached_file

from hskstore.config import (
    DEFAULT_PRUNE_SHARE,
    DEFAULT_WARMUP,
    Loader,
    Projection,
    PruneTo,
    TrainPrecision,
    check_choice,
    check_count,
    check_positive,
    check_seed,
    check_share,
)
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.layers import layer_pairs
from hskstore.methods import Method
from hskstore.models.folder import WEIGHTS, refuse_existing_model, save_model, set_labels
from hskstore.models.load import check_length, load_classifier, shape_of
from hskstore.models.pruned_bert import PrunedBertForSequenceClassification
from hskstore.models.pruning import GradualPruning, as_pruned_bert
from hskstore.stage_two.checkpoint import PhaseResult, forget_checkpoint
from hskstore.stage_two.evaluate import Scored, dev_score, parameters, reading_options, score_splits, telling_rows
from hskstore.stage_two.feed import Source, first_rows, open_source, steps_per_epoch
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.processes import from_first, is_main
from hskstore.stage_two.rows import TrainingRows, rows_from_store
from hskstore.stage_two.trainer import PhaseSettings, precision_for, train
from hskstore.store import Plan, Store, open_store
from hskstore.text.tasks import Recipe, Task
from hskstore.text.tokenizers import load_tokenizer, tokenizer_from_files, tokenizer_sha256
from hskstore.watch import Watch, unwatched

log = logging.getLogger(__name__)

MODULE_CARD = """
It is a torch module, `{name}`: build it and give it the weights with `safetensors.torch.load_model`.
"""
PRUNED_CARD = """
Its architecture is hskstore's: `import hskstore.pruned_bert` once, then transformers' Auto classes load it. What `hsk student
export --onnx` makes of it runs without hskstore.
"""

PUBLISHED_PROJECTION = "fit_dense"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class Overrides:
    """What a user sets apart from the task's recipe, one value per phase or one for all; None: the recipe's.

    `max_steps` and `max_minutes` are of the whole run, shared among the phases in proportion to their steps; a decaying rate
    decays within them. `patience`: dev scores in a row that may be no better than the best before a phase ends.
    """

    epochs: Sequence[int] | None = None
    lr: Sequence[float] | None = None
    batch_size: Sequence[int] | None = None
    max_steps: int | None = None
    max_minutes: float | None = None
    patience: int | None = None
    warmup: float = DEFAULT_WARMUP

    def __post_init__(self) -> None:
        for option, counts in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            for count in () if counts is None else counts:
                check_count(option, count)
        for rate in () if self.lr is None else self.lr:
            check_positive("--lr", rate)
        check_count("--max-steps", self.max_steps)
        check_positive("--max-minutes", self.max_minutes)
        check_count("--patience", self.patience)
        check_share("--warmup", self.warmup)


@dataclass(frozen=True)
class Distilled:
    """A trained student: `scores` are those of its saved weights, by split of the store (validation; MNLI has two)."""

    folder: str
    digest: str
    phases: list[PhaseResult]
    scores: dict[str, Scored]
    seconds: float
    parameters: int
    precision: str
    loader: str


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
            raise OptionError(f"--projection: the method {_name(method)} learns no hidden states; only mud has one")
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
    _check_rows(model, name, max(int(rows.n_tokens.max()) for rows in dev.values()))
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
    source = open_source(store, "train", loader=loader, processes=beside, watch=watch, layers=stored_layers, **reading)
    if reading:
        _tell_alignment(first_rows(source), name)
    else:
        _check_rows(model, name, plan.splits["train"].longest)
    settings = phase_settings(method, task.recipe, source, overrides or Overrides())
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
        source,
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
        loader=source.name,
    )
    if not is_main():
        return distilled
    result = asdict(distilled) | {"method": repr(method), "student": name, "seed": seed}
    saved = own or tokenizer_from_files(store.tokenizer_files())
    if pruning is not None:
        result |= {"pruning": repr(pruning)}
    save_model(model, saved, out, card=_card(distilled, store, method, name, command, model), result=result)
    forget_checkpoint(out)
    return distilled


def _key(store: Store, reading: Mapping[str, Any]) -> str:
    """What names the rows: the store's digest, and the student's own tokenizer if it has one."""
    if not reading:
        return store.digest
    words = f"{store.digest} {tokenizer_sha256(reading['tokenizer'])} {reading['max_length']}"
    return hashlib.sha256(words.encode()).hexdigest()


def _check_rows(model: Any, name: str, longest: int) -> None:
    check_length(model, name, longest, advice="choose a student with more, or extract again with --max-length {}")


def _tell_alignment(rows: TrainingRows, name: str) -> None:
    """Say what another tokenizer costs."""
    said = f"{name} has another tokenizer than the teacher: it reads the kept text anew"
    if rows.hidden is not None:
        share = rows.hidden.aligned
        if share == 0:
            raise ModelError(
                f"{name} has another tokenizer, and not one kept token of the teacher is one of its own: choose --method kd"
            )
        said += f"; {100 * share:.0f} % of the kept tokens are tokens of its own, whose hidden states teach it"
    log.warning(said)


def check_requirements(store: Store, method: Method) -> None:
    """Raise StoreError unless the store holds every array that the method reads."""
    missing = [name for name in method.requires if not store.has(f"train/{name}")]
    if missing:
        advice = "extract with --label" if "label" in missing else "extract again with what it needs"
        raise StoreError(f"{store.root} holds no {', '.join(missing)}, which the method {_name(method)} needs: {advice}")


def _name(method: Method) -> str:
    return type(method).__name__.lower()


def load_student(student: str | nn.Module, store: Store, *, tokenizer: str | None = None, seed: int) -> tuple[Any, Any]:
    """A student in float32 with as many outputs as the teacher, and its own tokenizer; None where it comes with none.

    Raises ModelError for a vocabulary smaller than its tokenizer. The seed decides a new head's weights.
    """
    plan = store.plan
    if not isinstance(student, str):
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ModelError(f"{type(student).__name__} has no parameter that can be trained")
        return student.float(), None if tokenizer is None else load_tokenizer(tokenizer)
    set_seed(seed)
    model, _ = load_classifier(student, num_labels=len(plan.teacher["labels"]), ignore_mismatched_sizes=True)
    named = tokenizer or (student if has_tokenizer(student) else None)
    own = None if named is None else load_tokenizer(named)
    vocabulary, words = int(model.config.vocab_size), plan.tokenizer["vocabulary"] if own is None else len(own)
    if vocabulary < words:
        raise ModelError(
            f"{student} has a vocabulary of {vocabulary} words, {'the store' if own is None else 'its'} tokenizer {words}:"
            " choose a student with the teacher's tokenizer"
        )
    return model, own


def take_published_projection(projection: nn.ModuleList, student: str) -> None:
    """Start from the projection that a checkpoint brings along, if it is of this shape: TinyBERT's is `fit_dense`."""
    file = cached_file(student, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    with safe_open(file, "pt") as tensors:
        names = {name: f"{PUBLISHED_PROJECTION}.{name}" for name in ("weight", "bias")}
        if not set(names.values()) <= set(tensors.keys()):
            return
        published = {name: tensors.get_tensor(key).float() for name, key in names.items()}
    for linear in projection:
        if all(published[name].shape == tensor.shape for name, tensor in linear.state_dict().items()):
            linear.load_state_dict(published)


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


def phase_settings(method: Method, recipe: Recipe, source: Source, overrides: Overrides) -> list[PhaseSettings]:
    """Each phase's numbers: the recipe's, the user's where given."""
    phases = method.phases
    epochs = _per_phase("--epochs", overrides.epochs, [phase.numbers(recipe).epochs for phase in phases])
    rates = _per_phase("--lr", overrides.lr, [phase.numbers(recipe).lr for phase in phases])
    sizes = _per_phase("--batch-size", overrides.batch_size, [phase.numbers(recipe).batch_size for phase in phases])
    steps = [steps_per_epoch(source, size) * count for size, count in zip(sizes, epochs, strict=True)]
    if overrides.max_steps is not None and sum(steps) > overrides.max_steps:
        if overrides.max_steps < len(steps):
            raise OptionError(f"--max-steps {overrides.max_steps}: the method has {len(steps)} phases, of at least a step each")
        steps = _share_steps(overrides.max_steps, steps)
    minutes = overrides.max_minutes
    seconds = [None if minutes is None else 60 * minutes * count / sum(steps) for count in steps]
    return [
        PhaseSettings(phase, lr, size, count, overrides.warmup, limit, overrides.patience)
        for phase, lr, size, count, limit in zip(phases, rates, sizes, steps, seconds, strict=True)
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
    return values


def _code(text: object) -> str:
    """Words of whatever origin for a card: one printable line that means nothing to Markdown."""
    line = str(text)
    line = line if line.isprintable() else ascii(line)
    ticks = "`" * (_longest_ticks(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _card(distilled: Distilled, store: Store, method: Method, student: str, command: str | None, model: Any) -> str:
    """The student's model card: what it learnt from, how, and how well."""
    plan = store.plan
    scores = "\n".join(
        f"| {split} | {metric} | {value:.4f} | {scored.standard_error[metric]:.4f} |"
        for split, scored in distilled.scores.items()
        for metric, value in scored.score.items()
    )
    phases = "\n".join(f"- {phase.name}: {phase.steps} steps, {phase.seconds:.0f} s" for phase in distilled.phases)
    library, loading = "library_name: transformers\npipeline_tag: text-classification\n", ""
    if isinstance(model, PrunedBertForSequenceClassification):
        loading = PRUNED_CARD
    elif not isinstance(model, PreTrainedModel):
        library, loading = "", MODULE_CARD.format(name=student)
    fence = "`" * max(3, _longest_ticks(command or "") + 1)
    how = f"\n{fence}\n{command}\n{fence}\n" if command else ""
    return f"""---
{library}tags: [distillation, hskstore]
---

# A student distilled from a hidden-state store

It was trained by hskstore without its teacher, from the store with the digest
`{distilled.digest}`.

- task: {_code(plan.task["name"])}
- teacher: {_code(plan.teacher.get("model_type"))}, {plan.teacher["layers"]} layers, {plan.teacher["hidden_size"]} wide;
  sha256 of its weights {_code(plan.teacher["sha256"])}
- kept of its hidden states: depth, length, width = {plan.keep}, {plan.strategy.values}
- student at the start: {_code(student)}
- parameters at the end: {distilled.parameters:,}
- method: {_code(repr(method))}
{phases}
{loading}{how}
| split | metric | score | standard error |
|---|---|---|---|
{scores}
"""
