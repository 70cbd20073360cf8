"""What a made-up teacher of four layers knows, for tests of what becomes of it."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from hskstore.config import Keep, Strategy
from hskstore.features import HIDDEN, FeatureRows, HiddenTargets, TeacherShape, Want
from hskstore.layers import plan_strategy
from hskstore.models.run import ModelShape
from hskstore.store import Store
from hskstore.store.hidden import Hidden, plan_hidden

STUDENT = ModelShape("it", 2, (2, 16))


def made_hidden(keep: Keep, hidden_size: int = 24) -> Hidden:
    """What a store would keep for a student of two layers."""
    strategy = plan_strategy(Strategy(2), 4)
    return plan_hidden(keep, strategy, teacher_layers=4, hidden_size=hidden_size, most_admitted=12)


def shape_of_teacher(hidden: Hidden) -> TeacherShape:
    return TeacherShape(4, hidden.hidden_size, hidden)


def rows_of(hidden: Hidden, **arrays: Any) -> FeatureRows:
    return FeatureRows(hidden, arrays, tuple(range(len(hidden.pairs))))


def want_of(store: Store, *layers: int) -> Want[HiddenTargets]:
    """Some stored layers of hidden states, or all, as a method asks for them."""
    assert store.plan.hidden is not None
    pairs = store.plan.hidden.pairs
    return Want(HIDDEN, tuple(pairs[layer] for layer in layers) if layers else pairs)


def targets_of(own: FeatureRows, rows: np.ndarray) -> HiddenTargets:
    """Of all the stored layers that were read."""
    return HIDDEN.targets(own, rows, own.places, np.zeros(len(rows)))


def scattered(
    targets: HiddenTargets,
) -> tuple[Float[Tensor, "layer batch token width"], Bool[Tensor, "layer batch token width"]]:
    """The vectors at their full width, float32 and zero where nothing was kept; and where something was."""
    values = targets.values.float()
    kept = targets.token_kept[..., None].expand_as(values)
    if targets.coordinate is None:
        return values, kept
    empty = values.new_zeros((*values.shape[:-1], targets.width))
    coordinate = targets.coordinate.long()
    return empty.scatter(-1, coordinate, values), empty.bool().scatter(-1, coordinate, kept)
