"""Conventional distillation (Hinton et al., 2015): the teacher's predictions, mixed with the gold labels if wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, RegressionTarget, check_choice, check_positive, check_share
from hskstore.errors import OptionError
from hskstore.features import TeacherShape, Want
from hskstore.losses import Term, logit_mse, reverse_kl, score_mse, soft_cross_entropy, standardised
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.finetune import gold_terms
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape

Divergence = Literal["forward", "reverse", "mse", "standardised"]


@dataclass(frozen=True)
class Kd:
    """(1 - alpha) x the loss on the teacher's predictions + alpha x the loss on the gold label.

    With the defaults it is the second phase of `Mud` alone: the paper's "prediction distillation". How far a student's
    predictions are from the teacher's is said by the soft cross-entropy ("forward", whose gradients are those of
    KL(teacher || student)), by KL(student || teacher) ("reverse"), by the squared difference of logits ("mse", which knows no
    temperature), or by the soft cross-entropy of each row's logits in standard deviations from their mean ("standardised": Sun et
    al., CVPR 2024). A score is learnt by its squared difference, and anything else is refused for it.
    """

    name: ClassVar[MethodName] = "kd"
    source: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.0
    divergence: Annotated[
        Divergence, Doc("Soft cross-entropy (forward) or also that of standardised logits, reverse KL, or mse of logits.")
    ] = "forward"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)
        check_choice("--divergence", self.divergence, get_args(Divergence))
        if self.divergence == "mse" and self.temperature != 1:
            raise OptionError(f"--temperature {self.temperature:g}: there is none with --divergence mse; leave it out")

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One. Raises OptionError for a divergence that a student of so few outputs cannot learn by."""
        if student.outputs == 1 and self.divergence != "forward":
            raise OptionError(
                f"--divergence {self.divergence} is of classes; a score is learnt by its squared difference: leave it out"
            )
        if student.outputs == 2 and self.divergence == "standardised":
            raise OptionError(
                "--divergence standardised teaches nothing of 2 classes, whose logits are -1 and 1 standard deviations from their"
                " mean whatever they are: choose another"
            )
        gold = {"gold": self.alpha} if self.alpha else {}
        weights = {"prediction": 1 - self.alpha} | gold
        return (Phase("prediction", weights, schedule="linear", predicts=True),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        """None: the student is trained alone."""

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if "prediction" in phase.weights:
            terms |= self._prediction(seen, batch)
        if "gold" in phase.weights:
            terms |= gold_terms(seen, batch)
        return terms

    def _prediction(self, seen: Seen, batch: Batch) -> dict[str, Term]:
        own, target = seen.logits, batch.teacher_logits
        if self.divergence == "forward":
            return prediction_terms(seen, batch, temperature=self.temperature)
        assert target is not None
        if self.divergence == "reverse":
            return {"prediction": reverse_kl(own, target, temperature=self.temperature)}
        if self.divergence == "mse":
            return {"prediction": logit_mse(own, target)}
        return {"prediction": soft_cross_entropy(standardised(own), standardised(target), temperature=self.temperature)}


def joint_phase(
    name: MethodName, weights: Mapping[str, float], alpha: float, *, reads: tuple[Want[Any], ...], sees: Sight
) -> tuple[Phase, ...]:
    """The one phase of a method that learns its own terms, by `weights`, at once with 1 - `alpha` of the teacher's predictions
    and `alpha` of the gold label."""
    whole = {**weights, "prediction": 1 - alpha, "gold": alpha}
    own = {term: weight for term, weight in whole.items() if weight}
    return (Phase(name, own, schedule="linear", predicts=True, reads=reads, sees=sees),)


def task_terms(phase: Phase, seen: Seen, batch: Batch, *, temperature: float) -> dict[str, Term]:
    """ "prediction" and "gold", where the phase weighs them."""
    terms: dict[str, Term] = {}
    if "prediction" in phase.weights:
        terms |= prediction_terms(seen, batch, temperature=temperature)
    return terms | (gold_terms(seen, batch) if "gold" in phase.weights else {})


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
