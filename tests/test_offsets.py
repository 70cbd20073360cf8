"""A store that keeps its text teaches students of any tokenizer: hidden states stay where both cut the same characters."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hskstore.config import Keep, Strategy
from hskstore.errors import DataError, PlanError, StoreError
from hskstore.explore.show import describe
from hskstore.features import HiddenTargets
from hskstore.features.hidden import aligned_share
from hskstore.stage_one.extract import extract
from hskstore.stage_one.replay import replay
from hskstore.stage_two.feed import InWindows
from hskstore.stage_two.rows import TrainingRows, rows_from_store
from hskstore.store import Store, open_store
from hskstore.store.copy import copy_store
from hskstore.store.derive import derive
from hskstore.store.encode import encode_shard
from hskstore.store.verify import verify
from hskstore.text.align import align
from hskstore.text.dataset import Examples, read_dataset
from hskstore.text.rows import Rows
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import tokenizer_from_files
from tests.conftest import SHARED, hsk, make_tokenizer, sealed_tree, sentences
from tests.made_up import made_hidden, rows_of, scattered, targets_of
from tests.store.conftest import forge

SCRAPS = [
    "the",
    "cat",
    "Dogs",
    "never",
    "Über",
    "cafe\u0301",
    "naïve",
    "½",
    "ﬁsh",
    "🙂",
    "👩‍👩‍👧",
    "貓和狗",
    "[SEP]",
    "don't",
    "\u200d",
    "x" * 120,
]
SPACES = [" ", "  ", "\t", "\u3000", "\n ", "", "\x00"]
CORPUS = [*sentences(200, seed=5), *(f"{one} {two}" for one in SCRAPS for two in SCRAPS)]
texts = st.lists(st.tuples(st.sampled_from(SPACES), st.sampled_from(SCRAPS)), max_size=6).map(
    lambda parts: "".join(space + word for space, word in parts)
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@cache
def byte_level(*, trim: bool, prefix: bool = False, template: bool = False, size: int = 420, texts: tuple[str, ...] = ()) -> Any:
    """A tokenizer as RoBERTa's, <s> text </s>, trained on a few sentences: its tokens count the blank before a word in."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(texts or CORPUS, trainer)
    if template:
        ends = [("<s>", 0), ("</s>", 2)]
        raw.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", special_tokens=ends)
    else:
        raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=prefix)
    words = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    options = {f"{word}_token": name for word, name in words.items()}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, **options)


@cache
def word_pieces() -> Any:
    """A tokenizer as BERT's, uncased: it lowers, strips accents, and takes each Chinese character for a word."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False))
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, **options)


@cache
def compatibility_pieces() -> Any:
    """One whose normaliser makes several characters of one (NFKC), and which has no special tokens."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


TOKENIZERS = {
    "words": cache(make_tokenizer),
    "pieces": word_pieces,
    "nfkc": compatibility_pieces,
    "bytes": lambda: byte_level(trim=True, prefix=True),
    "bytes untrimmed": lambda: byte_level(trim=False),
    "bytes by template": lambda: byte_level(trim=False, template=True),
}


def tokens(columns: tuple[list[str], ...], name: str, max_length: int = 64) -> Rows:
    return tokenise(Examples(columns, None), TOKENIZERS[name](), max_length, offsets=True)


def places(rows: Rows, row: int) -> list[tuple[int, int, int] | None]:
    """Column, first character and the one behind the last, counted in the column, of each token of a row."""
    assert rows.text is not None
    before = int(rows.text.n_chars[row, 0]) if rows.text.n_chars.shape[1] == 2 else 2**31
    spans = rows.text.offsets[rows.bounds[row] : rows.bounds[row + 1]].tolist()
    found: list[tuple[int, int, int] | None] = []
    for start, end in spans:
        column = int(start >= before)
        found.append(None if start == -1 else (column, start - column * before, end - column * before))
    return found


columns_of_text = (
    st.integers(1, 2)
    .flatmap(
        lambda columns: st.lists(st.tuples(*[texts] * columns), min_size=1, max_size=4).map(
            lambda rows: tuple(map(list, zip(*rows, strict=True)))
        )
    )
    .filter(lambda columns: all(any(map(str.strip, row)) for row in zip(*columns, strict=True)))
)
names = st.sampled_from(sorted(TOKENIZERS))
lengths = st.sampled_from([6, 10, 64])


@settings(max_examples=150)
@given(columns_of_text, names, lengths)
def test_all_of_the_text_is_kept_but_what_was_cut_off(columns: tuple[list[str], ...], name: str, max_length: int) -> None:
    if name == "nfkc":
        columns = tuple([f"a{text}" for text in column] for column in columns)  # at least one token
    rows = tokens(columns, name, max_length)
    assert rows.text is not None
    kept, whole = rows.text.columns(), list(map(len, TOKENIZERS[name]()(*columns)["input_ids"]))
    for row in range(len(rows)):
        spans = places(rows, row)
        for column, texts in enumerate(columns):
            ends = [span[2] for span in spans if span is not None and span[0] == column]
            assert kept[column][row] == (texts[row][: max(ends, default=0)] if whole[row] > max_length else texts[row])
        for span in filter(None, spans):
            characters = columns[span[0]][row][span[1] : span[2]]
            assert characters and characters == characters.strip()
    assert rows.text.n_chars.tolist() == [[len(column[row]) for column in kept] for row in range(len(rows))]


@settings(max_examples=300)
@given(columns_of_text, names, names, lengths, lengths)
def test_tokens_align_where_they_are_the_same_characters_and_nowhere_else(
    columns: tuple[list[str], ...], one: str, other: str, length: int, other_length: int
) -> None:
    if "nfkc" in (one, other):
        columns = tuple([f"a{text}" for text in column] for column in columns)
    teacher = tokens(columns, one, length)
    assert teacher.text is not None
    student = tokens(teacher.text.columns(), other, other_length)
    found = align(teacher, student)
    for row in range(len(teacher)):
        theirs, ours = places(teacher, row), places(student, row)
        for position, place in enumerate(theirs):
            aligned = int(found[teacher.bounds[row] + position])
            if place is None:
                assert aligned == (0 if position == 0 and ours[0] is None else -1)
                continue
            same = [index for index, each in enumerate(ours) if each == place]
            nth = [index for index, each in enumerate(theirs) if each == place]
            assert aligned == (same[nth.index(position)] if len(same) == len(nth) else -1)
            if aligned >= 0:
                column, start, end = ours[aligned] or (0, 0, 0)
                assert teacher.text.columns()[column][row][start:end] == columns[place[0]][row][place[1] : place[2]]


@settings(max_examples=100)
@given(columns_of_text, names)
def test_a_tokenizer_aligns_with_itself_token_by_token(columns: tuple[list[str], ...], name: str) -> None:
    if name == "nfkc":
        columns = tuple([f"a{text}" for text in column] for column in columns)
    rows = tokens(columns, name)
    if rows.n_tokens.max() == 64:
        return  # cut, perhaps within a word, which by itself may be other tokens
    assert rows.text is not None
    again = tokens(rows.text.columns(), name)
    own = np.arange(len(rows.text.offsets)) - np.repeat(rows.bounds[:-1], rows.n_tokens)
    found = align(rows, again)
    covered = rows.text.offsets[:, 0] >= 0
    np.testing.assert_array_equal(found[covered], own[covered])
    assert set(found[~covered].tolist()) <= {0, -1}


def test_offsets_by_hand() -> None:
    """Accents, an emoji of four bytes, Chinese, and a blank that byte-level tokens count in."""
    text = "  Über 🙂貓 cats"
    rows = tokens(([text],), "bytes untrimmed")
    assert rows.text is not None and rows.text.columns() == ([text],)
    spans = [span and text[span[1] : span[2]] for span in places(rows, 0)]
    assert spans[0] is None and spans[-1] is None
    assert "🙂" in spans and "cats" in "".join(filter(None, spans))
    pieces = [span and text[span[1] : span[2]] for span in places(tokens(([text],), "pieces"), 0)]
    assert pieces[1] is not None and "Über".startswith(pieces[1]) and "貓" in pieces


def test_rows_are_taken_and_hashed_with_their_text() -> None:
    rows = tokens((["the cat", "貓", "", "a 🙂 b"], ["x", "", "dogs", "y"]), "bytes")
    plain = tokenise(Examples((["the cat", "貓", "", "a 🙂 b"], ["x", "", "dogs", "y"]), None), TOKENIZERS["bytes"](), 64)
    assert plain.text is None and replace(rows, text=None).sha256() == plain.sha256() != rows.sha256()
    taken = rows.take([3, 1, -2])
    assert taken.text is not None and rows.text is not None
    assert taken.text.columns() == (["a 🙂 b", "貓", ""], ["y", "", "dogs"])
    assert [places(taken, row) for row in range(3)] == [places(rows, row) for row in (3, 1, 2)]
    assert rows.take(np.arange(4)).sha256() == rows.sha256() != rows.take([0, 1, 3, 2]).sha256()


@pytest.mark.parametrize("offsets", [False, True])
def test_half_a_character_is_refused_naming_its_row(offsets: bool) -> None:
    columns = (["fine", "the \ud83d cat"], ["fine", "fine"])
    with pytest.raises(DataError, match=r"^row 2 holds half a character, U\+D83D"):
        tokenise(Examples(columns, None), make_tokenizer(), 64, offsets=offsets)


@given(st.data())
@settings(max_examples=60)
def test_what_does_not_align_is_never_a_target(data: st.DataObject) -> None:
    n_kept = np.array(data.draw(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=2), min_size=1, max_size=6)), np.int16)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = (len(n_kept), 2, 4)
    rows = rows_of(
        made_hidden(Keep(2, 4, 3), hidden_size=6),
        values=rng.normal(size=(*shape, 3)).astype(np.float16),
        mask=np.broadcast_to(np.packbits([1, 0, 1, 0, 0, 1]), (*shape, 1)),
        token=rng.integers(-1, 5, shape).astype(np.int32),
        n_kept=n_kept,
    )
    targets = targets_of(rows, np.arange(len(n_kept)))
    length = int(n_kept.max())
    token, values = rows.arrays["token"], rows.arrays["values"]
    kept = (token >= 0) & (np.arange(4) < n_kept[..., None])
    assert aligned_share(rows) == kept.sum() / n_kept.sum()
    kept = kept[..., :length]
    np.testing.assert_array_equal(targets.token_kept.transpose(0, 1).numpy(), kept)
    np.testing.assert_array_equal(targets.position.transpose(0, 1).numpy(), np.where(kept, token[..., :length], 0))
    teacher, width_kept = (found.transpose(0, 1).numpy() for found in scattered(targets))
    assert not teacher[~kept].any() and not width_kept[~kept].any()
    np.testing.assert_array_equal(teacher[kept][:, [0, 2, 5]], values[..., :length, :][kept])


# --- stores


KEEPS = [Keep.parse(keep) for keep in ("all", "2,3,0.25", "1,4,0.25")]


def write_rows(folder: Path, rows: int, seed: int) -> None:
    """Sentences with words that the tiny vocabulary lacks, in front, inside or behind."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", rows), ("dev", 20)):
        lines = []
        for row, text in enumerate(sentences(count, seed + len(split))):
            extra = SCRAPS[:-1][row % (len(SCRAPS) - 1)]
            lines.append(json.dumps({"sentence": f"{text}  {extra}" if row % 2 else f" {extra} {text} ", "label": row % 2}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "data"
    write_rows(folder, 90, 3)
    return folder


def targets(rows: TrainingRows) -> HiddenTargets:
    return targets_of(rows.features["hidden"], np.arange(len(rows)))


def run(teacher: str, data: Path, out: Path, **options: Any) -> list[Store]:
    options = {"keeps": KEEPS, "strategies": [Strategy(2)], "task": "sst2", "keep_offsets": True, "batch_tokens": 256} | options
    return [open_store(made.root) for made in extract(teacher, str(data), out=out, **options)]


@pytest.fixture(scope="module")
def stores(teacher_folder: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    return run(teacher_folder, data, tmp_path_factory.mktemp("stores"))


def test_the_stored_text_is_that_of_the_data_and_everything_else_is_what_it_is_without(
    stores: list[Store], teacher_folder: str, data: Path, tmp_path: Path
) -> None:
    (plain, *_) = run(teacher_folder, data, tmp_path, keep_offsets=False, keeps=KEEPS[:1])
    store = stores[0]
    extra = {f"{split}/{name}" for split in ("train", "validation") for name in ("text", "n_bytes", "offsets")}
    assert store.plan.arrays.keys() - plain.plan.arrays.keys() == extra and plain.plan.text is None
    for path in plain.plan.arrays:
        np.testing.assert_array_equal(store.read_all(path), plain.read_all(path))
    examples = read_dataset(str(data), task="sst2").splits
    for split in ("train", "validation"):
        row_id, n_bytes, offsets = (store.read_all(f"{split}/{name}") for name in ("row_id", "n_bytes", "offsets"))
        ids, n_tokens = store.read_all(f"{split}/input_ids"), store.read_all(f"{split}/n_tokens")
        vocabulary = {index: word for word, index in make_tokenizer().get_vocab().items()}
        for row, utf8 in enumerate(store.read_all(f"{split}/text")):
            text = bytes(utf8[: n_bytes[row, 0]]).decode()
            assert text == examples[split].text[0][row_id[row]] and not utf8[n_bytes[row, 0] :].any()
            assert (offsets[row, n_tokens[row] :] == -1).all()
            for token, (start, end) in zip(ids[row, : n_tokens[row]], offsets[row].tolist(), strict=False):
                word = vocabulary[token]
                if word == "[SEP]" and start >= 0:
                    assert text[start:end] == "[SEP]"
                else:
                    assert (start == -1) if word in ("[CLS]", "[SEP]") else word in ("[UNK]", text[start:end].lower())


def test_the_teachers_own_tokenizer_reads_from_the_text_what_is_stored(stores: list[Store]) -> None:
    tokenizer = tokenizer_from_files(stores[0].tokenizer_files())
    for split, places in (("train", {"hidden": (0, 2)}), ("validation", {})):
        stored = rows_from_store(stores[0], split, places=places)
        anew = rows_from_store(stores[0], split, places=places, tokenizer=tokenizer)
        for name in ("input_ids", "token_type_ids", "n_tokens", "label", "logits"):
            np.testing.assert_array_equal(getattr(anew, name), getattr(stored, name))
        if places:
            before, after = (rows.features["hidden"] for rows in (stored, anew))
            assert aligned_share(before) == aligned_share(after) == 1
            np.testing.assert_array_equal(after.arrays["token"], before.arrays["token"])
            own, other = targets(stored), targets(anew)
            assert all(
                np.array_equal(ours, theirs) for ours, theirs in zip(vars(own).values(), vars(other).values(), strict=True)
            )


@pytest.mark.parametrize("trim", [True, False])
def test_a_student_of_another_tokenizer_learns_where_it_has_the_teachers_tokens(trim: bool, stores: list[Store]) -> None:
    store, tokenizer = stores[1], byte_level(trim=trim)
    both = {"hidden": (0, 1)}
    stored, rows = (rows_from_store(store, "train", places=both, tokenizer=words) for words in (None, tokenizer))
    share = aligned_share(rows.features["hidden"])
    assert 0.5 < share < 1
    np.testing.assert_array_equal(rows.label, stored.label)
    np.testing.assert_array_equal(rows.logits, stored.logits)
    found, before = targets(rows), targets(stored)
    assert found.token_kept.sum() == round(share * int(before.token_kept.sum()))
    assert not (found.token_kept & ~before.token_kept).any()
    utf8, n_bytes, offsets = (store.read_all(f"train/{name}") for name in ("text", "n_bytes", "offsets"))
    for row in range(len(rows)):
        text = bytes(utf8[row, : n_bytes[row, 0]]).decode()
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert rows.input_ids[row, : rows.n_tokens[row]].tolist() == encoded["input_ids"]
        assert (rows.input_ids[row, rows.n_tokens[row] :] == tokenizer.pad_token_id).all()
        for layer, slot in np.argwhere(found.token_kept[:, row].numpy()).tolist():
            theirs, ours = int(before.position[layer, row, slot]), int(found.position[layer, row, slot])
            start, end = encoded["offset_mapping"][ours]
            assert text[start:end].strip() == (text[slice(*offsets[row, theirs])] if theirs else "")
            assert (found.values[layer, row, slot] == before.values[layer, row, slot]).all()
            assert found.coordinate is not None and before.coordinate is not None
            assert (found.coordinate[layer, row, slot] == before.coordinate[layer, row, slot]).all()


def test_a_store_read_in_blocks_is_tokenised_anew_piece_by_piece(stores: list[Store]) -> None:
    store, tokenizer = stores[1], byte_level(trim=True)
    reading: dict[str, Any] = {"places": {"hidden": (0, 1)}, "tokenizer": tokenizer, "max_length": 12}
    whole, source = rows_from_store(store, "train", **reading), InWindows(store, "train", reading)
    split = store.plan.splits["train"]
    for window in source.windows(np.random.default_rng(0), 4):
        rows = np.concatenate(
            [np.arange(split.unit_rows * unit, split.unit_rows * unit + split.rows_of(unit)) for unit in window.units]
        )
        found = source.read(window)
        np.testing.assert_array_equal(found.n_tokens, whole.n_tokens[rows])
        for at, row in enumerate(rows):
            length = found.n_tokens[at]
            np.testing.assert_array_equal(found.input_ids[at, :length], whole.input_ids[row, :length])
        for name, array in found.features["hidden"].arrays.items():
            np.testing.assert_array_equal(array, whole.features["hidden"].arrays[name][rows])


def test_rows_cut_by_the_teacher_or_the_student(teacher_folder: str, data: Path, tmp_path: Path) -> None:
    (store,) = run(teacher_folder, data, tmp_path, max_length=7, keeps=KEEPS[:1])
    rows = rows_from_store(store, "train", places={"hidden": (0, 1, 2)}, tokenizer=byte_level(trim=True), max_length=5)
    assert rows.n_tokens.max() == 5 == rows.input_ids.shape[1]
    assert 0 < aligned_share(rows.features["hidden"]) < 1
    assert targets(rows).position.max() == 3
    assert rows_from_store(store, "train", tokenizer=byte_level(trim=True)).n_tokens.max() == 7, "as the teacher's rows"
    longest = rows_from_store(store, "train", tokenizer=byte_level(trim=True), max_length=64).n_tokens.max()
    assert longest > 7, "the text that the teacher saw may be more tokens"


def test_pairs_align_in_both_texts_though_the_first_was_cut(tmp_path: Path, teacher_folder: str) -> None:
    lines = [f"the very old cat {scrap} \t {scrap} a dog runs today\t{row % 2}" for row, scrap in enumerate(SCRAPS[:-1])]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("one\ttwo\tlabel\n" + "\n".join(lines) + "\n")
    options: dict[str, Any] = {"task": None, "text": ["one", "two"], "label": "label"}
    (store,) = run(teacher_folder, tmp_path, tmp_path / "stores", keeps=KEEPS[:1], **options)
    assert store.plan.text is not None and store.plan.text.columns == 2
    tokenizer = byte_level(trim=True, template=True)
    first = {"hidden": (0,)}
    rows = rows_from_store(store, "train", places=first, tokenizer=tokenizer, max_length=14)
    found, before, seen = targets(rows), targets(rows_from_store(store, "train", places=first)), set()
    vocabulary, ids = make_tokenizer().convert_ids_to_tokens, store.read_all("train/input_ids")
    for row, slot in np.argwhere(found.token_kept[0].numpy()).tolist():
        theirs, ours = int(before.position[0, row, slot]), int(found.position[0, row, slot])
        word = vocabulary(int(ids[row, theirs]))
        if theirs and word != "[UNK]":
            assert tokenizer.convert_ids_to_tokens(int(rows.input_ids[row, ours])).lstrip("Ġ") == word
            seen.add(word)
    assert seen >= {"the", "cat", "dog"}, "of either text"


def test_a_store_without_text_says_what_it_lacks(stores: list[Store], teacher_folder: str, data: Path, tmp_path: Path) -> None:
    (plain,) = run(teacher_folder, data, tmp_path, keep_offsets=False, keeps=KEEPS[2:])
    with pytest.raises(StoreError) as refused:
        rows_from_store(plain, "train", tokenizer=byte_level(trim=True))
    assert str(refused.value) == (
        f"{plain.root} keeps no text, so only a student with the teacher's tokenizer can read it: extract with --keep-offsets;"
        " then its logits teach a student of any tokenizer, and its hidden states where tokens align"
    )


def test_the_option_makes_another_store_and_resuming_without_it_is_refused(
    stores: list[Store], teacher_folder: str, data: Path, tmp_path: Path
) -> None:
    (store,) = run(teacher_folder, data, tmp_path, keeps=KEEPS[2:])
    assert store.digest == stores[2].digest
    with pytest.raises(PlanError, match=r"text\.bytes\.train: \d+ -> absent(.|\n)*text\.columns: 1 -> absent"):
        run(teacher_folder, data, tmp_path, keeps=KEEPS[2:], keep_offsets=False)
    run(teacher_folder, data, tmp_path / "plain", keeps=KEEPS[2:], keep_offsets=False)
    with pytest.raises(PlanError, match=r"text\.columns: absent -> 1"):
        run(teacher_folder, data, tmp_path / "plain", keeps=KEEPS[2:])


def test_a_cut_keeps_the_text_and_is_what_was_extracted(stores: list[Store], tmp_path: Path) -> None:
    for keep, direct in zip(KEEPS[1:], stores[1:], strict=True):
        made = derive(stores[0].root, tmp_path / keep.name, keep=keep)
        assert made.digest == direct.digest
        assert sealed_tree(tmp_path / keep.name) == sealed_tree(Path(direct.root))


def test_the_text_travels_with_a_store_and_is_verified(stores: list[Store], teacher_folder: str, tmp_path: Path) -> None:
    copy_store(stores[1].root, str(tmp_path / "bucket"))
    assert hsk("pull", tmp_path / "bucket", tmp_path / "back") == 0
    assert sealed_tree(tmp_path / "back") == sealed_tree(Path(stores[1].root))
    assert hsk("pull", tmp_path / "bucket", tmp_path / "small", "--keep", "1,3,0.25") == 0
    assert open_store(tmp_path / "small").has("train/text")
    replayed = replay(str(tmp_path / "back"), teacher_folder, rows=30)
    assert not replayed.differing and replayed.rows >= 30
    shard = tmp_path / "back" / "train" / "text" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert [problem.key for problem in verify(str(tmp_path / "back"), deep=True).problems] == ["train/text/c/0/0"]
    assert hsk("pull", tmp_path / "bucket", tmp_path / "back") == 0
    assert not verify(str(tmp_path / "back"), deep=True).problems


def test_the_command_keeps_the_text_and_show_lists_it(
    teacher_folder: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--task", "sst2", "--keep", "1,4,0.25", "--student-layers", 2, "--out", tmp_path)
    assert hsk("extract", teacher_folder, data, *options, "--keep-offsets") == 0
    root = tmp_path / "d1-l4-w0.25"
    shown = describe(str(root))
    assert shown.array_bytes["train/text"] > 0 and shown.arrays["train/offsets"].endswith("x2 int32")
    capsys.readouterr()
    assert hsk("show", root) == 0 and "train/text" in capsys.readouterr().out
    assert hsk("show", root, "--row", 3) == 0


def spoilt(store: Store, root: Path, path: str, place: tuple[Any, ...], value: int) -> Store:
    """The store with one number of an array made another, sealed again as a stranger can."""
    shutil.copytree(store.root, root)
    column = store.read(path, 0).copy()
    column[place] = value
    spec = store.plan.arrays[path]
    forge(root, {spec.key(path, 0): encode_shard(spec, 0, column)})
    return open_store(root)


STRANGE = [
    ("train/text", (0, 0), 0xFF, "the text"),
    ("train/text", (0, 0), 0x80, "the text"),
    ("train/n_bytes", (3, 0), -1, "the numbers of bytes"),
    ("train/n_bytes", (3, 0), 2**31 - 1, "the numbers of bytes"),
    ("train/n_bytes", (3, 0), 0, "the offsets"),
    ("train/n_tokens", (3,), 0, "the numbers of tokens"),
    ("train/n_tokens", (3,), -(2**31), "the numbers of tokens"),
    ("train/n_tokens", (3,), 2**31 - 1, "the numbers of tokens"),
    ("train/offsets", (3, 1, 1), 2**31 - 1, "the offsets"),
    ("train/offsets", (3, 1, 0), 2**31 - 1, "the offsets"),
    ("train/offsets", (3, 1, 0), -1, "the offsets"),
    ("train/offsets", (3, 1), -2, "the offsets"),
    ("train/offsets", (3, 1), 0, "the offsets"),
    ("train/hidden/token", (3, 0, 0), 63, "the positions of the kept tokens"),
    ("train/hidden/token", (3, 0, 0), -2, "the positions of the kept tokens"),
]


@pytest.mark.parametrize(("path", "place", "value", "what"), STRANGE)
def test_a_strangers_text_is_refused_where_it_cannot_be(
    path: str, place: tuple[Any, ...], value: int, what: str, stores: list[Store], tmp_path: Path
) -> None:
    store = spoilt(stores[2], tmp_path / "store", path, place, value)
    with pytest.raises(StoreError, match=rf"{what} of train cannot be right: the store is damaged$"):
        rows_from_store(store, "train", places={"hidden": (0,)}, tokenizer=byte_level(trim=True))


def test_a_strangers_text_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = int(stores[2].read_all("validation/n_bytes").sum())
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 4 * total})())
    assert not rows_from_store(stores[2], "validation").features
    with pytest.raises(StoreError, match="GiB of memory"):
        rows_from_store(stores[2], "validation", tokenizer=byte_level(trim=True))


@pytest.mark.real
def test_how_much_of_a_real_store_a_byte_level_student_can_learn(tmp_path: Path) -> None:
    """MiniLM's word pieces against a byte-level vocabulary made of the same sentences, at the paper's 1,9,0.1."""
    for split, rows in (("train", 240), ("dev", 20)):
        lines = (SHARED / f"data/sst2_small/{split}.tsv").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.tsv").write_text("".join(lines[: rows + 1]))
    (store,) = run(
        str(SHARED / "models/minilm-l6-sst2"), tmp_path, tmp_path / "stores", keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(3)]
    )
    lines = (SHARED / "data/sst2_small/train.tsv").read_text().splitlines()
    tokenizer = byte_level(trim=True, prefix=True, size=8000, texts=tuple(line.split("\t")[0] for line in lines[1:]))
    rows = rows_from_store(store, "train", places={"hidden": (0,)}, tokenizer=tokenizer)
    assert 0.6 < aligned_share(rows.features["hidden"]) < 0.95
