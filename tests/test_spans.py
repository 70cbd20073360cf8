"""Spans of texts: the chunker that finds phrases, and phrases and split words as tokens."""

import gzip
import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from hskstore.errors import DataError, HskError, ModelError, OptionError
from hskstore.text.chunker import CHUNKS, Chunker, Phrases, load_chunker, phrases_of, score_chunker, train_chunker
from hskstore.text.classifier import BUCKETS
from hskstore.text.conll import KINDS, TEST, read_conll
from hskstore.text.dataset import Examples
from hskstore.text.rows import Rows, Spans, Text, open_rows
from hskstore.text.spans import find_spans, words_of
from hskstore.text.tokenise import stored_rows, tokenise
from tests.conftest import SHARED, hsk
from tests.test_offsets import TOKENIZERS, columns_of_text, lengths, names

NOUNS, NAMES, VERBS = ("cat", "dog", "embedding", "student", "film"), ("Ann", "Bo", "Cy"), ("sees", "likes", "teaches")


def conll_sentences(rows: int, seed: int) -> str:
    """Sentences as "Ann has seen the old dog in a film .", in columns."""
    rng = np.random.default_rng(seed)

    def some(words: tuple[str, ...]) -> str:
        return str(rng.choice(words))

    def noun_phrase() -> list[str]:
        if rng.random() < 0.3:
            return [f"{some(NAMES)} NNP B-NP"]
        old = [f"{some(('old', 'new'))} JJ I-NP"] if rng.random() < 0.5 else []
        return [f"{some(('the', 'a'))} DT B-NP", *old, f"{some(NOUNS)} NN I-NP"]

    lines: list[str] = []
    for _ in range(rows):
        verb = [["has VBZ B-VP", "seen VBN I-VP"], [f"{some(VERBS)} VBZ B-VP"]][int(rng.integers(2))]
        tail = [f"{some(('in', 'of'))} IN B-PP", *noun_phrase()] if rng.random() < 0.6 else ["quickly RB B-ADVP"]
        lines += [*noun_phrase(), *verb, *noun_phrase(), *tail, ". . O", ""]
    return "\n".join(lines) + "\n"


def write_conll(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt.gz").write_bytes(gzip.compress(conll_sentences(150, seed=0).encode()))
    (folder / "dev.txt").write_text(conll_sentences(40, seed=1))
    return folder


@pytest.fixture(scope="session")
def conll(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conll(tmp_path_factory.mktemp("conll"))


@pytest.fixture(scope="session")
def spans_folder(conll: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chunker") / "spans"
    train_chunker(conll, folder)
    return folder


@pytest.fixture(scope="session")
def chunker(spans_folder: Path) -> Chunker:
    return load_chunker(spans_folder)


# --- the set


def test_a_sentence_has_its_words_tags_and_the_chunks_that_are_spans(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\nHe PRP B-NP\nran VBD B-VP\nup RP B-PRT\n\n\nNo DT B-INTJ\n")
    (tmp_path / "dev.txt").write_text("other NN B-NP\n")
    first, second = read_conll(tmp_path, TEST)
    assert (first.words, first.tags, first.chunks) == (("He", "ran", "up"), ("PRP", "VBD", "RP"), ("B-NP", "B-VP", "O"))
    assert first.lower().words == ("he", "ran", "up") and first.lower().chunks == first.chunks
    assert second.chunks == ("O",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a DT B-NP\nb NN\n", "train.txt.gz, line 2: expected a word, its tag and its chunk"),
        (b"a DT NP\n", "line 1: expected"),
        (b"\n\n", "has no sentence"),
        (b"\xff DT B-NP\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_set_that_is_none_is_refused_with_its_line(content: bytes | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(b"not gzip" if content is None else gzip.compress(content))
    with pytest.raises(DataError, match=told):
        train_chunker(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"has none of test.txt, test.txt.gz, dev.txt, dev.txt.gz: name the folder of CoNLL-2000"):
        read_conll(tmp_path, TEST)
    assert not (tmp_path / "out").exists()


# --- the chunker


def test_a_chunker_learns_a_grammar_cased_and_lower_cased(spans_folder: Path, conll: Path) -> None:
    found = score_chunker(spans_folder, conll)
    assert found.sentences == 40 and found.cased.kinds.keys() == set(KINDS)
    for case in (found.cased, found.lower):
        assert case.tags > 0.99 and case.all_phrases.f1 > 0.99
        assert case.all_phrases.phrases == sum(kind.phrases for kind in case.kinds.values())


def test_the_same_set_gives_the_same_bytes_and_what_is_loaded_is_what_was_trained(
    conll: Path, spans_folder: Path, tmp_path: Path
) -> None:
    trained, loaded = train_chunker(conll, tmp_path / "again"), load_chunker(spans_folder)
    assert trained.sha256 == loaded.sha256 and trained.files() == loaded.files()
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == loaded.files()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    with pytest.raises(OptionError, match="exists already: choose another --out"):
        train_chunker(conll, tmp_path / "again")


def test_phrases_of_a_text_depend_on_no_other_text(chunker: Chunker, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [["Ann", "has", "seen", "the", "old", "dog", "in", "a", "film", "."], [], ["dog"], ["the", "cat", "sees", "of"]]
    together = as_sets(chunker.phrases(texts), len(texts))
    assert together == [as_sets(chunker.phrases([text]), 1)[0] for text in texts]
    assert together[0] == {(0, 1, "NP"), (1, 3, "VP"), (3, 6, "NP"), (6, 7, "PP"), (7, 9, "NP")}
    assert together[1] == set()
    for most in (1, 4, 12):
        monkeypatch.setattr("hskstore.text.chunker.MOST_WORDS", most)
        assert as_sets(chunker.phrases(texts), len(texts)) == together
    assert len(chunker.phrases([]).text) == 0


def as_sets(phrases: Phrases, texts: int) -> list[set[tuple[int, int, str]]]:
    every = list(zip(*(part.tolist() for part in vars(phrases).values()), strict=True))
    return [{(first, end, KINDS[kind]) for text, first, end, kind in every if text == number} for number in range(texts)]


@given(st.lists(st.lists(st.sampled_from(CHUNKS), max_size=6), min_size=1, max_size=4))
def test_a_phrase_begins_with_b_or_where_its_kind_does_not_go_on(texts: list[list[str]]) -> None:
    numbers = np.array([CHUNKS.index(chunk) for text in texts for chunk in text], dtype=np.int64)
    found = as_sets(phrases_of(numbers, np.array([len(text) for text in texts])), len(texts))
    for text, phrases in zip(texts, found, strict=True):
        expected: list[list[Any]] = []
        before = "O"
        for place, chunk in enumerate(text):
            if chunk != "O" and (chunk[0] == "B" or before[2:] != chunk[2:]):
                expected.append([place, place + 1, chunk[2:]])
            elif chunk != "O":
                expected[-1][1] = place + 1
            before = chunk
        assert phrases == {(first, end, kind) for first, end, kind in expected}


def weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load((folder / "weights.safetensors").read_bytes()).items()}
        arrays = change(arrays) or arrays
        (folder / "weights.safetensors").write_bytes(save(arrays))

    return damage


def labels(**said: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "spans.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))

    return damage


def not_finite(arrays: dict[str, np.ndarray]) -> None:
    arrays["chunker"][5, 1] = np.nan


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "spans.json").unlink(), "spans.json cannot be read"),
        (lambda folder: (folder / "spans.json").write_text("{"), "cannot be read as a chunker"),
        (lambda folder: (folder / "spans.json").write_text("[" * 10_000), "cannot be read as a chunker"),
        (lambda folder: (folder / "spans.json").write_text(" " * 2**17), "is larger than any"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(pickle.dumps({})), "cannot be read as a chunker"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b""), "cannot be read as a chunker"),
        (labels(format="other"), "another format"),
        (labels(version=2), "is of version 2; this hskstore reads 1"),
        (labels(tags=["NN"]), "of another shape or type"),
        (labels(tags=[1, 2]), "its labels are none"),
        (labels(tags="NN"), "its labels are none"),
        (labels(chunks=["O"]), "its labels are none"),
        (weights(not_finite), "weights of its chunker are not finite"),
        (weights(lambda arrays: {name: array.astype(np.float32) for name, array in arrays.items()}), "shape or type"),
        (weights(lambda arrays: {"tagger": arrays["tagger"]}), "'chunker'"),
        (weights(lambda arrays: {name: array[: BUCKETS // 2] for name, array in arrays.items()}), "shape or type"),
    ],
)
def test_a_folder_that_is_no_chunker_is_refused_in_one_line(
    damage: Callable[[Path], None], told: str, spans_folder: Path, tmp_path: Path
) -> None:
    for path in spans_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path)
    with pytest.raises(ModelError) as refused:
        load_chunker(tmp_path)
    assert told in str(refused.value) and str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_the_commands_train_and_score_and_say_what_they_made(
    conll: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "spans"
    assert hsk("spans", "train", "--conll", conll, "--out", out) == 0
    assert load_chunker(out).sha256 in capsys.readouterr().out.replace("\n", "")
    assert hsk("spans", "train", "--conll", conll, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert hsk("spans", "eval", out, "--conll", conll) == 0
    told = capsys.readouterr().out
    for word in ("cased", "lower-cased", *KINDS, "F1", "parts of speech"):
        assert word in told
    assert hsk("spans", "eval", out, "--conll", conll, "--json") == 0
    assert json.loads(capsys.readouterr().out)["lower"]["kinds"]["PP"]["f1"] > 0.99
    assert hsk("spans", "eval", tmp_path, "--conll", conll) == 2
    assert "name a folder of hsk spans train" in capsys.readouterr().err


def test_a_disk_that_refuses_leaves_nothing(conll: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(HskError, match="could not be written: No space left on device"):
        train_chunker(conll, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="name a folder of hsk spans train"):
        load_chunker(Path("a\0b"))


@pytest.mark.real
@pytest.mark.long
def test_phrases_of_conll_2000_are_found_with_an_f1_of_at_least_0_9(tmp_path: Path) -> None:
    train_chunker(SHARED / "data/conll2000", tmp_path / "spans")
    found = score_chunker(tmp_path / "spans", SHARED / "data/conll2000")
    assert found.words == 47377 and found.cased.all_phrases.phrases == found.lower.all_phrases.phrases == 21891
    assert found.cased.all_phrases.f1 >= 0.93 and found.lower.all_phrases.f1 >= 0.92
    assert all(kind.f1 >= 0.9 for kind in (*found.cased.kinds.values(), *found.lower.kinds.values()))
    assert sum(path.stat().st_size for path in (tmp_path / "spans").iterdir()) < 20e6


# --- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it 's a charming film .", "it|'s|a|charming|film|."),
        ("It's Ann's, isn't it?", "It|'s|Ann|'s|,|is|n't|it|?"),
        ("Mr. Smith of the U.S. paid $1,000.50 on Jan. 5.", "Mr.|Smith|of|the|U.S.|paid|$|1,000.50|on|Jan.|5|."),
        ('well-known AT&T -- "no" ... -lrb- it’s', 'well-known|AT&T|--|"|no|"|...|-lrb-|it|’s'),
        ("O'Neill's dogs' 'em don't", "O'Neill|'s|dogs|'|'|em|do|n't"),
        (" \t ", ""),
    ],
)
def test_words_are_split_as_the_treebank_splits_them(text: str, words: str) -> None:
    assert [text[start:end] for start, end in words_of(text)] == (words.split("|") if words else [])


@given(st.text(max_size=40) | st.text(st.sampled_from("aA1.,'’-& \"nt"), max_size=40))
def test_every_character_but_white_space_is_in_one_word(text: str) -> None:
    words = words_of(text)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    assert all(one[1] <= other[0] for one, other in pairwise(words))


# --- spans of tokens


def spans_of(rows: Rows) -> list[list[tuple[int, int]]]:
    assert rows.spans is not None
    bounds = rows.spans.bounds.tolist()
    return [[(start, end) for start, end in rows.spans.tokens[first:last].tolist()] for first, last in pairwise(bounds)]


def test_phrases_and_split_words_are_spans_once_each_in_the_order_of_their_tokens(chunker: Chunker) -> None:
    """[CLS] the em ##bed ##ding sees a dog [SEP], and so on, by a tokenizer of hand-made words."""
    rows = tokenise(
        Examples((["the embedding sees a dog", "embedding", "dog"], ["Ann likes Bo", "", "quickly"]), None),
        pieces(),
        32,
        chunker=chunker,
    )
    assert rows.text is None
    assert spans_of(rows) == [
        [(1, 5), (2, 5), (5, 6), (6, 8), (9, 10), (10, 11), (11, 12)],
        [(1, 4)],  # the word and the phrase are the same tokens
        [(1, 2)],
    ]
    cut = tokenise(Examples((["the embedding sees a dog"],), None), pieces(), 5, chunker=chunker)
    assert spans_of(cut) == [[(1, 4), (2, 4)]], "[CLS] the em ##bed [SEP]: as far as the row was not cut"


def pieces() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "em", "##bed", "##ding", "sees", "a", "dog", "ann", "likes", "bo"]
    raw = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, **special)


@settings(max_examples=60)
@given(columns_of_text, names, lengths)
def test_a_span_lies_in_one_column_and_has_no_special_token(
    chunker: Chunker, columns: tuple[list[str], ...], name: str, max_length: int
) -> None:
    if name == "nfkc":
        columns = tuple([f"a{text}" for text in column] for column in columns)
    tokenizer = TOKENIZERS[name]()
    rows = tokenise(Examples(columns, None), tokenizer, max_length, offsets=True, chunker=chunker)
    plain = tokenise(Examples(columns, None), tokenizer, max_length, offsets=True)
    assert rows.sha256() == plain.sha256(), "rows are the same whatever is found in them"
    assert rows.text is not None
    for row, spans in enumerate(spans_of(rows)):
        assert spans == sorted(set(spans))
        offsets = rows.text.offsets[rows.bounds[row] : rows.bounds[row + 1]]
        before = int(rows.text.n_chars[row, 0])
        for start, end in spans:
            assert 0 <= start < end <= len(offsets) and (offsets[[start, end - 1], 0] >= 0).all()
            own = offsets[start:end][offsets[start:end, 0] >= 0]
            assert len({bool(place >= before) for place in own[:, 0].tolist()}) == 1


@pytest.mark.parametrize("name", ["bytes", "bytes untrimmed"])
def test_words_of_a_tokenizer_of_bytes_are_without_the_blank_before_them(name: str, chunker: Chunker) -> None:
    tokenizer = TOKENIZERS[name]()
    text = "zzqxj the qqq"
    rows = tokenise(Examples(([text],), None), tokenizer, 64, offsets=True, chunker=chunker)
    assert rows.text is not None
    found = {
        text[rows.text.offsets[start, 0] : rows.text.offsets[end - 1, 1]] for start, end in spans_of(rows)[0] if end > start + 1
    }
    assert {"zzqxj", "qqq"} <= found and all(" " not in each for each in found - {"the qqq", "zzqxj the qqq", "zzqxj the"})


def test_of_a_tokenizer_without_words_white_space_parts_them(chunker: Chunker) -> None:
    text = Text.joined(
        [(np.frombuffer(b"ab cd", np.uint8), np.array([[5]], np.int32), np.array([[0, 1], [1, 2], [3, 4], [4, 5]], np.int32))]
    )
    found = find_spans(text, np.array([4], np.int32), np.zeros(4, np.int64), chunker, "it")
    assert {(0, 2), (2, 4)} <= {(start, end) for start, end in found.tokens.tolist()}


def test_a_tokenizer_that_does_not_say_where_tokens_stand_is_refused(chunker: Chunker) -> None:
    text = Text.joined([(np.frombuffer(b"ab", np.uint8), np.array([[2]], np.int32), np.full((2, 2), -1, np.int32))])
    with pytest.raises(ModelError, match="it: its tokenizer does not say where in the text a token stands, which --spans needs"):
        find_spans(text, np.array([2], np.int32), np.zeros(2, np.int64), chunker, "it")


# --- spans of rows


def rows_with_spans(counts: list[int]) -> Rows:
    """Rows of four tokens, the spans of each numbered."""
    rows, total = len(counts), sum(counts)
    ids = np.arange(4 * rows, dtype=np.int32)
    spans = Spans(np.cumsum([0, *counts]), np.arange(2 * total, dtype=np.int32).reshape(total, 2))
    return Rows(ids, np.zeros(4 * rows, np.uint8), 4 * np.arange(rows + 1), None, np.arange(rows), spans=spans)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_spans_go_with_their_rows(counts: list[int], data: st.DataObject) -> None:
    rows = rows_with_spans(counts)
    every = spans_of(rows)
    index = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    assert spans_of(rows.take(index)) == [every[row] for row in index]
    start = data.draw(st.integers(0, len(counts)))
    stop = data.draw(st.integers(start, len(counts)))
    assert spans_of(rows.slice(start, stop)) == every[start:stop]
    order = np.array(data.draw(st.permutations(range(len(counts)))), dtype=np.int64)
    assert spans_of(rows.reordered(order)) == [every[row] for row in order.tolist()]
    assert rows.spans is not None and rows.spans.most == max(counts)
    padded = rows.spans.padded()
    assert padded.shape == (len(counts), max(counts), 2)
    for own, n, spans in zip(padded.tolist(), counts, every, strict=True):
        assert [tuple(span) for span in own[:n]] == spans and not np.any(own[n:])


def test_rows_in_files_keep_the_spans_of_train(chunker: Chunker, tmp_path: Path) -> None:
    splits = {
        "train": Examples((["the dog sees Ann", "a dog", "quickly"] * 3,), None),
        "validation": Examples((["the dog"],), None),
    }
    options: dict[str, Any] = {"seed": 3, "chunker": chunker}
    made, plain = stored_rows(splits, pieces(), 16, folder=tmp_path, **options), stored_rows(splits, pieces(), 16, seed=3)
    there = open_rows(tmp_path)
    assert spans_of(there["train"]) == spans_of(made["train"]) and made["validation"].spans is None
    assert {name: rows.sha256() for name, rows in there.items()} == {name: rows.sha256() for name, rows in plain.items()}
    alone = tokenise(splits["train"], pieces(), 16, chunker=chunker)
    assert spans_of(made["train"]) == [spans_of(alone)[row] for row in made["train"].row_id.tolist()]
    assert {len(spans) for spans in spans_of(alone)} == {0, 1, 3}
