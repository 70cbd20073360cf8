"""The feature `hidden`: kept layers x tokens x coordinates, ranked and masked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hskstore.errors import StoreError
from hskstore.features.codes import Codebooks
from hskstore.features.contract import FeatureRows, Kind
from hskstore.features.pack import are_finite, blank_beside, encode, kept_values, pack_bits, round_values
from hskstore.features.select import gather_tokens, magnitude_mask, random_scores, token_rank
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.hidden import Hidden
from hskstore.store.masks import static_mask, unpack_mask
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher's kept hidden states, as few numbers as the store has of them.

    `values` are the kept coordinates of each vector and `coordinate` says which they are, lowest first; None: all of `width`.
    Where `token_kept` is False, `position` and `values` are 0. Values are f16 where the store's are, else float32. Of codes
    `directions` are those that they know of; None: all.
    """

    position: Int[Tensor, "layer batch token"]
    token_kept: Bool[Tensor, "layer batch token"]
    values: Float[Tensor, "layer batch token kept"]
    coordinate: Int[Tensor, "layer batch token kept"] | None
    width: int
    directions: Float[Tensor, "layer width direction"] | None = None

    def emptied(self) -> "HiddenTargets":
        """The same without its rows."""
        coordinate = None if self.coordinate is None else self.coordinate[:, :0]
        return replace(
            self,
            position=self.position[:, :0],
            token_kept=self.token_kept[:, :0],
            values=self.values[:, :0],
            coordinate=coordinate,
        )


# --- from the teacher


def _sight(feature: Hidden) -> Sight:
    ranked = feature.strategy.ranks_by_attention
    rows = {pair.rank for pair in feature.pairs if pair.rank is not None} if ranked else set[int]()
    if feature.strategy.score == "raw":
        return Sight(frozenset(feature.layers), raw_cls_row=frozenset(rows))
    return Sight(frozenset(feature.layers), frozenset(rows))


def _capture(feature: Hidden, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    """A rank chooses among the tokens that `store.masks.is_admitted` names, found here once more by the device's own
    arithmetic."""
    positions, n_kept = _kept_tokens(feature, plan, seen, batch, rows)
    positions = positions[..., : batch[0].shape[1]]  # no row of the batch keeps more
    vectors = torch.stack(
        [gather_tokens(seen.hidden[pair.teacher], positions[:, layer]) for layer, pair in enumerate(feature.pairs)], dim=1
    )
    vectors = round_values(vectors, feature.strategy.values)
    kept = _kept_coordinates(feature, vectors, plan.pass_.seed)
    arrays = encode(kept_values(vectors, kept, width=feature.width), feature.values, books)
    empty = positions < 0
    blank_beside(arrays, empty)
    arrays |= {"mask": pack_bits(kept).masked_fill(empty[..., None], 0), "token": positions.to(torch.int16)}
    beyond = feature.length - positions.shape[2]
    whole = {
        name: pad(array, (0, 0) * (array.ndim - 3) + (0, beyond), value=-1 if name == "token" else 0)
        for name, array in arrays.items()
    }
    return whole | {"n_kept": n_kept.to(torch.int16), "finite": are_finite(vectors)}


def _kept_tokens(
    feature: Hidden, plan: Plan, seen: Seen, batch: Inputs, rows: Rows
) -> tuple[Int[Tensor, "batch layer slot"], Int[Tensor, "batch layer"]]:
    """Positions of the tokens to keep, best first, -1 behind the last; and how many they are."""
    strategy, pairs = feature.strategy, feature.pairs
    ids, _, attention_mask = batch
    tokens = ids.shape[1]
    admitted = attention_mask
    if not strategy.ranks_separators:
        for separator in plan.tokenizer["separators"]:
            admitted = admitted & (ids != separator)
    if strategy.rank == "random":
        drawn = random_scores(rows.row_id, rows.n_tokens, longest=tokens, seed=plan.pass_.seed)
        score = torch.from_numpy(drawn).to(ids.device)[:, None]
    elif strategy.rank == "left":
        score = -torch.arange(tokens, device=ids.device, dtype=torch.float32).expand(len(ids), 1, tokens)
    else:
        rows_seen = seen.cls_row if strategy.score == "probability" else seen.raw_cls_row
        score = torch.stack([rows_seen[pair.rank] for pair in pairs if pair.rank is not None], dim=1)
    ranked = score.shape[1]  # the layers that are ranked by themselves: one where all share a rank
    flat = (part.expand(-1, ranked, -1).reshape(-1, tokens) for part in (score, admitted[:, None]))
    positions, n_kept = token_rank(*flat, slots=feature.length, length=feature.keep.length)
    positions = positions.view(-1, ranked, feature.length).expand(-1, len(pairs), -1)
    return positions, n_kept.view(-1, ranked).expand(-1, len(pairs))


def _kept_coordinates(
    feature: Hidden, vectors: Float[Tensor, "batch layer slot width"], seed: int
) -> Bool[Tensor, "batch layer slot width"]:
    """Which coordinates of the rounded vectors are kept: as many of each."""
    kind = feature.strategy.mask
    if kind == "magnitude" or feature.width == feature.hidden_size:
        return magnitude_mask(vectors, feature.width)
    static = static_mask(kind, hidden_size=feature.hidden_size, kept=feature.width, seed=seed)
    return torch.from_numpy(static).to(vectors.device).expand(vectors.shape)


# --- to the student


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> HiddenTargets:
    """Cut to the most tokens that one of the rows keeps. Raises StoreError for masks that cannot be."""
    feature: Hidden = own.feature
    n_kept = own.chosen("n_kept", rows, places)
    length = int(n_kept.max())
    stored = {name: own.chosen(name, rows, places)[:, :, :length] for name in own.arrays if name != "n_kept"}
    token, mask = stored["token"], stored["mask"]
    kept = (np.arange(length) < n_kept[..., None]) & (token >= 0)
    whole = bool(kept.all())  # as a rule; then nothing need be blanked
    coordinate = None
    if feature.width < feature.hidden_size:
        shape = (*token.shape, feature.width)
        coordinate = _coordinates(feature, mask).reshape(shape) if whole else np.zeros(shape, dtype=np.int64)
        if not whole:
            coordinate[kept] = _coordinates(feature, mask[kept])
    values = own.decoded(stored, places, kept.swapaxes(0, 1))
    return HiddenTargets(
        position=_by_layer((token if whole else np.where(kept, token, 0)).astype(np.int64)),
        token_kept=_by_layer(kept),
        values=values if whole else values.masked_fill(torch.from_numpy(~kept.swapaxes(0, 1))[..., None], 0),
        coordinate=None if coordinate is None else _by_layer(coordinate),
        width=feature.hidden_size,
        directions=own.directions(places),
    )


def _coordinates(feature: Hidden, mask: np.ndarray) -> np.ndarray:
    """The kept coordinates [vector, K], from masks' bits [..., octets]."""
    where = np.flatnonzero(unpack_mask(mask, feature.hidden_size))
    vectors = math.prod(mask.shape[:-1])
    if len(where) != vectors * feature.width:
        raise StoreError(f"a mask does not keep {feature.width} units: the store is damaged")
    return where.reshape(vectors, feature.width) - feature.hidden_size * np.arange(vectors)[:, None]


def _by_layer(array: np.ndarray) -> torch.Tensor:
    """[batch, layer, ...] -> a tensor of [layer, batch, ...]."""
    return torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)))


def check_kept(n_kept: Int[np.ndarray, "row layer"], slots: int, root: str) -> None:
    """Raise StoreError unless every row keeps at least one token and at most as many as there are slots."""
    if (n_kept < 1).any() or (n_kept > slots).any():
        raise StoreError(f"{root}: a row keeps no token, or more than there is room for: the store is damaged")


def aligned_share(own: FeatureRows) -> float:
    """The share of the kept tokens that the student has too: 1 with the teacher's tokenizer."""
    token, n_kept = own.arrays["token"], own.arrays["n_kept"]
    found = np.count_nonzero((token >= 0) & (np.arange(token.shape[2]) < n_kept[..., None]))
    return found / max(1, int(n_kept.sum(dtype=np.int64)))


HIDDEN: Kind[HiddenTargets] = Kind("hidden", _sight, _capture, _targets)
"""Kept layers x tokens x coordinates: a configuration."""
