"""A run of a sweep: a student trained from a view of a rich store, scored on the same rows as all others, written as a row."""

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import GeneralTracker

from hskstore.config import Loader, TrackerName
from hskstore.engines.contract import OnRows
from hskstore.errors import DataError, HskError, ModelError, OptionError, StoreError
from hskstore.explore.grids import Configuration
from hskstore.explore.held import Held
from hskstore.explore.knowledge import bytes_read, hsk_units, sizes_with_view
from hskstore.explore.runs import VERSION, Predictions, RunRow, SweepFacts, SweepFolder
from hskstore.explore.scored import FurtherData, FurtherRows, read_further
from hskstore.features.view import view
from hskstore.memory import free_memory, rows_fit
from hskstore.methods import Phase
from hskstore.methods.serving import is_rich, lacking, teacher_shape
from hskstore.models.run import ModelShape, shape_of
from hskstore.stage_one.coded import Coded, coded_view, derive_coded
from hskstore.stage_two.checkpoint import Unresumable, forget_checkpoint
from hskstore.stage_two.distill import Learnt, learn
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import bytes_per_row, reading_options, rows_from_store, telling_rows
from hskstore.stage_two.scores import OnScore, predict_splits
from hskstore.stage_two.settings import for_task
from hskstore.stage_two.student import check_store, config_sha256, load_student, places_of, student_sha256
from hskstore.store import Store, open_store
from hskstore.store.vectors import are_codes
from hskstore.text.metrics import compute_metrics
from hskstore.text.tasks import Task
from hskstore.version import __version__
from hskstore.watch import Watch, unwatched

SHARE_HELD = 0.2
"""Of the free memory, what the jobs together may hold of the rich store, and as much again of the views under way."""


class Pruned(Exception):
    """A search has seen enough of a run."""


class Stopped(Exception):
    """A run was given up because the sweep is being stopped."""


@dataclass(frozen=True)
class PlannedRun:
    """A configuration and a seed. `run` names it: what it reads and does, whatever the paths are."""

    run: str
    configuration: Configuration
    seed: int


@dataclass(frozen=True)
class Sweeping:
    """What the runs of a sweep share, as every process of it is told: where the rich store, the student and the further rows lie,
    the folder of the sweep, whether students are kept, where runs are logged, and how many `jobs` share the memory."""

    store: str
    student: str
    out: str
    data: FurtherData | None = None
    device: str | None = None
    keep_students: bool = False
    command: str = ""
    log_with: Sequence[TrackerName | GeneralTracker] | None = None
    jobs: int = 1


class Runner:
    """Plans runs, and does them one after the other: those of one configuration read its rows once.

    Raises OptionError where the store is no rich one, ModelError where the student does not fit it, DataError where nothing has
    labels.
    """

    depth = 1

    def __init__(self, shared: Sweeping, *, watch: Watch = unwatched, on_rows: OnRows | None = None) -> None:
        """`on_rows` is told 1 for every run that ended."""
        self.shared = shared
        self.folder = SweepFolder(shared.out)
        self._watch = watch
        self._on_rows = on_rows
        self._stopping = False
        self._stage = ""
        self._named: dict[Configuration, str] = {}
        self._last: tuple[Configuration | None, Store] | None = None
        rich = open_store(shared.store)
        if not is_rich(rich.plan):
            raise OptionError(
                f"{shared.store} is no rich store, of which every configuration can be selected: make one with"
                " hsk extract TEACHER DATA --rich --out DIR"
            )
        self.rich = Held(rich, self._may_hold())
        self.task = Task.from_json(rich.plan.task)
        model, own = load_student(shared.student, rich, seed=0)
        self._weights, self._config = student_sha256(model, own), config_sha256(model)
        reading = reading_options(model, own, rich)
        dev = rows_from_store(self.rich, "validation", **reading)
        self.student: ModelShape = shape_of(model, *telling_rows(dev), name=shared.student)
        self.teacher_layers: int = rich.plan.teacher["layers"]
        self.further = FurtherRows()
        if shared.data is not None:
            self.further = read_further(shared.data, rich, model, shared.student, own)
        self._labelled = {
            split: rows.rows for split, rows in rich.plan.splits.items() if split != "train" and self.rich.has(f"{split}/label")
        } | {split: len(rows) for split, rows in self.further.splits.items()}
        if not self._labelled:
            raise DataError(f"{shared.store}: its dev rows have no labels to score against: extract with --label, or pass --data")

    @cached_property
    def facts(self) -> SweepFacts:
        layers = self.student.layers
        task, further = self.rich.plan.task, self.further.sha256
        return SweepFacts(
            VERSION, self.rich.digest, self._weights, layers, self.teacher_layers, task, self._labelled, further, self._config
        )

    def begin(self, configurations: Sequence[Configuration]) -> None:
        """Begin the folder, or go on in it: the largest configuration decides how rows are loaded. Raises OptionError where the
        folder has runs with which these cannot be compared."""
        row_bytes = max(self._bytes_held(each) for each in configurations)
        fit = rows_fit(self.rich.plan.splits["train"].rows * row_bytes, self.shared.jobs)
        self.folder.begin(replace(self.facts, loader="ram" if fit else "blocks", row_bytes=row_bytes))

    @cached_property
    def _begun_with(self) -> SweepFacts:
        return self.folder.facts()

    def plan(self, configurations: Sequence[Configuration], seeds: Sequence[int]) -> list[PlannedRun]:
        """Every run once, seeds of a configuration together. Raises OptionError, naming the configuration, where one cannot
        be."""
        found: dict[str, PlannedRun] = {}
        for each in configurations:
            for seed in seeds:
                planned = self.planned(each, seed)
                known = found.get(planned.run)
                if known is None or not known.configuration.series:
                    found[planned.run] = planned
        return list(found.values())

    def planned(self, configuration: Configuration, seed: int) -> PlannedRun:
        """Raises OptionError, naming the configuration, where it cannot be."""
        if configuration not in self._named:
            self._named[configuration] = self._name(configuration)
        return PlannedRun(f"{self._named[configuration]}-s{seed}", configuration, seed)

    def _name(self, configuration: Configuration) -> str:
        """For people, and by what it reads and does. Raises OptionError where it cannot be done."""
        try:
            recipe = configuration.recipe(self.shared.student, 0)
            store, phases = self.phases_of(configuration)
            if isinstance(store, Coded) and (lacks := [name for name in lacking(store.plan, phases) if name != "labels"]):
                raise OptionError(
                    f"a sweep makes codes of what mud alone learns, and {recipe.method.name} reads {', '.join(lacks)} too: leave"
                    " values out, or extract all of it in codes and distill from that store"
                )
            check_store(store, phases, self.student, recipe.method)
            for_task(recipe, phases, self.task.defaults)
            if recipe.max_steps is not None and recipe.max_steps < len(phases):
                raise OptionError(f"--max-steps {recipe.max_steps}: the method has {len(phases)} phases, of at least a step each")
        except (OptionError, ModelError, StoreError) as error:
            raise OptionError(f"{configuration.name} cannot be a run: {error}") from None
        words = f"{store.identity} {replace(recipe, student=None).to_toml()}"
        digest = hashlib.sha256(words.encode()).hexdigest()[:8]
        kept = "" if configuration.keep is None else f"-{configuration.keep.name}"
        return f"{configuration.method}{kept}-{digest}"

    def phases_of(self, configuration: Configuration) -> tuple[Store, tuple[Phase, ...]]:
        """What it reads, and its phases. Raises OptionError where there is no such view, ModelError for such a student."""
        recipe, store = configuration.recipe(self.shared.student, 0), self._selected(configuration)
        return store, recipe.phases(teacher_shape(store.plan), self.student)

    def bytes_of(self, configuration: Configuration) -> int:
        """On disk, of all that it reads of the train rows."""
        store, phases = self.phases_of(configuration)
        return bytes_read(store, phases, sizes_with_view(store))

    def make_codes(self, planned: Sequence[PlannedRun]) -> None:
        """Seal the stores in codes that some runs read, each once; goes on where it stopped. Raises StoreError."""
        made = {store.out.root: store for each in planned if isinstance(store := self._selected(each.configuration), Coded)}
        for root, store in made.items():
            self._stage = f"{Path(root).name}: "
            derive_coded(store, watch=self._tell)

    def run(self, planned: PlannedRun) -> None:
        """As a worker does it: the row is its only effect."""
        self.do(planned)
        if self._on_rows is not None:
            self._on_rows(1)

    def stop(self) -> None:
        """Let the run under way end at its next step, raising Stopped."""
        self._stopping = True

    def do(self, planned: PlannedRun, *, on_score: OnScore | None = None, trial: int | None = None) -> RunRow:
        """Train, score and write, unless that was done; goes on from the last checkpoint, if it is one of this run. What fails
        is a row that says why. A run that was ended early is done again but for a search, whose `on_score` might end it again.

        Raises HskError where the store is damaged or the disk full, and what stops the program.
        """
        out, shared = self.folder.run_folder(planned.run), self.shared
        there = self.folder.ended(planned.run, keep_students=shared.keep_students, searching=on_score is not None)
        if there is not None:
            forget_checkpoint(out)
            return there
        began, cpu = time.monotonic(), time.process_time()
        self._stage = f"{planned.configuration.name}, seed {planned.seed}: "
        row = self._begun(planned, trial)
        try:
            store = self._read(planned.configuration)
            try:
                learnt = self._learn(store, planned, on_score)
            except Unresumable:  # half done otherwise, as with another loader
                forget_checkpoint(out)
                learnt = self._learn(store, planned, on_score)
            row = self._ended(row, store, learnt)
            if self.shared.keep_students:
                learnt.save(self.shared.command or None)
        except Pruned as pruned:
            row = replace(row, status="pruned", why=str(pruned))
        except (ModelError, OptionError) as error:
            row = replace(row, status="failed", error=type(error).__name__, why=str(error))
        except (HskError, Stopped):
            raise
        except Exception as error:
            row = replace(row, status="failed", error=type(error).__name__, why=" ".join(str(error).split())[:300])
        row = replace(
            row,
            seconds_wall=round(time.monotonic() - began, 3),
            seconds_cpu=round(time.process_time() - cpu, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.folder.write_row(row)
        forget_checkpoint(out)
        return row

    # --- parts of a run

    def _learn(self, store: Store, planned: PlannedRun, on_score: OnScore | None) -> Learnt:
        return learn(
            store,
            self._recipe(planned),
            out=self.folder.run_folder(planned.run),
            device=self.shared.device,
            log_with=self.shared.log_with,
            row_bytes=self._begun_with.row_bytes or 0,
            on_score=on_score,
            watch=self._tell,
        )

    def _recipe(self, planned: PlannedRun) -> Recipe:
        """With the loader of the sweep, where the configuration names none."""
        recipe = planned.configuration.recipe(self.shared.student, planned.seed)
        loader: Loader | None = self._begun_with.loader
        return recipe if recipe.loader != "auto" or loader is None else replace(recipe, loader=loader)

    def _may_hold(self) -> int:
        return int(SHARE_HELD * free_memory() / self.shared.jobs)

    def _bytes_held(self, configuration: Configuration) -> int:
        """Of memory, by a train row of all that a run reads."""
        store = self._selected(configuration)
        phases = configuration.recipe(self.shared.student, 0).read_phases(teacher_shape(store.plan), self.student)
        return bytes_per_row(store, "train", places_of(store, phases))

    def _selected(self, configuration: Configuration) -> Store:
        """What a configuration reads: a view, the rich store itself, or what becomes a store in codes. Nothing is read yet."""
        if configuration.keep is None:
            return self.rich
        strategy = configuration.strategy_for(self.student.layers)
        if not are_codes(strategy.values):
            return view(self.rich, configuration.keep, strategy)
        chosen = hashlib.sha256(f"{configuration.keep} {strategy!r}".encode()).hexdigest()[:8]
        place = self.folder.coded_folder(f"{strategy.values}-{configuration.keep.name}-{chosen}")
        return coded_view(self.rich, configuration.keep, strategy, place, watch=self._tell)

    def _read(self, configuration: Configuration) -> Store:
        """The same, held in memory while runs of the configuration follow each other."""
        reads = replace(configuration, series="", options=())
        if self._last is None or self._last[0] != reads:
            selected = self._selected(configuration)
            if isinstance(selected, Coded):
                selected = open_store(selected.out.root)
            held = selected if selected is self.rich else Held(selected, self._may_hold())
            self._last = reads, held
        return self._last[1]

    def _tell(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._stopping:
            raise Stopped
        self._watch(f"{self._stage}{stage}", done, total, note)

    def _begun(self, planned: PlannedRun, trial: int | None) -> RunRow:
        """What is known of a run before it is done."""
        own = planned.configuration
        recipe = replace(self._recipe(planned), student=None)
        store, phases = self.phases_of(own)
        row = RunRow(
            run=planned.run,
            name=own.name,
            series=own.series,
            status="done",
            seed=planned.seed,
            method=recipe.method.name,
            options=json.dumps(dict(own.options)),
            recipe=recipe.to_toml(),
            store=self.rich.digest,
            view=store.identity,
            command=self.shared.command,
            finished="",
            versions=_versions(),
            metric=self.task.metrics[0],
            threads=torch.get_num_threads(),
            trial=trial,
        )
        hidden = store.plan.hidden
        if own.keep is not None and hidden is not None:
            strategy = hidden.strategy
            row = replace(
                row,
                keep=str(own.keep),
                depth=len(hidden.pairs),
                length=hidden.length,
                width=hidden.width,
                **{name: getattr(strategy, name) for name in ("top_layer", "layer_map", "rank", "rank_layer", "mask", "values")},
                rank_score=strategy.score,
            )
        units, share = hsk_units(store, phases)
        return replace(row, units_of_hsk=units, share_of_hsk=share)

    def _ended(self, row: RunRow, store: Store, learnt: Learnt) -> RunRow:
        """What came of it; predictions are written."""
        began = time.monotonic()
        logits = dict(learnt.logits) | predict_splits(learnt.learner.student, self.further.splits, self._tell)
        splits = {**learnt.fitted.dev, **self.further.splits}
        labels = {name: label for name in logits if (label := splits[name].label) is not None}
        together = np.concatenate(list(logits.values())), np.concatenate([labels[name] for name in logits])
        split = tuple(name for name, said in logits.items() for _ in range(len(said)))
        self.folder.write_predictions(row.run, Predictions(split, *together))
        found = {name: compute_metrics(self.task, said, labels[name]) for name, said in logits.items()}
        distilled = learnt.distilled
        return replace(
            row,
            score=compute_metrics(self.task, *together)[self.task.metrics[0]],
            rows=len(split),
            scores={f"{name}/{metric}": value for name, values in found.items() for metric, value in values.items()},
            losses={f"{phase.name}/{term}": value for phase in distilled.phases for term, value in phase.losses.items()},
            steps=sum(phase.steps for phase in distilled.phases),
            bytes=bytes_read(store, learnt.fitted.read, sizes_with_view(store)),
            seconds_training=learnt.seconds_training,
            seconds_scoring=round(learnt.seconds_scoring + time.monotonic() - began, 3),
            parameters=distilled.parameters,
            precision=distilled.precision,
            loader=distilled.loader,
            batches=distilled.batches,
        )


@contextmanager
def recruit(shared: Sweeping, on_rows: OnRows) -> Iterator[Runner]:
    """A runner in a process of its own."""
    yield Runner(shared, on_rows=on_rows)


def _versions() -> dict[str, str]:
    return {"hskstore": __version__, "python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "numpy")
    }
