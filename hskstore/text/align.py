"""Two tokenizers of one text: which token of one is which of the other."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from hskstore.text.rows import Rows, gather

_ALIGN_BATCH = 65536
_MOST_KEYS = 2**62


# --- two tokenizers


def align(teacher: Rows, student: Rows) -> Int32[np.ndarray, " token"]:
    """For each of the teacher's tokens: the position, in the student's row, of the token of the very same characters.

    -1 where there is none. Where several tokens of a row are of the same characters, as the bytes of an emoji, both must have
    as many. A row's first token that has no characters ([CLS], <s>) aligns with the other's. Both are of the same text, which
    either may have cut.
    """
    assert teacher.text is not None and student.text is not None and len(teacher) == len(student)
    found = np.full(len(teacher.text.offsets), -1, dtype=np.int32)
    first = [rows.bounds[:-1] for rows in (teacher, student)]
    found[first[0][(teacher.text.offsets[first[0], 0] < 0) & (student.text.offsets[first[1], 0] < 0)]] = 0
    n_chars = [rows.text.n_chars for rows in (teacher, student) if rows.text is not None]
    longest = 1 + max(int(counts.sum(axis=1).max(initial=0)) for counts in n_chars)
    step = max(1, min(_ALIGN_BATCH, _MOST_KEYS // (2 * longest**2)))
    for start in range(0, len(teacher), step):
        stop = min(start + step, len(teacher))
        (token, keys, at, count), (other, other_keys, other_at, other_count) = (
            _spans(rows, counts, start, stop, longest) for rows, counts in zip((teacher, student), n_chars, strict=True)
        )
        _, here, there = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
        same = count[here] == other_count[there]
        here, there = here[same], there[same]
        _, nth = gather(at[here], count[here])
        _, other_nth = gather(other_at[there], count[here])
        matched = other[other_nth]
        row = np.searchsorted(student.bounds, matched, side="right") - 1
        found[token[nth]] = matched - student.bounds[row]
    return found


def _spans(rows: Rows, n_chars: NDArray[np.int64], start: int, stop: int, longest: int) -> tuple[NDArray[np.int64], ...]:
    """The tokens of some rows that have characters, sorted by these; one number for each run of the same characters, where
    the run begins, and how many tokens it has."""
    assert rows.text is not None
    token = np.arange(rows.bounds[start], rows.bounds[stop])
    row = np.repeat(np.arange(stop - start), np.diff(rows.bounds[start : stop + 1]))
    real = rows.text.offsets[token, 0] >= 0
    token, row = token[real], row[real]
    first, last = rows.text.offsets[token].astype(np.int64).T
    # Each side may have cut the first column elsewhere, so that characters are counted from where their own column begins.
    begin = n_chars[start:stop, 0][row]
    second = (first >= begin) & (n_chars.shape[1] == 2)
    first, last = first - begin * second, last - begin * second
    key = ((row * 2 + second) * longest + first) * longest + last
    order = np.argsort(key, kind="stable")
    keys, at, count = np.unique(key[order], return_index=True, return_counts=True)
    return token[order], keys, at, count
