"""MiniLMv2 (Wang et al., Findings of ACL 2021), of a task: how queries, keys and values of one layer stand to each other."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc
from torch import nn

from hskstore.config import MethodName, check_count, check_positive, check_share
from hskstore.errors import ModelError, OptionError
from hskstore.features import QKV, TeacherShape, Want
from hskstore.layers import LayerPair
from hskstore.losses import Term, in_heads, relation_kl
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import joint_phase, task_terms
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape


@dataclass(frozen=True)
class MiniLMv2:
    """Relations of queries, of keys and of values of the student's last layer, learnt from one teacher layer, + (1 - alpha) x the
    loss on the teacher's predictions + alpha x that on the gold label.

    The vectors of all heads are cut into relation heads, so that neither heads nor widths need be alike; nothing is projected.
    The teacher's layer is its last; of bigger teachers the paper takes one of the upper middle, such as 21 of 24. The three
    relations weigh 1 as in the paper, which learns no task: temperature and alpha are those of kd.
    """

    name: ClassVar[MethodName] = "minilmv2"
    source: ClassVar[str] = (
        "Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers,"
        " Findings of ACL 2021, section 3"
    )
    relation_heads: Annotated[int | None, Doc("Parts of a vector that are related each. Default: the teacher's heads.")] = None
    teacher_layer: Annotated[int | None, Doc("The teacher layer whose relations are learnt. Default: its last.")] = None
    temperature: Annotated[float, Doc("Of the soft labels.")] = 1.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.0

    def __post_init__(self) -> None:
        check_count("--relation-heads", self.relation_heads)
        check_count("--teacher-layer", self.teacher_layer)
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once. Raises OptionError for a layer that the teacher has not, or relation heads that do not
        divide its width, ModelError where they do not divide the student's."""
        layer = self.teacher_layer or teacher.layers
        if layer > teacher.layers:
            raise OptionError(f"--teacher-layer {layer}: the teacher has layers 1 to {teacher.layers}")
        self._check_heads(teacher, student)
        weights = {"minilmv2.query": 1.0, "minilmv2.key": 1.0, "minilmv2.value": 1.0}
        sees = Sight(qkv=frozenset({student.layers}))
        return joint_phase(self.name, weights, self.alpha, reads=(Want(QKV, (LayerPair(student.layers, layer),)),), sees=sees)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> None:
        """None: the student is trained alone."""

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for want in phase.reads:
            (pair,) = want.pairs
            own, targets = seen.qkv[pair.student], batch[want]
            heads = self.relation_heads or targets.query.shape[2]
            for part in ("query", "key", "value"):
                if f"minilmv2.{part}" in phase.weights:
                    ours, theirs = (in_heads(vectors, heads) for vectors in (getattr(own, part), getattr(targets, part)[0]))
                    terms[f"minilmv2.{part}"] = relation_kl(ours, theirs, is_real=targets.is_real)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)

    def _check_heads(self, teacher: TeacherShape, student: ModelShape) -> None:
        heads = self.relation_heads or teacher.heads
        if heads is None:
            return
        if teacher.width % heads:
            raise OptionError(f"--relation-heads {heads} does not divide the teacher's width of {teacher.width}: choose another")
        if student.heads is not None:
            own, size = student.heads[-1]
            if own * size % heads:
                raise ModelError(
                    f"{student.name}: {heads} relation heads do not divide the {own * size} numbers of its queries, keys and"
                    f" values ({own} heads of {size}): choose --relation-heads that divides both widths"
                )
