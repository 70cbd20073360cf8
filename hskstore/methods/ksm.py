"""Knowledge selection (Wang et al., EMNLP Findings 2023): four kinds of knowledge, chosen among at every step."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

import torch
from annotated_doc import Doc
from jaxtyping import Float
from torch import Tensor, nn

from hskstore.config import MethodName, Projection, check_choice, check_positive
from hskstore.errors import OptionError
from hskstore.features import CLS, RowTargets, TeacherShape, Want
from hskstore.layers import LayerPair, even_layer
from hskstore.losses import Reduction, Term, direction_distance, flow_mse, reverse_kl
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.finetune import gold_terms
from hskstore.methods.kd import prediction_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape

TERMS = ("gold", "prediction", "ksm.feature", "ksm.relation")
"""FinK, ResK, FeaK and RelK: the order of the paper's actions."""

FLOW_WEIGHT = 1000.0
"""Of a mean over the width^2 entries of a product: the gradients of all four terms are then about as long (MiniLM, 384 wide)."""


@dataclass(frozen=True)
class Ksm:
    """Four kinds of knowledge, of which an actor chooses how much to learn at every step: the gold label (FinK, "gold"), the
    teacher's predictions (ResK, "prediction"), the directions of [CLS] vectors (FeaK, "ksm.feature") and how they go from layer
    to layer (RelK, "ksm.relation"): Equations 14 to 18.

    The actor sees features of the last [CLS] vectors of student and teacher, of the whole batch, and is trained with a critic by
    how far the loss on validation rows falls in each --phase-steps steps, over --episodes trainings of the student from its
    start; then the student is trained once more, and the selector is kept beside it for --selector. --action has the paper's
    baselines: random-soft, random-hard, and fixed, which leaves the weights as they are.

    Student layer i learns from teacher layer I(i) = round(i L / L'); a flow is from layer i to i + 1, of the teacher from I(i) to
    I(i) + 1 (Equation 17); a student of one layer has none. Predictions are learnt by KL(student || teacher), as printed, times
    temperature^2; of a score by its squared difference. The paper gives no temperature (10 is that of pkd), no number of episodes
    and no weights beside what is chosen: they are 1, and 1000 of the flow, whose mean is over so many entries. It writes sums
    over the batch (--reduction sum).

    What else is not the paper's: while the selector learns, noise of standard deviation 2, the same in all steps of a phase, is
    added to the actor's outputs before the sigmoid, and they are held near +-2.5, so that soft weights lie in about 0.08 to 0.92.
    Each reward is learnt from 4 times. Where Equation 5 takes in no term, the largest is taken in. In a phase of one step what
    is earned and what is explored are one reward.
    """

    name: ClassVar[MethodName] = "ksm"
    source: ClassVar[str] = (
        "Wang et al., Improved Knowledge Distillation for Pre-trained Language Models via Knowledge Selection,"
        " EMNLP Findings 2023, section 5 and appendix A"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 10.0
    reduction: Annotated[Reduction, Doc("Over rows: mean, or the literal sum of the paper.")] = "mean"
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_choice("--reduction", self.reduction, get_args(Reduction))
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once. Raises OptionError for a student that is deeper than its teacher."""
        features, flows = _pairs(teacher, student)
        weights = {"gold": 1.0, "prediction": 1.0, "ksm.feature": 1.0} | ({"ksm.relation": FLOW_WEIGHT} if flows else {})
        reads = (Want(CLS, features), *([Want(CLS, flows)] if flows else []))
        sees = Sight(hidden=frozenset(pair.student for pair in features))
        return (Phase(self.name, weights, schedule="linear", predicts=True, reads=reads, sees=sees),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, student.layers, self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if "gold" in phase.weights:
            terms |= gold_terms(seen, batch)
        if "prediction" in phase.weights:
            terms |= self._prediction(seen, batch)
        if any(term.startswith("ksm.") for term in phase.weights):
            terms |= _inside(phase, seen, batch, aids)
        if self.reduction == "sum":
            return {name: Term(term.total, torch.zeros_like(term.count)) for name, term in terms.items()}
        return terms

    def _prediction(self, seen: Seen, batch: Batch) -> dict[str, Term]:
        if seen.logits.shape[1] == 1:
            return prediction_terms(seen, batch, temperature=self.temperature)
        assert batch.teacher_logits is not None
        return {"prediction": reverse_kl(seen.logits, batch.teacher_logits, temperature=self.temperature)}


def _inside(phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
    """FeaK and RelK, where the phase weighs them."""
    wants = phase.reads
    own: Float[Tensor, "layer batch width"] = torch.stack(
        [projected(aids, seen.hidden[pair.student][:, 0], index) for index, pair in enumerate(wants[0].pairs)]
    )
    features: RowTargets = batch[wants[0]]
    terms: dict[str, Term] = {}
    if "ksm.feature" in phase.weights:
        terms["ksm.feature"] = direction_distance(own, features.values)
    if "ksm.relation" in phase.weights:
        above: RowTargets = batch[wants[1]]
        terms["ksm.relation"] = flow_mse(own[:-1], own[1:], teacher_lower=features.values[:-1], teacher_upper=above.values)
    return terms


def _pairs(teacher: TeacherShape, student: ModelShape) -> tuple[tuple[LayerPair, ...], tuple[LayerPair, ...]]:
    """Student layers with the teacher layers whose vectors they learn, and, but for the first, with those at the end of a
    flow."""
    own, whole = student.layers, teacher.layers
    if own > whole:
        raise OptionError(
            f"the method ksm teaches each layer of a student by layers of its teacher and those above: one of {own} layers is"
            f" deeper than the teacher's {whole}"
        )
    layers = [even_layer(layer, student_layers=own, teacher_layers=whole) for layer in range(1, own + 1)]
    features = tuple(LayerPair(index, layer) for index, layer in enumerate(layers, 1))
    return features, tuple(LayerPair(index, layer + 1) for index, layer in enumerate(layers[:-1], 2))
