"""Views of one rich store, each taught to the same student with the same batches: a table with a row for each run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from accelerate.tracking import GeneralTracker

from hskstore.config import TrackerName, check_choice, check_count
from hskstore.engines import check_ray, run_procs, run_ray
from hskstore.errors import OptionError
from hskstore.explore.grids import read_grid
from hskstore.explore.runner import PlannedRun, Runner, Sweeping, recruit
from hskstore.explore.runs import TABLE, RunRow, SweepFolder
from hskstore.explore.scored import FurtherData
from hskstore.memory import cores
from hskstore.models.device import choose_device
from hskstore.stage_two.checkpoint import forget_checkpoint
from hskstore.stage_two.trackers import LogTo
from hskstore.store.urls import URL
from hskstore.watch import Watch, unwatched

log = logging.getLogger(__name__)
SweepEngine = Literal["procs", "ray"]


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended: its table, and the rows of this call's runs, in the grid's order."""

    folder: str
    table: str
    rows: list[RunRow]

    @property
    def failed(self) -> list[RunRow]:
        return [row for row in self.rows if row.status == "failed"]


def sweep(
    store: str | Path,
    student: str,
    *,
    grid: str,
    out: str | Path,
    seeds: int = 3,
    jobs: int = 1,
    engine: SweepEngine = "procs",
    address: str | None = None,
    data: str | None = None,
    splits: Sequence[str] = (),
    keep_students: bool = False,
    log_with: Sequence[TrackerName | GeneralTracker] | None = None,
    device: str | None = None,
    command: str = "",
    on_run: Callable[[RunRow, int, int], None] | None = None,
    watch: Watch = unwatched,
) -> Swept:
    """Train `student` (a folder or hub name) by every configuration of `grid`, a name or a TOML file, with the seeds 0, 1, ...,
    each from its view of the rich `store`; score every run on the dev rows and on `splits` (default: test) of `data`.

    Goes on where it stopped; runs of other grids in the same folder stay. `jobs` processes of this machine, or, with `engine`
    "ray", actors in the cluster at `address`, do the runs; the same run is the same wherever torch has as many threads. A run
    that fails is a row that says why. Where codes are read, a store of them is made in `out` first. `log_with` as in
    `distill`. `on_run` is told each row, and how many of how many there are.

    Raises DataError, EngineError, ModelError, OptionError or StoreError.
    """
    check_choice("--engine", engine, get_args(SweepEngine))
    check_count("--seeds", seeds)
    check_count("--jobs", jobs)
    check_ray(engine, address, device)
    if engine != "ray":
        choose_device(device)
    further = further_data(data, splits)
    shared = Sweeping(str(store), student, str(out), further, device, keep_students, command, LogTo(log_with).trackers, jobs)
    folder = SweepFolder(out)
    with folder.alone():
        runner = Runner(shared, watch=watch)
        layers = {"student_layers": runner.student.layers, "teacher_layers": runner.teacher_layers}
        configurations = read_grid(grid, **layers)
        planned = runner.plan(configurations, range(seeds))
        runner.begin(configurations)
        folder.join()
        told = _Told(folder, planned, on_run, keep_students)
        todo = [each for each in planned if each.run not in told.seen]
        for run in told.seen:
            forget_checkpoint(folder.run_folder(run))
        runner.make_codes(todo)
        if jobs == 1 and engine == "procs":
            for each in todo:
                runner.do(each)
                told.look()
        elif todo:
            _several(engine, jobs, address, shared, todo, told)
        folder.join()
        ended = {row.run: row for row in folder.rows()}
    return Swept(str(out), str(Path(out) / TABLE), [ended[each.run] for each in planned if each.run in ended])


def further_data(data: str | None, splits: Sequence[str]) -> FurtherData | None:
    """Raises OptionError for splits of nothing."""
    if data is None:
        if splits:
            raise OptionError(f"--split {splits[0]} goes with --data: the rows that are scored besides the store's own")
        return None
    return FurtherData(data, tuple(dict.fromkeys(splits or ("test",))))


class _Told:
    """Which of the planned runs have ended, told once each; the table is written anew when there are more. What is done
    again, because it failed or its student is to be kept, is told of when its row is another."""

    def __init__(
        self,
        folder: SweepFolder,
        planned: Sequence[PlannedRun],
        on_run: Callable[[RunRow, int, int], None] | None,
        keep_students: bool = False,
    ) -> None:
        self._folder, self._planned, self._on_run = folder, planned, on_run
        self._stood = {each.run: folder.row(each.run) for each in planned}
        self.seen = {run for run in self._stood if folder.ended(run, keep_students=keep_students) is not None}

    def look(self, ended: int = 1) -> None:
        """Tell of the runs that have ended since; `ended` is how many."""
        self._folder.join()
        for each in self._planned:
            row = None if each.run in self.seen else self._folder.row(each.run)
            if row is not None and row != self._stood[each.run]:
                self.seen.add(each.run)
                if self._on_run is not None:
                    self._on_run(row, len(self.seen), len(self._planned))


def _several(
    engine: SweepEngine, jobs: int, address: str | None, shared: Sweeping, todo: Sequence[PlannedRun], told: _Told
) -> None:
    """Runs on several processes, here or in a cluster."""
    if engine == "ray":
        # Other machines have other current folders.
        everywhere = replace(
            shared,
            store=_absolute(shared.store),
            student=_absolute(shared.student),
            out=_absolute(shared.out),
            data=None if shared.data is None else replace(shared.data, source=_absolute(shared.data.source)),
        )
        gpu = None if shared.device is None else shared.device == "cuda"
        run_ray(todo, partial(recruit, everywhere), told.look, address=address, workers=jobs, gpu=gpu)
        return
    gpus = torch.cuda.device_count() if shared.device in (None, "cuda") else 0
    if not gpus and jobs > cores():
        log.warning(
            f"--jobs {jobs} on {cores()} core{'s' if cores() > 1 else ''}: the runs take turns, and each process holds rows and a"
            f" student of its own; --jobs {cores()} is as fast and takes less memory"
        )
    elif gpus and jobs > gpus:
        log.warning(f"--jobs {jobs} on {gpus} GPU{'s' if gpus > 1 else ''}: several runs share one, and its memory")
    devices = [f"cuda:{job % gpus}" if gpus else str(choose_device(shared.device)) for job in range(min(jobs, len(todo)))]
    recruits = [partial(recruit, replace(shared, device=device)) for device in devices]
    run_procs(todo, recruits, told.look, threads=max(1, torch.get_num_threads() // len(recruits)))


def _absolute(place: str) -> str:
    return place if URL.fullmatch(place) or not Path(place).exists() else str(Path(place).absolute())
