"""What a report says of a store: what it holds, its bytes by array, lengths, ranks, and where attention goes."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from hskstore.errors import HskError
from hskstore.explore.report_parts import Bars, Figure, Line, Part, Plot, Section, Table, bounded, percent, plain
from hskstore.explore.report_rows import shaded_rows
from hskstore.explore.show import StoreDescription, describe, describe_progress
from hskstore.readable import duration, size
from hskstore.store import Store
from hskstore.store.commit import Receipt, receipts
from hskstore.store.hidden import Hidden

MOST_BARS = 10
SAMPLED_UNITS = 16
"""Of which lengths are counted; rows lie in a random order."""

BINS = 16


def store_section(store: Store) -> Section:
    """A sealed store. Raises StoreError where it is damaged."""
    said = describe(store.root)
    plan = store.plan
    words = [
        f"A sealed store of {sum(split.rows for split in plan.splits.values()):,} rows, {size(said.total_bytes)} on disk,"
        f" for the task {plain(plan.task['name'])}.",
        f"Its teacher: {plain(plan.teacher.get('model_type'))}, {plan.teacher['layers']} layers,"
        f" {plan.teacher['hidden_size']} wide.",
    ]
    if said.keep is not None and said.kept_units is not None and said.full_units:
        words.append(
            f"It keeps {said.keep} of the hidden states: {said.kept_units:g} units of HSK a row, of {said.full_units:g}"
            f" that all layers and tokens are."
        )
    parts = [_holds(said), _bytes(said), _lengths(store), separators(said), ranks(store), _made(said)]
    return Section("store", store.root, tuple(words), tuple(parts))


def unsealed_section(root: str) -> Section:
    """How far it has come. Raises StoreError."""
    found = describe_progress(root)
    words = (
        f"This store is not sealed yet: {found.units_done:,} of {found.units:,} units are there, {found.rows_done:,} of"
        f" {found.rows:,} rows. The command that began it goes on with it; what it holds can be shown once it is sealed.",
    )
    return Section("store", root, words, ())


def _holds(said: StoreDescription) -> Part:
    coded = any(each.left_over is not None for each in said.features.values())
    columns = ("feature", "layers", "stored as", *(["left over by codes"] if coded else []))
    features = tuple(
        (
            plain(name, 40),
            _ranges(each.layers) or "of rows",
            plain(each.values, 40),
            *([_share(each.left_over)] if coded else []),
        )
        for name, each in said.features.items()
    )
    splits = tuple((plain(name, 40), f"{n['rows']:,}", f"{n['tokens']:,}", f"{n['units']:,}") for name, n in said.splits.items())
    tables = [Table("Rows", ("split", "rows", "tokens", "units"), splits)]
    if features:
        tables.append(Table("Of the teacher's inside", columns, features, words=3))
    return Part("What it holds", tables=tuple(tables))


def _share(left_over: Sequence[float] | None) -> str:
    return "" if left_over is None else f"{percent(min(left_over))} to {percent(max(left_over))} of the variance"


def _ranges(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) if len(layers) < 8 else f"{len(layers)} layers, {layers[0]} to {layers[-1]}"


def _bytes(said: StoreDescription) -> Part:
    ordered = sorted(said.array_bytes.items(), key=lambda pair: -pair[1])
    rows, left_out = bounded(
        [(plain(path, 60), plain(said.arrays[path], 60), size(count)) for path, count in ordered], 60, "hsk show has all"
    )
    table = Table("Arrays, the largest first", ("array", "shape and type", "bytes on disk"), rows, words=2, left_out=left_out)
    shown = ordered[:MOST_BARS]
    largest = "; ".join(f"{plain(path, 60)} {size(count)}" for path, count in shown[:5])
    names = tuple(f"{path}, {size(count)}" for path, count in shown)
    bars = Bars("MB on disk", names, (("bytes", tuple(count / 1e6 for _, count in shown)),))
    return Part(
        "Bytes", figures=(Figure("bytes", "Bytes on disk of the largest arrays", f"Largest first: {largest}.", bars, table),)
    )


def _lengths(store: Store) -> Part:
    units = range(min(SAMPLED_UNITS, store.plan.splits["train"].units))
    lengths = np.concatenate([store.read("train/n_tokens", unit) for unit in units])
    counts, edges = np.histogram(lengths, bins=min(BINS, int(lengths.max() - lengths.min()) + 1))
    shares = counts / len(lengths)
    middle = int(np.median(lengths))
    words = (
        f"Of {len(lengths):,} train rows half have up to {middle} tokens, the shortest {lengths.min()}, the longest"
        f" {lengths.max()}."
    )
    line = Line("rows", tuple(float(edge) for edge in edges), (*(100 * shares).tolist(), float(100 * shares[-1])), style="steps")
    rows = tuple(
        (f"{low:.0f} to {high:.0f}", f"{count:,}")
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    )
    table = Table("Tokens of a row", ("tokens", "rows"), rows)
    plot = Plot("tokens of a row", "% of rows", (line,))
    return Part("Lengths", figures=(Figure("lengths", "Lengths of the train rows", words, plot, table),))


def separators(said: StoreDescription) -> Part:
    """Figures 6 and 14: how often the most attended token is a separator."""
    title = "Where attention goes"
    if not said.separator_shares:
        return Part(title, ("Not here: the store keeps no attention (hsk extract --rich keeps it).",))
    shares = said.separator_shares
    line = Line("[SEP] first", tuple(map(float, shares)), tuple(100 * share for share in shares.values()))
    most = max(shares, key=lambda layer: shares[layer])
    words = (
        f"The share of rows whose most attended token, seen from the first one, is a separator: most in layer {most},"
        f" {percent(shares[most])}; by layer "
        + ", ".join(f"{layer}: {percent(share)}" for layer, share in list(shares.items())[:48])
        + "."
    )
    table = Table(
        "Most attended is [SEP]", ("teacher layer", "share of rows"), tuple((str(n), percent(s)) for n, s in shares.items())
    )
    plot = Plot("teacher layer", "% of rows", (line,))
    return Part(title, figures=(Figure("separators", "Rows whose most attended token is [SEP], by layer", words, plot, table),))


def ranks(store: Store) -> Part:
    """Rows with their kept tokens shaded."""
    title = "Rows with their kept tokens"
    if Hidden.name not in store.plan.features:
        return Part(
            title, ("Not here: the store keeps no choice of tokens; a sweep's section shows those of what it recommends.",)
        )
    try:
        return Part(title, ("The darker a token, the more of the kept layers keep it.",), rows=shaded_rows(store))
    except HskError as error:
        return Part(title, (f"Not here: {plain(error)}",))


def _made(said: StoreDescription) -> Part:
    facts = {"digest": said.digest, **{name: value for name, value in said.made.items() if isinstance(value, str)}}
    facts |= {name: str(value) for name, value in said.plan.items() if isinstance(value, str | int | float)}
    facts |= said.made.get("versions", {})
    rows, left_out = bounded([(plain(name, 40).replace("_", " "), plain(value)) for name, value in facts.items()], 60, "hsk show")
    return Part("Provenance", tables=(Table("How it was made", ("what", "value"), rows, words=2, left_out=left_out),))


# --- the teacher's time


def teacher_seconds_per_row(store: Store) -> tuple[float, str] | None:
    """What a train row took the teacher, with what was kept of it packed and written, and on which device; by the receipts. None
    where they do not tell, such as those of a derived store."""
    told = [_spent(receipt) for receipt in receipts(store.place).values() if receipt.split == "train"]
    spent = [each for each in told if each is not None]
    if not spent or len(spent) < len(told):
        return None
    seconds = 0.0
    for attempt in {each[0] for each in spent}:
        seconds += _union([(begin, end) for own, begin, end, _ in spent if own == attempt])
    devices = sorted({device for *_, device in spent})
    return seconds / store.plan.splits["train"].rows, ", ".join(devices)


def _spent(receipt: Receipt) -> tuple[str, float, float, str] | None:
    """Who, from when to when, and where: a receipt counts the seconds from the beginning of its job."""
    made = receipt.made
    try:
        end, seconds = datetime.fromisoformat(made["finished"]).timestamp(), float(made["seconds"])
        return (receipt.attempt, end - seconds, end, plain(made["device"], 60)) if "teacher" in made and seconds > 0 else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """How long any of them went on."""
    total, until = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def teacher_words(found: tuple[float, str], rows: int) -> str:
    """For people."""
    return f"{duration(found[0] * rows)} for {rows:,} train rows on {found[1]}"
