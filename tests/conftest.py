"""A tiny world to test in: a word-level tokenizer, a randomly initialised teacher, and a small data set on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers of several threads each would wait for one another's; before torch counts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hskstore import cli

# A slow or busy machine is no failure: examples have no time limit. And they are the same at any hour, so that a test that fails
# at one seed in a hundred refuses nobody's work; `make faults` draws new ones.
settings.register_profile("the same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("the same")

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORDS = (
    "the a cat dog bird sees hears likes old young red small big never often today runs sleeps and or".split()  # noqa: SIM905
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FILE", help="Try every fault at its full count, and write the table to FILE.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--faults") is not None:
        settings.load_profile("new")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where ../shared is not there, what needs it is skipped, and says so; the project's CI then fails."""
    missing = [part for part in ("data", "models") if not (SHARED / part).is_dir()]
    if missing:
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=f"needs the real data and models in {SHARED}"))


def pytest_collection_finish() -> None:
    """What the libraries made when they were loaded stays: every gc.collect(), as accelerate calls it, need not walk it again."""
    gc.freeze()


def hsk(*words: object) -> int:
    """Run a command in this process; its exit code."""
    before = sys.argv
    sys.argv = ["hsk", *map(str, words)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def sealed_tree(folder: Path) -> dict[str, str]:
    """Every sealed byte of a store, by file: receipts tell who and when, so they differ."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "units" not in path.relative_to(folder).parts
    }


def make_tokenizer(words: list[str] = WORDS) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_bert(*, layers: int = 4, hidden: int = 32, labels: int = 2, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.2,
        **options,
    )
    return BertForSequenceClassification(config)


def save_folder(model: Any, folder: Path, tokenizer: Any = None) -> str:
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


def sentences(rows: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 14))) for _ in range(rows)]


def write_tsv(path: Path, rows: int, seed: int) -> None:
    lines = [f"{text}\t{int('cat' in text.split())}" for text in sentences(rows, seed)]
    path.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(make_bert(), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 700, seed=1)
    write_tsv(folder / "dev.tsv", 60, seed=2)
    return str(folder)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on the loopback, its buckets in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


BUCKET = itertools.count()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which the environment leads to."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket-{next(BUCKET)}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"
