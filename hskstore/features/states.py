"""The feature `states`: every real token of some teacher layers, in the text's order, unmasked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hskstore.features.codes import Codebooks
from hskstore.features.contract import FeatureRows, Kind
from hskstore.features.pack import are_finite, blank_beside, blank_padding, encode, rounded_dtype
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import States
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class StateTargets:
    """The teacher's vectors of a batch's tokens: f16 where the store's are, else float32; behind a row's last token zeros.

    Where the student has another tokenizer, `position` says where each of the teacher's tokens stands in the student's row;
    None: where it stands in the teacher's. Of tokens that the student has not `is_real` is False.
    """

    values: Float[Tensor, "layer batch token width"]
    is_real: Bool[Tensor, "batch token"]
    position: Int[Tensor, "batch token"] | None

    def at_tokens(self, state: Float[Tensor, "batch own width_"]) -> Float[Tensor, "batch token width_"]:
        """A student's vectors, each at the place of the teacher's of the same token."""
        if self.position is None:
            return state
        return state.gather(1, self.position[..., None].expand(-1, -1, state.shape[-1]))

    def emptied(self) -> "StateTargets":
        """The same without its rows."""
        position = None if self.position is None else self.position[:0]
        return StateTargets(self.values[:, :0], self.is_real[:0], position)


def _sight(feature: States) -> Sight:
    return Sight(hidden=frozenset(feature.layers))


def _capture(feature: States, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    _, _, attention_mask = batch
    padding = ~attention_mask[:, None, :]
    first = seen.hidden[feature.layers[0]]
    rounded = first.new_empty((len(first), len(feature.layers), *first.shape[1:]), dtype=rounded_dtype(feature.values))
    for place, layer in enumerate(feature.layers):
        rounded[:, place] = seen.hidden[layer]  # rounded and laid where it belongs in one go
    blank_padding(rounded, padding[..., None])
    arrays = encode(rounded, feature.values, books)
    blank_beside(arrays, padding)
    return arrays | {"finite": are_finite(rounded)}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> StateTargets:
    aligned = None if own.aligned is None else own.aligned[rows]
    longest = int(n_tokens.max()) if aligned is None else 1 + int(np.flatnonzero((aligned >= 0).any(axis=0)).max(initial=0))
    stored = {name: own.chosen(name, rows, places)[:, :, :longest] for name in own.arrays}
    is_real = is_token = np.arange(longest) < n_tokens[:, None]
    position = None
    if aligned is not None:
        is_real, is_token = aligned[:, :longest] >= 0, aligned[:, :longest] > -2
        position = torch.from_numpy(np.where(is_real, aligned[:, :longest], 0).astype(np.int64))
    return StateTargets(own.decoded(stored, places, is_token), torch.from_numpy(is_real), position)


STATES: Kind[StateTargets] = Kind("states", _sight, _capture, _targets)
"""Every real token's vector, of some teacher layers."""
