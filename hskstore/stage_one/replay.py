"""Sampled rows of a store through the teacher again: does it hold what this teacher says?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import tee

import numpy as np

from hskstore.config import check_count
from hskstore.errors import ModelError
from hskstore.models.device import choose_device
from hskstore.stage_one.codebooks import FEWEST_HELD_OUT, as_f16, vectors_of
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_one.teacher_pass import TeacherPass, block_batches
from hskstore.store import Plan, Store, open_store
from hskstore.store.codebooks import Words, coded
from hskstore.store.features import Attended, ClsRow, LayerVectors
from hskstore.store.hidden import Hidden
from hskstore.store.layout import Columns
from hskstore.store.masks import unpack_mask
from hskstore.store.plan import planned_anew
from hskstore.store.vectors import Codes
from hskstore.text.rows import Rows
from hskstore.watch import Watch, unwatched

TOLERANCE = {"fp32": 2e-3, "fp16": 3e-2, "bf16": 1e-1}
"""What two machines may differ by, relative to the largest number of the row, by the precision of the pass."""

FEWEST_SAME = 0.5
"""Of a row's tokens, and of their coordinates: near ties may be ranked or masked otherwise elsewhere, but not most of them."""

ROWS_AT_THE_END = 8
"""Of an extraction, that are replayed."""


@dataclass(frozen=True)
class Replayed:
    """What came of it. `equal` rows are the same to the last bit; `differing` are train rows with a difference beyond its
    tolerance.

    `same_tokens` is the share of the tokens chosen by attention that were chosen again. `differences`, of "logits" and of each
    feature that has numbers, are the largest seen, relative to the largest number of their row; `tolerances` are what is allowed
    of each.
    """

    rows: int
    equal: int
    same_tokens: float
    differences: dict[str, float]
    tolerances: dict[str, float]
    differing: tuple[int, ...]
    left_over: dict[str, float] = field(default_factory=dict)
    """What codes leave over of the variance of the vectors that went through the teacher, by feature: of its worst layer."""
    unlike: tuple[str, ...] = ()
    """Features whose codes leave far more of a layer than the store tells of it: their codebooks are not these vectors'."""


def replay(root: str, teacher: str, *, rows: int, device: str | None = None, seed: int = 0, watch: Watch = unwatched) -> Replayed:
    """Run at least `rows` sampled train rows, or all, through `teacher` in the batches they were extracted in.

    Raises ModelError where it is another teacher than the store's, by the hash of its weights; OptionError; StoreError for the
    store.
    """
    check_count("--replay", rows)
    store = open_store(root)
    plan = store.plan
    loaded = load_teacher(teacher, device=choose_device(device), precision=plan.pass_.precision)
    if loaded.sha256 != plan.teacher["sha256"]:
        raise ModelError(f"{teacher} is not the teacher of {store.root}: its weights have another sha256 than the plan names")
    n_tokens = np.concatenate([store.read("train/n_tokens", unit) for unit in range(plan.splits["train"].units)])
    batches = _sample(plan, n_tokens, rows, seed)
    stored, ahead = tee(_stored(store, batch) for batch in batches)
    compared: list[_Compared] = []
    in_codes = coded(plan.features)
    fits = {name: _Fit() for name in in_codes}
    numbers = [planned_anew(plan, map(as_f16, in_codes.values()))] if in_codes else []
    with TeacherPass([plan, *numbers], loaded, [words_of(store), *({} for _ in numbers)]) as passed:
        inputs = (_inputs(columns, n_tokens[batch]) for columns, batch in zip(ahead, batches, strict=True))
        for columns, (again, *plain) in zip(stored, passed.run("train", inputs), strict=True):
            compared.append(_compare(store, columns, again))
            for name, fit in fits.items():
                decoded = {**columns, f"train/{name}/values": _decoded(in_codes[name], store.words(name), columns)}
                fit.add(vectors_of(in_codes[name], decoded), vectors_of(in_codes[name], plain[0]))
            watch("replay", sum(len(one.equal) for one in compared), sum(map(len, batches)))
    found = {name: fit.left_over() for name, fit in fits.items() if fit.vectors >= FEWEST_HELD_OUT}
    return replace(
        _judged(store, compared, np.concatenate(batches)),
        left_over={name: float(shares.max()) for name, shares in found.items()},
        unlike=tuple(name for name, shares in found.items() if (shares > (1 + _told(store, name).clip(max=1)) / 2).any()),
    )


def replay_some(stores: Sequence[Store], teacher: Teacher, rows: Rows) -> list[Replayed]:
    """At most ROWS_AT_THE_END rows of stores of one pass, just made of the train split `rows` by this teacher: one batch of the
    pass through it again, of which those are compared that lie in one unit, so that little is run and little is read."""
    plans = [store.plan for store in stores]
    size = plans[0].pass_.block_rows
    start = size * int(np.random.default_rng(plans[0].pass_.seed).integers(-(-len(rows) // size)))
    n_tokens = rows.slice(start, min(start + size, len(rows))).n_tokens
    batch = start + _sample(plans[0], n_tokens, 1, plans[0].pass_.seed)[0]
    with TeacherPass(plans, teacher, [words_of(store) for store in stores]) as passed:
        (again,) = passed.run("train", [rows.take(batch)])
    found: list[Replayed] = []
    for store, columns in zip(stores, again, strict=True):
        unit = batch // store.plan.splits["train"].unit_rows
        chosen = np.flatnonzero(unit == unit[0])[:ROWS_AT_THE_END]
        one = _compare(store, _stored(store, batch[chosen]), {path: column[chosen] for path, column in columns.items()})
        found.append(_judged(store, [one], batch[chosen]))
    return found


def _told(store: Store, name: str) -> np.ndarray:
    """What a store says that its codes leave over of a feature, by layer."""
    told = store.left_over(name)
    assert told is not None
    return told


class _Fit:
    """How much of some vectors their codes leave over, added up batch by batch."""

    def __init__(self) -> None:
        self.vectors = 0
        self._error = self._sum = self._squares = np.zeros(())

    def add(self, decoded: np.ndarray, said: np.ndarray) -> None:
        """Vectors [vector, layer, ..., width] as their codes are decoded, and as the teacher says them."""
        decoded, said = decoded.astype(np.float64), said.astype(np.float64)
        self.vectors += len(said)
        self._error = self._error + np.square(decoded - said).sum(axis=(0, -1))
        self._sum = self._sum + said.sum(axis=0)
        self._squares = self._squares + np.square(said).sum(axis=(0, -1))

    def left_over(self) -> np.ndarray:
        """Of the variance, by layer [layer, ...]; 0 where they do not vary and codes say just that."""
        variance = self._squares - np.square(self._sum).sum(axis=-1) / self.vectors
        # What f16 rounds is no variance.
        found: np.ndarray = self._error / np.maximum(variance, np.finfo(np.float16).eps * self._squares).clip(min=1e-12)
        return found


def words_of(store: Store) -> Words:
    """Of every feature whose vectors are codes."""
    return {name: store.words(name)["words"] for name in coded(store.plan.features)}


def _judged(store: Store, compared: Sequence["_Compared"], rows: np.ndarray) -> Replayed:
    """What was compared of some train rows."""
    whole = _joined(compared)
    allowed = TOLERANCE[store.plan.pass_.precision]
    tolerances = {name: allowed + _step(store, name) for name in whole.differences}
    # "Not within", rather than "beyond": a difference that is no number is within nothing.
    good = (whole.tokens >= FEWEST_SAME) & (whole.coordinates >= FEWEST_SAME)
    for name, differences in whole.differences.items():
        good &= differences <= tolerances[name]
    return Replayed(
        rows=len(whole.equal),
        equal=int(whole.equal.sum()),
        same_tokens=round(float(whole.tokens.mean()), 6),
        differences={name: float(found.max()) for name, found in whole.differences.items()},
        tolerances=tolerances,
        differing=tuple(rows[~good].tolist()),
    )


def _step(store: Store, name: str) -> float:
    """By how much a difference of nothing can grow where numbers are written down: a vector as far from two words is written as
    one or the other, which are as far from each other as what codes leave over: of good ones less than their variance."""
    feature = store.plan.said.get(name)
    if feature is None:
        return 0.0
    left_over = store.left_over(name)
    if left_over is not None:
        return math.sqrt(min(1, float(left_over.max())))
    return 0.0 if isinstance(feature.encoding, Codes) else feature.encoding.step


@dataclass(frozen=True)
class _Compared:
    """Per row [rows]: equal to the last bit; largest relative differences, by what they are of; the shares of the tokens kept by
    rank, and of the coordinates of these, that were chosen again."""

    equal: np.ndarray
    differences: dict[str, np.ndarray]
    tokens: np.ndarray
    coordinates: np.ndarray


def _joined(compared: Sequence[_Compared]) -> _Compared:
    first = compared[0]
    return _Compared(
        np.concatenate([one.equal for one in compared]),
        {name: np.concatenate([one.differences[name] for one in compared]) for name in first.differences},
        np.concatenate([one.tokens for one in compared]),
        np.concatenate([one.coordinates for one in compared]),
    )


def _sample(plan: Plan, n_tokens: np.ndarray, rows: int, seed: int) -> list[np.ndarray]:
    """Whole batches of the pass, from blocks in random order, until they have enough rows."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    cut = [batches for _, batches in block_batches(n_tokens, plan.pass_.block_rows, plan.pass_.batch_tokens)]
    for place in rng.permutation(len(cut)):
        batches = cut[place]
        for index in rng.permutation(len(batches)):
            if sum(map(len, found)) >= rows:
                return found
            found.append(batches[index])
    return found


def _stored(store: Store, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Every train array of some rows, as it is stored."""
    size = store.plan.splits["train"].unit_rows
    found: dict[str, np.ndarray] = {}
    for path in store.plan.arrays_of("train"):
        units = {unit: store.read(path, unit) for unit in np.unique(batch // size).tolist()}
        found[path] = np.stack([units[row // size][row % size] for row in batch.tolist()])
    return found


def _inputs(stored: dict[str, np.ndarray], n_tokens: np.ndarray) -> Rows:
    ids, types, row_id = (stored[f"train/{name}"] for name in ("input_ids", "token_type_ids", "row_id"))
    return Rows.of_padded(ids, types, n_tokens, row_id)


def _compare(store: Store, stored: Columns, again: Columns) -> _Compared:
    """Of what is the teacher's word; the other arrays are its inputs, or found in them. A batch's arrays may be shorter along
    their tokens."""
    plan, rows = store.plan, len(stored["train/logits"])
    said = ["train/logits", *(path for path in stored if path.split("/")[1] in plan.said)]
    n_tokens = stored["train/n_tokens"]
    stored = {path: stored[path][tuple(slice(size) for size in again[path].shape)] for path in said}
    equal = np.ones(rows, dtype=bool)
    for path in said:
        equal &= (again[path] == stored[path]).reshape(rows, -1).all(axis=1)
    differences = {"logits": _relative(stored["train/logits"] - again["train/logits"], stored["train/logits"])}
    tokens, coordinates = np.ones(rows), np.ones(rows)
    for name, feature in plan.said.items():
        if isinstance(feature, Hidden):
            differences[name], tokens, coordinates = _compare_hidden(feature, store.words(name), stored, again)
        elif isinstance(feature, LayerVectors):
            words = store.words(name)
            old, new = (_vectors(feature, words, columns) for columns in (stored, again))
            differences[name] = _relative(old - new, old).max(axis=1)
        elif isinstance(feature, Attended):
            path = f"train/{name}/token"
            tokens = np.minimum(tokens, _same_attended(stored[path], again[path], n_tokens))
        elif isinstance(feature, ClsRow):
            arrays = [f"train/{name}/{array}" for array in feature.arrays(1)]
            differences[name] = np.max(
                [_relative(stored[path] - again[path], stored[path]).max(axis=1) for path in arrays], axis=0
            )
    return _Compared(equal, differences, tokens, coordinates)


def _same_attended(stored: np.ndarray, again: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Per row: the share of the tokens that its tokens attend to most [row, layer, head, token, choice] which are stored, in
    whatever order: near ties may be ordered otherwise elsewhere."""
    is_real = np.arange(again.shape[3]) < n_tokens[:, None]
    chosen = (again >= 0) & is_real[:, None, None, :, None]
    same = chosen & (again[..., :, None] == stored[..., None, :]).any(axis=-1)
    found: np.ndarray = same.sum(axis=(1, 2, 3, 4)) / chosen.sum(axis=(1, 2, 3, 4)).clip(min=1)
    return found


def _vectors(feature: LayerVectors, words: Columns, columns: Columns) -> np.ndarray:
    """All numbers of a row's layer in one line [rows, layer, numbers]."""
    decoded = _decoded(feature, words, columns)
    return decoded.astype(np.float32).reshape(*decoded.shape[:2], -1)


def _decoded(feature: Hidden | LayerVectors, words: Columns, columns: Columns) -> np.ndarray:
    """The vectors of some rows [rows, layer, ..., width]."""
    paths = {name: f"train/{feature.name}/{name}" for name in ("values", "scale")}
    own = {name: columns[path] for name, path in paths.items() if path in columns}
    found: np.ndarray = feature.encoding.decode({**own, **words}, feature.width)
    return found


def _compare_hidden(
    feature: Hidden, words: Columns, stored: Columns, again: Columns
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row: the largest relative difference, and the shares of tokens and coordinates that were chosen again."""
    before, after = (_by_token(feature, words, columns) for columns in (stored, again))
    hidden, tokens, coordinates = np.zeros(len(before)), np.ones(len(before)), np.ones(len(before))
    # How many tokens a row keeps follows from its words alone: another number is no matter of rounding.
    counts = (stored["train/hidden/n_kept"] == again["train/hidden/n_kept"]).all(axis=1)
    for row in range(len(before)):
        common = before[row].keys() & after[row].keys()
        tokens[row] = len(common) / max(1, len(before[row])) if counts[row] else 0
        same, kept = 0, 0
        for token in common:
            (old, old_kept), (new, new_kept) = before[row][token], after[row][token]
            # A unit at the edge of a mask may be kept here and not there: what both kept is what can be compared.
            both = old_kept & new_kept
            same, kept = same + int(both.sum()), kept + int(new_kept.sum())
            hidden[row] = np.maximum(hidden[row], _relative((old - new)[None, both], old[None])[0])
        coordinates[row] = same / max(1, kept)
    return hidden, tokens, coordinates


def _by_token(feature: Hidden, words: Columns, columns: Columns) -> list[dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]]:
    """Of each row: the hidden vector [d], and which of its coordinates are kept, by layer and position."""
    mask, token = (columns[f"train/hidden/{name}"] for name in ("mask", "token"))
    numbers = _decoded(feature, words, columns)
    kept = unpack_mask(mask, feature.hidden_size)
    found: list[dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]] = [{} for _ in token]
    for row, layer, slot in np.argwhere(token >= 0).tolist():
        own = kept[row, layer, slot]
        vector = np.zeros(feature.hidden_size, dtype=np.float32)
        if own.sum() == feature.width:
            vector[own] = numbers[row, layer, slot]
        else:
            vector[:] = np.nan  # a mask that cannot belong to the values
        found[row][layer, int(token[row, layer, slot])] = vector, own
    return found


def _relative(difference: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The largest difference of each row, by the largest number of the row [rows]; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(difference).max(axis=-1, initial=0) / np.maximum(np.abs(scale).max(axis=-1), 1e-6))
