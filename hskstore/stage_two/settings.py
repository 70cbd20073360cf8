"""A run's numbers: each phase's from the recipe, and the task's where it has none."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from hskstore.config import DEFAULT_PRUNE_SHARE, DEFAULT_WARMUP, Loader, TrainPrecision
from hskstore.errors import OptionError
from hskstore.features import RowTargets, Want
from hskstore.methods import Phase, Selection
from hskstore.methods.selection import seeing_state
from hskstore.stage_two.feed import Supply, steps_per_epoch
from hskstore.stage_two.recipe import Recipe
from hskstore.text.tasks import Task, TaskDefaults

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Choice:
    """That the learner's chooser weighs `terms` anew at every step, from what `want` tells of the teacher, if anything. If it is
    `learning`, by the rewards that the phase gives it. `options` are those of its own, in words."""

    terms: tuple[str, ...]
    want: Want[RowTargets] | None
    learning: bool
    options: str


@dataclass(frozen=True)
class PhaseSettings:
    """A phase with its numbers: at most `steps` of `batch_size` rows and `seconds` of time, at peak rate `lr`.

    `patience`: dev scores in a row that may be no better than the best before the phase ends. None: no such limit. Where a
    `choice` is learning, this phase and those that follow begin from the student as it was when the run began.
    """

    phase: Phase
    lr: float
    batch_size: int
    steps: int
    warmup: float = DEFAULT_WARMUP
    seconds: float | None = None
    patience: int | None = None
    choice: Choice | None = None

    @property
    def read(self) -> Phase:
        """The phase with all that is read and seen in it; the method knows nothing of what its chooser looks at."""
        want = self.choice.want if self.choice is not None else None
        return self.phase if want is None else seeing_state(self.phase, want)

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

    def described(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that stopped, as JSON. What is learnt of the teacher follows
        from the method, the student and the store."""
        phase = self.phase
        told = {"name": phase.name, "weights": dict(phase.weights), "schedule": phase.schedule, "predicts": phase.predicts}
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "choice"} | {"phase": told}
        if self.choice is not None:
            own["choice"] = [list(self.choice.terms), self.choice.learning, self.choice.options]
        return own


def for_task(recipe: Recipe, phases: Sequence[Phase], defaults: TaskDefaults) -> Recipe:
    """The recipe with a number for each phase: the task's where it has none. Raises OptionError for too many or few."""
    numbers = [phase.numbers(defaults) for phase in phases]
    return replace(
        recipe,
        epochs=_per_phase("--epochs", recipe.epochs, tuple(each.epochs for each in numbers)),
        lr=_per_phase("--lr", recipe.lr, tuple(each.lr for each in numbers)),
        batch_size=_per_phase("--batch-size", recipe.batch_size, tuple(each.batch_size for each in numbers)),
    )


def phase_settings(recipe: Recipe, phases: Sequence[Phase], defaults: TaskDefaults, supply: Supply) -> list[PhaseSettings]:
    """Each phase's numbers: the recipe's, the task's where it has none. Raises OptionError."""
    recipe = for_task(recipe, phases, defaults)
    assert recipe.epochs is not None and recipe.lr is not None and recipe.batch_size is not None
    steps = [steps_per_epoch(supply, size) * count for size, count in zip(recipe.batch_size, recipe.epochs, strict=True)]
    if recipe.max_steps is not None and sum(steps) > recipe.max_steps:
        if recipe.max_steps < len(steps):
            raise OptionError(f"--max-steps {recipe.max_steps}: the method has {len(steps)} phases, of at least a step each")
        steps = _share_steps(recipe.max_steps, steps)
    minutes = recipe.max_minutes
    seconds = [None if minutes is None else 60 * minutes * count / sum(steps) for count in steps]
    return [
        PhaseSettings(phase, lr, size, count, recipe.warmup, limit, recipe.patience)
        for phase, lr, size, count, limit in zip(phases, recipe.lr, recipe.batch_size, steps, seconds, strict=True)
    ]


def with_episodes(
    settings: Sequence[PhaseSettings], selection: Selection, terms: tuple[str, ...], want: Want[RowTargets] | None
) -> list[PhaseSettings]:
    """The one phase of a run whose `terms` are chosen, and before it, where the selector learns, as many trainings like it as
    there are episodes, of which the last step is kept and no dev score is asked for."""
    (last,) = settings
    choice = Choice(terms, want, False, repr(selection))
    episodes = range(1, selection.episodes + 1) if selection.learns else ()
    return [
        *(
            replace(
                last,
                phase=replace(last.phase, name=f"episode-{number}", predicts=False),
                choice=replace(choice, learning=True),
            )
            for number in episodes
        ),
        replace(last, choice=choice),
    ]


def _share_steps(most: int, steps: list[int]) -> list[int]:
    """`most` steps in proportion to `steps`, at least one each."""
    shared: list[int] = []
    for index, count in enumerate(steps):
        left, later = most - sum(shared), len(steps) - index - 1
        shared.append(min(left - later, max(1, round(left * count / sum(steps[index:])))))
    return shared


def _per_phase(option: str, given: tuple[Number, ...] | None, defaults: tuple[Number, ...]) -> tuple[Number, ...]:
    if given is None:
        return defaults
    values = given * len(defaults) if len(given) == 1 else given
    if len(values) != len(defaults):
        raise OptionError(f"{option}: {len(values)} values for {len(defaults)} phases; give one for all, or one for each")
    return values


def completed(recipe: Recipe, phases: Sequence[Phase], task: Task, precision: TrainPrecision, loader: Loader) -> Recipe:
    """The recipe with nothing left open, so that it makes the same student wherever it is followed."""
    share = recipe.prune_share if recipe.prune_to is None or recipe.prune_share is not None else DEFAULT_PRUNE_SHARE
    return replace(
        for_task(recipe, phases, task.defaults),
        precision=precision,
        loader=loader,
        prune_share=share,
        selection=recipe.selection or recipe.selects,
    )
