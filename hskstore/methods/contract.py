"""What a method of distillation is to the trainer: phases, aids, and named, unweighted terms for each batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from hskstore.features import TeacherShape, Want
from hskstore.losses import Term
from hskstore.methods.batch import Batch
from hskstore.models.observe import NOTHING, Seen, Sight
from hskstore.models.run import ModelShape
from hskstore.text.tasks import PhaseDefaults, TaskDefaults


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser. `weights` are those of the terms the method returns in it: "mud.hidden" is the method's own,
    "prediction" and "gold" belong to the run.

    It `reads` knowledge from the store and `sees` the student's inside; the terms `labelled` read the labels. One that `predicts`
    trains the student's head: its best step by the dev score is kept. Of one that does not the last step is kept, because no dev
    score means anything there.
    """

    name: str
    weights: Mapping[str, float]
    schedule: Literal["constant", "linear"]
    predicts: bool
    reads: tuple[Want[Any], ...] = ()
    sees: Sight = NOTHING
    labelled: frozenset[str] = frozenset({"gold"})

    @property
    def reads_labels(self) -> bool:
        """Whether a term that it weighs reads the labels."""
        return not self.labelled.isdisjoint(self.weights)

    def numbers(self, defaults: TaskDefaults) -> PhaseDefaults:
        """The paper's hyperparameters for this phase (Table 4)."""
        return defaults.prediction if self.predicts else defaults.hidden


class Method(Protocol):
    """A frozen dataclass; its fields are the method's options, each with a Doc: flags and recipes are made from them."""

    @property
    def name(self) -> str:
        """One of `MethodName`; of several methods in one run theirs, with + between them."""
        ...

    @property
    def source(self) -> str:
        """Paper and section."""
        ...

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """What each reads, sees and weighs. Raises OptionError or ModelError where it cannot be done with these two."""
        ...

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """What is trained with the student and dropped when it is saved, such as a projection."""
        ...

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> Mapping[str, Term]:
        """The terms that the phase weighs, of these rows: one process's share of a batch, which may be none of it.

        A term that relates rows to each other asks for those of all processes with `losses.whole_batch`.
        """
        ...


State = tuple[Float[Tensor, "_rows _own"], Float[Tensor, "_rows _other"]]
"""What a chooser looks at: [CLS] vectors of a whole batch, of the student's last layer and of the teacher's, without
gradients."""


class Chooser(Protocol):
    """Who weighs some terms anew at every step: an nn.Module beside the student, whose state_dict is all that it remembers, so
    that checkpoints hold it."""

    @property
    def terms(self) -> tuple[str, ...]: ...

    def weigh(self, number: int, state: State | None, *, seed: int, learning: bool) -> Float[Tensor, " term"]:
        """What the weights of its terms are multiplied by at step `number` of a training; `seed` is its own, and `state`
        is None where it looks at nothing."""
        ...


class LearningChooser(Chooser, Protocol):
    """One that learns. The training that it learns by calls `begin`, then `weigh` and `follow` at each step, then `finish`.

    `worth` is how good the student is: less its loss on validation rows, or its metric. It takes time, and is asked for where a
    reward is due.
    """

    def begin(self, worth: Callable[[], float]) -> None: ...

    def follow(self, done: int, taken: Float[Tensor, " term"], worth: Callable[[], float]) -> None:
        """So many steps are done, the last one with the weights that were `taken`: on every process those of the first one."""
        ...

    def finish(self, done: int, worth: Callable[[], float]) -> None: ...
