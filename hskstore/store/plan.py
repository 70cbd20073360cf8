"""What a store will hold, fixed before the teacher runs: its arrays, its unit grid, its identity."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hskstore.config import Keep, Precision, Strategy
from hskstore.errors import OptionError, StoreError
from hskstore.layers import LayerPair
from hskstore.store.schema import (
    BLOCK_ROWS,
    FORMAT_VERSION,
    ArraySpec,
    array_spec,
    canonical_json,
    hierarchy,
    unit_rows,
)

VALUE_DTYPES = {"f16": "float16", "f32": "float32", "q8": "int8", "q4": "uint8"}
VALUE_FILLS: dict[str, float | int | str] = {"f16": "NaN", "f32": "NaN", "q8": -128, "q4": 0x88}
"""Fill values never stand for data: a quantised value is at least -127 (q8) or -7 (q4), floats are finite."""


@dataclass(frozen=True)
class Split:
    """One split's rows as stored. `sha256` is of the tokenised rows, `longest` the most tokens of a row."""

    rows: int
    tokens: int
    longest: int
    unit_rows: int
    sha256: str

    @property
    def units(self) -> int:
        return math.ceil(self.rows / self.unit_rows)


@dataclass(frozen=True)
class Pass:
    """One run of the teacher over the data; stores of one pass share it, whatever they keep.

    Rows are permuted by `seed`, cut into blocks of `block_rows`, sorted by length inside a block, and batched up to
    `batch_tokens` padded tokens. All of it decides the last bits of a state, so all of it is planned.
    """

    seed: int
    precision: Precision
    max_length: int
    batch_tokens: int
    block_rows: int = BLOCK_ROWS


@dataclass(frozen=True)
class Plan:
    """A store's content. `length` token slots per row and layer, `width` units per vector of `hidden_size`.

    `teacher`, `tokenizer` and `task` are plain JSON: hashes, sizes, label names, metrics. No path, device or library
    version stands here: where a run goes on, and with how many threads, is free. The last bits of a state may follow both.
    """

    keep: Keep
    strategy: Strategy
    pairs: tuple[LayerPair, ...]
    length: int
    width: int
    hidden_size: int
    run: Pass
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    task: dict[str, Any]
    splits: dict[str, Split]
    arrays: dict[str, ArraySpec]

    @property
    def store_id(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def units(self) -> Iterator[tuple[str, int]]:
        """Every unit as (split, number)."""
        for split, rows in self.splits.items():
            for unit in range(rows.units):
                yield split, unit

    def arrays_of(self, split: str) -> dict[str, ArraySpec]:
        return {path: spec for path, spec in self.arrays.items() if path.startswith(split + "/")}

    def documents(self) -> dict[str, bytes]:
        """Every `zarr.json` of the store."""
        hidden = {
            "teacher_layers": [pair.teacher for pair in self.pairs],
            "rank_layers": [pair.rank for pair in self.pairs],
            "student_layers": [pair.student for pair in self.pairs],
            "hidden_size": self.hidden_size,
            "width": self.width,
            "values": self.strategy.values,
        }
        return hierarchy(self.arrays, {"": {"hskstore": {"version": FORMAT_VERSION}}, "train/hidden": hidden})

    def as_json(self) -> dict[str, Any]:
        return {
            "format": "hskstore",
            "version": FORMAT_VERSION,
            "keep": str(self.keep),
            "strategy": asdict(self.strategy),
            "hidden": {
                "layers": [asdict(pair) for pair in self.pairs],
                "length": self.length,
                "width": self.width,
                "hidden_size": self.hidden_size,
            },
            "pass": asdict(self.run),
            "teacher": self.teacher,
            "tokenizer": self.tokenizer,
            "task": self.task,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "arrays": {path: spec.as_json() for path, spec in self.arrays.items()},
        }

    def to_bytes(self) -> bytes:
        return canonical_json(self.as_json())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Plan":
        """Read a plan.json. Raises StoreError for anything that is not a plan this version can read."""
        try:
            document = json.loads(data)
            if document["format"] != "hskstore":
                raise StoreError(f"{where}/plan.json is not an hskstore plan")
            if document["version"] > FORMAT_VERSION:
                raise StoreError(
                    f"{where} is a store of format version {document['version']}; this hskstore reads up to"
                    f" {FORMAT_VERSION}: upgrade it"
                )
            hidden = document["hidden"]
            return cls(
                keep=Keep.parse(document["keep"]),
                strategy=Strategy(**document["strategy"]),
                pairs=tuple(LayerPair(**pair) for pair in hidden["layers"]),
                length=hidden["length"],
                width=hidden["width"],
                hidden_size=hidden["hidden_size"],
                run=Pass(**document["pass"]),
                teacher=document["teacher"],
                tokenizer=document["tokenizer"],
                task=document["task"],
                splits={name: Split(**split) for name, split in document["splits"].items()},
                arrays={path: ArraySpec.from_json(spec) for path, spec in document["arrays"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OptionError) as error:
            raise StoreError(f"{where}/plan.json cannot be read as a plan ({error!r}): the store is damaged") from None

    def differences(self, other: "Plan") -> list[str]:
        """The fields in which two plans differ, as "path: mine -> other"; arrays follow from the rest and are left out."""
        mine, theirs = (dict(_leaves(plan.as_json())) for plan in (self, other))
        return [
            f"{field}: {mine.get(field, 'absent')} -> {theirs.get(field, 'absent')}"
            for field in sorted(mine.keys() | theirs.keys())
            if mine.get(field) != theirs.get(field) and not field.startswith("arrays.")
        ]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, node


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
            inputs["label"] = array_spec(rows, (), labels, shard=shard, fill="NaN" if labels == "float32" else -1)
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


def plan_unit_rows(*, rows: int, longest: int, layers: int, length: int, width: int, hidden_size: int, values: str) -> int:
    """Rows of a unit, from the row's bytes in the split's largest array; `layers` 0 where no hidden states are kept."""
    bytes_per_element = {"f16": 2, "f32": 4, "q8": 1, "q4": 1}[values]
    value_bytes = layers * length * stored_width(width, values) * bytes_per_element
    return unit_rows(max(value_bytes, layers * length * math.ceil(hidden_size / 8), 4 * longest), rows)
