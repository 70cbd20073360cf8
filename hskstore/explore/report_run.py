"""What a report says of a run: a student's folder, its scores, its curves, and what it gets wrong and its teacher right."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hskstore.errors import HskError, OptionError
from hskstore.explore.report_log import Curves, curve, read_log
from hskstore.explore.report_parts import Figure, Line, Part, Plot, Section, Table, plain, score
from hskstore.explore.report_rows import wrong_rows
from hskstore.models.folder import RECIPE, RESULT
from hskstore.models.load import load_classifier
from hskstore.readable import duration
from hskstore.stage_two.rows import reading_options, rows_from_store
from hskstore.stage_two.scores import predict
from hskstore.store import Store
from hskstore.text.tokenizers import load_tokenizer

MOST_CURVES = 8
SPLIT = "validation"


def run_section(root: str, stores: Mapping[str, Store]) -> Section:
    """A student's folder, or a teacher's that was fine-tuned here; `stores` by their digests. Raises OptionError where it tells
    nothing."""
    said = _read(Path(root) / RESULT)
    log = read_log(Path(root) / "log")
    digest = said.get("digest")
    store = stores.get(digest) if isinstance(digest, str) else None
    phases = [each for each in _list(said.get("phases")) or [said.get("phase")] if isinstance(each, dict)]
    words = []
    if isinstance(said.get("method"), str):
        words.append(f"A student, {plain(said.get('student'), 120)} at its start, trained by {plain(said['method'])}.")
    if isinstance(said.get("parameters"), int):
        told = f"{said['parameters']:,} parameters"
        words.append(
            told + (f", trained in {duration(said['seconds'])}." if isinstance(said.get("seconds"), int | float) else ".")
        )
    parts = (_scores(said), _dev(phases), _losses(log), _phases(phases), _mistakes(root, store, digest), _provenance(said, root))
    return Section("run", root, tuple(words), parts)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise OptionError(f"{path} cannot be read: name a folder that hsk distill has made") from None
    return said


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: object) -> dict[str, float]:
    """What of an object are numbers, by name."""
    if not isinstance(value, dict):
        return {}
    return {name: float(each) for name, each in value.items() if isinstance(each, int | float) and not isinstance(each, bool)}


def _scores(said: Mapping[str, Any]) -> Part:
    rows = []
    found = said.get("scores")
    for split, scored in found.items() if isinstance(found, dict) else ():
        own = scored if isinstance(scored, dict) else {}
        errors = _numbers(own.get("standard_error"))
        for metric, value in _numbers(own.get("score")).items():
            rows.append(
                (plain(split, 40), plain(metric, 40), score(value), score(errors.get(metric)), plain(own.get("rows", ""), 20))
            )
    if not rows:
        return Part("Scores", ("Not here: its rows had no labels to score against.",))
    table = Table("Of the saved weights", ("split", "metric", "score", "one standard error", "rows"), tuple(rows), words=2)
    return Part("Scores", tables=(table,))


def _dev(phases: Sequence[Mapping[str, Any]]) -> Part:
    lines: list[Line] = []
    for phase in phases:
        by_step = [_numbers(each) for each in _list(phase.get("scores"))]
        metrics = [name for name in dict.fromkeys(name for each in by_step for name in each) if name != "step"]
        for metric in metrics[:3]:
            points = {int(each["step"]): each[metric] for each in by_step if "step" in each and metric in each}
            if points:
                lines.append(curve(f"{plain(phase.get('name'), 20)}: {plain(metric, 20)}", points))
    if not lines:
        return Part("Learning curve", ("Not here: it has no dev scores.",))
    rows = tuple((f"{line.x[at]:.0f}", line.label, score(line.y[at])) for line in lines for at in range(len(line.x)))
    words = "; ".join(f"{line.label} from {score(line.y[0])} to {score(line.y[-1])}" for line in lines)
    table = Table("Dev scores", ("step", "of", "score"), rows, words=2)
    figure = Figure("dev", "Dev score by step", f"{words}.", Plot("step", "dev score", tuple(lines)), table)
    return Part("Learning curve", figures=(figure,))


def _losses(log: Curves | None) -> Part:
    shown: dict[str, list[Line]] = {}
    for name, by_step in sorted((log or {}).items()):
        phase, _, term = name.partition("/")
        if by_step and term != "rate" and not term.startswith("dev_"):
            shown.setdefault(phase, []).append(curve(plain(term, 30), by_step))
    if not shown:
        return Part("Losses", ("Not here: it has no log, or TensorBoard, which reads it, is not installed.",))
    figures = []
    for place, (phase, lines) in enumerate(list(shown.items())[:4], 1):
        own = tuple(replace(line, style="dense") for line in lines[:MOST_CURVES])
        rows = tuple((line.label, f"{line.y[0]:.4g}", f"{line.y[-1]:.4g}") for line in own)
        words = "; ".join(f"{line.label} from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in own)
        table = Table("First and last", ("loss", "first", "last"), rows)
        title = f"Losses of the phase {plain(phase, 30)}"
        figures.append(Figure(f"losses-{place}", title, f"{words}.", Plot("step", "loss, not weighted", own), table))
    return Part("Losses", figures=tuple(figures))


def _phases(phases: Sequence[Mapping[str, Any]]) -> Part:
    rows = []
    for phase in phases:
        own = _numbers(phase)
        losses = "; ".join(f"{plain(name, 40)} {value:.4g}" for name, value in list(_numbers(phase.get("losses")).items())[:12])
        seconds = duration(own["seconds"]) if "seconds" in own else ""
        rows.append(
            (plain(phase.get("name"), 40), plain(phase.get("ended", ""), 20), losses, f"{own.get('steps', 0):,.0f}", seconds)
        )
    if not rows:
        return Part("Phases", ("Not here: it does not tell them.",))
    return Part(
        "Phases", tables=(Table("In order", ("phase", "ended by", "losses at the end", "steps", "time"), tuple(rows), words=3),)
    )


def _mistakes(root: str, store: Store | None, digest: object) -> Part:
    title = "Rows it gets wrong and its teacher right"
    if store is None:
        named = f" Its digest: {plain(digest)}" if isinstance(digest, str) else ""
        return Part(title, (f"Not here: they stand in the store that it learnt from; name that beside the run.{named}",))
    try:
        model, _ = load_classifier(root)
        own = load_tokenizer(root)
        rows = rows_from_store(store, SPLIT, **reading_options(model, own, store))
        table = wrong_rows(store, SPLIT, predict(model, rows))
    except HskError as error:
        return Part(title, (f"Not here: {plain(error)}",))
    if table is None:
        return Part(title, (f"Not here: the {SPLIT} rows of the store have no labels.",))
    return Part(title, tables=(table,))


def _provenance(said: Mapping[str, Any], root: str) -> Part:
    names = ("digest", "student", "model", "method", "seed", "precision", "loader", "batches", "pruning")
    rows = tuple((name, plain(said[name])) for name in names if said.get(name) is not None)
    try:
        recipe = (Path(root) / RECIPE).read_text(encoding="utf-8")[:4000]
    except (OSError, ValueError):
        recipe = ""
    quoted = ("\n".join(plain(line) for line in recipe.splitlines()[:80]),) if recipe else ()
    return Part("Provenance", tables=(Table("How it was made", ("what", "value"), rows, words=2),), quoted=quoted)
