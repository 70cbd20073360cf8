"""Layers that see a window of a row rank no tokens where rows are longer: the nearest layer that sees all of them does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.features.view import derive_view, view
from hskstore.models.run import attention_windows
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.extract import extract
from hskstore.stage_one.planning import prepare
from hskstore.store import Store, open_store
from hskstore.store.derive import derive
from hskstore.store.features import ClsRow
from hskstore.store.plan import Plan
from tests.conftest import WORDS, make_bert, save_folder, write_tsv

SIZES: dict[str, Any] = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_labels": 2,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WINDOW = 4
KEEP, STRATEGY = Keep("all", 3, 0.5), Strategy(3, top_layer=6)
LOCAL = ["sliding_attention"]
GLOBAL = ["full_attention"]


def modernbert(folder: Path, kinds: list[str], window: int = WINDOW) -> str:
    torch.manual_seed(0)
    config = tf.ModernBertConfig(**SIZES, local_attention=2 * window, layer_types=kinds, initializer_range=0.2)
    return save_folder(tf.ModernBertForSequenceClassification(config), folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 40, seed=1)
    write_tsv(folder / "dev.tsv", 8, seed=2)
    return str(folder)


@pytest.fixture(scope="module")
def every_third(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As ModernBERT has them: layers 1 and 4 see whole rows."""
    return modernbert(tmp_path_factory.mktemp("teacher"), 2 * (GLOBAL + 2 * LOCAL))


Made = Callable[..., Store]


@pytest.fixture
def made(every_third: str, data: str, tmp_path: Path) -> Made:
    def make(name: str, *keeps: Keep, teacher: str = every_third, strategy: Strategy = STRATEGY, **options: Any) -> Store:
        (store,) = extract(teacher, data, out=tmp_path / name, keeps=keeps, strategies=[strategy], task="sst2", **options)
        return open_store(store.root)

    return make


def test_the_nearest_layer_that_sees_whole_rows_ranks_them_and_it_is_said(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    store = made("store", KEEP)
    hidden = store.plan.hidden
    assert hidden is not None
    assert [(pair.teacher, pair.rank) for pair in hidden.pairs] == [(0, 1), (2, 1), (4, 4), (6, 4)]
    assert "[CLS] attends to the next 4 tokens alone, and a row has" in caplog.text and "to all, 1, 4" in caplog.text
    ids, token = store.read_all("train/input_ids"), store.read_all("train/hidden/token")
    longest = np.argmax(store.read_all("train/n_tokens"))
    assert token[longest].max() > WINDOW and ids[longest].any()


@pytest.mark.parametrize("rank", ["attention", "attention-with-sep"])
def test_a_view_of_a_rich_store_and_a_cut_rank_as_an_extraction_does(rank: Any, made: Made, tmp_path: Path) -> None:
    strategy = Strategy(3, top_layer=6, rank=rank)
    rich, direct, smaller = made("rich", rich=True), made("all", KEEP, strategy=strategy), Keep(2, 2, 0.5)
    attention = rich.plan.features["cls_row"]
    assert isinstance(attention, ClsRow) and attention.layers == attention.ranking == (1, 4)
    assert np.isfinite(rich.read_all("train/cls_row/raw")).all()
    assert derive_view(view(rich, KEEP, strategy), tmp_path / "cut").digest == direct.digest
    assert derive(direct.root, tmp_path / "smaller", keep=smaller).digest == made("few", smaller, strategy=strategy).digest


def test_a_rich_store_that_lost_a_layer_ranks_by_no_other(made: Made, tmp_path: Path) -> None:
    rich = made("rich", rich=True)
    states = tuple(range(7))
    less = derive(rich.root, tmp_path / "less", layers={"states": states, "cls_row": (1,)})
    with pytest.raises(OptionError, match="holds no attention of teacher layer 4"):
        view(open_store(less.root), KEEP, STRATEGY)


def planned(teacher: str, data: str, folder: Path, asked: Asked, **options: Any) -> Plan:
    folder.mkdir()
    ready = prepare(teacher, data, folder, asked, device=torch.device("cpu"), task="sst2", **options)
    (plan,) = ready.plans.values()
    return plan


def ranks(plan: Plan) -> list[int | None]:
    assert plan.hidden is not None
    return [pair.rank for pair in plan.hidden.pairs]


@pytest.mark.parametrize("rank", ["left", "random"])
def test_where_no_attention_ranks_the_plan_is_what_it_was(
    rank: Any, every_third: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked([KEEP], [Strategy(3, top_layer=6, rank=rank)])
    assert ranks(planned(every_third, data, tmp_path / "rows", asked)) == [1, 2, 4, 6]
    assert "[CLS]" not in caplog.text


def test_a_window_that_no_row_is_longer_than_is_none(data: str, tmp_path: Path) -> None:
    """The longest row has 15 tokens, and [CLS] sees the 14 behind it."""
    wide, narrow = (modernbert(tmp_path / f"of {window}", GLOBAL + 5 * LOCAL, window) for window in (14, 13))
    asked = Asked([KEEP], [STRATEGY])
    plan = planned(wide, data, tmp_path / "wide", asked)
    assert plan.splits["train"].longest == 15 and ranks(plan) == [1, 2, 4, 6]
    assert ranks(planned(narrow, data, tmp_path / "narrow", asked)) == [1, 1, 1, 1]
    assert ranks(planned(narrow, data, tmp_path / "cut", asked, max_length=14)) == [1, 2, 4, 6]


def test_a_teacher_of_local_layers_alone_ranks_nothing(data: str, tmp_path: Path) -> None:
    teacher = modernbert(tmp_path / "local", 6 * LOCAL)
    for name, asked in (("keep", Asked([KEEP], [STRATEGY])), ("rich", Asked([], [STRATEGY], rich=True))):
        with pytest.raises(OptionError, match="in no layer of this teacher does the first token attend to a whole row"):
            planned(teacher, data, tmp_path / name, asked)
    assert planned(teacher, data, tmp_path / "left", Asked([KEEP], [Strategy(3, rank="left")])).hidden


def test_which_layers_are_local_stands_in_the_config() -> None:
    assert attention_windows(make_bert(layers=2).config) == (None, None)
    modern = tf.ModernBertConfig(**SIZES, local_attention=128)
    assert attention_windows(modern) == (None, 64, 64, None, 64, 64)
    other = tf.Qwen3Config(num_hidden_layers=2, layer_types=["full_attention", "full_attention"])
    assert attention_windows(other) == (None, None)
