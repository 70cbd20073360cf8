"""Stage one: the teacher runs once over the data, and every configuration asked for gets its own sealed store."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hskstore.classifiers import choose_device, usual_length
from hskstore.config import DEFAULT_BATCH_TOKENS, Keep, Precision, Strategy
from hskstore.data import read_dataset
from hskstore.engines import run_inline
from hskstore.errors import OptionError
from hskstore.planning import fit_labels, make_plans, most_bytes, stored_rows
from hskstore.store.commit import begin, condemned_digest, seal
from hskstore.store.plan import Pass
from hskstore.store.schema import canonical_json
from hskstore.teacher import Teacher, load_teacher
from hskstore.tokenizers import tokenizer_files
from hskstore.watch import Watch, unwatched
from hskstore.worker import PlannedStore, UnitWorker, batch_tensors, make_jobs

PROBE_ROWS = 8


@dataclass(frozen=True)
class ExtractedStore:
    """A sealed store: where it lies, its digest, its bytes on disk, and the seconds since extract was called.

    `condemned` is the digest it had before some of it was condemned and re-made; None for any other store.
    """

    root: str
    digest: str
    condemned: str | None
    bytes: int
    seconds: float


def extract(
    teacher: str,
    data: str,
    *,
    out: str | Path,
    keeps: Sequence[Keep],
    strategies: Sequence[Strategy],
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    validation: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    device: str | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    keep_offsets: bool = False,
    on_plan: Callable[[list[PlannedStore]], None] | None = None,
    watch: Watch = unwatched,
) -> list[ExtractedStore]:
    """Run the teacher once over `data` and write one store per (strategy, keep) below `out`.

    `keep_offsets` keeps the text too, and each token's place in it, for students of another tokenizer.
    Goes on where an earlier run of the same plan stopped. `on_plan` is called before the teacher runs.
    Raises DataError, ModelError, OptionError, PlanError or StoreError.
    """
    began = time.monotonic()
    if len({replace(strategy, student_layers=1) for strategy in strategies}) > 1:
        raise OptionError("one pass has one strategy; only the student's layers may differ")
    loaded = load_teacher(teacher, device=choose_device(device), precision=precision)
    classes = loaded.label_names if len(loaded.label_names) > 1 else ()
    dataset = read_dataset(data, task=task, text=text, label=label, validation=validation, classes=classes)
    dataset = fit_labels(dataset, loaded)
    length = max_length or usual_length(loaded.model, loaded.tokenizer, dataset.task.max_length)
    run = Pass(seed, precision, length, batch_tokens)
    rows = stored_rows(dataset, loaded, run, keep_offsets=keep_offsets, watch=watch)
    plans = make_plans(keeps, strategies, run, dataset, loaded, rows)
    stores = [PlannedStore.examine(plan, f"{out}/{name}", most_bytes(plan, rows)) for name, plan in plans.items()]
    if on_plan is not None:
        on_plan(stores)
    if any(store.missing for store in stores):
        probe = np.arange(min(PROBE_ROWS, len(rows["train"])))
        loaded.probe(
            *batch_tensors(rows["train"].take(probe), loaded.tokenizer.pad_token_id),
            ranks=strategies[0].rank.startswith("attention"),
            score=strategies[0].score,
        )
    files = _files(loaded)
    for store in stores:
        if store.digest is None:
            begin(store.objects, store.plan, files)
    if any(store.missing for store in stores):
        run_inline(make_jobs(stores), partial(UnitWorker, stores, rows, loaded, watch))
    return [_sealed(store, began, watch) for store in stores]


def _sealed(store: PlannedStore, began: float, watch: Watch) -> ExtractedStore:
    before = condemned_digest(store.objects)
    return ExtractedStore(
        root=store.objects.root,
        digest=store.digest or seal(store.objects, store.plan, watch),
        condemned=before,
        bytes=sum(store.objects.sizes().values()),
        seconds=round(time.monotonic() - began, 3),
    )


def _files(teacher: Teacher) -> dict[str, bytes]:
    """What travels beside the arrays: the tokenizer's files, and the teacher's config and hash (never its weights)."""
    config = teacher.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"):
        config.pop(name, None)
    document = {"sha256": teacher.sha256, "config": json.loads(json.dumps(config, default=str))}
    files = {f"tokenizer/{name}": data for name, data in tokenizer_files(teacher.tokenizer).items()}
    return {**files, "teacher.json": canonical_json(document)}
