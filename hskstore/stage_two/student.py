"""The student of a run: loaded, matched with the rows and layers that the store has, and refused where it does not fit."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from hskstore.errors import ModelError, StoreError
from hskstore.layers import layer_pairs
from hskstore.methods import Method
from hskstore.models.load import load_classifier
from hskstore.models.pruning import as_pruned_bert
from hskstore.models.run import ModelShape, check_length, shape_of
from hskstore.stage_two.feed import Supply, first_rows
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import TrainingRows, reading_options, rows_from_store, telling_rows
from hskstore.store import Plan, Store
from hskstore.text.tokenizers import load_tokenizer, tokenizer_sha256

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class Student:
    """A student that fits its store, before it is trained, and the store's dev rows as it reads them.

    `tokenizer` is its own, None where it comes with none; `reading` is what that makes of reading rows, as `rows_from_store`
    takes it. `layers` are the student layers whose hidden states are learnt, lowest first, from the stored layers `places`;
    none: no hidden states are. `width` is that of its hidden states, None where it gives none. `key` names the rows it reads.
    """

    model: Any
    name: str
    tokenizer: Any
    reading: Mapping[str, Any]
    dev: Mapping[str, TrainingRows]
    layers: tuple[int, ...]
    places: tuple[int, ...]
    width: int | None
    key: str

    def check_train(self, store: Store, supply: Supply) -> None:
        """Raise ModelError where the train rows do not fit; say what another tokenizer costs."""
        if self.reading:
            _tell_alignment(first_rows(supply), self.name)
        else:
            _check_rows(self.model, self.name, store.plan.splits["train"].longest)


def fit_student(student: str | nn.Module, store: Store, recipe: Recipe, *, tokenizer: str | None) -> Student:
    """Load a student, read the dev rows, and see that it fits the store; one that will be pruned is a PrunedBert from here on.

    Raises StoreError where the store lacks what the method reads, ModelError where the student does not fit.
    """
    check_requirements(store, recipe.method)
    plan, hidden = store.plan, recipe.uses_hidden
    model, own = load_student(student, store, tokenizer=tokenizer, seed=recipe.seed)
    name = student if isinstance(student, str) else type(student).__name__
    if recipe.prune_to is not None:
        model = as_pruned_bert(model, name)
    reading = reading_options(model, own, store)
    dev = {split: rows_from_store(store, split, **reading) for split in plan.splits if split != "train"}
    key = rows_key(store, reading)
    _check_rows(model, name, max(int(rows.n_tokens.max()) for rows in dev.values()))
    shape = shape_of(model, *telling_rows(dev["validation"]), hidden=hidden)
    if shape.outputs != len(plan.teacher["labels"]):
        raise ModelError(f"{name} has {shape.outputs} outputs, the store's teacher {len(plan.teacher['labels'])}")
    layers, places = _layers_to_learn(plan, shape, name) if hidden else ((), ())
    return Student(model, name, own, reading, dev, layers, places, shape.width, key)


def _layers_to_learn(plan: Plan, shape: ModelShape, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if shape.layers is None:
        raise ModelError(f"{name} gives no hidden states, which the method learns: return (logits, hidden_states), or choose kd")
    return match_layers(plan, shape.layers)


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
        raise StoreError(f"{store.root} holds no {', '.join(missing)}, which the method {method.name} needs: {advice}")


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


def rows_key(store: Store, reading: Mapping[str, Any]) -> str:
    """What names the rows: the store's digest, and the student's own tokenizer if it has one."""
    if not reading:
        return store.digest
    words = f"{store.digest} {tokenizer_sha256(reading['tokenizer'])} {reading['max_length']}"
    return hashlib.sha256(words.encode()).hexdigest()
