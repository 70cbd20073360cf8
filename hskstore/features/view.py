"""A rich store, of which every configuration of `hidden` is a selection: made by the very function that selects on the teacher's
device, and bit for bit what an extraction would have kept."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError, StoreError
from hskstore.features.hidden import HIDDEN
from hskstore.layers import PlannedStrategy, plan_strategy
from hskstore.models.observe import Seen
from hskstore.store import Plan, Store
from hskstore.store.derive import UNITS_AT_ONCE, Derived, admitted_tokens, derive_as
from hskstore.store.features import ClsRow, States
from hskstore.store.hidden import Hidden, plan_hidden
from hskstore.store.plan import planned_anew
from hskstore.store.vectors import ENCODINGS, Codes
from hskstore.text.rows import Rows
from hskstore.watch import Watch, unwatched

ROWS_AT_ONCE = 32
"""That are selected from together: enough for a kernel, few enough for memory."""

UNITS_HELD = 2 * UNITS_AT_ONCE
"""Whose selection is kept: the arrays of one are asked for one after the other."""


class View(Store):
    """A rich store, read as one that holds `hidden` in one configuration besides. Its digest is the rich store's."""

    def __init__(self, rich: Store, hidden: Hidden, plan: Plan) -> None:
        super().__init__(rich.place, plan, rich.manifest)
        self._rich = rich
        self._hidden = hidden
        self._selected: OrderedDict[int, Future[dict[str, np.ndarray]]] = OrderedDict()
        self._turn = Lock()

    @property
    def identity(self) -> str:
        """Names what is read: the rich store, and the configuration."""
        return hashlib.sha256(f"{self.digest} {self._hidden!r}".encode()).hexdigest()

    def read(self, path: str, unit: int, layers: Sequence[int] | None = None) -> Shaped[np.ndarray, "row ..."]:
        """As `Store.read`; arrays of `hidden` are selected from the rich store's."""
        if not path.startswith("train/hidden/"):
            return self._rich.read(path, unit, layers)
        with self._turn:
            selected = self._selected.get(unit)
            ours = selected is None
            if selected is None:
                selected = self._selected[unit] = Future()
                if len(self._selected) > UNITS_HELD:
                    self._selected.popitem(last=False)
        if ours:
            try:
                selected.set_result(self._select(unit))
            except BaseException as error:
                selected.set_exception(error)
        found = selected.result()[path.rpartition("/")[2]]
        return found if layers is None else found[:, list(layers)]

    def _select(self, unit: int) -> dict[str, np.ndarray]:
        """Every array of `hidden` of one unit. Of layers that are not selected from nothing is read.

        Raises StoreError for what no teacher says, OptionError for numbers that are beyond f16.
        """
        sight = HIDDEN.sight(self._hidden)
        states = self._layers(unit, "states", "values", sight.hidden)
        scale = self._layers(unit, "states", "scale", sight.hidden)
        seen = {
            "cls_row": self._layers(unit, "cls_row", "probability", sight.cls_row),
            "raw_cls_row": self._layers(unit, "cls_row", "raw", sight.raw_cls_row),
        }
        ids, n_tokens, row_id = (self._rich.read(f"train/{name}", unit) for name in ("input_ids", "n_tokens", "row_id"))
        if (n_tokens < 1).any() or (n_tokens > ids.shape[1]).any():
            raise StoreError(f"{self.root}: the numbers of tokens of train cannot be right: the store is damaged")
        parts: list[dict[str, np.ndarray]] = []
        order = np.argsort(n_tokens, kind="stable")  # so that few tokens are padding
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = order[start : start + ROWS_AT_ONCE]
            no_types = np.zeros_like(ids[some], dtype=np.uint8)  # no selection depends on them
            rows = Rows.of_padded(ids[some], no_types, n_tokens[some], row_id[some])
            longest = rows.longest
            hidden = {
                layer: self._decoded(layer, values[some][:, :longest], scale[layer][some][:, :longest] if scale else None)
                for layer, values in states.items()
            }
            cls_row, raw = (
                {layer: torch.from_numpy(array[some][:, :longest]) for layer, array in seen[name].items()}
                for name in ("cls_row", "raw_cls_row")
            )
            mask = torch.from_numpy(np.arange(longest) < n_tokens[some, None])
            tokens = torch.from_numpy(ids[some][:, :longest].astype(np.int64))
            batch = (tokens, torch.zeros_like(tokens), mask)
            kept = HIDDEN.capture(
                self._hidden, self.plan, Seen(torch.zeros(len(tokens), 1), hidden, cls_row, raw), batch, rows, None
            )
            if not bool(kept.pop("finite").all()):
                if all(bool(vectors[mask].isfinite().all()) for vectors in hidden.values()):
                    raise OptionError(f"{self.root}: its states exceed 65504, the largest number of f16: choose --values f32")
                raise StoreError(f"{self.root}: its states are not finite: the store is damaged")
            parts.append({name: tensor.numpy() for name, tensor in kept.items()})
        place = np.argsort(order)
        return {name: np.concatenate([part[name] for part in parts])[place] for name in parts[0]}

    def _layers(self, unit: int, feature: str, array: str, layers: frozenset[int]) -> dict[int, np.ndarray]:
        """Some layers of an array of the rich store, by teacher layer; none where it has no such array."""
        path = f"train/{feature}/{array}"
        if not layers or not self._rich.has(path):
            return {}
        stored = self._rich.plan.features[feature].layers
        found = self._rich.read(path, unit, [stored.index(layer) for layer in sorted(layers)])
        return {layer: found[:, place] for place, layer in enumerate(sorted(layers))}

    def _decoded(self, layer: int, values: np.ndarray, scale: np.ndarray | None) -> Tensor:
        """Some rows of a layer's states [row, token, ...] as vectors."""
        feature = self._rich.plan.features[States.name]
        assert isinstance(feature, States)
        stored = {"values": values[:, None]} | ({} if scale is None else {"scale": scale[:, None]})
        words = {name: array[[feature.layers.index(layer)]] for name, array in self._rich.words(States.name).items()}
        return torch.from_numpy(np.ascontiguousarray(feature.encoding.decode(stored | words, feature.width)[:, 0]))


def view(rich: Store, keep: Keep, strategy: Strategy) -> View:
    """One configuration of `hidden`, selected out of a rich store whenever it is read. Raises OptionError for what is lost."""
    hidden = _planned(rich, keep, plan_strategy(strategy, rich.plan.teacher["layers"]))
    others = {name: feature for name, feature in rich.plan.features.items() if name != Hidden.name}
    train = rich.plan.splits["train"]
    arrays = {
        f"train/hidden/{name}": array.spec(train.rows, train.unit_rows) for name, array in hidden.arrays(train.longest).items()
    }
    plan = replace(rich.plan, features={Hidden.name: hidden, **others}, arrays=rich.plan.arrays | arrays)
    return View(rich, hidden, plan)


def derive_view(made: View, out: Any, *, watch: Watch = unwatched) -> Derived:
    """Seal what a view selects at `out`: from f16 or f32 states the store that an extraction would have made, digest and all.

    Raises OptionError for a rich store whose states were quantised.
    """
    stored = made.plan.said[States.name]
    if not stored.encoding.exact:
        raise OptionError(
            f"{made.root} keeps its states as {stored.values}, from which no store can be cut that an extraction would make; a"
            " view of it can be trained from (hsk distill with --keep), or extract --rich with --values f16"
        )
    plan, threads = planned_anew(made.plan, [made.plan.features[Hidden.name]]), torch.get_num_threads()
    torch.set_num_threads(1)  # of each unit: several are selected side by side
    try:
        return derive_as(made, plan, out, watch=watch)
    finally:
        torch.set_num_threads(threads)


def _planned(rich: Store, keep: Keep, strategy: PlannedStrategy) -> Hidden:
    """The configuration. Raises OptionError where the store lacks what it is selected from."""
    root, plan = rich.root, rich.plan
    states, attention = plan.said.get(States.name), plan.said.get(ClsRow.name)
    if states is None:
        raise OptionError(f"{root} is no rich store: it holds no states to select from; make one with hsk extract --rich")
    if isinstance(ENCODINGS[strategy.values], Codes):
        raise OptionError(
            f"--values {strategy.values}: codes have codebooks, and no view of {root} has any; choose f16, f32, q8 or q4,"
            f" or make a store of them: hsk derive {root} --keep {keep} --student-layers {strategy.student_layers} --values"
            f" {strategy.values}"
        )
    if states.values == "f16" and strategy.values == "f32":
        raise OptionError(f"{root} keeps its states as f16: f32 values are lost; extract --rich with --values f32")
    most = int(admitted_tokens(rich, strategy).max())
    sizes = {"teacher_layers": plan.teacher["layers"], "hidden_size": plan.teacher["hidden_size"], "most_admitted": most}
    hidden = plan_hidden(keep, strategy, **sizes, ranking=attention.ranking if isinstance(attention, ClsRow) else None)
    sight = HIDDEN.sight(hidden)
    lacking = [f"states of teacher layer {layer}" for layer in sorted(sight.hidden - set(states.layers))]
    shown = set() if attention is None else set(attention.layers)
    lacking += [f"attention of teacher layer {layer}" for layer in sorted((sight.cls_row | sight.raw_cls_row) - shown)]
    if sight.raw_cls_row and not (isinstance(attention, ClsRow) and attention.raw):
        lacking.append("raw scores of attention, which its teacher did not show")
    if lacking:
        raise OptionError(f"{root} holds no {'; no '.join(lacking)}: --keep {keep} cannot be selected from it")
    return hidden
