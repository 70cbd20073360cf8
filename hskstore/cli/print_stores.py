"""What `hsk` prints of stores: planned, forecast, made, shown, verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:  # heavy: what prints a result is called by what has made one
    from hskstore.explore.show import Progress as StoreProgress
    from hskstore.explore.show import RankedRow, StoreDescription
    from hskstore.methods.serving import Service
    from hskstore.stage_one.budget import Affordable
    from hskstore.stage_one.extract import ExtractedStore
    from hskstore.stage_one.forecast import Forecast
    from hskstore.stage_one.jobs import PlannedStore
    from hskstore.stage_one.replay import Replayed
    from hskstore.store.features import Feature
    from hskstore.store.verify import Verified
    from hskstore.text.tally import TextFacts
from hskstore.cli.console import err, grid, out, warn
from hskstore.readable import counted, duration, size


def print_plan(planned: list[PlannedStore]) -> None:
    """What will be written, before the teacher starts: sizes are before compression."""
    from hskstore.stage_one.jobs import missing_jobs

    rows = sum(job.rows for job in missing_jobs(planned))
    table = grid("store", "keeps", "at most", "rows", "inputs and logits", "to do", left=2)
    for store in planned:
        plan = store.plan
        to_do = f"{len(store.missing)} of {counted(len(list(plan.units())), 'unit')}"
        own = (str(plan.splits["train"].rows), size(store.most_bytes["inputs"]), to_do)
        kept = [(_kept_of(feature), size(store.most_bytes[name])) for name, feature in plan.features.items()] or [("logits", "")]
        for number, (words, most) in enumerate(kept, 1):
            table.add_row(store.objects.root if number == 1 else "", words, most, *(own if number == len(kept) else ()))
    err.print(table)
    if not all("train/label" in store.plan.arrays for store in planned):
        warn("no labels are kept: no gold label can be learnt from, and nothing scored; --label COLUMN keeps them")
    err.print(f"the teacher runs over {rows} rows" if rows else "nothing is missing: the teacher need not run")


def _kept_of(feature: Feature) -> str:
    """A feature, its layers, and how much of them."""
    from hskstore.store.features import Spans
    from hskstore.store.hidden import Hidden

    if isinstance(feature, Spans):
        return f"spans: {feature.most} of a row at most"
    layers = f"{feature.name} of {_layers(feature.layers)}"
    if isinstance(feature, Hidden):
        return f"{layers}: {feature.length} tokens, {feature.width} of {feature.hidden_size} coordinates"
    return layers


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def print_text(text: Mapping[str, TextFacts]) -> None:
    """What became of texts as tokens, in three lines."""
    from hskstore.text.tally import TextFacts

    found = TextFacts.of_all(text)
    out.print(f"unknown: {100 * found.unknown_share:.2f} % of the tokens of text ({found.unknown:,} of {found.tokens:,})")
    out.print(f"cut: {found.cut:,} of {found.rows:,} rows, at {found.max_length} tokens")
    out.print(f"empty: {found.empty:,} rows, which have no token of text")


BEST_SHOWN = 10


def print_forecast(cost: Forecast) -> None:
    """What an extraction will cost: what is exact, what was measured, and what is an estimate."""
    table = grid("split", "rows", "tokens", "with padding", "batches")
    for name, split in cost.splits.items():
        table.add_row(name, *(f"{n:,}" for n in (split.rows, split.tokens, split.padded_tokens, split.batches)))
    out.print(table)
    print_text({name: split.text for name, split in cost.splits.items()})
    out.print()
    table = grid("store", "teacher layers", "A^HSK planned", "of these rows", "on disk", "uncompressed")
    for store in cost.stores:
        layers = "; ".join(
            f"{'' if name == 'hidden' else f'{name} '}{','.join(map(str, own))}".rstrip()
            for name, own in store.teacher_layers.items()
        )
        units = ("", "") if store.units_of_hsk is None else (f"{store.units_of_hsk:g}", f"{store.kept_units:.3g}")
        table.add_row(store.name, layers, *units, f"about {size(store.bytes)}", size(store.decoded_bytes))
    out.print(table)
    out.print()
    table = grid("on disk / uncompressed", *(store.name for store in cost.stores))
    groups = dict.fromkeys(_group(path) for store in cost.stores for path in store.arrays)
    for group in groups:
        sizes = [[array for path, array in store.arrays.items() if _group(path) == group] for store in cost.stores]
        cells = (f"{size(sum(a.on_disk for a in some))} / {size(sum(a.decoded for a in some))}" if some else "" for some in sizes)
        table.add_row(group, *cells)
    table.add_row("metadata, tokenizer", *(size(store.other_bytes) for store in cost.stores))
    out.print(table)
    out.print()
    _print_memory(cost)
    _print_time(cost)
    basis = "estimates, from what was kept of rows of the trial"
    if not all(array.measured for array in cost.stores[0].arrays.values()):
        why = "the teacher did not run: leave out --rate to measure them" if cost.trial is None else "too few rows ran in time"
        basis = f"by a rule of thumb, because {why}"
    out.print(f"Rows, tokens, padding and uncompressed bytes are exact. Bytes on disk are {basis}.")


def _group(path: str) -> str:
    """Arrays of the train split one by one, those of another split together."""
    return path if path.startswith("train/") else f"{path.partition('/')[0]}/*"


def _print_memory(cost: Forecast) -> None:
    memory = cost.memory
    measured = "measured" if memory.measured else "the loaded teacher and the rows; what batches need was not measured"
    out.print(
        f"memory:  about {size(memory.host_bytes)} of RAM: {size(memory.host_bytes - memory.in_flight_bytes)}"
        f" {measured}, and {size(memory.in_flight_bytes)} for units under way"
    )
    if memory.device_bytes is not None:
        out.print(f"         {size(memory.device_bytes)} on the GPU, measured")


def _print_time(cost: Forecast) -> None:
    took, trial = cost.time, cost.trial
    spread = "" if took.low is None or took.high is None else f" ({duration(took.low)} to {duration(took.high)})"
    if trial is None:
        out.print(f"time:    {duration(took.seconds)} at {took.rows_per_second:g} rows a second, as given")
    else:
        out.print(f"time:    about {duration(took.seconds)}{spread} on one {cost.device}")
        out.print(
            f"         measured over {trial.rows:,} rows in {trial.batches} batches, {trial.seconds:.1f} s:"
            f" {took.padded_tokens_per_second:,.0f} tokens a second with padding, in all {took.rows_per_second:,.4g} rows"
        )
    if took.devices > 1:
        out.print(f"         about {duration(took.seconds_on_all_devices)} on all {took.devices} GPUs that are here")
    out.print(f"         and {duration(took.preparation_seconds)} before it, to load the teacher and read and tokenise the data")
    if took.codebook_seconds:
        out.print(f"         and about {duration(took.codebook_seconds)} of one core for its codebooks, by a rule of thumb")
    if trial is not None and trial.better_batch_tokens is not None:
        out.print(
            f"advice:  --batch-tokens {trial.better_batch_tokens} runs {trial.times_faster:.2g} times faster here than"
            f" {cost.batch_tokens}; it is part of what a store is, so choose before the first extraction"
        )


def print_affordable(found: Affordable) -> None:
    """What fits into a number of bytes, the best first."""
    print_text(found.text)
    best = found.configurations[:BEST_SHOWN]
    out.print(
        f"{len(found.configurations):,} of the {found.grid:,} configurations of the paper's grid fit into {size(found.budget)}"
        f" (student of {found.student_layers} layers); the best by the A^HSK of these rows:"
    )
    table = grid("configuration", "A^HSK planned", "of these rows", "on disk")
    for each in best:
        table.add_row(f"--keep {each.keep}", f"{each.units_of_hsk:g}", f"{each.kept_units:.3g}", f"about {size(each.bytes)}")
    out.print(table)
    if len(found.configurations) > len(best):
        out.print("--json lists them all")
    how = (
        "measured on rows of the data"
        if found.measured
        else "by a rule of thumb, because the teacher ran over no rows, or too few"
    )
    out.print(
        f"Bytes are estimates, {how}; {size(found.shared_bytes)} of each are inputs, labels, logits, tokenizer and metadata."
    )


def print_shown(result: StoreDescription | StoreProgress | RankedRow) -> None:
    """A store, sealed or not, or one of its rows."""
    from hskstore.explore.show import Progress as StoreProgress
    from hskstore.explore.show import RankedRow

    if isinstance(result, RankedRow):
        _print_row(result)
    elif isinstance(result, StoreProgress):
        _print_progress(result)
    else:
        _print_store(result)


def _print_progress(found: StoreProgress) -> None:
    out.print(f"{found.root}: not sealed; {found.units_done} of {found.units} units done")
    out.print(f"{'' if found.keep is None else f'keep {found.keep}; '}{found.rows_done} of {found.rows} rows")
    if found.newest is not None:
        ago = (datetime.now(UTC) - datetime.fromisoformat(found.newest)).total_seconds()
        workers = counted(found.workers, "worker")
        speed = ""
        if found.rows_per_second:
            left = duration((found.rows - found.rows_done) / found.rows_per_second)
            speed = f"; {found.rows_per_second:g} rows/s by {workers}, at which {left} are left"
        out.print(f"the newest unit was finished {duration(max(0, ago))} ago{speed}")
    out.print("if nobody is at work on it, run the same hsk extract again: it goes on from there")


def _print_store(store: StoreDescription) -> None:
    out.print(Text.assemble((store.root, "bold"), f": sealed, {size(store.total_bytes)}, digest {store.digest}"))
    planned = ", ".join(f"{name} {value}" for name, value in store.plan.items())
    out.print(planned if store.keep is None else f"keep {store.keep} (depth,length,width): {planned}")
    if store.units_of_hsk is not None and store.kept_units is not None and store.full_units is not None:
        share = 100 * store.kept_units / store.full_units
        out.print(
            f"A^HSK, in whole vectors a row: {store.units_of_hsk:g} planned; {store.kept_units:g} of {store.full_units:g} on"
            f" average ({share:.2g} %)"
        )
    for name, feature in store.features.items():
        if name != "hidden":
            out.print(f"{name} of teacher {_layers(feature.layers)}, {feature.values}")
        if feature.left_over is not None:
            shares = ", ".join(
                f"{layer}: {100 * own:.1f} %" for layer, own in zip(feature.layers, feature.left_over, strict=True)
            )
            out.print(f"what codes leave of the variance of {name}, by teacher layer: {shares}")
    if (spans := store.spans) is not None:
        out.print(
            f"spans: {spans.per_row:g} a row on average, {spans.most} at most; {100 * spans.without:.2g} % of the rows have none;"
            f" phrases by the chunker {spans.sha256[:16]}"
        )
    if store.separator_shares is not None:
        shares = ", ".join(f"{layer}: {100 * share:.1f} %" for layer, share in store.separator_shares.items())
        out.print(f"rows whose [CLS] attends most to a separator, by teacher layer: {shares}")
    for name, split in store.splits.items():
        out.print(f"{name}: {split['rows']} rows, {split['tokens']} tokens, {counted(split['units'], 'unit')}")
    table = grid("array", "shape and type", "bytes on disk")
    for path, shape in store.arrays.items():
        table.add_row(path, shape, size(store.array_bytes[path]))
    out.print(table)
    made = store.made
    out.print(f"teacher: sha256 of its weights {made['teacher_sha256'][:16]}")
    if "versions" in made:
        maker = f"cut from store {made['derived_from'][:16]}" if "derived_from" in made else f"made by {made['teacher']}"
        device = f" on {made['device']}" if "device" in made else ""
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        out.print(f"{maker}{device}, {made['first_unit']} to {made['last_unit']}; {versions}")


def print_services(found: list[Service]) -> None:
    """Which methods a store serves, and what it lacks for the others."""
    for service in found:
        if service.students:
            every = len(service.students) == service.teacher_layers
            depths = ", ".join(map(str, service.students))
            told = "of any depth" if every else f"of {depths} {'layer' if depths == '1' else 'layers'}"
            out.print(f"serves {service.method}: students {told}")
        elif service.selected:
            out.print(
                f"serves {service.method}: students of any depth, by any configuration that --keep selects (hsk distill, derive)"
            )
    for service in found:
        if not service.students and not service.selected:
            out.print(f"not {service.method}: it lacks {'; '.join(service.lacks)}, for a student of {service.depth} layers")
            out.print(f"    {service.command} makes a store that does")


def _print_row(row: RankedRow) -> None:
    label = "" if row.label is None else f", label {row.label:g}"
    out.print(f"{row.split} row {row.row} (row {row.row_id} of the split as it was read{label})")
    out.print(f"the teacher's logits: {', '.join(f'{value:g}' for value in row.logits)}")
    if not row.ranks:
        out.print(Text(" ".join(row.tokens)))
    for layer in row.ranks:
        line = Text(f"teacher layer {layer.teacher_layer}, for the student's {layer.student_layer}: ")
        for position, token in enumerate(row.tokens):
            line.append(token, style=_rank_style(layer.kept, position))
            line.append(" ")
        out.print(line)
        out.print(Text("  best first: " + " ".join(row.tokens[position] for position in layer.kept), style="dim"))


def _rank_style(ranks: list[int], position: int) -> str:
    """From red (best) to blue (last kept); what was not kept is dim."""
    if position not in ranks:
        return "dim"
    colours = ("bold red", "red", "yellow", "green", "cyan", "blue")
    return colours[ranks.index(position) * len(colours) // len(ranks)]


def print_verified(found: Verified, replayed: Replayed | None) -> None:
    """What is wrong with a store, or that nothing is."""
    for problem in found.problems:
        unit = "" if problem.unit is None else f" (unit {problem.unit} of {problem.split})"
        out.print(f"{found.root}/{problem.key} {problem.what}{unit}")
    looked = "sizes and every sha256" if found.deep else "presence and sizes; --deep reads every byte"
    if found.problems:
        out.print(f"{len(found.problems)} of {found.objects} objects are bad ({looked})")
        _print_repair(found)
    elif found.digest is None:
        out.print(
            f"{found.root}: not sealed; {found.units_done} of {found.units} units done, nothing is wrong with them ({looked})"
        )
    else:
        out.print(f"{found.root}: sealed and whole: {found.objects} objects, {size(found.bytes)} ({looked})")
        out.print(f"digest {found.digest}")
    if replayed is not None:
        _print_replayed(replayed)


def _print_repair(found: Verified) -> None:
    if found.condemned:
        out.print(f"condemned: {', '.join(found.condemned)}")
        out.print(f"run the same hsk extract again: it makes just that; or hsk pull GOOD_COPY {found.root}")
    elif any(problem.key == "plan.json" for problem in found.problems):
        out.print(f"plan.json cannot be made again: hsk pull GOOD_COPY {found.root}, or extract to another place")
    else:
        out.print(f"repair it: hsk pull GOOD_COPY {found.root}; or hsk verify --deep --condemn, then the same hsk extract")


def _print_replayed(replayed: Replayed) -> None:
    differences = ", ".join(
        f"{found:.2g} in {name} (allowed {replayed.tolerances[name]:.2g})" for name, found in replayed.differences.items()
    )
    out.print(
        f"replayed {replayed.rows} rows: {replayed.equal} equal to the last bit; {100 * replayed.same_tokens:.2f} % of the kept"
        f" tokens chosen again; largest difference {differences}"
    )
    if replayed.differing:
        rows = ", ".join(map(str, replayed.differing[:8]))
        out.print(f"{len(replayed.differing)} rows are not what this teacher says, train rows {rows} first")
    for name, share in replayed.left_over.items():
        told = ", far more than the store tells: its codebooks are of other vectors" if name in replayed.unlike else ""
        out.print(f"codes of {name} leave {100 * share:.1f} % of the variance of these rows' vectors, at most{told}")


def print_extracted(stores: list[ExtractedStore]) -> None:
    """The stores that were made: their digests, or what other processes have still to make."""
    sealed = [store for store in stores if store.digest is not None]
    if sealed:
        table = grid("sealed store", "bytes", "digest")
        for store in sealed:
            table.add_row(store.root, size(store.bytes), store.digest[:16] if store.digest else "")
        out.print(table)
    for store in stores:
        if store.digest is None:
            out.print(f"{store.root}: this process is done; {store.missing} units are left to others, the last of whom seals it")
        elif store.condemned not in (None, store.digest):
            _print_changed_digest(store.root, store.condemned or "", store.digest)
    if sealed:
        _print_kept(sealed)


def _print_kept(stores: list[ExtractedStore]) -> None:
    """What of the data is in the stores, and how faithfully: of one store five lines."""
    text = stores[0].text
    rows = ", ".join(f"{one.rows:,} rows of {split}" for split, one in text.items())
    out.print(f"kept: {rows}")
    for store in stores:
        if (again := store.replayed) is not None:
            name = f" of {store.root}" if len(stores) > 1 else ""
            worst = max(again.differences.values())
            out.print(f"replayed{name}: {again.equal} of {again.rows} rows equal to the last bit, largest error {worst:.2g}")
            if again.differing:
                warn(
                    f"{store.root}: of {again.rows} rows that went through the teacher again {len(again.differing)} differ from"
                    " what is stored, by more than two machines may: hsk verify --replay looks at more"
                )
    print_text(text)


def _print_changed_digest(root: str, before: str, after: str) -> None:
    """A store that was re-made in part, and came out as another."""
    warn(
        f"{root} had the digest {before[:16]} and has {after[:16]} now: what was condemned was re-made with"
        " other last bits (another device, library or number of threads). Students made from it before name the old digest"
    )
