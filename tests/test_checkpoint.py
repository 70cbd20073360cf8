"""A run that is killed at any of its writes goes on to the very same student; a checkpoint that cannot be used says so."""

import builtins
import contextlib
import io
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.methods import Kd, Mud
from hskstore.models.folder import refuse_existing_model, save_model
from hskstore.stage_one.extract import extract
from hskstore.stage_two.card import Distilled
from hskstore.stage_two.checkpoint import RUN_VERSION, Checkpoint, PhaseResult
from hskstore.stage_two.distill import distill
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.recipe import Recipe, read_recipe
from hskstore.store import Store, open_store
from tests.conftest import make_bert, make_tokenizer, save_folder, sentences
from tests.test_trainer import equal, run, settings


class Kills:
    """What processes leave that are killed at one of the writes below a folder: a copy of it as it is before each write.

    Of a write that can be done by half there is a second copy, with half of it done.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self.left: dict[str, Path] = {}
        self._folder, self._copies = folder, copies

    def note(self, what: str, where: Any, half: Callable[[Path], object] | None = None) -> None:
        """To be called before a write; `half` does half of it to the file or folder that it is given."""
        if isinstance(where, int):  # a descriptor
            return
        path = Path(os.fsdecode(where))
        if self._folder not in (path, *path.parents):
            return
        if (what == "mkdir" and path.is_dir()) or (what == "rmtree" and not path.exists()):
            return  # nothing is written
        inside = path.relative_to(self._folder)
        self._copy(f"{what} {inside}")
        if half is not None:
            half(self._copy(f"half of {what} {inside}") / inside)

    def _copy(self, name: str) -> Path:
        copy = self._copies / str(len(self.left))
        self.left[f"{len(self.left)}: {name}"] = copy
        if self._folder.exists():
            shutil.copytree(self._folder, copy)
        return copy


@contextlib.contextmanager
def kills(folder: Path, copies: Path) -> Iterator[dict[str, Path]]:
    """What is left by each kill, by its name; every way in which Python and safetensors write is watched meanwhile."""
    seen = Kills(folder, copies)
    original_open, original_rmtree, original_save = io.open, shutil.rmtree, safetensors.torch.serialize_file

    def open_it(file: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            seen.note("open", file, half_of_open)
        return original_open(file, mode, *given, **options)

    def half_of_open(file: Path) -> None:
        with original_open(file, "wb") as stream:
            stream.write(b'{"settings": ')

    def rmtree(path: Any, *given: Any, **options: Any) -> None:
        seen.note("rmtree", path, lambda folder: next(folder.iterdir(), folder / "none").unlink(missing_ok=True))
        original_rmtree(path, *given, **options)

    def save(tensors: Any, file: Any, **options: Any) -> None:
        def half_of_save(copy: Path) -> None:
            original_save(tensors, copy, **options)
            os.truncate(copy, copy.stat().st_size // 2)

        seen.note("save", file, half_of_save)
        original_save(tensors, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink"):
            original = getattr(os, name)

            def guarded(path: Any, *given: Any, name: str = name, original: Any = original, **options: Any) -> Any:
                if options.get("dir_fd") is None:  # else it is a part of rmtree
                    seen.note(name, path)
                return original(path, *given, **options)

            patch.setattr(os, name, guarded)
        patch.setattr(io, "open", open_it)
        patch.setattr(builtins, "open", open_it)
        patch.setattr(shutil, "rmtree", rmtree)
        patch.setattr(safetensors.torch, "serialize_file", save)
        yield seen.left


# --- killed


@pytest.fixture(autouse=True)
def neither_tensorboard_nor_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run reads what the one writes when it likes, and the others take most of the time."""
    monkeypatch.setattr("hskstore.stage_two.trackers._installed", frozenset)
    monkeypatch.setattr("hskstore.text.metrics.standard_errors", lambda *_: {"spearman": 0.0, "pearson": 0.0})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store of 60 rows to train on and 40 to score on, and a student."""
    folder = tmp_path_factory.mktemp("world")
    lines = [f"{text},{len(text)}" for text in sentences(100, seed=1)]
    (folder / "data.csv").write_text("sentence,label\n" + "\n".join(lines) + "\n")
    teacher = save_folder(make_bert(labels=1), folder / "teacher")
    student = save_folder(make_bert(layers=2, hidden=16, labels=1, seed=1), folder / "student")
    columns: dict[str, Any] = {"text": ["sentence"], "label": "label", "validation": "0.4"}
    (made,) = extract(teacher, str(folder / "data.csv"), out=folder, keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], **columns)
    return open_store(made.root), student


def train(world: tuple[Store, str], out: Path) -> Distilled:
    """Two phases of two steps an epoch: hidden states, then three epochs with a dev score each."""
    store, student = world
    recipe = Recipe(student, Mud(), epochs=(1, 3), batch_size=(30,), lr=(3e-2,), precision="fp32", seed=2)
    return distill(store, recipe, out=out)


def without_times(results: list[PhaseResult]) -> list[PhaseResult]:
    return [replace(result, seconds=0, waited=0, scored=0) for result in results]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


@pytest.mark.long
def test_a_run_killed_at_any_of_its_writes_goes_on_to_the_same_student(world: tuple[Store, str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with kills(whole, tmp_path) as left:
        expected = without_times(train(world, whole).phases)
    assert expected[1].best == expected[1].scores[1], "a run whose first or last weights are the best would show less"
    finished = 0
    for name, out in left.items():
        if (out / "model.safetensors").exists():
            finished += 1
            with pytest.raises(OptionError, match="already holds a model"):
                train(world, out)
            assert names(out) >= names(whole), name
        else:
            assert without_times(train(world, out).phases) == expected, name
            assert names(out) == names(whole), name
        assert weights(out) == weights(whole), name
    assert len(left) > 50 and 0 < finished < 7


def test_the_best_weights_are_those_of_the_score_that_the_state_tells(tmp_path: Path) -> None:
    """Also where a run that goes on scores otherwise, as on another machine, or has no time to come as far as the first."""
    phases, expected = settings(Kd(), 18), run(tmp_path / "short", Kd(), phases=settings(Kd(), 18), scores=[0.5, 0.4, 0.3])[0]
    with kills(tmp_path / "run", tmp_path) as left:
        run(tmp_path / "run", Kd(), phases=phases, scores=[0.5, 0.8, 0.9])
    found = 0
    for name, out in left.items():
        state = out / "checkpoint" / "state.json"
        if state.exists() and (json.loads(state.read_text())["best"] or {}).get("step") == 6:
            found += 1
            resumed, _ = run(out, Kd(), phases=phases, scores=[0.4, 0.3])
            assert equal(resumed, expected), name
    assert found > 6


def test_a_run_killed_again_and_again_ends_all_the_same(world: tuple[Store, str], tmp_path: Path) -> None:
    train(world, tmp_path / "whole")
    out = tmp_path / "run"
    deaths = 0
    for write in itertools.count(10, 4):  # which a process does not live to see
        with kills(out, tmp_path / f"copies{write}") as left:
            train(world, out)
        killed = list(left.values())[write]
        if (killed / "model.safetensors").exists():
            break
        shutil.rmtree(out)
        killed.rename(out)
        deaths += 1
    assert deaths > 2 and weights(out) == weights(tmp_path / "whole")


def module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("make", [make_bert, module])
def test_a_model_whose_saving_was_cut_short_is_no_model_until_its_weights_have_come(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    with kills(whole, tmp_path) as left:
        save_model(make(), make_tokenizer(), whole, card="card", result={})
    moves = [name for name in left if ": replace" in name]
    assert moves[-1].endswith("model.safetensors")
    for name, out in left.items():
        if list(out.glob("*.safetensors")):
            with pytest.raises(OptionError, match="already holds a model"):
                refuse_existing_model(out)
            assert names(out) >= names(whole), name
        else:
            refuse_existing_model(out)
            save_model(make(), make_tokenizer(), out, card="card", result={})
            assert names(out) == names(whole), name
        assert weights(out) == weights(whole), name


@pytest.mark.parametrize("at", range(5))
def test_ctrl_c_while_a_model_is_saved_leaves_none_that_would_be_refused(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, move = [], os.replace

    def stop(*given: Any) -> None:
        if len(moved) == at:
            raise KeyboardInterrupt
        moved.append(given)
        move(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in ("replace", "rename"):
            patch.setattr(os, name, stop)
        save_model(make_bert(), make_tokenizer(), tmp_path, card="card")
    assert len(list(tmp_path.iterdir())) == at
    refuse_existing_model(tmp_path)
    save_model(make_bert(), make_tokenizer(), tmp_path, card="card")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "model.onnx"])
def test_weights_of_any_kind_are_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OptionError, match="already holds a model: choose another --out, or delete it"):
        refuse_existing_model(tmp_path)


# --- finished


def test_a_finished_run_says_how_it_goes_on_and_so_it_does(world: tuple[Store, str], tmp_path: Path) -> None:
    store, student = world
    first = tmp_path / "first"
    distill(store, Recipe(student, Kd(), epochs=(1,), batch_size=(30,)), out=first, device="cpu")
    before = weights(first)
    with pytest.raises(OptionError) as refused:
        distill(store, Recipe(student, Kd(), epochs=(2,), batch_size=(30,)), out=first, device="cpu")
    assert f"more epochs are a run of their own: --student {first} goes on" in str(refused.value)
    assert f"--recipe {first}/recipe.toml --epochs ..." in str(refused.value)
    assert weights(first) == before
    on = distill(store, Recipe(str(first), Kd(), epochs=(1,), batch_size=(30,), lr=(1e-9,)), out=tmp_path / "on", device="cpu")
    again = replace(Recipe.of(read_recipe(first / "recipe.toml")), epochs=(2,))
    anew = distill(store, again, out=tmp_path / "anew", device="cpu")
    assert [on.phases[0].steps, anew.phases[0].steps] == [2, 4]
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "on", "anew")]
    close = [all(torch.allclose(one, each[name], atol=1e-6) for name, one in tensors[0].items()) for each in tensors[1:]]
    assert close == [True, False], "the one goes on from where the first ended, the other does not"


def test_a_finished_teacher_says_how_it_goes_on(tmp_path: Path) -> None:
    save_model(make_bert(), make_tokenizer(), tmp_path, result={})
    with pytest.raises(OptionError, match=f"name {tmp_path} as MODEL to go on from it"):
        finetune(str(tmp_path), "data", out=tmp_path)


# --- unusable


def stopped(out: Path) -> Path:
    """The checkpoint of a run that Ctrl-C ended in its second epoch, whose first was scored."""

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 16 * 8:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(out, Kd(), watch=stop, phases=settings(Kd(), 12))
    return out / "checkpoint"


def go_on(out: Path) -> Any:
    return run(out, Kd(), phases=settings(Kd(), 12), scores=[0.1])


def test_a_checkpoint_holds_no_more_than_its_state_names(tmp_path: Path) -> None:
    kept = stopped(tmp_path)
    assert names(kept) == {"state.json", "weights-0-6.safetensors", "weights-0-8.safetensors", "optimizer-0-8.safetensors"}
    whole, _ = run(tmp_path / "whole", Kd(), phases=settings(Kd(), 12), scores=[0.5, 0.1])
    resumed, (result,) = go_on(tmp_path)
    assert equal(whole, resumed) and result.best == {"step": 6, "accuracy": 0.5}


def changed(text: str, **fields: Any) -> str:
    return json.dumps({name: value for name, value in (json.loads(text) | fields).items() if value is not None})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\0" * len(text),
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "17",
        lambda text: "{}",
        lambda text: json.dumps({"settings": "{}"}),
        lambda text: changed(text, check=None),
        lambda text: changed(text, more=1),
        lambda text: changed(text, settings="no JSON"),
        lambda text: changed(text, settings=[]),
        lambda text: changed(text, step="8"),
        lambda text: changed(text, phase=99),
        lambda text: changed(text, best={"step": 7, "accuracy": 0.5}),
        lambda text: changed(text, done=[{}]),
        lambda text: b"\xff" + text.encode(),
    ],
)
def test_a_torn_or_foreign_state_is_named_and_so_is_the_way_out(damage: Callable[[str], str | bytes], tmp_path: Path) -> None:
    state = stopped(tmp_path) / "state.json"
    made = damage(state.read_text())
    state.write_bytes(made if isinstance(made, bytes) else made.encode())
    with pytest.raises(OptionError) as refused:
        go_on(tmp_path)
    assert str(refused.value).startswith(f"{state} is missing, damaged, or not what this version of hsk writes")
    assert f"delete {tmp_path / 'checkpoint'} to begin it anew, or choose another --out" in str(refused.value)


def test_a_state_of_other_fields_is_refused_though_its_checksum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hskstore.stage_two.checkpoint.asdict", lambda state: {**vars(state), "momentum": 1, "done": []})
        state = stopped(tmp_path) / "state.json"
    with pytest.raises(OptionError, match=f"{state} is"):
        go_on(tmp_path)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def other_shape(file: Path) -> None:
    save_file({name: torch.zeros(*tensor.shape, 1) for name, tensor in load_file(file).items()}, file)


def other_type(file: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)


def other_names(file: Path) -> None:
    save_file({f"{name}s": tensor for name, tensor in load_file(file).items()}, file)


def one_less(file: Path) -> None:
    save_file(dict(list(load_file(file).items())[1:]), file)


@pytest.mark.parametrize("damage", [Path.unlink, cut, other_shape, other_type, other_names, one_less])
@pytest.mark.parametrize("name", ["weights-0-6", "weights-0-8", "optimizer-0-8"])
def test_tensors_that_are_missing_damaged_or_anothers_are_named_before_a_step_is_made(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    file = stopped(tmp_path) / f"{name}.safetensors"
    damage(file)
    with pytest.raises(OptionError, match="is missing, damaged, or not what this version of hsk writes") as refused:
        run(tmp_path, Kd(), phases=settings(Kd(), 12), watch=lambda *_: pytest.fail("it went on"))
    assert str(refused.value).startswith(str(file))


def test_what_the_run_that_stands_there_was_set_beyond_this_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds an unfinished run that differs in its data, loader, "):
        Checkpoint(stopped(tmp_path)).read_state(json.dumps({"version": RUN_VERSION, "seed": 0}))
