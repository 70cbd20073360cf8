"""hsk finetune, distill, eval: how teachers and students are trained and scored."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.flags import Command, flags_of, with_flags
from hskstore.cli.options import (
    DataArg,
    DeviceOpt,
    JsonOpt,
    LogWithOpt,
    first_process,
    prepare_torch,
    quiet_libraries,
    resumable,
    trackers_of,
)
from hskstore.errors import OptionError
from hskstore.readable import size


@with_flags(options=flags_of(config.FinetuneOptions))
def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A pretrained encoder: folder or hub name.")],
    data: DataArg,
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned model.")],
    options: config.FinetuneOptions,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a teacher: fine-tune MODEL on DATA's gold labels; the best epoch by the dev score is saved."""
    from hskstore.cli import console, print_models, print_stores, progress

    quiet_libraries()
    from hskstore.stage_two.finetune import finetune as run

    with resumable(), progress.bars(shown=first_process()) as watch:
        result = run(model, data, out=out, device=device, watch=watch, **options)
    if not first_process():
        return
    if as_json:
        console.print_json(result)
        return
    print_stores.print_text(result.text)
    print_models.print_scores(result.scores)
    console.out.print(f"{result.folder}: {result.parameters:,} parameters, {result.steps} steps in {result.seconds:.0f} s")


OF_METHODS = "Of the methods named (hsk methods NAME tells all about one)"
CHOOSING = "Of ksm, and of --select: how the weights of terms are chosen at every step"
RICH = "Of a rich STORE: the configuration to learn from, without a copy"
"""What `hsk distill --help` calls its options."""
VALUES = "Learnt from as f16, f32, q8 (int8) or q4 (4 bits). Of codes make a store first: hsk derive."
"""What `--values` is there: a view has no codebooks."""


def distill() -> None:
    """Train a student from STORE alone; the teacher is not needed. Stopped, the same command goes on."""


def distill_with_flags() -> Command:
    """`distill` itself: its flags are those of the methods, which import torch, so it is made when it is asked for."""
    prepare_torch()
    from hskstore.cli import console
    from hskstore.methods import Selection, method_options
    from hskstore.options import options_of
    from hskstore.stage_two.recipe import Recipe, overridden, read_recipe, recipe_options, write_recipe

    panels = {"of_methods": OF_METHODS, "choosing": CHOOSING, "strategy": RICH}
    of_methods, choosing = method_options(), options_of(Selection)
    own = {name: option for name, option in recipe_options().items() if name not in {*of_methods, *choosing}}
    strategy = flags_of(config.Strategy)
    strategy["values"] = replace(strategy["values"], kind=str, help=VALUES)

    @with_flags(panels, own=own, of_methods=of_methods, choosing=choosing, strategy=strategy)
    def command(
        store: Annotated[
            str | None,
            typer.Argument(
                metavar="STORE",
                help="A sealed store's folder or URL. Needed, as are --out and --student, but for --write-recipe.",
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder for the trained student, its log, metrics.json and recipe.toml.")
        ] = None,
        recipe: Annotated[
            Path | None, typer.Option(help='A TOML file with options by their names: epochs = "10,5". Those given here win.')
        ] = None,
        write_to: Annotated[
            Path | None,
            typer.Option(
                "--write-recipe",
                help="Write the recipe of these options to this new file, and stop: nothing is read, nothing trained.",
            ),
        ] = None,
        own: Any = None,
        of_methods: Any = None,
        choosing: Any = None,
        keep: Annotated[
            str | None,
            typer.Option(help="What to learn from of its hidden states: DEPTH,LENGTH,WIDTH.", rich_help_panel=RICH),
        ] = None,
        strategy: Any = None,
        log_with: LogWithOpt = None,
        device: DeviceOpt = None,
        as_json: JsonOpt = False,
    ) -> None:
        chosen = Recipe.of(overridden(read_recipe(recipe) if recipe is not None else {}, {**own, **of_methods, **choosing}))
        if write_to is not None:
            write_recipe(write_to, chosen)
            student = " --student STUDENT" if chosen.student is None else ""
            console.err.print(f"{write_to}: a recipe, for hsk distill STORE --recipe {write_to}{student} --out DIR")
        elif store is None or out is None:
            raise OptionError("distill needs a STORE and --out; only --write-recipe does without")
        elif strategy and keep is None:
            raise OptionError("how hidden states are chosen goes with --keep, and a rich store")
        else:
            _train(store, chosen, keep, strategy, out, log_with, device, as_json)

    command.__name__, command.__doc__ = distill.__name__, distill.__doc__
    return command


def _train(
    store: str,
    recipe: Any,
    keep: str | None,
    strategy: dict[str, Any],
    out: Path,
    log_with: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    from hskstore.cli import console, print_models, progress

    quiet_libraries()
    trackers, command = trackers_of(log_with), shlex.join(["hsk", *sys.argv[1:]])
    from hskstore.stage_two.distill import distill as run

    with resumable(), progress.bars(shown=first_process()) as watch:
        read = store if keep is None else _view(store, recipe, keep, strategy)
        result = run(read, recipe, out=out, device=device, command=command, log_with=trackers, watch=watch)
    if not first_process():
        return
    if as_json:
        console.print_json(result)
    else:
        print_models.print_distilled(result)


def _view(store: str, recipe: Any, keep: str, strategy: dict[str, Any]) -> Any:
    """A configuration of a rich store, for a student of the recipe's depth."""
    from hskstore.features.view import view
    from hskstore.models.load import layers_of
    from hskstore.store import open_store

    if recipe.student is None:
        raise OptionError("--student names the student to train: a folder or hub name")
    return view(open_store(store), config.Keep.parse(keep), config.Strategy(layers_of(recipe.student), **strategy))


@with_flags(reading=flags_of(config.DataOptions))
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A classifier: folder (of torch or ONNX) or hub name.")],
    source: Annotated[str, typer.Argument(metavar="DATA|STORE", help="A data set, or a store (its validation split).")],
    reading: config.DataOptions,
    split: Annotated[list[str] | None, typer.Option(help="Default: validation. Several are scored together.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Score a model: its metrics with a standard error, parameters, bytes on disk, CPU latency of one example."""
    from hskstore.cli import console, print_models, progress

    quiet_libraries()
    from hskstore.stage_two.evaluate import evaluate as run
    from hskstore.stage_two.scores import Scored

    with progress.bars() as watch:
        result = run(model, source, splits=split or ("validation",), watch=watch, **reading)
    if as_json:
        console.print_json(result)
        return
    print_models.print_scores(result.by_split)
    if split and len(split) > 1:
        print_models.print_scores({"together": Scored(result.score, result.standard_error, result.rows)})
    weights = size(result.bytes) if result.bytes else "weights on the hub"
    console.out.print(f"{result.parameters:,} parameters, {weights}, {result.latency_ms:.1f} ms an example on the CPU")
