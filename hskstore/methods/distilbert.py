"""DistilBERT's distillation (Sanh et al., 2019), of a task: the direction of the last hidden states, soft and hard labels."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, Projection, check_choice, check_positive
from hskstore.features import STATES, TeacherShape, Want
from hskstore.layers import LayerPair
from hskstore.losses import Term, cosine_distance
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import task_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape


@dataclass(frozen=True)
class DistilBert:
    """5 x the loss on the teacher's predictions + 2 x that on the gold label + the cosine distance of the last hidden states.

    The weights are those of the public code, where the second is of the masked words of pretraining, whose place the gold label
    of the task has here.
    """

    name: ClassVar[MethodName] = "distilbert"
    source: ClassVar[str] = "Sanh et al., DistilBERT, a distilled version of BERT, 2019, section 3"
    temperature: Annotated[float, Doc("Of the soft labels.")] = 2.0
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once."""
        return (
            Phase(
                "distilbert",
                {"distilbert.cosine": 1.0, "prediction": 5.0, "gold": 2.0},
                schedule="linear",
                predicts=True,
                reads=(Want(STATES, (LayerPair(student.layers, teacher.layers),)),),
                sees=Sight(hidden=frozenset({student.layers})),
            ),
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, 1, self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if "distilbert.cosine" in phase.weights:
            (want,) = phase.reads
            (pair,) = want.pairs
            targets = batch[want]
            own = projected(aids, targets.at_tokens(seen.hidden[pair.student]), 0)
            terms["distilbert.cosine"] = cosine_distance(own[None], targets.values, is_real=targets.is_real)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)
