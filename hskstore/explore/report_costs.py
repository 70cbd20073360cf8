"""What a sweep's configurations cost: bytes by the paper and as they lie here; time without and beside a teacher."""

import tomllib
from collections.abc import Sequence

from hskstore.errors import OptionError
from hskstore.explore.report_curves import Configured
from hskstore.explore.report_parts import Bars, Figure, Part, Table, plain
from hskstore.explore.report_store import teacher_seconds_per_row, teacher_words
from hskstore.explore.runs import RunRow, SweepFacts
from hskstore.readable import duration, size
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store
from hskstore.text.tasks import Task


def paper_bytes(row: RunRow, rows: int, hidden_size: int) -> tuple[int, int] | None:
    """Of the features and of the mask as Table 3 counts them: float32, and a byte for each coordinate of a kept token where a
    mask chooses among them by size. None where no hidden states are read."""
    if row.units_of_hsk is None or row.width is None:
        return None
    features = row.units_of_hsk * hidden_size * 4 * rows
    masked = row.mask == "magnitude" and row.width < hidden_size
    mask = row.units_of_hsk * hidden_size / row.width * hidden_size * rows if masked else 0.0
    return round(features), round(mask)


def bytes_part(found: Sequence[Configured], store: Store | None) -> Part:
    """Table 3."""
    title = "Bytes: the paper's way, and ours"
    if store is None:
        return Part(title, ("Not here: how many rows and coordinates there are stands in the store; name it beside the sweep.",))
    rows, hidden_size = store.plan.splits["train"].rows, store.plan.teacher["hidden_size"]
    lines = []
    for each in sorted(found, key=lambda each: each.bytes):
        paper = paper_bytes(each.first, rows, hidden_size)
        if paper is not None:
            ratio = f"{sum(paper) / each.bytes:.1f}" if each.bytes else ""
            units = f"{each.first.units_of_hsk:.3g}"
            lines.append((plain(each.name, 80), units, size(paper[0]), size(paper[1]), size(each.bytes), ratio))
    if not lines:
        return Part(title, ("Not here: none of these configurations reads hidden states.",))
    columns = ("configuration", "A^HSK", "features, paper", "mask, paper", "all, here", "times")
    return Part(
        title,
        (
            f"Table 3 of the paper counts float32 numbers and a mask of a byte for each coordinate; here of {rows:,} train rows,"
            f" {hidden_size} coordinates wide. Ours is all that is read of them, on disk, with their tokens and the predictions.",
        ),
        tables=(Table("Bytes of the train rows", columns, tuple(lines)),),
    )


def rows_trained(row: RunRow, facts: SweepFacts) -> int | None:
    """How many rows a run's steps had, each as often as it came; None where its phases have batches of different sizes."""
    try:
        sizes = Recipe.of(tomllib.loads(row.recipe)).batch_size
    except (OptionError, ValueError):
        return None
    defaults = Task.from_json(facts.task).defaults
    found = set(sizes or (defaults.hidden.batch_size, defaults.prediction.batch_size))
    return None if row.steps is None or len(found) != 1 else row.steps * found.pop()


def time_part(found: Sequence[tuple[str, Configured]], facts: SweepFacts, store: Store | None) -> Part:
    """Figure 10: measured without the teacher; beside it, what its pass took for so many rows is added."""
    title = "Training time"
    timed = [(role, each) for role, each in found if each.seconds is not None]
    if not timed:
        return Part(title, ("Not here: no run tells its seconds.",))
    teacher = None if store is None else teacher_seconds_per_row(store)
    counts = [rows_trained(each.first, facts) for _, each in timed]
    names = tuple(f"{plain(each.name, 40)} ({role})" for role, each in timed)
    without = tuple(float(each.seconds or 0) for _, each in timed)
    groups: tuple[tuple[str, tuple[float, ...]], ...] = (("without the teacher (measured)", without),)
    words = ["Seconds of all steps, without dev scores, mean over the seeds."]
    beside: list[float | None] = [None] * len(timed)
    if teacher is None:
        why = "its store is not here" if store is None else "the receipts of its store do not tell what the teacher took"
        words.append(f"What it would be beside the teacher cannot be told: {why}.")
    else:
        beside = [None if rows is None else own + rows * teacher[0] for own, rows in zip(without, counts, strict=True)]
        words.append(
            "Beside the teacher (Figure 10) every row that is trained on would pass it again: the receipts of the store count"
            f" {teacher_words(teacher, store.plan.splits['train'].rows if store else 0)}, what was kept packed and written with"
            " it. It is an estimate: nothing was run beside a teacher, and the two may have run on other machines."
        )
        if None not in beside:
            groups += (("beside the teacher (estimated)", tuple(float(each or 0) for each in beside)),)
        else:
            words.append("Of some the batches of the phases differ in size, so that their rows cannot be counted.")
    rows = tuple(
        (
            name,
            duration(own),
            "" if count is None else f"{count:,}",
            "" if more is None else duration(more),
            "" if more is None or not own else f"{more / own:.1f}",
        )
        for name, own, count, more in zip(names, without, counts, beside, strict=True)
    )
    table = Table("Time of a run", ("configuration", "without", "rows trained on", "beside", "times"), rows)
    told = "; ".join(
        f"{name}: {duration(own)}" + ("" if more is None else f", beside the teacher {duration(more)}")
        for name, own, more in zip(names, without, beside, strict=True)
    )
    figure = Figure("time", "Training time without the teacher and beside it", f"{told}.", Bars("seconds", names, groups), table)
    return Part(title, tuple(words), figures=(figure,))
