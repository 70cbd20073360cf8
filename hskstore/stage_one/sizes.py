"""Bytes of a store before it is made: of every array as it will be decoded, and on disk.

Inputs and labels are at hand: some of them are encoded as a unit would be. What the teacher says is encoded so where some of it
was sampled, and estimated by a rule where it was not. Both are then counted up to all rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, Shaped

from hskstore.config import Keep, resolve
from hskstore.stage_one.teacher_pass import input_columns
from hskstore.store.codebooks import CODEBOOKS
from hskstore.store.commit import PLAN, Receipt
from hskstore.store.encode import encode_shard
from hskstore.store.features import Attended, ClsRow, OfLayers, Said, Spans
from hskstore.store.hidden import Hidden
from hskstore.store.layout import Columns
from hskstore.store.plan import Plan
from hskstore.store.schema import ArraySpec, canonical_json
from hskstore.store.shard import fingerprint
from hskstore.store.vectors import Codes, Numbers
from hskstore.text.rows import Rows

SAMPLED_ROWS = 8192
"""Of a split, whose inputs are encoded."""

LEAST_SAMPLED_ROWS = 64
"""Rows of which hidden states are measured at least: masks of fewer compress worse than those of a unit."""

CODES_RATIO, WORDS_RATIO = 1.02, 0.93
"""Of codes on disk to codes decoded, padding left out, of which something stays; of the words of codebooks."""

VALUES_RATIO = {"f16": (0.75, 0.87), "f32": (0.79, 0.87), "q8": (0.88, 0.83), "q4": (0.76, 0.67)}
"""Of values on disk to values decoded, where almost nothing and where everything of a vector is kept; in between on the line. The
second is that of units which are not chosen by their size, too. These and the numbers below were read from stores of a BERT of
384 units; benchmarks/results/forecast_cpu_2026-11-21.md says how far off they are."""

WHOLE_RATIO = {"f16": 0.93, "f32": 0.93, "q8": 0.99, "q4": 0.97}
"""Of whole vectors on disk to what they are decoded, padding left out: of `states`; those of [CLS] alone are more alike."""

MASK_RATIO = 1.05
"""Of a magnitude mask on disk to the entropy of any mask of its size, log2 C(d, K). Masks of the other kinds are all one."""

SCALE_BYTES, TOKEN_BYTES, N_KEPT_BYTES = 1.7, 1.0, 0.3
"""On disk: of a vector's scale, of its position, of a row's count in a layer."""

POSITION_BYTES = 0.8
"""On disk: of one token that another one attends to; 0.73 in rows of 24 tokens, 0.92 in rows of 255."""

LOGITS_RATIO = 0.93


@dataclass(frozen=True)
class ArraySize:
    """Bytes of an array: `on_disk` is an estimate, from sampled rows where `measured`, else by a rule; `decoded` is exact."""

    on_disk: int
    decoded: int
    measured: bool


@dataclass(frozen=True)
class SampledRows:
    """What one plan keeps of some rows of the train split: whole arrays by path."""

    columns: dict[str, Shaped[np.ndarray, "row ..."]]

    @classmethod
    def joined(cls, plan: Plan, batches: Sequence[Int[np.ndarray, " _row"]], columns: Sequence[Columns]) -> "SampledRows":
        """From batches, as positions in the train split, and what the plan keeps of each; in stored order."""
        order = np.argsort(np.concatenate(batches), kind="stable")
        arrays = {}
        for path, spec in plan.arrays_of("train").items():
            if path == "train/n_tokens" or path.endswith("/logits") or path.split("/")[1] in plan.said:
                arrays[path] = np.concatenate([_widened(found[path], spec) for found in columns])[order]
        return cls(arrays)

    @property
    def rows(self) -> int:
        return len(self.columns["train/logits"])

    def vectors(self, feature: Said) -> int:
        """How many vectors of a feature are in the sample, in all its layers."""
        if isinstance(feature, Hidden):
            return int(self.columns["train/hidden/n_kept"].sum())
        return _whole_vectors(feature, self.rows, int(self.columns["train/n_tokens"].sum()))


def kept_tokens(keep: Keep, rows_by_admitted: Int[np.ndarray, " count"]) -> int:
    """How many tokens of the train rows are kept in one layer, from how many rows have 0, 1, 2, ... to choose among."""
    counted = enumerate(rows_by_admitted.tolist())
    return sum(rows * min(resolve(keep.length, count), count) for count, rows in counted if rows)


def vectors(feature: Said, rows: Rows, rows_by_admitted: Int[np.ndarray, " count"]) -> int:
    """How many vectors, or numbers of a token's, a feature keeps of the train `rows`, in all its layers."""
    if isinstance(feature, Hidden):
        return kept_tokens(feature.keep, rows_by_admitted) * len(feature.layers)
    return _whole_vectors(feature, len(rows), len(rows.input_ids))


def _whole_vectors(feature: Said, rows: int, tokens: int) -> int:
    """Of a feature that has them of every row, or of every token."""
    assert isinstance(feature, OfLayers)
    return math.prod(feature.shape(1)) * (tokens if "token" in feature.axes else rows)


def most_bytes(plan: Plan, rows: Mapping[str, Rows], rows_by_admitted: Int[np.ndarray, " count"]) -> dict[str, int]:
    """Bytes before compression of the rows' own tokens, by part: each feature, and "inputs", which are everything else."""
    train = rows["train"]
    found = {
        name: vectors(feature, train, rows_by_admitted) * _vector_bytes(plan, feature) for name, feature in plan.said.items()
    }
    if train.spans is not None:
        found[Spans.name] = train.spans.tokens.nbytes + train.spans.n_spans.nbytes
    inputs = sum(5 * len(split.input_ids) + len(split) * (20 + 4 * len(plan.teacher["labels"])) for split in rows.values())
    inputs += sum(
        split.text.offsets.nbytes + split.text.utf8.nbytes + split.text.n_bytes.nbytes for split in rows.values() if split.text
    )
    return found | {"inputs": inputs}


def _vector_bytes(plan: Plan, feature: Said) -> int:
    """Of one vector with its mask, position and scale, before compression."""
    arrays = feature.arrays(plan.splits["train"].longest)
    if isinstance(feature, ClsRow):
        return 4 * len(arrays)
    if isinstance(feature, Attended):
        return 2
    per = {"values": arrays["values"].shape[-1] * np.dtype(arrays["values"].dtype).itemsize, "scale": 2, "token": 2}
    per["mask"] = arrays["mask"].shape[-1] if "mask" in arrays else 0
    return sum(per.get(name, 0) for name in arrays)


def input_sizes(plan: Plan, rows: Mapping[str, Rows]) -> dict[str, ArraySize]:
    """Of the arrays that are known before the teacher runs, spans too, which all stores of a pass have alike."""
    found: dict[str, ArraySize] = {}
    for split, every in rows.items():
        some = every.take(np.arange(min(SAMPLED_ROWS, len(every))))
        share = {"tokens": len(every.input_ids) / len(some.input_ids), "rows": len(every) / len(some)}
        if every.text is not None and some.text is not None:
            share["bytes"] = len(every.text.utf8) / max(1, len(some.text.utf8))
        per = {"input_ids": "tokens", "token_type_ids": "tokens", "offsets": "tokens", "text": "bytes"}
        for name, column in input_columns(some, *some.padded(plan.tokenizer["pad_token_id"])).items():
            spec = plan.arrays[f"{split}/{name}"]
            on_disk = encoded_bytes(spec, _widened(column, spec, _pad(plan, name))) * share[per.get(name, "rows")]
            found[f"{split}/{name}"] = ArraySize(round(on_disk), decoded_bytes(spec), measured=True)
    return found


def output_sizes(plan: Plan, counts: Mapping[str, int], sample: SampledRows | None) -> dict[str, ArraySize]:
    """Of what the teacher says: features, of so many vectors each, and logits."""
    found: dict[str, ArraySize] = {}
    ratio = LOGITS_RATIO
    if sample is not None:
        column = sample.columns["train/logits"]
        ratio = encoded_bytes(plan.arrays["train/logits"], column) / column.nbytes
    for path, spec in plan.arrays.items():
        if path.endswith("/logits"):
            found[path] = ArraySize(round(ratio * decoded_bytes(spec)), decoded_bytes(spec), sample is not None)
        elif path.startswith(f"{CODEBOOKS}/"):
            found[path] = ArraySize(round(WORDS_RATIO * decoded_bytes(spec)), decoded_bytes(spec), sample is not None)
        elif path.split("/")[1] in plan.said:
            _, name, array = path.split("/")
            feature, rows = plan.said[name], plan.splits["train"].rows
            codes = array == "values" and isinstance(feature.encoding, Codes)  # of no codebooks that were learnt yet
            if sample is None or codes:
                per_row = len(feature.layers) * N_KEPT_BYTES
                on_disk = rows * per_row if array == "n_kept" else counts[name] * ruled_vector_bytes(feature)[array]
            else:
                column = sample.columns[path]
                share = rows / sample.rows if array == "n_kept" else counts[name] / max(1, sample.vectors(feature))
                # Of headers and indexes more rows have no more, of padding they do, which `hidden` hardly has.
                frame = encoded_bytes(spec, np.zeros_like(column)) if name == Hidden.name else 0
                on_disk = frame + (encoded_bytes(spec, column) - frame) * share
            found[path] = ArraySize(round(on_disk), decoded_bytes(spec), sample is not None)
    return found


def ruled_vector_bytes(feature: Said) -> dict[str, float]:
    """Bytes on disk of one kept vector by the rule: its values, mask, position and scale."""
    if isinstance(feature, Attended):
        return {"token": POSITION_BYTES}
    if isinstance(feature, ClsRow):
        return {"probability": 4 * WHOLE_RATIO["f32"], "raw": 4 * WHOLE_RATIO["f32"]}
    elements = feature.encoding.stored_width(feature.width) * np.dtype(feature.encoding.dtype).itemsize
    scale = SCALE_BYTES if isinstance(feature.encoding, Numbers) and not feature.encoding.exact else 0.0
    if not isinstance(feature, Hidden):
        return {"values": elements * WHOLE_RATIO.get(feature.values, CODES_RATIO), "scale": scale}
    narrow, wide = VALUES_RATIO.get(feature.values, (CODES_RATIO, CODES_RATIO))
    by_size = feature.strategy.mask == "magnitude"
    share = feature.width / feature.hidden_size if by_size else 1.0
    entropy = math.log2(math.comb(feature.hidden_size, feature.width)) / 8 if by_size else 0.0
    return {
        "values": elements * (narrow + share * (wide - narrow)),
        "mask": MASK_RATIO * entropy,
        "token": TOKEN_BYTES,
        "scale": scale,
    }


def file_bytes(plan: Plan, files: Mapping[str, bytes]) -> tuple[int, dict[str, int]]:
    """Of all that is no array (plan, metadata, seal, tokenizer, teacher.json); and, by split, of what stands of a unit in receipt
    and seal."""
    documents = {PLAN: plan.to_bytes(), **plan.documents(), **files}
    listed = {key: fingerprint(data) for key, data in documents.items()}
    fixed = sum(map(len, documents.values())) + len(canonical_json(listed))
    fixed += len(Receipt("files", 0, 0, "0" * 32, {key: listed[key] for key in files}, {}).to_bytes())
    made = {"teacher": "0" * 32, "device": "0" * 16, "seconds": 0.0, "finished": "0" * 29, "versions": "0" * 96}
    per_unit: dict[str, int] = {}
    for split in plan.splits:
        entries = {
            spec.key(path, 0): {"size": 10**6, "sha256": "0" * 64}
            | ({"layers": ["0" * 64] * spec.layers} if spec.layered else {})
            for path, spec in plan.arrays_of(split).items()
        }
        receipt = Receipt(split, 0, 0, "0" * 32, entries, made)
        per_unit[split] = len(receipt.to_bytes()) + len(canonical_json(entries))
    return fixed, per_unit


def decoded_bytes(spec: ArraySpec) -> int:
    """Of a whole array in memory."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def encoded_bytes(spec: ArraySpec, column: Shaped[np.ndarray, "row ..."]) -> int:
    """Of some rows of an array, encoded as one unit in its chunks."""
    rows = len(column)
    return len(encode_shard(replace(spec, shape=(rows, *spec.shape[1:]), shard=-(-rows // spec.chunk) * spec.chunk), 0, column))


def _pad(plan: Plan, name: str) -> int:
    """What stands behind the end of a row in one of the inputs."""
    return int({"input_ids": plan.tokenizer["pad_token_id"], "offsets": -1}.get(name, 0))


def _widened(column: np.ndarray, spec: ArraySpec, pad: int = 0) -> np.ndarray:
    """The column in the shape of its array, whose longest row may not be among these."""
    if column.shape[1:] == spec.shape[1:]:
        return column
    wide = np.full((len(column), *spec.shape[1:]), pad, dtype=spec.dtype)
    wide[(slice(None), *(slice(size) for size in column.shape[1:]))] = column
    return wide
