"""Tree knowledge distillation (Xu et al., KSEM 2022): the student's own attention chooses which tokens it learns."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from annotated_doc import Doc
from jaxtyping import Bool
from torch import Tensor, nn

from hskstore.config import (
    MethodName,
    Projection,
    check_choice,
    check_count,
    check_not_negative,
    check_positive,
    check_share,
)
from hskstore.errors import ModelError, OptionError
from hskstore.features import ATTENDED, STATES, StateTargets, TeacherShape, Want
from hskstore.layers import LayerPair, even_layer
from hskstore.losses import Reduction, Term, random_tree, slices_mse, student_tree, teacher_tree
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.kd import joint_phase, task_terms
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape
from hskstore.store.features import MOST_ATTENDED

Tree = Literal["student", "teacher", "random"]


@dataclass(frozen=True)
class TreePhase(Phase):
    """A phase whose trees choose among so many slices of the teacher's vectors."""

    slices: int = 1


@dataclass(frozen=True)
class Tkd:
    """(1 - alpha) x the loss on the teacher's predictions + alpha x that on the gold label + the vectors of a tree of tokens,
    head by head (Equation 6), of [CLS] (Equation 7), and, if wanted, of all tokens (Equation 10).

    At every step a tree grows in each head, from [CLS] at the student's last layer down to its first (Algorithm 1), from the
    student's own attention, the teacher's (what each of its tokens attends to most lies in the store), or at random; of several,
    such as student+teacher, the losses are added. A random tree is drawn by each process for its own rows, so that several
    processes learn other ones than one process does. Student layer l learns from teacher layer round(l L / L'). A head's tree
    chooses among the slices of vectors that stand where its own stand; where the teacher has more heads, slice j goes with
    student head floor(j H' / H). Where the store does not tell the teacher's heads, slices are as many as the student's.

    All vectors are compared at length 1. Means are over rows, nodes and coordinates, summed over layers: the paper writes sums
    (--reduction sum), but its grids for gamma (tree) and beta ([CLS]) suit means. Temperature, alpha and the weights 100 and 1000
    are the middles of these grids; the paper says nothing of the weight of all tokens, which is that of [CLS] here.
    """

    name: ClassVar[MethodName] = "tkd"
    source: ClassVar[str] = (
        "Xu et al., Tree Knowledge Distillation for Compressing Transformer-Based Language Models, KSEM 2022, section 4"
    )
    temperature: Annotated[float, Doc("Of the soft labels.")] = 10.0
    alpha: Annotated[float, Doc("Weight of the gold label beside the logits.")] = 0.5
    tree: Annotated[str, Doc("Whose attention grows it: student, teacher, random, several joined by +, or none.")] = "student"
    children: Annotated[int, Doc("Of each node of a tree.")] = 2
    nodes: Annotated[int, Doc("Of a random tree, in each head of each layer.")] = 4
    all_tokens: Annotated[bool, Doc("Learn the vectors of all tokens as well.")] = False
    tree_from: Annotated[float, Doc("Epochs before trees are learnt, such as 0.5.")] = 0.0
    reduction: Annotated[Reduction, Doc("Of vectors: mean, or the literal sum of the paper.")] = "mean"
    projection: Annotated[Projection, Doc("One for all layers or one each, if widths differ.")] = "shared"

    def __post_init__(self) -> None:
        check_positive("--temperature", self.temperature)
        check_share("--alpha", self.alpha)
        if self.tree != "none":
            if not set(self.trees) <= set(get_args(Tree)):
                raise OptionError(f"--tree {self.tree}: choose student, teacher or random, several joined by +, or none")
            if len(set(self.trees)) != len(self.trees):
                raise OptionError(f"--tree {self.tree}: name each once")
        check_count("--children", self.children)
        if "teacher" in self.trees and self.children > MOST_ATTENDED:
            raise OptionError(
                f"--children {self.children}: a store keeps the {MOST_ATTENDED} tokens that each attends to most; the teacher's"
                f" tree has at most {MOST_ATTENDED} children of a node"
            )
        check_count("--nodes", self.nodes)
        for option, value, default, those in (
            ("--children", self.children, Tkd.children, {"student", "teacher"}),
            ("--nodes", self.nodes, Tkd.nodes, {"random"}),
        ):
            if value != default and those.isdisjoint(self.trees):
                raise OptionError(f"{option} {value}: --tree {self.tree} grows no tree that has it: leave it out")
        check_not_negative("--tree-from", self.tree_from)
        check_choice("--reduction", self.reduction, get_args(Reduction))
        check_choice("--projection", self.projection, get_args(Projection))

    @property
    def trees(self) -> tuple[str, ...]:
        """What grows one each, as `tree` names them: student, teacher, random."""
        return () if self.tree == "none" else tuple(self.tree.split("+"))

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """One, of everything at once. Raises OptionError or ModelError where the vectors cannot be cut by heads."""
        pairs = _pairs(teacher, student)
        weights = {"tkd.cls": 1000.0}
        if self.trees:
            weights["tkd.tree"] = 100.0
        if self.all_tokens:
            weights["tkd.all"] = 1000.0
        looks = frozenset(pair.student for pair in pairs)
        sees = Sight(hidden=looks, qkv=looks if self._by_head else frozenset())
        reads: tuple[Want[Any], ...] = (Want(STATES, pairs),)
        if "teacher" in self.trees:
            reads += (Want(ATTENDED, pairs),)
        (phase,) = joint_phase(self.name, weights, self.alpha, reads=reads, sees=sees)
        return (TreePhase(**vars(phase), slices=self._slices(teacher, student)),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        """The projection, where widths differ."""
        return projection_of(teacher, student, student.layers, self.projection)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        if any(term.startswith("tkd.") for term in phase.weights):
            assert isinstance(phase, TreePhase)
            terms |= self._vectors(phase, seen, batch, aids)
        return terms | task_terms(phase, seen, batch, temperature=self.temperature)

    def _vectors(self, phase: TreePhase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        wants = {want.kind.name: want for want in phase.reads}
        states = wants[STATES.name]
        found: StateTargets = batch[states]
        own = torch.stack(
            [projected(aids, found.at_tokens(seen.hidden[pair.student]), index) for index, pair in enumerate(states.pairs)]
        )
        terms: dict[str, Term] = {}
        if "tkd.tree" in phase.weights:
            parts: list[Term] = []
            for name in self.trees:
                kept = self._kept(name, phase, seen, batch, found)
                if batch.epoch < self.tree_from:
                    kept = torch.zeros_like(kept)
                parts.append(slices_mse(own, found.values, kept=kept, reduction=self.reduction))
            terms["tkd.tree"] = Term(
                *(torch.cat(each) for each in zip(*((part.total, part.count) for part in parts), strict=True))
            )
        if "tkd.cls" in phase.weights:
            first = found.is_real[:, None, :1].expand(len(own), -1, -1, -1)
            terms["tkd.cls"] = slices_mse(own[:, :, :1], found.values[:, :, :1], kept=first, reduction=self.reduction)
        if "tkd.all" in phase.weights:
            every = found.is_real[:, None].expand(len(own), -1, -1, -1)
            terms["tkd.all"] = slices_mse(own, found.values, kept=every, reduction=self.reduction)
        return terms

    def _kept(
        self, tree: str, phase: TreePhase, seen: Seen, batch: Batch, found: StateTargets
    ) -> Bool[Tensor, "layer batch slice token"]:
        """Which slices of the teacher's vectors a tree keeps of each token."""
        pairs, tokens = phase.reads[0].pairs, found.is_real.shape[1]
        if tree == "teacher":
            attended = batch[phase.reads[1]].token[:, :, :, :tokens]
            nodes = teacher_tree(attended, is_real=found.is_real, children=self.children)
        else:
            nodes = self._of_student(tree, seen, batch, [pair.student for pair in pairs])
            if found.position is not None:
                nodes = nodes.gather(-1, found.position[:, None].expand(*nodes.shape[:3], -1))
        heads = nodes.shape[2]
        head = torch.arange(phase.slices, device=nodes.device) * heads // phase.slices
        return nodes[:, :, head] & found.is_real[:, None]

    def _of_student(self, tree: str, seen: Seen, batch: Batch, layers: list[int]) -> Bool[Tensor, "layer batch head token"]:
        inside = [seen.qkv[layer] for layer in layers]
        if tree == "random":
            return random_tree(len(layers), inside[0].query.shape[1], self.nodes, is_real=batch.attention_mask)
        query, key = [each.query for each in inside], [each.key for each in inside]
        return student_tree(query, key, is_real=batch.attention_mask, children=self.children)

    @property
    def _by_head(self) -> bool:
        """Whether the student's heads are looked at."""
        return not {"student", "random"}.isdisjoint(self.trees)

    def _slices(self, teacher: TeacherShape, student: ModelShape) -> int:
        """Of a teacher's vector: one for each of its heads, or, where nobody knows them, of the student's."""
        if not self.trees:
            return 1
        own = {heads for heads, _ in student.heads} if student.heads is not None and self._by_head else set()
        if len(own) > 1:
            raise ModelError(
                f"{student.name} has layers of {', '.join(map(str, sorted(own)))} heads: the method tkd grows a tree in each"
                " head, from layer to layer; choose a student of as many in all, or --tree teacher"
            )
        slices = teacher.heads or min(own, default=1)
        if teacher.width % slices:
            raise ModelError(
                f"{student.name} has {slices} heads, which do not divide the teacher's width of {teacher.width}: choose a student"
                " of another number, or --tree none"
            )
        return slices


def _pairs(teacher: TeacherShape, student: ModelShape) -> tuple[LayerPair, ...]:
    """Every layer of the student with its teacher; the paper's I(k)."""
    own, whole = student.layers, teacher.layers
    return tuple(
        LayerPair(layer, max(1, even_layer(layer, student_layers=own, teacher_layers=whole))) for layer in range(1, own + 1)
    )
