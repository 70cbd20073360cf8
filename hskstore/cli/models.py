"""hsk finetune, student, distill, eval: how teachers and students are made, trained and scored."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.options import (
    DataArg,
    DeviceOpt,
    JsonOpt,
    LabelOpt,
    MaxLengthOpt,
    TaskOpt,
    TextOpt,
    TrainPrecisionOpt,
    TrainSeedOpt,
    ValidationOpt,
    first_process,
    quiet_libraries,
    resumable,
)
from hskstore.errors import OptionError


def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A pretrained encoder: folder or hub name.")],
    data: DataArg,
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned model.")],
    task: TaskOpt = None,
    text: TextOpt = None,
    label: LabelOpt = None,
    validation: ValidationOpt = None,
    epochs: int = config.FINETUNE_EPOCHS,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = config.FINETUNE_LR,
    batch_size: int = config.FINETUNE_BATCH_SIZE,
    max_length: MaxLengthOpt = None,
    seed: TrainSeedOpt = 0,
    precision: TrainPrecisionOpt = "auto",
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a teacher: fine-tune MODEL on DATA's gold labels; the best epoch by the dev score is saved."""
    from hskstore.cli import console, progress

    quiet_libraries()
    from hskstore.stage_two.finetune import finetune as run

    with resumable(), progress.bars(shown=first_process()) as watch:
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
    if not first_process():
        return
    if as_json:
        console.print_json(result)
        return
    console.print_scores(result.scores)
    console.out.print(f"{result.folder}: {result.parameters:,} parameters, {result.steps} steps in {result.seconds:.0f} s")


def student_new(
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    preset: Annotated[
        str | None,
        typer.Argument(metavar="PRESET", help="tinybert-4l-312d, bert-mini, rosita-6, ...; or give the four numbers."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Layers.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of a vector: a multiple of --heads.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of each layer.")] = None,
    ffn: Annotated[int | None, typer.Option(help="Units between a layer's two dense parts.")] = None,
    vocab_from: Annotated[
        str, typer.Option(help="Whose tokenizer: a model folder or hub name, as a rule the teacher's.")
    ] = config.DEFAULT_VOCABULARY,
    seed: Annotated[int, typer.Option(help="Decides its weights.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """A smaller BERT from scratch: a preset, or --layers --hidden --heads --ffn; --vocab-from names the teacher."""
    from hskstore.cli import console

    numbers = (layers, hidden, heads, ffn)
    if (preset is None) == (None in numbers) or (preset is not None and any(numbers)):
        raise OptionError("name a PRESET, or give all of --layers --hidden --heads --ffn")
    quiet_libraries()
    from hskstore.students import Shape, new_student

    result = new_student(preset or Shape(*numbers), out, vocab_from=vocab_from, seed=seed)  # type: ignore[arg-type]
    _print_student(console, result, preset or "from scratch", as_json)


def student_slice(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Folder or hub name.")],
    layers: Annotated[
        str, typer.Option(help="The teacher's layers to copy, from 1: 4,8,12, bottom:3 (1,2,3) or every:2 (2,4,6...).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    as_json: JsonOpt = False,
) -> None:
    """A student made of some of TEACHER's layers, with its embeddings and head."""
    from hskstore.cli import console

    quiet_libraries()
    from hskstore.students import slice_teacher

    result = slice_teacher(teacher, layers, out)
    _print_student(console, result, f"layers {layers} of {teacher}", as_json)


def student_prune(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned BERT: folder or hub name.")],
    data: DataArg,
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    layers: Annotated[int | None, typer.Option(help="Layers to keep, from the bottom. Default: all.")] = None,
    to: Annotated[
        str, typer.Option(help="HEADS,FFN,RANK: of each layer to keep, and of the word embeddings; each a count, or all.")
    ] = "all,all,all",
    task: TaskOpt = None,
    text: TextOpt = None,
    label: LabelOpt = None,
    max_length: MaxLengthOpt = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """A student made of what matters most of TEACHER (ROSITA), by one pass over DATA's train split and its gold labels."""
    from hskstore.cli import console, progress

    quiet_libraries()
    from hskstore.models.pruning import PruneTo
    from hskstore.students import prune_teacher

    with progress.bars() as watch:
        result = prune_teacher(
            teacher,
            data,
            out=out,
            layers=layers,
            to=PruneTo.parse(to, "--to"),
            task=task,
            text=text or (),
            label=label,
            max_length=max_length,
            device=device,
            watch=watch,
        )
    _print_student(console, result, f"pruned from {teacher}", as_json)


def student_show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A student: folder or hub name.")],
    teacher: Annotated[
        str | None, typer.Option(help="Beside this teacher: folder, hub name, or a store made with it (its shape is kept).")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """A student's parameters by part, FLOPs a token and CPU latency at lengths 32 and 128, beside its teacher's."""
    from hskstore.cli import console

    quiet_libraries()
    from hskstore.explore.stored_teacher import describe_teacher
    from hskstore.models.anatomy import describe_model

    result = [describe_model(model), *([describe_teacher(teacher)] if teacher else [])]
    if as_json:
        console.print_json(result)
    else:
        console.print_anatomy(result)


def student_export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A trained student: folder or hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for model.onnx, the tokenizer and the config.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="The format; there is no other.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: a quarter of the bytes.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Export a trained student to ONNX: onnxruntime runs it without hskstore, torch or transformers. hsk eval scores it."""
    from hskstore.cli import console

    if not onnx:
        raise OptionError("pass --onnx: it is the one format there is")
    quiet_libraries()
    from hskstore.models.onnx import export_onnx

    result = export_onnx(model, out, int8=int8)
    if as_json:
        console.print_json(result)
        return
    what = "int8" if result.int8 else "float32"
    console.out.print(
        f"{result.folder}/model.onnx: {what}, {console.size(result.bytes)}; its logits differ from torch's by"
        f" {result.difference:.2g} at most"
    )


def _print_student(console: Any, student: Any, origin: str, as_json: bool) -> None:
    if as_json:
        console.print_json(student)
    else:
        console.out.print(f"{student.folder}: {origin}, {student.layers} layers, {student.parameters:,} parameters")


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
    max_steps: Annotated[int | None, typer.Option(help="At most so many steps, shared among the phases.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="At most so many minutes of training, shared likewise; a decaying rate decays in them.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End a phase after so many epochs whose dev score is no better than the best.")
    ] = None,
    warmup: Annotated[float, typer.Option(help="Share of a decaying phase over which the rate rises.")] = config.DEFAULT_WARMUP,
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
    prune_to: Annotated[
        str | None, typer.Option(help="HEADS,FFN,RANK: a BERT gets so narrow while it learns, a head at a time (ROSITA).")
    ] = None,
    prune_share: Annotated[float | None, typer.Option(help="Share of the first phase over which it does. Default: 0.5.")] = None,
    seed: TrainSeedOpt = 0,
    precision: TrainPrecisionOpt = "auto",
    loader: Annotated[
        config.Loader,
        typer.Option(help="Rows in memory (ram) or read in pieces (blocks). Default: ram, if 40 % of memory will do."),
    ] = "auto",
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Train a student from STORE alone; the teacher is not needed. Stopped, the same command goes on."""
    from hskstore.cli import console, progress

    quiet_libraries()
    from hskstore.methods import make_method
    from hskstore.models.pruning import PruneTo
    from hskstore.stage_two.distill import distill as run
    from hskstore.stage_two.settings import Overrides

    options = {"temperature": temperature, "alpha": alpha, "targets": targets, "regression_target": regression_target}
    chosen = make_method(method, {name: value for name, value in options.items() if value is not None})
    overrides = Overrides(
        epochs=_numbers("--epochs", epochs, int),
        lr=_numbers("--lr", lr, float),
        batch_size=_numbers("--batch-size", batch_size, int),
        max_steps=max_steps,
        max_minutes=max_minutes,
        patience=patience,
        warmup=warmup,
    )
    with resumable(), progress.bars(shown=first_process()) as watch:
        result = run(
            store,
            student=student,
            method=chosen,
            out=out,
            overrides=overrides,
            prune_to=None if prune_to is None else PruneTo.parse(prune_to),
            prune_share=prune_share,
            seed=seed,
            precision=precision,
            loader=loader,
            projection=projection,
            device=device,
            command=shlex.join(["hsk", *sys.argv[1:]]),
            watch=watch,
        )
    if not first_process():
        return
    if as_json:
        console.print_json(result)
    else:
        console.print_distilled(result)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A classifier: folder (of torch or ONNX) or hub name.")],
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
    from hskstore.cli import console, progress

    quiet_libraries()
    from hskstore.stage_two.evaluate import evaluate as run
    from hskstore.stage_two.scores import Scored

    with progress.bars() as watch:
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


def _numbers(option: str, text: str | None, kind: type) -> Any:
    """Read "10,5": one number per phase, or one for all."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} {text}: expected numbers with commas, such as 10,5") from None
