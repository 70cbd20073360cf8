"""What an extraction is asked to keep, by configuration or by the methods that are to learn from it: features for each store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hskstore.config import DEFAULT_KEEP, Keep, Strategy
from hskstore.errors import OptionError
from hskstore.features import TeacherShape, Want
from hskstore.layers import plan_strategy
from hskstore.models.run import ModelShape
from hskstore.store.features import Attended, Cls, ClsRow, Feature, Pooled, Qkv, Spans, States
from hskstore.store.hidden import Hidden, plan_hidden


class Reads(Protocol):
    """A phase of a method."""

    @property
    def reads(self) -> tuple[Want[Any], ...]: ...


class Learns(Protocol):
    """A method, as much of it as an extraction asks: a name, and what its phases read."""

    @property
    def name(self) -> str: ...

    def phases(self, teacher: TeacherShape, student: ModelShape) -> Sequence[Reads]: ...


@dataclass(frozen=True)
class Asked:
    """What to keep: `keeps` of `hidden` by each of `strategies`, which differ in the student's layers alone; all that `methods`
    read for students of these depths; and, of a `rich` store, the states and the [CLS] row of the attention of every layer."""

    keeps: Sequence[Keep]
    strategies: Sequence[Strategy]
    methods: Sequence[Learns] = ()
    rich: bool = False

    def __post_init__(self) -> None:
        if not self.keeps and not self.methods and not self.rich:
            raise OptionError("say what to keep: --keep DEPTH,LENGTH,WIDTH, or --for METHOD, or --rich")

    def by_store(
        self, teacher: TeacherShape, *, most_admitted: int, raw_scores: bool = True, spans: Spans | None = None
    ) -> dict[str, list[Feature]]:
        """The features of each store, by its folder.

        A store each for every configuration of `hidden`; several student depths get the depth in front: "s3-d1-l9-w0.1". What
        methods read otherwise lies together in one store that bears their names, "distilbert+pkd"; so does `hidden`, where it has
        one configuration alone. All of it is besides the store "rich". `most_admitted` is the most tokens of a train row that a
        rank may choose among; `raw_scores` says whether the teacher shows those of its attention. `spans`, if they are found, are
        in every store. Raises OptionError.
        """
        rich: dict[str, list[Feature]] = {}
        if self.rich:
            states = States(tuple(range(teacher.layers + 1)), teacher.width, self.strategies[0].values)
            layers = tuple(range(1, teacher.layers + 1)) if teacher.ranking is None else teacher.ranking
            if not layers:
                raise OptionError(
                    "--rich: in no layer of this teacher does the first token attend to a whole row, by which tokens could be"
                    " ranked: choose a --max-length within its window"
                )
            rich["rich"] = [states, ClsRow(layers, raw_scores, teacher.ranking)]
        found = [] if spans is None else [spans]
        return {name: [*features, *found] for name, features in (rich | self._asked(teacher, most_admitted)).items()}

    def reading_spans(self, teacher: TeacherShape) -> list[str]:
        """The methods that read spans, by name."""
        return sorted(
            {one.name for one in self.methods if any(want.kind.name == Spans.name for want in self._wants(one, teacher))}
        )

    def _asked(self, teacher: TeacherShape, most_admitted: int) -> dict[str, list[Feature]]:
        wants = [(method.name, want) for method in self.methods for want in self._wants(method, teacher)]
        names, ranked = {method.name for method in self.methods}, {name for name, want in wants if want.kind.name == Hidden.name}
        hidden = self._hidden(teacher, self.keeps or [DEFAULT_KEEP] * bool(ranked), most_admitted)
        if not self.methods:
            return {name: [feature] for name, feature in hidden.items()}
        others = self._others([want for _, want in wants], teacher)
        if len(hidden) <= 1:
            return {"+".join(sorted(names)): [*hidden.values(), *others]} if names else {}
        apart = sorted((names - ranked) | {name for name, want in wants if want.kind.name != Hidden.name})
        return {name: [feature] for name, feature in hidden.items()} | ({"+".join(apart): others} if apart else {})

    def _wants(self, method: Learns, teacher: TeacherShape) -> list[Want[Any]]:
        """All that a method reads for students of all depths asked for."""
        students = [ModelShape("the student", 0, (each.student_layers, teacher.width)) for each in self.strategies]
        return [want for student in students for phase in method.phases(teacher, student) for want in phase.reads]

    def _hidden(self, teacher: TeacherShape, keeps: Sequence[Keep], most_admitted: int) -> dict[str, Feature]:
        strategies = list(dict.fromkeys(self.strategies))
        found: dict[str, Feature] = {}
        for strategy in strategies:
            planned = plan_strategy(strategy, teacher.layers)
            for keep in dict.fromkeys(keeps):
                name = keep.name if len(strategies) == 1 else f"s{strategy.student_layers}-{keep.name}"
                sizes = {"teacher_layers": teacher.layers, "hidden_size": teacher.width, "most_admitted": most_admitted}
                found[name] = plan_hidden(keep, planned, **sizes, ranking=teacher.ranking)
        return found

    def _others(self, wants: Sequence[Want[Any]], teacher: TeacherShape) -> list[Feature]:
        values = self.strategies[0].values
        layers: Mapping[str, set[int]] = {kind.name: set() for kind in (States, Cls, Qkv, Attended, Pooled)}
        for want in wants:
            if want.kind.name in layers:
                layers[want.kind.name] |= {pair.teacher for pair in want.pairs}
        found: list[Feature] = [
            kind(tuple(sorted(own)), teacher.width, values) for kind in (States, Cls) if (own := layers[kind.name])
        ]
        if layers[Qkv.name] or layers[Attended.name]:
            if teacher.heads is None or teacher.width % teacher.heads:
                raise OptionError(
                    f"this teacher's config names no heads that make up its width of {teacher.width}: choose --for a method"
                    " without attention, such as kd"
                )
            if own := layers[Qkv.name]:
                found.append(Qkv(tuple(sorted(own)), teacher.width, values, heads=teacher.heads))
            if own := layers[Attended.name]:
                found.append(Attended(tuple(sorted(own)), teacher.heads))
        if own := layers[Pooled.name]:
            found.append(Pooled(tuple(sorted(own)), teacher.width, values))
        return found
