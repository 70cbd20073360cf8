"""Rows as a report shows them: tokens shaded by how many layers keep them; what a student gets wrong and its teacher right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from hskstore.errors import StoreError
from hskstore.explore.report_parts import ShadedRow, Table, Token, plain
from hskstore.store import Store
from hskstore.text.tasks import Task
from hskstore.text.tokenizers import tokenizer_from_files

SHADED, WRONG = 4, 12
"""Rows that are shown."""

LONGEST_SHADED = 64
"""Tokens of a shaded row."""


def shaded_rows(store: Store) -> tuple[ShadedRow, ...]:
    """The first train rows, which lie in a random order, of a store or view that keeps hidden states. Raises StoreError."""
    ids, n_tokens, token, n_kept = (
        store.read(f"train/{name}", 0) for name in ("input_ids", "n_tokens", "hidden/token", "hidden/n_kept")
    )
    chosen = [row for row in range(len(ids)) if 0 < n_tokens[row] <= LONGEST_SHADED][:SHADED]
    tokenizer = tokenizer_from_files(store.tokenizer_files())
    return tuple(
        _shaded(f"Row {row} of train", _words(tokenizer, ids[row, : n_tokens[row]]), token[row], n_kept[row], store)
        for row in chosen
    )


def _shaded(title: str, words: Sequence[str], token: np.ndarray, n_kept: np.ndarray, store: Store) -> ShadedRow:
    counts = np.zeros(len(words), dtype=int)
    for positions, count in zip(token, n_kept, strict=True):
        kept = positions[: int(count)]
        if ((kept < 0) | (kept >= len(words))).any():
            raise StoreError(f"{store.root}: a row of train has the rank of a token that is not there: the store is damaged")
        counts[np.unique(kept)] += 1
    return ShadedRow(title, tuple(Token(word, int(count), len(token)) for word, count in zip(words, counts, strict=True)))


def wrong_rows(
    store: Store, split: str, student: Float[np.ndarray, "row class"], label: Shaped[np.ndarray, " row"] | None = None
) -> Table | None:
    """Of the first rows of a split: of classes those where the student is wrong and the teacher right, the surest mistakes first;
    of scores those where the student is further off than its teacher, the furthest first. None where the store has no labels,
    or other ones than `label`."""
    task = Task.from_json(store.plan.task)
    if not store.has(f"{split}/label") or not store.has(f"{split}/logits"):
        return None
    gold, teacher = (store.read_all(f"{split}/{name}")[: len(student)] for name in ("label", "logits"))
    if len(gold) != len(student) or teacher.shape != student.shape or (label is not None and not np.array_equal(label, gold)):
        return None
    if task.kind == "score":
        worse = np.abs(student[:, 0] - gold) - np.abs(teacher[:, 0] - gold)
        order = np.argsort(-worse, kind="stable")
        found = order[worse[order] > 0]
        columns: tuple[str, ...] = ("text", "gold", "teacher", "student")
    else:
        mine, theirs = student.argmax(axis=1), teacher.argmax(axis=1)
        sure = _margin(student)
        wrong = np.flatnonzero((mine != gold) & (theirs == gold))
        found = wrong[np.argsort(-sure[wrong], kind="stable")]
        columns = ("text", "gold and teacher", "student")
    texts = _texts(store, split, found[:WRONG])
    rows: list[tuple[str, ...]] = []
    for row, text in zip(found[:WRONG].tolist(), texts, strict=True):
        if task.kind == "score":
            rows.append((text, f"{gold[row]:.2f}", f"{teacher[row, 0]:.2f}", f"{student[row, 0]:.2f}"))
        else:
            rows.append((text, _class(task, int(gold[row])), _class(task, int(student[row].argmax()))))
    more = f"{len(found) - WRONG:,} more are not shown" if len(found) > WRONG else ""
    title = f"{len(found):,} of {len(student):,} rows of {split}"
    return Table(title, columns, tuple(rows), words=1 if task.kind == "score" else 3, left_out=more)


def _margin(logits: np.ndarray) -> np.ndarray:
    """How much the first class stands above the second."""
    ordered = np.sort(logits, axis=1)
    found: np.ndarray = ordered[:, -1] - ordered[:, -2] if logits.shape[1] > 1 else ordered[:, -1]
    return found


def _class(task: Task, index: int) -> str:
    return plain(task.labels[index], 40) if 0 <= index < len(task.labels) else str(index)


def _texts(store: Store, split: str, rows: Int[np.ndarray, " row"]) -> list[str]:
    ids, n_tokens = store.read_all(f"{split}/input_ids"), store.read_all(f"{split}/n_tokens")
    tokenizer: Any = tokenizer_from_files(store.tokenizer_files())
    return [plain(tokenizer.decode(ids[row, : n_tokens[row]].tolist(), skip_special_tokens=True)) for row in rows.tolist()]


def _words(tokenizer: Any, ids: Int[np.ndarray, " token"]) -> list[str]:
    found: list[Any] = tokenizer.convert_ids_to_tokens(ids.tolist())
    return [plain(word, 40) for word in found]
