"""The feature `qkv`: queries, keys and values of the attention of some teacher layers, of every real token."""

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
from hskstore.store.features import PARTS, Qkv
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class QkvTargets:
    """The teacher's queries, keys and values of a batch's tokens: f16 where the store's are, else float32; behind a row's last
    token zeros. They stand where the teacher's tokens do: a student reads the same ones."""

    query: Float[Tensor, "layer batch head token size"]
    key: Float[Tensor, "layer batch head token size"]
    value: Float[Tensor, "layer batch head token size"]
    is_real: Bool[Tensor, "batch token"]

    def emptied(self) -> "QkvTargets":
        """The same without its rows."""
        return QkvTargets(self.query[:, :0], self.key[:, :0], self.value[:, :0], self.is_real[:0])


def _sight(feature: Qkv) -> Sight:
    return Sight(qkv=frozenset(feature.layers))


def _capture(feature: Qkv, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    _, _, attention_mask = batch
    padding = ~attention_mask[:, None, None, :]
    first = seen.qkv[feature.layers[0]].query
    shape = (len(first), len(feature.layers), PARTS, first.shape[2], feature.width)
    rounded = first.new_empty(shape, dtype=rounded_dtype(feature.values))
    for place, layer in enumerate(feature.layers):
        own = seen.qkv[layer]
        for part, vectors in enumerate((own.query, own.key, own.value)):
            rounded[:, place, part] = vectors.transpose(1, 2).flatten(2)  # heads side by side
    blank_padding(rounded, padding[..., None])
    arrays = encode(rounded, feature.values, books)
    blank_beside(arrays, padding)
    return arrays | {"finite": are_finite(rounded)}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> QkvTargets:
    feature, longest = own.feature, int(n_tokens.max())
    stored = {name: own.chosen(name, rows, places)[:, :, :, :longest] for name in own.arrays}
    is_real = np.arange(longest) < n_tokens[:, None]
    values = own.decoded(stored, places, is_real[:, None])
    by_head = values.view(*values.shape[:-1], feature.heads, feature.width // feature.heads)
    # [layer, batch, part, token, head, size] -> [part, layer, batch, head, token, size]
    query, key, value = by_head.permute(2, 0, 1, 4, 3, 5).contiguous()
    return QkvTargets(query, key, value, torch.from_numpy(is_real))


QKV: Kind[QkvTargets] = Kind("qkv", _sight, _capture, _targets)
"""Queries, keys and values of the attention, of some teacher layers."""
