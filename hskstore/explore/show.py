"""What a store holds, in numbers and words: for `hsk show`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from hskstore.config import units_of_hsk
from hskstore.errors import StoreError
from hskstore.store import Plan, Store, open_store
from hskstore.store.commit import MANIFEST, Receipt, receipts
from hskstore.store.features import Spans
from hskstore.store.hidden import planned_units
from hskstore.store.layout import Unit
from hskstore.store.places import place_of
from hskstore.store.reader import read_plan
from hskstore.text.tokenizers import tokenizer_from_files

RECENT = timedelta(minutes=10)
SEPARATOR_ROWS = 8192
"""At least, or all; rows lie in a random order."""


@dataclass(frozen=True)
class FeatureDescription:
    """The teacher layers of a feature, as they lie in its arrays, and how its vectors are stored. Of codes `left_over` is the
    share of the variance that they leave over, by layer, of attention the largest of its parts; of numbers None."""

    layers: list[int]
    values: str
    left_over: list[float] | None


@dataclass(frozen=True)
class SpansDescription:
    """The spans of the train rows: how many a row has on average and at most, the share of rows that have none, and the sha256 of
    the chunker that found the phrases."""

    per_row: float
    most: int
    without: float
    sha256: str


@dataclass(frozen=True)
class StoreDescription:
    """A sealed store. `array_bytes` are on disk. Of `hidden`, None where it is not kept: `units_of_hsk` is A^HSK as planned for a
    row, `kept_units` as measured on average, `full_units` that of all layers and tokens of the average row (section 5.1 of the
    paper). Of a store that holds attention, `separator_shares` are the shares of rows whose most attended token is a separator,
    by teacher layer (Figures 6 and 14), of SEPARATOR_ROWS rows. `spans` is None where there are none."""

    root: str
    digest: str
    keep: str | None
    plan: dict[str, Any]
    features: dict[str, FeatureDescription]
    splits: dict[str, dict[str, int]]
    array_bytes: dict[str, int]
    arrays: dict[str, str]
    total_bytes: int
    units_of_hsk: float | None
    kept_units: float | None
    full_units: float | None
    separator_shares: dict[int, float] | None
    spans: SpansDescription | None
    made: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """An unsealed store: units with receipts of all. `rows_per_second` is that of the last ten minutes before the newest receipt,
    `workers` how many had a part in these, `newest` when it was written (UTC); None of a store without receipts."""

    root: str
    keep: str | None
    units_done: int
    units: int
    rows_done: int
    rows: int
    rows_per_second: float | None
    workers: int
    newest: str | None


@dataclass(frozen=True)
class RankedLayer:
    """A teacher layer's kept positions of one row, best first, and the student layer they teach."""

    student_layer: int
    teacher_layer: int
    kept: list[int]


@dataclass(frozen=True)
class RankedRow:
    """One stored row: its tokens, and for each kept layer its ranks; `row_id` is its number in the split as it was read."""

    split: str
    row: int
    row_id: int
    tokens: list[str]
    label: float | None
    logits: list[float]
    ranks: list[RankedLayer]


def is_sealed(root: str) -> bool:
    """Whether a store is sealed. Raises StoreError where there is no store at all."""
    place = place_of(root)
    read_plan(place)
    return place.get(MANIFEST) is not None


def describe_progress(root: str) -> Progress:
    """How far the extraction of an unsealed store has come, from its receipts alone."""
    place = place_of(root)
    plan = read_plan(place)
    done = receipts(place)
    finished = sorted(
        ((time, receipt) for receipt in done.values() if (time := _finished(receipt)) is not None), key=lambda pair: pair[0]
    )
    recent = [(time, receipt) for time, receipt in finished if finished[-1][0] - time <= RECENT]
    elapsed = (recent[-1][0] - recent[0][0]).total_seconds() if recent else 0.0
    # Of the first only the end is known: its rows were not done in this time.
    rows = sum(receipt.rows for _, receipt in recent[1:])
    return Progress(
        root=root,
        keep=_keep(plan),
        units_done=len(done),
        units=plan.n_units,
        rows_done=sum(receipt.rows for receipt in done.values()),
        rows=sum(split.rows for split in plan.splits.values()),
        rows_per_second=round(rows / elapsed, 1) if elapsed else None,
        workers=len({receipt.attempt for _, receipt in recent}),
        newest=finished[-1][0].isoformat(timespec="seconds") if finished else None,
    )


def array_bytes(store: Store) -> dict[str, int]:
    """Of each array on disk, by path."""
    sizes = store.sizes()
    return {path: sum(size for key, size in sizes.items() if key.startswith(f"{path}/c/")) for path in store.plan.arrays}


def describe(root: str) -> StoreDescription:
    """A sealed store's content, sizes and provenance. Raises StoreError."""
    store = open_store(root)
    plan = store.plan
    sizes = store.sizes()
    train, hidden, units = plan.splits["train"], plan.hidden, _Units(None, None, None)
    if hidden is not None:
        kept = sum(float(store.read("train/hidden/n_kept", unit).sum()) for unit in range(train.units)) / train.rows
        kept_units = units_of_hsk(1, kept, hidden.width / hidden.hidden_size)
        full = units_of_hsk(hidden.strategy.student_layers + 1, train.tokens / train.rows, 1)
        units = _Units(round(planned_units(hidden, kept_units), 4), round(kept_units, 4), round(full, 4))
    document = plan.as_json()
    return StoreDescription(
        root=root,
        digest=store.digest,
        keep=_keep(plan),
        plan={**document.get("strategy", {}), **document["pass"], "task": _plain(plan.task["name"])},
        features={name: _feature(store, name) for name in plan.said},
        splits={name: {"rows": split.rows, "tokens": split.tokens, "units": split.units} for name, split in plan.splits.items()},
        array_bytes=array_bytes(store),
        arrays={path: f"{'x'.join(map(str, spec.shape))} {spec.dtype}" for path, spec in plan.arrays.items()},
        total_bytes=sum(sizes.values()),
        units_of_hsk=units.planned,
        kept_units=units.kept,
        full_units=units.full,
        separator_shares=_separator_shares(store) if "cls_row" in plan.features else None,
        spans=_spans(store),
        made=_provenance(plan, receipts(store.place)),
    )


def _feature(store: Store, name: str) -> FeatureDescription:
    feature, left_over = store.plan.said[name], store.left_over(name)
    shares = None if left_over is None else [round(float(own.max()), 4) for own in left_over]
    return FeatureDescription(list(feature.layers), feature.values, shares)


def ranked_row(root: str, row: int, split: str = "train") -> RankedRow:
    """One stored row with its tokens and ranks. Raises StoreError where there is no such row."""
    store = open_store(root)
    found = store.row(split, row)
    tokenizer = tokenizer_from_files(store.tokenizer_files())
    ids = found["input_ids"][: int(found["n_tokens"])].tolist()
    tokens: list[Any] = tokenizer.convert_ids_to_tokens(ids) if min(ids, default=0) >= 0 else [None]
    ranks = [
        RankedLayer(pair.student, pair.teacher, token[:n_kept].tolist())
        for pair, token, n_kept in zip(
            () if store.plan.hidden is None else store.plan.hidden.pairs,
            found.get("hidden/token", ()),
            found.get("hidden/n_kept", ()),
            strict=False,
        )
    ]
    if None in tokens or any(not 0 <= position < len(tokens) for rank in ranks for position in rank.kept):
        raise StoreError(
            f"{root}: row {row} of {split} has a token that its tokenizer does not know, or the rank of one that is not there:"
            " the store is damaged"
        )
    return RankedRow(
        split=split,
        row=row,
        row_id=int(found["row_id"]),
        tokens=[_plain(token) for token in tokens],
        label=float(found["label"]) if "label" in found else None,
        logits=[round(float(value), 4) for value in found["logits"]],
        ranks=ranks,
    )


class _Units(NamedTuple):
    planned: float | None
    kept: float | None
    full: float | None


def _spans(store: Store) -> SpansDescription | None:
    feature = store.plan.features.get(Spans.name)
    if not isinstance(feature, Spans):
        return None
    n_spans = store.read_all("train/spans/n_spans")
    return SpansDescription(
        round(float(n_spans.mean()), 2), int(n_spans.max()), round(float((n_spans == 0).mean()), 4), feature.sha256
    )


def _separator_shares(store: Store) -> dict[int, float]:
    plan = store.plan
    found = np.zeros(len(plan.features["cls_row"].layers))
    rows = 0
    for unit in range(plan.splits["train"].units):
        if rows >= SEPARATOR_ROWS:
            break
        ids, n_tokens = store.read("train/input_ids", unit), store.read("train/n_tokens", unit)
        probability = store.read("train/cls_row/probability", unit)
        beyond = np.arange(ids.shape[1]) >= n_tokens[:, None]
        most = np.where(beyond[:, None], -1.0, probability).argmax(axis=2)
        found += np.isin(np.take_along_axis(ids, most, axis=1), plan.tokenizer["separators"]).sum(axis=0)
        rows += len(ids)
    return {layer: round(float(count) / rows, 4) for layer, count in zip(plan.features["cls_row"].layers, found, strict=True)}


def _keep(plan: Plan) -> str | None:
    return None if plan.hidden is None else str(plan.hidden.keep)


def _provenance(plan: Plan, made: dict[Unit, Receipt]) -> dict[str, Any]:
    """Who made the units, by the receipts. The seal does not cover them: what is not as we write it is left out."""
    finished = {time: receipt.made for receipt in made.values() if (time := _finished(receipt)) is not None}
    known: dict[str, Any] = {"teacher_sha256": _plain(plan.teacher["sha256"])}
    if not finished:
        return known
    latest = finished[max(finished)]
    names = ("teacher", "device", "derived_from")
    told: dict[str, Any] = {name: _plain(latest[name]) for name in names if isinstance(latest.get(name), str)}
    if isinstance(latest.get("versions"), dict) and told.keys() & {"teacher", "derived_from"}:
        told["versions"] = {_plain(name): _plain(str(version)) for name, version in latest["versions"].items()}
    first, last = (time.isoformat(timespec="seconds") for time in (min(finished), max(finished)))
    return known | told | {"first_unit": first, "last_unit": last}


def _plain(text: str) -> str:
    """A stranger's text as a terminal can show it, whatever it says."""
    return text if text.isprintable() else ascii(text)


def _finished(receipt: Receipt) -> datetime | None:
    """When a unit was finished; None where its receipt does not tell, such as one that a copy had to write anew."""
    try:
        return datetime.fromisoformat(receipt.made["finished"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
