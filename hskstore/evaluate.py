"""What a model is worth: its score with a standard error, its parameters, its bytes, its CPU latency."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hskstore.batch import Batch
from hskstore.classifiers import check_length, choose_device, label_names, load_classifier, model_inputs, usual_length
from hskstore.data import label_ids, read_dataset
from hskstore.errors import DataError, ModelError, OptionError, StoreError
from hskstore.loader import TrainingRows, rows_from_data, rows_from_store
from hskstore.rows import tokenise
from hskstore.store import Store, open_store
from hskstore.tasks import Task, compute_metrics
from hskstore.tokenizers import load_tokenizer, tokenizer_sha256
from hskstore.trainer import DevScore, Learner
from hskstore.watch import Watch, unwatched

EVALUATION_BATCH = 64
RESAMPLES = 200
LATENCY_EXAMPLES = 50


def predict(model: Any, rows: TrainingRows, *, stage: str = "score", watch: Watch = unwatched) -> np.ndarray:
    """Logits [N, classes] float32 in the rows' order; the model is put into eval mode."""
    model.eval()
    logits = np.zeros((len(rows), int(model.config.num_labels)), dtype=np.float32)
    done = 0
    with torch.inference_mode():
        for batch_rows in rows.in_length_order(EVALUATION_BATCH):
            logits[batch_rows] = model(**_inputs(model, rows.batch(batch_rows, hidden=False))).logits.float().cpu().numpy()
            done += len(batch_rows)
            watch(stage, done, len(rows))
    return logits


def _inputs(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    return model_inputs(model, batch.input_ids, batch.token_type_ids, batch.attention_mask)


def standard_errors(task: Task, logits: np.ndarray, label: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """One standard error of each metric over the choice of rows: the spread over bootstrap resamples (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    drawn = [compute_metrics(task, logits[rows], label[rows]) for rows in rng.integers(0, len(label), (RESAMPLES, len(label)))]
    return {metric: statistics.stdev(scores[metric] for scores in drawn) for metric in drawn[0]}


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(folder: str) -> int | None:
    """Bytes of a local model folder's weights; None for a model on the hub."""
    files = list(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
    return sum(file.stat().st_size for file in files) or None


def cpu_latency(model: Any, rows: TrainingRows, *, examples: int = LATENCY_EXAMPLES) -> float:
    """Median milliseconds of one example at its own length on the CPU, after a warm-up, with all threads torch uses."""
    model = model.to("cpu").eval()
    chosen = np.linspace(0, len(rows) - 1, min(examples, len(rows))).astype(int)
    batches: list[Batch] = [rows.batch(np.array([row]), hidden=False) for row in chosen]
    times: list[float] = []
    with torch.inference_mode():
        for batch in batches[:5] + batches:
            began = time.perf_counter()
            model(**_inputs(model, batch))
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[len(batches[:5]) :])


@dataclass(frozen=True)
class Scored:
    """A model's metrics on some rows, with one standard error each."""

    score: dict[str, float]
    standard_error: dict[str, float]
    rows: int


def score_rows(task: Task, logits: np.ndarray, label: np.ndarray) -> Scored:
    """Logits [N, classes] against gold labels [N]."""
    return Scored(compute_metrics(task, logits, label), standard_errors(task, logits, label), len(label))


def score_splits(task: Task, model: Any, splits: Mapping[str, TrainingRows], watch: Watch = unwatched) -> dict[str, Scored]:
    """Each split that has labels."""
    return {
        name: score_rows(task, predict(model, rows, stage=f"score {name}", watch=watch), rows.label)
        for name, rows in splits.items()
        if rows.label is not None
    }


def dev_score(task: Task, validation: TrainingRows, watch: Watch = unwatched) -> Callable[[Learner], DevScore] | None:
    """The dev score of a learner's student; None where the validation rows have no labels."""
    label = validation.label
    if label is None:
        return None

    def score(learner: Learner) -> DevScore:
        logits = predict(learner.student, validation, stage="dev score", watch=watch)
        return DevScore(task.metrics[0], compute_metrics(task, logits, label))

    return score


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
    model: str,
    source: str,
    *,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    validation: str | None = None,
    splits: Sequence[str] = ("validation",),
    max_length: int | None = None,
    latency: bool = True,
    watch: Watch = unwatched,
) -> Evaluation:
    """DevScore a model folder or hub name on splits of a data set, or of a store.

    Raises DataError, ModelError or StoreError.
    """
    classifier, trained = load_classifier(model)
    if not trained:
        raise ModelError(f"{model} has no trained classification head: there is nothing to score")
    names = label_names(classifier)
    if is_store(source):
        if task or text or label or validation or max_length:
            raise OptionError(
                f"{source} is a store and knows its task: leave out --task, --text, --label, --validation and --max-length"
            )
        known, rows = _stored_splits(model, source, splits)
    else:
        classes = names if len(names) > 1 else ()
        dataset = read_dataset(source, task=task, text=text, label=label, validation=validation, splits=splits, classes=classes)
        known, tokenizer = dataset.task, load_tokenizer(model)
        length = max_length or usual_length(classifier, tokenizer, known.max_length)
        rows = {
            name: rows_from_data(tokenise(examples, tokenizer, length, split=name, watch=watch), tokenizer.pad_token_id)
            for name, examples in dataset.splits.items()
        }
    if any(split.label is None for split in rows.values()):
        raise DataError(f"{source}: its rows have no labels to score against; pass --label COLUMN, or another --split")
    if len(names) != known.num_labels:
        raise ModelError(f"{model} has {len(names)} outputs; the task {known.name} needs {known.num_labels}")
    if known.kind == "classes":
        own_id = label_ids(known.labels, names)
        rows = {name: replace(split, label=None if split.label is None else own_id[split.label]) for name, split in rows.items()}
    check_length(classifier, model, max(int(split.n_tokens.max()) for split in rows.values()))
    classifier.to(choose_device(None))
    gold = {name: split.label for name, split in rows.items() if split.label is not None}
    logits = {name: predict(classifier, split, stage=f"score {name}", watch=watch) for name, split in rows.items()}
    together = score_rows(
        known, np.concatenate([logits[split] for split in splits]), np.concatenate([gold[split] for split in splits])
    )
    return Evaluation(
        score=together.score,
        standard_error=together.standard_error,
        rows=together.rows,
        by_split={name: score_rows(known, logits[name], gold[name]) for name in rows} if len(rows) > 1 else {splits[0]: together},
        parameters=parameters(classifier),
        bytes=weight_bytes(model),
        latency_ms=round(cpu_latency(classifier, rows[splits[0]]), 3) if latency else None,
    )


def _stored_splits(model: str, source: str, splits: Sequence[str]) -> tuple[Task, dict[str, TrainingRows]]:
    store = open_store(source)
    check_tokenizer(model, store)
    unknown = [split for split in splits if split not in store.plan.splits]
    if unknown:
        raise StoreError(f"{source} has the splits {', '.join(store.plan.splits)}, not {', '.join(unknown)}")
    return Task.from_json(store.plan.task), {split: rows_from_store(store, split) for split in splits}


def is_store(source: str) -> bool:
    """Whether a source names a store rather than a data set: a URL, or a folder with a plan."""
    return "://" in source or (Path(source) / "plan.json").exists()


def check_tokenizer(model: str, store: Store) -> None:
    """Raise ModelError where a model would read the store's token ids as other words."""
    if tokenizer_sha256(load_tokenizer(model)) != store.plan.tokenizer["sha256"]:
        raise ModelError(
            f"{model} has another tokenizer than the store's teacher: its token ids would mean other words."
            " Choose a model with the teacher's tokenizer, such as one made by hsk student slice"
        )
