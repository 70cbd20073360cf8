"""Stage one: the teacher runs once over the data, and every configuration asked for gets its own sealed store."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Unpack, get_args

import torch

from hskstore.config import Engine, Keep, PassOptions, Strategy, check_choice, check_count
from hskstore.engines import ProcessRank, check_ray, run_inline, run_procs, run_ray, static_jobs, static_rank
from hskstore.errors import OptionError
from hskstore.models.device import choose_device
from hskstore.stage_one.asked import Asked, Learns
from hskstore.stage_one.codebooks import lay_codebooks
from hskstore.stage_one.jobs import Job, PlannedStore, make_jobs, missing_jobs
from hskstore.stage_one.planning import Prepared, prepare
from hskstore.stage_one.replay import Replayed, replay_some
from hskstore.stage_one.sizes import most_bytes
from hskstore.stage_one.teacher_pass import probe, sight_of
from hskstore.stage_one.worker import UnitWorker, recruit
from hskstore.store import open_store
from hskstore.store.codebooks import BOOKS
from hskstore.store.commit import begin, condemned_digest, examine, seal
from hskstore.store.urls import URL
from hskstore.text.metrics import tell_better_order
from hskstore.text.rows import open_rows
from hskstore.text.tally import TextFacts
from hskstore.text.tasks import Task
from hskstore.watch import Watch, unwatched


@dataclass(frozen=True)
class ExtractedStore:
    """A store: where it lies, its digest, its bytes on disk, and the seconds since extract was called.

    `missing` units are those that other processes of a static engine have still to make; as long as there are any, the store is
    not sealed and has no digest. `condemned` is the digest it had before some of it was condemned and re-made; else None.

    `text` is, by split, what became of the texts as tokens. `replayed` is what came of a few rows that went through the teacher
    again when the store was sealed; None where this process ran no teacher, or did not seal it.
    """

    root: str
    digest: str | None
    condemned: str | None
    missing: int
    bytes: int
    seconds: float
    text: dict[str, TextFacts]
    replayed: Replayed | None = None


def extract(
    teacher: str,
    data: str,
    *,
    out: str | Path,
    keeps: Sequence[Keep] = (),
    strategies: Sequence[Strategy],
    methods: Sequence[Learns] = (),
    rich: bool = False,
    engine: Engine = "inline",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    on_plan: Callable[[list[PlannedStore]], None] | None = None,
    watch: Watch = unwatched,
    **options: Unpack[PassOptions],
) -> list[ExtractedStore]:
    """Run the teacher once over `data` and write stores below `out`: one per (strategy, keep), and one of all else that
    `methods` read (such as `methods.Pkd()`) for students of the strategies' depths; with `rich` one of every layer's states and
    attention, of which `features.view` makes any configuration later; see `Asked.by_store`.

    Goes on where an earlier run of the same plan stopped. `engine` says who runs the jobs: this process; `workers` processes of
    this machine (procs: one per GPU, else one per core); this one of several that a launcher started (static); Ray actors in the
    cluster at `address`. `on_plan` is called before the teacher runs.

    Raises DataError, EngineError, ModelError, OptionError, PlanError or StoreError.
    """
    check_choice("--engine", engine, get_args(Engine))
    check_count("--workers", workers)
    asked = Asked(keeps, strategies, methods, rich)
    began = time.monotonic()
    place = static_rank(os.environ) if engine == "static" else None
    devices = _devices(engine, device, workers, address, place)
    with tempfile.TemporaryDirectory(prefix="hsk-") as folder:
        # Only here does the teacher work in this process; elsewhere each worker loads its own.
        own = torch.device("cpu") if engine in ("procs", "ray") else choose_device(devices[0])
        ready = prepare(teacher, data, Path(folder), asked, device=own, watch=watch, **options)
        stores = [
            PlannedStore.examine(plan, f"{str(out).rstrip('/')}/{name}", most_bytes(plan, ready.rows, ready.rows_by_admitted))
            for name, plan in ready.plans.items()
        ]
        if on_plan is not None:
            on_plan(stores)
        jobs = missing_jobs(stores)
        if place is not None:
            missing = set(jobs)
            jobs = [job for job in static_jobs(list(make_jobs([store.plan for store in stores])), place) if job in missing]
        wordless = [store for store in stores if BOOKS in store.missing]
        if jobs or wordless:
            probe(ready.teacher, sight_of(ready.plans.values()), ready.rows["train"])
        for store in stores:
            if store.digest is None:
                begin(store.objects, store.plan, ready.facts.files)
        for store in wordless:
            lay_codebooks(store.objects, store.plan, ready.teacher, ready.rows["train"], watch=watch)
        if jobs:
            _run(
                engine, jobs, ready, [store for store in stores if store.missing], devices, Path(folder), address, workers, watch
            )
        made = [_sealed(store, dict(ready.text), began, watch) for store in stores]
        if made[0].digest is not None:
            _tell_order(made[0].root, teacher)
        if not jobs:
            return made
        if engine == "procs":  # whose workers are gone: their device is free
            ready.teacher.move(choose_device(devices[0]))
        return _replayed(made, ready)


def _tell_order(root: str, teacher: str) -> None:
    """Warn where the dev labels, if there are any, fit another order of the teacher's classes."""
    store = open_store(root)
    task = Task.from_json(store.plan.task)
    if task.kind == "classes" and "validation/label" in store.plan.arrays:
        logits, label = (store.read_all(f"validation/{name}") for name in ("logits", "label"))
        tell_better_order(task.labels, logits, label, model=teacher)


def _replayed(made: Sequence[ExtractedStore], ready: Prepared) -> list[ExtractedStore]:
    """The same stores, those that are sealed with what a few rows of them are to the teacher now."""
    sealed = [store for store in made if store.digest is not None]
    found = iter(replay_some([open_store(store.root) for store in sealed], ready.teacher, ready.rows["train"]) if sealed else ())
    return [store if store.digest is None else replace(store, replayed=next(found)) for store in made]


def _devices(
    engine: Engine, device: str | None, workers: int | None, address: str | None, place: ProcessRank | None
) -> list[str | None]:
    """The device of each worker; None is whatever is best where it is. Raises OptionError for options that do not fit."""
    if workers is not None and engine not in ("procs", "ray"):
        raise OptionError(f"--workers {workers}: --engine {engine} has one worker; procs and ray have several")
    check_ray(engine, address, device)
    if engine == "ray":
        return [device]
    gpus = torch.cuda.device_count()
    if engine == "procs":
        on_gpus = gpus and device in (None, "cuda")
        one = choose_device(device).type if device in (None, "cuda") else str(choose_device(device))
        number = workers or (gpus if on_gpus else torch.get_num_threads())
        return [f"cuda:{worker % gpus}" if on_gpus else one for worker in range(number)]
    if place is not None and place.local is not None and gpus > 1 and device in (None, "cuda"):
        return [f"cuda:{place.local % gpus}"]
    return [device]


def _run(
    engine: Engine,
    jobs: Sequence[Job],
    ready: Prepared,
    stores: Sequence[PlannedStore],
    devices: Sequence[str | None],
    folder: Path,
    address: str | None,
    workers: int | None,
    watch: Watch,
) -> None:
    done, total = 0, sum(job.rows for job in jobs)

    def on_rows(rows: int) -> None:
        nonlocal done
        with lock:
            done += rows
            watch("teacher", done, total)

    lock = Lock()
    if engine in ("inline", "static"):
        planned = [(store.objects, store.plan) for store in stores]
        run_inline(jobs, lambda told: UnitWorker(planned, ready.rows, ready.teacher, told), on_rows)
        return
    roots = [store.objects.root for store in stores]
    if engine == "ray":
        # Other machines have other current folders, and not this one's temporary files: the rows themselves travel.
        (device,) = devices
        roots = [root if URL.fullmatch(root) else str(Path(root).absolute()) for root in roots]
        name = str(Path(ready.teacher.name).absolute()) if Path(ready.teacher.name).is_dir() else ready.teacher.name
        one = partial(recruit, roots, name, device, partial(dict, ready.rows))
        run_ray(jobs, one, on_rows, address=address, workers=workers, gpu=None if device is None else device == "cuda")
        return
    threads = max(1, torch.get_num_threads() // len(devices))
    recruits = [partial(recruit, roots, ready.teacher.name, device, partial(open_rows, folder)) for device in devices]
    run_procs(jobs, recruits, on_rows, threads=threads)


def _sealed(store: PlannedStore, text: dict[str, TextFacts], began: float, watch: Watch) -> ExtractedStore:
    before = condemned_digest(store.objects)
    digest, missing = store.digest, 0
    if digest is None:
        finished = examine(store.objects, store.plan).finished
        missing = len(frozenset(store.plan.units()) - finished)
        digest = None if missing else seal(store.objects, store.plan, watch)
    return ExtractedStore(
        root=store.objects.root,
        digest=digest,
        condemned=before,
        missing=missing,
        bytes=sum(store.objects.sizes().values()),
        seconds=round(time.monotonic() - began, 3),
        text=text,
    )
