"""The feature `hidden`, which every store of format 1 holds: kept layers x tokens x coordinates, ranked and masked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from hskstore.config import Keep, Values, resolve, units_of_hsk
from hskstore.errors import OptionError
from hskstore.layers import LayerPair, PlannedStrategy, layer_pairs
from hskstore.store.schema import known_fields
from hskstore.store.vectors import ENCODINGS, Array, Codes, Encoding


@dataclass(frozen=True)
class Hidden:
    """One configuration of the paper: `length` token slots per row and layer, `width` coordinates per vector of `hidden_size`.

    `pairs` are the kept layers, each with the student layer that it was kept for and the layer whose attention ranked its
    tokens; `keep` and `strategy` are how they were chosen.
    """

    name: ClassVar = "hidden"
    keep: Keep
    strategy: PlannedStrategy
    pairs: tuple[LayerPair, ...]
    length: int
    width: int
    hidden_size: int

    @property
    def values(self) -> Values:
        """The name of its encoding."""
        return self.strategy.values

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.values]

    @property
    def layers(self) -> tuple[int, ...]:
        """The teacher layers, as they lie in the arrays: one may be there twice, ranked in two ways."""
        return tuple(pair.teacher for pair in self.pairs)

    def arrays(self, longest: int) -> dict[str, Array]:
        """Format 1's arrays, which follow rank and not axes."""
        kept = (len(self.pairs), self.length)
        vectors = self.encoding.arrays(kept, self.width, codec="values")
        return {
            "values": vectors.pop("values"),
            "mask": Array((), (*kept, math.ceil(self.hidden_size / 8)), "uint8", 0, "mask"),
            "token": Array((), kept, "int16", -2),
            "n_kept": Array((), kept[:1], "int16", -1),
            **vectors,
        }

    def row_bytes(self, longest: int) -> int:
        """Of a row in the largest array, by which units are cut."""
        arrays = self.arrays(longest)
        return max(arrays["values"].row_bytes, arrays["mask"].row_bytes)

    def places(self, pairs: Sequence[LayerPair]) -> tuple[int, ...]:
        """Where the layers of some pairs lie in the arrays: by teacher and rank layer, else by teacher layer alone.

        Raises KeyError for a layer that is not there.
        """
        exactly = {(pair.teacher, pair.rank): place for place, pair in enumerate(self.pairs)}
        at_all = {pair.teacher: place for place, pair in enumerate(self.pairs)}
        ranked = ((pair.teacher, pair.rank) for pair in pairs)
        return tuple(exactly[each] if each in exactly else at_all[each[0]] for each in ranked)

    def as_json(self) -> dict[str, Any]:
        """What stands of it in a plan, at the plan's own top: format 1 knew no other feature."""
        return {
            "keep": str(self.keep),
            "strategy": asdict(self.strategy),
            "hidden": {
                "layers": [asdict(pair) for pair in self.pairs],
                "length": self.length,
                "width": self.width,
                "hidden_size": self.hidden_size,
            },
        }

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> "Hidden":
        """The inverse of `as_json`, from a plan; nothing of it is believed yet."""
        own = document["hidden"]
        return cls(
            keep=Keep.parse(document["keep"]),
            strategy=known_fields(PlannedStrategy, document["strategy"]),
            pairs=tuple(known_fields(LayerPair, pair) for pair in own["layers"]),
            length=own["length"],
            width=own["width"],
            hidden_size=own["hidden_size"],
        )

    def sizes(self) -> list[object]:
        """What must be whole numbers above zero in a stranger's plan."""
        return [self.length, self.width, self.hidden_size]

    def numbers(self) -> list[object]:
        """What must be whole numbers in a stranger's plan."""
        return [number for pair in self.pairs for number in asdict(pair).values()] + [self.strategy.top_layer]

    def attributes(self) -> dict[str, object]:
        """What its group tells any Zarr reader."""
        return {
            "teacher_layers": [pair.teacher for pair in self.pairs],
            "rank_layers": [pair.rank for pair in self.pairs],
            "student_layers": [pair.student for pair in self.pairs],
            "hidden_size": self.hidden_size,
            "width": self.width,
            "values": self.strategy.values,
        }


def plan_hidden(
    keep: Keep,
    strategy: PlannedStrategy,
    *,
    teacher_layers: int,
    hidden_size: int,
    most_admitted: int,
    ranking: Sequence[int] | None = None,
) -> Hidden:
    """A configuration for a teacher and a data set, of whose train rows none has more than `most_admitted` tokens that a rank
    may choose among. `ranking` are the layers whose first token attends to whole rows (None: all), one of which ranks tokens by
    attention. Raises OptionError where the teacher has no such layers or coordinates."""
    able = ranking if strategy.ranks_by_attention else None
    if able is not None and not able:
        raise OptionError(
            f"--rank {strategy.rank}: in no layer of this teacher does the first token attend to a whole row, so none can rank"
            " its tokens: choose --rank left or random, or a --max-length within its window"
        )
    pairs = pairs_of(keep, strategy, student_layers=strategy.student_layers, teacher_layers=teacher_layers, ranking=able)
    width = resolve(keep.width, hidden_size)
    if width > hidden_size:
        raise OptionError(f"--keep {keep}: width {width} is more than the teacher's {hidden_size} coordinates")
    if isinstance(ENCODINGS[strategy.values], Codes) and width < hidden_size:
        raise OptionError(
            f"--keep {keep} with --values {strategy.values}: codes are of whole vectors, of which no coordinates are left out;"
            f" keep the width all, or choose --values f16, f32, q8 or q4"
        )
    length = min(resolve(keep.length, most_admitted), most_admitted)
    return Hidden(keep, strategy, pairs, length, width, hidden_size)


def planned_units(hidden: Hidden, kept_units: float) -> float:
    """A^HSK as planned for a row (section 5.1), with the fractions that were asked for; where the length is no count, as it came
    out in `kept_units`, the average A^HSK of the data's rows."""
    layers, share = len(hidden.pairs), hidden.width / hidden.hidden_size
    length = hidden.keep.length if isinstance(hidden.keep.length, int) else kept_units / (layers * share)
    return units_of_hsk(layers, length, hidden.keep.width if isinstance(hidden.keep.width, float) else share)


def pairs_of(
    keep: Keep,
    strategy: PlannedStrategy,
    *,
    student_layers: int,
    teacher_layers: int,
    ranking: Sequence[int] | None = None,
) -> tuple[LayerPair, ...]:
    """The kept layers for a student of so many layers; see `layer_pairs`."""
    return layer_pairs(
        keep.depth,
        student_layers=student_layers,
        teacher_layers=teacher_layers,
        top_layer=strategy.top_layer,
        layer_map=strategy.layer_map,
        rank_by=strategy.rank_layer,
        ranking=ranking,
    )
