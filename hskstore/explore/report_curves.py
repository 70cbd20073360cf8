"""The numbers behind a sweep's figures: marginal utility, one dimension at a time, score against bytes."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hskstore.config import Keep
from hskstore.errors import OptionError
from hskstore.explore.grids import EVERYTHING
from hskstore.explore.report_parts import deviation, digits
from hskstore.explore.runs import RunRow, names_of
from hskstore.methods import Kd
from hskstore.store.vectors import ENCODINGS

Dimension = Literal["depth", "length", "width"]
DIMENSIONS: tuple[Dimension, ...] = ("depth", "length", "width")

JOINT = "A^HSK"
"""Begins the series of a configuration that is compressed in all dimensions together."""


@dataclass(frozen=True)
class Configured:
    """The runs of one configuration that came to an end: `scores` by seed, their mean, and the mean seconds of training. `group`
    is that of those that cannot be told apart, 0 the best; None where nothing is known of it. `kind` says what is read, and as
    what it is stored."""

    configuration: str
    name: str
    first: RunRow
    scores: tuple[float, ...]
    score: float
    bytes: int
    seconds: float | None
    group: int | None

    @property
    def kind(self) -> str:
        return self.first.method if self.first.values is None else f"{self.first.method}, {self.first.values}"

    @property
    def letter(self) -> str:
        """a for the best group and those tied with it, then b; a number behind z."""
        if self.group is None:
            return ""
        return chr(ord("a") + self.group) if self.group < 26 else str(self.group + 1)


@dataclass(frozen=True)
class Amount:
    """All configurations of one amount of HSK, `share` of everything. `average` is over the configurations' means, `deviation` of
    all their runs; `best` is the best configuration, whose seeds lie from `low` to `high`."""

    label: str
    share: float
    configurations: int
    runs: int
    average: float
    deviation: float | None
    best: float
    best_name: str
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """Configurations that are compressed in one dimension alone, to `kept` layers, or to `kept` of the full length or width: the
    mean and the deviation of their runs."""

    series: str
    kept: float
    score: float
    deviation: float | None
    runs: int


def configured(rows: Iterable[RunRow], groups: Mapping[str, int]) -> list[Configured]:
    """Best first; of two that score alike the smaller."""
    done = [row for row in rows if row.status == "done"]
    names, found = names_of(done), dict[str, list[RunRow]]()
    for row in done:
        if row.score is not None and math.isfinite(row.score):
            found.setdefault(row.configuration, []).append(row)
    made = []
    for configuration, own in found.items():
        scores = tuple(float(row.score or 0) for row in own)
        seconds = [row.seconds_training for row in own if row.seconds_training is not None]
        mean = statistics.mean(scores)
        made.append(
            Configured(
                configuration,
                names[configuration],
                own[0],
                scores,
                mean,
                int(own[0].bytes or 0),
                statistics.mean(seconds) if seconds else None,
                groups.get(configuration),
            )
        )
    return sorted(made, key=lambda each: (-each.score, each.bytes))


def marginal(found: Sequence[Configured]) -> list[Amount]:
    """Figures 8 and 9: the teacher's predictions alone (0) first, everything (1) last. Amounts are those that the paper names;
    of other configurations, if they rank and mask as most do, the share of everything, to two digits. What one dimension alone
    was tried with has its own figures; all of it in fewer bytes is seen against these."""
    amounts: dict[tuple[str, float], list[Configured]] = {}
    ways = Counter(_way(each.first) for each in found if each.first.share_of_hsk and not each.first.series)
    usual = ways.most_common(1)[0][0] if ways else None
    for each in found:
        share = each.first.share_of_hsk
        if share is None or (share == 0 and each.first.method != Kd.name) or is_rounded(each.first):
            continue
        if share == 0 or is_everything(each.first):
            amounts.setdefault(("", 0.0 if share == 0 else 1.0), []).append(each)
        elif each.first.series.startswith(JOINT):
            amounts.setdefault((each.first.series, -1.0), []).append(each)
        elif not each.first.series and _way(each.first) == usual:
            amounts.setdefault(("", _rounded(share)), []).append(each)
    return sorted((_amount(label, share, own) for (label, share), own in amounts.items()), key=lambda each: each.share)


def _rounded(share: float) -> float:
    """To two digits; less than everything stays less."""
    return float(f"{share:.2g}") if share >= 1 else min(float(f"{share:.2g}"), 0.99)


def _way(row: RunRow) -> tuple[str | None, ...]:
    """How tokens and coordinates are chosen."""
    return row.rank, row.rank_layer, row.rank_score, row.mask


def _amount(label: str, share: float, own: Sequence[Configured]) -> Amount:
    best = max(own, key=lambda each: each.score)
    if share < 0:
        share = statistics.mean(float(each.first.share_of_hsk or 0) for each in own)
    named = {0.0: "predictions alone", 1.0: EVERYTHING}.get(share, f"{digits(100 * share)} % of everything")
    runs = [score for each in own for score in each.scores]
    return Amount(
        label=label or named,
        share=share,
        configurations=len(own),
        runs=len(runs),
        average=statistics.mean(each.score for each in own),
        deviation=deviation(runs),
        best=best.score,
        best_name=best.name,
        low=min(best.scores),
        high=max(best.scores),
    )


def singles(found: Sequence[Configured], dimension: Dimension) -> list[Point]:
    """Figures 3 to 5 and 7: configurations that keep all but in this dimension, by series; of depth with all layers too."""
    whole = next((each.first for each in found if is_everything(each.first)), None)
    alike: dict[tuple[str, float], list[float]] = {}
    for each in found:
        row, keep = each.first, kept_of(each.first)
        if keep is None or is_everything(row) or is_rounded(row) or row.series.startswith(JOINT):
            continue
        if any(not _is_all(getattr(keep, other)) for other in DIMENSIONS if other != dimension):
            continue
        count, full = getattr(row, dimension), None if whole is None else getattr(whole, dimension)
        if count is None or (dimension != "depth" and not full) or (_is_all(getattr(keep, dimension)) and dimension != "depth"):
            continue
        kept = float(count) if dimension == "depth" else count / full
        alike.setdefault((_series(row, dimension), kept), []).extend(each.scores)
    points = (Point(*key, statistics.mean(scores), deviation(scores), len(scores)) for key, scores in alike.items())
    return sorted(points, key=lambda point: (point.series, point.kept))


def front(found: Sequence[Configured]) -> list[Configured]:
    """Pareto's: those that no other one beats in score with as few bytes; the smallest first."""
    kept: list[Configured] = []
    for each in sorted(found, key=lambda each: (each.bytes, -each.score)):
        if not kept or each.score > kept[-1].score:
            kept.append(each)
    return kept


def telling(found: Sequence[Configured], chosen: str | None) -> list[tuple[str, Configured]]:
    """The configurations that a page tells more of, each once, and why it is one of them."""
    roles: list[tuple[str, Configured | None]] = [
        ("recommended", next((each for each in found if each.configuration == chosen), None)),
        ("best", found[0] if found else None),
        ("everything", next((each for each in found if is_everything(each.first)), None)),
        ("predictions alone", next((each for each in found if each.first.method == Kd.name), None)),
    ]
    told: dict[str, tuple[str, Configured]] = {}
    for role, each in roles:
        if each is not None:
            before = told.get(each.configuration)
            told[each.configuration] = (f"{before[0]}, {role}" if before else role, each)
    return list(told.values())


def kept_of(row: RunRow) -> Keep | None:
    """None where it reads no hidden states."""
    try:
        return None if row.keep is None else Keep.parse(row.keep)
    except OptionError:
        return None


def is_everything(row: RunRow) -> bool:
    """All of it, as it is."""
    return _is_whole(row) and not is_rounded(row) and row.series in ("", EVERYTHING)


def is_rounded(row: RunRow) -> bool:
    """All of it, in fewer bytes: as integers or codes."""
    return _is_whole(row) and any(row.values == name and not encoding.exact for name, encoding in ENCODINGS.items())


def _is_whole(row: RunRow) -> bool:
    keep = kept_of(row)
    return keep is not None and all(_is_all(getattr(keep, each)) for each in DIMENSIONS)


def _is_all(amount: object) -> bool:
    return amount == "all" or (isinstance(amount, float) and amount == 1.0)


def _series(row: RunRow, dimension: Dimension) -> str:
    if row.series:
        return row.series
    if dimension == "depth":
        return f"g(l, {row.top_layer}), {row.values}"
    return f"{row.mask}, {row.values}" if dimension == "width" else f"{row.rank}, {row.rank_layer}, {row.values}"
