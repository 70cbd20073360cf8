"""hsk extract, show, verify, derive, push, pull: how stores are made, looked at, checked, cut and moved."""

from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.options import (
    MOST_SEED,
    DataArg,
    DeviceOpt,
    JsonOpt,
    LabelOpt,
    MaxLengthOpt,
    StoreArg,
    TaskOpt,
    TextOpt,
    ValidationOpt,
    quiet_libraries,
    resumable,
)
from hskstore.errors import OptionError


def extract(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned classifier: folder or hub name.")],
    data: DataArg,
    keep: Annotated[list[str], typer.Option(help="DEPTH,LENGTH,WIDTH: counts (9), fractions (0.1) or all. A store each.")],
    student_layers: Annotated[list[int], typer.Option(help="Layers of the student to come. A store each.")],
    out: Annotated[str, typer.Option(help="Folder (or s3://, gs://, az:// URL) that will hold the stores.")],
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
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Decides the order of rows, and random ranks and masks.")] = 0,
    keep_offsets: Annotated[
        bool,
        typer.Option(
            "--keep-offsets",
            help="Keep the text and each token's characters, so that a student with another tokenizer can learn too.",
        ),
    ] = False,
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
    quiet_libraries()
    from hskstore.extract import extract as run

    with resumable(), console.bars() as watch:
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
            keep_offsets=keep_offsets,
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
    for store in result:
        if store.condemned not in (None, store.digest):
            console.print_changed_digest(store.root, store.condemned, store.digest)


def show(
    store: StoreArg,
    row: Annotated[int | None, typer.Option(help="Show one stored row's tokens, coloured by rank.")] = None,
    split: Annotated[str, typer.Option(help="The row's split.")] = "train",
    as_json: JsonOpt = False,
) -> None:
    """Tell what a store holds: arrays and their sizes, units of HSK, provenance; of an unsealed one, how far it is."""
    from hskstore import console
    from hskstore import show as shown

    result: Any
    if row is not None:
        quiet_libraries()
        result = shown.ranked_row(store, row, split)
    elif shown.is_sealed(store):
        result = shown.describe(store)
    else:
        result = shown.describe_progress(store)
    if as_json:
        console.print_json(result)
    else:
        console.print_shown(result)


def verify(
    store: StoreArg,
    deep: Annotated[bool, typer.Option("--deep", help="Read everything: every sha256, not presence and sizes alone.")] = False,
    condemn: Annotated[
        bool, typer.Option("--condemn", help="Take the seal off, and what is bad out, so that extract makes just that again.")
    ] = False,
    replay: Annotated[int | None, typer.Option(min=1, help="Run so many sampled rows through --teacher again.")] = None,
    teacher: Annotated[str | None, typer.Option(help="For --replay: the teacher's folder or hub name.")] = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Check every object of STORE, sealed or not, against its seal and its receipts. Damage ends with exit code 2."""
    from hskstore import console
    from hskstore.store.verify import verify as run

    if (replay is None) != (teacher is None):
        raise OptionError("--replay and --teacher go together: how many rows, and through which teacher")
    with resumable(), console.bars() as watch:
        verified = run(store, deep=deep, condemn=condemn, watch=watch)
    replayed = None
    if replay is not None and teacher is not None and not verified.problems:
        quiet_libraries()
        from hskstore.replay import replay as run_again

        with console.bars() as watch:
            replayed = run_again(store, teacher, rows=replay, device=device, watch=watch)
    if as_json:
        console.print_json({"verified": verified, "replayed": replayed})
    else:
        console.print_verified(verified, replayed)
    if verified.problems or (replayed is not None and replayed.differing):
        raise typer.Exit(2)


def derive(
    store: StoreArg,
    keep: Annotated[str, typer.Option(help="DEPTH,LENGTH,WIDTH: what to keep of what the store keeps.")],
    out: Annotated[str, typer.Option(help="Folder (or object-store URL) for the new store itself.")],
    as_json: JsonOpt = False,
) -> None:
    """Cut a smaller configuration out of STORE, without the teacher: what extract --keep would have written, bit for bit."""
    _derive(store, keep, out, as_json)


def push(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A sealed store.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The store's place to be: s3://, gs://, az://, hf://, folder.")],
    as_json: JsonOpt = False,
) -> None:
    """Copy a store, every object verified, the seal last. Stopped, the same command sends only what is missing."""
    _copy(source, target, as_json)


def pull(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A sealed store: s3://, gs://, az://, hf://, folder.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Folder for the store itself. A damaged copy is repaired.")],
    keep: Annotated[str | None, typer.Option(help="Pull a smaller configuration: only its layers travel.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Fetch a store, every object verified, the seal last. Stopped, the same command fetches only what is missing."""
    if keep is None:
        _copy(source, target, as_json)
    else:
        _derive(source, keep, target, as_json)


def _derive(store: str, keep: str, out: str, as_json: bool) -> None:
    from hskstore import console
    from hskstore.store.derive import derive as run

    with resumable(), console.bars() as watch:
        result = run(store, config.Keep.parse(keep), out, watch=watch)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{result.root}: keep {keep}, {console.size(result.bytes)}, sealed, digest {result.digest}")
    console.out.print(f"cut from {result.source[:16]} in {result.seconds:.1f} s")


def _copy(source: str, target: str, as_json: bool) -> None:
    from hskstore import console
    from hskstore.store.copy import copy_store

    with resumable(), console.bars() as watch:
        result = copy_store(source, target, watch=watch)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{result.root}: {console.size(result.bytes)}, sealed, digest {result.digest}")
    there = "" if result.sent == result.objects else "; the rest was there already"
    console.out.print(f"sent {result.sent} of {result.objects} objects, {console.size(result.sent_bytes)}{there}")
