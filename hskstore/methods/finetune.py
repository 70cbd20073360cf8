"""Gold labels alone: how a teacher is made, and the baseline that every distillation must beat."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from hskstore.config import MethodName
from hskstore.features import TeacherShape
from hskstore.losses import Term, hard_cross_entropy, score_mse
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.models.observe import Seen
from hskstore.models.run import ModelShape

PHASE = Phase("finetune", {"gold": 1.0}, schedule="linear", predicts=True)


@dataclass(frozen=True)
class Finetune:
    """Cross-entropy of classes, or squared difference of a score, against the gold label."""

    name: ClassVar[MethodName] = "finetune"
    source: ClassVar[str] = "none: supervised learning"

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, at a decaying rate, in which nothing of the teacher is read."""
        return (PHASE,)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        """None: the student is trained alone."""

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        return gold_terms(seen, batch)


def gold_terms(seen: Seen, batch: Batch) -> dict[str, Term]:
    """The loss on the gold label."""
    assert batch.label is not None
    if seen.logits.shape[1] > 1:
        return {"gold": hard_cross_entropy(seen.logits, batch.label)}
    return {"gold": score_mse(seen.logits, batch.label)}
