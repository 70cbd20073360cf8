"""Multi-granularity structural distillation (Liu et al., ACL 2022): how tokens, spans and texts stand to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Annotated, Any, ClassVar, get_args

import torch
from annotated_doc import Doc
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hskstore.config import MethodName, Projection, check_choice, check_count, check_positive
from hskstore.errors import OptionError
from hskstore.features import POOLED, SPANS, STATES, StateTargets, TeacherShape, Want, mean_of_tokens
from hskstore.layers import LayerPair, even_layer
from hskstore.losses import Term, angle_huber, product_mse, sample_angle_huber, span_means, whole_batch
from hskstore.losses.relations import Divisor
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import prediction_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape

HEADS = 64
"""Of section 4.2."""

WEIGHTS = {
    "mgskd.token_pair": 1.0,
    "mgskd.token_angle": 1.0,
    "mgskd.span_pair": 1.0,
    "mgskd.span_angle": 1.0,
    "mgskd.sample_angle": 4.0,
}
"""Of section 4.2."""


@dataclass(frozen=True)
class Mgskd:
    """Structure first, at a constant rate (Equation 8); then the teacher's predictions at a decaying one (Equation 9).

    The student's layers below `boundary`, counted from the embeddings, learn how the tokens of a row, and its spans, stand to
    each other: products by twos, angles by threes (Equation 6). Those from it on learn how the rows of a batch do, by angles
    alone (Equation 7), for which the store holds one vector of a row. Student layer l learns from teacher layer round(l L / L').

    Vectors are cut into relation heads, which must divide the teacher's width; as in the public code a run of coordinates is a
    head, which the paper projects. Where widths differ, a Linear projects the student's. Of a row with two spans pairs are
    learnt, with three angles too. The public code leaves out rows of less than three spans, leaves angles of exactly zero out of
    its means, and counts the triples of samples that are none (--divisor code).
    """

    name: ClassVar[MethodName] = "mgskd"
    source: ClassVar[str] = (
        "Liu et al., Multi-Granularity Structural Knowledge Distillation for Language Model Compression, ACL 2022, section 3"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    boundary: Annotated[
        int, Doc("Layers, the embeddings among them, that learn of tokens and spans; those above learn of texts.")
    ] = 2
    relation_heads: Annotated[
        int | None,
        Doc(
            "Parts of a vector that are related each, by twos; of texts by threes. Default: 64, or what of it divides the width."
        ),
    ] = None
    angle_heads: Annotated[int, Doc("Parts of a vector, where tokens and spans are related by threes.")] = 1
    vertices: Annotated[int, Doc("Most salient tokens, or spans, of a row, at which angles are measured (k1).")] = 20
    neighbours: Annotated[int, Doc("Of each of these vertices, between any two of which an angle is measured (k2).")] = 20
    divisor: Annotated[Divisor, Doc("Means over the valid pairs and triples, or the public code's divisors.")] = "valid"
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_count("--boundary", self.boundary, least=0)
        check_count("--relation-heads", self.relation_heads)
        check_count("--angle-heads", self.angle_heads)
        check_count("--vertices", self.vertices)
        check_count("--neighbours", self.neighbours)
        check_choice("--divisor", self.divisor, get_args(Divisor))
        check_choice("--projection", self.projection, get_args(Projection))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """Structure, then predictions. Raises OptionError for heads that do not divide the teacher's width."""
        for option, heads in (("--relation-heads", self.relation_heads), ("--angle-heads", self.angle_heads)):
            if heads is not None and teacher.width % heads:
                raise OptionError(f"{option} {heads} does not divide the teacher's width of {teacher.width}: choose another")
        below, above = self._pairs(teacher, student)
        reads: tuple[Want[Any], ...] = ()
        if below:
            reads += (Want(STATES, below), Want(SPANS, ()))
        if above:
            reads += (Want(POOLED, above),)
        weights = {term: weight for term, weight in WEIGHTS.items() if (above if term == "mgskd.sample_angle" else below)}
        sees = Sight(hidden=frozenset(pair.student for pair in (*below, *above)))
        return (
            Phase("structure", weights, schedule="constant", predicts=False, reads=reads, sees=sees),
            Phase("prediction", {"prediction": 1.0}, schedule="linear", predicts=True),
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, student.layers + 1, self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> Mapping[str, Term]:
        if "prediction" in phase.weights:
            return prediction_terms(seen, batch, temperature=self.temperature)
        wants = {want.kind.name: want for want in phase.reads}
        terms: dict[str, Term] = {}
        if "mgskd.sample_angle" in phase.weights:
            terms["mgskd.sample_angle"] = self._samples(wants[POOLED.name], seen, batch, aids)
        of_tokens, of_spans = (
            {term for term in phase.weights if term.startswith(f"mgskd.{items}_")} for items in ("token", "span")
        )
        if of_tokens or of_spans:
            states = wants[STATES.name]
            found: StateTargets = batch[states]
            own = torch.stack(
                [projected(aids, found.at_tokens(seen.hidden[pair.student]), pair.student) for pair in states.pairs]
            )
            target = found.values.to(own.dtype)
            terms |= self._items("token", of_tokens, own, target, found.is_real)
            if of_spans:
                spans = batch[wants[SPANS.name]]
                (mine, there), (theirs, _) = (
                    span_means(each, spans.start, spans.end, is_real=found.is_real) for each in (own, target)
                )
                counted = spans.is_span & there
                counted = counted & (counted.sum(dim=1, keepdim=True) >= (3 if self.divisor == "code" else 2))
                terms |= self._items("span", of_spans, mine, theirs, counted)
        return terms

    def _items(
        self,
        items: str,
        wanted: set[str],
        own: Float[Tensor, "layer batch item width"],
        target: Float[Tensor, "layer batch item width"],
        is_real: Bool[Tensor, "batch item"],
    ) -> dict[str, Term]:
        """The terms of tokens, or of spans."""
        terms: dict[str, Term] = {}
        if f"mgskd.{items}_pair" in wanted:
            terms[f"mgskd.{items}_pair"] = product_mse(own, target, is_real=is_real, heads=self._heads(own.shape[-1]))
        if f"mgskd.{items}_angle" in wanted:
            terms[f"mgskd.{items}_angle"] = angle_huber(
                own,
                target,
                is_real=is_real,
                heads=self.angle_heads,
                vertices=self.vertices,
                neighbours=self.neighbours,
                divisor=self.divisor,
            )
        return terms

    def _samples(self, want: Want[Any], seen: Seen, batch: Batch, aids: nn.Module | None) -> Term:
        """Of the whole batch, whoever's rows they are."""
        own = torch.stack(
            [
                projected(aids, mean_of_tokens(seen.hidden[pair.student], batch.attention_mask), pair.student)
                for pair in want.pairs
            ],
            dim=1,
        )
        target = batch[want].values.to(own.dtype).transpose(0, 1)
        mine, theirs = (whole_batch(each).transpose(0, 1) for each in (own, target))
        return sample_angle_huber(mine, theirs, heads=self._heads(mine.shape[-1]), divisor=self.divisor)

    def _heads(self, width: int) -> int:
        """Of the paper's 64 as many as divide the width, unless others were asked for."""
        return self.relation_heads or gcd(HEADS, width)

    def _pairs(self, teacher: TeacherShape, student: ModelShape) -> tuple[tuple[LayerPair, ...], tuple[LayerPair, ...]]:
        """Student layers below the boundary and from it on, with their teachers."""
        own, whole = student.layers, teacher.layers
        pairs = [LayerPair(layer, even_layer(layer, student_layers=own, teacher_layers=whole)) for layer in range(own + 1)]
        return tuple(pairs[: self.boundary]), tuple(pairs[self.boundary :])
