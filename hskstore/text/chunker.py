"""Noun, verb and prepositional phrases of texts: a part-of-speech tagger and a classifier-based chunker, trained on CoNLL-2000"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hskstore.errors import HskError, ModelError, OptionError
from hskstore.text.classifier import BUCKETS, Classifier, Template, Words, hashed, train_classifier
from hskstore.text.conll import KINDS, OUTSIDE, TEST, TRAIN, Sentence, read_conll

LABELS_FILE, WEIGHTS_FILE = "spans.json", "weights.safetensors"
FORMAT_VERSION = 1
CHUNKS = (OUTSIDE, *(f"{place}-{kind}" for kind in KINDS for place in "BI"))
MOST_TAGS = 256
MOST_BYTES = {LABELS_FILE: 2**16, WEIGHTS_FILE: 2 * BUCKETS * (MOST_TAGS + len(CHUNKS)) + 2**16}
"""Of a stranger's files."""

MOST_WORDS = 2**16
"""Of texts that are laid in memory together, unless one has more."""

WORD, SHAPE, END1, END2, END3, END4, BEGIN1, BEGIN2, BEGIN3, TAG, CHUNK = range(11)
"""The attributes of a word: itself in lower case with every digit a 0, how it is written, its last and first letters; and what
the two classifiers say of it."""

_TAG_TEMPLATES: tuple[Template, ...] = (
    *(((WORD, place),) for place in (0, -1, -2, 1, 2)),
    *(((SHAPE, place),) for place in (0, -1, 1)),
    *(((part, 0),) for part in (END1, END2, END3, END4, BEGIN1, BEGIN2, BEGIN3)),
    *(((part, place),) for part, place in ((END3, -1), (END3, 1), (END2, 1))),
    *(((WORD, one), (WORD, other)) for one, other in ((-1, 0), (0, 1), (-1, 1))),
    ((END3, 0), (SHAPE, 0)),
    ((TAG, -1),),
    ((TAG, -1), (TAG, -2)),
    *(((TAG, -1), other) for other in ((WORD, 0), (WORD, 1), (END3, 0))),
)
_CHUNK_TEMPLATES: tuple[Template, ...] = (
    *(((part, place),) for part in (WORD, TAG) for place in (0, -1, -2, 1, 2)),
    ((END3, 0),),
    ((SHAPE, 0),),
    *(((TAG, place), (TAG, place + 1)) for place in (-2, -1, 0, 1)),
    *(((TAG, place), (TAG, place + 1), (TAG, place + 2)) for place in (-2, -1, 0)),
    *(((WORD, one), (TAG, other)) for one, other in ((0, 0), (0, 1), (0, -1), (-1, 0), (1, 0))),
    *(((WORD, place), (WORD, place + 1)) for place in (-1, 0)),
    ((CHUNK, -1),),
    ((CHUNK, -1), (CHUNK, -2)),
    *(((CHUNK, -1), other) for other in ((TAG, 0), (WORD, 0))),
    *(((CHUNK, -1), (TAG, 0), other) for other in ((TAG, 1), (TAG, -1), (CHUNK, -2))),
)
"""A window of words and tags, and the chunks of the two words before (NLTK book, chapter 7, section 3.3)."""

_WRITTEN = {"``": '"', "''": '"', "`": "'", "-lrb-": "(", "-rrb-": ")", "-lcb-": "{", "-rcb-": "}"}
_WRITTEN |= {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "--", "—": "--", "…": "..."}
_DIGIT, _SMALL, _BIG, _AGAIN = (re.compile(pattern) for pattern in (r"\d", r"[^\W\d_A-Z]+", r"[A-Z]+", r"0+"))


@dataclass(frozen=True)
class Phrases:
    """The phrases of some texts, in their order: each as its text, its first word in it, the one behind its last, and its kind,
    as a place in KINDS."""

    text: Int[np.ndarray, " phrase"]
    first: Int[np.ndarray, " phrase"]
    end: Int[np.ndarray, " phrase"]
    kind: Int[np.ndarray, " phrase"]


@dataclass(frozen=True)
class Chunker:
    """A trained tagger and chunker. `sha256` is that of the files of its folder."""

    tagger: Classifier
    chunker: Classifier
    sha256: str

    def phrases(self, texts: Sequence[Sequence[str]]) -> Phrases:
        """The noun, verb and prepositional phrases of texts that are words."""
        _, phrases = self._said(texts)
        return phrases

    def _said(self, texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, Phrases]:
        """The number of each word's tag, and the phrases."""
        n_words = np.array([len(text) for text in texts], dtype=np.int64)
        tags, chunks = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        run = (np.cumsum(n_words) - n_words) // MOST_WORDS  # texts of one run are laid together
        for start, stop in pairwise([*np.flatnonzero(np.diff(run, prepend=-1)).tolist(), len(texts)]):
            words = _laid(texts[start:stop])
            tags.append(self.tagger.say(words))
            chunks.append(self.chunker.say(words))
        return np.concatenate(tags), phrases_of(np.concatenate(chunks), n_words)

    def files(self) -> dict[str, bytes]:
        """What is saved, by name: the same of the same training data."""
        return _files(self.tagger, self.chunker)


@dataclass(frozen=True)
class KindScore:
    """Of a kind's phrases in the test part: how many there are, and how well they are found."""

    phrases: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class CaseScore:
    """`tags` is the share of words whose part of speech is right; `all_phrases` are those of all KINDS together."""

    tags: float
    all_phrases: KindScore
    kinds: dict[str, KindScore]


@dataclass(frozen=True)
class ChunkerScore:
    """How good a chunker is with its own tags, on the test part as it is and in lower case."""

    sentences: int
    words: int
    cased: CaseScore
    lower: CaseScore


def train_chunker(conll: Path, out: Path) -> Chunker:
    """Train a tagger and a chunker on the train part of CoNLL-2000, as it is and in lower case, and save them in the new folder
    `out`. Raises DataError, OptionError, or HskError where the disk refuses."""
    if out.exists():
        raise OptionError(f"{out} exists already: choose another --out, or delete it")
    own = read_conll(conll, TRAIN)
    sentences = [*own, *(sentence.lower() for sentence in own)]
    tags = sorted({tag for sentence in own for tag in sentence.tags})
    if len(tags) > MOST_TAGS:
        raise OptionError(f"{conll} has {len(tags)} parts of speech; {MOST_TAGS} at most can be learnt")
    words = _laid([sentence.words for sentence in sentences])
    gold_tags = _numbers([tag for sentence in sentences for tag in sentence.tags], tags)
    gold_chunks = _numbers([chunk for sentence in sentences for chunk in sentence.chunks], CHUNKS)
    tagger = train_classifier(words, tags, gold_tags, _TAG_TEMPLATES, TAG)
    chunker = train_classifier(words, CHUNKS, gold_chunks, _CHUNK_TEMPLATES, CHUNK)
    files = _files(tagger, chunker)
    part = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(part, ignore_errors=True)  # a killed process's
        part.mkdir(parents=True)
        for name, data in files.items():
            (part / name).write_bytes(data)
        part.replace(out)
    except OSError as error:
        raise HskError(f"{error.filename or out} could not be written: {error.strerror}. Choose another --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Chunker(tagger, chunker, _sha256(files))


def load_chunker(folder: Path) -> Chunker:
    """What `train_chunker` saved. Whatever stands there instead, nothing of it runs. Raises ModelError."""
    files: dict[str, bytes] = {}
    for name, most in MOST_BYTES.items():
        try:
            with (folder / name).open("rb") as file:
                files[name] = file.read(most + 1)
        except (OSError, ValueError) as error:  # a name that no file can have
            why = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"{folder}/{name} cannot be read ({why}): name a folder of hsk spans train") from None
        if len(files[name]) > most:
            raise ModelError(f"{folder}/{name} is larger than any that hsk spans train writes: train it again")
    try:
        document = json.loads(files[LABELS_FILE])
        if document["format"] != "hskstore spans":
            raise ValueError("it is another format")
        if document["version"] != FORMAT_VERSION:
            raise ModelError(
                f"{folder} is of version {document['version']}; this hskstore reads {FORMAT_VERSION}: train it again"
            )
        tags = document["tags"]
        names_tags = isinstance(tags, list) and 0 < len(tags) <= MOST_TAGS and all(isinstance(tag, str) for tag in tags)
        if not names_tags or document["chunks"] != list(CHUNKS):
            raise ValueError("its labels are none")
        weights = load(files[WEIGHTS_FILE])
        for name, labels in (("tagger", tags), ("chunker", CHUNKS)):
            if weights[name].shape != (BUCKETS, len(labels)) or weights[name].dtype != np.float16:
                raise ValueError(f"the weights of its {name} are of another shape or type")
            if not np.isfinite(weights[name]).all():
                raise ValueError(f"weights of its {name} are not finite")
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be read as a chunker ({error}): make one with hsk spans train") from None
    tagger = Classifier(tuple(tags), _TAG_TEMPLATES, TAG, weights["tagger"])
    chunker = Classifier(CHUNKS, _CHUNK_TEMPLATES, CHUNK, weights["chunker"])
    return Chunker(tagger, chunker, _sha256(files))


def score_chunker(folder: Path, conll: Path) -> ChunkerScore:
    """How well a saved chunker finds the phrases of the test part of CoNLL-2000. Raises DataError and ModelError."""
    chunker, sentences = load_chunker(folder), read_conll(conll, TEST)
    words = sum(len(sentence.words) for sentence in sentences)
    lower = [sentence.lower() for sentence in sentences]
    return ChunkerScore(len(sentences), words, _scored(chunker, sentences), _scored(chunker, lower))


def phrases_of(chunks: Int[np.ndarray, " word"], n_words: Int[np.ndarray, " text"]) -> Phrases:
    """The phrases of texts whose words have these CHUNKS, by their numbers: a B begins one, an I too unless its kind goes on."""
    text = np.repeat(np.arange(len(n_words)), n_words)
    kind = np.where(chunks > 0, (chunks - 1) // 2, -1)
    goes_on = np.zeros(len(chunks), dtype=bool)
    goes_on[1:] = (kind[1:] == kind[:-1]) & (text[1:] == text[:-1])
    goes_on &= (kind >= 0) & (chunks % 2 == 0)
    begins = np.flatnonzero((kind >= 0) & ~goes_on)
    stops = np.append(np.flatnonzero(~goes_on), len(chunks))
    ends = stops[np.searchsorted(stops, begins, side="right")]
    before = (np.cumsum(n_words) - n_words)[text[begins]]
    return Phrases(text[begins], begins - before, ends - before, kind[begins])


def _scored(chunker: Chunker, sentences: Sequence[Sentence]) -> CaseScore:
    tags, said = chunker._said([sentence.words for sentence in sentences])
    gold_tags = [tag for sentence in sentences for tag in sentence.tags]
    right = sum(chunker.tagger.labels[own] == gold for own, gold in zip(tags.tolist(), gold_tags, strict=True))
    numbers = _numbers([chunk for sentence in sentences for chunk in sentence.chunks], CHUNKS)
    gold = phrases_of(numbers, np.array([len(sentence.words) for sentence in sentences]))
    by_kind = {name: _kind_score(said, gold, said.kind == kind, gold.kind == kind) for kind, name in enumerate(KINDS)}
    return CaseScore(right / len(gold_tags), _kind_score(said, gold, said.kind >= 0, gold.kind >= 0), by_kind)


def _kind_score(said: Phrases, gold: Phrases, own: Bool[np.ndarray, " said"], theirs: Bool[np.ndarray, " gold"]) -> KindScore:
    found, there = (
        {*zip(*(part[chosen].tolist() for part in vars(phrases).values()), strict=True)}
        for phrases, chosen in ((said, own), (gold, theirs))
    )
    both = len(found & there)
    precision, recall = both / max(1, len(found)), both / max(1, len(there))
    return KindScore(len(there), precision, recall, 2 * precision * recall / max(1e-12, precision + recall))


def _laid(texts: Sequence[Sequence[str]]) -> Words:
    """The words of texts with their attributes, and room for what is said of them."""
    every = [word for text in texts for word in text]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(every))}
    attributes = np.array([_attributes(word) for word in numbers], dtype=np.uint64).reshape(len(numbers), TAG)
    own: UInt64[np.ndarray, "word attribute"] = attributes[[numbers[word] for word in every]]
    return Words.laid(own, np.array([len(text) for text in texts], dtype=np.int64), CHUNK + 1 - TAG)


def _attributes(word: str) -> list[int]:
    """From WORD to BEGIN3."""
    written = _DIGIT.sub("0", _WRITTEN.get(word.lower(), word))
    small = written.lower()
    shape = _AGAIN.sub("0", _BIG.sub("X", _SMALL.sub("x", written)))
    return [hashed(part) for part in (small, shape, *(small[-n:] for n in (1, 2, 3, 4)), *(small[:n] for n in (1, 2, 3)))]


def _numbers(names: Sequence[str], labels: Sequence[str]) -> Int[np.ndarray, " name"]:
    number = {label: place for place, label in enumerate(labels)}
    return np.array([number[name] for name in names], dtype=np.int64)


def _files(tagger: Classifier, chunker: Classifier) -> dict[str, bytes]:
    document: dict[str, Any] = {"format": "hskstore spans", "version": FORMAT_VERSION}
    document |= {"tags": list(tagger.labels), "chunks": list(chunker.labels)}
    labels = json.dumps(document, indent=1).encode() + b"\n"
    return {LABELS_FILE: labels, WEIGHTS_FILE: save({"tagger": tagger.weights, "chunker": chunker.weights})}


def _sha256(files: Mapping[str, bytes]) -> str:
    """Of files whose names are known, in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in MOST_BYTES)).hexdigest()
