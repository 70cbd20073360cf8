"""Gold labels alone: how a teacher is made, and the baseline that every distillation must beat."""

from dataclasses import dataclass
from typing import ClassVar

from hskstore.config import MethodName
from hskstore.losses import Term, hard_cross_entropy, score_mse
from hskstore.methods.batch import Batch, StudentOutput
from hskstore.methods.contract import Phase


@dataclass(frozen=True)
class Finetune:
    """Cross-entropy of classes, or squared difference of a score, against the gold label."""

    name: ClassVar[MethodName] = "finetune"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("label",)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("finetune", {"gold": 1.0}, schedule="linear", predicts=True, uses_hidden=False),)

    def __call__(self, phase: Phase, student: StudentOutput, batch: Batch) -> dict[str, Term]:
        return gold_terms(student, batch)


def gold_terms(student: StudentOutput, batch: Batch) -> dict[str, Term]:
    """The loss on the gold label."""
    assert batch.label is not None
    if student.logits.shape[1] > 1:
        return {"gold": hard_cross_entropy(student.logits, batch.label)}
    return {"gold": score_mse(student.logits, batch.label)}
