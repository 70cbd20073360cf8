"""Where a training run stands, kept so that the same run can go on: safetensors and JSON in one folder."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hskstore.errors import HskError, OptionError


@dataclass
class RunState:
    """Where a run stands: everything a resumed run needs beyond tensors."""

    settings: str
    phase: int = 0
    step: int = 0
    cuts: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    recent: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    done: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint:
    """A folder of safetensors and JSON, replaced whole: a crash leaves the last one or the one before it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old = folder.with_name("checkpoint.old")
        if self._old.exists() and not folder.exists():  # a crash between the two renames of `write`
            self._old.rename(folder)

    def read_state(self, settings: str) -> RunState:
        """Where a run with these settings stands: at its start, if nothing is here."""
        path = self._folder / "state.json"
        if not path.exists():
            return RunState(settings)
        state = RunState(**json.loads(path.read_text()))
        if state.settings != settings:
            mine, theirs = json.loads(state.settings), json.loads(settings)
            differ = ", ".join(name for name in theirs if mine.get(name) != theirs[name])
            raise OptionError(
                f"{self._folder.parent} holds an unfinished run that differs in its {differ}: give the same options to go"
                " on with it, delete the folder, or choose another --out"
            )
        return state

    def write(self, state: RunState, learner: nn.Module, optimizer: torch.optim.AdamW) -> None:
        tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
        for index, parameter in enumerate(_parameters(optimizer)):
            tensors |= {f"optimizer.{index}.{name}": value for name, value in optimizer.state[parameter].items()}
        fresh = self._folder.with_name("checkpoint.new")
        shutil.rmtree(fresh, ignore_errors=True)
        with written(fresh):
            fresh.mkdir(parents=True)
            _save(tensors, fresh / "tensors.safetensors")
            if state.best is not None and (self._folder / "best.safetensors").exists():
                shutil.copyfile(self._folder / "best.safetensors", fresh / "best.safetensors")
            (fresh / "state.json").write_text(json.dumps(asdict(state)))
            shutil.rmtree(self._old, ignore_errors=True)
            if self._folder.exists():
                self._folder.rename(self._old)
            fresh.rename(self._folder)
        shutil.rmtree(self._old, ignore_errors=True)

    def restore_weights(self, learner: nn.Module) -> None:
        tensors = load_file(self._folder / "tensors.safetensors")
        learner.load_state_dict({n.removeprefix("learner."): t for n, t in tensors.items() if n.startswith("learner.")})

    def restore_optimizer(self, optimizer: torch.optim.AdamW) -> None:
        """The optimiser's state, where a phase goes on in its middle."""
        tensors = load_file(self._folder / "tensors.safetensors")
        for index, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer.{index}."
            restored = {n.removeprefix(prefix): t.to(parameter.device) for n, t in tensors.items() if n.startswith(prefix)}
            optimizer.state[parameter] = restored

    def write_best(self, learner: nn.Module) -> None:
        with written(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _save(learner.state_dict(), self._folder / "best.safetensors")

    def restore_best(self, learner: nn.Module) -> None:
        learner.load_state_dict(load_file(self._folder / "best.safetensors"))


def forget_checkpoint(out: Path) -> None:
    """Remove a run's checkpoints: once its student is saved they are of no more use."""
    for name in ("checkpoint", "checkpoint.old", "checkpoint.new"):
        shutil.rmtree(out / name, ignore_errors=True)


def _parameters(optimizer: torch.optim.AdamW) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Raise HskError where the disk refuses what is written below `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise HskError(f"{path} could not be written ({error}): make room and run the same command again") from None
