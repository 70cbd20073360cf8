"""Where a run's numbers are logged besides its own metrics.json: accelerate's trackers, in one log however often it stops."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker, get_available_trackers

from hskstore.config import TrackerName
from hskstore.errors import HskError, OptionError
from hskstore.options import Plain
from hskstore.stage_two.checkpoint import written
from hskstore.stage_two.processes import is_main

PROJECT = "hskstore"
"""The project at Weights & Biases, the experiment of MLflow."""

LOG = "log"
"""The folder of a run's log in its own; TensorBoard's files lie there."""

RUNS = "runs.json"
"""Which runs of other trackers are this one, so that it goes on in them."""


@dataclass(frozen=True)
class LogTo:
    """Trackers by name, or trackers of your own; None: TensorBoard, where it is installed. `options` are the run's, as a tracker
    shows them. Raises OptionError for one that is unknown or not installed."""

    trackers: Sequence[TrackerName | GeneralTracker] | None = None
    options: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        installed = _installed()
        for tracker in self.trackers or ():
            if isinstance(tracker, GeneralTracker) or tracker in installed:
                continue
            if tracker not in get_args(TrackerName):
                raise OptionError(f"--log-with {tracker}: choose among {', '.join(get_args(TrackerName))}")
            raise OptionError(f"--log-with {tracker}: it is not installed; pip install {tracker}")

    def begin(self, out: Path, *, goes_on: bool) -> "Log":
        """The log of the run in `out`: the one that it has if it `goes_on`, else a new one. Of several processes the first has
        it. Raises OptionError where a tracker refuses."""
        chosen = self.trackers if self.trackers is not None else tuple({"tensorboard"} & _installed())
        folder = out / LOG
        if not chosen or not is_main():
            return Log(folder, ())
        runs = _read_runs(folder / RUNS) if goes_on else {}
        trackers = [_tracker(each, out, runs) for each in chosen]
        with _refusals(trackers), written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for tracker in trackers:
                tracker.start()
                if tracker.name == MLflowTracker.name:
                    runs[tracker.name] = tracker.tracker.info.run_id
                # TensorBoard would make a folder of their own for them.
                if tracker.name != TensorBoardTracker.name and not goes_on:
                    tracker.store_init_configuration(dict(self.options))
            if runs:
                (folder / RUNS).write_text(json.dumps(runs))
        return Log(folder, trackers)


class Log:
    """Numbers by name and step, to every tracker."""

    def __init__(self, folder: Path, trackers: Sequence[GeneralTracker]) -> None:
        self._folder = folder
        self._trackers = trackers

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Raises OptionError where a tracker refuses."""
        with _refusals(self._trackers), written(self._folder):
            for tracker in self._trackers:
                tracker.log(dict(values), step=step)

    def close(self) -> None:
        with _refusals(self._trackers), written(self._folder):
            for tracker in self._trackers:
                tracker.finish()


def _installed() -> frozenset[str]:
    return frozenset(map(str, get_available_trackers()))


def _tracker(chosen: TrackerName | GeneralTracker, out: Path, runs: dict[str, str]) -> GeneralTracker:
    """A tracker that was not started yet; `runs` are the ones to go on in."""
    if isinstance(chosen, GeneralTracker):
        return chosen
    if chosen == "tensorboard":
        return TensorBoardTracker(LOG, out)
    if chosen == "mlflow":
        return MLflowTracker(PROJECT, run_id=runs.get(chosen), run_name=out.name)
    run = runs.setdefault(chosen, uuid.uuid4().hex[:16])
    return WandBTracker(PROJECT, id=run, resume="allow", name=out.name, dir=str(out / LOG))


def _read_runs(file: Path) -> dict[str, str]:
    """Raises OptionError for a file that is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): str(run) for name, run in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError):
        raise OptionError(f"{file} cannot be read: delete it, and the run goes on in new logs") from None


@contextmanager
def _refusals(trackers: Sequence[GeneralTracker]) -> Iterator[None]:
    """What a tracker raises is told as the user's own: it is their server, account or network."""
    try:
        yield
    except (OSError, HskError):
        raise
    except Exception as error:
        names = ",".join(tracker.name for tracker in trackers)
        told = " ".join(str(error).split())[:300]
        raise OptionError(f"--log-with {names}: a log could not be written ({type(error).__name__}: {told})") from error
