"""What a model is worth: its score with a standard error, its parameters, its bytes, its CPU latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from torch import nn
from transformers import PreTrainedModel

from hskstore.config import LabelKind, check_count
from hskstore.errors import DataError, ModelError, OptionError, StoreError
from hskstore.models.anatomy import cpu_latency, parameters
from hskstore.models.device import choose_device
from hskstore.models.folder import is_onnx, weight_bytes
from hskstore.models.load import label_names, load_classifier
from hskstore.models.onnx import OnnxClassifier, load_onnx_classifier
from hskstore.models.run import check_length, check_tokens, hugging_face_config, known_words, put_back, shape_of, usual_length
from hskstore.models.token_types import chosen_types, types_are_open
from hskstore.stage_two.rows import (
    TrainingRows,
    check_words,
    reading_options,
    rows_from_data,
    rows_from_store,
    single_rows,
    telling_rows,
)
from hskstore.stage_two.scores import Scored, predict, score_rows
from hskstore.store import Store, open_store
from hskstore.store.places import holds_stores, is_store
from hskstore.text.dataset import Dataset, Examples, label_ids, read_dataset
from hskstore.text.metrics import tell_better_order
from hskstore.text.tally import TokenCounts, warn_of_text
from hskstore.text.tasks import Task
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import load_tokenizer, name_types, tokenizer_from_files
from hskstore.watch import Watch, unwatched

LATENCY_EXAMPLES = 50


@dataclass(frozen=True)
class Evaluation:
    """A model on the splits asked for, scored together and, in `by_split`, one by one; MNLI's other dev set is there too.

    `bytes` is None for a model on the hub; `latency_ms`, CPU milliseconds of one example, None where it was not asked for.
    """

    score: dict[str, float]
    standard_error: dict[str, float]
    rows: int
    by_split: dict[str, Scored]
    parameters: int
    bytes: int | None
    latency_ms: float | None


def evaluate(
    model: str | nn.Module,
    source: str,
    *,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    validation: str | None = None,
    splits: Sequence[str] = ("validation",),
    max_length: int | None = None,
    tokenizer: str | None = None,
    classes: Sequence[str] = (),
    latency: bool = True,
    watch: Watch = unwatched,
) -> Evaluation:
    """Score a model folder (of torch or ONNX), a hub name or a torch module on splits of a data set, or of a store.

    A module on a data set needs a `tokenizer` (a folder or hub name) and the names of its `classes`, in the order of its
    logits: after `distill` they are `store.plan.task["labels"]`. On a store both are the store's. A module is scored on a GPU
    if there is one, in eval mode, and is then on the device and in the mode that it was in before.

    Raises DataError, ModelError, OptionError or StoreError.
    """
    check_count("--max-length", max_length)
    name = model if isinstance(model, str) else type(model).__name__
    classifier = _with_trained_head(model) if isinstance(model, str) else model
    names = tuple(classes) if hugging_face_config(classifier) is None else label_names(classifier)
    words = tokenizer or (model if isinstance(model, str) else None)
    if is_store(source) or holds_stores(source):
        if task or text or label or kind or validation or max_length:
            raise OptionError(
                f"{source} is a store and knows its task: leave out --task, --text, --label, --kind, --validation and "
                "--max-length"
            )
        known, rows = _stored_splits(classifier, name, words, open_store(source), splits, watch)
    else:
        if words is None:
            raise OptionError("a torch module has no tokenizer of its own: pass tokenizer=")
        expected = names if len(names) > 1 else ()
        dataset = read_dataset(
            source, task=task, text=text, label=label, kind=kind, validation=validation, splits=splits, classes=expected
        )
        if dataset.task.kind == "classes" and not names:
            raise OptionError("a torch module does not say what its logits stand for: pass classes=")
        known, rows = dataset.task, _tokenised_splits(classifier, name, names, words, dataset, max_length, watch)
    if any(split.label is None for split in rows.values()):
        advice = "extract with --label" if is_store(source) else "pass --label COLUMN, or another --split"
        raise DataError(f"{source}: its rows have no labels to score against; {advice}")
    _check_fit(classifier, name, names, known, rows)
    gold = _gold(known, names, rows)
    with put_back(classifier):
        classifier.to(choose_device(None))
        logits = {name: predict(classifier, split, stage=f"score {name}", watch=watch) for name, split in rows.items()}
    said, meant = (np.concatenate([found[split] for split in splits]) for found in (logits, gold))
    together = score_rows(known, said, meant)
    if known.kind == "classes":
        order = np.argsort(label_ids(known.labels, names)) if names else range(len(known.labels))
        tell_better_order([known.labels[index] for index in order], said, meant, model=name)
    return Evaluation(
        score=together.score,
        standard_error=together.standard_error,
        rows=together.rows,
        by_split={name: score_rows(known, logits[name], gold[name]) for name in rows} if len(rows) > 1 else {splits[0]: together},
        parameters=parameters(classifier),
        bytes=weight_bytes(model) if isinstance(model, str) else None,
        latency_ms=round(cpu_latency(classifier, single_rows(rows[splits[0]], LATENCY_EXAMPLES)), 3) if latency else None,
    )


def _with_trained_head(name: str) -> PreTrainedModel | OnnxClassifier:
    """A classifier that can be scored, of torch or ONNX. Raises ModelError."""
    if is_onnx(name):
        return load_onnx_classifier(name)
    classifier, trained = load_classifier(name)
    if not trained:
        raise ModelError(f"{name} has no trained classification head: there is nothing to score")
    return classifier


def _stored_splits(
    model: nn.Module, name: str, words: str | None, store: Store, splits: Sequence[str], watch: Watch
) -> tuple[Task, dict[str, TrainingRows]]:
    """A store's task and rows, in the words of the tokenizer of that name; None: in the store's own. Raises StoreError."""
    own = None if words is None else load_tokenizer(words)
    unknown = [split for split in splits if split not in store.plan.splits]
    if unknown:
        raise StoreError(f"{store.root} has the splits {', '.join(store.plan.splits)}, not {', '.join(unknown)}")
    reading = reading_options(model, own, store)
    rows = {split: rows_from_store(store, split, **reading, watch=watch) for split in splits}
    if known_words(model) is not None:
        made_by = own or tokenizer_from_files(store.tokenizer_files())
        for split in splits:
            check_words(model, name, split, rows[split], made_by)
    return Task.from_json(store.plan.task), rows


def _tokenised_splits(
    model: nn.Module, name: str, classes: tuple[str, ...], words: str, dataset: Dataset, max_length: int | None, watch: Watch
) -> dict[str, TrainingRows]:
    """A data set's rows in the words of the tokenizer of that name, cut where the model or the task would end."""
    tokenizer = load_tokenizer(words)
    length = max_length or usual_length(model, tokenizer, dataset.task.max_length)
    first = next(iter(dataset.splits.values()))
    if first.label is not None and types_are_open(model, tokenizer, len(first.text)):
        numbered = Examples(first.text, _as_numbered(dataset.task, classes, first.label))
        name_types(tokenizer, bool(chosen_types(model, tokenizer, name, dataset.task, numbered, length)))
    counts = {split: TokenCounts(tokenizer, len(examples.text), length) for split, examples in dataset.splits.items()}
    rows = {
        split: tokenise(examples, tokenizer, length, split=split, watch=watch, counts=counts[split])
        for split, examples in dataset.splits.items()
    }
    warn_of_text({split: one.facts() for split, one in counts.items()})
    check_tokens(model, name, rows, tokenizer)
    return {split: rows_from_data(own, tokenizer.pad_token_id) for split, own in rows.items()}


def _check_fit(model: nn.Module, name: str, classes: tuple[str, ...], task: Task, rows: Mapping[str, TrainingRows]) -> None:
    """Raise ModelError where a row is too long for the model, where it does not run on rows, or where it has another number of
    outputs than the task."""
    check_length(model, name, max(int(split.n_tokens.max()) for split in rows.values()))
    exported = isinstance(model, OnnxClassifier)  # and run when it was
    outputs = len(classes) if exported else shape_of(model, *telling_rows(next(iter(rows.values()))), name=name).outputs
    if outputs != task.num_labels:
        raise ModelError(f"{name} has {outputs} outputs; the task {task.name} needs {task.num_labels}")


def _gold(task: Task, classes: tuple[str, ...], rows: Mapping[str, TrainingRows]) -> dict[str, Shaped[np.ndarray, " row"]]:
    """Each split's labels, as the model numbers its classes."""
    return {name: _as_numbered(task, classes, split.label) for name, split in rows.items() if split.label is not None}


def _as_numbered(task: Task, classes: tuple[str, ...], label: Shaped[np.ndarray, " row"]) -> Shaped[np.ndarray, " row"]:
    return label_ids(task.labels, classes)[label] if task.kind == "classes" and classes else label
