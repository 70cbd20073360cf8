"""Where a training run stands, kept so that the same run can go on: safetensors and JSON in one folder."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hskstore.errors import HskError, OptionError

RUN_VERSION = 2
"""Of how a run goes from its settings. Rows order the batches, not the store's digest."""

MOMENTS = ("exp_avg", "exp_avg_sq")

Ended = Literal["steps", "minutes", "patience"]


@dataclass(frozen=True)
class PhaseResult:
    """What a phase did. `best` is None where the phase does not predict; `losses` are means over its last steps.

    `ended` is the limit that it met, `waited` the seconds that steps waited for their batch. Where weights were chosen,
    `schedule` tells what they were, mean over some steps each: from the step "step" on, "steps" of them. Of the `seconds`,
    `scored` are those of dev scores, `rewarded` those that it took to see what the student was worth.
    """

    name: str
    steps: int
    seconds: float
    losses: dict[str, float]
    scores: list[dict[str, float]]
    best: dict[str, float] | None
    ended: Ended
    waited: float
    schedule: list[dict[str, float]] = field(default_factory=list)
    rewarded: float = 0.0
    scored: float = 0.0


@dataclass
class RunState:
    """Where a run stands: everything a resumed run needs beyond tensors, and, by phase and step, which tensors those are."""

    settings: str
    phase: int = 0
    step: int = 0
    cuts: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    recent: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    done: list[PhaseResult] = field(default_factory=list)
    schedule: list[dict[str, float]] = field(default_factory=list)
    rewarded: float = 0.0
    scored: float = 0.0


class Unresumable(OptionError):
    """What stands in a run's folder is another run's checkpoint, or cannot be used."""


class Checkpoint:
    """A folder whose state.json is its one commit point: a file of tensors counts once a state stands that names it.

    No file that a state names is ever written again, and state.json is replaced whole. So a process that is killed at any
    moment leaves the last state or the one before it, either with all its tensors. What no state names, the next write removes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / "state.json"

    def read_state(self, settings: str) -> RunState:
        """Where a run with these settings, a JSON object, stands: at its start, if nothing is here.

        Raises Unresumable where another run stands here, or what stands here cannot be used.
        """
        if not self._state.exists():
            return RunState(settings)
        try:
            state = _parse(self._state.read_text())
            mine, theirs = json.loads(state.settings), json.loads(settings)
            earlier = mine.get("version") != theirs.get("version")
            differ = ", ".join(name for name in theirs | mine if mine.get(name) != theirs.get(name))
        except Exception:  # whatever a torn or foreign file can make of this
            raise self._unusable(self._state) from None
        if earlier:
            raise Unresumable(
                f"{self._folder.parent} holds an unfinished run of another version of hskstore, which orders batches otherwise:"
                f" end it with that version, delete {self._folder} to begin it anew, or choose another --out"
            )
        if differ:
            raise Unresumable(
                f"{self._folder.parent} holds an unfinished run that differs in its {differ}: give the same options to go"
                " on with it, delete the folder, or choose another --out"
            )
        return state

    def write(self, state: RunState, learner: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Commit a state. Of one that begins a phase the optimiser is not kept."""
        weights, moments = self._weights(state.phase, state.step), self._moments(state)
        with written(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if state.best is None or state.best["step"] != state.step:  # else `write_best` has just written them
                _save(learner.state_dict(), weights)
            if state.step:
                _save(_optimizer_tensors(optimizer), moments)
            fresh = self._folder / "state.json.new"
            fresh.write_text(_with_check(asdict(state)))
            fresh.replace(self._state)
            named = {weights, moments} if state.best is None else {weights, moments, self._best(state)}
            for file in self._folder.glob("*.safetensors"):
                if file not in named:
                    file.unlink()

    def restore_weights(self, state: RunState, learner: nn.Module) -> None:
        """Raises Unresumable where they, or the best ones that the end of the phase will ask for, are missing or others."""
        if state.best is not None:
            self._load(self._best(state), learner)
        learner.load_state_dict(self._load(self._weights(state.phase, state.step), learner))

    def restore_optimizer(self, state: RunState, optimizer: torch.optim.AdamW) -> None:
        """The optimiser's state, where a phase goes on in its middle. Raises Unresumable where it is missing or another's."""
        file = self._moments(state)
        tensors = self._read(file)
        for index, parameter in enumerate(_parameters(optimizer)):
            mine = {name: tensors.pop(f"{index}.{name}", None) for name in ("step", *MOMENTS)}
            if all(tensor is None for tensor in mine.values()):  # it has had no gradient yet
                continue
            like = {"step": torch.tensor(0.0), **dict.fromkeys(MOMENTS, parameter)}
            found = {name: tensor for name, tensor in mine.items() if tensor is not None}
            if _shapes(found) != _shapes(like):
                raise self._unusable(file)
            optimizer.state[parameter] = {name: tensor.to(parameter.device) for name, tensor in found.items()}
        if tensors:
            raise self._unusable(file)

    def write_best(self, state: RunState, learner: nn.Module) -> None:
        """The weights that `state.best` speaks of. They count with the first state written after them."""
        with written(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _save(learner.state_dict(), self._best(state))

    def restore_best(self, state: RunState, learner: nn.Module) -> None:
        learner.load_state_dict(self._load(self._best(state), learner))

    def _weights(self, phase: int, step: float) -> Path:
        return self._folder / f"weights-{phase}-{step}.safetensors"

    def _best(self, state: RunState) -> Path:
        assert state.best is not None
        return self._weights(state.phase, state.best["step"])

    def _moments(self, state: RunState) -> Path:
        return self._folder / f"optimizer-{state.phase}-{state.step}.safetensors"

    def _load(self, file: Path, learner: nn.Module) -> dict[str, Tensor]:
        tensors = self._read(file)
        if _shapes(tensors) != _shapes(learner.state_dict()):
            raise self._unusable(file)
        return tensors

    def _read(self, file: Path) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(file)
        except (OSError, SafetensorError):
            raise self._unusable(file) from None
        return tensors

    def _unusable(self, file: Path) -> Unresumable:
        return Unresumable(
            f"{file} is missing, damaged, or not what this version of hsk writes, so the run cannot go on: delete"
            f" {self._folder} to begin it anew, or choose another --out"
        )


def forget_checkpoint(out: Path) -> None:
    """Remove a run's checkpoint: once its student is saved it is of no more use."""
    shutil.rmtree(out / "checkpoint", ignore_errors=True)


def _with_check(document: dict[str, Any]) -> str:
    """JSON that carries the sha256 of the rest of itself as `check`; the order of scores tells which decides, and stays."""
    return json.dumps({**document, "check": hashlib.sha256(json.dumps(document).encode()).hexdigest()})


def _parse(text: str) -> RunState:
    """The state in what `_with_check` made of one; of anything else the exception may be any."""
    document = json.loads(text)
    del document["check"]
    if text != _with_check(document):
        raise ValueError("its own checksum does not agree with it")
    return RunState(**{**document, "done": [PhaseResult(**result) for result in document["done"]]})


def _parameters(optimizer: torch.optim.AdamW) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


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
