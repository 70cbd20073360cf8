"""Conventional distillation (Hinton et al., 2015): the teacher's predictions, mixed with the gold labels if wanted."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, RegressionTarget, check_positive, check_share
from hskstore.features import TeacherShape
from hskstore.losses import Term, score_mse, soft_cross_entropy
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.finetune import gold_terms
from hskstore.models.observe import Seen
from hskstore.models.run import ModelShape


@dataclass(frozen=True)
class Kd:
    """(1 - alpha) x the loss on the teacher's predictions + alpha x the loss on the gold label.

    With the defaults it is the second phase of `Mud` alone: the paper's "prediction distillation".
    """

    name: ClassVar[MethodName] = "kd"
    source: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.0

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        gold = {"gold": self.alpha} if self.alpha else {}
        weights = {"prediction": 1 - self.alpha} | gold
        return (Phase("prediction", weights, schedule="linear", predicts=True, reads_labels=bool(gold)),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        return None

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if "prediction" in phase.weights:
            terms |= prediction_terms(seen, batch, temperature=self.temperature)
        if "gold" in phase.weights:
            terms |= gold_terms(seen, batch)
        return terms


def prediction_terms(
    seen: Seen, batch: Batch, *, temperature: float, regression_target: RegressionTarget = "teacher"
) -> dict[str, Term]:
    """The loss on the teacher's predictions: soft cross-entropy of classes, squared difference of a score."""
    if seen.logits.shape[1] == 1 and regression_target == "gold":
        return {"prediction": gold_terms(seen, batch)["gold"]}
    assert batch.teacher_logits is not None
    if seen.logits.shape[1] > 1:
        return {"prediction": soft_cross_entropy(seen.logits, batch.teacher_logits, temperature=temperature)}
    return {"prediction": score_mse(seen.logits, batch.teacher_logits.squeeze(1))}
