"""How a store lies, as its numbers make it: splits in units, and their arrays with shapes, dtypes and fills."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from hskstore.store.schema import ArraySpec, array_spec, unit_rows

Unit = tuple[str, int]
"""A unit of a store, as the split that it is of and its number there."""

Columns = Mapping[str, Shaped[np.ndarray, "_row ..."]]
"""Some rows of a store's arrays, by path: "train/hidden/values" [row, layer, ...]."""

SPLIT = re.compile(r"[a-z][a-z0-9_]*")

INPUTS = ("input_ids", "token_type_ids", "n_tokens", "row_id", "logits", "label")
TEXT = ("text", "n_bytes", "offsets")
HIDDEN = ("values", "mask", "token", "n_kept", "scale")
KNOWN_ARRAYS = frozenset(INPUTS) | frozenset(TEXT) | {f"hidden/{name}" for name in HIDDEN}
"""What this version knows to be in a split; a reader passes over any other array, a feature of a later version."""

LABELS = ("int64", "float32")
"""Dtypes of class ids and of scores."""

VALUE_DTYPES = {"f16": "float16", "f32": "float32", "q8": "int8", "q4": "uint8"}
VALUE_FILLS: dict[str, float | int | str] = {"f16": "NaN", "f32": "NaN", "q8": -128, "q4": 0x88}
"""Fill values never stand for data: a quantised value is at least -127 (q8) or -7 (q4), floats are finite."""


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


def stored_width(width: int, values: str) -> int:
    """Elements of the values array per vector: two 4-bit values share a byte."""
    return (width + 1) // 2 if values == "q4" else width


def plan_arrays(
    *,
    splits: Mapping[str, Split],
    layers: int,
    length: int,
    width: int,
    hidden_size: int,
    values: str,
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
    rows, shard = splits["train"].rows, splits["train"].unit_rows
    kept = (layers, length)
    hidden = {
        "values": array_spec(
            rows,
            (*kept, stored_width(width, values)),
            VALUE_DTYPES[values],
            shard=shard,
            codec="values",
            fill=VALUE_FILLS[values],
        ),
        "mask": array_spec(rows, (*kept, math.ceil(hidden_size / 8)), "uint8", shard=shard, codec="mask", fill=0),
        "token": array_spec(rows, kept, "int16", shard=shard, fill=-2),
        "n_kept": array_spec(rows, (layers,), "int16", shard=shard, fill=-1),
    }
    if values in ("q8", "q4"):
        hidden["scale"] = array_spec(rows, kept, "float16", shard=shard, fill="NaN")
    return arrays | {f"train/hidden/{array}": spec for array, spec in hidden.items()}


def in_units(
    splits: Mapping[str, SplitRows],
    *,
    layers: int,
    length: int,
    width: int,
    hidden_size: int,
    values: str,
    text: KeptText | None = None,
) -> dict[str, Split]:
    """The splits, cut into units by what is kept of them: hidden states are of train alone."""
    found: dict[str, Split] = {}
    for name, split in splits.items():
        size = plan_unit_rows(
            rows=split.rows,
            longest=split.longest,
            layers=layers if name == "train" else 0,
            length=length,
            width=width,
            hidden_size=hidden_size,
            values=values,
            text_bytes=0 if text is None else text.bytes[name],
        )
        found[name] = Split(split.rows, split.tokens, split.longest, split.sha256, size)
    return found


def plan_unit_rows(
    *, rows: int, longest: int, layers: int, length: int, width: int, hidden_size: int, values: str, text_bytes: int = 0
) -> int:
    """Rows of a unit, from the row's bytes in the split's largest array.

    `layers` is 0 where no hidden states are kept, `text_bytes` where no text is.
    """
    bytes_per_element = {"f16": 2, "f32": 4, "q8": 1, "q4": 1}[values]
    value_bytes = layers * length * stored_width(width, values) * bytes_per_element
    input_bytes = max(8 * longest, text_bytes) if text_bytes else 4 * longest
    return unit_rows(max(value_bytes, layers * length * math.ceil(hidden_size / 8), input_bytes), rows)
