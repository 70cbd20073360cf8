"""Files, models and options as people have them: every command ends with success, or with one message that names what is wrong
and with nothing of a result. Never a traceback, never a hang, never a half-written output."""

import contextlib
import io
import json
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import hypothesis.strategies as st
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import typer.main
from hypothesis import HealthCheck, given, settings

from hskstore import cli
from hskstore.cli.training import distill_with_flags
from hskstore.models.load import load_classifier
from hskstore.store.verify import verify
from hskstore.text.tokenizers import load_tokenizer
from tests.conftest import hsk, make_bert, save_folder, sentences
from tests.faults import odd
from tests.faults.conftest import Campaign

SECONDS = 60
"""After which a command that works on two dozen rows counts as hung."""
MEMORY = 3 * 2**30
"""Bytes of addresses that it may ask for beside those of the process."""
LONGEST_MESSAGE = 3000


class HungError(BaseException):
    """A command is still at work."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Few seconds, and not the machine's memory."""

    def stop(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(folder: Path, *words: object) -> Ended:
    """A command in `folder`: how it ended, once it is sure that it ended well, or badly in the way that is promised."""
    before = contents(folder)
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        code = hsk(*words)
    err.seek(0)
    said = err.read()
    assert code in (0, 2), (code, said)
    if code == 2:
        messages = said.count("\nhsk: ") + said.startswith("hsk: ") + said.count("Usage: ")
        assert messages == 1, said
        assert "Traceback" not in said
        # A library that parses options tells again what was typed, however long.
        assert len(said) < LONGEST_MESSAGE or "Usage: " in said, said[:LONGEST_MESSAGE]
        after = contents(folder)
        if "is not finite at step" in said:  # a run that was on its way: its log stays, to be looked at
            after = {name: content for name, content in after.items() if name != "out" and not name.startswith("out/log")}
        assert after == before, ({*after} ^ {*before}, said)
    return Ended(code, said)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def tried(examples: int, check: Callable[..., None], *drawn: st.SearchStrategy[Any]) -> None:
    settings(max_examples=examples, suppress_health_check=list(HealthCheck))(given(*drawn)(check))()


# --- a sound world

TEXTS = [*sentences(17, seed=3), "a film that no WordLevel knows", "", "x" * 300]
ROWS = [{"sentence": text, "label": row % 2} for row, text in enumerate(TEXTS)]
TABLE = arrow.Table.from_pylist(ROWS)


def sound_files() -> dict[str, bytes]:
    file = io.BytesIO()
    parquet.write_table(TABLE, file)
    return {
        "tsv": "".join(["sentence\tlabel\n", *(f"{row['sentence']}\t{row['label']}\n" for row in ROWS)]).encode(),
        "csv": "".join(["sentence,label\n", *(f'"{row["sentence"]}",{row["label"]}\n' for row in ROWS)]).encode(),
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "json": json.dumps(ROWS, indent=1).encode(),
        "parquet": file.getvalue(),
    }


SOUND = sound_files()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a data set, a store and a student."""
    folder = tmp_path_factory.mktemp("sound")
    save_folder(make_bert(layers=2, hidden=16), folder / "teacher")
    save_folder(make_bert(layers=1, hidden=16, seed=1), folder / "student")
    (folder / "data").mkdir()
    for split in ("train", "dev"):
        (folder / "data" / f"{split}.tsv").write_bytes(SOUND["tsv"])
    assert hsk("extract", folder / "teacher", folder / "data", "--task", "sst2", "--out", folder, *KEEP, *LAYERS) == 0
    (folder / "d1-l4-w0.5").rename(folder / "store")
    return folder


KEEP, LAYERS = ("--keep", "1,4,0.5"), ("--student-layers", "1")
SHAPE = ("--layers", 1, "--hidden", 8, "--heads", 2, "--ffn", 8)
AS_SST2 = ("--task", "sst2")
AS_COLUMNS = ("--text", "sentence", "--label", "label")
AS_PAIRS = ("--text", "sentence", "--text", "label", "--label", "label")


def commands(model: object, data: object, how: tuple[str, ...]) -> list[tuple[object, ...]]:
    """Every command that reads a model and a data set."""
    return [
        ("finetune", model, data, *how, "--out", "out", "--epochs", 1),
        ("eval", model, data, *how),
        ("extract", model, data, *how, "--out", "out", *KEEP, *LAYERS),
        ("plan", model, data, *how, "--rate", 10, *KEEP, *LAYERS),
        ("student", "prune", model, data, *how, "--to", "2,16,8", "--out", "out"),
    ]


def assert_sound(out: Path) -> None:
    """What was written at `out` is a whole model, or whole stores."""
    if not out.exists():
        return
    stores = [path.parent for path in out.rglob("plan.json")]
    for store in stores:
        assert verify(str(store), deep=True).problems == ()
    if not stores:
        load_classifier(str(out))
        load_tokenizer(str(out))


# --- data


def damaged_data(draw: odd.Draw, kind: str) -> bytes:
    if kind == "parquet":
        return odd.damaged_parquet(draw, TABLE)
    if kind in ("json", "jsonl"):
        return {"json": odd.damaged_json, "jsonl": odd.damaged_json_lines}[kind](draw, SOUND[kind])
    return odd.damaged_bytes(draw, SOUND[kind])


def test_a_damaged_data_file_is_read_or_refused_in_one_message(world: Path, campaign: Campaign) -> None:
    began = time.monotonic()
    examples = campaign.tries(100, 2000)
    ends = {0: 0, 2: 0}

    def check(data: st.DataObject) -> None:
        draw = data.draw
        kind = draw(st.sampled_from([*SOUND]))
        content = damaged_data(draw, kind)
        gz = draw(st.integers(0, 4)) == 0
        with scratch() as folder:
            (folder / "data").mkdir()
            (folder / "data" / "dev.tsv").write_bytes(SOUND["tsv"])
            (folder / "data" / "train.tsv").write_bytes(SOUND["tsv"])
            split = draw(st.sampled_from(["train", "dev"]))
            (folder / "data" / f"{split}.tsv").unlink()
            file = folder / "data" / f"{split}.{kind}{'.gz' if gz else ''}"
            file.write_bytes(odd.packed(draw, content) if gz else content)
            how = draw(st.sampled_from([AS_SST2, AS_COLUMNS, AS_COLUMNS, AS_PAIRS]))
            model = world / "teacher"
            ended = run(folder, *draw(st.sampled_from(commands(model, draw(st.sampled_from(["data", str(file)])), how))))
            ends[ended.code] += 1
            if ended.code:
                assert any(name in ended.said for name in ("data", str(file), str(model), "--")), ended.said
            else:
                assert_sound(folder / "out")

    tried(examples, check, st.data())
    outcome = f"{ends[0]} read, {ends[2]} refused in one message, nothing half-written"
    campaign.record("data file of any format with bytes, lines, values, types or encoding changed", examples, outcome, began)


def test_a_damaged_saved_data_set_is_read_or_refused_in_one_message(world: Path, campaign: Campaign) -> None:
    import datasets

    began = time.monotonic()
    examples = campaign.tries(20, 600)
    ends = {0: 0, 2: 0}

    def check(data: st.DataObject) -> None:
        draw = data.draw
        with scratch() as folder:
            saved = datasets.DatasetDict({split: datasets.Dataset.from_list(ROWS) for split in ("train", "validation")})
            saved.save_to_disk(str(folder / "data"))
            files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
            file = draw(st.sampled_from(files))
            damage = odd.damaged_bytes if file.suffix == ".arrow" else odd.damaged_json
            content = damage(draw, file.read_bytes())
            file.write_bytes(content)
            ended = run(folder, *draw(st.sampled_from(commands(world / "teacher", "data", AS_COLUMNS))))
            ends[ended.code] += 1
            if ended.code:
                assert "data" in ended.said, ended.said
            else:
                assert_sound(folder / "out")

    tried(examples, check, st.data())
    outcome = f"{ends[0]} read, {ends[2]} refused in one message, nothing half-written"
    campaign.record("file of a save_to_disk folder damaged", examples, outcome, began)


# --- models


def test_a_damaged_model_folder_is_read_or_refused_in_one_message(world: Path, campaign: Campaign) -> None:
    began = time.monotonic()
    examples = campaign.tries(100, 2000)
    ends = {0: 0, 2: 0}
    files = ["config.json", "config.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    special = {"cls_token": "[CLS]", "unk_token": {"content": "[UNK]", "lstrip": False}, "additional_special_tokens": ["[X]"]}

    def check(data: st.DataObject) -> None:
        draw = data.draw
        with scratch() as folder:
            shutil.copytree(world / "teacher", folder / "model")
            file = folder / "model" / draw(st.sampled_from([*files, "model.safetensors"]))
            if file.name == "special_tokens_map.json":
                file.write_text(json.dumps(special))
            damage = odd.damaged_weights if file.suffix == ".safetensors" else odd.damaged_json
            file.write_bytes(damage(draw, file.read_bytes()))
            others = [
                ("student", "slice", "model", "--layers", "1", "--out", "out"),
                ("student", "show", "model"),
                ("student", "new", *SHAPE, "--vocab-from", "model", "--out", "out"),
                ("distill", world / "store", "--student", "model", "--method", "kd", "--epochs", 1, "--out", "out"),
                ("verify", world / "store", "--replay", 2, "--teacher", "model"),
                ("eval", "model", world / "store"),
            ]
            words = draw(st.sampled_from([*commands("model", world / "data", AS_SST2), *others]))
            ended = run(folder, *words)
            ends[ended.code] += 1
            if ended.code:
                assert any(name in ended.said for name in ("model", str(world / "store"), "--", "in train", "in validation")), (
                    ended.said
                )
            else:
                assert_sound(folder / "out")

    tried(examples, check, st.data())
    outcome = f"{ends[0]} read, {ends[2]} refused in one message, nothing half-written"
    campaign.record("field of a model's JSON files dropped, retyped or swapped, or its weights damaged", examples, outcome, began)


# --- options

SLOW = {"--engine", "--onnx", "--help", "-h"}
"""Other engines start processes, an export takes 10 seconds."""


def options_of() -> dict[tuple[str, ...], list[Any]]:
    """Every command's options."""
    found: dict[tuple[str, ...], list[Any]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*path, name))
        if not hasattr(command, "commands"):
            found[path] = [each for each in command.params if each.param_type_name == "option" and not SLOW & {*each.opts}]

    walk(typer.main.get_command(cli.app), ())
    alone = typer.Typer(add_completion=False)
    alone.command("distill")(distill_with_flags())
    walk(typer.main.get_command(alone), ("distill",))
    return found


OPTIONS = options_of()
BASE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("finetune",): ("teacher", "data", "--task", "sst2", "--out", "out", "--epochs", "1"),
    ("eval",): ("teacher", "data", "--task", "sst2"),
    ("extract",): ("teacher", "data", "--task", "sst2", "--out", "out", *KEEP, *LAYERS),
    ("plan",): ("teacher", "data", "--task", "sst2", *KEEP, *LAYERS, "--rate", "10"),
    ("distill",): ("store", "--student", "student", "--out", "out", "--epochs", "1"),
    ("show",): ("store",),
    ("verify",): ("store",),
    ("derive",): ("store", "--keep", "1,2,0.5", "--out", "out"),
    ("push",): ("store", "out"),
    ("pull",): ("store", "out"),
    ("methods",): (),
    ("student", "new"): ("bert-mini", "--vocab-from", "teacher", "--out", "out"),
    ("student", "slice"): ("teacher", "--layers", "1", "--out", "out"),
    ("student", "prune"): ("teacher", "data", "--task", "sst2", "--to", "2,16,8", "--out", "out"),
    ("student", "show"): ("student",),
    ("student", "export"): ("student", "--out", "out"),
}


def test_options_at_their_limits_are_followed_or_refused_in_one_message(world: Path, campaign: Campaign) -> None:
    began = time.monotonic()
    examples = campaign.tries(100, 2000)
    ends = {0: 0, 2: 0}

    def check(data: st.DataObject) -> None:
        draw = data.draw
        path = draw(st.sampled_from([*BASE]))
        words = list(BASE[path])
        given: list[str] = []
        for _ in range(draw(st.integers(1, 2))):
            option = draw(st.sampled_from(OPTIONS[path]))
            flag = draw(st.sampled_from(option.opts))
            given.append(flag)
            if flag in words:
                del words[words.index(flag) : words.index(flag) + 2]
            values = [] if option.is_flag else [draw(values_of(option))]
            words += [flag, *values] if draw(st.booleans()) or not values else [f"{flag}={values[0]}"]
        called = draw(st.sampled_from(["{}", "{}", "{}\udcff", "{} [é]\U0001f600"]))
        with scratch() as folder:
            for name in ("teacher", "student", "store", "data"):
                words = [called.format(name) if word == name else word for word in words]
                if name in BASE[path]:
                    shutil.copytree(world / name, folder / called.format(name))
            full = draw(st.sampled_from(["", "", "student", "store"]))
            if full:
                shutil.copytree(world / full, folder / "out")
            ended = run(folder, *path, *words)
            ends[ended.code] += 1
            if ended.code == 0 and full == "":
                assert_sound(folder / "out")

    tried(examples, check, st.data())
    outcome = f"{ends[0]} followed, {ends[2]} refused in one message, nothing half-written"
    campaign.record("one option or two of any command at the limits of its type, or beyond", examples, outcome, began)


def values_of(option: Any) -> st.SearchStrategy[str]:
    """Of the option's own type, or any."""
    kind = option.type_descriptor.annotation
    own = odd.ODD_NUMBERS if kind in (int, float) else get_args(kind) if get_origin(kind) is Literal else odd.ODD_WORDS
    return st.sampled_from(own) | st.sampled_from(odd.ODD_WORDS)
