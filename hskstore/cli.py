"""hsk: parse, call, print."""

import errno
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hskstore import __version__, config
from hskstore.errors import HskError, OptionError

app = typer.Typer(
    name="hsk",
    help="Offline hidden-state distillation: run the teacher once, train any student from what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
student_app = typer.Typer(help="Make a student: from scratch, or out of a teacher's layers.", no_args_is_help=True)
app.add_typer(student_app, name="student")

DataArg = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder, file (TSV, CSV, JSON lines, Parquet) or hub name (glue/cola).")
]
TaskOpt = Annotated[str | None, typer.Option(help="A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli.")]
TextOpt = Annotated[list[str] | None, typer.Option(help="Text column, for data that is no known task; twice for pairs.")]
LabelOpt = Annotated[str | None, typer.Option(help="Label column: class names, class ids, or scores.")]
ValidationOpt = Annotated[str | None, typer.Option(help="A file, or the share of train (0.1), where DATA has no such split.")]
MaxLengthOpt = Annotated[int | None, typer.Option(help="Tokens a row is cut to. Default: the task's (64 or 128).")]
TrainSeedOpt = Annotated[int, typer.Option(min=0, help="Decides new weights, the order of rows, and dropout.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")]


UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What a user's folder can answer to a write."""


@app.callback(invoke_without_command=True)
def _hsk(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A pretrained encoder: folder or hub name.")],
    data: DataArg,
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned model.")],
    task: TaskOpt = None,
    text: TextOpt = None,
    label: LabelOpt = None,
    validation: ValidationOpt = None,
    epochs: Annotated[int, typer.Option(min=1)] = config.FINETUNE_EPOCHS,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = config.FINETUNE_LR,
    batch_size: Annotated[int, typer.Option(min=1)] = config.FINETUNE_BATCH_SIZE,
    max_length: MaxLengthOpt = None,
    seed: TrainSeedOpt = 0,
    precision: Annotated[config.TrainPrecision, typer.Option(help="bf16 by autocast.")] = "fp32",
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a teacher: fine-tune MODEL on DATA's gold labels; the best epoch by the dev score is saved."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.finetune import finetune as run

    with _resumable(), console.bars() as watch:
        result = run(
            model,
            data,
            out=out,
            task=task,
            text=text or (),
            label=label,
            validation=validation,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            precision=precision,
            device=device,
            watch=watch,
        )
    if as_json:
        console.print_json(result)
        return
    console.print_scores(result.scores)
    console.out.print(f"{result.folder}: {result.parameters:,} parameters, {result.steps} steps in {result.seconds:.0f} s")


@app.command()
def extract(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned classifier: folder or hub name.")],
    data: DataArg,
    keep: Annotated[list[str], typer.Option(help="DEPTH,LENGTH,WIDTH: counts (9), fractions (0.1) or all. A store each.")],
    student_layers: Annotated[list[int], typer.Option(help="Layers of the student to come. A store each.")],
    out: Annotated[str, typer.Option(help="Folder (or object-store URL) that will hold the stores.")],
    task: TaskOpt = None,
    text: TextOpt = None,
    label: LabelOpt = None,
    validation: ValidationOpt = None,
    top_layer: Annotated[
        int | None, typer.Option(help="L_top, the teacher layer of the student's last. Default: 10/12 L.")
    ] = None,
    layer_map: Annotated[
        config.LayerMap, typer.Option(help="g: round (l L_top / L') or eq5 (the paper's Equation 5).")
    ] = "round",
    rank: Annotated[config.Rank, typer.Option(help="Tokens by attention, attention-with-sep, left or random.")] = "attention",
    rank_layer: Annotated[
        config.RankLayer, typer.Option(help="Attention of the aligned layer (L_top = last), or the same as g.")
    ] = "aligned",
    score: Annotated[config.Score, typer.Option(help="Attention probability, or raw score before softmax.")] = "probability",
    mask: Annotated[config.Mask, typer.Option(help="Units by magnitude, uniform or random.")] = "magnitude",
    values: Annotated[config.Values, typer.Option(help="Stored as f16, f32, q8 (int8) or q4 (4 bits).")] = "f16",
    max_length: MaxLengthOpt = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens of a teacher's batch.")] = config.DEFAULT_BATCH_TOKENS,
    precision: Annotated[config.Precision, typer.Option(help="The teacher's; bf16 and fp16 by autocast.")] = "fp32",
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of rows, and random ranks and masks.")] = 0,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Run TEACHER once over DATA and write a sealed store for every --keep. Stopped, the same command goes on."""
    from hskstore import console

    keeps = [config.Keep.parse(each) for each in keep]
    fields: dict[str, Any] = {
        "top_layer": top_layer,
        "layer_map": layer_map,
        "rank": rank,
        "rank_layer": rank_layer,
        "score": score,
        "mask": mask,
        "values": values,
    }
    strategies = [config.Strategy(layers, **fields) for layers in student_layers]
    _quiet_libraries()
    from hskstore.extract import extract as run

    with _resumable(), console.bars() as watch:
        result = run(
            teacher,
            data,
            out=out,
            keeps=keeps,
            strategies=strategies,
            task=task,
            text=text or (),
            label=label,
            validation=validation,
            max_length=max_length,
            batch_tokens=batch_tokens,
            device=device,
            precision=precision,
            seed=seed,
            on_plan=console.print_plan,
            watch=watch,
        )
    if as_json:
        console.print_json(result)
        return
    table = console.grid("sealed store", "bytes", "digest")
    for store in result:
        table.add_row(store.root, console.size(store.bytes), store.digest[:16])
    console.out.print(table)


@app.command()
def show(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store's folder or URL, sealed or not.")],
    row: Annotated[int | None, typer.Option(help="Show one stored row's tokens, coloured by rank.")] = None,
    split: Annotated[str, typer.Option(help="The row's split.")] = "train",
    as_json: JsonOpt = False,
) -> None:
    """Tell what a store holds: arrays and their sizes, units of HSK, provenance; of an unsealed one, how far it is."""
    from hskstore import console
    from hskstore import show as shown

    result: Any
    if row is not None:
        _quiet_libraries()
        result = shown.ranked_row(store, row, split)
    elif shown.is_sealed(store):
        result = shown.describe(store)
    else:
        result = shown.describe_progress(store)
    if as_json:
        console.print_json(result)
    else:
        console.print_shown(result)


@student_app.command("new")
def student_new(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="tinybert-4l-312d, bert-mini, minilm-6l-384d, ...")],
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    vocab_from: Annotated[
        str, typer.Option(help="Whose tokenizer: a model folder or hub name. It must be the teacher's.")
    ] = config.DEFAULT_VOCABULARY,
    seed: Annotated[int, typer.Option(min=0, help="Decides its weights.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """A smaller BERT from scratch, with the teacher's tokenizer."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.students import new_student

    result = new_student(preset, out, vocab_from=vocab_from, seed=seed)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{out}: {preset}, {result.layers} layers, {result.parameters:,} parameters")


@student_app.command("slice")
def student_slice(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Folder or hub name.")],
    layers: Annotated[str, typer.Option(help="The teacher's layers to copy, from 1: 2,4,6.")],
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    as_json: JsonOpt = False,
) -> None:
    """A student made of some of TEACHER's layers, with its embeddings and head."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.students import parse_layers, slice_teacher

    result = slice_teacher(teacher, parse_layers(layers), out)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{out}: layers {layers} of {teacher}, {result.parameters:,} parameters")


@app.command()
def distill(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A sealed store's folder or URL.")],
    student: Annotated[str, typer.Option(help="The student to train: folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the trained student, its log and metrics.json.")],
    method: Annotated[
        config.MethodName, typer.Option(help="mud (hidden states, then logits), kd (logits) or finetune (gold labels).")
    ] = "mud",
    epochs: Annotated[
        str | None, typer.Option(help="Per phase: 10,5. Default: the paper's for the task, SST-2's for data of your own.")
    ] = None,
    lr: Annotated[str | None, typer.Option(help="Peak rate per phase: 5e-5,2e-5. Default: likewise.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Per phase: 32,32. Default: likewise.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps, shared among the phases.")] = None,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a decaying phase over which the rate rises.")
    ] = config.DEFAULT_WARMUP,
    temperature: Annotated[float | None, typer.Option(help="Of the soft labels (mud, kd). Default: 1.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the gold label beside the logits (kd). Default: 0.")] = None,
    targets: Annotated[
        config.Targets | None, typer.Option(help="Learn masked-out units as zero, or ignore them (mud). Default: zero.")
    ] = None,
    regression_target: Annotated[
        config.RegressionTarget | None, typer.Option(help="Whose score to learn (mud). Default: the teacher's.")
    ] = None,
    projection: Annotated[
        config.Projection | None, typer.Option(help="One for all layers or one each, if widths differ (mud). Default: shared.")
    ] = None,
    seed: TrainSeedOpt = 0,
    precision: Annotated[config.TrainPrecision, typer.Option(help="bf16 by autocast.")] = "fp32",
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Train a student from STORE alone; the teacher is not needed. Stopped, the same command goes on."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.distill import Overrides
    from hskstore.distill import distill as run
    from hskstore.methods import make_method

    options = {"temperature": temperature, "alpha": alpha, "targets": targets, "regression_target": regression_target}
    chosen = make_method(method, {name: value for name, value in options.items() if value is not None})
    if projection is not None and method != "mud":
        raise OptionError(f"--projection: the method {method} learns no hidden states; only mud has one")
    overrides = Overrides(
        epochs=_numbers("--epochs", epochs, int),
        lr=_numbers("--lr", lr, float),
        batch_size=_numbers("--batch-size", batch_size, int),
        max_steps=max_steps,
        warmup=warmup,
    )
    with _resumable(), console.bars() as watch:
        result = run(
            store,
            student=student,
            method=chosen,
            out=out,
            overrides=overrides,
            seed=seed,
            precision=precision,
            projection=projection or "shared",
            device=device,
            command=shlex.join(["hsk", *sys.argv[1:]]),
            watch=watch,
        )
    if as_json:
        console.print_json(result)
        return
    for phase in result.phases:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in phase.losses.items())
        console.out.print(f"{phase.name}: {phase.steps} steps in {phase.seconds:.0f} s, {losses}")
    console.print_scores(result.scores)
    console.out.print(f"{result.folder}: {result.parameters:,} parameters; from store {result.digest[:16]}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A classifier: folder or hub name.")],
    source: Annotated[str, typer.Argument(metavar="DATA|STORE", help="A data set, or a store (its validation split).")],
    task: TaskOpt = None,
    text: TextOpt = None,
    label: LabelOpt = None,
    validation: ValidationOpt = None,
    split: Annotated[list[str] | None, typer.Option(help="Default: validation. Several are scored together.")] = None,
    max_length: MaxLengthOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Score a model: its metrics with a standard error, parameters, bytes on disk, CPU latency of one example."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.evaluate import Scored
    from hskstore.evaluate import evaluate as run

    with console.bars() as watch:
        result = run(
            model,
            source,
            task=task,
            text=text or (),
            label=label,
            validation=validation,
            splits=split or ("validation",),
            max_length=max_length,
            watch=watch,
        )
    if as_json:
        console.print_json(result)
        return
    console.print_scores(result.by_split)
    if split and len(split) > 1:
        console.print_scores({"together": Scored(result.score, result.standard_error, result.rows)})
    weights = console.size(result.bytes) if result.bytes else "weights on the hub"
    console.out.print(f"{result.parameters:,} parameters, {weights}, {result.latency_ms:.1f} ms an example on the CPU")


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Keep everything it makes here. Default: a temporary folder.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """The whole story offline, on a made-up language: teacher, stores, teacher deleted, students, table."""
    from hskstore import console

    _quiet_libraries()
    from hskstore.demo import run_demo

    with console.bars() as watch:
        result = run_demo(out, say=console.err.print, watch=watch)
    if as_json:
        console.print_json(result)
    else:
        console.print_demo(result)


def main() -> None:
    """Run a command. What a user can mend is one message and exit code 2, never a traceback."""
    try:
        app()
    except HskError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _fail(f"{error.filename or 'a file'} could not be written: {error.strerror}. Make room, or choose another --out")


def _fail(message: str) -> None:
    print(f"hsk: {message}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C in a command that goes on where it was."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nhsk: stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the way, and show our warnings; hub downloads still show their bars."""
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    enable_progress_bars()

    from hskstore import console

    logging.getLogger("hskstore").handlers = [console.Warnings()]


def _numbers(option: str, text: str | None, kind: type) -> Any:
    """Read "10,5": one number per phase, or one for all."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} {text}: expected numbers with commas, such as 10,5") from None
