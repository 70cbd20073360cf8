"""A student's vectors in the width of its teacher's: learnt beside the student, and dropped with the other aids."""

from jaxtyping import Float
from torch import Tensor, nn

from hskstore import config
from hskstore.features import TeacherShape
from hskstore.models.run import ModelShape


class Projection(nn.Module):
    """A Linear with bias from width `own` to `width`: one that all layers share, or `linears` of as many layers."""

    def __init__(self, own: int, width: int, linears: int = 1) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(own, width) for _ in range(linears))

    def forward(self, vectors: Float[Tensor, "*rows own"], index: int) -> Float[Tensor, "*rows width"]:
        """Vectors of the layer at this place among those that learn: float32."""
        projected: Tensor = self.linears[index if len(self.linears) > 1 else 0](vectors)
        return projected.float()


def projection_of(teacher: TeacherShape, student: ModelShape, layers: int, kind: config.Projection) -> Projection | None:
    """For so many layers that learn the teacher's vectors; None where the widths are equal. Raises ModelError for a student
    that gives no hidden states."""
    if student.width == teacher.width:
        return None
    return Projection(student.width, teacher.width, layers if kind == "per-layer" else 1)


def projected(aids: nn.Module | None, vectors: Float[Tensor, "*rows own"], index: int) -> Float[Tensor, "*rows width"]:
    """`vectors` by a Projection, or, where there is none, as they are: float32."""
    if aids is None:
        return vectors.float()
    found: Tensor = aids(vectors, index)
    return found
