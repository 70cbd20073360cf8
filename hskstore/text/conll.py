"""Sentences as CoNLL-2000 has them: words, their parts of speech, and the phrases that they make up"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from hskstore.errors import DataError

KINDS = ("NP", "VP", "PP")
"""Of phrases, those that are spans: noun, verb and prepositional phrases (Liu et al., 2022, section 3.1)."""

OUTSIDE = "O"
TRAIN, TEST = ("train",), ("test", "dev")
"""What the parts of the set are called."""

_CHUNK = re.compile(r"O|[BI]-\S+")
_MOST_LINE = 10_000


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence, the part of speech of each, and its place in a phrase: B-NP, I-NP, B-VP, ... or O."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    chunks: tuple[str, ...]

    def lower(self) -> Sentence:
        """The same in lower case."""
        return Sentence(tuple(word.lower() for word in self.words), self.tags, self.chunks)


def read_conll(folder: Path, names: tuple[str, ...]) -> list[Sentence]:
    """The part of the set that goes by one of these `names`: the first of NAME.txt and NAME.txt.gz that is there.

    A line has a word, its tag and its chunk; an empty line ends a sentence. Of other phrases than KINDS a word is outside. Raises
    DataError.
    """
    files = [folder / f"{name}.txt{packed}" for name in names for packed in ("", ".gz")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise DataError(f"{folder} has none of {', '.join(file.name for file in files)}: name the folder of CoNLL-2000")
    sentences: list[Sentence] = []
    lines: list[list[str]] = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if fields:
            if len(fields) != 3 or not _CHUNK.fullmatch(fields[2]):
                raise DataError(
                    f"{path}, line {number}: expected a word, its tag and its chunk (O, B-NP, I-NP), in three columns"
                )
            lines.append([*fields[:2], fields[2] if fields[2][2:] in KINDS else OUTSIDE])
        elif lines:
            sentences.append(_sentence(lines))
            lines = []
    if lines:
        sentences.append(_sentence(lines))
    if not sentences:
        raise DataError(f"{path} has no sentence")
    return sentences


def _sentence(lines: list[list[str]]) -> Sentence:
    words, tags, chunks = zip(*lines, strict=True)
    return Sentence(words, tags, chunks)


def _lines(path: Path) -> Iterator[str]:
    with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            try:
                line = file.readline(_MOST_LINE)
                text = line.decode()
            except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read ({error}): fetch it again") from error
            if not line:
                return
            yield text
