"""A sealed store of made-up values, of any number of rows, without a teacher: what a benchmark of stage two reads.

    python benchmarks/synthetic_store.py runs/million --rows 1000000 --vocab-from ../shared/models/minilm-l6

Lengths are about those of SST-2's whole sentences: log-normal, median 21 tokens, sigma 0.45, from 4 to 64. Everything is
planned, encoded, committed and sealed by the functions that `hsk extract` uses. Vectors are drawn once, as many as a unit has,
and every unit holds them in another order. Where a tenth of a vector is kept it is one unit in every ten, so that masks
compress worse than real ones.
"""

import argparse
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hskstore.config import Keep, Strategy
from hskstore.layers import plan_strategy
from hskstore.store.commit import Receipt, begin, commit_unit, seal
from hskstore.store.encode import encode_unit
from hskstore.store.hidden import plan_hidden
from hskstore.store.layout import SplitRows
from hskstore.store.objects import Objects
from hskstore.store.plan import Pass, Plan, make_plan
from hskstore.store.schema import block_rows, canonical_json
from hskstore.store.shard import unit_fingerprints
from hskstore.text.tasks import get_task
from hskstore.text.tokenizers import load_tokenizer, tokenizer_files, tokenizer_sha256

CLS, SEP, PAD = 101, 102, 0
FIRST_WORD, VOCABULARY = 1000, 30522
SHORTEST, LONGEST, MEDIAN, SIGMA = 4, 64, 21, 0.45
TEACHER_LAYERS = 12
DEV_ROWS = 512


@dataclass(frozen=True)
class Vectors:
    """Kept hidden vectors as they are stored: `values` [vector, kept] f16 and the bits of their masks [vector, octet]."""

    values: np.ndarray
    mask: np.ndarray


def make_store(
    folder: str | Path,
    rows: int,
    *,
    keep: str = "1,9,0.1",
    hidden_size: int = 768,
    student_layers: int = 4,
    vocab_from: str | None = None,
    seed: int = 0,
) -> str:
    """Make the store in `folder` and return its digest. Without a tokenizer it can be trained from, not be distilled from."""
    rng = np.random.default_rng(seed)
    lengths = {"train": draw_lengths(rng, rows), "validation": draw_lengths(rng, DEV_ROWS)}
    files, tokenizer = tokenizer_of(vocab_from)
    plan = plan_of(lengths, keep, hidden_size, student_layers, tokenizer, seed)
    objects = Objects(folder)
    begin(objects, plan, {**files, "teacher.json": canonical_json({"sha256": plan.teacher["sha256"], "config": {}})})
    order = rng.permutation(rows)
    assert plan.hidden is not None
    slots = len(plan.hidden.pairs) * plan.hidden.length
    vectors = draw_vectors(rng, plan.splits["train"].unit_rows * slots, plan.hidden.width, hidden_size)
    for split, unit in plan.units():
        inside = range_of(plan, split, unit)
        columns = input_columns(rng, plan, split, lengths[split][inside])
        columns["row_id"] = order[inside] if split == "train" else np.arange(inside.start, inside.stop)
        columns["label"] = columns["row_id"] % len(plan.teacher["labels"])
        if split == "train":
            columns |= hidden_columns(rng, plan, vectors, lengths[split][inside])
        blobs = encode_unit(plan, split, unit, {f"{split}/{name}": column for name, column in columns.items()})
        entries = unit_fingerprints(plan.arrays_of(split), unit, blobs)
        commit_unit(objects, Receipt(split, unit, len(columns["label"]), uuid.uuid4().hex, entries, {}), blobs)
    return seal(objects, plan)


def draw_lengths(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.exp(rng.normal(np.log(MEDIAN), SIGMA, rows)).round().clip(SHORTEST, LONGEST).astype(np.int32)


def tokenizer_of(vocab_from: str | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The tokenizer's files by key, and what a plan says of it."""
    if vocab_from is None:
        return {}, {"sha256": "0" * 64, "vocabulary": VOCABULARY, "pad_token_id": PAD, "separators": [SEP]}
    tokenizer = load_tokenizer(vocab_from)
    said = {
        "sha256": tokenizer_sha256(tokenizer),
        "vocabulary": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "separators": [tokenizer.sep_token_id],
    }
    return {f"tokenizer/{name}": data for name, data in tokenizer_files(tokenizer).items()}, said


def plan_of(
    lengths: dict[str, np.ndarray], keep: str, hidden_size: int, student_layers: int, tokenizer: dict[str, Any], seed: int
) -> Plan:
    rows, longest = len(lengths["train"]), {split: int(n_tokens.max()) for split, n_tokens in lengths.items()}
    task = get_task("sst2")
    hidden = plan_hidden(
        Keep.parse(keep),
        plan_strategy(Strategy(student_layers), TEACHER_LAYERS),
        teacher_layers=TEACHER_LAYERS,
        hidden_size=hidden_size,
        most_admitted=longest["train"] - 1,
    )
    return make_plan(
        [hidden],
        Pass(seed, "fp32", LONGEST, 4096, block_rows(rows)),
        splits={
            split: SplitRows(rows=len(n_tokens), tokens=int(n_tokens.sum()), longest=longest[split], sha256=f"{seed:064x}")
            for split, n_tokens in lengths.items()
        },
        teacher={
            "sha256": f"{seed:064x}",
            "model_type": "bert",
            "layers": TEACHER_LAYERS,
            "hidden_size": hidden_size,
            "labels": list(task.labels),
        },
        tokenizer=tokenizer,
        task=task.as_json(),
        labels="int64",
    )


def range_of(plan: Plan, split: str, unit: int) -> slice:
    start = unit * plan.splits[split].unit_rows
    return slice(start, start + plan.splits[split].rows_of(unit))


def draw_vectors(rng: np.random.Generator, count: int, width: int, hidden_size: int) -> Vectors:
    """Values of both signs, none of them small; of every vector one unit in each `width`-th part of it."""
    sizes = 1 + rng.standard_exponential((count, width), dtype=np.float32)
    values = np.where(rng.random((count, width), dtype=np.float32) < 0.5, -sizes, sizes).astype(np.float16)
    parts = np.linspace(0, hidden_size, width + 1).astype(np.int64)
    mask = np.empty((count, -(-hidden_size // 8)), dtype=np.uint8)
    for some in chunks(count, 8192):
        unit = parts[:-1] + (rng.random((some.stop - some.start, width)) * np.diff(parts)).astype(np.int64)
        kept = np.zeros((len(unit), hidden_size), dtype=bool)
        np.put_along_axis(kept, unit, True, axis=1)
        mask[some] = np.packbits(kept, axis=1)
    return Vectors(values, mask)


def chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def input_columns(rng: np.random.Generator, plan: Plan, split: str, n_tokens: np.ndarray) -> dict[str, np.ndarray]:
    """[CLS], words, [SEP], padding; and logits."""
    rows, longest = len(n_tokens), plan.splits[split].longest
    place = np.arange(longest)
    words = rng.integers(FIRST_WORD, plan.tokenizer["vocabulary"], (rows, longest), dtype=np.int32)
    ids = np.where(place < n_tokens[:, None] - 1, words, np.where(place < n_tokens[:, None], SEP, PAD)).astype(np.int32)
    ids[:, 0] = CLS
    return {
        "input_ids": ids,
        "token_type_ids": np.zeros((rows, longest), dtype=np.uint8),
        "n_tokens": n_tokens,
        "logits": rng.standard_normal((rows, len(plan.teacher["labels"])), dtype=np.float32),
    }


def hidden_columns(rng: np.random.Generator, plan: Plan, vectors: Vectors, n_tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Any tokens of a row but its [SEP], best first, and a vector for each."""
    assert plan.hidden is not None
    rows, layers, length = len(n_tokens), len(plan.hidden.pairs), plan.hidden.length
    admitted = n_tokens - 1
    score = rng.random((rows, layers, plan.splits["train"].longest), dtype=np.float32)
    score[np.broadcast_to(np.arange(score.shape[-1]) >= admitted[:, None, None], score.shape)] = 2  # behind all others
    token = score.argsort(axis=-1)[..., :length]
    n_kept = np.minimum(admitted, length)
    empty = np.broadcast_to(np.arange(length) >= n_kept[:, None, None], token.shape)
    chosen = rng.permutation(len(vectors.values))[: token.size].reshape(token.shape)
    values, mask = vectors.values[chosen], vectors.mask[chosen]
    values[empty], mask[empty] = 0, 0
    return {
        "hidden/values": values,
        "hidden/mask": mask,
        "hidden/token": np.where(empty, -1, token).astype(np.int16),
        "hidden/n_kept": np.repeat(n_kept[:, None], layers, axis=1).astype(np.int16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--keep", default="1,9,0.1")
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--student-layers", type=int, default=4)
    parser.add_argument("--vocab-from", help="a folder or hub name with BERT's tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    digest = make_store(
        options.folder,
        options.rows,
        keep=options.keep,
        hidden_size=options.hidden_size,
        student_layers=options.student_layers,
        vocab_from=options.vocab_from,
        seed=options.seed,
    )
    print(f"{options.folder}: {options.rows} rows, digest {digest}, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
