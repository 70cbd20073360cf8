"""A student with what its training needs and its export drops."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor, nn
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
CHOOSER = "chooser."


class Learner(nn.Module):
    """A student, the aids of its method (None: none), the pruning if it gets narrower, and who weighs its terms at every step."""

    def __init__(
        self,
        student: Any,
        *,
        aids: nn.Module | None = None,
        pruning: GradualPruning | None = None,
        chooser: Any | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.aids = aids
        self.pruning = pruning
        self.chooser = chooser

    def trained(self) -> list[nn.Parameter]:
        """What the loss of a step trains: all but the chooser."""
        return [each for name, each in self.named_parameters() if each.requires_grad and not name.startswith(CHOOSER)]

    def copied(self) -> dict[str, Shaped[Tensor, "..."]]:
        """All but the chooser as it is now, to `begin_anew` from."""
        return {name: tensor.clone() for name, tensor in self.state_dict().items() if not name.startswith(CHOOSER)}

    def begin_anew(self, copied: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """All but the chooser as it was then."""
        self.load_state_dict({**self.state_dict(), **copied})

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
    chooser = student.selecting.chooser(settings[0].batch_size) if student.selecting is not None else None
    return Learner(student.model, aids=aids, pruning=pruning, chooser=chooser)
