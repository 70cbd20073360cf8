"""What an extraction writes is the same by every route, and, of a teacher that no rounding can move, on every processor."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.records import KEEPS, STRATEGIES, compare, first_rows, known
from hskstore.models.observe import Sight
from hskstore.stage_one.teacher import load_teacher
from tests.conftest import SHARED, WORDS, hsk, make_bert, save_folder

EIGHTHS = (1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12, 13)
"""Every hidden vector of the exact teacher is some order of these and their negatives, over 8: mean 0, mean square 1."""

EXACT: dict[str, list[str]] = {name: [word.replace("f32", "f16") for word in words] for name, words in STRATEGIES.items()}
"""As float32 the states have the last bits of one processor; the encodings that are made of f16 have not."""

DIGESTS: dict[str, dict[str, str]] = {
    "f16": {
        "d1-l9-w0.1": "95343de1fe996b5185b34fe959721737bd98f322df9d4ba07dc67eefec24b60e",
        "d3-l8-w0.2": "9a3d4e87ccaec61828c7d474323022f7fdd344fbd3829d5c3a242817efc6051b",
    },
    "q8": {
        "d1-l9-w0.1": "a9d83beefac2ee28f0f0ffa12c4927581442dbcad15b8f2bb89f9ab7d604c4bd",
        "d3-l8-w0.2": "68dfc759c53d41ec843534246b7936c03b55a67502edbc489bc0b9651acf6706",
    },
    "q4": {
        "d1-l9-w0.1": "dd3a7258874a5db5ac920c7517fc33a969cb1c169392b1edc368e7599a57728d",
        "d3-l8-w0.2": "8fe4efdc1dc77c13a8bf887449bcd53a075ea8f9e153b6f1809866cc6009b87c",
    },
    "left, uniform, f32": {
        "d1-l9-w0.1": "6bca3643806bb268e99a6e348c3628270f45cbd0a71f2861075fba862e494a08",
        "d3-l8-w0.2": "4a93ca794297ef4e2e89fc49c136d0f6cbf90754a726f3bef6adbec925a856cb",
    },
    "all, with sep, offsets": {
        "d1-l9-w0.1": "572dd168517fc1c8c9c3dce69bc5a6eb8ed1dd7426fe3ab17b7f0e510b69282d",
        "d3-l8-w0.2": "6926fbe1b85e720ffff3af4771b54109c01c91fe48265f96a5838b3318401cdb",
        "dall-lall-wall": "fa2cd2f706608ffad51cbd643f827238c46d62a959177f8a55ccea50e4dc78c0",
    },
    "random, eq5": {
        "d1-l9-w0.1": "93dc3c9582c60a6c2d086d11778f15b8e44c73e26a180f653f01504d3a0e812f",
        "d3-l8-w0.2": "eae214aab044ce1a33de17a43f4a8f8c744f25120c850781d6e747b45da60fd1",
    },
    "raw, same layer": {
        "d1-l9-w0.1": "95d9fc1a29759d06f245fddbb7aa762a5328e79bdfbe91b5a9ff6550775700f7",
        "d3-l8-w0.2": "845059436c994c75104404f03dee68cf2f8257641962c3a8b2b2152b4ea03b47",
    },
}
"""With the libraries of constraints.txt: another zstd may write other bytes."""


def exact_bert() -> Any:
    """A BERT of 4 layers whose numbers are small multiples of an eighth, so that no order of adding and no last bit matters.

    LayerNorm finds mean 0 and variance 1 and leaves a vector as it is, a layer's FFN (of ReLU) changes the order of the
    coordinates, and its attention reads no value: its heads see one number of each token, by more or less. So a rounding
    error of LayerNorm is all there is, and that is gone in f16. Logits are the head's bias.
    """
    bert = make_bert(hidden_act="relu")
    rng = np.random.default_rng(0)
    one = np.eye(32)
    vector = np.array([*EIGHTHS, *(-eighth for eighth in EIGHTHS)]) / 8

    def fill(parameter: torch.Tensor, numbers: Any) -> None:
        parameter.copy_(torch.tensor(np.asarray(numbers), dtype=torch.float32))

    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            parameter.fill_(1 if name.endswith("LayerNorm.weight") else 0)
        words = bert.bert.embeddings.word_embeddings.weight
        fill(words, [rng.permutation(vector) for _ in range(len(words))])
        for layer in bert.bert.encoder.layer:
            fill(layer.attention.self.query.bias[::8], [1, 2, 1, 3])
            fill(layer.attention.self.key.weight[::8], rng.integers(-32, 33, 32) / 32)
            move = one[rng.permutation(32)] - one
            fill(layer.intermediate.dense.weight, np.concatenate([one, -one]))
            fill(layer.output.dense.weight, np.concatenate([move, -move], axis=1))
        fill(bert.classifier.bias, [-0.5, 0.25])
    return bert


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The exact teacher, and rows without a word twice: two tokens would have one score."""
    folder = tmp_path_factory.mktemp("exact")
    rng = np.random.default_rng(1)
    for name, rows in (("train", 600), ("dev", 20)):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 14), replace=False)) for _ in range(rows)]
        lines = [f"{text}\t{rng.integers(2)}\n" for text in texts]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    return save_folder(exact_bert(), folder / "teacher"), str(folder)


def command(teacher: str, data: str, out: Path, words: list[str]) -> list[str]:
    options = ["--task", "sst2", "--student-layers", "3", *KEEPS, *words, "--out", str(out), "--device", "cpu", "--json"]
    return ["extract", teacher, data, *options]


def digests(printed: str) -> dict[str, str]:
    """By the store's name."""
    return {Path(store["root"]).name: store["digest"] for store in json.loads(printed)}


def test_the_exact_teachers_numbers_are_far_from_where_rounding_would_tell(exact: tuple[str, str]) -> None:
    teacher = load_teacher(exact[0], device=torch.device("cpu"))
    texts = [line.split("\t")[0] for line in Path(exact[1], "train.tsv").read_text().splitlines()[1:]]
    layers = frozenset(range(1, teacher.layers + 1))
    seen = set()
    for text in texts[:100]:
        batch = teacher.tokenizer(text, return_tensors="pt")
        inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].bool())
        for score in ("probability", "raw"):
            rows = {"cls_row": layers} if score == "probability" else {"raw_cls_row": layers}
            found = teacher.forward(*inputs, Sight(layers | {0}, **rows))
            for hidden in found.hidden.values():
                expected = torch.tensor([*EIGHTHS, *(-eighth for eighth in EIGHTHS)]).sort().values / 8
                assert (hidden.sort().values - expected).abs().max() < 1e-5
            for token_score in (found.cls_row or found.raw_cls_row).values():
                ordered = token_score[0].sort().values
                assert (ordered.diff() / ordered[1:].abs().clamp(min=1e-3)).min() > 1e-3
        seen.add(tuple(found.hidden[4][0, 1].round(decimals=3).tolist()))
    assert len(seen) > 10, "and yet tokens differ"


@pytest.mark.parametrize("strategy", EXACT)
def test_a_teacher_of_exact_numbers_has_one_digest_on_every_processor(
    strategy: str, exact: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hsk(*command(*exact, tmp_path, EXACT[strategy])) == 0
    assert digests(capsys.readouterr().out) == DIGESTS[strategy]


@pytest.mark.long
def test_a_teacher_of_exact_numbers_has_one_digest_with_other_instructions(exact: tuple[str, str], tmp_path: Path) -> None:
    """And with that of a processor that has no AVX: this one's other code paths."""
    poor = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    words = [sys.executable, "-m", "hskstore", *command(*exact, tmp_path, EXACT["q8"])]
    done = subprocess.run(words, env=os.environ | poor, capture_output=True, text=True, check=True)
    assert digests(done.stdout) == DIGESTS["q8"]


ROUTES: dict[str, list[tuple[dict[str, str], list[str]]]] = {
    "two ranks": [({"RANK": rank, "WORLD_SIZE": "2"}, ["--engine", "static"]) for rank in "10"],
    "two processes": [({}, ["--engine", "procs", "--workers", "2"])],
}
"""The commands of each, one after the other: their environment and their options."""

SPAWNED = ("all, with sep, offsets", "random, eq5")
"""Processes take long to start: those strategies whose workers are handed most, the text, and numbers drawn by row."""


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize(
    ("strategy", "route"),
    [*((strategy, "two ranks") for strategy in STRATEGIES), *((strategy, "two processes") for strategy in SPAWNED)],
)
def test_a_real_teachers_stores_are_the_same_by_every_route(
    strategy: str, route: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, data = str(SHARED / "models/minilm-l6-sst2"), str(first_rows(SHARED / "data/sst2_small", 60, tmp_path / "data"))
    assert hsk(*command(teacher, data, tmp_path / "alone", STRATEGIES[strategy])) == 0
    alone = digests(capsys.readouterr().out)
    for environment, options in ROUTES[route]:
        capsys.readouterr()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert hsk(*command(teacher, data, tmp_path / "together", [*STRATEGIES[strategy], *options])) == 0
    assert digests(capsys.readouterr().out) == alone
    assert len(alone) == 2 + ("all" in STRATEGIES[strategy]) and None not in alone.values()


def test_a_record_that_differs_or_is_gone_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare({"f16": "aa", "kd": "bb"}, {"f16": "aa", "kd": "bb"}, "HEAD") == 0
    assert "all equal" in capsys.readouterr().out
    assert compare({"f16": "aa", "kd": "bb"}, {"f16": "cc"}, "HEAD") == 1
    told = capsys.readouterr().out
    assert "| f16 | aa | cc | DIFFERS |" in told and "| kd | bb | none | DIFFERS |" in told


def test_records_of_another_processor_or_of_other_data_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"processor": "an old one", "instructions": "AVX2", "torch": "2"}
    made: dict[str, Any] = {"command": "this", "code": "abc", "machine": machine, "inputs": {"train.tsv": "00"}}
    file = tmp_path / "records.json"
    file.write_text(json.dumps(made | {"records": {"f16": "aa"}}))
    parser = argparse.ArgumentParser()
    assert known(str(file), made, parser) == {"f16": "aa"}
    assert known("HEAD", made, parser) is None
    assert known(str(file), made | {"machine": machine | {"torch": "3"}}, parser) == {"f16": "aa"}
    assert "torch was 2, and is 3" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        known(str(file), made | {"machine": machine | {"processor": "a new one"}}, parser)
    assert "holds for the processor an old one, and this is a new one" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        known(str(file), made | {"inputs": {"train.tsv": "01"}}, parser)
