"""The student of a run: loaded, matched with the rows and layers that the store has, and refused where it does not fit."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import set_seed

from hskstore.config import DEFAULT_KEEP
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.features import HIDDEN, QKV, TeacherShape, Want
from hskstore.features.hidden import aligned_share
from hskstore.layers import LayerPair
from hskstore.methods import Method, Phase
from hskstore.methods.serving import is_rich, lacking, refusal, teacher_shape
from hskstore.models.load import load_classifier
from hskstore.models.observe import NOTHING, Sight, heads_of
from hskstore.models.pruning import as_pruned_bert
from hskstore.models.run import Inputs, ModelShape, check_length, check_vocabulary, hugging_face_config, known_words, shape_of
from hskstore.stage_two.feed import Supply, first_rows
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import Places, TrainingRows, check_words, reading_options, rows_from_store, telling_rows
from hskstore.stage_two.selecting import Selecting, selecting
from hskstore.store import Store
from hskstore.store.features import FEATURES, Cls, States
from hskstore.store.hidden import Hidden
from hskstore.text.tally import MANY, check_begins_with_special, unknown_id
from hskstore.text.tokenizers import highest_id, load_tokenizer, tokenizer_from_files, tokenizer_sha256

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class Student:
    """A student that fits its store, before it is trained, and the store's dev rows as it reads them.

    `tokenizer` is its own, None where it comes with none; `reading` is what that makes of reading rows, as `rows_from_store`
    takes it. The `phases` of its run are made for `teacher` and `shape`; `read` is the same with all that is read and seen in
    them, from the stored layers `places`. `data` names what it learns from, and `order` the rows alone. `selecting`: how weights
    are chosen; None: they are fixed.
    """

    model: Any
    name: str
    tokenizer: Any
    reading: Mapping[str, Any]
    dev: Mapping[str, TrainingRows]
    teacher: TeacherShape
    shape: ModelShape
    phases: tuple[Phase, ...]
    read: tuple[Phase, ...]
    places: Places
    data: str
    order: str
    selecting: Selecting | None = None

    @property
    def sight(self) -> Sight:
        """All that is seen of it in its run."""
        return reduce(Sight.__or__, (phase.sees for phase in self.read), NOTHING)

    def check_train(self, store: Store, supply: Supply) -> None:
        """Raise ModelError where the train rows do not fit; say what another tokenizer costs."""
        if self.reading:
            _tell_alignment(first_rows(supply), self.name, self.tokenizer)
        else:
            _check_rows(self.model, self.name, store.plan.splits["train"].longest)


def fit_student(student: str | nn.Module, store: Store, recipe: Recipe, *, tokenizer: str | None) -> Student:
    """Load a student, read the dev rows, and see that it fits the store; one that will be pruned is a PrunedBert from here on.

    Raises StoreError where the store lacks what the method reads, ModelError where the student does not fit, OptionError where
    the method cannot be so with these two.
    """
    plan, method = store.plan, recipe.method
    model, own = load_student(student, store, tokenizer=tokenizer, seed=recipe.seed)
    name = student if isinstance(student, str) else type(student).__name__
    if recipe.prune_to is not None:
        model = as_pruned_bert(model, name)
    reading = reading_options(model, own, store)
    _check_vocabulary(model, name, reading.get("tokenizer"), store)
    dev = {split: rows_from_store(store, split, **reading) for split in plan.splits if split != "train"}
    _check_rows(model, name, max(int(rows.n_tokens.max()) for rows in dev.values()))
    _check_trains(model, name)
    shape = shape_of(model, *telling_rows(dev["validation"]), name=name)
    if shape.outputs != len(plan.teacher["labels"]):
        raise ModelError(f"{name} has {shape.outputs} outputs, the store's teacher {len(plan.teacher['labels'])}")
    teacher = teacher_shape(plan)
    phases = recipe.phases(teacher, shape)
    check_store(store, phases, shape, method)
    if any(phase.sees.qkv for phase in phases):
        shape = replace(shape, heads=_heads(model, name, shape, telling_rows(dev["validation"]), recipe))
        phases = recipe.phases(teacher, shape)  # which may refuse such heads
    if reading and any(want.kind is QKV for want in _wants(phases)):
        raise ModelError(
            f"{name} has another tokenizer than the teacher, whose attention from token to token the method {method.name} learns:"
            " choose a student with the teacher's tokenizer, or a method that reads no attention"
        )
    chosen = selecting(phases, recipe, store, teacher, shape)
    read = recipe.read_phases(teacher, shape)
    if reading and any(want.kind.name == Cls.name for want in _wants(read)):
        check_begins_with_special(own, name, [["a"]] * len(plan.task["text"]), Cls.name)
    data, order = (named_as_read(name, reading) for name in (store.identity, store.rows_sha256("train")))
    return Student(model, name, own, reading, dev, teacher, shape, phases, read, places_of(store, read), data, order, chosen)


def _check_trains(model: nn.Module, name: str) -> None:
    """Raise ModelError for a Reformer that trains on rows of one length alone, as it says when a batch is already under way."""
    config = hugging_face_config(model)
    if config is not None and getattr(config, "axial_pos_embds", False):
        raise ModelError(
            f"{name}: a {config.model_type} with axial positions trains on rows of one length alone: choose a student of another"
            " family, such as a BERT"
        )


def check_store(store: Store, phases: Sequence[Phase], student: ModelShape, method: Method) -> None:
    """Raise StoreError unless the store holds all that the phases of a method read."""
    lacks = lacking(store.plan, phases)
    if not lacks:
        return
    if lacks == ["labels"]:
        raise StoreError(f"{store.root} holds no label, which the method {method.name} needs: extract with --label")
    hidden, stored = [want for want in _wants(phases) if want.kind is HIDDEN], store.plan.hidden
    if hidden and stored is not None:
        needed = [pair.teacher for want in hidden for pair in want.pairs]
        if not set(needed) <= set(stored.layers):
            raise StoreError(
                f"a student of {student.layers} layers needs teacher layers {', '.join(map(str, needed))};"
                f" the store holds {', '.join(map(str, dict.fromkeys(stored.layers)))}:"
                f" extract with --student-layers {student.layers}"
            )
    if hidden and is_rich(store.plan):
        raise StoreError(
            f"{store.root} is a rich store: say with --keep which of its hidden states the method {method.name} is to learn,"
            f" such as {DEFAULT_KEEP} (in Python hskstore.view)"
        )
    raise StoreError(refusal(store.root, method, student.layers, lacks))


def places_of(store: Store, phases: Sequence[Phase]) -> dict[str, tuple[int, ...]]:
    """Where the teacher layers that the phases read lie in the store's features, lowest first; of spans, if they are read, ()."""
    found: dict[str, tuple[int, ...]] = {}
    for name in FEATURES:
        wants = [want for want in _wants(phases) if want.kind.name == name]
        if wants:
            found[name] = tuple(sorted({place for want in wants for place in want.places(store.plan.features[name])}))
    return found


def uneven_pairs(student: Student) -> tuple[LayerPair, ...]:
    """The student's layers and their teachers, where its depth does not divide the teacher's and one of them is no such share
    of it. Those that learn `hidden` are paired by the store's strategy, which knows of no such depth."""
    pairs = {pair for want in _wants(student.phases) if want.kind is not HIDDEN for pair in want.pairs}
    if not pairs:
        return ()
    own, theirs = student.shape.layers, student.teacher.layers
    uneven = theirs % own != 0 and any(pair.student * theirs != pair.teacher * own for pair in pairs)
    return tuple(sorted(pairs, key=lambda pair: (pair.student, pair.teacher))) if uneven else ()


def _wants(phases: Sequence[Phase]) -> list[Want[Any]]:
    return [want for phase in phases for want in phase.reads]


def _heads(model: Any, name: str, shape: ModelShape, batch: Inputs, recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """Heads and their size, by layer. Raises ModelError where the attention cannot be seen, OptionError where heads would go."""
    found, to = heads_of(model, *batch, layers=shape.layers, name=name), recipe.prune_to
    if to is not None and to.heads is not None and to.heads < max(heads for heads, _ in found):
        raise OptionError(
            f"--prune-to {to}: the method {recipe.method.name} learns the attention of the heads that would go; prune other"
            f" widths alone, such as all,{to.ffn or 'all'},{to.embedding_rank or 'all'}, or choose another method"
        )
    return found


def _check_rows(model: Any, name: str, longest: int) -> None:
    check_length(model, name, longest, advice="choose a student with more, or extract again with --max-length {}")


def _check_vocabulary(model: Any, name: str, other: Any, store: Store) -> None:
    """Raise ModelError where a student has no embedding of a token that it would read: of the tokenizer `other`, or, None, of the
    store's rows, which are looked through only where its tokenizer has such a token."""
    words = known_words(model)
    if words is None:
        return
    if other is not None:
        check_vocabulary(model, name, other)
        return
    tokenizer = tokenizer_from_files(store.tokenizer_files())
    if highest_id(tokenizer) < words:
        return
    for split, rows in store.plan.splits.items():
        for unit in range(rows.units):
            try:
                check_words(model, name, split, rows_from_store(store, split, units=[unit]), tokenizer)
            except ModelError as error:
                raise ModelError(f"{error}; or choose a student with the teacher's tokenizer") from None


def _tell_alignment(rows: TrainingRows, name: str, tokenizer: Any) -> None:
    """Say what another tokenizer costs."""
    said = f"{name} has another tokenizer than the teacher: it reads the kept text anew"
    shares: list[tuple[str, str, float]] = []
    if Hidden.name in rows.features:
        shares.append(("kept token", "kept tokens", aligned_share(rows.features[Hidden.name])))
    if States.name in rows.features:
        aligned = rows.features[States.name].aligned
        assert aligned is not None
        shares.append(("token", "teacher's tokens", float((aligned >= 0).sum() / (aligned >= -1).sum())))
    for one, all_of_them, share in shares:
        if share == 0:
            raise ModelError(
                f"{name} has another tokenizer, and not one {one} of the teacher is one of its own: choose --method kd"
            )
        said += f"; {100 * share:.0f} % of the {all_of_them} are tokens of its own, whose hidden states teach it"
    real = np.arange(rows.input_ids.shape[1]) < rows.n_tokens[:, None]
    unknown = float((rows.input_ids[real] == unknown_id(tokenizer)).mean())
    if unknown > MANY:
        said += f"; {100 * unknown:.1f} % of its tokens are unknown to that tokenizer, which was made for another script, or case"
    log.warning(said)


def load_student(student: str | nn.Module, store: Store, *, tokenizer: str | None = None, seed: int) -> tuple[Any, Any]:
    """A student in float32 with as many outputs as the teacher, and its own tokenizer; None where it comes with none.

    The seed decides a new head's weights.
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
    return model, own


def has_tokenizer(student: str) -> bool:
    """Whether a model comes with a tokenizer; one on the hub is taken to."""
    folder = Path(student)
    return not folder.is_dir() or any((folder / name).exists() for name in TOKENIZER_FILES)


def named_as_read(name: str, reading: Mapping[str, Any]) -> str:
    """A name of rows, such as a store's digest, as a student reads them: one that has a tokenizer of its own makes others."""
    if not reading:
        return name
    words = f"{name} {tokenizer_sha256(reading['tokenizer'])} {reading['max_length']}"
    return hashlib.sha256(words.encode()).hexdigest()


def student_sha256(model: Any, tokenizer: Any) -> str:
    """Of a student: its weights, and its tokenizer if it has one."""
    digest = hashlib.sha256(b"" if tokenizer is None else tokenizer_sha256(tokenizer).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_sha256(model: Any) -> str:
    """Of what a student's weights do not tell: heads, activation; where it lies and what wrote it are left out."""
    config = hugging_face_config(model)
    found = {} if config is None else config.to_dict()
    told = {name: value for name, value in found.items() if name not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
