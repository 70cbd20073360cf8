"""hsk student: where students come from, what they cost, and their export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.flags import flags_of, with_flags
from hskstore.cli.options import DataArg, DeviceOpt, JsonOpt, quiet_libraries
from hskstore.errors import OptionError
from hskstore.readable import size


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


@with_flags(reading=flags_of(config.DataOptions, leave_out=["validation"]))
def student_prune(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned BERT: folder or hub name.")],
    data: DataArg,
    out: Annotated[Path, typer.Option(help="Folder for the student.")],
    reading: dict[str, Any],
    layers: Annotated[int | None, typer.Option(help="Layers to keep, from the bottom. Default: all.")] = None,
    to: Annotated[
        str, typer.Option(help="HEADS,FFN,RANK: of each layer to keep, and of the word embeddings; each a count, or all.")
    ] = "all,all,all",
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """A student made of what matters most of TEACHER (ROSITA), by one pass over DATA's train split and its gold labels."""
    from hskstore.cli import console, progress

    quiet_libraries()
    from hskstore.models.widths import PruneTo
    from hskstore.students import prune_teacher

    with progress.bars() as watch:
        result = prune_teacher(
            teacher,
            data,
            out=out,
            layers=layers,
            to=PruneTo.parse(to, "--to"),
            device=device,
            watch=watch,
            **reading,
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
    from hskstore.cli import console, print_models

    quiet_libraries()
    from hskstore.explore.stored_teacher import describe_teacher
    from hskstore.models.anatomy import describe_model

    result = [describe_model(model), *([describe_teacher(teacher)] if teacher else [])]
    if as_json:
        console.print_json(result)
    else:
        print_models.print_anatomy(result)


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
        f"{result.folder}/model.onnx: {what}, {size(result.bytes)}; its logits differ from torch's by"
        f" {result.difference:.2g} at most"
    )


def _print_student(console: Any, student: Any, origin: str, as_json: bool) -> None:
    if as_json:
        console.print_json(student)
    else:
        console.out.print(f"{student.folder}: {origin}, {student.layers} layers, {student.parameters:,} parameters")
