"""From a teacher and a data set to plans: what each store will hold, before the teacher runs."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Int

from hskstore.config import DEFAULT_BATCH_TOKENS, Keep, Precision, Strategy, check_choice, check_count, check_seed
from hskstore.errors import ModelError, OptionError
from hskstore.layers import default_top_layer
from hskstore.models.device import computes_in
from hskstore.models.run import check_length, usual_length
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.store.layout import KeptText, Split
from hskstore.store.plan import Pass, Plan, make_plan
from hskstore.store.schema import block_rows, canonical_json
from hskstore.store.values import is_admitted
from hskstore.text.dataset import Dataset, read_dataset
from hskstore.text.rows import Rows, save_index
from hskstore.text.tasks import Kind
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import tokenizer_files, tokenizer_sha256
from hskstore.watch import Watch, unwatched

_UNORDERED = "train-unordered"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known before the teacher runs: the teacher, the rows as they will be stored, a plan per store by its folder.

    `rows_by_admitted` is that of the train rows, as `count_admitted` makes it: the same for every plan of a pass.
    """

    teacher: Teacher
    rows: Mapping[str, Rows]
    rows_by_admitted: Int[np.ndarray, " count"]
    plans: Mapping[str, Plan]


def prepare(
    teacher: str,
    data: str,
    folder: Path,
    *,
    keeps: Sequence[Keep],
    strategies: Sequence[Strategy],
    device: torch.device,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    validation: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    precision: Precision = "fp32",
    seed: int = 0,
    keep_offsets: bool = False,
    watch: Watch = unwatched,
) -> Prepared:
    """Load the teacher, read and tokenise the data into `folder`, plan the stores: what `extract` does first.

    Raises DataError, ModelError or OptionError.
    """
    check_count("--max-length", max_length)
    check_count("--batch-tokens", batch_tokens)
    check_choice("--precision", precision, get_args(Precision))
    check_seed(seed)
    if len({replace(strategy, student_layers=1) for strategy in strategies}) > 1:
        raise OptionError("one pass has one strategy; only the student's layers may differ")
    if device.type == "cpu" and not computes_in(precision, device):
        log.warning("this processor has no %s of its own and emulates it slowly; fp32 will be faster", precision)
    loaded = load_teacher(teacher, device=device, precision=precision)
    classes = loaded.label_names if len(loaded.label_names) > 1 else ()
    dataset = read_dataset(data, task=task, text=text, label=label, validation=validation, classes=classes)
    dataset = fit_labels(dataset, loaded)
    length = max_length or usual_length(loaded.model, loaded.tokenizer, dataset.task.max_length)
    pass_ = Pass(seed, precision, length, batch_tokens, block_rows(len(dataset.splits["train"])))
    rows = stored_rows(dataset, loaded, pass_, keep_offsets=keep_offsets, folder=folder, watch=watch)
    rows_by_admitted = count_admitted(rows["train"], _separators(loaded), strategies[0])
    plans = make_plans(keeps, strategies, pass_, dataset, loaded, rows, most_admitted=len(rows_by_admitted) - 1)
    return Prepared(loaded, rows, rows_by_admitted, plans)


def fit_labels(dataset: Dataset, teacher: Teacher) -> Dataset:
    """The data set with its labels in the teacher's order. Raises ModelError where their numbers differ."""
    outputs = len(teacher.label_names)
    task = dataset.task
    if task.label is None:
        names = teacher.label_names if outputs > 1 else ()
        metrics = task.metrics if outputs > 1 else ("spearman", "pearson")
        kind: Kind = "classes" if outputs > 1 else "score"
        return replace(dataset, task=replace(task, kind=kind, labels=names, metrics=metrics))
    if task.num_labels != outputs:
        wanted = "a score (one output)" if task.kind == "score" else f"{task.num_labels} classes ({', '.join(task.labels)})"
        raise ModelError(f"{teacher.name} has {outputs} outputs; the task {task.name} needs {wanted}")
    return dataset.with_label_order(teacher.label_names) if task.kind == "classes" else dataset


def stored_rows(
    dataset: Dataset,
    teacher: Teacher,
    pass_: Pass,
    *,
    keep_offsets: bool,
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> dict[str, Rows]:
    """Every split tokenised, in stored order: train permuted once, so that a block is already a random sample.

    The rows are mapped from files: of `folder`, from where `open_rows` gives them to any other process, else without a name.
    Raises DataError, ModelError or OptionError.
    """
    rows: dict[str, Rows] = {}
    for name, examples in dataset.splits.items():
        rows[name] = tokenise(
            examples,
            teacher.tokenizer,
            pass_.max_length,
            offsets=keep_offsets,
            split=name,
            watch=watch,
            folder=folder and folder / (name if name != "train" else _UNORDERED),
        )
    check_length(teacher.model, teacher.name, max(split.longest for split in rows.values()))
    order = np.random.default_rng(pass_.seed).permutation(len(rows["train"]))
    rows["train"] = rows["train"].reordered(order, folder and folder / "train")
    if folder is not None:
        shutil.rmtree(folder / _UNORDERED)
        save_index(rows, folder)
    return rows


def make_plans(
    keeps: Sequence[Keep],
    strategies: Sequence[Strategy],
    pass_: Pass,
    dataset: Dataset,
    teacher: Teacher,
    rows: Mapping[str, Rows],
    *,
    most_admitted: int,
) -> dict[str, Plan]:
    """One plan per store, by the store's folder. Several student depths get the depth in front: "s3-d1-l9-w0.1".

    `most_admitted` is the most tokens of a train row that a rank may choose among.
    """
    label = rows["train"].label
    plan_one = partial(
        make_plan,
        pass_=pass_,
        splits={name: Split(len(split), len(split.input_ids), split.longest, split.sha256()) for name, split in rows.items()},
        most_admitted=most_admitted,
        teacher={
            "sha256": teacher.sha256,
            "model_type": teacher.model.config.model_type,
            "layers": teacher.layers,
            "hidden_size": teacher.hidden_size,
            "labels": list(teacher.label_names),
        },
        tokenizer={
            "sha256": tokenizer_sha256(teacher.tokenizer),
            "vocabulary": len(teacher.tokenizer),
            "pad_token_id": teacher.tokenizer.pad_token_id,
            "separators": _separators(teacher),
        },
        task=dataset.task.as_json(),
        labels=None if label is None else str(label.dtype),
        text=_kept_text(rows),
    )
    plans: dict[str, Plan] = {}
    for strategy in dict.fromkeys(strategies):
        top = default_top_layer(teacher.layers) if strategy.top_layer is None else strategy.top_layer
        if not 1 <= top <= teacher.layers:
            raise OptionError(f"--top-layer {top}: the teacher has layers 1 to {teacher.layers}")
        for keep in dict.fromkeys(keeps):
            name = keep.name if len(set(strategies)) == 1 else f"s{strategy.student_layers}-{keep.name}"
            plans[name] = plan_one(keep, replace(strategy, top_layer=top))
    return plans


def _kept_text(rows: Mapping[str, Rows]) -> KeptText | None:
    texts = {name: split.text for name, split in rows.items() if split.text is not None}
    if not texts:
        return None
    most = {name: max(1, text.most_bytes) for name, text in texts.items()}
    return KeptText(texts["train"].n_bytes.shape[1], most)


def count_admitted(rows: Rows, separators: Sequence[int], strategy: Strategy) -> Int[np.ndarray, " count"]:
    """How many rows have 0, 1, 2, ... tokens that a rank may choose among, up to the most that a row has."""
    found = np.zeros(rows.longest + 1, dtype=np.int64)
    for block in rows.in_runs():
        choices = is_admitted(block.input_ids, separators, strategy)
        found += np.bincount(np.add.reduceat(choices, block.bounds[:-1], dtype=np.int64), minlength=len(found))
    return np.trim_zeros(found, "b")


def _separators(teacher: Teacher) -> list[int]:
    """Every separator id: BERT's [SEP]; RoBERTa's </s> is also its end of text."""
    tokenizer = teacher.tokenizer
    return sorted({token for token in (tokenizer.sep_token_id, tokenizer.eos_token_id) if token is not None})


def store_files(teacher: Teacher) -> dict[str, bytes]:
    """What travels beside the arrays: the tokenizer's files, and the teacher's config and hash (never its weights)."""
    config = teacher.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"):
        config.pop(name, None)
    document = {"sha256": teacher.sha256, "config": json.loads(json.dumps(config, default=str))}
    files = {f"tokenizer/{name}": data for name, data in tokenizer_files(teacher.tokenizer).items()}
    return {**files, "teacher.json": canonical_json(document)}
