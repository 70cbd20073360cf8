"""A student with what its training needs and its export drops."""

from collections.abc import Sequence
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import set_seed
from transformers.utils import cached_file

from hskstore.methods import Phase
from hskstore.methods.batch import Batch
from hskstore.methods.projection import Projection
from hskstore.models.folder import WEIGHTS
from hskstore.models.observe import Seen, observe
from hskstore.models.pruning import GradualPruning
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.student import Student

PUBLISHED_PROJECTION = "fit_dense"


class Learner(nn.Module):
    """A student, the aids of its method (None: none), and the pruning if it gets narrower."""

    def __init__(self, student: Any, *, aids: nn.Module | None = None, pruning: GradualPruning | None = None) -> None:
        super().__init__()
        self.student = student
        self.aids = aids
        self.pruning = pruning

    def forward(self, batch: Batch, phase: Phase) -> Seen:
        """What the phase sees of the student."""
        return observe(self.student, *batch.inputs, phase.sees)


def take_published_projection(aids: nn.Module, student: str) -> None:
    """Start from the projection that a checkpoint brings along, if it is of this shape: TinyBERT's is `fit_dense`."""
    linears = [linear for module in aids.modules() if isinstance(module, Projection) for linear in module.linears]
    file = cached_file(student, WEIGHTS, _raise_exceptions_for_missing_entries=False) if linears else None
    if file is None:
        return
    with safe_open(file, "pt") as tensors:
        names = {name: f"{PUBLISHED_PROJECTION}.{name}" for name in ("weight", "bias")}
        if not set(names.values()) <= set(tensors.keys()):
            return
        published = {name: tensors.get_tensor(key).float() for name, key in names.items()}
    for linear in linears:
        if all(published[name].shape == tensor.shape for name, tensor in linear.state_dict().items()):
            linear.load_state_dict(published)


def build_learner(student: Student, recipe: Recipe, settings: Sequence[PhaseSettings]) -> Learner:
    """The student with the aids of its method, and its pruning if it gets narrower."""
    pruning = None
    if recipe.prune_to is not None:
        assert recipe.prune_share is not None
        pruning = GradualPruning(student.model, recipe.prune_to, recipe.prune_share, student.name)
        pruning.check_steps(settings[0].steps)
    set_seed(recipe.seed)  # for the aids' weights
    aids = recipe.method.aids(student.teacher, student.shape)
    if aids is not None and recipe.student is not None:
        take_published_projection(aids, recipe.student)
    return Learner(student.model, aids=aids, pruning=pruning)
