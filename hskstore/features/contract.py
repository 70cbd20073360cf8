"""What a kind of knowledge is to those who capture it, read it and learn from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from hskstore.features.codes import Codebooks, decode_codes, principal_directions
from hskstore.layers import LayerPair
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Feature
from hskstore.store.hidden import Hidden
from hskstore.store.plan import Plan
from hskstore.store.vectors import Codes
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

    Where its vectors are codes, `words` are the codebooks of these layers. `aligned` are a student's tokens where its tokenizer
    is not the teacher's: the position, in the student's row, of each of the teacher's tokens; -1 where it has none, -2 behind a
    row's last.
    """

    feature: Any
    arrays: Arrays
    places: tuple[int, ...]
    aligned: Int[np.ndarray, "row token"] | None = None
    words: Float[Tensor, "layer ... stage word width"] | None = None

    def chosen(self, name: str, rows: Int[np.ndarray, " batch"], places: Sequence[int]) -> Shaped[np.ndarray, "batch layer ..."]:
        """One array of some rows and of those stored layers."""
        found: np.ndarray = self.arrays[name][rows]
        own = self._own(places)
        return found if own is None else found[:, own]

    def decoded(
        self,
        stored: Mapping[str, Shaped[np.ndarray, "batch layer ..."]],
        places: Sequence[int],
        is_there: Bool[np.ndarray, "..."] | None = None,
    ) -> Float[Tensor, "layer batch ... width"]:
        """The vectors of what was `chosen` of "values", and of "scale" where there is one: f16 where the store's are, else
        float32. Where they are codes, those that are not there, by `is_there` (it broadcasts), are zeros."""
        encoding = self.feature.encoding
        if isinstance(encoding, Codes):
            assert self.words is not None
            return decode_codes(stored["values"], self.words, layers=self._own(places), is_there=is_there)
        return torch.from_numpy(np.ascontiguousarray(encoding.decode(stored, self.feature.width).swapaxes(0, 1)))

    @cached_property
    def _directions(self) -> Float[Tensor, "layer width direction"] | None:
        return None if self.words is None else principal_directions(self.words)

    def directions(self, places: Sequence[int]) -> Float[Tensor, "layer width direction"] | None:
        """The `principal_directions` of some stored layers; None where vectors are numbers."""
        own = self._own(places)
        return self._directions if own is None or self._directions is None else self._directions[own]

    def _own(self, places: Sequence[int]) -> list[int] | None:
        """Where stored layers stand among those in memory; None: all of them, in this order."""
        own = [self.places.index(place) for place in places]
        return None if own == list(range(len(self.places))) else own


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One feature's torch side.

    `sight` is what must be seen of the teacher, `capture` packs what was seen of a batch: the feature's arrays as they are
    stored, [batch, layer, ...] on the teacher's device, and `finite` [batch, layer], whether a row's vectors are. It asks the
    device for no number, so that nothing waits. Vectors that are codes are written in the codebooks that it is given. `targets`
    makes a batch's knowledge of some rows and stored layers, for rows of `n_tokens` tokens.
    """

    name: str
    sight: Callable[[Any], Sight]
    capture: Callable[[Any, Plan, Seen, Inputs, Rows, Codebooks | None], dict[str, Shaped[Tensor, "_batch ..."]]]
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
