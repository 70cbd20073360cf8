"""hsk extract, show, verify, derive, push, pull: how stores are made, looked at, checked, cut and moved."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.flags import flags_of, with_flags
from hskstore.cli.methods import methods_for
from hskstore.cli.options import (
    STRATEGY,
    DataArg,
    DeviceOpt,
    ForOpt,
    JsonOpt,
    KeepOpt,
    RichOpt,
    StoreArg,
    StudentLayersOpt,
    TeacherArg,
    quiet_libraries,
    resumable,
    strategies_for,
)
from hskstore.errors import OptionError
from hskstore.readable import size

CutOpt = Annotated[str | None, typer.Option(help="DEPTH,LENGTH,WIDTH: what to keep of the hidden states that the store keeps.")]
CutLayersOpt = Annotated[list[int] | None, typer.Option(help="With --for, or of a rich store: layers of the student.")]
PullLayersOpt = Annotated[list[int] | None, typer.Option(help="With --for: layers of the student.")]


@with_flags({"strategy": STRATEGY}, strategy=flags_of(config.Strategy), options=flags_of(config.PassOptions))
def extract(
    teacher: TeacherArg,
    data: DataArg,
    *,
    out: Annotated[str, typer.Option(help="Folder (or s3://, gs://, az:// URL) that will hold the stores.")],
    keep: KeepOpt = None,
    learners: ForOpt = None,
    rich: RichOpt = False,
    student_layers: StudentLayersOpt = None,
    strategy: dict[str, Any],
    options: config.PassOptions,
    engine: Annotated[
        config.Engine,
        typer.Option(help="Who runs the teacher: this process, procs of this machine, static (one rank of several), ray."),
    ] = "inline",
    workers: Annotated[
        int | None, typer.Option(help="Of procs and ray. Default: one per GPU, or one per core where there is none.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster: auto, host:port, ray://... Default: a Ray of this machine alone.")
    ] = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Run TEACHER once over DATA and write sealed stores: of what methods read (--for), or configurations of hidden states
    (--keep). Stopped, the same command goes on."""
    from hskstore.cli import console, print_stores, progress

    keeps = [config.Keep.parse(each) for each in keep or ()]
    strategies = strategies_for(student_layers, strategy, needed=bool(keep or learners))
    methods = methods_for(learners or ())
    quiet_libraries()
    from hskstore.stage_one.extract import extract as run

    with resumable(), progress.bars() as watch:
        result = run(
            teacher,
            data,
            out=out,
            keeps=keeps,
            strategies=strategies,
            methods=methods,
            rich=rich,
            engine=engine,
            workers=workers,
            address=address,
            device=device,
            on_plan=print_stores.print_plan,
            watch=watch,
            **options,
        )
    if as_json:
        console.print_json(result)
        return
    print_stores.print_extracted(result)


def show(
    store: StoreArg,
    row: Annotated[int | None, typer.Option(help="Show one stored row's tokens, coloured by rank.")] = None,
    split: Annotated[str, typer.Option(help="The row's split.")] = "train",
    as_json: JsonOpt = False,
) -> None:
    """Tell what a store holds and which methods it serves: arrays and their sizes, units of HSK, provenance; of an unsealed one,
    how far it is."""
    from hskstore.cli import console, print_stores
    from hskstore.explore import show as shown

    result: Any
    services: list[Any] | None = None
    if row is not None:
        quiet_libraries()
        result = shown.ranked_row(store, row, split)
    elif shown.is_sealed(store):
        result = shown.describe(store)
        quiet_libraries()
        from hskstore.methods.serving import services_of

        services = services_of(store)
    else:
        result = shown.describe_progress(store)
    if as_json:
        console.print_json(result if services is None else {**asdict(result), "serves": services})
    else:
        print_stores.print_shown(result)
        print_stores.print_services(services or [])


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
    from hskstore.cli import console, print_stores, progress
    from hskstore.store.verify import verify as run

    if (replay is None) != (teacher is None):
        raise OptionError("--replay and --teacher go together: how many rows, and through which teacher")
    with resumable(), progress.bars() as watch:
        verified = run(store, deep=deep, condemn=condemn, watch=watch)
    replayed = None
    if replay is not None and teacher is not None and not verified.problems:
        quiet_libraries()
        from hskstore.stage_one.replay import replay as run_again

        with progress.bars() as watch:
            replayed = run_again(store, teacher, rows=replay, device=device, watch=watch)
    if as_json:
        console.print_json({"verified": verified, "replayed": replayed})
    else:
        print_stores.print_verified(verified, replayed)
    if verified.problems or (replayed is not None and (replayed.differing or replayed.unlike)):
        raise typer.Exit(2)


@with_flags({"strategy": STRATEGY}, strategy=flags_of(config.Strategy))
def derive(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A sealed store's folder or URL.")],
    *,
    out: Annotated[str, typer.Option(help="Folder (or object-store URL) for the new store itself.")],
    keep: CutOpt = None,
    learners: ForOpt = None,
    student_layers: CutLayersOpt = None,
    strategy: dict[str, Any],
    as_json: JsonOpt = False,
) -> None:
    """Cut a smaller store out of STORE, without the teacher: what extract with these options would have written, bit for bit.
    Of a rich store any --keep, for any --student-layers and by any strategy. With --values rq8 whole vectors become codes, and
    codes shorter ones."""
    values = strategy.get("values")
    if keep is None and not learners and values is None:
        raise OptionError("say what to cut out of it: --keep DEPTH,LENGTH,WIDTH, or --for METHOD, or codes with --values rq8")
    if learners and strategy.keys() - {"values"}:
        raise OptionError("--for cuts what methods read as it is stored; how hidden states are chosen goes with --keep alone")
    if learners or not (strategy.keys() - {"values"} or student_layers):
        _derive(store, keep, learners or (), student_layers or (), out, as_json, values)
    else:
        _derive_view(store, keep or "", strategies_for(student_layers, strategy, needed=True), out, as_json)


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
    keep: CutOpt = None,
    learners: ForOpt = None,
    student_layers: PullLayersOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Fetch a store, every object verified, the seal last; with --keep or --for a smaller one, of which only the layers that it
    keeps travel. Stopped, the same command fetches only what is missing."""
    if keep is None and not learners and not student_layers:
        _copy(source, target, as_json)
    else:
        _derive(source, keep, learners or (), student_layers or (), target, as_json)


def _derive_view(store: str, keep: str, strategies: Sequence[config.Strategy], out: str, as_json: bool) -> None:
    from hskstore.cli import progress

    if len(strategies) > 1:
        raise OptionError("a store is of one --student-layers: derive the others by commands of their own")
    quiet_libraries()
    from hskstore.features.view import derive_view, view
    from hskstore.stage_one.coded import coded_view, derive_coded
    from hskstore.store import open_store
    from hskstore.store.vectors import are_codes

    with resumable(), progress.bars() as watch:
        rich, wanted, strategy = open_store(store), config.Keep.parse(keep), strategies[0]
        if are_codes(strategy.values):
            result = derive_coded(coded_view(rich, wanted, strategy, out, watch=watch), watch=watch)
        else:
            result = derive_view(view(rich, wanted, strategy), out, watch=watch)
    _print_derived(result, f"keep {keep} for a student of {strategy.student_layers} layers", as_json)


def _derive(
    store: str,
    keep: str | None,
    learners: Sequence[str],
    student_layers: Sequence[int],
    out: str,
    as_json: bool,
    values: config.Values | None = None,
) -> None:
    """Of `values` alone all that the store holds is cut."""
    from hskstore.cli import progress
    from hskstore.store.derive import derive as run

    if bool(learners) != bool(student_layers):
        raise OptionError("--for and --student-layers go together: what is read follows from the depth of the student")
    methods = methods_for(learners)
    wanted = None if keep is None else config.Keep.parse(keep)
    layers: dict[str, list[int]] = {}
    if methods:
        from hskstore.methods.serving import to_cut
        from hskstore.store import open_store

        wanted, layers = to_cut(open_store(store).plan, store, methods, student_layers, wanted)
    elif keep is None:
        from hskstore.store import open_store

        plan = open_store(store).plan
        wanted = None if plan.hidden is None else plan.hidden.keep
        layers = {name: list(feature.layers) for name, feature in plan.features.items() if name != "hidden"}
    with resumable(), progress.bars() as watch:
        if values is not None and _codes_numbers(store, values):
            from hskstore.stage_one.coded import derive_coded, in_codes
            from hskstore.store import open_store

            made = in_codes(open_store(store), values, out, keep=wanted, layers=layers, watch=watch)
            result = derive_coded(made, watch=watch)
        else:
            result = run(store, out, keep=wanted, layers=layers, values=values, watch=watch)
    kept = [
        *([] if values is None else [f"values {values}"]),
        *([] if wanted is None else [f"keep {wanted}"]),
        *(f"{name} of layers {', '.join(map(str, own))}" if own else name for name, own in layers.items()),
    ]
    _print_derived(result, "; ".join(kept) or "logits alone", as_json)


def _codes_numbers(store: str, values: config.Values) -> bool:
    """Whether vectors of a store, which are numbers, are to become codes."""
    from hskstore.store import open_store
    from hskstore.store.codebooks import coded
    from hskstore.store.vectors import ENCODINGS, are_codes

    plan = open_store(store).plan
    return values in ENCODINGS and are_codes(values) and bool(plan.said) and not coded(plan.features)


def _print_derived(result: Any, kept: str, as_json: bool) -> None:
    from hskstore.cli import console

    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{result.root}: {kept}, {size(result.bytes)}, sealed, digest {result.digest}")
    console.out.print(f"cut from {result.source[:16]} in {result.seconds:.1f} s")


def _copy(source: str, target: str, as_json: bool) -> None:
    from hskstore.cli import console, progress
    from hskstore.store.copy import copy_store

    with resumable(), progress.bars() as watch:
        result = copy_store(source, target, watch=watch)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{result.root}: {size(result.bytes)}, sealed, digest {result.digest}")
    there = "" if result.sent == result.objects else "; the rest was there already"
    console.out.print(f"copied {result.sent} of {result.objects} objects, {size(result.sent_bytes)}{there}")
