"""Options of a run whose terms are weighed anew at every step (KSM), whatever method they are of."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal, get_args

from annotated_doc import Doc

from hskstore.config import check_choice, check_count, check_not_negative, check_positive, check_share
from hskstore.errors import OptionError
from hskstore.features import CLS, RowTargets, TeacherShape, Want
from hskstore.layers import LayerPair
from hskstore.methods.contract import Phase
from hskstore.models.observe import Sight
from hskstore.models.run import ModelShape

Action = Literal["soft", "hard", "random-soft", "random-hard", "fixed"]
Reward = Literal["loss", "metric"]
TRAINING = {"episodes", "phase_steps", "reward", "exploration_scale", "discount", "selector_lr", "threshold"}
"""Options of what is learnt alone."""

LEAST_DISCOUNT = 1e-6
"""Of the last step of a phase: Equation 11 divides by it, and squares what comes of that."""


@dataclass(frozen=True)
class Terms:
    """Names of terms, each once. Raises OptionError."""

    EXPECTED: ClassVar[str] = "names of two terms or more with commas between them, such as mud.hidden,ckd.word_pair,prediction"
    REPEATED: ClassVar[bool] = True

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            if not name or set(name) & set(",= \t\n") or not name.isprintable():
                raise OptionError(f"--select: {name!r} is no name of a term; expected {self.EXPECTED}")
            if self.names.count(name) > 1:
                raise OptionError(f"--select: {name} stands there {self.names.count(name)} times; once is enough")
        if len(self.names) < 2:
            raise OptionError(f"--select {self}: expected {self.EXPECTED}")

    @classmethod
    def parse(cls, text: str) -> "Terms":
        """Read "mud.hidden,prediction". Raises OptionError."""
        return cls(tuple(name.strip() for name in text.split(",")))

    def __str__(self) -> str:
        return ",".join(self.names)


@dataclass(frozen=True)
class Selection:
    """How the weights of some terms are chosen at every step: an actor's outputs multiply the phase's own weights.

    `select` None: the four of `ksm`. Each of `episodes` trains the student from its start, with as many steps as the student
    will then have, while the selector learns; `phase_steps` of 1 is the usual actor-critic, whose rewards then have no discount.
    With `selector`, one that was trained before, there are no episodes; its terms, its action and its threshold are its own.
    "random-soft" and "random-hard" draw weights, "fixed" leaves them as they are.

    Raises OptionError for what makes no sense.
    """

    select: Annotated[Terms | None, Doc("Terms whose weights are chosen, of any methods. Default: those of ksm.")] = None
    action: Annotated[
        Action, Doc("Weights from 0 to 1 (soft), terms in or out (hard), either at random, or none chosen (fixed).")
    ] = "soft"
    threshold: Annotated[float, Doc("From which on a hard action takes a term in.")] = 0.2
    episodes: Annotated[int, Doc("Trainings of the student by which the selector learns, before the one that counts.")] = 5
    phase_steps: Annotated[int, Doc("Steps between two rewards of the selector.")] = 64
    reward: Annotated[Reward, Doc("How far the loss on validation rows falls, or its metric rises.")] = "loss"
    exploration_scale: Annotated[float, Doc("Of the reward for actions unlike those before.")] = 0.1
    discount: Annotated[float, Doc("Of rewards, a step.")] = 0.98
    selector_lr: Annotated[float, Doc("Learning rate of actor and critic.")] = 2e-4
    selector: Annotated[str | None, Doc("A folder with a trained selector to use; none is trained then. Default: none.")] = None

    def __post_init__(self) -> None:
        check_choice("--action", self.action, get_args(Action))
        check_share("--threshold", self.threshold)
        check_count("--episodes", self.episodes)
        check_count("--phase-steps", self.phase_steps)
        check_choice("--reward", self.reward, get_args(Reward))
        check_not_negative("--exploration-scale", self.exploration_scale)
        check_share("--discount", self.discount)
        check_positive("--discount", self.discount)
        check_positive("--selector-lr", self.selector_lr)
        if self.selector is not None:
            self._leave_out(
                f"--selector {self.selector} brings its own options", {each.name for each in fields(self)} - {"selector"}
            )
        if not self.looks:
            self._leave_out(f"--action {self.action} trains no selector", TRAINING)
        if self.action == "soft":
            self._leave_out("--action soft takes in all terms", {"threshold"})
        if self.discount**self.phase_steps < LEAST_DISCOUNT:
            raise OptionError(
                f"--discount {self.discount:g} over --phase-steps {self.phase_steps}: nothing would be left of the reward of a"
                " phase's last steps; choose a discount nearer to 1, or fewer steps"
            )

    def _leave_out(self, why: str, names: set[str]) -> None:
        """Raise OptionError where one of these options is not its default."""
        changed = [each.name for each in fields(self) if each.name in names and getattr(self, each.name) != each.default]
        if changed:
            raise OptionError(f"{why}: leave out {', '.join('--' + name.replace('_', '-') for name in changed)}")

    @property
    def looks(self) -> bool:
        """Whether a selector looks at what is learnt; weights at random look at nothing."""
        return self.action in ("soft", "hard")

    @property
    def learns(self) -> bool:
        """Whether there is a selector to train."""
        return self.looks and self.selector is None


def chosen_terms(selection: Selection, weighed: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The terms whose weights are chosen, of those that a phase weighs: the ones named, or, where none is, `own`.

    Raises OptionError for one that is not weighed, and where fewer than two are left.
    """
    names = selection.select.names if selection.select is not None else tuple(name for name in own if name in weighed)
    for name in names:
        if name not in weighed:
            raise OptionError(f"--select {name}: there is no such term; those that are weighed are {', '.join(weighed)}")
    if len(names) < 2:
        raise OptionError(
            f"--action {selection.action}: of {', '.join(weighed)} {', '.join(names) or 'nothing'} is left to choose among; give"
            " two terms a weight, or choose --action fixed"
        )
    return names


def state_want(teacher: TeacherShape, student: ModelShape) -> Want[RowTargets]:
    """What a selector looks at: the [CLS] vectors of both last layers. Raises ModelError for a student that shows none."""
    return Want(CLS, (LayerPair(student.layers, teacher.layers),))


def seeing_state(phase: Phase, want: Want[RowTargets]) -> Phase:
    """The phase for who reads the store and watches the student: it reads and sees this besides, which no method knows of."""
    sees = phase.sees | Sight(hidden=frozenset(pair.student for pair in want.pairs))
    return replace(phase, reads=(*phase.reads, want), sees=sees)
