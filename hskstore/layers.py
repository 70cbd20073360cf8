"""Which teacher layer guides which student layer. Layer 0 is the embedding output, on both sides."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction

from hskstore.config import Amount, LayerMap, RankLayer, Strategy, resolve
from hskstore.errors import OptionError


@dataclass(frozen=True)
class LayerPair:
    """A student layer, the teacher layer that guides it, and the one whose attention ranks the tokens; None where none does."""

    student: int
    teacher: int
    rank: int | None = None


@dataclass(frozen=True)
class PlannedStrategy(Strategy):
    """A strategy for one teacher, whose `top_layer` is decided: what a plan holds."""

    top_layer: int = field()  # else dataclass would take the default that it has in `Strategy`


def plan_strategy(strategy: Strategy, teacher_layers: int) -> PlannedStrategy:
    """The strategy for a teacher of so many layers. Raises OptionError for a `top_layer` that the teacher has not."""
    top = default_top_layer(teacher_layers) if strategy.top_layer is None else strategy.top_layer
    if not 1 <= top <= teacher_layers:
        raise OptionError(f"--top-layer {top}: the teacher has layers 1 to {teacher_layers}")
    return PlannedStrategy(**asdict(strategy) | {"top_layer": top})


def default_top_layer(teacher_layers: int) -> int:
    """L_top = round(10 L / 12), halves to even: 12 -> 10, 6 -> 5 (section 4.1.2 finds 10 of 12 the most stable)."""
    return round(Fraction(10 * teacher_layers, 12))


def teacher_layer(layer: int, *, student_layers: int, top_layer: int, layer_map: LayerMap = "round") -> int:
    """g(l, L_top).

    "round" is round(l L_top / L'), halves to even, so that g(L') = L_top; "eq5" is the paper's Equation 5 to the
    letter, l round(L_top / L'), which does not promise that.
    """
    if layer_map == "eq5":
        return layer * round(Fraction(top_layer, student_layers))
    return round(Fraction(layer * top_layer, student_layers))


def even_layer(layer: int, *, student_layers: int, teacher_layers: int) -> int:
    """round(l L / L'), halves to even: the teacher layer of student layer l where the last learns from the last."""
    return round(Fraction(layer * teacher_layers, student_layers))


def rank_layer(layer: int, *, student_layers: int, teacher_layers: int) -> int:
    """The layer whose attention ranks tokens for student layer l: g(l, L), at least 1 ("Att (L_top = last)")."""
    return max(1, even_layer(layer, student_layers=student_layers, teacher_layers=teacher_layers))


def nearest_layer(layer: int, layers: Sequence[int]) -> int:
    """The nearest of some layers, of two as near the lower."""
    return min(layers, key=lambda each: (abs(each - layer), each))


def layer_pairs(
    depth: Amount,
    *,
    student_layers: int,
    teacher_layers: int,
    top_layer: int,
    layer_map: LayerMap = "round",
    rank_by: RankLayer = "aligned",
    ranking: Sequence[int] | None = None,
) -> tuple[LayerPair, ...]:
    """The top N^D of the student's layers 0..L' with their teachers, lowest first (section 4.1.1).

    Where not every teacher layer can rank tokens, those that can are `ranking`, and the nearest of them ranks. Raises OptionError
    where there are fewer than N^D layers, or where g leaves the teacher.
    """
    count = resolve(depth, student_layers + 1)
    if count > student_layers + 1:
        raise OptionError(
            f"depth {depth}: a student of {student_layers} layers has {student_layers + 1} to guide"
            " (its embedding output counts); keep at most that many"
        )
    pairs: list[LayerPair] = []
    for layer in range(student_layers - count + 1, student_layers + 1):
        teacher = teacher_layer(layer, student_layers=student_layers, top_layer=top_layer, layer_map=layer_map)
        if not 0 <= teacher <= teacher_layers:
            raise OptionError(
                f"the layer map {layer_map} leads student layer {layer} to teacher layer {teacher};"
                f" the teacher has layers 0 to {teacher_layers}: choose another --top-layer or --layer-map"
            )
        rank = (
            max(1, teacher)
            if rank_by == "same"
            else rank_layer(layer, student_layers=student_layers, teacher_layers=teacher_layers)
        )
        pairs.append(LayerPair(layer, teacher, nearest_layer(rank, ranking) if ranking else rank))
    return tuple(pairs)
