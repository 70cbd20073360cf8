"""A store's plan: what it will hold and of what, fixed before the teacher runs; as plan.json it is the store's identity."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hskstore.config import Precision
from hskstore.errors import OptionError, StoreError
from hskstore.store.codebooks import BOOKS, CODEBOOKS, check_codebooks, coded
from hskstore.store.features import LISTED, Attended, Feature, LayerVectors, Qkv, Said
from hskstore.store.hidden import Hidden
from hskstore.store.layout import KNOWN_ARRAYS, LABELS, SPLIT, KeptText, Split, SplitRows, Unit, in_units, plan_arrays
from hskstore.store.schema import BLOCK_ROWS, FORMAT_VERSION, MAX_LAYERS, ArraySpec, canonical_json, hierarchy, known_fields


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
    """A store's content: its `features` by name, of train; inputs, logits and labels of every split.

    `teacher`, `tokenizer` and `task` are plain JSON: hashes, sizes, label names, metrics. No path, device or library
    version stands here: where a run goes on, and with how many threads, is free. The last bits of a state may follow both.
    """

    features: Mapping[str, Feature]
    pass_: Pass
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    task: dict[str, Any]
    splits: dict[str, Split]
    arrays: dict[str, ArraySpec]
    text: KeptText | None = None

    @property
    def hidden(self) -> Hidden | None:
        """The feature of that name."""
        found = self.features.get(Hidden.name)
        return found if isinstance(found, Hidden) else None

    @property
    def said(self) -> dict[str, Said]:
        """The features that the teacher says."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, Said)}

    @property
    def version(self) -> int:
        """Of the format: the least whose readers read the store rightly. Those of 1 know `hidden`, and need it; those of 2 know
        no codes."""
        if coded(self.features):
            return 3
        return 1 if self.hidden is not None else 2

    @property
    def store_id(self) -> str:
        """sha256 of plan.json."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def units(self) -> Iterator[Unit]:
        """Codebooks first, which the others are written in."""
        if coded(self.features):
            yield BOOKS
        for split, rows in self.splits.items():
            for unit in range(rows.units):
                yield split, unit

    @property
    def n_units(self) -> int:
        """Units of rows of all splits, and one of codebooks where vectors are codes."""
        return bool(coded(self.features)) + sum(rows.units for rows in self.splits.values())

    def rows_of(self, unit: Unit) -> int:
        """Rows of the data in a unit: in that of codebooks none."""
        split, number = unit
        return 0 if unit == BOOKS else self.splits[split].rows_of(number)

    def arrays_of(self, split: str) -> dict[str, ArraySpec]:
        """The arrays of a split, by path."""
        return {path: spec for path, spec in self.arrays.items() if path.startswith(split + "/")}

    def documents(self) -> dict[str, bytes]:
        """Every `zarr.json` of the store."""
        groups = {f"train/{name}": feature.attributes() for name, feature in self.features.items()}
        return hierarchy(self.arrays, {"": {"hskstore": {"version": self.version}}, **groups})

    def as_json(self) -> dict[str, Any]:
        """What a plan of format 1 did not have is named only where it is there, so that every other plan stays the bytes that it
        was."""
        listed = {name: feature.as_json() for name, feature in self.features.items() if name in LISTED}
        document = {
            "format": "hskstore",
            "version": self.version,
            "pass": asdict(self.pass_),
            "teacher": self.teacher,
            "tokenizer": self.tokenizer,
            "task": self.task,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "arrays": {path: spec.as_json() for path, spec in self.arrays.items()},
        }
        document |= {} if self.hidden is None else self.hidden.as_json()
        document |= {"features": listed} if listed else {}
        return document if self.text is None else document | {"text": asdict(self.text)}

    def to_bytes(self) -> bytes:
        """plan.json: the same plan has the same bytes."""
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
        features: dict[str, Feature] = {"hidden": Hidden.of_json(document)} if "hidden" in document else {}
        listed = document.get("features", {})
        features |= {name: kind.of_json(listed[name]) for name, kind in LISTED.items() if name in listed}
        return cls(
            features=features,
            pass_=known_fields(Pass, document["pass"]),
            teacher=document["teacher"],
            tokenizer=document["tokenizer"],
            task=document["task"],
            splits={name: known_fields(Split, split) for name, split in document["splits"].items()},
            arrays={
                path: known_fields(ArraySpec, {**spec, "shape": tuple(spec["shape"]), "axes": tuple(spec.get("axes", ()))})
                for path, spec in document["arrays"].items()
                if path.partition("/")[2] in KNOWN_ARRAYS
            },
            text=known_fields(KeptText, document["text"]) if "text" in document else None,
        )

    def _check_numbers(self) -> None:
        """Raise ValueError, TypeError or KeyError unless the numbers are numbers."""
        numbers = [self.teacher["layers"], self.teacher["hidden_size"]]
        numbers += [n for feature in self.features.values() for n in feature.sizes()]
        numbers += [n for split in self.splits.values() for n in (split.rows, split.tokens, split.longest, split.unit_rows)]
        numbers += [self.pass_.max_length, self.pass_.batch_tokens, self.pass_.block_rows]
        numbers += [spec.chunk for spec in self.arrays.values()]
        if self.text is not None:
            numbers += [self.text.columns, *self.text.bytes.values()]
            if self.text.columns not in (1, 2) or self.text.bytes.keys() != self.splits.keys():
                raise ValueError("its text is of no columns, or of other splits")
        others = [self.tokenizer["pad_token_id"], *self.tokenizer["separators"], self.pass_.seed]
        others += [n for feature in self.features.values() for n in feature.numbers()]
        if not all(type(number) is int for number in (*numbers, *others)) or not all(0 < number < 2**63 for number in numbers):
            raise ValueError("a number is none, or beyond all numbers")
        depths = [self.teacher["layers"], *([] if self.hidden is None else [self.hidden.strategy.student_layers])]
        if max(depths) > MAX_LAYERS:
            raise ValueError("a model has more layers than any has")
        if any(layer not in range(self.teacher["layers"] + 1) for each in self.features.values() for layer in each.layers):
            raise ValueError("a feature is of a layer that the teacher has not")
        vectors = [each for each in self.features.values() if isinstance(each, Hidden | LayerVectors)]
        if any(each.hidden_size != self.teacher["hidden_size"] for each in vectors):
            raise ValueError("a feature is of another width than the teacher")
        hidden = self.hidden
        least = self.teacher["hidden_size"] if Hidden.name in coded(self.features) else 1
        if hidden is not None and not least <= hidden.width <= hidden.hidden_size:
            raise ValueError("more coordinates of a vector are kept than it has, or codes are not of all")
        heads = {each.heads for each in self.features.values() if isinstance(each, Qkv | Attended)}
        if len(heads) > 1 or any(self.teacher["hidden_size"] % number for number in heads):
            raise ValueError("attention is of heads that the teacher cannot have")

    def _check_names(self) -> None:
        """Raise ValueError, TypeError or KeyError unless what is said of the store is text, and splits name folders."""
        for text in (self.teacher["sha256"], self.task["name"], self.pass_.precision):
            str.encode(text)  # that it is text, and can be printed
        if "train" not in self.splits or {"files", CODEBOOKS} & self.splits.keys() or not all(map(SPLIT.fullmatch, self.splits)):
            raise ValueError("a split has no name for a folder")

    def _check_arrays(self) -> None:
        """Raise ValueError unless the arrays are those that the numbers make."""
        label = self.arrays.get("train/label")
        if label is not None and label.dtype not in LABELS:
            raise ValueError(f"labels are none of {', '.join(LABELS)}")
        planned = plan_arrays(
            self.features,
            self.splits,
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


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, node


def planned_anew(plan: Plan, features: Iterable[Feature]) -> Plan:
    """The plan that an extraction of the same rows would have made for these features."""
    label = plan.arrays.get("train/label")
    return make_plan(
        features,
        plan.pass_,
        splits=plan.splits,
        teacher=plan.teacher,
        tokenizer=plan.tokenizer,
        task=plan.task,
        labels=None if label is None else label.dtype,
        text=plan.text,
    )


def make_plan(
    features: Iterable[Feature],
    pass_: Pass,
    *,
    splits: Mapping[str, SplitRows],
    teacher: dict[str, Any],
    tokenizer: dict[str, Any],
    task: dict[str, Any],
    labels: str | None,
    text: KeptText | None = None,
) -> Plan:
    """The plan of one store, by an extraction or cut from a bigger store alike. Raises OptionError for codebooks beyond all size.

    `labels` is the label's dtype or None; `text` is None where only the tokens are kept.
    """
    named = {feature.name: feature for feature in features}
    in_store = in_units(named, splits, text=text)
    arrays = plan_arrays(named, in_store, labels=labels, logits=len(teacher["labels"]), text=text)
    check_codebooks(arrays)
    return Plan(
        features=named,
        pass_=pass_,
        teacher=teacher,
        tokenizer=tokenizer,
        task=task,
        splits=in_store,
        arrays=arrays,
        text=text,
    )
