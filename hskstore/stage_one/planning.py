"""From a teacher and a data set to plans: what each store will hold, before the teacher runs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Int

from hskstore.config import DEFAULT_BATCH_TOKENS, LabelKind, Precision, Strategy, check_choice, check_count, check_seed
from hskstore.errors import OptionError
from hskstore.features import KINDS, TeacherShape
from hskstore.models.device import computes_in
from hskstore.models.observe import Sight
from hskstore.models.run import check_positions, check_tokens
from hskstore.models.token_types import chosen_types
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.facts import TeacherFacts, facts_of
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_one.teacher_pass import probe, sight_of
from hskstore.store.features import Spans
from hskstore.store.layout import KeptText, SplitRows
from hskstore.store.masks import is_admitted
from hskstore.store.plan import Pass, Plan, make_plan
from hskstore.store.schema import block_rows
from hskstore.text.chunker import load_chunker
from hskstore.text.dataset import fit_labels, read_dataset
from hskstore.text.rows import Rows
from hskstore.text.tally import TextFacts, TokenCounts, check_begins_with_special, warn_of_text
from hskstore.text.tasks import Task
from hskstore.text.tokenise import stored_rows
from hskstore.text.tokenizers import name_types
from hskstore.watch import Watch, unwatched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known before the teacher runs: the teacher, the rows as they will be stored, a plan per store by its folder.

    `text` is what became of each split's texts. `rows_by_admitted` is that of the train rows, as `count_admitted` makes it: the
    same for every plan of a pass.
    """

    teacher: Teacher
    facts: TeacherFacts
    rows: Mapping[str, Rows]
    text: Mapping[str, TextFacts]
    rows_by_admitted: Int[np.ndarray, " count"]
    plans: Mapping[str, Plan]


def prepare(
    teacher: str,
    data: str,
    folder: Path,
    asked: Asked,
    *,
    device: torch.device,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    validation: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    precision: Precision = "fp32",
    seed: int = 0,
    keep_offsets: bool = False,
    spans: str | None = None,
    watch: Watch = unwatched,
) -> Prepared:
    """Load the teacher, read and tokenise the data into `folder`, plan the stores: what `extract` does first.

    Raises DataError, ModelError or OptionError.
    """
    check_count("--max-length", max_length)
    check_count("--batch-tokens", batch_tokens)
    check_choice("--precision", precision, get_args(Precision))
    check_seed(seed)
    strategies = asked.strategies
    if len({replace(strategy, student_layers=1) for strategy in strategies}) > 1:
        raise OptionError("one pass has one strategy; only the student's layers may differ")
    if device.type == "cpu" and not computes_in(precision, device):
        log.warning("this processor has no %s of its own and emulates it slowly; fp32 will be faster", precision)
    chunker = None if spans is None else load_chunker(Path(spans))
    loaded = load_teacher(teacher, device=device, precision=precision)
    facts = facts_of(loaded)
    if chunker is None and (reading := asked.reading_spans(_shape(facts))):
        raise OptionError(f"--for {', '.join(reading)} reads spans: name with --spans a folder of hsk spans train")
    classes = facts.label_names if len(facts.label_names) > 1 else ()
    dataset = read_dataset(data, task=task, text=text, label=label, kind=kind, validation=validation, classes=classes)
    dataset = fit_labels(dataset, facts.label_names, teacher)
    length = max_length or min(dataset.task.max_length, facts.most_tokens)
    if chosen_types(loaded.model, loaded.tokenizer, teacher, dataset.task, dataset.splits["validation"], length):
        name_types(loaded.tokenizer, True)
        facts = facts_of(loaded)  # so that the tokenizer that is stored gives them too
    counts = {name: TokenCounts(loaded.tokenizer, len(split.text), length) for name, split in dataset.splits.items()}
    rows = stored_rows(
        dataset.splits,
        loaded.tokenizer,
        length,
        seed=seed,
        offsets=keep_offsets,
        folder=folder,
        watch=watch,
        counts=counts,
        chunker=chunker,
    )
    text_facts = {name: one.facts() for name, one in counts.items()}
    warn_of_text(text_facts)
    check_positions(facts.positions, teacher, max(split.longest for split in rows.values()))
    check_tokens(loaded.model, teacher, rows, loaded.tokenizer)
    pass_ = Pass(seed, precision, length, batch_tokens, block_rows(len(rows["train"])))
    rows_by_admitted = count_admitted(rows["train"], facts.tokenizer["separators"], strategies[0])
    if asked.rich:
        probe(loaded, Sight(cls_row=frozenset({1})), rows["train"])  # whether it shows raw scores is planned
    most_admitted = len(rows_by_admitted) - 1
    found = rows["train"].spans
    of_rows = None if chunker is None or found is None else Spans(max(1, found.most), chunker.sha256)
    plans = make_plans(
        asked,
        pass_,
        dataset.task,
        facts,
        rows,
        most_admitted=most_admitted,
        raw_scores=not loaded.eager,
        spans=of_rows,
    )
    _tell_ranking(teacher, facts, rows["train"].longest, plans)
    if needed := _need_cls(plans):
        check_begins_with_special(loaded.tokenizer, teacher, dataset.splits["train"].text, ", ".join(needed))
    return Prepared(loaded, facts, rows, text_facts, rows_by_admitted, plans)


def _need_cls(plans: Mapping[str, Plan]) -> list[str]:
    """The features that are ranked by the attention of [CLS], or are made of its row or its vectors."""
    sights = [(name, KINDS[name].sight(feature)) for plan in plans.values() for name, feature in plan.features.items()]
    return sorted({name for name, sight in sights if sight.first or sight.rows})


def _tell_ranking(teacher: str, facts: TeacherFacts, longest: int, plans: Mapping[str, Plan]) -> None:
    """Say so where tokens are ranked by other layers than the strategy names."""
    ranking = facts.ranking(longest)
    if ranking is not None and sight_of(plans.values()).rows:
        log.warning(
            "%s: in some layers [CLS] attends to the next %d tokens alone, and a row has %d: tokens are ranked by the nearest of"
            " the layers in which it attends to all, %s",
            teacher,
            min(window for window in facts.windows if window is not None),
            longest,
            ", ".join(map(str, ranking)),
        )


def make_plans(
    asked: Asked,
    pass_: Pass,
    task: Task,
    teacher: TeacherFacts,
    rows: Mapping[str, Rows],
    *,
    most_admitted: int,
    raw_scores: bool = True,
    spans: Spans | None = None,
) -> dict[str, Plan]:
    """One plan per store, by the store's folder; see `Asked.by_store`."""
    label = rows["train"].label
    plan_one = partial(
        make_plan,
        pass_=pass_,
        splits={name: SplitRows(len(own), len(own.input_ids), own.longest, own.sha256()) for name, own in rows.items()},
        teacher=teacher.planned,
        tokenizer=teacher.tokenizer,
        task=task.as_json(),
        labels=None if label is None else str(label.dtype),
        text=_kept_text(rows),
    )
    shape = _shape(teacher, ranking=teacher.ranking(rows["train"].longest))
    stores = asked.by_store(shape, most_admitted=most_admitted, raw_scores=raw_scores, spans=spans)
    return {name: plan_one(features) for name, features in stores.items()}


def _shape(teacher: TeacherFacts, ranking: tuple[int, ...] | None = None) -> TeacherShape:
    return TeacherShape(teacher.planned["layers"], teacher.planned["hidden_size"], ranking=ranking, heads=teacher.heads)


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
