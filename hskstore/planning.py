"""From a teacher and a data set to plans: what each store will hold, before the teacher runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hskstore.classifiers import check_length
from hskstore.config import Keep, Strategy, resolve
from hskstore.data import Dataset
from hskstore.errors import ModelError, OptionError
from hskstore.layers import default_top_layer
from hskstore.rows import Rows, tokenise
from hskstore.store.plan import KeptText, Pass, Plan, Split, make_plan, stored_width
from hskstore.tasks import Kind
from hskstore.teacher import Teacher
from hskstore.tokenizers import tokenizer_sha256
from hskstore.watch import Watch, unwatched


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
    dataset: Dataset, teacher: Teacher, run: Pass, *, keep_offsets: bool, watch: Watch = unwatched
) -> dict[str, Rows]:
    """Every split tokenised, in stored order: train permuted once, so that a block is already a random sample."""
    rows = {
        name: tokenise(examples, teacher.tokenizer, run.max_length, offsets=keep_offsets, split=name, watch=watch)
        for name, examples in dataset.splits.items()
    }
    check_length(teacher.model, teacher.name, max(int(split.n_tokens.max()) for split in rows.values()))
    order = np.random.default_rng(run.seed).permutation(len(rows["train"]))
    return {**rows, "train": rows["train"].take(order)}


def make_plans(
    keeps: Sequence[Keep],
    strategies: Sequence[Strategy],
    run: Pass,
    dataset: Dataset,
    teacher: Teacher,
    rows: Mapping[str, Rows],
) -> dict[str, Plan]:
    """One plan per store, by the store's folder. Several student depths get the depth in front: "s3-d1-l9-w0.1"."""
    plans: dict[str, Plan] = {}
    for strategy in dict.fromkeys(strategies):
        for keep in dict.fromkeys(keeps):
            name = keep.name if len(set(strategies)) == 1 else f"s{strategy.student_layers}-{keep.name}"
            plans[name] = _plan(keep, strategy, run, dataset, teacher, rows)
    return plans


def _plan(keep: Keep, strategy: Strategy, run: Pass, dataset: Dataset, teacher: Teacher, rows: Mapping[str, Rows]) -> Plan:
    top = default_top_layer(teacher.layers) if strategy.top_layer is None else strategy.top_layer
    if not 1 <= top <= teacher.layers:
        raise OptionError(f"--top-layer {top}: the teacher has layers 1 to {teacher.layers}")
    separators = _separators(teacher)
    label = rows["train"].label
    return make_plan(
        keep,
        replace(strategy, top_layer=top),
        run,
        splits={
            name: Split(len(split), len(split.input_ids), int(split.n_tokens.max()), split.sha256())
            for name, split in rows.items()
        },
        most_admitted=int(admitted_tokens(rows["train"], [] if strategy.ranks_separators else separators).max()),
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
            "separators": separators,
        },
        task=dataset.task.as_json(),
        labels=None if label is None else str(label.dtype),
        text=_kept_text(rows),
    )


def _kept_text(rows: Mapping[str, Rows]) -> KeptText | None:
    texts = {name: split.text for name, split in rows.items() if split.text is not None}
    if not texts:
        return None
    most = {name: max(1, int(np.diff(text.bounds).max())) for name, text in texts.items()}
    return KeptText(texts["train"].n_bytes.shape[1], most)


def most_bytes(plan: Plan, rows: Mapping[str, Rows]) -> dict[str, int]:
    """Bytes before compression of the rows' own tokens, by part: hidden states, and everything else."""
    separators = [] if plan.strategy.ranks_separators else plan.tokenizer["separators"]
    available = admitted_tokens(rows["train"], separators).tolist()
    kept = sum(min(resolve(plan.keep.length, count), count) for count in available) * len(plan.pairs)
    values = plan.arrays["train/hidden/values"]
    vector = stored_width(plan.width, plan.strategy.values) * np.dtype(values.dtype).itemsize
    vector += plan.arrays["train/hidden/mask"].shape[-1] + 2 + (2 if "train/hidden/scale" in plan.arrays else 0)
    inputs = sum(5 * len(split.input_ids) + len(split) * (20 + 4 * len(plan.teacher["labels"])) for split in rows.values())
    inputs += sum(
        split.text.offsets.nbytes + split.text.utf8.nbytes + split.text.n_bytes.nbytes for split in rows.values() if split.text
    )
    return {"hidden": kept * vector, "inputs": inputs}


def admitted_tokens(rows: Rows, separators: Sequence[int]) -> np.ndarray:
    """Tokens of each row [N] that a rank may choose among."""
    admitted = ~np.isin(rows.input_ids, separators)
    return np.add.reduceat(admitted, rows.offsets[:-1], dtype=np.int64)


def _separators(teacher: Teacher) -> list[int]:
    """Every separator id: BERT's [SEP]; RoBERTa's </s> is also its end of text."""
    tokenizer = teacher.tokenizer
    return sorted({token for token in (tokenizer.sep_token_id, tokenizer.eos_token_id) if token is not None})
