"""Batches of rows through the teacher, and what each plan keeps of them: chosen and packed on the teacher's device, one copy of
it brought to the host while the next batch runs.

On a CPU as many batches run side by side as there are cores, one thread each: faster than one batch on all cores, and the last
bits of a state do not follow the number of cores. On a GPU one batch is prepared while another is queued.
"""

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32, Shaped, UInt8
from torch import Tensor

from hskstore.config import Score
from hskstore.errors import ModelError
from hskstore.features import KINDS
from hskstore.features.codes import Codebooks
from hskstore.interrupts import Interrupts, interrupts
from hskstore.models.observe import NOTHING, Seen, Sight
from hskstore.models.run import Inputs
from hskstore.stage_one.teacher import Teacher
from hskstore.store.codebooks import Words
from hskstore.store.features import Said
from hskstore.store.layout import Columns
from hskstore.store.plan import Plan
from hskstore.store.vectors import ENCODINGS
from hskstore.text.rows import Rows
from hskstore.text.tokenizers import pad_id

GPU_STREAMS = 2
"""Host threads that queue batches on a GPU: while one pads and copies, the other launches kernels."""

PROBE_ROWS = 8


class TeacherPass:
    """Runs batches for plans of one pass, in any number of threads: their batches queue up.

    In a `with` block of the main thread signals are held back, and delivered between two batches; elsewhere it is to be closed.
    """

    def __init__(self, plans: Sequence[Plan], teacher: Teacher, words: Sequence[Words] = ()) -> None:
        """`words` are, for each plan, those of its features whose vectors are codes; none where no plan has such."""
        self._plans = plans
        self._teacher = teacher
        self._books = [
            {name: Codebooks.of(own, teacher.device) for name, own in each.items()} for each in words or [{}] * len(plans)
        ]
        cpu = teacher.device.type == "cpu"
        self._threads = torch.get_num_threads()
        self.streams = self._threads if cpu else GPU_STREAMS
        self._pool = ThreadPoolExecutor(self.streams, "hsk-teacher", initializer=self._begin_thread)
        self._turn = Lock()
        self._open = ExitStack()
        self._held = Interrupts()

    def __enter__(self) -> "TeacherPass":
        self._held = self._open.enter_context(interrupts())
        self._open.callback(self.close)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)

    def _begin_thread(self) -> None:
        if self._teacher.device.type == "cpu":
            torch.set_num_threads(1)
        # Entered here and never left, so that a weight is cast once and not in every batch.
        self._teacher.autocast().__enter__()

    def run(
        self, split: str, batches: Iterable[Rows], plans: Collection[int] | None = None
    ) -> Generator[list[Columns], None, None]:
        """What each plan keeps of each batch, in the order of the batches: arrays as wide as the longest of its rows. `plans` are
        the indexes of those asked for: all.

        Raises ModelError where the teacher gives numbers that are not finite, naming the row.
        """
        wanted = range(len(self._plans)) if plans is None else sorted(plans)
        under_way: deque[Future[_Landing]] = deque()
        try:
            with self._turn:
                for rows in batches:
                    self._held.check()
                    under_way.append(self._pool.submit(self._launch, split, rows, wanted))
                    if len(under_way) > self.streams:
                        yield under_way.popleft().result().columns()
            while under_way:
                yield under_way.popleft().result().columns()
        finally:
            for future in under_way:
                future.cancel()

    def _launch(self, split: str, rows: Rows, wanted: Sequence[int]) -> "_Landing":
        first = self._plans[0]
        ids, types, mask = batch = padded(rows, first.tokenizer["pad_token_id"])
        device = self._teacher.device
        on_device: Inputs = (_to(ids, device), _to(types, device), _to(mask, device))
        plans = {index: self._plans[index] for index in wanted}
        knowing = plans if split == "train" else {}
        seen = self._teacher.forward(*on_device, sight_of(knowing.values()))
        kept: dict[_Key, Tensor] = {(-1, "", "logits"): seen.logits}
        with torch.autocast(device.type, enabled=False):
            for index, plan in knowing.items():
                kept |= {
                    (index, *name): tensor for name, tensor in captured(plan, seen, on_device, rows, self._books[index]).items()
                }
        return _Landing(split, rows, batch, plans, _Copy(kept))


_Key = tuple[int, str, str]
"""Which plan (-1: all), feature and array a tensor is of."""


class _Copy:
    """Tensors on their way to the host: joined to one run of bytes, one copy, no waiting."""

    def __init__(self, tensors: dict[_Key, Tensor]) -> None:
        # The widest first, so that every array begins at a multiple of its own item.
        self._layout = sorted(tensors.items(), key=lambda pair: -pair[1].element_size())
        self._arrived: torch.cuda.Event | None = None
        if self._layout[0][1].device.type == "cpu":
            self._bytes = None
            return
        joined = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in self._layout])
        self._bytes = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=True)
        self._bytes.copy_(joined, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def arrays(self) -> dict[_Key, np.ndarray]:
        """The tensors as arrays of the same shapes, once they are there."""
        if self._bytes is None or self._arrived is None:
            return {name: tensor.numpy() for name, tensor in self._layout}
        self._arrived.synchronize()
        there = self._bytes.clone()  # whoever holds a row of it holds no pinned memory
        ends = accumulate(tensor.nbytes for _, tensor in self._layout)
        return {
            name: there[end - tensor.nbytes : end].view(tensor.dtype).view(tensor.shape).numpy()
            for (name, tensor), end in zip(self._layout, ends, strict=True)
        }


@dataclass(frozen=True)
class _Landing:
    """A batch whose kernels are queued."""

    split: str
    rows: Rows
    batch: Inputs
    plans: Mapping[int, Plan]
    copy: _Copy

    def columns(self) -> list[Columns]:
        arrays = self.copy.arrays()
        logits = arrays.pop((-1, "", "logits"))
        _check_logits(logits, self.split, self.rows.row_id)
        ids, types = self.batch[0].numpy().astype(np.int32), self.batch[1].numpy().astype(np.uint8)
        own = input_columns(self.rows, ids, types) | {"logits": logits}
        inputs = {f"{self.split}/{name}": column for name, column in own.items()}
        found: dict[int, dict[str, np.ndarray]] = {index: dict(inputs) for index in self.plans}
        for (index, name, array), column in arrays.items():
            if array == "finite":
                _check_finite(column, self.rows.row_id, self.plans[index].said[name])
            else:
                found[index][f"{self.split}/{name}/{array}"] = column
        return list(found.values())


def captured(
    plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Mapping[str, Codebooks]
) -> dict[tuple[str, str], Shaped[Tensor, "batch ..."]]:
    """All that a plan keeps of one batch, by feature and array, packed on the teacher's device; `batch` is `rows` there, and
    `books` are the codebooks of those features whose vectors are codes."""
    return {
        (name, array): tensor
        for name, feature in plan.features.items()
        for array, tensor in KINDS[name].capture(feature, plan, seen, batch, rows, books.get(name)).items()
    }


def sight_of(plans: Iterable[Plan]) -> Sight:
    """What must be seen of the teacher for all that some plans of one pass keep."""
    sights = [KINDS[name].sight(feature) for plan in plans for name, feature in plan.features.items()]
    return reduce(Sight.__or__, sights, NOTHING)


def block_batches(
    n_tokens: Int[np.ndarray, " row"], block_rows: int, batch_tokens: int, *, start: int = 0
) -> Iterator[tuple[range, list[Int[np.ndarray, " _batch"]]]]:
    """The runs of stored rows that are sorted by length and batched together, each with its batches.

    `n_tokens` are those of the stored rows from `start` on, where a block begins; blocks and batches are positions among all.
    """
    for first in range(0, len(n_tokens), block_rows):
        inside = n_tokens[first : first + block_rows]
        block = range(start + first, start + first + len(inside))
        yield block, list(length_batches(inside, np.arange(block.start, block.stop), batch_tokens))


def length_batches(
    n_tokens: Int[np.ndarray, " row"], block: Int[np.ndarray, " row"], batch_tokens: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Cut a block of stored rows into batches of similar length: rows x longest is at most `batch_tokens`, or one row.

    `n_tokens` [len(block)] are the tokens of the block's rows.
    """
    order = np.argsort(n_tokens, kind="stable")
    ordered, lengths = block[order], n_tokens[order].tolist()
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * lengths[end] > batch_tokens:
            yield ordered[start:end]
            start = end


def padded(rows: Rows, pad_token_id: int) -> Inputs:
    """The rows as one batch, padded to the longest."""
    ids, types = rows.padded(pad_token_id)
    real = np.arange(ids.shape[1]) < rows.n_tokens[:, None]
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(types.astype(np.int64)), torch.from_numpy(real)


def probe(teacher: Teacher, sight: Sight, rows: Rows) -> None:
    """One small padded batch through the teacher in every way, before anything is stored; see `Teacher.probe`."""
    batch = padded(rows.take(np.arange(min(PROBE_ROWS, len(rows)))), pad_id(teacher.tokenizer))
    score: Score = "raw" if sight.raw_cls_row and not sight.cls_row else "probability"
    teacher.probe(*batch, ranks=bool(sight.rows), score=score, first=sight.first, heads=bool(sight.qkv or sight.attended))


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there, without waiting for it."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _check_logits(logits: np.ndarray, split: str, row_ids: np.ndarray) -> None:
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise ModelError(
            f"the teacher's logits for {split} row {int(row_ids[bad][0])} are not finite: its weights or --precision are at"
            " fault; try --precision fp32"
        )


def _check_finite(finite: np.ndarray, row_ids: np.ndarray, feature: Said) -> None:
    """`finite` [batch, layer]. Raises ModelError where a kept vector is not, naming the row and the layer."""
    if finite.all():
        return
    row, layer = np.argwhere(~finite)[0].tolist()
    advice = "a model in this precision overflows: try --precision fp32"
    if feature.encoding is not ENCODINGS["f32"]:
        advice += ", and --values f32 if its states really exceed 65504"
    raise ModelError(
        f"the teacher's hidden states of train row {int(row_ids[row])}, layer {feature.layers[layer]}, are not finite: {advice}"
    )


def input_columns(
    rows: Rows, input_ids: Int32[np.ndarray, "row token"], token_type_ids: UInt8[np.ndarray, "row token"]
) -> dict[str, Shaped[np.ndarray, "_row ..."]]:
    """Of a split's arrays those that are known before the teacher runs, by name; ids and types are `Rows.padded`'s."""
    columns: dict[str, np.ndarray] = {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "n_tokens": rows.n_tokens,
        "row_id": rows.row_id,
    }
    if rows.label is not None:
        columns["label"] = rows.label
    if rows.text is not None:
        columns["n_bytes"] = rows.text.n_bytes
        columns["text"], columns["offsets"] = rows.text.padded(rows.n_tokens)
    if rows.spans is not None:
        columns["spans/tokens"], columns["spans/n_spans"] = rows.spans.padded(), rows.spans.n_spans
    return columns
