"""The student of a run: loaded, matched with the layers that the store has, and refused where it does not fit."""

import logging
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import set_seed
from transformers.utils import cached_file

from hskstore.errors import ModelError, StoreError
from hskstore.layers import layer_pairs
from hskstore.methods import Method
from hskstore.models.folder import WEIGHTS
from hskstore.models.load import load_classifier
from hskstore.models.run import check_length
from hskstore.stage_two.rows import TrainingRows
from hskstore.store import Plan, Store
from hskstore.text.tokenizers import load_tokenizer

log = logging.getLogger(__name__)
PUBLISHED_PROJECTION = "fit_dense"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model")


def check_rows(model: Any, name: str, longest: int) -> None:
    check_length(model, name, longest, advice="choose a student with more, or extract again with --max-length {}")


def tell_alignment(rows: TrainingRows, name: str) -> None:
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
        raise StoreError(f"{store.root} holds no {', '.join(missing)}, which the method {method_name(method)} needs: {advice}")


def method_name(method: Method) -> str:
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
