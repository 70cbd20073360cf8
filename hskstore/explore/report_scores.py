"""A sweep's scores as figures: marginal utility, one dimension at a time, score against bytes."""

from collections.abc import Sequence

from hskstore.explore.report_curves import (
    DIMENSIONS,
    Amount,
    Configured,
    Dimension,
    Point,
    front,
    is_everything,
    marginal,
    singles,
)
from hskstore.explore.report_parts import Figure, Line, Part, Plot, Table, bounded, digits, percent, plain, score
from hskstore.methods import Kd
from hskstore.readable import size

MOST_CONFIGURATIONS = 150
"""Of a table, and of a figure beside those of the front."""

MOST_LINES = 7
TICK = 0.11
"""Of an axis, what the number below a tick takes."""

AXES = {"depth": "layers (the embedding layer counts)", "length": "% of the full length", "width": "% of the full width"}
FIGURES = {"depth": "Figure 3", "length": "Figures 4 and 5", "width": "Figure 7"}


def marginal_part(found: Sequence[Configured], metric: str) -> Part:
    """Figures 8 and 9."""
    title, amounts = "Marginal utility", marginal(found)
    if len(amounts) < 2:
        return Part(title, ("Not here: it takes runs of two amounts of hidden states, or more (hsk sweep --grid table5).",))
    told = "; ".join(f"{each.label}: average {score(each.average)}, best {score(each.best)}" for each in amounts[:20])
    words = f"{metric} by how much of the hidden states is kept. {told}."
    return Part(
        title,
        _how_to_read(amounts),
        figures=(Figure("marginal", f"{metric} against A^HSK", words, _curve(amounts, metric), _amounts(amounts)),),
    )


def _how_to_read(amounts: Sequence[Amount]) -> tuple[str, ...]:
    ends = []
    if amounts[0].share == 0:
        ends.append("the left-most point is what the teacher's predictions alone teach")
    if amounts[-1].share == 1:
        ends.append("the right-most all layers, tokens and coordinates")
    return (
        "The amount kept, A^HSK, is a share of everything (Figures 8 and 9 of Marginal Utility Diminishes)"
        + (f"; {' and '.join(ends)}. " if ends else ". ")
        + "Bars of the average: one standard deviation of its runs; of the best configuration: its lowest and highest seed.",
    )


def _curve(amounts: Sequence[Amount], metric: str) -> Plot:
    smallest = min(each.share for each in amounts if each.share > 0)
    x = tuple(100 * (each.share or smallest / 4) for each in amounts)  # nothing has no place on a logarithmic axis
    average, best = tuple(each.average for each in amounts), tuple(each.best for each in amounts)
    lines = (
        Line(
            "average of an amount",
            x,
            average,
            tuple(each.average - (each.deviation or 0) for each in amounts),
            tuple(each.average + (each.deviation or 0) for each in amounts),
        ),
        Line("best of an amount", x, best, tuple(each.low for each in amounts), tuple(each.high for each in amounts)),
    )
    ticks = [(place, "0" if each.share == 0 else digits(100 * each.share)) for place, each in zip(x, amounts, strict=True)]
    room = max(1.7, (x[-1] / x[0]) ** TICK)
    apart = ticks[:1]
    for tick in ticks[1:]:
        if tick[0] > room * apart[-1][0] or tick is ticks[-1]:
            apart.append(tick)
    if len(apart) > 2 and apart[-1][0] < room * apart[-2][0]:
        del apart[-2]
    return Plot("% of everything (logarithmic)", metric, lines, log=True, ticks=tuple(apart))


def _amounts(amounts: Sequence[Amount]) -> Table:
    rows = [
        (
            each.label,
            percent(each.share),
            f"{each.configurations}",
            f"{each.runs}",
            score(each.average),
            score(each.deviation),
            score(each.best),
            f"{score(each.low)} to {score(each.high)}",
            plain(each.best_name, 60),
        )
        for each in amounts
    ]
    columns = ("amount", "share", "configurations", "runs", "average", "deviation", "best", "seeds of the best", "which")
    shown, left_out = bounded(rows, 60, "runs.parquet has all")
    return Table("By amount", columns, shown, left_out=left_out)


def dimensions_part(found: Sequence[Configured], metric: str) -> Part:
    """Figures 3 to 5 and 7."""
    title, figures, lacking = "One dimension at a time", [], []
    for dimension in DIMENSIONS:
        points = singles(found, dimension)
        if len(points) > 1:
            figures.append(_single(points, dimension, found, metric))
        else:
            lacking.append(dimension)
    words = (f"Not here: {', '.join(lacking)} (hsk sweep --grid {lacking[0]}).",) if lacking else ()
    return Part(title, words, figures=tuple(figures))


def _single(points: Sequence[Point], dimension: Dimension, found: Sequence[Configured], metric: str) -> Figure:
    scale = 1 if dimension == "depth" else 100
    by_series: dict[str, list[Point]] = {}
    for point in points:
        by_series.setdefault(point.series, []).append(point)
    shown = list(by_series)[:MOST_LINES]
    lines = tuple(
        Line(
            name,
            tuple(scale * each.kept for each in own),
            tuple(each.score for each in own),
            tuple(each.score - (each.deviation or 0) for each in own),
            tuple(each.score + (each.deviation or 0) for each in own),
        )
        for name, own in ((name, by_series[name]) for name in shown)
    )
    unit = "" if dimension == "depth" else " %"
    rows = [
        (plain(each.series, 60), f"{scale * each.kept:.3g}{unit}", score(each.score), score(each.deviation), str(each.runs))
        for each in points
    ]
    told = "; ".join(f"{plain(name, 60)}: {_ends(by_series[name], scale, unit)}" for name in shown)
    kept, left_out = bounded(rows, 100, "runs.parquet has all")
    table = Table(f"By {dimension}", ("series", dimension, metric, "deviation of the runs", "runs"), kept, left_out=left_out)
    layers = sorted({each.kept for each in points}) if dimension == "depth" else []
    plot = Plot(AXES[dimension], metric, lines, levels=_levels(found), ticks=tuple((x, f"{x:g}") for x in layers))
    words = f"{metric} where {dimension} alone is compressed. {told}."
    return Figure(dimension, f"{metric} by {dimension} ({FIGURES[dimension]})", words, plot, table)


def _ends(points: Sequence[Point], scale: int, unit: str) -> str:
    return ", ".join(f"{score(each.score)} at {scale * each.kept:.3g}{unit}" for each in dict.fromkeys((points[0], points[-1])))


def _levels(found: Sequence[Configured]) -> tuple[tuple[str, float], ...]:
    whole = next((each for each in found if is_everything(each.first)), None)
    alone = next((each for each in found if each.first.method == Kd.name), None)
    pairs = (("everything", whole), ("predictions alone", alone))
    return tuple((name, each.score) for name, each in pairs if each is not None)


def bytes_part(found: Sequence[Configured], metric: str) -> Part:
    """Score against bytes: slivers, codes and other knowledge, the front, and what cannot be told apart."""
    title = "Score against bytes"
    if not found:
        return Part(title, ("Not here: no run came to an end.",))
    best = front(found)
    names = {each.configuration for each in best}
    shown = [*best[-MOST_CONFIGURATIONS:], *(each for each in found if each.configuration not in names)][
        : 2 * MOST_CONFIGURATIONS
    ]
    kinds = sorted({each.kind for each in shown}, key=lambda kind: -sum(each.kind == kind for each in shown))
    rest = frozenset(kinds[MOST_LINES - 1 :]) if len(kinds) > MOST_LINES else frozenset()
    lines = []
    for name in [*(kind for kind in kinds if kind not in rest), *(("others",) if rest else ())]:
        own = [each for each in shown if (each.kind in rest if name == "others" else each.kind == name) and each.bytes]
        if own:
            lines.append(_points(name, own))
    drawn = [each for each in best if each.bytes]
    lines.append(
        Line(
            "Pareto front, its seeds",
            tuple(each.bytes / 1e6 for each in drawn),
            tuple(each.score for each in drawn),
            tuple(min(each.scores) for each in drawn),
            tuple(max(each.scores) for each in drawn),
            style="dense",
        )
    )
    marks = tuple((each.bytes / 1e6, each.score, each.letter) for each in best[-8:] if each.bytes and each.letter)
    told = "; ".join(f"{plain(each.name, 60)}: {score(each.score)} from {size(each.bytes)}{_group(each)}" for each in best[:12])
    tied = [each for each in found if each.group == 0]
    words = f"The front, the smallest first: {told}."
    how = [
        "On the front are those that no other configuration beats with as few bytes. Bytes are those of all that a configuration"
        " reads of the train rows, on disk."
    ]
    if tied:
        how.append(
            f"Configurations of one letter are tied: a paired bootstrap over the scored rows cannot tell them from the first of"
            f" them. {len(tied)} of {len(found)} are tied with the best (a)."
        )
    else:
        how.append("Which of them are tied is not known here.")
    if len(shown) < len(found):
        how.append(f"Of {len(found):,} configurations the front and the best are drawn, {len(shown):,} in all.")
    plot = Plot("MB read of the store (logarithmic)", metric, tuple(lines), log=True, marks=marks)
    return Part(
        title, tuple(how), figures=(Figure("score-bytes", f"{metric} against bytes", words, plot, _standings(found, names)),)
    )


def _points(name: str, own: Sequence[Configured]) -> Line:
    return Line(
        name,
        tuple(each.bytes / 1e6 for each in own),
        tuple(each.score for each in own),
        style="hollow",
    )


def _group(each: Configured) -> str:
    return f" ({each.letter})" if each.letter else ""


def _standings(found: Sequence[Configured], on_front: set[str]) -> Table:
    rows = [
        (
            plain(each.name, 80) + (f" ({plain(each.first.series, 60)})" if each.first.series else ""),
            each.letter,
            score(each.score),
            f"{score(min(each.scores))} to {score(max(each.scores))}" if len(each.scores) > 1 else "one seed",
            str(len(each.scores)),
            size(each.bytes),
            "" if each.first.share_of_hsk is None else percent(each.first.share_of_hsk),
            "yes" if each.configuration in on_front else "",
        )
        for each in found
    ]
    shown, left_out = bounded(rows, MOST_CONFIGURATIONS, "runs.parquet has all")
    columns = ("configuration", "tied", "score", "seeds from, to", "seeds", "bytes", "of HSK", "on the front")
    return Table("Configurations, the best first", columns, shown, left_out=left_out)
