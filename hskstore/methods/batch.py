"""What one training step is given: a batch of rows, with what the store knows of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from hskstore.features import Targets, Want

T = TypeVar("T", bound=Targets)


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest of them; `attention_mask` True = real token. A label or logits that are not known are None.

    `epoch` is how often the phase has seen all rows before this batch, such as 1.25.

    `batch[want]` is what the store knows of one feature, as its kind makes it.
    """

    input_ids: Int[Tensor, "batch token"]
    token_type_ids: Int[Tensor, "batch token"]
    attention_mask: Bool[Tensor, "batch token"]
    label: Shaped[Tensor, " batch"] | None
    teacher_logits: Float[Tensor, "batch class"] | None
    knowledge: Mapping[Want[Any], Any] = field(default_factory=dict)
    epoch: float = 0.0

    def __getitem__(self, want: Want[T]) -> T:
        found: T = self.knowledge[want]
        return found

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
        rest: Batch = _each(replace(self, knowledge={}), lambda tensor: tensor[:0])
        return replace(rest, knowledge={want: targets.emptied() for want, targets in self.knowledge.items()})

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


def _each(node: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch, or what is in it, with every tensor changed."""
    if isinstance(node, Tensor):
        return change(node)
    if isinstance(node, Mapping):
        return {name: _each(value, change) for name, value in node.items()}
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{each.name: _each(getattr(node, each.name), change) for each in fields(node)})
    return node
