"""What a method of distillation is to the trainer: phases, and named, unweighted terms for each batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from hskstore.config import MethodName
from hskstore.losses import Term
from hskstore.methods.batch import Batch, StudentOutput
from hskstore.text.tasks import PhaseDefaults, TaskDefaults


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser. `weights` are those of the terms the method returns in it.

    A phase that `predicts` trains the student's head: its best step by the dev score is kept. Of one that does not the
    last step is kept, because no dev score means anything there.
    """

    name: str
    weights: Mapping[str, float]
    schedule: Literal["constant", "linear"]
    predicts: bool
    uses_hidden: bool

    def numbers(self, defaults: TaskDefaults) -> PhaseDefaults:
        """The paper's hyperparameters for this phase (Table 4)."""
        return defaults.prediction if self.predicts else defaults.hidden


class Method(Protocol):
    """A frozen dataclass; its fields are the method's options, each with a Doc: flags and recipes are made from them."""

    name: ClassVar[MethodName]

    @property
    def requires(self) -> tuple[str, ...]:
        """Arrays of the store's train group that the method reads."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]: ...

    def __call__(self, phase: Phase, student: StudentOutput, batch: Batch) -> Mapping[str, Term]:
        """The terms of these rows: one process's share of a batch, which may be none of it.

        A term that relates rows to each other asks for those of all processes with `losses.whole_batch`.
        """
        ...
