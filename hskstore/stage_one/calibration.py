"""A few seconds of the real pass on this device: how fast it is, what memory it takes, and some rows of what it keeps."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int

from hskstore.config import check_positive
from hskstore.models.device import choose_device
from hskstore.stage_one.codebooks import stand_in_words
from hskstore.stage_one.sizes import LEAST_SAMPLED_ROWS, SampledRows
from hskstore.stage_one.teacher import Teacher
from hskstore.stage_one.teacher_pass import PROBE_ROWS, TeacherPass, block_batches, probe, sight_of
from hskstore.store.layout import Columns
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows

CALIBRATION_SECONDS = 20.0
SAMPLE_BYTES = 64 * 2**20
"""Of what the plans keep, before compression, that is encoded."""

OTHER_SIZES = (0.25, 4)
"""Of batches, as a share of --batch-tokens, that are tried too."""

SECONDS_OF_ANOTHER_SIZE = 0.2
"""As a share of the calibration's; the rest is for the size that was asked for."""

WORTH_TELLING = 1.15
"""So many times faster another size must be."""

LEAST_STEPS = 4
"""Measured steps below which nothing is said of their spread, and no size of batches is compared with another."""


@dataclass(frozen=True)
class Speed:
    """`error` is one standard error of the rate, as a share of it, from the spread of the batches; None of too few."""

    padded_tokens_per_second: float
    error: float | None
    batches: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """What was measured. `sample` is what each plan keeps of some batches, given as positions in the train split.

    `host_bytes` is the most memory that this process has taken, `device_bytes` the most on a GPU (None on a CPU).
    `better_batches` are tokens of a batch with which the pass is faster here, and how many times.
    """

    speed: Speed
    sample: list[tuple[Int[np.ndarray, " _row"], list[Columns]]]
    host_bytes: int
    device_bytes: int | None
    better_batches: tuple[int, float] | None


def device_of_trial(device: str | None, rate: float | None) -> torch.device:
    """Where the teacher is tried. One that is not, because its `rate` is given, stays off the GPU. Raises OptionError."""
    check_positive("--rate", rate)
    chosen = choose_device(device)
    return chosen if rate is None else torch.device("cpu")


def calibrate(
    plans: Sequence[Plan],
    teacher: Teacher,
    rows: Rows,
    *,
    seconds: float,
    seed: int,
    sample_bytes: int,
    sample_only: bool = False,
) -> Calibration:
    """Run batches drawn by `seed` from the whole train split `rows` through the teacher, for `seconds` at most.

    What the plans keep of them is returned, up to `sample_bytes`. `sample_only` ends there, and tries no other sizes of batches.
    Raises ModelError as an extraction would.
    """
    began = time.monotonic()
    first = plans[0]
    on_gpu = teacher.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(teacher.device)
    probe(teacher, sight_of(plans), rows)
    sample: list[tuple[np.ndarray, list[Columns]]] = []
    room = sample_bytes

    def keep(batch: np.ndarray, found: list[Columns]) -> bool:
        nonlocal room
        if room > 0:
            sample.append((batch, found))
            room -= sum(column.nbytes for columns in found for column in columns.values())
        return room > 0 or not sample_only

    with TeacherPass(plans, teacher, [stand_in_words(plan) for plan in plans]) as passing:
        trial = _Rehearsal(passing, rows, first, seed)
        share = 1 if sample_only else 1 - SECONDS_OF_ANOTHER_SIZE * len(OTHER_SIZES)
        speed = trial.measure(first.pass_.batch_tokens, began + share * seconds - time.monotonic(), keep)
        host_bytes = peak_bytes()
        device_bytes = torch.cuda.max_memory_allocated(teacher.device) if on_gpu else None
        compared = speed.error is not None and not sample_only
        better = trial.better_size(speed, SECONDS_OF_ANOTHER_SIZE * seconds) if compared else None
    return Calibration(speed, sample, host_bytes, device_bytes, better)


def samples_of(plans: Sequence[Plan], found: Calibration | None) -> list[SampledRows | None]:
    """What each plan keeps of the trial's rows; None where there was no trial, or one of too few rows."""
    rows = plans[0].splits["train"].rows
    if found is None or sum(len(batch) for batch, _ in found.sample) < min(LEAST_SAMPLED_ROWS, rows):
        return [None] * len(plans)
    batches = [batch for batch, _ in found.sample]
    return [SampledRows.joined(plan, batches, [kept[index] for _, kept in found.sample]) for index, plan in enumerate(plans)]


def padded_tokens(n_tokens: Int[np.ndarray, " row"], block_rows: int, batch_tokens: int) -> tuple[int, int]:
    """How many batches a split's rows of `n_tokens` [N] make, and the tokens in them, padding counted."""
    sizes = [_padded(n_tokens[batch]) for batch in _batches(n_tokens, block_rows, batch_tokens)]
    return len(sizes), sum(sizes)


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _padded(n_tokens: np.ndarray) -> int:
    return len(n_tokens) * int(n_tokens.max())


def _batches(n_tokens: np.ndarray, block_rows: int, batch_tokens: int) -> Iterator[np.ndarray]:
    for _, batches in block_batches(n_tokens, block_rows, batch_tokens):
        yield from batches


def _first_rows(rows: Rows) -> Rows:
    return rows.take(np.arange(min(PROBE_ROWS, len(rows))))


class _Rehearsal:
    """Sizes of batches on one teacher and one train split."""

    def __init__(self, passing: TeacherPass, rows: Rows, plan: Plan, seed: int) -> None:
        self._pass = passing
        self._rows = rows
        self._n_tokens = rows.n_tokens
        self._pass_plan = plan.pass_
        self._seed = seed
        self._guess = self._warm_up()

    def _warm_up(self) -> float:
        """A first guess of padded tokens a second, too low rather than too high."""
        rows = _first_rows(self._rows)
        for _ in range(2):  # whatever a library does once, it does in the first
            began = time.monotonic()
            list(self._pass.run("train", [rows] * self._pass.streams))
        return self._pass.streams * _padded(rows.n_tokens) / (time.monotonic() - began)

    def measure(self, batch_tokens: int, seconds: float, keep: Callable[[np.ndarray, list[Columns]], bool]) -> Speed:
        """Run batches in random order until the seconds are over, all are done, or `keep` has enough.

        The first is cut to what fits into the seconds; a later one that would not fit ends the run.
        """
        batches = list(_batches(self._n_tokens, self._pass_plan.block_rows, batch_tokens))
        order = np.random.default_rng(self._seed).permutation(len(batches))
        streams = self._pass.streams
        given: list[np.ndarray] = []
        began = time.monotonic()

        def feed() -> Iterator[Rows]:
            for index in order.tolist():
                batch = batches[index]
                most = (began + seconds - time.monotonic()) * self._guess / streams
                if _padded(self._n_tokens[batch]) > most:
                    if given:
                        return
                    batch = batch[: max(1, int(most / self._n_tokens[batch].max()))]
                given.append(batch)
                yield self._rows.take(batch)

        ends = [began]
        done = 0
        with closing(self._pass.run("train", feed())) as passed:
            for found in passed:
                ends.append(time.monotonic())
                done += _padded(self._n_tokens[given[len(ends) - 2]])
                self._guess = done / (ends[-1] - began)
                if not keep(given[len(ends) - 2], found):
                    break
        return _speed(given[: len(ends) - 1], self._n_tokens, ends, streams)

    def better_size(self, asked: Speed, seconds: float) -> tuple[int, float] | None:
        """Of OTHER_SIZES the one that is fastest here, and how many times faster than what was asked for.

        None where that is not worth telling, or may be chance.
        """
        own = self._seconds_of_all(self._pass_plan.batch_tokens, asked)
        found: list[tuple[int, float]] = []
        for size in OTHER_SIZES:
            batch_tokens = int(size * self._pass_plan.batch_tokens)
            if batch_tokens < self._n_tokens.max():
                continue
            try:
                speed = self.measure(batch_tokens, seconds, lambda *_: True)
            except torch.OutOfMemoryError:
                continue
            if speed.error is None or asked.error is None:
                continue
            times = own / self._seconds_of_all(batch_tokens, speed)
            if times * (1 - 2 * (speed.error + asked.error)) > 1:
                found.append((batch_tokens, times))
        best = max(found, key=lambda pair: pair[1], default=(0, 0.0))
        return best if best[1] >= WORTH_TELLING else None

    def _seconds_of_all(self, batch_tokens: int, speed: Speed) -> float:
        _, tokens = padded_tokens(self._n_tokens, self._pass_plan.block_rows, batch_tokens)
        return tokens / speed.padded_tokens_per_second


def _speed(batches: Sequence[np.ndarray], n_tokens: np.ndarray, ends: Sequence[float], streams: int) -> Speed:
    """From the batches that were done, and when: `ends[0]` is the beginning.

    As many batches as run side by side make one step; the first step, which fills the streams, is left out where there are more.
    """
    bounds = list(range(0, len(batches), streams))
    bounds.append(len(batches))
    tokens = [sum(_padded(n_tokens[batch]) for batch in batches[start:stop]) for start, stop in pairwise(bounds)]
    seconds = [ends[stop] - ends[start] for start, stop in pairwise(bounds)]
    if len(tokens) > 1:
        tokens, seconds = tokens[1:], seconds[1:]
    rate, error = sum(tokens) / max(sum(seconds), 1e-9), None
    if len(tokens) >= LEAST_STEPS:
        residuals = [each - count / rate for each, count in zip(seconds, tokens, strict=True)]
        variance = len(tokens) / (len(tokens) - 1) * sum(residual**2 for residual in residuals)
        error = variance**0.5 / sum(seconds)
    return Speed(rate, error, len(batches), sum(map(len, batches)), ends[-1] - ends[0])
