"""What texts became as tokens: how many are unknown, which control tokens somebody typed, which rows were cut or are empty."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from hskstore.errors import ModelError
from hskstore.text.tokenizers import Tokenizer, encode

log = logging.getLogger(__name__)

MANY = 0.05
"""Of tokens that are unknown, or of rows that are empty: more of them are warned of."""


@dataclass(frozen=True)
class TextFacts:
    """Of one split. `tokens` are those of its texts, without what the tokenizer puts around them, and `unknown` those of them
    that it does not know. `cut` rows lost their end to `max_length`, `empty` rows have no token of their own. `control` counts
    the tokenizer's special tokens, by name, that stand in the texts themselves: who types [SEP] gets the separator."""

    max_length: int
    rows: int
    tokens: int
    unknown: int
    cut: int
    empty: int
    control: dict[str, int]

    @classmethod
    def of_all(cls, splits: Mapping[str, "TextFacts"]) -> "TextFacts":
        """All splits together."""
        every = list(splits.values())
        totals = {name: sum(getattr(one, name) for one in every) for name in ("rows", "tokens", "unknown", "cut", "empty")}
        names = dict.fromkeys(name for one in every for name in one.control)
        control = {name: sum(one.control.get(name, 0) for one in every) for name in names}
        return cls(max_length=every[0].max_length, control=control, **totals)

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, self.tokens)


class TokenCounts:
    """Counts a split's tokens, batch after batch, while it is tokenised."""

    def __init__(self, tokenizer: Tokenizer, columns: int, max_length: int) -> None:
        """For texts of one column or two, cut to `max_length` tokens."""
        self._max_length = max_length
        self._unknown = unknown_id(tokenizer)
        self._special = _special_tokens(tokenizer)
        frame = np.array(_frame(tokenizer, columns), dtype=np.int64)
        self._frame_size = len(frame)
        self._frame = np.bincount(frame, minlength=1)
        self._found = np.zeros(1, dtype=np.int64)
        self._rows = self._cut = self._empty = 0

    def add(self, input_ids: Int[np.ndarray, " token"], n_tokens: Sequence[int], cut: int) -> None:
        """Some rows, one after the other, of `n_tokens` each; `cut` of them lost their end."""
        self._found = _summed(self._found, np.bincount(input_ids))
        self._rows += len(n_tokens)
        self._cut += cut
        self._empty += sum(length <= self._frame_size for length in n_tokens)

    def facts(self) -> TextFacts:
        own = _summed(self._found, -self._rows * self._frame)
        control = {
            name: int(own[token])
            for token, name in self._special.items()
            if token != self._unknown and token < len(own) and own[token] > 0
        }
        unknown = 0 if self._unknown is None or self._unknown >= len(own) else max(0, int(own[self._unknown]))
        return TextFacts(self._max_length, self._rows, max(0, int(own.sum())), unknown, self._cut, self._empty, control)


def warn_of_text(facts: Mapping[str, TextFacts]) -> None:
    """Say, by split, what a tokenizer does not understand, and what of a text it takes for its own."""
    for split, one in facts.items():
        if one.unknown_share > MANY:
            log.warning(
                "%s %% of the tokens of %s are unknown to the tokenizer: it was made for another script, or case",
                f"{100 * one.unknown_share:.1f}",
                split,
            )
        if one.rows and one.empty > MANY * one.rows:
            log.warning("%d of the %d rows of %s have no token that stands for text", one.empty, one.rows, split)
        if one.control:
            named = ", ".join(f"{name} {count} times" if count > 1 else name for name, count in one.control.items())
            log.warning(
                "%s: texts hold what the tokenizer reads as its own control tokens (%s), here as wherever the model is used;"
                " take them out of the data if that is not meant",
                split,
                named,
            )


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what the tokenizer does not know; None where there is nothing that it does not know."""
    if tokenizer.unk_token_id is not None:
        return tokenizer.unk_token_id
    name = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    found: int | None = None if name is None else tokenizer.backend_tokenizer.token_to_id(name)
    return found


def check_begins_with_special(tokenizer: Tokenizer, name: str, text: Sequence[Sequence[str]], what: str) -> None:
    """Raise ModelError unless rows of these columns begin with a token that the tokenizer puts there, such as [CLS], of which
    `what` is wanted."""
    row = next((row for row, string in enumerate(text[0][:1000]) if string.strip()), 0)
    encoded = _plain(tokenizer, [column[row] for column in text])
    if encoded["special_tokens_mask"][0][:1] != [1]:
        raise ModelError(
            f"{name}: its tokenizer puts no special token such as [CLS] in front of a row, and {what} would be of the first word:"
            ' mend "post_processor" in tokenizer.json, or choose what needs no [CLS], such as --for kd or --rank left'
        )


def _frame(tokenizer: Tokenizer, columns: int) -> list[int]:
    """What the tokenizer puts around every row."""
    encoded = _plain(tokenizer, [""] * columns)
    return [token for token, put in zip(encoded["input_ids"][0], encoded["special_tokens_mask"][0], strict=True) if put]


def _plain(tokenizer: Tokenizer, row: Sequence[str]) -> Any:
    return encode(tokenizer, *([string] for string in row), truncation=False, return_special_tokens_mask=True)


def _special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {
        token: str(added.content)
        for token, added in sorted(tokenizer.backend_tokenizer.get_added_tokens_decoder().items())
        if added.special
    }


def _summed(one: Int[np.ndarray, " _id"], other: Int[np.ndarray, " _other"]) -> Int[np.ndarray, " _id_or_other"]:
    """Counts by id, of which either may end earlier."""
    total = np.zeros(max(len(one), len(other)), dtype=np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
