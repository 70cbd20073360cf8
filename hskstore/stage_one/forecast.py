"""What an extraction will cost, before any money is spent: bytes, memory and time.

Rows, tokens and the padding of the teacher's batches are exact. A few seconds of the real pass say how fast this device is and
how well what is kept compresses; a known rate stands in for them, and then the teacher never runs.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch

from hskstore.config import Keep, PassOptions, Strategy
from hskstore.readable import counted
from hskstore.stage_one.asked import Asked, Learns
from hskstore.stage_one.calibration import (
    CALIBRATION_SECONDS,
    SAMPLE_BYTES,
    Calibration,
    Speed,
    calibrate,
    device_of_trial,
    padded_tokens,
    peak_bytes,
    samples_of,
)
from hskstore.stage_one.codebooks import learning_seconds, sample_bytes
from hskstore.stage_one.jobs import JOBS_AT_A_TIME, WRITERS, make_jobs
from hskstore.stage_one.planning import Prepared, prepare
from hskstore.stage_one.sizes import (
    ArraySize,
    SampledRows,
    decoded_bytes,
    file_bytes,
    input_sizes,
    output_sizes,
    vectors,
)
from hskstore.store.hidden import planned_units
from hskstore.store.plan import Pass, Plan
from hskstore.text.tally import TextFacts
from hskstore.watch import Watch, unwatched

CHECKED = 1.5
"""Seconds of a unit encoded, decoded again, compared and hashed, to those of encoding alone."""


@dataclass(frozen=True)
class SplitForecast:
    """Rows, their tokens, and the tokens of the teacher's batches with their padding: exact. `text` is what became of its
    texts."""

    rows: int
    tokens: int
    batches: int
    padded_tokens: int
    text: TextFacts


@dataclass(frozen=True)
class StoreForecast:
    """A store to be. `teacher_layers` are those of each feature by its name. Of `hidden`, None where it is not kept:
    `units_of_hsk` is A^HSK as planned for a row, `kept_units` that of the data's rows on average, which may have fewer tokens.

    `bytes` is the estimate on disk, of `arrays` and of all other files (exact but for a few bytes); `decoded_bytes` is in memory.
    """

    name: str
    keep: str | None
    student_layers: int | None
    teacher_layers: dict[str, list[int]]
    units_of_hsk: float | None
    kept_units: float | None
    bytes: int
    decoded_bytes: int
    other_bytes: int
    arrays: dict[str, ArraySize]


@dataclass(frozen=True)
class MemoryForecast:
    """`host_bytes` is this process's peak so far and `in_flight_bytes`, the units of the jobs under way, decoded, or what
    codebooks are learnt from, which is gone by then, where that is more.

    Where `measured`, the peak is that of the running pass, and `device_bytes` the most that it took on a GPU; None on a CPU.
    """

    host_bytes: int
    in_flight_bytes: int
    device_bytes: int | None
    measured: bool


@dataclass(frozen=True)
class TimeForecast:
    """Seconds of the pass over all rows on one device, of `devices` of its kind that are here.

    `low` and `high` are two standard errors of the measured rate away; None of a given rate, or too few batches.
    `compression_seconds` are of one core, which works beside a GPU and takes its turn on a CPU; `preparation_seconds` are what
    loading, reading and tokenising took just now, and will take again; `codebook_seconds` are what learning codebooks will take
    of one core before the first unit, by a rule.
    """

    measured: bool
    seconds: float
    low: float | None
    high: float | None
    rows_per_second: float
    padded_tokens_per_second: float | None
    compression_seconds: float | None
    preparation_seconds: float
    codebook_seconds: float
    devices: int
    seconds_on_all_devices: float


@dataclass(frozen=True)
class Trial:
    """What was run for the forecast. `better_batch_tokens` is a --batch-tokens that is `times_faster` here; None if none is."""

    batches: int
    rows: int
    seconds: float
    better_batch_tokens: int | None
    times_faster: float | None


@dataclass(frozen=True)
class Forecast:
    """What an extraction will cost. `trial` is None where a rate was given."""

    teacher: str
    data: str
    device: str
    batch_tokens: int
    splits: dict[str, SplitForecast]
    stores: list[StoreForecast]
    memory: MemoryForecast
    time: TimeForecast
    trial: Trial | None


def forecast(
    teacher: str,
    data: str,
    *,
    keeps: Sequence[Keep] = (),
    strategies: Sequence[Strategy],
    methods: Sequence[Learns] = (),
    rich: bool = False,
    rate: float | None = None,
    device: str | None = None,
    seconds: float = CALIBRATION_SECONDS,
    watch: Watch = unwatched,
    **options: Unpack[PassOptions],
) -> Forecast:
    """What `extract` with these arguments would write, need and take, from a trial of at most `seconds` on the device.

    With a `rate` (rows a second) there is no trial: time is by the rate, and compression by a rule. Nothing is written that
    stays. Raises DataError, ModelError or OptionError.
    """
    asked = Asked(keeps, strategies, methods, rich)
    began = time.monotonic()
    on = device_of_trial(device, rate)
    with tempfile.TemporaryDirectory(prefix="hsk-") as folder:
        ready = prepare(teacher, data, Path(folder), asked, device=on, watch=watch, **options)
        preparation = time.monotonic() - began
        return _forecast(teacher, data, ready, rate, seconds, preparation)


def _forecast(teacher: str, data: str, ready: Prepared, rate: float | None, seconds: float, preparation: float) -> Forecast:
    plans, train = list(ready.plans.values()), ready.rows["train"]
    first, device = plans[0].pass_, ready.teacher.device
    found = None
    if rate is None:
        found = calibrate(plans, ready.teacher, train, seconds=seconds, seed=first.seed, sample_bytes=SAMPLE_BYTES)
    splits = {name: _split(rows.n_tokens, first, ready.text[name]) for name, rows in ready.rows.items()}
    samples = samples_of(plans, found)
    began = time.monotonic()
    stores = _stores(ready, samples)
    compression = None
    if samples[0] is not None:
        compression = CHECKED * (time.monotonic() - began) * len(train) / samples[0].rows
    return Forecast(
        teacher=teacher,
        data=data,
        device=_device_name(device) if found else "",
        batch_tokens=first.batch_tokens,
        splits=splits,
        stores=stores,
        memory=_memory(plans, found),
        time=_time(splits, found, rate, compression, preparation, sum(map(learning_seconds, plans)), device),
        trial=_trial(found),
    )


def _memory(plans: Sequence[Plan], found: Calibration | None) -> MemoryForecast:
    in_flight = _in_flight_bytes(plans)
    return MemoryForecast(
        host_bytes=(found.host_bytes if found else peak_bytes()) + max(in_flight, *map(sample_bytes, plans)),
        in_flight_bytes=in_flight,
        device_bytes=found.device_bytes if found else None,
        measured=found is not None,
    )


def _split(n_tokens: np.ndarray, pass_: Pass, text: TextFacts) -> SplitForecast:
    batches, padded = padded_tokens(n_tokens, pass_.block_rows, pass_.batch_tokens)
    return SplitForecast(len(n_tokens), int(n_tokens.sum()), batches, padded, text)


def _stores(ready: Prepared, samples: Sequence[SampledRows | None]) -> list[StoreForecast]:
    inputs = input_sizes(next(iter(ready.plans.values())), ready.rows)
    files = ready.facts.files
    return [
        _store(name, plan, ready, inputs, files, sample)
        for (name, plan), sample in zip(ready.plans.items(), samples, strict=True)
    ]


def _store(
    name: str,
    plan: Plan,
    ready: Prepared,
    inputs: Mapping[str, ArraySize],
    files: Mapping[str, bytes],
    sample: SampledRows | None,
) -> StoreForecast:
    counts = {each: vectors(feature, ready.rows["train"], ready.rows_by_admitted) for each, feature in plan.said.items()}
    outputs = output_sizes(plan, counts, sample)
    arrays = {
        path: outputs[path] if path in outputs else replace(inputs[path], decoded=decoded_bytes(spec))
        for path, spec in plan.arrays.items()
    }
    fixed, per_unit = file_bytes(plan, files)
    other = fixed + sum(split.units * per_unit[name] for name, split in plan.splits.items())
    hidden = plan.hidden
    kept_units = None if hidden is None else counts["hidden"] / plan.splits["train"].rows * hidden.width / hidden.hidden_size
    return StoreForecast(
        name=name,
        keep=None if hidden is None else str(hidden.keep),
        student_layers=None if hidden is None else hidden.strategy.student_layers,
        teacher_layers={each: list(feature.layers) for each, feature in plan.features.items()},
        units_of_hsk=None if hidden is None or kept_units is None else round(planned_units(hidden, kept_units), 4),
        kept_units=None if kept_units is None else round(kept_units, 4),
        bytes=other + sum(size.on_disk for size in arrays.values()),
        decoded_bytes=sum(size.decoded for size in arrays.values()),
        other_bytes=other,
        arrays=arrays,
    )


def _in_flight_bytes(plans: Sequence[Plan]) -> int:
    """The decoded units of as many jobs as are under way at once, each as big as the biggest."""
    jobs = [
        sum(decoded_bytes(spec) * job.rows // spec.shape[0] for plan in plans for spec in plan.arrays_of(job.split).values())
        for job in make_jobs(plans)
    ]
    return sum(sorted(jobs)[-JOBS_AT_A_TIME:])


def _time(
    splits: Mapping[str, SplitForecast],
    found: Calibration | None,
    rate: float | None,
    compression: float | None,
    preparation: float,
    codebooks: float,
    device: torch.device,
) -> TimeForecast:
    rows = sum(split.rows for split in splits.values())
    devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if found is None:
        assert rate is not None
        pass_ = _PassSeconds(rows / rate, rows / rate, None, None)
    else:
        padded = sum(split.padded_tokens for split in splits.values())
        pass_ = _pass_seconds(padded, found.speed, compression or 0.0, device, devices)
    return TimeForecast(
        measured=found is not None,
        seconds=pass_.one_device,
        low=pass_.low,
        high=pass_.high,
        rows_per_second=rows / pass_.one_device,
        padded_tokens_per_second=None if found is None else found.speed.padded_tokens_per_second,
        compression_seconds=compression,
        preparation_seconds=preparation,
        codebook_seconds=codebooks,
        devices=devices,
        seconds_on_all_devices=pass_.all_devices,
    )


class _PassSeconds(NamedTuple):
    """Of the whole pass; `low` and `high` are of one device."""

    one_device: float
    all_devices: float
    low: float | None
    high: float | None


def _pass_seconds(padded: int, speed: Speed, compression: float, device: torch.device, devices: int) -> _PassSeconds:
    """From the speed of the trial, `padded` tokens and the seconds of compression on one core."""

    def with_compression(seconds: float) -> float:
        """The teacher's seconds and compression: one after the other on a CPU, at the same time beside a GPU."""
        return seconds + compression / torch.get_num_threads() if device.type == "cpu" else max(seconds, compression / WRITERS)

    teacher = padded / speed.padded_tokens_per_second
    seconds = with_compression(teacher)
    if speed.error is None:
        return _PassSeconds(seconds, seconds / devices, None, None)
    margin = 2 * speed.error * teacher
    return _PassSeconds(
        seconds, seconds / devices, with_compression(max(0.0, teacher - margin)), with_compression(teacher + margin)
    )


def _trial(found: Calibration | None) -> Trial | None:
    if found is None:
        return None
    better, times = found.better_batches or (None, None)
    return Trial(found.speed.batches, found.speed.rows, found.speed.seconds, better, times)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {counted(torch.get_num_threads(), 'thread')}"
