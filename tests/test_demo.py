"""The demo's corpus is what it says it is."""

from itertools import islice
from pathlib import Path

import pytest

from hskstore.errors import OptionError
from hskstore.explore.demo import corpus_tokenizer, run_demo, sentences


def test_sentences_are_distinct_half_of_them_broken_and_a_function_of_the_seed() -> None:
    rows = list(islice(sentences(7), 2000))
    assert len({text for text, _ in rows}) == 2000
    assert sum(label for _, label in rows) == 1000
    assert rows == list(islice(sentences(7), 2000))
    assert rows != list(islice(sentences(8), 2000))


def test_every_word_is_known() -> None:
    tokenizer = corpus_tokenizer()
    for text, _ in islice(sentences(7), 500):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_acceptable_sentences_agree() -> None:
    for text, label in islice(sentences(7), 500):
        words = text.split()
        if label and words[0] in ("these", "many", "several"):
            assert "himself" not in words and "herself" not in words, text


def test_a_place_that_is_not_empty_is_refused_as_a_path_or_a_string(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, str(tmp_path)):
        with pytest.raises(OptionError, match="is not empty"):
            run_demo(out)
