"""Marginal Utility Diminishes (Liu et al., ACL 2021): the kept hidden states first, then the teacher's predictions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

from annotated_doc import Doc

from hskstore.config import MethodName, RegressionTarget, Targets, check_choice, check_positive
from hskstore.losses import Term, kept_hidden_mse
from hskstore.methods.batch import Batch, StudentOutput
from hskstore.methods.contract import Phase
from hskstore.methods.kd import prediction_terms


@dataclass(frozen=True)
class Mud:
    """Section 3.3 of the paper: hidden states at a constant rate, then predictions at a decaying one.

    `targets`: coordinates that the width mask dropped are learnt as zero (the paper and its code) or ignored.
    `regression_target`: a score is learnt from the teacher's score (the paper) or the gold one (its code).
    """

    name: ClassVar[MethodName] = "mud"
    targets: Annotated[Targets, Doc("Learn masked-out units as zero, or ignore them.")] = "zero"
    regression_target: Annotated[RegressionTarget, Doc("Whose score to learn.")] = "teacher"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0

    def __post_init__(self) -> None:
        check_choice("--targets", self.targets, get_args(Targets))
        check_choice("--regression-target", self.regression_target, get_args(RegressionTarget))
        check_positive("--temperature", self.temperature)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("hidden/values", "logits", *(("label",) if self.regression_target == "gold" else ()))

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("hidden", {"hidden_mse": 1.0}, schedule="constant", predicts=False, uses_hidden=True),
            Phase("prediction", {"prediction": 1.0}, schedule="linear", predicts=True, uses_hidden=False),
        )

    def __call__(self, phase: Phase, student: StudentOutput, batch: Batch) -> dict[str, Term]:
        if not phase.uses_hidden:
            return prediction_terms(student, batch, temperature=self.temperature, regression_target=self.regression_target)
        targets = batch.hidden
        assert student.hidden is not None and targets is not None
        term = kept_hidden_mse(
            student.hidden, targets.values, targets.coordinate, token_kept=targets.token_kept, targets=self.targets
        )
        return {"hidden_mse": term}
