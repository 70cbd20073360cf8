"""Jobs of stage one: rows through the teacher, the features that each plan keeps, whole units committed."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch

from hskstore import __version__
from hskstore.errors import ModelError
from hskstore.rows import Rows
from hskstore.select import gather_tokens, magnitude_mask, pack, random_scores, round_values, token_rank
from hskstore.store.commit import Receipt, commit_unit, examine
from hskstore.store.encode import encode_unit
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.schema import BLOCK_ROWS
from hskstore.store.shard import unit_fingerprints
from hskstore.store.values import static_mask
from hskstore.teacher import Features, Teacher
from hskstore.watch import Watch, unwatched

MOST_PENDING_UNITS = 2
"""Units that may wait for the writer thread: more would only fill memory."""


@dataclass(frozen=True)
class PlannedStore:
    """A store about to be written, or there already: `missing` are its units to come, `digest` that of a sealed one.

    `most_bytes` is before compression, of the tokens that are really kept.
    """

    plan: Plan
    objects: Objects
    most_bytes: dict[str, int]
    missing: frozenset[tuple[str, int]]
    digest: str | None

    @classmethod
    def examine(cls, plan: Plan, root: str, most_bytes: dict[str, int]) -> "PlannedStore":
        """Look at what stands at `root`; nothing is written. Raises PlanError where it is another plan's."""
        objects = Objects(root)
        standing = examine(objects, plan)
        return cls(plan, objects, most_bytes, frozenset(plan.units()) - standing.finished, standing.digest)


@dataclass(frozen=True)
class Job:
    """Consecutive stored rows of one split, whole units of every store."""

    split: str
    start: int
    stop: int


def make_jobs(stores: Sequence[PlannedStore]) -> Iterator[Job]:
    """Runs of rows that are whole units of every store."""
    for split, first in stores[0].plan.splits.items():
        size = max(BLOCK_ROWS, *(store.plan.splits[split].unit_rows for store in stores))
        for start in range(0, first.rows, size):
            yield Job(split, start, min(start + size, first.rows))


def rows_to_run(stores: Sequence[PlannedStore]) -> int:
    """Rows that the teacher has still to see: those of every block with a unit that some store misses."""
    total = 0
    for split, first in stores[0].plan.splits.items():
        for start in range(0, first.rows, BLOCK_ROWS):
            block = np.arange(start, min(start + BLOCK_ROWS, first.rows))
            total += len(block) if _wanted(stores, split, block) else 0
    return total


class UnitWorker:
    """Runs the teacher over jobs and commits whole units, one receipt per store and unit.

    A writer thread encodes, hashes and puts while the teacher runs on. Closing waits for it, so that a failed run keeps
    every unit that was finished.
    """

    def __init__(
        self,
        stores: Sequence[PlannedStore],
        rows: Mapping[str, Rows],
        teacher: Teacher,
        watch: Watch = unwatched,
    ) -> None:
        self._stores = stores
        self._rows = rows
        self._teacher = teacher
        self._watch = watch
        self._rows_done = 0
        self._rows_to_run = rows_to_run(stores)
        self._attempt = uuid.uuid4().hex
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsk-writer")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "UnitWorker":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.shutdown(wait=True)
        if kind is None:
            self._await(0)

    def run(self, job: Job) -> None:
        began = time.monotonic()
        units: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        for start in range(job.start, job.stop, BLOCK_ROWS):
            block = np.arange(start, min(start + BLOCK_ROWS, job.stop))
            wanted = _wanted(self._stores, job.split, block)
            if not wanted:
                continue
            for batch in length_batches(self._rows[job.split].n_tokens, block, self._stores[0].plan.run.batch_tokens):
                self._run_batch(job.split, batch, wanted, units)
            for index, unit in wanted:
                shard = self._stores[index].plan.splits[job.split].unit_rows
                if min((unit + 1) * shard, job.stop) <= block[-1] + 1:
                    self._write(index, job.split, unit, units.pop((index, unit)), time.monotonic() - began)

    def _run_batch(
        self,
        split: str,
        batch: np.ndarray,
        wanted: Sequence[tuple[int, int]],
        units: dict[tuple[int, int], dict[str, np.ndarray]],
    ) -> None:
        rows = self._rows[split].take(batch)
        tensors = batch_tensors(rows, self._stores[0].plan.tokenizer["pad_token_id"])
        indexes = sorted({index for index, _ in wanted})
        strategy = self._stores[0].plan.strategy
        ranked = split == "train" and strategy.rank.startswith("attention")
        layers = {pair.rank for index in indexes for pair in self._stores[index].plan.pairs} if ranked else set()
        features = self._teacher.forward(*tensors, rank_layers=frozenset(layers), score=strategy.score)
        _check_logits(features.logits, split, rows.row_id)
        for index in indexes:
            plan = self._stores[index].plan
            columns = {f"{split}/{name}": column for name, column in _input_columns(rows, tensors, features).items()}
            if split == "train":
                columns |= hidden_columns(plan, features, tensors[0], tensors[2], rows.row_id)
            for unit in sorted({unit for owner, unit in wanted if owner == index}):
                shard = plan.splits[split].unit_rows
                inside = batch // shard == unit
                buffer = units.get((index, unit))
                if buffer is None:
                    buffer = units[index, unit] = _empty_unit(plan, split, unit)
                for path, column in columns.items():
                    _place(buffer[path], batch[inside] - unit * shard, column[inside])
        self._rows_done += len(batch)
        self._watch("teacher", self._rows_done, self._rows_to_run)

    def _write(self, index: int, split: str, unit: int, columns: dict[str, np.ndarray], seconds: float) -> None:
        self._await(MOST_PENDING_UNITS)
        self._pending.append(self._writer.submit(self._commit, index, split, unit, columns, seconds))

    def _await(self, most: int) -> None:
        """Wait until at most `most` units are pending; raises what the writer raised."""
        while len(self._pending) > most or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()

    def _commit(self, index: int, split: str, unit: int, columns: dict[str, np.ndarray], seconds: float) -> None:
        store = self._stores[index]
        blobs = encode_unit(store.plan, split, unit, columns)
        made = {
            "teacher": self._teacher.name,
            "device": _device_name(self._teacher.device),
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "versions": {"hskstore": __version__} | {name: version(name) for name in ("torch", "transformers", "zarr")},
        }
        entries = unit_fingerprints(store.plan.arrays_of(split), unit, blobs)
        rows = len(next(iter(columns.values())))
        commit_unit(store.objects, Receipt(split, unit, rows, self._attempt, entries, made), blobs)


def length_batches(n_tokens: np.ndarray, block: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Cut a block of stored rows into batches of similar length: rows x longest is at most `batch_tokens`, or one row."""
    ordered = block[np.argsort(n_tokens[block], kind="stable")]
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * int(n_tokens[ordered[end]]) > batch_tokens:
            yield ordered[start:end]
            start = end


def hidden_columns(
    plan: Plan, features: Features, input_ids: torch.Tensor, attention_mask: torch.Tensor, row_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """The `train/hidden` arrays of one batch, [batch, layer, ...], as they are stored.

    Raises ModelError where a kept vector is not finite, naming the row and the layer.
    """
    strategy = plan.strategy
    device = features.logits.device
    admitted = attention_mask.to(device)
    if not strategy.ranks_separators:
        separators = torch.tensor(plan.tokenizer["separators"], device=device)
        admitted = admitted & ~torch.isin(input_ids.to(device), separators)
    layers: list[dict[str, np.ndarray]] = []
    for pair in plan.pairs:
        if strategy.rank == "random":
            n_tokens = attention_mask.sum(dim=1).cpu().numpy()
            longest = attention_mask.shape[1]
            score = torch.from_numpy(random_scores(row_ids, n_tokens, longest=longest, seed=plan.run.seed)).to(device)
        elif strategy.rank == "left":
            score = -torch.arange(attention_mask.shape[1], device=device, dtype=torch.float32).expand(attention_mask.shape)
        else:
            score = features.token_score[pair.rank]
        positions, n_kept = token_rank(score, admitted, slots=plan.length, length=plan.keep.length)
        vectors = gather_tokens(round_values(features.hidden[pair.teacher], strategy.values), positions)
        _check_finite(vectors, row_ids, pair.teacher, strategy.values)
        if strategy.mask == "magnitude" or plan.width == plan.hidden_size:
            kept = magnitude_mask(vectors, plan.width)
        else:
            static = static_mask(strategy.mask, hidden_size=plan.hidden_size, kept=plan.width, seed=plan.run.seed)
            kept = torch.from_numpy(static).to(device).expand(vectors.shape)
        packed = pack(vectors, kept, width=plan.width, encoding=strategy.values)
        empty = positions < 0
        column = {
            "values": packed.values,
            "mask": packed.mask.masked_fill(empty[..., None], 0),
            "token": positions.to(torch.int16),
            "n_kept": n_kept.to(torch.int16),
        }
        if packed.scale is not None:
            column["scale"] = packed.scale.masked_fill(empty, 0)
        layers.append({name: tensor.cpu().numpy() for name, tensor in column.items()})
    return {f"train/hidden/{name}": np.stack([layer[name] for layer in layers], axis=1) for name in layers[0]}


def _check_logits(logits: torch.Tensor, split: str, row_ids: np.ndarray) -> None:
    bad = ~logits.isfinite().all(dim=1).cpu().numpy()
    if bad.any():
        raise ModelError(
            f"the teacher's logits for {split} row {int(row_ids[bad][0])} are not finite: its weights or --precision are at"
            " fault; try --precision fp32"
        )


def _check_finite(vectors: torch.Tensor, row_ids: np.ndarray, layer: int, values: str) -> None:
    finite = vectors.isfinite().flatten(1).all(dim=1).cpu().numpy()
    if not finite.all():
        row = int(row_ids[~finite][0])
        advice = "a model in this precision overflows: try --precision fp32"
        if values != "f32":
            advice += ", and --values f32 if its states really exceed 65504"
        raise ModelError(f"the teacher's hidden states of train row {row}, layer {layer}, are not finite: {advice}")


def _wanted(stores: Sequence[PlannedStore], split: str, block: np.ndarray) -> list[tuple[int, int]]:
    """(store index, unit) of every missing unit that has rows in the block."""
    wanted: list[tuple[int, int]] = []
    for index, store in enumerate(stores):
        shard = store.plan.splits[split].unit_rows
        units = range(int(block[0]) // shard, int(block[-1]) // shard + 1)
        wanted += [(index, unit) for unit in units if (split, unit) in store.missing]
    return wanted


def batch_tensors(rows: Rows, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, token_type_ids and attention_mask [batch, token], padded to the longest row."""
    ids, types = rows.padded(pad_token_id)
    real = np.arange(ids.shape[1]) < rows.n_tokens[:, None]
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(types.astype(np.int64)), torch.from_numpy(real)


def _input_columns(
    rows: Rows, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], features: Features
) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {
        "input_ids": tensors[0].numpy().astype(np.int32),
        "token_type_ids": tensors[1].numpy().astype(np.uint8),
        "n_tokens": rows.n_tokens,
        "row_id": rows.row_id,
        "logits": features.logits.cpu().numpy(),
    }
    if rows.label is not None:
        columns["label"] = rows.label
    if rows.text is not None:
        columns["n_bytes"] = rows.text.n_bytes
        columns["text"], columns["offsets"] = rows.text.padded(rows.n_tokens)
    return columns


def _empty_unit(plan: Plan, split: str, unit: int) -> dict[str, np.ndarray]:
    """Arrays of one unit, padded as rows that are shorter than the array stay."""
    pads = {f"{split}/input_ids": plan.tokenizer["pad_token_id"], f"{split}/offsets": -1}
    return {
        path: np.full((len(spec.rows(unit)), *spec.shape[1:]), pads.get(path, 0), dtype=spec.dtype)
        for path, spec in plan.arrays_of(split).items()
    }


def _place(buffer: np.ndarray, at: np.ndarray, column: np.ndarray) -> None:
    """Lay rows of a batch, which may be shorter along the axis of tokens (or bytes), into the unit's array."""
    if column.ndim > 1:
        buffer[at, : column.shape[1]] = column
    else:
        buffer[at] = column


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
