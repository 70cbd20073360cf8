"""hsk sweep, search, recommend: which of many configurations is worth its bytes."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hskstore.cli.options import DeviceOpt, JsonOpt, LogWithOpt, bytes_of, quiet_libraries, resumable, trackers_of

RichStoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A sealed rich store (hsk extract --rich): folder or URL.")]
StudentOpt = Annotated[str, typer.Option(help="The student that every run starts from: folder or hub name.")]
SweepOpt = Annotated[
    Path, typer.Option(help="Folder for the table (runs.parquet), what each student says (predictions/), and what goes on.")
]
ScoredOpt = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Further labelled rows that all runs are scored on: a data set of the store's task."),
]
SplitOpt = Annotated[list[str] | None, typer.Option(help="Of --data, may be given several times. Default: test.")]


def sweep(
    store: RichStoreArg,
    student: StudentOpt,
    grid: Annotated[
        str,
        typer.Option(
            metavar="table5|depth|length|width|FILE",
            help="A grid of the paper by its name, or a TOML file: what a recipe has, and keep, with lists where it varies.",
        ),
    ],
    out: SweepOpt,
    seeds: Annotated[int, typer.Option(help="Of each configuration so many runs, with the seeds 0, 1, ...")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs side by side, a process each.")] = 1,
    engine: Annotated[str, typer.Option(help="Who does the runs: procs of this machine, or ray.")] = "procs",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster: auto, host:port, ray://... Default: a Ray of this machine alone.")
    ] = None,
    data: ScoredOpt = None,
    split: SplitOpt = None,
    keep_students: Annotated[bool, typer.Option("--keep-students", help="Save every student, in runs/.")] = False,
    log_with: LogWithOpt = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Train one student by every configuration of a grid, each a view of STORE, with the same batches. Stopped, the same command
    goes on."""
    from hskstore.cli import console, progress
    from hskstore.cli.print_explore import print_run, print_swept

    quiet_libraries()
    from hskstore.explore.sweep import sweep as run

    trackers = trackers_of(log_with)

    with resumable(), progress.bars() as watch:
        result = run(
            store,
            student,
            grid=grid,
            out=out,
            seeds=seeds,
            jobs=jobs,
            engine=engine,  # type: ignore[arg-type]
            address=address,
            data=data,
            splits=split or (),
            keep_students=keep_students,
            log_with=trackers,
            device=device,
            command=_command(),
            on_run=print_run,
            watch=watch,
        )
    if as_json:
        console.print_json(result)
    else:
        print_swept(result)


def search(
    store: RichStoreArg,
    student: StudentOpt,
    out: SweepOpt,
    budget: Annotated[str | None, typer.Option(help="Bytes that a configuration may take at most: 100MB.")] = None,
    trials: Annotated[int | None, typer.Option(help="Runs, those of earlier calls too. Default: 40.")] = None,
    data: ScoredOpt = None,
    split: SplitOpt = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML file with options of every run by their names.")] = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Look for configurations of STORE that teach best within a budget (Optuna). Stopped, the same command goes on."""
    from hskstore.cli import console, progress
    from hskstore.cli.print_explore import print_run, print_searched

    most = None if budget is None else bytes_of(budget)
    quiet_libraries()
    from hskstore.explore.search import search as run

    with resumable(), progress.bars() as watch:
        result = run(
            store,
            student,
            out=out,
            budget=most,
            trials=trials,
            data=data,
            splits=split or (),
            recipe=recipe,
            device=device,
            command=_command(),
            on_run=print_run,
            watch=watch,
        )
    if as_json:
        console.print_json(result)
    else:
        print_searched(result)


def recommend(
    folder: Annotated[str, typer.Argument(metavar="SWEEP", help="The folder that hsk sweep or hsk search has filled.")],
    as_json: JsonOpt = False,
) -> None:
    """Say which configuration of SWEEP to take: the smallest that cannot be told from the best; why, what it costs, how sure."""
    from hskstore.cli import console
    from hskstore.cli.print_explore import print_recommended

    quiet_libraries()
    from hskstore.explore.recommend import recommend as run

    result: Any = run(folder)
    if as_json:
        console.print_json(result)
    else:
        print_recommended(result)


def _command() -> str:
    return shlex.join(["hsk", *sys.argv[1:]])
