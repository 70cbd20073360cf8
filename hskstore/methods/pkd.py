"""Patient knowledge distillation (Sun et al., EMNLP 2019): [CLS] vectors of layers on the way, beside predictions and labels."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import torch
from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, Projection, check_choice, check_not_negative, check_positive, check_share
from hskstore.errors import OptionError
from hskstore.features import CLS, TeacherShape, Want
from hskstore.layers import LayerPair, even_layer
from hskstore.losses import Term, normalised_mse
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import joint_phase, task_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape

PatientLayers = Literal["skip", "last"]


@dataclass(frozen=True)
class Pkd:
    """(1 - alpha) x the loss on the teacher's predictions + alpha x that on the gold label + beta x that on [CLS] vectors.

    Each student layer but the last learns the [CLS] vector of one teacher layer, both at length 1 (Equation 7): "skip" spreads
    them over the teacher, "last" takes the top ones. The defaults of alpha, beta and temperature are the middles of the paper's
    grids; its own alpha is the weight of the predictions, 1 - alpha here.
    """

    name: ClassVar[MethodName] = "pkd"
    source: ClassVar[str] = "Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019, section 3"
    patient_layers: Annotated[PatientLayers, Doc("Teacher layers of [CLS] vectors: every few (skip) or the last.")] = "skip"
    beta: Annotated[float, Doc("Weight of the [CLS] vectors.")] = 100.0
    temperature: Annotated[float, Doc("Of the soft labels.")] = 10.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.5
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_choice("--patient-layers", self.patient_layers, get_args(PatientLayers))
        check_not_negative("--beta", self.beta)
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once. Raises OptionError for a student that has no layer below its last."""
        pairs = self._pairs(teacher, student)
        weights = {"pkd.cls": self.beta}
        sees = Sight(hidden=frozenset(pair.student for pair in pairs))
        return joint_phase(self.name, weights, self.alpha, reads=(Want(CLS, pairs),), sees=sees)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, len(self._pairs(teacher, student)), self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if "pkd.cls" in phase.weights:
            (want,) = phase.reads
            own = [projected(aids, seen.hidden[pair.student][:, 0], index) for index, pair in enumerate(want.pairs)]
            terms["pkd.cls"] = normalised_mse(torch.stack(own), batch[want].values)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)

    def _pairs(self, teacher: TeacherShape, student: ModelShape) -> tuple[LayerPair, ...]:
        """Student layers 1 to L' - 1: PKD-Skip or PKD-Last of section 3.2."""
        own, whole = student.layers, teacher.layers
        if own < 2 or (self.patient_layers == "last" and own > whole):
            raise OptionError(
                f"the method pkd teaches layers below the student's last, {self.patient_layers} of the teacher's {whole};"
                f" a student of {own} layers has none such"
            )
        layers = range(1, own)
        if self.patient_layers == "last":
            return tuple(LayerPair(layer, whole - own + layer) for layer in layers)
        return tuple(LayerPair(layer, even_layer(layer, student_layers=own, teacher_layers=whole)) for layer in layers)
