"""What `hsk` prints of the explorer: runs as they end, the table in short, the front, and what is recommended."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy: what prints a result is called by what has made one
    from hskstore.explore.recommend import Recommendation
    from hskstore.explore.runs import RunRow
    from hskstore.explore.search import Searched
    from hskstore.explore.sweep import Swept
from hskstore.cli.console import err, grid, out, paragraphs
from hskstore.readable import duration, size


def print_run(row: RunRow, ended: int, of: int) -> None:
    """A line for each run that ends, on standard error."""
    said = f"{row.status}: {row.why}"
    if row.status == "done":
        said = f"{row.metric} {row.score:.4f}, {size(row.bytes or 0)}, {row.steps} steps in {duration(row.seconds_training or 0)}"
    err.print(f"{ended} of {of}: {row.name}, seed {row.seed}: {said}")


def print_swept(result: Swept) -> None:
    """A line a configuration, the best first; then what failed, and what to do next."""
    found: dict[str, list[RunRow]] = {}
    for row in result.rows:
        if row.status == "done":
            found.setdefault(row.configuration, []).append(row)
    if found:
        first = next(iter(found.values()))[0]
        out.print(
            f"{first.metric} on {first.rows:,} rows, mean over the seeds; HSK: the share of all layers, tokens, coordinates"
        )
        table = grid("configuration", "score", "seeds", "bytes", "HSK", "training", left=1)
        for rows in sorted(found.values(), key=lambda rows: -_mean(rows)):
            share = rows[0].share_of_hsk
            table.add_row(
                f"{rows[0].name} ({rows[0].series})" if rows[0].series else rows[0].name,
                f"{_mean(rows):.4f}",
                str(len(rows)),
                size(rows[0].bytes or 0),
                "" if share is None else f"{100 * share:.3g} %",
                duration(statistics.mean(row.seconds_training or 0 for row in rows)),
            )
        out.print(table)
    for row in result.failed:
        out.print(f"failed: {row.name}, seed {row.seed}: {row.why}")
    out.print(f"{result.table}: {len(result.rows)} runs. hsk recommend {result.folder} says which configuration to take")


def print_searched(result: Searched) -> None:
    """The front, the smallest first; then what was ended early, what failed, and what to do next."""
    from hskstore.explore.runs import names_of

    names = names_of(result.front)
    pruned, failed = [row.name for row in result.pruned], result.failed
    out.print(
        f"{len(result.rows) - 1} configurations and kd alone tried: {len(pruned)} ended early by Hyperband, {len(failed)} failed"
    )
    if result.front:
        out.print("The front, which no other run beats:")
        table = grid("configuration", "score", "seed", "bytes", "training")
        for row in result.front:
            training = duration(row.seconds_training or 0)
            table.add_row(names[row.configuration], f"{row.score:.4f}", str(row.seed), size(row.bytes or 0), training)
        out.print(table)
    if pruned:
        out.print(f"ended early, and so without a score: {'; '.join(pruned)}")
    for row in failed:
        out.print(f"failed: {row.name}, seed {row.seed}: {row.why}")
    out.print(f"{result.table}: hsk recommend {result.folder} says which configuration to take")


def print_recommended(result: Recommendation) -> None:
    """In words."""
    out.print(paragraphs("\n\n".join(result.words)))


def _mean(rows: Sequence[RunRow]) -> float:
    return statistics.mean(row.score or 0 for row in rows)
