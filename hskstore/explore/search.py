"""Configurations of a rich store looked for one after the other: Optuna's TPE proposes them, Hyperband ends what lags behind."""

import hashlib
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hskstore.config import Keep, check_count
from hskstore.errors import DataError, OptionError
from hskstore.explore.grids import ALONE, TOP_LAYERS, Configuration, with_ends
from hskstore.explore.runner import Pruned, Runner, Sweeping
from hskstore.explore.runs import TABLE, RunRow, SweepFolder
from hskstore.explore.sweep import further_data
from hskstore.methods import Mud
from hskstore.models.device import choose_device
from hskstore.options import Plain
from hskstore.stage_one.budget import LONGEST, TENTHS
from hskstore.stage_two.feed import InWindows, steps_per_epoch
from hskstore.stage_two.recipe import read_recipe
from hskstore.stage_two.scores import DevScore, OnScore
from hskstore.stage_two.settings import phase_settings
from hskstore.watch import Watch, unwatched

DEFAULT_TRIALS = 40
IDLE = 5
"""Proposals for each trial after which a search ends: of a small space most have been tried already."""

DATABASE = "optuna.db"


@dataclass(frozen=True)
class Searched:
    """A search that has ended: its table, its trials' rows, and the front: of all runs in the folder those that no other one
    beats in score, bytes and seconds of training at once."""

    folder: str
    table: str
    rows: list[RunRow]
    front: list[RunRow]

    @property
    def failed(self) -> list[RunRow]:
        return [row for row in self.rows if row.status == "failed"]

    @property
    def pruned(self) -> list[RunRow]:
        return [row for row in self.rows if row.status == "pruned"]


def search(
    store: str | Path,
    student: str,
    *,
    out: str | Path,
    budget: int | None = None,
    trials: int | None = None,
    data: str | None = None,
    splits: Sequence[str] = (),
    recipe: Path | None = None,
    device: str | None = None,
    command: str = "",
    on_run: Callable[[RunRow, int, int], None] | None = None,
    watch: Watch = unwatched,
) -> Searched:
    """Train `student` (a folder or hub name) by up to `trials` configurations (N^D, N^L, N^W of Equation 8, and L_top) of the
    rich `store`, none of which reads more than `budget` bytes; and by kd alone.

    All have seed 0 and so the same batches. The dev score decides what is proposed next, and which run ends before its time; the
    front is of the score on all scored rows. Goes on where a search with the same budget and options stopped, and tries again
    what failed by another fault than the run's own; its rows stand in the same table as a sweep's. `recipe` is a file with
    options of every run. `on_run` is told each row, and how many of how many trials there are.

    Raises DataError, ModelError, OptionError or StoreError.
    """
    check_count("--budget", budget, most=2**63)
    check_count("--trials", trials)
    if importlib.util.find_spec("optuna") is None:
        raise OptionError("hsk search needs Optuna: pip install 'hskstore[search]'")
    choose_device(device)
    options = _options(recipe)
    shared = Sweeping(str(store), student, str(out), further_data(data, splits), device, command=command)
    folder = SweepFolder(out)
    with folder.alone():
        runner = Runner(shared, watch=watch)
        if not runner.rich.has("validation/label"):
            raise DataError(f"{store}: its dev rows have no labels, by whose score configurations are looked for")
        space = _Space(runner, options, budget)
        ends = with_ends([], options)
        runner.begin(ends)
        alone = runner.planned(next(each for each in ends if each.series == ALONE), 0)
        wanted, stood = trials or DEFAULT_TRIALS, folder.row(alone.run)
        row = runner.do(alone)
        if on_run is not None and row != stood:
            on_run(row, 0, wanted)
        rows = _Search(runner, space, options, wanted, on_run).run()
        every = folder.join()
    return Searched(str(out), str(Path(out) / TABLE), [row, *rows], front(every))


def front(rows: Sequence[RunRow]) -> list[RunRow]:
    """The runs that no other one beats in score, bytes and seconds of training at once; the smallest first."""

    def numbers(row: RunRow) -> tuple[float, float, float]:
        return -float(row.score or 0), float(row.bytes or 0), float(row.seconds_training or 0)

    done = [row for row in rows if row.status == "done"]
    kept = [
        row
        for row in done
        if not any(
            numbers(other) != numbers(row) and all(a <= b for a, b in zip(numbers(other), numbers(row), strict=True))
            for other in done
        )
    ]
    return sorted(kept, key=lambda row: (numbers(row)[1], numbers(row)[0], row.run))


class _Space:
    """What can be proposed: every configuration, or those that the budget allows."""

    def __init__(self, runner: Runner, options: dict[str, Plain], budget: int | None) -> None:
        """Raises OptionError where not even the smallest is within the budget."""
        self._runner, self._options, self.budget = runner, options, budget
        self._most: dict[tuple[int, int, int], int] = {}
        self.deepest = runner.student.layers + 1
        self.tops = sorted({max(1, round(Fraction(top * runner.teacher_layers, 12))) for top in TOP_LAYERS})
        smallest = self.configuration(1, 1, 1, self.tops[-1])
        if budget is not None and (least := runner.bytes_of(smallest)) > budget:
            raise OptionError(
                f"--budget {budget}: the smallest configuration, {smallest.keep}, reads {least} bytes, most of them inputs and"
                " logits: give more"
            )

    def configuration(self, depth: int, length: int, tenths: int, top: int) -> Configuration:
        keep = Keep(depth, length, tenths / TENTHS)
        return Configuration("search", keep, (("top_layer", str(top)),), tuple(self._options.items()))

    def scores(self) -> int:
        """The dev scores of a run that trains to its end by its steps."""
        smallest = self.configuration(1, 1, 1, self.tops[-1])
        store, phases = self._runner.phases_of(smallest)
        recipe, supply = smallest.recipe(self._runner.shared.student, 0), InWindows(store, "train")
        settings = phase_settings(recipe, phases, self._runner.task.defaults, supply)
        return sum(math.ceil(own.steps / steps_per_epoch(supply, own.batch_size)) for own in settings if own.phase.predicts)

    def longest(self, depth: int, tenths: int, top: int) -> int:
        """The most tokens that the budget allows; 0: none."""
        key = depth, tenths, top
        if key not in self._most:
            self._most[key] = LONGEST if self._fits(depth, LONGEST, tenths, top) else self._halved(depth, tenths, top)
        return self._most[key]

    def _halved(self, depth: int, tenths: int, top: int) -> int:
        fits, does_not = 0, LONGEST
        while does_not - fits > 1:
            middle = (fits + does_not) // 2
            fits, does_not = (middle, does_not) if self._fits(depth, middle, tenths, top) else (fits, middle)
        return fits

    def _fits(self, depth: int, length: int, tenths: int, top: int) -> bool:
        return self.budget is None or self._runner.bytes_of(self.configuration(depth, length, tenths, top)) <= self.budget


class _Search:
    """A study that lies in the folder: trials asked for, run and told, one after the other."""

    def __init__(
        self,
        runner: Runner,
        space: _Space,
        options: dict[str, Plain],
        wanted: int,
        on_run: Callable[[RunRow, int, int], None] | None,
    ) -> None:
        import optuna
        import sqlalchemy

        self._optuna: Any = optuna
        self._runner, self._space, self._wanted, self._on_run = runner, space, wanted, on_run
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = str(sqlalchemy.URL.create("sqlite", database=str((runner.folder.root / DATABASE).absolute())))
        asked = options if space.budget is None else {**options, "budget": space.budget}
        name = "hsk-" + hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hyperband is called experimental
            pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=space.scores(), reduction_factor=3)
            self._study: Any = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
            )
        begun = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = optuna.samplers.TPESampler(seed=begun)  # of a search that goes on not the same draws again
        self._metric = f"validation/{runner.task.metrics[0]}"
        self._failed: set[str] = set()

    def run(self) -> list[RunRow]:
        """The rows of all trials of the study, those of earlier calls too."""
        self._take_up()
        proposals = 0
        while len(self._found()) < self._wanted and proposals < IDLE * self._wanted:
            proposals += 1
            self._try()
        return self._found()

    def _found(self) -> list[RunRow]:
        """The runs of the study that have ended, each once; of those that the next call tries again, this call's."""
        rows = [self._runner.folder.row(run) for run in self._params()]
        return [row for row in rows if row is not None and (row.final_for_search or row.run in self._failed)]

    def _params(self) -> dict[str, dict[str, Any]]:
        """Of every run of the study."""
        trials = self._study.get_trials(deepcopy=False)
        return {each.user_attrs["run"]: each.params for each in trials if "run" in each.user_attrs}

    def _take_up(self) -> None:
        """Trials that were under way when a search was killed come again first: their runs go on from their checkpoints. Then
        those that have no row, or failed by another fault than their own."""
        state = self._optuna.trial.TrialState
        for each in self._study.get_trials(states=(state.RUNNING,)):
            self._study.enqueue_trial(each.params, user_attrs={"before": each.number})
            self._study.tell(each.number, state=state.FAIL)  # killed before this, it comes twice, and is trained once
        waiting = [each.system_attrs["fixed_params"] for each in self._study.get_trials(states=(state.WAITING,))]
        ended = {row.run for row in self._found()}
        for run, params in self._params().items():
            if run not in ended and params not in waiting:
                self._study.enqueue_trial(params)

    def _try(self) -> None:
        state = self._optuna.trial.TrialState
        trial = self._study.ask()
        depth = trial.suggest_int("depth", 1, self._space.deepest)
        tenths = trial.suggest_int("tenths", 1, TENTHS)
        top = trial.suggest_categorical("top_layer", self._space.tops)
        longest = self._space.longest(depth, tenths, top)
        if longest < 1:  # not even a token of it is within the budget
            self._study.tell(trial, state=state.FAIL)
            return
        length = trial.suggest_int("length", 1, longest)
        planned = self._runner.planned(self._space.configuration(depth, length, tenths, top), 0)
        row = self._runner.do(planned, on_score=self._reporting(trial), trial=trial.number)
        trial.set_user_attr("run", row.run)
        if row.status == "done":
            self._study.tell(trial, row.scores[self._metric])
        else:
            self._study.tell(trial, state=state.PRUNED if row.status == "pruned" else state.FAIL)
        if row.status == "failed":
            self._failed.add(row.run)
        found = self._found()
        self._runner.folder.join()
        if self._on_run is not None:
            self._on_run(row, len(found), self._wanted)

    def _reporting(self, trial: Any) -> OnScore:
        """Tells the study of each dev score of a run, once; raises Pruned where it is enough, and not all."""
        before = trial.user_attrs.get("before")
        earlier = {} if before is None else self._study.get_trials(deepcopy=False)[before].intermediate_values
        for step, value in earlier.items():
            trial.report(value, step)

        def report(score: DevScore, number: int, last: bool) -> None:
            if number not in earlier:  # else the run was killed before the checkpoint that follows a score
                trial.report(score.value, number)
            if not last and trial.should_prune():
                raise Pruned(f"ended by Hyperband after {number} dev scores, the last {score.metric} {score.value:.4f}")

        return report


def _options(recipe: Path | None) -> dict[str, Plain]:
    """Those of every run: a recipe's for the method mud, but for student and seed. Raises OptionError."""
    given = {} if recipe is None else read_recipe(recipe)
    where = f"--recipe {recipe}"
    if given.get("method", Mud.name) != Mud.name:
        raise OptionError(f"{where}: method is {given['method']}; a search is of what {Mud.name} reads, hidden states")
    if own := [name for name in ("student", "seed") if name in given]:
        raise OptionError(f"{where}: {own[0]} is the search's own: leave it out")
    return {"method": Mud.name, **given}
