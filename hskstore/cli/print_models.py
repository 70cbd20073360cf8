"""What `hsk` prints of models: scores, anatomy, what a student learnt, the demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy: what prints a result is called by what has made one
    from hskstore.explore.demo import DemoResult
    from hskstore.models.anatomy import Anatomy
    from hskstore.stage_two.card import Distilled
    from hskstore.stage_two.scores import Scored
from hskstore.cli.console import grid, out
from hskstore.readable import size


def print_scores(scores: Mapping[str, Scored]) -> None:
    """A line a split, such as: validation: accuracy 0.8742 ± 0.0112 (one standard error, 872 rows)."""
    for split, scored in scores.items():
        found = ", ".join(f"{metric} {value:.4f} ± {scored.standard_error[metric]:.4f}" for metric, value in scored.score.items())
        out.print(f"{split}: {found} (one standard error, {scored.rows} rows)")


def print_anatomy(models: list[Anatomy]) -> None:
    """Models side by side: the student, and its teacher if one was named."""
    table = grid("", *("student", "teacher")[: len(models)])
    parts = dict.fromkeys(part for model in models for part in model.parameters)
    for part in parts:
        table.add_row(f"parameters: {part}", *(_count(model.parameters.get(part)) for model in models))
    table.add_row("parameters in all", *(_count(model.total_parameters) for model in models))
    lengths = dict.fromkeys(length for model in models for length in (model.flops_per_token or model.latency_ms or {}))
    for length in lengths:
        table.add_row(
            f"MFLOPs a token, {length} tokens",
            *(_number((model.flops_per_token or {}).get(length), 1e6) for model in models),
        )
    for length in lengths:
        table.add_row(f"CPU ms a row of {length}", *(_number((model.latency_ms or {}).get(length), 1) for model in models))
    out.print(f"student: {models[0].name}" + "".join(f"; teacher: {model.name}" for model in models[1:]))
    out.print(table)


def _count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.2f}"


ENDED = {"steps": "", "minutes": ", when its time was up", "patience": ", when its dev score no longer rose"}


def print_distilled(result: Distilled) -> None:
    """What a student learnt, and in what time."""
    for phase in result.phases:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in phase.losses.items())
        rewards = f", {phase.rewarded:.0f} s of it for rewards" if phase.rewarded else ""
        out.print(f"{phase.name}: {phase.steps} steps in {phase.seconds:.0f} s{ENDED[phase.ended]}{rewards}; {losses}")
    print_scores(result.scores)
    out.print(
        f"{result.folder}: {result.parameters:,} parameters; from store {result.digest[:16]}, {result.precision},"
        f" rows {'in memory' if result.loader == 'ram' else 'read in blocks'}, batches {result.batches[:16]}"
    )


def print_demo(result: DemoResult) -> None:
    """The demo's table: what each way of learning reached, and what it took."""
    table = grid("student learns from", "score", "± one s.e.", "hidden states", "bytes", "seconds")
    for row in result.rows:
        table.add_row(
            row.learns_from,
            f"{row.score:.3f}",
            f"{row.standard_error:.3f}",
            row.hidden_share,
            size(row.bytes) if row.bytes else "",
            f"{row.seconds:.1f}",
        )
    out.print(table)
    out.print(f"{result.metric} on {result.rows_scored} unseen sentences; {result.seconds:.0f} s in all")
