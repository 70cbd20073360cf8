"""What one training step sees: a batch of rows with what the store knows of them, and what the student made of it."""

from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher's kept hidden states. `position` is 0 and everything else zero or False where `token_kept` is False.

    `teacher` is zero where `width_kept` is False, and float32 however the store encodes it.
    """

    position: Int[Tensor, "layer batch token"]
    token_kept: Bool[Tensor, "layer batch token"]
    teacher: Float[Tensor, "layer batch token width"]
    width_kept: Bool[Tensor, "layer batch token width"]


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest of them; `attention_mask` True = real token. Absent knowledge is None."""

    input_ids: Int[Tensor, "batch token"]
    token_type_ids: Int[Tensor, "batch token"]
    attention_mask: Bool[Tensor, "batch token"]
    label: Shaped[Tensor, " batch"] | None
    teacher_logits: Float[Tensor, "batch class"] | None
    hidden: HiddenTargets | None

    def to(self, device: Any) -> "Batch":
        """The same batch on another device."""
        moved: Batch = _to(self, device)
        return moved

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class StudentOutput:
    """`hidden` is gathered at the batch's kept positions and projected to the teacher's width; None where not asked for."""

    logits: Float[Tensor, "batch class"]
    hidden: Float[Tensor, "layer batch token width"] | None


def _to(node: Any, device: Any) -> Any:
    moved = {
        field.name: _to(value, device) if isinstance(value, HiddenTargets) else value.to(device)
        for field in fields(node)
        if (value := getattr(node, field.name)) is not None
    }
    return replace(node, **moved)
