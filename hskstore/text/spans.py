"""Spans of tokenised texts (MGSKD): words of several tokens, and noun, verb and prepositional phrases"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from hskstore.errors import ModelError
from hskstore.text.chunker import Chunker
from hskstore.text.rows import Spans, Text

Words = list[tuple[int, int]]
"""The words of a text: first character, and the one behind the last."""

_CLITIC = r"['’](?:s|re|ve|ll|d|m)\b"
_WORD = re.compile(
    rf"""
    -[lr][rsc]b-                                            # brackets as the treebank writes them
    | (?:[^\W\d_]\.){{2,}}                                  # U.S., e.g.
    | (?:mr|mrs|ms|messrs|dr|prof|rev|gen|gov|sen|rep|st|jr|sr|corp|inc|co|ltd|bros|vs|etc|no
        |jan|feb|aug|sept|oct|nov|dec)\.(?=\s+\S)           # which do not end a text
    | \d+(?:[.,:/]\d+)+ | \.\d+                             # 1,000.5, 9:30, 1/2
    | n['’]t\b | {_CLITIC}                                  # do n't, it 's
    | \w+?(?=n['’]t\b)
    | \w+(?:(?:[-&] | ['’](?!(?:s|re|ve|ll|d|m|t)\b))\w+)*  # well-known, O'Neill, AT&T
    | \.{{2,}} | -{{2,}} | ``? | '' | \S
    """,
    re.IGNORECASE | re.VERBOSE,
)


def words_of(text: str) -> Words:
    """The words of a text as the Penn treebank splits them, as CoNLL-2000 has them: punctuation, n't and 's by themselves."""
    return [found.span() for found in _WORD.finditer(text)]


def find_spans(
    text: Text, n_tokens: Int32[np.ndarray, " row"], word: Int[np.ndarray, " token"], chunker: Chunker, name: str
) -> Spans:
    """The spans of some rows just tokenised, of which `word` is the number that the tokenizer gives each token's word (-1: none).

    A span is a word that the tokenizer `name` splits into several tokens, or a phrase of KINDS, of however many tokens (Liu et
    al., 2022, section 3.1). Where the two are the same tokens they are one span; where one holds or crosses the other both are
    spans. A phrase is every token that shares a character with it, as far as the row was not cut. No span crosses columns, and
    none has a special token. Raises ModelError where the tokenizer does not say where tokens stand.
    """
    if (text.offsets < 0).all() and (word >= 0).any() and any("".join(column).strip() for column in text.columns()):
        raise ModelError(f"{name}: its tokenizer does not say where in the text a token stands, which --spans needs")
    row = np.repeat(np.arange(len(n_tokens)), n_tokens)
    place = np.arange(len(row)) - (np.cumsum(n_tokens, dtype=np.int64) - n_tokens)[row]
    own = np.flatnonzero(text.offsets[:, 0] >= 0)
    tokens = _Tokens(row[own], place[own], text.offsets[own].astype(np.int64), word[own])
    return _ragged(np.concatenate([_split_words(text, tokens), _phrases(text, tokens, chunker)]), n_tokens)


class _Tokens(NamedTuple):
    """Those that stand for characters: their rows, places in them, characters in the row's text, and words."""

    row: np.ndarray
    place: np.ndarray
    characters: np.ndarray
    word: np.ndarray


def _split_words(text: Text, tokens: _Tokens) -> np.ndarray:
    """Runs of several tokens of one word without white space between them [span, 3]: row, first token, the one behind the last.

    Of a tokenizer that knows no words, all tokens are of one; then white space alone parts them."""
    start, end = tokens.characters.T
    column = (start[:, None] >= np.cumsum(text.n_chars, axis=1)[tokens.row]).sum(axis=1)
    goes_on = np.zeros(len(start), dtype=bool)
    goes_on[1:] = (tokens.place[1:] == tokens.place[:-1] + 1) & (start[1:] <= end[:-1]) & (tokens.word[1:] >= 0)
    for of in (tokens.row, column, tokens.word):
        goes_on[1:] &= of[1:] == of[:-1]
    stops = np.append(np.flatnonzero(~goes_on), len(start))
    first, last = stops[:-1], stops[1:] - 1
    found = np.stack([tokens.row[first], tokens.place[first], tokens.place[last] + 1], axis=1)
    return found[last > first]


def _phrases(text: Text, tokens: _Tokens, chunker: Chunker) -> np.ndarray:
    """Phrases as tokens [span, 3], likewise."""
    columns = text.columns()
    strings = [string for column in columns for string in column]
    words = [words_of(string) for string in strings]
    found = chunker.phrases([[string[start:end] for start, end in own] for string, own in zip(strings, words, strict=True)])
    bounds = np.cumsum([0, *map(len, words)])
    characters = np.array([span for own in words for span in own], dtype=np.int64).reshape(-1, 2)
    rows = len(text.n_bytes)
    column, row = np.divmod(found.text, rows)
    # Every row's characters behind those of the rows before, so that all tokens and phrases stand in one order.
    n_chars = text.n_chars
    origin = np.cumsum(n_chars.sum(axis=1)) - n_chars.sum(axis=1)
    before = (np.cumsum(n_chars, axis=1) - n_chars)[row, column] + origin[row]
    starts = np.maximum.accumulate(tokens.characters[:, 0] + origin[tokens.row])
    ends = np.maximum.accumulate(tokens.characters[:, 1] + origin[tokens.row])
    first = np.searchsorted(ends, characters[bounds[found.text] + found.first, 0] + before, side="right")
    last = np.searchsorted(starts, characters[bounds[found.text] + found.end - 1, 1] + before, side="left") - 1
    row, first, last = row[first <= last], first[first <= last], last[first <= last]
    return np.stack([row, tokens.place[first], tokens.place[last] + 1], axis=1)


def _ragged(found: np.ndarray, n_tokens: np.ndarray) -> Spans:
    """Spans [span, 3] by row, first token and end, each once."""
    found = np.unique(found.astype(np.int64), axis=0)
    counts = np.bincount(found[:, 0], minlength=len(n_tokens))
    return Spans(np.concatenate([[0], np.cumsum(counts)]), found[:, 1:].astype(np.int32))
