"""Conventional distillation (Hinton et al., 2015): the teacher's predictions, mixed with the gold labels if wanted."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc

from hskstore.config import MethodName, check_positive, check_share
from hskstore.losses import Term, score_mse, soft_cross_entropy
from hskstore.methods.batch import Batch, StudentOutput
from hskstore.methods.contract import Phase
from hskstore.methods.finetune import gold_terms


@dataclass(frozen=True)
class Kd:
    """(1 - alpha) x the loss on the teacher's predictions + alpha x the loss on the gold label.

    With the defaults it is the second phase of `Mud` alone: the paper's "prediction distillation".
    """

    name: ClassVar[MethodName] = "kd"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.0

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("logits", *(("label",) if self.alpha else ()))

    @property
    def phases(self) -> tuple[Phase, ...]:
        weights = {"prediction": 1 - self.alpha} | ({"gold": self.alpha} if self.alpha else {})
        return (Phase("prediction", weights, schedule="linear", predicts=True, uses_hidden=False),)

    def __call__(self, phase: Phase, student: StudentOutput, batch: Batch) -> dict[str, Term]:
        terms = prediction_terms(student, batch, temperature=self.temperature, regression_target="teacher")
        return terms | (gold_terms(student, batch) if self.alpha else {})


def prediction_terms(student: StudentOutput, batch: Batch, *, temperature: float, regression_target: str) -> dict[str, Term]:
    """The loss on the teacher's predictions: soft cross-entropy of classes, squared difference of a score."""
    assert batch.teacher_logits is not None
    if student.logits.shape[1] > 1:
        return {"prediction": soft_cross_entropy(student.logits, batch.teacher_logits, temperature=temperature)}
    if regression_target == "gold":
        return {"prediction": gold_terms(student, batch)["gold"]}
    return {"prediction": score_mse(student.logits, batch.teacher_logits.squeeze(1))}
