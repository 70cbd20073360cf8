"""What a store can hold of a teacher's knowledge: a closed set of features, each a value that stands in the plan.

A feature names teacher layers. Which student layer learns from which belongs to the method, so that one store teaches students
of any depth. Spans alone are of no layer: they are found in the text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, get_args

from hskstore.config import Values, check_choice
from hskstore.layers import LayerPair
from hskstore.store.hidden import Hidden
from hskstore.store.vectors import ENCODINGS, Array, Axis, Encoding

_SHA256 = re.compile("[0-9a-f]{64}")

PARTS = 3
"""Of what an attention is made of: query, key and value, in this order."""


MOST_ATTENDED = 4
"""Tokens that are kept of those which a token attends to, in each head: the most children that a node of a tree can have."""


class Feature(Protocol):
    """A frozen dataclass. Its arrays stand at "train/NAME/ARRAY", its JSON in the plan."""

    name: ClassVar[str]

    @property
    def layers(self) -> tuple[int, ...]:
        """The teacher layers, as they lie in the arrays. Layer 0 is the embedding output. Of spans there are none."""
        ...

    def arrays(self, longest: int) -> Mapping[str, Array]:
        """By name, for rows of at most `longest` tokens."""
        ...

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        ...

    def places(self, pairs: Sequence[LayerPair]) -> tuple[int, ...]:
        """Where the teacher layers of some pairs lie in the arrays. Raises KeyError for a layer that is not there."""
        ...

    def as_json(self) -> dict[str, Any]: ...

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self: ...

    def sizes(self) -> Sequence[object]:
        """What must be whole numbers above zero in a stranger's plan."""
        ...

    def numbers(self) -> Sequence[object]:
        """What must be whole numbers in a stranger's plan."""
        ...

    def attributes(self) -> Mapping[str, object]:
        """What its group tells any Zarr reader."""
        ...


@dataclass(frozen=True)
class OfLayers:
    """A feature of some teacher layers, lowest first, each layer once; `axes` are those of its arrays."""

    name: ClassVar[str]
    axes: ClassVar[tuple[Axis, ...]]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)) or not self.layers:
            raise ValueError(f"the layers of {self.name} are not some layers, lowest first")

    def shape(self, longest: int) -> tuple[int, ...]:
        """Of its `axes`, for rows of at most `longest` tokens."""
        sizes = {"layer": len(self.layers), "part": PARTS, "token": longest}
        return tuple(sizes[axis] for axis in self.axes)

    def places(self, pairs: Sequence[LayerPair]) -> tuple[int, ...]:
        """Where the teacher layers of some pairs lie in the arrays. Raises KeyError for a layer that is not there."""
        where = {layer: place for place, layer in enumerate(self.layers)}
        return tuple(where[pair.teacher] for pair in pairs)

    def numbers(self) -> list[object]:
        return list(self.layers)


@dataclass(frozen=True)
class LayerVectors(OfLayers):
    """Vectors of `hidden_size` coordinates."""

    hidden_size: int
    values: Values = "f16"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--values", self.values, get_args(Values))

    @property
    def width(self) -> int:
        """Coordinates of a stored vector: all."""
        return self.hidden_size

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.values]

    def arrays(self, longest: int) -> dict[str, Array]:
        return self.encoding.arrays(self.shape(longest), self.hidden_size, axes=self.axes, codec="vectors")

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        return max(array.row_bytes for array in self.arrays(longest).values())

    def as_json(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "hidden_size": self.hidden_size, "values": self.values}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(tuple(document["layers"]), document["hidden_size"], document["values"])

    def sizes(self) -> list[object]:
        return [self.hidden_size]

    def attributes(self) -> dict[str, object]:
        return {"teacher_layers": list(self.layers), "hidden_size": self.hidden_size, "values": self.values}


@dataclass(frozen=True)
class States(LayerVectors):
    """Every real token of some layers, in the text's order, unmasked: [layer, token, width]. Behind a row's last token: zeros."""

    name: ClassVar = "states"
    axes: ClassVar = ("layer", "token")


@dataclass(frozen=True)
class Cls(LayerVectors):
    """The vector of the first token, [CLS], of some layers: [layer, width]."""

    name: ClassVar = "cls"
    axes: ClassVar = ("layer",)


@dataclass(frozen=True)
class Pooled(LayerVectors):
    """The mean of a row's real tokens, special ones among them, of some layers: [layer, width]."""

    name: ClassVar = "pooled"
    axes: ClassVar = ("layer",)


@dataclass(frozen=True)
class Qkv(LayerVectors):
    """Queries, keys and values of the attention of some layers, 1 to L, after rotary embedding, of every real token in the text's
    order: [layer, part, token, width], the `heads` of a vector side by side. Behind a row's last token: zeros."""

    name: ClassVar = "qkv"
    axes: ClassVar = ("layer", "part", "token")
    heads: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in self.layers:
            raise ValueError("attention is of layers from 1 on")
        if type(self.heads) is not int or self.heads < 1 or self.hidden_size % self.heads:
            raise ValueError("a vector is not made of its heads")

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"heads": self.heads}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(tuple(document["layers"]), document["hidden_size"], document["values"], heads=document["heads"])

    def attributes(self) -> dict[str, object]:
        return super().attributes() | {"heads": self.heads}


@dataclass(frozen=True)
class ClsRow(OfLayers):
    """The [CLS] row of the attention of some layers, 1 to L, mean over heads, f32: [layer, token] of probabilities, and of raw
    scores where the teacher shows them (`raw`). Behind a row's last token: zeros. Where [CLS] attends to whole rows in some
    layers alone, those are `ranking`, and no others are stored."""

    name: ClassVar = "cls_row"
    axes: ClassVar = ("layer", "token")
    values: ClassVar[Values] = "f32"
    width: ClassVar[int] = 1
    raw: bool
    ranking: tuple[int, ...] | None = None

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.values]

    def arrays(self, longest: int) -> dict[str, Array]:
        names = ("probability", "raw") if self.raw else ("probability",)
        return {name: Array(self.axes, self.shape(longest), "float32", "NaN", "vectors") for name in names}

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        return self.arrays(longest)["probability"].row_bytes

    def as_json(self) -> dict[str, Any]:
        own = {"layers": list(self.layers), "raw": self.raw}
        return own if self.ranking is None else own | {"ranking": list(self.ranking)}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        if not isinstance(document["raw"], bool) or 0 in document["layers"]:
            raise ValueError("attention is of layers from 1 on, and has raw scores or has none")
        ranking = tuple(document["ranking"]) if "ranking" in document else None
        if ranking is not None and not set(document["layers"]) <= set(ranking):
            raise ValueError("attention is of layers that do not see whole rows")
        return cls(tuple(document["layers"]), document["raw"], ranking)

    def numbers(self) -> list[object]:
        return [*self.layers, *(self.ranking or ())]

    def sizes(self) -> list[object]:
        return []

    def attributes(self) -> dict[str, object]:
        return {"teacher_layers": list(self.layers), "raw": self.raw}


@dataclass(frozen=True)
class Attended(OfLayers):
    """The tokens that each real token attends to most in each of the `heads` of some layers, 1 to L, the first of them most of
    all: positions [layer, head, token, choice], -1 where a row has no more. Behind a row's last token: zeros."""

    name: ClassVar = "attended"
    axes: ClassVar = ("layer", "head", "token", "choice")
    values: ClassVar = "int16"
    width: ClassVar[int] = MOST_ATTENDED
    heads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in self.layers:
            raise ValueError("attention is of layers from 1 on")

    def shape(self, longest: int) -> tuple[int, ...]:
        """Of its `axes`, for rows of at most `longest` tokens."""
        return len(self.layers), self.heads, longest, MOST_ATTENDED

    @property
    def encoding(self) -> Encoding:
        """That of exact numbers."""
        return ENCODINGS["f32"]

    def arrays(self, longest: int) -> dict[str, Array]:
        return {"token": Array(self.axes, self.shape(longest), "int16", -2)}

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        return self.arrays(longest)["token"].row_bytes

    def as_json(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "heads": self.heads}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(tuple(document["layers"]), document["heads"])

    def sizes(self) -> list[object]:
        return [self.heads]

    def attributes(self) -> dict[str, object]:
        return {"teacher_layers": list(self.layers), "heads": self.heads}


@dataclass(frozen=True)
class Spans:
    """The spans of a row, at most `most`, as their first token and the one behind their last, in that order: [span, end], with
    n_spans of them. Behind the last: zeros. `sha256` is that of the chunker that found the phrases among them."""

    name: ClassVar = "spans"
    layers: ClassVar[tuple[int, ...]] = ()
    most: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError("spans were found by a chunker of no sha256")

    def arrays(self, longest: int) -> dict[str, Array]:
        return {
            "tokens": Array(("span", "end"), (self.most, 2), "int32", -1),
            "n_spans": Array((), (), "int32", -1),
        }

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        return self.arrays(longest)["tokens"].row_bytes

    def places(self, pairs: Sequence[LayerPair]) -> tuple[int, ...]:
        """Of no layers none. Raises KeyError for a layer."""
        if pairs:
            raise KeyError(pairs[0].teacher)
        return ()

    def as_json(self) -> dict[str, Any]:
        return {"most": self.most, "sha256": self.sha256}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(document["most"], document["sha256"])

    def sizes(self) -> list[object]:
        return [self.most]

    def numbers(self) -> list[object]:
        return []

    def attributes(self) -> dict[str, object]:
        return {"sha256": self.sha256}


Said = Hidden | LayerVectors | ClsRow | Attended
"""A feature that the teacher says."""

LISTED: Mapping[str, type[States] | type[Cls] | type[ClsRow] | type[Qkv] | type[Attended] | type[Pooled] | type[Spans]] = {
    "states": States,
    "cls": Cls,
    "cls_row": ClsRow,
    "qkv": Qkv,
    "attended": Attended,
    "pooled": Pooled,
    "spans": Spans,
}
"""The features that a plan lists under "features". `hidden`, which format 1 has, stands at the plan's own top."""

FEATURES: tuple[str, ...] = (Hidden.name, *LISTED)
"""Every feature, in the order in which plans, batches and tables have them."""
