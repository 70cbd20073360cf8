"""The folder of a sweep: a row for each run, all of them as one Parquet table, and what each student said of the scored rows."""

import fcntl
import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped

from hskstore.config import Loader
from hskstore.errors import OptionError
from hskstore.options import text_of
from hskstore.stage_two.checkpoint import written
from hskstore.text.tasks import Task

TABLE = "runs.parquet"
FACTS = "sweep.json"
VERSION = 1

Status = Literal["done", "failed", "pruned"]


@dataclass(frozen=True)
class SweepFacts:
    """What all runs of a folder have in common: the rich store's digest, the student at the start (the sha256 of its weights and
    its tokenizer) and its layers, the teacher's, the task, and how many labelled rows all are scored on, by split; `scored` is
    the sha256 of those that are not the store's, `student_config` that of what the student's weights do not tell.

    How rows are loaded whose recipe leaves it open, `loader`, and the bytes of a row by which windows of them are made,
    `row_bytes`, are decided where a folder begins, by the largest configuration: else runs of one seed saw other batches. Folders
    of earlier versions lack the last three."""

    version: int
    store: str
    student: str
    student_layers: int
    teacher_layers: int
    task: dict[str, Any]
    rows: dict[str, int]
    scored: str
    student_config: str | None = None
    loader: Loader | None = None
    row_bytes: int | None = None

    @property
    def metric(self) -> str:
        """The one that decides."""
        return Task.from_json(self.task).metrics[0]


@dataclass(frozen=True)
class RunRow:
    """One run. What is not known of it, such as the score of one that failed, is None; of a run that reads no hidden states so
    are `keep` and how they are chosen (`rank_score` is the strategy's score).

    `run` names it, `name` its configuration for people, `series` what the paper calls its like. `score` is `metric` on all scored
    rows together, `scores` each metric of each split: "validation/accuracy". `bytes`: of all that is read of the train rows, on
    disk; `units_of_hsk`: A^HSK; `share_of_hsk`: of that of everything. `seconds_training` are those of its steps,
    `seconds_scoring` of its dev scores and predictions, `seconds_wall` and `seconds_cpu` of the process that ended it. `losses`:
    means over the last steps of each phase: "hidden/mud.hidden". `view` names what was read of the store, `batches` the batches:
    runs of one seed that agree in it saw the same ones. `trial` is a search's number of it. `error` is the kind of what failed,
    `why` its message.
    """

    run: str
    name: str
    series: str
    status: Status
    seed: int
    method: str
    options: str
    recipe: str
    store: str
    view: str
    command: str
    finished: str
    versions: dict[str, str]
    keep: str | None = None
    depth: int | None = None
    length: int | None = None
    width: int | None = None
    top_layer: int | None = None
    layer_map: str | None = None
    rank: str | None = None
    rank_layer: str | None = None
    rank_score: str | None = None
    mask: str | None = None
    values: str | None = None
    metric: str | None = None
    score: float | None = None
    rows: int | None = None
    steps: int | None = None
    bytes: int | None = None
    units_of_hsk: float | None = None
    share_of_hsk: float | None = None
    seconds_training: float | None = None
    seconds_scoring: float | None = None
    seconds_wall: float | None = None
    seconds_cpu: float | None = None
    parameters: int | None = None
    precision: str | None = None
    loader: Loader | None = None
    threads: int | None = None
    batches: str | None = None
    trial: int | None = None
    error: str | None = None
    why: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether a sweep would find the same again: what failed by another fault than the run's own is tried again, and what a
        search has ended early is trained to its end."""
        return self.status == "done" or self.error == "ModelError"

    @property
    def final_for_search(self) -> bool:
        """The same of a search."""
        return self.final or self.status == "pruned"

    @property
    def configuration(self) -> str:
        """Names what is alike in the runs of several seeds."""
        return self.run.rpartition("-s")[0]


@dataclass(frozen=True)
class Predictions:
    """What a student said of every scored row, split after split in the order of the store or file, and the gold labels."""

    split: tuple[str, ...]
    logits: Float[np.ndarray, "row class"]
    label: Shaped[np.ndarray, " row"]


class SweepFolder:
    """Rows are files of their own, each written whole, so that any process can add one; the table is made of them."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def run_folder(self, run: str) -> Path:
        """Where a run's checkpoint lies while it goes on, its log, and its student if that is kept."""
        return self.root / "runs" / run

    def coded_folder(self, name: str) -> Path:
        """Where the stores in codes lie that runs read."""
        return self.root / "stores" / name

    def begin(self, facts: SweepFacts) -> None:
        """Write them; a folder that has begun keeps how its rows are loaded. Raises OptionError where it has runs of another
        store, student or other rows."""
        file = self.root / FACTS
        if not file.exists():
            _write(file, json.dumps(asdict(facts), indent=1).encode())
            return
        there = self.facts()
        kept = replace(
            facts, loader=there.loader or self._loader_of_rows() or facts.loader, row_bytes=there.row_bytes or facts.row_bytes
        )
        differ = [
            each.name for each in fields(facts) if getattr(there, each.name) not in (getattr(kept, each.name), each.default)
        ]
        if differ:
            said = {"store": "another store", "scored": "other --data", "rows": "other scored rows"}
            said |= dict.fromkeys(("student", "student_config"), "another student")
            what = ", ".join(dict.fromkeys(said.get(name, f"another {name}") for name in differ))
            raise OptionError(f"{self.root} holds runs of {what}, with which these cannot be compared: choose another --out")
        if kept != there:
            _write(file, json.dumps(asdict(kept), indent=1).encode())

    def _loader_of_rows(self) -> Loader | None:
        """Of the run that ended first."""
        ended = sorted((row for row in self.rows() if row.loader is not None), key=lambda row: row.finished)
        return ended[0].loader if ended else None

    def facts(self) -> SweepFacts:
        """Raises OptionError where there is no sweep."""
        file = self.root / FACTS
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            return SweepFacts(
                **{
                    each.name: document[each.name]
                    for each in fields(SweepFacts)
                    if each.default is MISSING or each.name in document
                }
            )
        except FileNotFoundError:
            raise OptionError(f"{self.root} holds no sweep: make one with hsk sweep, or hsk search, and --out") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise OptionError(f"{file} cannot be read: name a folder that hsk sweep has made") from None

    def write_row(self, row: RunRow) -> None:
        _write(self.root / "rows" / f"{row.run}.json", json.dumps(asdict(row), indent=1).encode())

    def rows(self) -> list[RunRow]:
        """Every run that has ended, by name. Raises OptionError for a row that is none."""
        return [row for path in sorted((self.root / "rows").glob("*.json")) if (row := _read_row(path)) is not None]

    def row(self, run: str) -> RunRow | None:
        """None where the run has not ended."""
        return _read_row(self.root / "rows" / f"{run}.json")

    def ended(self, run: str, *, keep_students: bool = False, searching: bool = False) -> RunRow | None:
        """The row of a run of which nothing is left to do, or not for a search; its student is there where students are kept."""
        row = self.row(run)
        if row is None or not (row.final_for_search if searching else row.final):
            return None
        lacks = keep_students and row.status == "done" and not any(self.run_folder(run).glob("*.safetensors"))
        return None if lacks else row

    def write_predictions(self, run: str, said: Predictions) -> None:
        columns = {f"logit_{index}": column for index, column in enumerate(said.logits.T)}
        self._write_parquet(
            Path("predictions") / f"{run}.parquet", pa.table({"split": list(said.split), "label": said.label, **columns})
        )

    def predictions(self, run: str) -> Predictions:
        """Raises OptionError where they are not there, or cannot be read."""
        file = self.root / "predictions" / f"{run}.parquet"
        try:
            table = pq.read_table(file)
            logits = [table[name].to_numpy() for name in table.column_names if name.startswith("logit_")]
            return Predictions(tuple(table["split"].to_pylist()), np.stack(logits, axis=1), table["label"].to_numpy())
        except (OSError, KeyError, ValueError, pa.ArrowException):
            raise OptionError(
                f"{file} is missing or damaged: delete {self.root / 'rows' / f'{run}.json'}, and the command that made the sweep"
                " does that run again"
            ) from None

    def join(self) -> list[RunRow]:
        """Write the table anew, of all rows."""
        rows = self.rows()
        self._write_parquet(Path(TABLE), as_table(rows))
        return rows

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises OptionError while another process has the folder."""
        with written(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OptionError(f"another hsk works in {self.root}: wait until it has ended, or choose another --out") from None
            yield
        finally:
            os.close(handle)

    def _write_parquet(self, name: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        _write(self.root / name, sink.getvalue().to_pybytes())


def names_of(rows: Iterable[RunRow]) -> dict[str, str]:
    """What to call each configuration: its name, and, where several have that name, what differs in their recipes, or else the
    configuration."""
    first: dict[str, RunRow] = {}
    for row in rows:
        first.setdefault(row.configuration, row)
    alike: dict[str, list[str]] = {}
    for configuration, row in first.items():
        alike.setdefault(row.name, []).append(configuration)
    found: dict[str, str] = {}
    for name, several in alike.items():
        recipes = {each: tomllib.loads(first[each].recipe) if len(several) > 1 else {} for each in several}
        options = dict.fromkeys(option for recipe in recipes.values() for option in recipe if option != "seed")
        differ = [option for option in options if len({str(recipe.get(option)) for recipe in recipes.values()}) > 1]
        told = {
            each: " ".join([name, *(f"{n}={text_of(recipes[each][n])}" for n in differ if n in recipes[each])])
            for each in several
        }
        once = Counter(told.values())
        found |= {each: words if once[words] == 1 else f"{words} ({each})" for each, words in told.items()}
    return found


def as_table(rows: Sequence[RunRow]) -> pa.Table:
    """A column for each field of `RunRow`, and, in place of `scores` and `losses`, one for each that some run has: "validation/
    accuracy", "loss/hidden/mud.hidden"; `versions` is JSON."""
    kinds = {int: pa.int64(), float: pa.float64()}
    columns: dict[str, pa.DataType] = {}
    for each in fields(RunRow):
        if each.name not in ("scores", "losses"):
            columns[each.name] = next((kind for own, kind in kinds.items() if own in _kinds_of(each.type)), pa.string())
    flat = [_flat(row) for row in rows]
    columns |= {name: pa.float64() for name in sorted({name for row in flat for name in row if name not in columns})}
    return pa.Table.from_pylist(flat, schema=pa.schema(list(columns.items())))


def _flat(row: RunRow) -> dict[str, Any]:
    found = {each.name: getattr(row, each.name) for each in fields(row) if each.name not in ("scores", "losses", "versions")}
    losses = {f"loss/{name}": value for name, value in row.losses.items()}
    return {**found, "versions": json.dumps(row.versions), **row.scores, **losses}


def _kinds_of(kind: Any) -> Sequence[Any]:
    return get_args(kind) or (kind,)


def _read_row(path: Path) -> RunRow | None:
    try:
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {each.name for each in fields(RunRow)}
        return RunRow(**{name: value for name, value in document.items() if name in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        raise OptionError(f"{path} is damaged: delete it, and the same command does that run again") from None


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all. Raises HskError where the disk refuses."""
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)
