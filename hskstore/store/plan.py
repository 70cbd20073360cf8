"""A store's plan: what it will hold and of what, fixed before the teacher runs; as plan.json it is the store's identity."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from hskstore.config import Keep, Precision, resolve
from hskstore.errors import OptionError, StoreError
from hskstore.layers import LayerPair, PlannedStrategy, layer_pairs
from hskstore.store.layout import KNOWN_ARRAYS, LABELS, SPLIT, KeptText, Split, SplitRows, Unit, in_units, plan_arrays
from hskstore.store.schema import BLOCK_ROWS, FORMAT_VERSION, ArraySpec, canonical_json, hierarchy

KindT = TypeVar("KindT")


@dataclass(frozen=True)
class Pass:
    """One run of the teacher over the data; stores of one pass share it, whatever they keep.

    Rows are permuted by `seed`, cut into blocks of `block_rows`, sorted by length inside a block, and batched up to
    `batch_tokens` padded tokens. All of it decides the last bits of a state, so all of it is planned.
    """

    seed: int
    precision: Precision
    max_length: int
    batch_tokens: int
    block_rows: int = BLOCK_ROWS


@dataclass(frozen=True)
class Plan:
    """A store's content. `length` token slots per row and layer, `width` coordinates per vector of `hidden_size`.

    `teacher`, `tokenizer` and `task` are plain JSON: hashes, sizes, label names, metrics. No path, device or library
    version stands here: where a run goes on, and with how many threads, is free. The last bits of a state may follow both.
    """

    keep: Keep
    strategy: PlannedStrategy
    pairs: tuple[LayerPair, ...]
    length: int
    width: int
    hidden_size: int
    pass_: Pass
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    task: dict[str, Any]
    splits: dict[str, Split]
    arrays: dict[str, ArraySpec]
    text: KeptText | None = None

    @property
    def store_id(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def units(self) -> Iterator[Unit]:
        for split, rows in self.splits.items():
            for unit in range(rows.units):
                yield split, unit

    def arrays_of(self, split: str) -> dict[str, ArraySpec]:
        return {path: spec for path, spec in self.arrays.items() if path.startswith(split + "/")}

    def documents(self) -> dict[str, bytes]:
        """Every `zarr.json` of the store."""
        hidden = {
            "teacher_layers": [pair.teacher for pair in self.pairs],
            "rank_layers": [pair.rank for pair in self.pairs],
            "student_layers": [pair.student for pair in self.pairs],
            "hidden_size": self.hidden_size,
            "width": self.width,
            "values": self.strategy.values,
        }
        return hierarchy(self.arrays, {"": {"hskstore": {"version": FORMAT_VERSION}}, "train/hidden": hidden})

    def as_json(self) -> dict[str, Any]:
        """The text is named only where it is kept, so that every other plan stays the bytes that it was before there was any."""
        document = {
            "format": "hskstore",
            "version": FORMAT_VERSION,
            "keep": str(self.keep),
            "strategy": asdict(self.strategy),
            "hidden": {
                "layers": [asdict(pair) for pair in self.pairs],
                "length": self.length,
                "width": self.width,
                "hidden_size": self.hidden_size,
            },
            "pass": asdict(self.pass_),
            "teacher": self.teacher,
            "tokenizer": self.tokenizer,
            "task": self.task,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "arrays": {path: spec.as_json() for path, spec in self.arrays.items()},
        }
        return document if self.text is None else document | {"text": asdict(self.text)}

    def to_bytes(self) -> bytes:
        return canonical_json(self.as_json())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Plan":
        """Read a plan.json. Raises StoreError for anything that is not a plan this version can read.

        Arrays and fields that this version does not know are passed over: what changes the meaning of those it knows is
        another format version.
        """
        try:
            document = json.loads(data)
            if document["format"] != "hskstore":
                raise StoreError(f"{where}/plan.json is not an hskstore plan")
            if int(document["version"]) > FORMAT_VERSION:
                raise StoreError(
                    f"{where} is a store of format version {document['version']}; this hskstore reads up to"
                    f" {FORMAT_VERSION}: upgrade it"
                )
            plan = cls._of_json(document)
            plan._check_numbers()
            plan._check_names()
            plan._check_arrays()
            return plan
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OptionError) as error:
            raise StoreError(f"{where}/plan.json cannot be read as a plan ({error!r}): the store is damaged") from None

    @classmethod
    def _of_json(cls, document: Mapping[str, Any]) -> "Plan":
        """The inverse of `as_json`, which believes what it reads."""
        hidden = document["hidden"]
        return cls(
            keep=Keep.parse(document["keep"]),
            strategy=_known(PlannedStrategy, document["strategy"]),
            pairs=tuple(_known(LayerPair, pair) for pair in hidden["layers"]),
            length=hidden["length"],
            width=hidden["width"],
            hidden_size=hidden["hidden_size"],
            pass_=_known(Pass, document["pass"]),
            teacher=document["teacher"],
            tokenizer=document["tokenizer"],
            task=document["task"],
            splits={name: _known(Split, split) for name, split in document["splits"].items()},
            arrays={
                path: _known(ArraySpec, {**spec, "shape": tuple(spec["shape"])})
                for path, spec in document["arrays"].items()
                if path.partition("/")[2] in KNOWN_ARRAYS
            },
            text=_known(KeptText, document["text"]) if "text" in document else None,
        )

    def _check_numbers(self) -> None:
        """Raise ValueError, TypeError or KeyError unless the numbers are numbers."""
        numbers = [self.length, self.width, self.hidden_size, self.teacher["layers"], self.teacher["hidden_size"]]
        numbers += [n for split in self.splits.values() for n in (split.rows, split.tokens, split.longest, split.unit_rows)]
        numbers += [self.pass_.max_length, self.pass_.batch_tokens, self.pass_.block_rows]
        numbers += [spec.chunk for spec in self.arrays.values()]
        if self.text is not None:
            numbers += [self.text.columns, *self.text.bytes.values()]
            if self.text.columns not in (1, 2) or self.text.bytes.keys() != self.splits.keys():
                raise ValueError("its text is of no columns, or of other splits")
        others = [self.tokenizer["pad_token_id"], *self.tokenizer["separators"], self.strategy.top_layer, self.pass_.seed]
        others += [number for pair in self.pairs for number in asdict(pair).values()]
        if not all(type(number) is int for number in (*numbers, *others)) or not all(0 < number < 2**63 for number in numbers):
            raise ValueError("a number is none, or beyond all numbers")

    def _check_names(self) -> None:
        """Raise ValueError, TypeError or KeyError unless what is said of the store is text, and splits name folders."""
        for text in (self.teacher["sha256"], self.task["name"], self.pass_.precision):
            str.encode(text)  # that it is text, and can be printed
        if "train" not in self.splits or "files" in self.splits or not all(map(SPLIT.fullmatch, self.splits)):
            raise ValueError("a split has no name for a folder")

    def _check_arrays(self) -> None:
        """Raise ValueError unless the arrays are those that the numbers make."""
        label = self.arrays.get("train/label")
        if label is not None and label.dtype not in LABELS:
            raise ValueError(f"labels are none of {', '.join(LABELS)}")
        planned = plan_arrays(
            splits=self.splits,
            layers=len(self.pairs),
            length=self.length,
            width=self.width,
            hidden_size=self.hidden_size,
            values=self.strategy.values,
            labels=None if label is None else label.dtype,
            logits=len(self.teacher["labels"]),
            text=self.text,
        )
        fits = all(spec.shard % spec.chunk == 0 for spec in self.arrays.values())
        # As JSON, where 1, 1.0 and true are three things.
        found, wanted = (
            canonical_json({path: spec.as_json() | {"chunk": 0} for path, spec in arrays.items()})
            for arrays in (self.arrays, planned)
        )
        if found != wanted or not fits:
            raise ValueError("its arrays are not those that its numbers make")

    def differences(self, other: "Plan") -> list[str]:
        """The fields in which two plans differ, as "path: mine -> other"; arrays follow from the rest and are left out."""
        mine, theirs = (dict(_leaves(plan.as_json())) for plan in (self, other))
        return [
            f"{field}: {mine.get(field, 'absent')} -> {theirs.get(field, 'absent')}"
            for field in sorted(mine.keys() | theirs.keys())
            if mine.get(field) != theirs.get(field) and not field.startswith("arrays.")
        ]


def _known(kind: type[KindT], document: Mapping[str, Any]) -> KindT:
    """A dataclass from the fields of a document that it has."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in document.items() if name in names})


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, node


def make_plan(
    keep: Keep,
    strategy: PlannedStrategy,
    pass_: Pass,
    *,
    splits: Mapping[str, SplitRows],
    most_admitted: int,
    teacher: dict[str, Any],
    tokenizer: dict[str, Any],
    task: dict[str, Any],
    labels: str | None,
    text: KeptText | None = None,
) -> Plan:
    """The plan of one configuration, by an extraction or cut from a bigger store alike.

    `most_admitted` is the most tokens of a train row that a rank may choose among; `labels` is the label's dtype or None;
    `text` is None where only the tokens are kept. Raises OptionError where the teacher has no such layers or coordinates.
    """
    pairs = _pairs(keep, strategy, teacher["layers"])
    hidden_size = int(teacher["hidden_size"])
    width = _width(keep, hidden_size)
    length = min(resolve(keep.length, most_admitted), most_admitted)
    kept = {"layers": len(pairs), "length": length, "width": width, "hidden_size": hidden_size}
    in_store = in_units(splits, **kept, values=strategy.values, text=text)
    outputs = len(teacher["labels"])
    return Plan(
        keep=keep,
        strategy=strategy,
        pairs=pairs,
        length=length,
        width=width,
        hidden_size=hidden_size,
        pass_=pass_,
        teacher=teacher,
        tokenizer=tokenizer,
        task=task,
        splits=in_store,
        arrays=plan_arrays(splits=in_store, **kept, values=strategy.values, labels=labels, logits=outputs, text=text),
        text=text,
    )


def _pairs(keep: Keep, strategy: PlannedStrategy, teacher_layers: int) -> tuple[LayerPair, ...]:
    return layer_pairs(
        keep.depth,
        student_layers=strategy.student_layers,
        teacher_layers=teacher_layers,
        top_layer=strategy.top_layer,
        layer_map=strategy.layer_map,
        rank_by=strategy.rank_layer,
    )


def _width(keep: Keep, hidden_size: int) -> int:
    width = resolve(keep.width, hidden_size)
    if width > hidden_size:
        raise OptionError(f"--keep {keep}: width {width} is more than the teacher's {hidden_size} coordinates")
    return width
