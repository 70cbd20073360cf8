"""A student with what its training needs and its export drops."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import set_seed
from transformers.utils import cached_file

from hskstore.methods.batch import Batch, HiddenTargets, StudentOutput
from hskstore.models.folder import WEIGHTS
from hskstore.models.pruning import GradualPruning
from hskstore.models.run import run_model
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.student import Student

PUBLISHED_PROJECTION = "fit_dense"


class Learner(nn.Module):
    """A student, the projection of its hidden states, and the pruning if it gets narrower.

    `layers` are the student layers whose hidden states are learnt, lowest first; the projection is one Linear with bias
    shared by all of them, or one per layer, from the student's width `own` to the teacher's `width`; None where they are
    the same.
    """

    def __init__(
        self,
        student: Any,
        *,
        layers: Sequence[int] = (),
        own: int | None = None,
        width: int | None = None,
        per_layer: bool = False,
        pruning: GradualPruning | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.layers = tuple(layers)
        self.pruning = pruning
        self.projection: nn.ModuleList | None = None
        if layers and own is not None and width is not None and width != own:
            self.projection = nn.ModuleList(nn.Linear(own, width) for _ in range(len(layers) if per_layer else 1))

    def forward(self, batch: Batch, *, hidden: bool = False) -> StudentOutput:
        output = run_model(self.student, *batch.inputs, hidden=hidden)
        if output.hidden_states is None or batch.hidden is None:
            return StudentOutput(output.logits, None)
        states = [output.hidden_states[layer] for layer in self.layers]
        return StudentOutput(output.logits, self.project(states, batch.hidden))

    def project(
        self, states: Sequence[Float[Tensor, "batch token own"]], targets: HiddenTargets
    ) -> Float[Tensor, "layer batch slot width"]:
        """Each layer's states at the kept positions, in the teacher's width: float32."""
        projected: list[Tensor] = []
        for index, (state, position) in enumerate(zip(states, targets.position, strict=True)):
            kept = state.gather(1, position[..., None].expand(-1, -1, state.shape[-1]))
            if self.projection is not None:
                kept = self.projection[index if len(self.projection) > 1 else 0](kept)
            projected.append(kept.float())
        return torch.stack(projected)


def take_published_projection(projection: nn.ModuleList, student: str) -> None:
    """Start from the projection that a checkpoint brings along, if it is of this shape: TinyBERT's is `fit_dense`."""
    file = cached_file(student, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    with safe_open(file, "pt") as tensors:
        names = {name: f"{PUBLISHED_PROJECTION}.{name}" for name in ("weight", "bias")}
        if not set(names.values()) <= set(tensors.keys()):
            return
        published = {name: tensors.get_tensor(key).float() for name, key in names.items()}
    for linear in projection:
        if all(published[name].shape == tensor.shape for name, tensor in linear.state_dict().items()):
            linear.load_state_dict(published)


def build_learner(student: Student, recipe: Recipe, settings: Sequence[PhaseSettings], width: int) -> Learner:
    """The student with its projection to the teacher's `width`, and its pruning if it gets narrower."""
    pruning = None
    if recipe.prune_to is not None:
        assert recipe.prune_share is not None
        pruning = GradualPruning(student.model, recipe.prune_to, recipe.prune_share, student.name)
        pruning.check_steps(settings[0].steps)
    set_seed(recipe.seed)  # for the projection's weights
    learner = Learner(
        student.model,
        layers=student.layers,
        own=student.width,
        width=width,
        per_layer=recipe.projection == "per-layer",
        pruning=pruning,
    )
    if learner.projection is not None and recipe.student is not None:
        take_published_projection(learner.projection, recipe.student)
    return learner
