"""Labelled rows besides the dev rows of a store, on which every student of a sweep is scored too."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hskstore.errors import DataError, OptionError
from hskstore.models.run import check_length, usual_length
from hskstore.models.token_types import give_types
from hskstore.stage_two.rows import TrainingRows, check_words, rows_from_data
from hskstore.store import Store
from hskstore.text.dataset import label_ids, read_dataset
from hskstore.text.tally import TokenCounts
from hskstore.text.tasks import Task
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import tokenizer_from_files, tokenizer_sha256


@dataclass(frozen=True)
class FurtherData:
    """A data set, laid out as the store's task is, and which of its splits are scored."""

    source: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class FurtherRows:
    """Its rows in the words of the student, labels numbered as the store's classes are; `sha256` names them."""

    splits: Mapping[str, TrainingRows] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of token ids, lengths and labels; of no rows that of nothing."""
        digest = hashlib.sha256()
        for name, rows in self.splits.items():
            digest.update(name.encode())
            for array in (rows.input_ids, rows.n_tokens, rows.label):
                assert array is not None
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_further(data: FurtherData, store: Store, model: Any, name: str, own: Any) -> FurtherRows:
    """The rows, for a student of that name whose tokenizer is `own` (None: the store's).

    Raises DataError where they have no labels, OptionError for a split that the store itself has, ModelError where the student
    cannot read them.
    """
    task = Task.from_json(store.plan.task)
    both = [split for split in data.splits if split in store.plan.splits]
    if both:
        raise OptionError(
            f"--split {both[0]}: the store's own {both[0]} rows have that name and are "
            + ("learnt from" if both[0] == "train" else "scored anyway")
            + "; name another split of --data"
        )
    known: dict[str, Any] = {"task": task.name}
    if task.name == "custom":
        known = {"text": task.text, "label": task.label, "kind": task.kind if task.label else None, "classes": task.labels}
    dataset = read_dataset(data.source, splits=data.splits, **known)
    words = own
    if own is None or tokenizer_sha256(own) == store.plan.tokenizer["sha256"]:
        words = tokenizer_from_files(store.tokenizer_files())  # which says whether types are read, as the store's rows have them
    else:
        give_types(model, own, len(task.text))
    length = usual_length(model, words, store.plan.pass_.max_length)
    found: dict[str, TrainingRows] = {}
    for split, examples in dataset.splits.items():
        if examples.label is None:
            raise DataError(f"{data.source}: the rows of {split} have no labels to score against")
        rows = tokenise(examples, words, length, split=split, counts=TokenCounts(words, len(examples.text), length))
        label = label_ids(dataset.task.labels, task.labels)[examples.label] if task.kind == "classes" else examples.label
        found[split] = replace(rows_from_data(rows, words.pad_token_id), label=np.asarray(label))
        check_length(model, name, int(found[split].n_tokens.max()))
        check_words(model, name, split, found[split], words)
    return FurtherRows(found)
