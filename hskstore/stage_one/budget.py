"""What a number of bytes can buy: the paper's grid of configurations, the best of those that fit first."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from hskstore.config import Keep, PassOptions, Strategy, check_positive, units_of_hsk
from hskstore.errors import OptionError
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.calibration import CALIBRATION_SECONDS, SAMPLE_BYTES, calibrate, device_of_trial, samples_of
from hskstore.stage_one.planning import Prepared, prepare
from hskstore.stage_one.sizes import (
    N_KEPT_BYTES,
    SampledRows,
    encoded_bytes,
    file_bytes,
    input_sizes,
    output_sizes,
    ruled_vector_bytes,
    vectors,
)
from hskstore.store.hidden import Hidden
from hskstore.store.layout import in_units
from hskstore.store.plan import Plan
from hskstore.text.tally import TextFacts
from hskstore.watch import Watch, unwatched

LONGEST, TENTHS = 50, 10
"""Of the space that the paper searches (Equation 8)."""

SAMPLE_BYTES_OF_GRID = 3 * SAMPLE_BYTES
"""For ten widths."""

CURVE = (1, 4, 16, 50)
"""Lengths at which the bytes of a vector are measured; in between they are interpolated."""


@dataclass(frozen=True)
class Configuration:
    """One of the grid, as --keep takes it: A^HSK as planned for a row, that of the data's rows on average, bytes on disk."""

    keep: str
    units_of_hsk: float
    kept_units: float
    bytes: int


@dataclass(frozen=True)
class Affordable:
    """The configurations that fit into `budget` bytes, of `grid` that there are; the best first, by the A^HSK of the data's rows.

    `shared_bytes` are those that every store has: inputs, labels, logits, tokenizer. `measured`: on rows that the teacher ran
    over. `text` is, by split, what became of the texts as tokens.
    """

    teacher: str
    data: str
    budget: int
    student_layers: int
    shared_bytes: int
    measured: bool
    grid: int
    text: dict[str, TextFacts]
    configurations: list[Configuration]


def within_budget(
    teacher: str,
    data: str,
    *,
    budget: int,
    strategy: Strategy,
    rate: float | None = None,
    device: str | None = None,
    seconds: float = CALIBRATION_SECONDS,
    watch: Watch = unwatched,
    **options: Unpack[PassOptions],
) -> Affordable:
    """The configurations of the paper's grid whose store takes at most `budget` bytes on disk, best first by A^HSK.

    A^HSK is that of the data's rows, for which section 5.1 of the paper has N^L at most |x|: of a row of five tokens nine are
    five. Bytes are measured on rows that the teacher runs over for at most `seconds`; with a `rate` it does not run, and they
    follow from a rule. Raises OptionError where none fits, besides what `forecast` raises.
    """
    check_positive("--budget", budget)
    deepest = strategy.student_layers + 1
    keeps = [Keep(deepest, LONGEST, step / TENTHS) for step in range(1, TENTHS + 1)]
    on = device_of_trial(device, rate)
    with tempfile.TemporaryDirectory(prefix="hsk-") as folder:
        ready = prepare(teacher, data, Path(folder), Asked(keeps, [strategy]), device=on, watch=watch, **options)
        return _within_budget(teacher, data, ready, budget, rate, seconds)


def _within_budget(teacher: str, data: str, ready: Prepared, budget: int, rate: float | None, seconds: float) -> Affordable:
    plans = list(ready.plans.values())
    train = ready.rows["train"]
    found = None
    if rate is None:
        found = calibrate(
            plans,
            ready.teacher,
            train,
            seconds=seconds,
            seed=plans[0].pass_.seed,
            sample_bytes=SAMPLE_BYTES_OF_GRID,
            sample_only=True,
        )
    samples = samples_of(plans, found)
    inputs = input_sizes(plans[0], ready.rows)
    hidden = [_hidden(plan) for plan in plans]
    counts = {"hidden": vectors(hidden[0], train, ready.rows_by_admitted)}
    logits = {path: size for path, size in output_sizes(plans[0], counts, samples[0]).items() if path.endswith("/logits")}
    fixed, per_unit = file_bytes(plans[0], ready.facts.files)
    shared = fixed + sum(size.on_disk for size in (*inputs.values(), *logits.values()))
    grid = list(_grid(plans, samples, ready.rows_by_admitted, per_unit))
    configurations = [replace(each, bytes=each.bytes + shared) for each in grid]
    fitting = [each for each in configurations if each.bytes <= budget]
    if not fitting:
        least = min(configurations, key=lambda each: each.bytes)
        raise OptionError(
            f"--budget of {budget:,} bytes: no configuration fits; the smallest, --keep {least.keep}, takes about"
            f" {least.bytes:,}, and inputs, labels, logits and the tokenizer are {shared:,} of them"
        )
    return Affordable(
        teacher=teacher,
        data=data,
        budget=budget,
        student_layers=hidden[0].strategy.student_layers,
        shared_bytes=shared,
        measured=samples[0] is not None,
        grid=len(grid),
        text=dict(ready.text),
        configurations=sorted(fitting, key=lambda each: (-each.kept_units, each.bytes)),
    )


def paper_grid(student_layers: int, longest: int) -> Iterator[tuple[int, int, int]]:
    """The paper's search space (Marginal Utility Diminishes, section 5.2, Equation 8): N^D of 1 to L' + 1, N^L of 1 to 50, and
    tenths of a vector, 1 to 10.

    `longest` is the most tokens that a row of the data can keep: beyond it every N^L makes the same store.
    """
    for depth in range(1, student_layers + 2):
        for length in range(1, min(LONGEST, longest) + 1):
            for tenths in range(1, TENTHS + 1):
                yield depth, length, tenths


def _grid(
    plans: Sequence[Plan], samples: Sequence[SampledRows | None], rows_by_admitted: NDArray[np.int64], per_unit: Mapping[str, int]
) -> Iterator[Configuration]:
    """Every configuration of the grid, its bytes without what all stores share. `plans` are one a width, of all layers."""
    first = plans[0]
    rows, longest = first.splits["train"].rows, len(rows_by_admitted) - 1
    tokens = [int((np.minimum(np.arange(longest + 1), length) * rows_by_admitted).sum()) for length in range(longest + 1)]
    curves = [_curve(plan, sample) for plan, sample in zip(plans, samples, strict=True)]
    for depth, length, tenths in paper_grid(_hidden(first).strategy.student_layers, longest):
        plan, curve = plans[tenths - 1], curves[tenths - 1]
        hidden = _hidden(plan)
        vector = sum(np.interp(length, list(layer), list(layer.values())) for layer in curve[-depth:])
        units = _units(plan, depth, length)
        on_disk = tokens[length] * vector + rows * depth * N_KEPT_BYTES
        on_disk += sum(count * per_unit[split] for split, count in units.items())
        share = hidden.width / hidden.hidden_size
        yield Configuration(
            keep=str(Keep(depth, length, tenths / TENTHS)),
            units_of_hsk=round(units_of_hsk(depth, length, tenths / TENTHS), 4),
            kept_units=round(units_of_hsk(depth, tokens[length] / rows, share), 4),
            bytes=round(on_disk),
        )


def _curve(plan: Plan, sample: SampledRows | None) -> list[dict[int, float]]:
    """Bytes on disk of a kept vector, by layer, at some lengths: of a sample that is cut to each of them, or by the rule."""
    hidden = _hidden(plan)
    if sample is None:
        return [{1: sum(ruled_vector_bytes(hidden).values())}] * len(hidden.pairs)
    curve: list[dict[int, float]] = [{} for _ in hidden.pairs]
    n_kept = sample.columns["train/hidden/n_kept"]
    for length in sorted({min(length, hidden.length) for length in CURVE}):
        vectors = max(1, int(np.minimum(n_kept[:, 0], length).sum()))
        for name in ("values", "mask", "token", "scale"):
            spec = plan.arrays.get(f"train/hidden/{name}")
            if spec is None:
                continue
            cut = np.ascontiguousarray(sample.columns[f"train/hidden/{name}"][:, :, :length])
            for layer in range(len(hidden.pairs)):
                column = np.ascontiguousarray(cut[:, layer : layer + 1])
                encoded = encoded_bytes(replace(spec, shape=(spec.shape[0], *column.shape[1:])), column)
                curve[layer][length] = curve[layer].get(length, 0.0) + encoded / vectors
    return curve


def _units(plan: Plan, depth: int, length: int) -> dict[str, int]:
    """How many units each split has at another depth and length."""
    hidden = _hidden(plan)
    kept = replace(hidden, pairs=hidden.pairs[-depth:], length=length)
    return {name: split.units for name, split in in_units({"hidden": kept}, plan.splits, text=plan.text).items()}


def _hidden(plan: Plan) -> Hidden:
    """The one feature that the grid is of."""
    assert plan.hidden is not None
    return plan.hidden
