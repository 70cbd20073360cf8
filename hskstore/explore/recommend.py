"""In words, from a sweep's table: which configuration to take, why, what it costs, and how sure that is."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tomli_w
from jaxtyping import Float

from hskstore.config import Strategy
from hskstore.explore.bootstrap import DRAWS, draws, groups, interval
from hskstore.explore.report_parts import percent
from hskstore.explore.runs import Predictions, RunRow, SweepFacts, SweepFolder, names_of
from hskstore.layers import plan_strategy
from hskstore.methods import Finetune, Kd, Mud
from hskstore.options import options_of
from hskstore.readable import duration, size
from hskstore.stage_two.recipe import METHOD, Recipe, recipe_options
from hskstore.text.tasks import Task

ENOUGH_SEEDS = 3
MANY = 10
"""Configurations of which the best owes some of its score to luck."""


@dataclass(frozen=True)
class Standing:
    """A configuration among the others: the mean `score` of its `seeds`, `bytes` that it reads, mean `seconds` of training.

    The best one scores `behind` more, and 95 % of the draws of the rows lie from `low` to `high`. Those of one `group` cannot be
    told from the first of them; `tied`: in the group of the best, which is 0.
    """

    configuration: str
    name: str
    series: str
    method: str
    score: float
    seeds: list[float]
    bytes: int
    units_of_hsk: float | None
    share_of_hsk: float | None
    seconds: float
    steps: int
    behind: float
    low: float
    high: float
    group: int
    tied: bool


@dataclass(frozen=True)
class Recommendation:
    """`chosen` is the smallest configuration that cannot be told from the `best`; both are None where too few runs are there to
    say anything. `standings` are all, best first; `words` say it in paragraphs."""

    metric: str
    rows: int
    chosen: Standing | None
    best: Standing | None
    standings: list[Standing]
    words: list[str]


def recommend(sweep: str | Path) -> Recommendation:
    """From the folder of a sweep or search. Raises OptionError where there is none."""
    folder = SweepFolder(sweep)
    facts = folder.facts()
    rows = folder.rows()
    done = [row for row in rows if row.status == "done"]
    said = {row.run: folder.predictions(row.run) for row in done}
    standings = _standings(facts, done, said)
    number = sum(facts.rows.values())
    failed = [row for row in rows if row.status == "failed"]
    if len(standings) < 2:
        return Recommendation(facts.metric, number, None, None, standings, _nothing(standings, failed))
    best = standings[0]
    chosen = min((each for each in standings if each.tied), key=lambda each: (each.bytes, -each.score))
    words = [
        _what(chosen, facts.metric),
        _why(chosen, best, standings, number),
        _cost(chosen, best, next(row for row in done if row.configuration == chosen.configuration), facts),
        _how_sure(chosen, best, standings, _against_kd(facts, chosen, standings, done, said)),
        *_left_out(failed),
    ]
    return Recommendation(facts.metric, number, chosen, best, standings, words)


# --- numbers


def _standings(facts: SweepFacts, done: Sequence[RunRow], said: Mapping[str, Predictions]) -> list[Standing]:
    """Best first; of two that score alike the smaller."""
    found: dict[str, list[RunRow]] = {}
    for row in done:
        found.setdefault(row.configuration, []).append(row)
    if not found:
        return []
    drawn = _drawn(facts, found, said)
    scores = {name: statistics.mean(float(row.score or 0) for row in rows) for name, rows in found.items()}
    sizes = {name: int(rows[0].bytes or 0) for name, rows in found.items()}
    order = sorted(found, key=lambda name: (-scores[name], sizes[name]))
    best, names = order[0], names_of(done)
    group = {name: place for place, names in enumerate(groups({name: scores[name] for name in order}, drawn)) for name in names}
    standings = []
    for name in order:
        rows, (low, high) = found[name], interval(drawn[best], drawn[name])
        standings.append(
            Standing(
                configuration=name,
                name=names[name],
                series=rows[0].series,
                method=rows[0].method,
                score=scores[name],
                seeds=[float(row.score or 0) for row in rows],
                bytes=sizes[name],
                units_of_hsk=rows[0].units_of_hsk,
                share_of_hsk=rows[0].share_of_hsk,
                seconds=statistics.mean(float(row.seconds_training or 0) for row in rows),
                steps=int(rows[0].steps or 0),
                behind=scores[best] - scores[name],
                low=low,
                high=high,
                group=group[name],
                tied=group[name] == 0,
            )
        )
    return standings


def _drawn(
    facts: SweepFacts, found: Mapping[str, Sequence[RunRow]], said: Mapping[str, Predictions]
) -> dict[str, Float[np.ndarray, " draw"]]:
    gold = said[next(iter(found.values()))[0].run].label
    logits = {name: [said[row.run].logits for row in rows] for name, rows in found.items()}
    return draws(Task.from_json(facts.task), logits, gold)


# --- words


def _nothing(standings: Sequence[Standing], failed: Sequence[RunRow]) -> list[str]:
    there = f"one configuration, {standings[0].name}, has runs" if standings else "no configuration has a run"
    return [
        f"Nothing can be said yet: {there} that came to an end, and it takes two to compare. The command that made this sweep"
        " goes on with it.",
        *_left_out(failed),
    ]


def _what(chosen: Standing, metric: str) -> str:
    seeds = ", ".join(f"{score:.4f}" for score in chosen.seeds)
    of = f"the mean of {len(chosen.seeds)} seeds ({seeds})" if len(chosen.seeds) > 1 else "of one seed"
    units = f", {chosen.units_of_hsk:.3g} units of HSK a row" if chosen.units_of_hsk else ""
    share = f", {percent(chosen.share_of_hsk)} of everything" if chosen.share_of_hsk else ""
    return f"Take {chosen.name}: {metric} {chosen.score:.4f}, {of}, from {size(chosen.bytes)}{units}{share}."


def _why(chosen: Standing, best: Standing, standings: Sequence[Standing], rows: int) -> str:
    tied = [each for each in standings if each.tied]
    of = f"{len(tied)} of {len(standings)} configurations cannot be told from the best"
    if len(tied) == 1:
        return (
            f"Why: it is the best of {len(standings)} configurations, and every other one is worse in 97.5 % of {DRAWS:,} draws"
            f" of the {rows:,} scored rows."
        )
    if chosen is best:
        return f"Why: it is the best, and the smallest of those that cannot be told from it ({of})."
    larger = "" if not chosen.bytes else f", {best.bytes / chosen.bytes:.1f} times the bytes"
    return (
        f"Why: {of}, {best.name} with {best.score:.4f} from {size(best.bytes)}{larger}; this is the smallest of them. It is"
        f" {chosen.behind:.4f} behind, and in 95 % of {DRAWS:,} draws of the {rows:,} scored rows from {chosen.low:.4f} to"
        f" {chosen.high:.4f}."
    )


def _cost(chosen: Standing, best: Standing, row: RunRow, facts: SweepFacts) -> str:
    seconds = f"A student trained {duration(chosen.seconds)}, {chosen.steps} steps"
    if chosen is not best:
        seconds += f"; from the best {duration(best.seconds)}, {best.steps} steps"
    if chosen.method == Finetune.name:
        return (
            f"What it costs: no teacher, for it learns from the labels alone: {size(chosen.bytes)} of tokens and labels, which"
            f" every store of the data has. {seconds}."
        )
    learner, file = _learner(row)
    kept, derived = [f"--for {learner}"] if learner else [], ""
    if row.keep is not None:
        usual = asdict(plan_strategy(Strategy(facts.student_layers), facts.teacher_layers))
        own = {name: getattr(row, "rank_score" if name == "score" else name) for name in usual if name != "student_layers"}
        chosen_by = [f"--{name.replace('_', '-')} {value}" for name, value in own.items() if value != usual[name]]
        kept += [f"--keep {row.keep}", *chosen_by]
    kept.append(f"--student-layers {facts.student_layers} --out DIR")
    if learner is None:
        derived = f"; or, of the rich store, hsk derive RICH {' '.join(kept)}"
    return (
        f"What it costs: {size(chosen.bytes)} of a store, for which the teacher runs once over the data: hsk extract TEACHER"
        f" DATA {' '.join(kept)} (hsk plan with the same says how long){file}{derived}. {seconds}."
    )


def _learner(row: RunRow) -> tuple[str | None, str]:
    """What --for takes, None where --keep says it all, and of a recipe file what it has to say: a method's defaults may read
    other layers than its run did."""
    decide = recipe_options().keys() - options_of(Recipe).keys()
    given = {METHOD.name: row.method} | {name: value for name, value in json.loads(row.options).items() if name in decide}
    reading = Recipe.of(given).reading
    if row.keep is not None and all(isinstance(part, Mud) for part in reading):
        return None, ""
    if reading == Recipe.of({METHOD.name: row.method}).reading:
        return row.method, ""
    return "recipe.toml", f", where recipe.toml is a file of the lines {' and '.join(tomli_w.dumps(given).splitlines())}"


def _how_sure(chosen: Standing, best: Standing, standings: Sequence[Standing], against_kd: str) -> str:
    fewest = min(len(each.seeds) for each in standings)
    said = []
    if chosen is not best:
        said.append(f"it may be up to {max(0.0, chosen.high):.4f} worse than the best; more than that 2.5 % of the draws say")
    if fewest < ENOUGH_SEEDS:
        every = all(len(each.seeds) == fewest for each in standings)
        seeds = f"{'is one seed' if fewest == 1 else f'are {fewest} seeds'} of {'each' if every else 'some'}"
        said.append(f"not very: there {seeds}, and others may turn the order; hsk sweep --seeds {ENOUGH_SEEDS} does them")
    else:
        spread = max(max(each.seeds) - min(each.seeds) for each in standings if each.tied)
        said.append(
            f"each has {fewest} seeds or more, which lie up to {spread:.4f} apart; the interval is over rows, not over seeds"
        )
    if len(standings) > MANY:
        said.append(
            f"the best of {len(standings)} owes some of its score to luck, which makes the choice too big sooner than too small"
        )
    steps = sorted({each.steps for each in standings if each.tied})
    if len(steps) > 1:
        said.append(f"those that are tied took from {steps[0]} to {steps[-1]} steps, which is not the same chance")
    return f"How sure: {'; '.join(said)}.{against_kd}"


def _against_kd(
    facts: SweepFacts,
    chosen: Standing,
    standings: Sequence[Standing],
    done: Sequence[RunRow],
    said: Mapping[str, Predictions],
) -> str:
    """What hidden states, or whatever was chosen, are worth at all."""
    alone = next((each for each in standings if each.method == Kd.name), None)
    if alone is None:
        return ""
    if chosen.method == Kd.name:
        return " As far as these runs can tell, nothing of the teacher's inside is needed: its predictions alone teach as well."
    both = {each.configuration: [row for row in done if row.configuration == each.configuration] for each in (chosen, alone)}
    drawn = _drawn(facts, both, said)
    low, high = interval(drawn[chosen.configuration], drawn[alone.configuration])
    return (
        f" Against the teacher's predictions alone ({alone.name}, {alone.score:.4f}) it is {chosen.score - alone.score:+.4f},"
        f" 95 % from {low:+.4f} to {high:+.4f}."
    )


def _left_out(failed: Sequence[RunRow]) -> list[str]:
    if not failed:
        return []
    runs = f"{len(failed)} runs" if len(failed) > 1 else "A run"
    return [f"{runs} failed and {'are' if len(failed) > 1 else 'is'} not counted; {failed[0].run}: {failed[0].why}"]
