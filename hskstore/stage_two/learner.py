"""A student with what its training needs and its export drops."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hskstore.methods.batch import Batch, HiddenTargets, StudentOutput
from hskstore.models.pruning import GradualPruning
from hskstore.models.run import run_model


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
