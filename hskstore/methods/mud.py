"""Marginal Utility Diminishes (Liu et al., ACL 2021): the kept hidden states first, then the teacher's predictions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

import torch
from annotated_doc import Doc
from jaxtyping import Float, Int
from torch import Tensor, nn

from hskstore.config import (
    DEFAULT_KEEP,
    MethodName,
    Projection,
    RegressionTarget,
    Strategy,
    Targets,
    check_choice,
    check_positive,
)
from hskstore.features import HIDDEN, HiddenTargets, TeacherShape, Want
from hskstore.layers import LayerPair, plan_strategy
from hskstore.losses import Term, kept_hidden_mse
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import prediction_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape
from hskstore.store.hidden import pairs_of


@dataclass(frozen=True)
class Mud:
    """Section 3.3 of the paper: hidden states at a constant rate, then predictions at a decaying one.

    `targets`: coordinates that the width mask dropped are learnt as zero (the paper and its code) or ignored.
    `regression_target`: a score is learnt from the teacher's score (the paper) or the gold one (its code).
    `projection`: of hidden states, where widths differ, one Linear for all layers or one for each.
    Hidden states in codes are learnt in their words' principal directions, of which alone codes know (docs/codes.md).
    """

    name: ClassVar[MethodName] = "mud"
    source: ClassVar[str] = "Liu et al., Marginal Utility Diminishes, ACL 2021, section 3.3"
    targets: Annotated[Targets, Doc("Learn masked-out units as zero, or ignore them.")] = "zero"
    regression_target: Annotated[RegressionTarget, Doc("Whose score to learn.")] = "teacher"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_choice("--targets", self.targets, get_args(Targets))
        check_choice("--regression-target", self.regression_target, get_args(RegressionTarget))
        check_positive("--temperature", self.temperature)
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """The kept layers are those that the store's strategy gives for a student of this depth."""
        pairs = _pairs(teacher, student)
        sees = Sight(hidden=frozenset(pair.student for pair in pairs))
        labelled = frozenset({"prediction"} if self.regression_target == "gold" and student.outputs == 1 else ())
        return (
            Phase("hidden", {"mud.hidden": 1.0}, schedule="constant", predicts=False, reads=(Want(HIDDEN, pairs),), sees=sees),
            Phase("prediction", {"prediction": 1.0}, schedule="linear", predicts=True, labelled=labelled),
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, len(_pairs(teacher, student)), self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        if "prediction" in phase.weights:
            return prediction_terms(seen, batch, temperature=self.temperature, regression_target=self.regression_target)
        (want,) = phase.reads
        found: HiddenTargets = batch[want]
        states = [
            projected(aids, gathered(seen.hidden[pair.student], position), index)
            for index, (pair, position) in enumerate(zip(want.pairs, found.position, strict=True))
        ]
        term = kept_hidden_mse(
            torch.stack(states),
            found.values,
            found.coordinate,
            token_kept=found.token_kept,
            targets=self.targets,
            directions=found.directions,
        )
        return {"mud.hidden": term}


def gathered(state: Float[Tensor, "batch token width"], position: Int[Tensor, "batch slot"]) -> Float[Tensor, "batch slot width"]:
    """A student's vectors at the positions of the kept tokens."""
    return state.gather(1, position[..., None].expand(-1, -1, state.shape[-1]))


def _pairs(teacher: TeacherShape, student: ModelShape) -> tuple[LayerPair, ...]:
    """The student layers that learn, lowest first, with their teachers."""
    keep, strategy = DEFAULT_KEEP, plan_strategy(Strategy(student.layers), teacher.layers)
    if teacher.hidden is not None:
        keep, strategy = teacher.hidden.keep, teacher.hidden.strategy
    return pairs_of(keep, strategy, student_layers=student.layers, teacher_layers=teacher.layers)
