"""What a kind of knowledge is to those who capture it, read it and learn from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

from hskstore.layers import LayerPair
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Feature
from hskstore.store.hidden import Hidden
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class TeacherShape:
    """The teacher that is learnt from: its layers, the width of its hidden states, and, of a store that holds that feature, how
    its `hidden` was chosen. Where rows are longer than what the first token attends to in some layers, `ranking` are the
    others. `heads` are those of its attention, where it is known."""

    layers: int
    width: int
    hidden: Hidden | None = None
    ranking: tuple[int, ...] | None = None
    heads: int | None = None


Arrays = Mapping[str, Shaped[np.ndarray, "_row ..."]]
"""Some rows of a feature's arrays, by name: "values" [row, layer, ...]."""


class Targets(Protocol):
    """What a batch has of a feature: a frozen dataclass of tensors."""

    def emptied(self) -> Self:
        """The same without its rows."""
        ...


T = TypeVar("T", bound=Targets)


@dataclass(frozen=True)
class FeatureRows:
    """N rows of a feature in memory, still encoded: of the stored layers `places` alone, in that order.

    `aligned` are a student's tokens where its tokenizer is not the teacher's: the position, in the student's row, of each of the
    teacher's tokens; -1 where it has none, -2 behind a row's last.
    """

    feature: Any
    arrays: Arrays
    places: tuple[int, ...]
    aligned: Int[np.ndarray, "row token"] | None = None

    def chosen(self, name: str, rows: Int[np.ndarray, " batch"], places: Sequence[int]) -> Shaped[np.ndarray, "batch layer ..."]:
        """One array of some rows and of those stored layers."""
        found: np.ndarray = self.arrays[name][rows]
        own = [self.places.index(place) for place in places]
        return found if own == list(range(len(self.places))) else found[:, own]


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One feature's torch side.

    `sight` is what must be seen of the teacher, `capture` packs what was seen of a batch: the feature's arrays as they are
    stored, [batch, layer, ...] on the teacher's device, and `finite` [batch, layer], whether a row's vectors are. It asks the
    device for no number, so that nothing waits. `targets` makes a batch's knowledge of some rows and stored layers, for rows of
    `n_tokens` tokens.
    """

    name: str
    sight: Callable[[Any], Sight]
    capture: Callable[[Any, Plan, Seen, Inputs, Rows], dict[str, Shaped[Tensor, "_batch ..."]]]
    targets: Callable[[FeatureRows, Int[np.ndarray, " _batch"], Sequence[int], Int[np.ndarray, " _batch"]], T]


@dataclass(frozen=True)
class Want(Generic[T]):
    """Knowledge that a method learns from: a typed key, so that `batch[want]` is a T whose layers are those of `pairs`. Of spans,
    which are of no layer, there are no pairs."""

    kind: Kind[T]
    pairs: tuple[LayerPair, ...]

    def places(self, feature: Feature) -> tuple[int, ...]:
        """Where its teacher layers lie in a stored feature. Raises KeyError for a layer that is not there."""
        return feature.places(self.pairs)
