"""A run's numbers: each phase's from the task's recipe, and the user's where given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hskstore.config import (
    DEFAULT_WARMUP,
    check_count,
    check_positive,
    check_share,
)
from hskstore.errors import OptionError
from hskstore.methods import Method, Phase
from hskstore.stage_two.feed import Supply, steps_per_epoch
from hskstore.text.tasks import Recipe


@dataclass(frozen=True)
class Overrides:
    """What a user sets apart from the task's recipe, one value per phase or one for all; None: the recipe's.

    `max_steps` and `max_minutes` are of the whole run, shared among the phases in proportion to their steps; a decaying rate
    decays within them. `patience`: dev scores in a row that may be no better than the best before a phase ends.
    """

    epochs: Sequence[int] | None = None
    lr: Sequence[float] | None = None
    batch_size: Sequence[int] | None = None
    max_steps: int | None = None
    max_minutes: float | None = None
    patience: int | None = None
    warmup: float = DEFAULT_WARMUP

    def __post_init__(self) -> None:
        for option, counts in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            for count in () if counts is None else counts:
                check_count(option, count)
        for rate in () if self.lr is None else self.lr:
            check_positive("--lr", rate)
        check_count("--max-steps", self.max_steps)
        check_positive("--max-minutes", self.max_minutes)
        check_count("--patience", self.patience)
        check_share("--warmup", self.warmup)


@dataclass(frozen=True)
class PhaseSettings:
    """A phase with its numbers: at most `steps` of `batch_size` rows and `seconds` of time, at peak rate `lr`.

    `patience`: dev scores in a row that may be no better than the best before the phase ends. None: no such limit.
    """

    phase: Phase
    lr: float
    batch_size: int
    steps: int
    warmup: float = DEFAULT_WARMUP
    seconds: float | None = None
    patience: int | None = None

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.phase.schedule == "constant":
            return self.lr
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (self.steps - step) / max(1, self.steps - rising)

    def progress(self, step: int, seconds: float) -> int:
        """The step that schedules go by: where time is short, it runs ahead of the steps done, and both end together."""
        if self.seconds is None:
            return step
        return max(step, min(self.steps - 1, int(self.steps * seconds / self.seconds)))


def phase_settings(method: Method, recipe: Recipe, supply: Supply, overrides: Overrides) -> list[PhaseSettings]:
    """Each phase's numbers: the recipe's, the user's where given."""
    phases = method.phases
    epochs = _per_phase("--epochs", overrides.epochs, [phase.numbers(recipe).epochs for phase in phases])
    rates = _per_phase("--lr", overrides.lr, [phase.numbers(recipe).lr for phase in phases])
    sizes = _per_phase("--batch-size", overrides.batch_size, [phase.numbers(recipe).batch_size for phase in phases])
    steps = [steps_per_epoch(supply, size) * count for size, count in zip(sizes, epochs, strict=True)]
    if overrides.max_steps is not None and sum(steps) > overrides.max_steps:
        if overrides.max_steps < len(steps):
            raise OptionError(f"--max-steps {overrides.max_steps}: the method has {len(steps)} phases, of at least a step each")
        steps = _share_steps(overrides.max_steps, steps)
    minutes = overrides.max_minutes
    seconds = [None if minutes is None else 60 * minutes * count / sum(steps) for count in steps]
    return [
        PhaseSettings(phase, lr, size, count, overrides.warmup, limit, overrides.patience)
        for phase, lr, size, count, limit in zip(phases, rates, sizes, steps, seconds, strict=True)
    ]


def _share_steps(most: int, steps: list[int]) -> list[int]:
    """`most` steps in proportion to `steps`, at least one each."""
    shared: list[int] = []
    for index, count in enumerate(steps):
        left, later = most - sum(shared), len(steps) - index - 1
        shared.append(min(left - later, max(1, round(left * count / sum(steps[index:])))))
    return shared


def _per_phase(option: str, given: Sequence[Any] | None, recipe: list[Any]) -> list[Any]:
    if given is None:
        return recipe
    values = list(given) * len(recipe) if len(given) == 1 else list(given)
    if len(values) != len(recipe):
        raise OptionError(f"{option}: {len(values)} values for {len(recipe)} phases; give one for all, or one for each")
    return values
