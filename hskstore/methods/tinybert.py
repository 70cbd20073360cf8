"""TinyBERT's distillation (Jiao et al., 2020), of a task: attention scores and hidden states, then the teacher's predictions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

import torch
from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, Projection, check_choice, check_positive
from hskstore.features import QKV, STATES, TeacherShape, Want
from hskstore.layers import LayerPair, even_layer
from hskstore.losses import Term, attention_mse, hidden_mse
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.heads import check_same_heads
from hskstore.methods.kd import prediction_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape


@dataclass(frozen=True)
class TinyBert:
    """Raw attention scores of every layer (Equation 7) and hidden states of every layer and of the embeddings (Equations 8 and 9)
    at a constant rate, each weighing 1; then the teacher's predictions (Equation 10) at a decaying one.

    Student layer l learns from teacher layer round(l L / L'), by its attention from layer 1 on. Where widths differ, one Linear
    projects hidden states, as in the public code; the paper has another one for the embeddings (--projection per-layer has one
    for each). Heads must be as many as the teacher's. Entries at padding are left out, which the public code counts as zeros.
    """

    name: ClassVar[MethodName] = "tinybert"
    source: ClassVar[str] = (
        "Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, Findings of EMNLP 2020, section 3"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """Layers, then predictions. Raises ModelError for a student of other heads."""
        check_same_heads(self.name, teacher, student, range(1, student.layers + 1))
        pairs = _pairs(teacher, student)
        attention = tuple(LayerPair(pair.student, max(1, pair.teacher)) for pair in pairs[1:])
        sees = Sight(hidden=frozenset(pair.student for pair in pairs), qkv=frozenset(pair.student for pair in attention))
        weights = {"tinybert.attention": 1.0, "tinybert.hidden": 1.0}
        reads = (Want(STATES, pairs), Want(QKV, attention))
        return (
            Phase("layers", weights, schedule="constant", predicts=False, reads=reads, sees=sees),
            Phase("prediction", {"prediction": 1.0}, schedule="linear", predicts=True),
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, len(_pairs(teacher, student)), self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        if "prediction" in phase.weights:
            return prediction_terms(seen, batch, temperature=self.temperature, regression_target="teacher")
        states, attention = phase.reads
        terms: dict[str, Term] = {}
        if "tinybert.attention" in phase.weights:
            targets, own = batch[attention], [seen.qkv[pair.student] for pair in attention.pairs]
            query, key = (torch.stack(parts) for parts in ([each.query for each in own], [each.key for each in own]))
            terms["tinybert.attention"] = attention_mse(query, key, targets.query, targets.key, is_real=targets.is_real)
        if "tinybert.hidden" in phase.weights:
            found = batch[states]
            hidden = [projected(aids, seen.hidden[pair.student], index) for index, pair in enumerate(states.pairs)]
            kept = found.is_real.expand(len(hidden), -1, -1)
            terms["tinybert.hidden"] = hidden_mse(torch.stack(hidden), found.values.float(), token_kept=kept)
        return terms


def _pairs(teacher: TeacherShape, student: ModelShape) -> tuple[LayerPair, ...]:
    """The embeddings and every layer of the student, with their teachers."""
    own, whole = student.layers, teacher.layers
    return tuple(LayerPair(layer, even_layer(layer, student_layers=own, teacher_layers=whole)) for layer in range(own + 1))
