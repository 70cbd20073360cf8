"""Contextual knowledge distillation (Park et al., EMNLP 2021): how words, and the layers of a word, stand to each other."""

from dataclasses import dataclass
from math import gcd
from typing import Annotated, ClassVar, Literal, get_args

import torch
from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, check_choice, check_count, check_positive, check_share
from hskstore.features import STATES, TeacherShape, Want
from hskstore.layers import LayerPair
from hskstore.losses import Term, layer_angle, layer_pair, word_angle, word_pair
from hskstore.losses.relations import Divisor, Edges, Relation
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import joint_phase, task_terms
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape

PairWindow = Literal["delta", "none"]


@dataclass(frozen=True)
class Ckd:
    """Relations of words (Equation 1) and of a word's layers (Equation 3), each by twos and by threes, + (1 - alpha) x the loss
    on the teacher's predictions + alpha x that on the gold label.

    Layer step_s t of the student learns from layer step_t t of the teacher, t = 0 to g, the greatest common divisor of their
    layers: of two that share none the embeddings and the last. Widths may differ, and nothing is projected. Temperature and
    alpha are the middles of the grids of Appendix B (3 and 4; its alpha, 0.7 and 0.9, is the weight of the predictions, 1 -
    alpha here), delta is the public code's, where the paper has 10 to 21. The four terms weigh 1, the least of the paper's grids
    of lambda: 1 to 1000 for all four together, and that again for those by threes (--weight).

    The public code has no window about pairs (--pair-window none), lets whatever surrounds a word into its angles (--edges
    clamped), has divisors of its own (--divisor code), and of classes learns the predictions alone (--alpha 0). What surrounds
    the last words is then padding, zeros of the teacher, whose padding no store holds: such angles depend on how far a row is
    padded, so on the rows beside it.
    """

    name: ClassVar[MethodName] = "ckd"
    source: ClassVar[str] = (
        "Park et al., Distilling Linguistic Context for Language Model Compression, EMNLP 2021, section 4 and Appendix B"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 3.5
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.2
    pair: Annotated[Relation, Doc("Two vectors by KL of cosines after a softmax, or by the difference of l2 distances.")] = (
        "cosine"
    )
    delta: Annotated[int, Doc("Words are related that are at most so many apart.")] = 10
    pair_window: Annotated[PairWindow, Doc("Pairs of words within delta, or none: of the whole row.")] = "delta"
    edges: Annotated[Edges, Doc("Angles of three different real words (cut), or whatever surrounds one (clamped).")] = "cut"
    divisor: Annotated[Divisor, Doc("Means over the valid pairs and triples, or the public code's divisors.")] = "valid"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)
        check_choice("--pair", self.pair, get_args(Relation))
        check_count("--delta", self.delta)
        check_choice("--pair-window", self.pair_window, get_args(PairWindow))
        check_choice("--edges", self.edges, get_args(Edges))
        check_choice("--divisor", self.divisor, get_args(Divisor))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once."""
        pairs = _aligned(teacher.layers, student.layers)
        weights = {"ckd.word_pair": 1.0, "ckd.word_angle": 1.0, "ckd.layer_pair": 1.0, "ckd.layer_angle": 1.0}
        sees = Sight(hidden=frozenset(pair.student for pair in pairs))
        return joint_phase(self.name, weights, self.alpha, reads=(Want(STATES, pairs),), sees=sees)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        """None: the student is trained alone."""

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if any(term.startswith("ckd.") for term in phase.weights):
            terms |= self._relations(phase, seen, batch)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)

    def _relations(self, phase: Phase, seen: Seen, batch: Batch) -> dict[str, Term]:
        (want,) = phase.reads
        targets = batch[want]
        own = torch.stack([targets.at_tokens(seen.hidden[pair.student]) for pair in want.pairs])
        target, is_real, divisor = targets.values, targets.is_real, self.divisor
        near = self.delta if self.pair_window == "delta" else None
        found: dict[str, Term] = {}
        if "ckd.word_pair" in phase.weights:
            found["ckd.word_pair"] = word_pair(own, target, is_real=is_real, relation=self.pair, delta=near, divisor=divisor)
        if "ckd.word_angle" in phase.weights:
            found["ckd.word_angle"] = word_angle(
                own, target, is_real=is_real, delta=self.delta, edges=self.edges, divisor=divisor
            )
        if "ckd.layer_pair" in phase.weights:
            found["ckd.layer_pair"] = layer_pair(own, target, is_real=is_real, relation=self.pair, divisor=divisor)
        if "ckd.layer_angle" in phase.weights:
            found["ckd.layer_angle"] = layer_angle(own, target, is_real=is_real, divisor=divisor)
        return found


def _aligned(teacher_layers: int, student_layers: int) -> tuple[LayerPair, ...]:
    """f(step_s t) = step_t t for t = 0 to g, the "uniform" alignment of section 4.2; the public code's default too."""
    steps = gcd(teacher_layers, student_layers)
    return tuple(LayerPair(t * student_layers // steps, t * teacher_layers // steps) for t in range(steps + 1))
