"""What one training step sees: a batch of rows with what the store knows of them, and what the student made of it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher's kept hidden states, as few numbers as the store has of them.

    `values` are the kept coordinates of each vector and `coordinate` says which they are, lowest first; None: all of `width`.
    Where `token_kept` is False, `position` and `values` are 0. Values are f16 where the store's are, else float32.
    """

    position: Int[Tensor, "layer batch token"]
    token_kept: Bool[Tensor, "layer batch token"]
    values: Float[Tensor, "layer batch token kept"]
    coordinate: Int[Tensor, "layer batch token kept"] | None
    width: int

    def scattered(self) -> tuple[Float[Tensor, "layer batch token width"], Bool[Tensor, "layer batch token width"]]:
        """The vectors at their full width, float32 and zero where nothing was kept; and where something was."""
        values = self.values.float()
        kept = self.token_kept[..., None].expand_as(values)
        if self.coordinate is None:
            return values, kept
        empty = values.new_zeros((*values.shape[:-1], self.width))
        coordinate = self.coordinate.long()
        return empty.scatter(-1, coordinate, values), empty.bool().scatter(-1, coordinate, kept)


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest of them; `attention_mask` True = real token. Absent knowledge is None."""

    input_ids: Int[Tensor, "batch token"]
    token_type_ids: Int[Tensor, "batch token"]
    attention_mask: Bool[Tensor, "batch token"]
    label: Shaped[Tensor, " batch"] | None
    teacher_logits: Float[Tensor, "batch class"] | None
    hidden: HiddenTargets | None

    @property
    def inputs(self) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
        """What a model is given: ids, types, mask."""
        return self.input_ids, self.token_type_ids, self.attention_mask

    def to(self, device: Any) -> "Batch":
        """The same batch on another device; from pinned memory the copy runs beside what the device computes."""
        moved: Batch = _each(self, lambda tensor: tensor.to(device, non_blocking=True))
        return moved

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU copies from by itself."""
        moved: Batch = _each(self, torch.Tensor.pin_memory)
        return moved

    def emptied(self) -> "Batch":
        """The same batch without its rows."""
        hidden = None if self.hidden is None else _each(self.hidden, lambda tensor: tensor[:, :0])
        rest: Batch = _each(replace(self, hidden=None), lambda tensor: tensor[:0])
        return replace(rest, hidden=hidden)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class StudentOutput:
    """`hidden` is gathered at the batch's kept positions and projected to the teacher's width; None where not asked for."""

    logits: Float[Tensor, "batch class"]
    hidden: Float[Tensor, "layer batch token width"] | None

    def emptied(self) -> "StudentOutput":
        """The same without its rows; gradients, all of them zero, reach what a whole one's would."""
        return StudentOutput(self.logits[:0], None if self.hidden is None else self.hidden[:, :0])


def _each(node: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch, or the targets in it, with every tensor changed."""
    changed = {
        field.name: _each(value, change) if isinstance(value, HiddenTargets) else change(value)
        for field in fields(node)
        if isinstance(value := getattr(node, field.name), Tensor | HiddenTargets)
    }
    return replace(node, **changed)
