"""MiniLM (Wang et al., NeurIPS 2020), of a task: the attention of the last layer, and how its values stand to each other."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, check_positive, check_share
from hskstore.features import QKV, TeacherShape, Want
from hskstore.layers import LayerPair
from hskstore.losses import Term, attention_kl, relation_kl
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.heads import check_same_heads
from hskstore.methods.kd import joint_phase, task_terms
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape


@dataclass(frozen=True)
class MiniLM:
    """Attention and value relations of the last layer, head by head, + (1 - alpha) x the loss on the teacher's predictions +
    alpha x that on the gold label.

    Widths may differ, and nothing is projected; the number of heads may not. Both weigh 1 as in the paper, which learns no task:
    temperature and alpha are those of kd.
    """

    name: ClassVar[MethodName] = "minilm"
    source: ClassVar[str] = (
        "Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers,"
        " NeurIPS 2020, section 3"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.0

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once. Raises ModelError for a student of other heads."""
        check_same_heads(self.name, teacher, student, [student.layers])
        weights = {"minilm.attention": 1.0, "minilm.value": 1.0}
        sees = Sight(qkv=frozenset({student.layers}))
        return joint_phase(
            self.name, weights, self.alpha, reads=(Want(QKV, (LayerPair(student.layers, teacher.layers),)),), sees=sees
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        """None: the student is trained alone."""

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for want in phase.reads:
            (pair,) = want.pairs
            own, targets = seen.qkv[pair.student], batch[want]
            query, key, value = (each[0] for each in (targets.query, targets.key, targets.value))
            if "minilm.attention" in phase.weights:
                terms["minilm.attention"] = attention_kl(own.query, own.key, query, key, is_real=targets.is_real)
            if "minilm.value" in phase.weights:
                terms["minilm.value"] = relation_kl(own.value, value, is_real=targets.is_real)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)
