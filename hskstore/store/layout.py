"""How a store lies, as its numbers make it: splits in units, and their arrays with shapes, dtypes and fills."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from hskstore.store.codebooks import codebook_arrays
from hskstore.store.features import Feature
from hskstore.store.schema import ArraySpec, array_spec, unit_rows

Unit = tuple[str, int]
"""A unit of a store, as the split that it is of and its number there; codebooks are one too, of none."""

Columns = Mapping[str, Shaped[np.ndarray, "_row ..."]]
"""Some rows of a store's arrays, by path: "train/hidden/values" [row, layer, ...]."""

Column = Shaped[np.ndarray, "_row ..."] | Sequence[Shaped[np.ndarray, "..."]]
"""The rows of a unit in one array: together, or each by itself [layer, ..., tokens, ...] with as many tokens as it has; what
lies behind them is 0."""

SPLIT = re.compile(r"[a-z][a-z0-9_]*")

INPUTS = ("input_ids", "token_type_ids", "n_tokens", "row_id", "logits", "label")
TEXT = ("text", "n_bytes", "offsets")
HIDDEN = ("values", "mask", "token", "n_kept", "scale")
KNOWN_ARRAYS = frozenset(INPUTS) | frozenset(TEXT) | {f"hidden/{name}" for name in HIDDEN}
KNOWN_ARRAYS |= {f"{feature}/{name}" for feature in ("states", "cls", "qkv", "pooled") for name in ("values", "scale")}
KNOWN_ARRAYS |= {f"{feature}/{name}" for feature in ("hidden", "states", "cls", "qkv", "pooled") for name in ("words", "error")}
KNOWN_ARRAYS |= {"cls_row/probability", "cls_row/raw", "attended/token", "spans/tokens", "spans/n_spans"}
"""What this version knows to be in a split; a reader passes over any other array, a feature of a later version."""

LABELS = ("int64", "float32")
"""Dtypes of class ids and of scores."""


@dataclass(frozen=True)
class SplitRows:
    """One split's rows, whatever is kept of them. `sha256` is of the tokenised rows, `longest` the most tokens of a row."""

    rows: int
    tokens: int
    longest: int
    sha256: str


@dataclass(frozen=True)
class Split(SplitRows):
    """One split's rows as a store has them: in units of `unit_rows`."""

    unit_rows: int

    @property
    def units(self) -> int:
        return math.ceil(self.rows / self.unit_rows)

    def rows_of(self, unit: int) -> int:
        """Rows of one unit; the last may be short."""
        return min(self.unit_rows, self.rows - unit * self.unit_rows)


@dataclass(frozen=True)
class KeptText:
    """That a store keeps its text: of so many columns, and the most UTF-8 bytes of a row, by split (at least 1)."""

    columns: int
    bytes: dict[str, int]


def plan_arrays(
    features: Mapping[str, Feature],
    splits: Mapping[str, Split],
    *,
    labels: str | None,
    logits: int,
    text: KeptText | None = None,
) -> dict[str, ArraySpec]:
    """The arrays of a store. `labels` is the label's dtype ("int64", "float32") or None; `logits` the teacher's outputs."""
    arrays: dict[str, ArraySpec] = {}
    for name, split in splits.items():
        rows, shard = split.rows, split.unit_rows
        inputs = {
            "input_ids": array_spec(rows, (split.longest,), "int32", shard=shard, fill=-1),
            "token_type_ids": array_spec(rows, (split.longest,), "uint8", shard=shard, fill=255),
            "n_tokens": array_spec(rows, (), "int32", shard=shard, fill=-1),
            "row_id": array_spec(rows, (), "int64", shard=shard, fill=-1),
            "logits": array_spec(rows, (logits,), "float32", shard=shard, fill="NaN"),
        }
        if labels is not None:
            inputs["label"] = array_spec(rows, (), labels, shard=shard, fill="NaN" if labels == "float32" else -(2**63))
        if text is not None:
            # No byte of UTF-8 is 255; a token without characters has -1.
            inputs["text"] = array_spec(rows, (text.bytes[name],), "uint8", shard=shard, fill=255)
            inputs["n_bytes"] = array_spec(rows, (text.columns,), "int32", shard=shard, fill=-1)
            inputs["offsets"] = array_spec(rows, (split.longest, 2), "int32", shard=shard, fill=-2)
        arrays |= {f"{name}/{array}": spec for array, spec in inputs.items()}
    train = splits["train"]
    for name, feature in features.items():
        for array, planned in feature.arrays(train.longest).items():
            arrays[f"train/{name}/{array}"] = planned.spec(train.rows, train.unit_rows)
    return arrays | codebook_arrays(features)


def in_units(
    features: Mapping[str, Feature], splits: Mapping[str, SplitRows], *, text: KeptText | None = None
) -> dict[str, Split]:
    """The splits, cut into units by a row's bytes in the largest array of what is kept of them: features are of train alone."""
    found: dict[str, Split] = {}
    for name, split in splits.items():
        sizes = [4 * split.longest] if text is None else [8 * split.longest, text.bytes[name]]
        if name == "train":
            sizes += [feature.row_bytes(split.longest) for feature in features.values()]
        found[name] = Split(split.rows, split.tokens, split.longest, split.sha256, unit_rows(max(sizes), split.rows))
    return found
