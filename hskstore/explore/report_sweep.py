"""What a report says of a sweep: every part that its table, its logs and its store can tell."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hskstore.config import Strategy
from hskstore.errors import HskError, OptionError
from hskstore.explore.recommend import Recommendation, recommend
from hskstore.explore.report_costs import bytes_part as paper_part
from hskstore.explore.report_costs import time_part
from hskstore.explore.report_curves import Configured, configured, kept_of, telling
from hskstore.explore.report_log import curve, read_log
from hskstore.explore.report_parts import Figure, Part, Plot, Section, Table, bounded, plain, score
from hskstore.explore.report_rows import shaded_rows, wrong_rows
from hskstore.explore.report_scores import bytes_part, dimensions_part, marginal_part
from hskstore.explore.report_store import separators
from hskstore.explore.runs import RunRow, SweepFacts, SweepFolder
from hskstore.explore.show import describe
from hskstore.features.view import view
from hskstore.store import Store, open_store
from hskstore.store.commit import PLAN

MOST_FAILED, MOST_COMMANDS = 60, 12


def sweep_section(root: str, stores: Mapping[str, Store]) -> Section:
    """The folder of a sweep or search; `stores` by their digests. Raises OptionError for a row that is none."""
    folder = SweepFolder(root)
    facts, rows = folder.facts(), folder.rows()
    metric = plain(facts.metric, 40)
    said, why = _recommended(root)
    groups = {} if said is None else {each.configuration: each.group for each in said.standings}
    found = configured(rows, groups)
    chosen = said.chosen.configuration if said is not None and said.chosen is not None else None
    told = telling(found, chosen)
    store = stores.get(facts.store) or _store_of(facts, rows)
    status = Counter(row.status for row in rows)
    words = (
        f"{len(rows):,} runs of {len({row.configuration for row in rows}):,} configurations: {status['done']:,} done,"
        f" {status['failed']:,} failed, {status['pruned']:,} ended early. The score is {metric} on"
        f" {sum(facts.rows.values()):,} rows ({', '.join(f'{plain(name, 40)} {count:,}' for name, count in facts.rows.items())}),"
        " the same for all.",
        *(() if store is not None else (f"Its store is not here; name it beside the sweep. Its digest: {plain(facts.store)}",)),
    )
    parts = [
        Part("Which to take", tuple(map(_paragraph, said.words)) if said is not None else (f"Not here: {why}",)),
        marginal_part(found, metric),
        dimensions_part(found, metric),
        bytes_part(found, metric),
        paper_part(_told_of_bytes(found, told), store),
        time_part(told, facts, store),
        _attention(store),
        _learning(folder, rows, told, metric),
        _kept(told, facts, store),
        _mistakes(folder, rows, told, store),
        *_failed(rows),
        _provenance(facts, rows),
    ]
    return Section("sweep", root, words, tuple(parts))


def _recommended(root: str) -> tuple[Recommendation | None, str]:
    """What to take, or why that cannot be said."""
    try:
        return recommend(root), ""
    except OptionError as error:
        return None, plain(error)


def _told_of_bytes(found: Sequence[Configured], told: Sequence[tuple[str, Configured]]) -> list[Configured]:
    """Those that a page tells more of, and some that are tied with the best."""
    tied = [each for each in found if each.group == 0][:8]
    return list({each.configuration: each for each in [*(each for _, each in told), *tied]}.values())


def _paragraph(text: str) -> str:
    return plain(text, 1500)


def _store_of(facts: SweepFacts, rows: Sequence[RunRow]) -> Store | None:
    """The store that the sweep's own command names, where it still lies there and is the same."""
    for command in dict.fromkeys(row.command for row in rows):
        try:
            words = shlex.split(command)
        except ValueError:
            continue
        for word in words[2:3]:
            if (Path(word) / PLAN).exists():
                try:
                    store = open_store(word)
                except HskError:
                    continue
                if store.digest == facts.store:
                    return store
    return None


def _attention(store: Store | None) -> Part:
    if store is None:
        return Part("Where attention goes", ("Not here: the store is not.",))
    try:
        return separators(describe(store.root))
    except HskError as error:
        return Part("Where attention goes", (f"Not here: {plain(error)}",))


def _learning(folder: SweepFolder, rows: Sequence[RunRow], told: Sequence[tuple[str, Configured]], metric: str) -> Part:
    title, lines = "Learning curves", []
    for role, each in told:
        row = min((row for row in rows if row.configuration == each.configuration), key=lambda row: row.seed)
        log = read_log(folder.run_folder(row.run) / "log") or {}
        dev = [by_step for name, by_step in sorted(log.items()) if name.endswith(f"/dev_{metric}")]
        if dev:
            lines.append(curve(f"{plain(each.name, 24)} ({role})", dev[-1]))
    if not lines:
        return Part(title, ("Not here: no log of these runs has a dev score, or TensorBoard, which reads it, is not installed.",))
    table = Table(
        "Dev scores of the first seed",
        ("run", "steps", "first", "highest", "last"),
        tuple((line.label, f"{line.x[-1]:.0f}", score(line.y[0]), score(max(line.y)), score(line.y[-1])) for line in lines),
    )
    words = "; ".join(f"{line.label}: from {score(line.y[0])} to {score(line.y[-1])}" for line in lines)
    plot = Plot("step", f"dev {metric}", tuple(lines))
    return Part(title, figures=(Figure("learning", f"Dev {metric} by step", f"{words}.", plot, table),))


def _kept(told: Sequence[tuple[str, Configured]], facts: SweepFacts, store: Store | None) -> Part:
    title = "Rows with their kept tokens"
    if store is None:
        return Part(title, ("Not here: the store is not.",))
    readers = [(role, each) for role, each in told if kept_of(each.first) is not None]
    if not readers:
        return Part(title, ("Not here: none of these configurations reads hidden states.",))
    role, each = readers[0]
    row, keep = each.first, kept_of(each.first)
    assert keep is not None
    names = ("top_layer", "layer_map", "rank", "rank_layer", "mask")
    chosen = {name: value for name in names if (value := getattr(row, name)) is not None}
    chosen |= {} if row.rank_score is None else {"score": row.rank_score}
    try:
        shown = shaded_rows(view(store, keep, Strategy(facts.student_layers, **chosen)))
    except HskError as error:
        return Part(title, (f"Not here: {plain(error)}",))
    words = f"By {plain(each.name, 80)} ({role}). The darker a token, the more of the kept layers keep it."
    return Part(title, (words,), rows=shown)


def _mistakes(folder: SweepFolder, rows: Sequence[RunRow], told: Sequence[tuple[str, Configured]], store: Store | None) -> Part:
    title = "Rows it gets wrong and its teacher right"
    if store is None:
        return Part(title, ("Not here: the store is not.",))
    if not told:
        return Part(title, ("Not here: no run came to an end.",))
    role, each = told[0]
    row = min((row for row in rows if row.configuration == each.configuration), key=lambda row: row.seed)
    tables = []
    try:
        said = folder.predictions(row.run)
        for split in store.plan.splits:
            own = np.array([name == split for name in said.split], dtype=bool)
            if split != "train" and own.any():
                tables.append(wrong_rows(store, split, said.logits[own], said.label[own]))
    except HskError as error:
        return Part(title, (f"Not here: {plain(error)}",))
    shown = tuple(table for table in tables if table is not None)
    if not shown:
        return Part(title, ("Not here: the store has no labels of the rows that were scored.",))
    return Part(title, (f"By {plain(each.name, 80)} ({role}), seed {row.seed}.",), tables=shown)


def _failed(rows: Sequence[RunRow]) -> list[Part]:
    others = [row for row in rows if row.status != "done"]
    if not others:
        return []
    lines = [(plain(row.name, 80), str(row.seed), plain(row.status, 20), plain(row.why or "it does not say")) for row in others]
    shown, left_out = bounded(sorted(lines, key=lambda line: line[2]), MOST_FAILED, "runs.parquet has all")
    table = Table("Runs that did not come to an end", ("configuration", "seed", "what", "why"), shown, words=4, left_out=left_out)
    return [Part("Runs that failed or ended early", tables=(table,))]


def _provenance(facts: SweepFacts, rows: Sequence[RunRow]) -> Part:
    times = sorted(row.finished for row in rows if row.finished)
    versions = Counter(f"{name} {version}" for row in rows for name, version in row.versions.items())
    known = [
        ("store (digest)", plain(facts.store)),
        ("student at the start (sha256)", plain(facts.student)),
        ("further scored rows (sha256)", plain(facts.scored)),
        ("layers of student and teacher", f"{facts.student_layers} and {facts.teacher_layers}"),
        ("task", plain(facts.task.get("name"))),
        ("runs ended", f"{plain(times[0], 40)} to {plain(times[-1], 40)}" if times else "no run tells"),
        ("versions", plain("; ".join(f"{name} ({count} runs)" for name, count in versions.most_common(12)))),
    ]
    commands = [plain(command, 1000) for command in dict.fromkeys(row.command for row in rows if row.command)]
    more = len(commands) - MOST_COMMANDS
    words = (f"{more} more commands are not shown.",) if more > 0 else ()
    table = Table("How it was made", ("what", "value"), tuple(known), words=2)
    return Part("Provenance", words, tables=(table,), quoted=tuple(commands[:MOST_COMMANDS]))
