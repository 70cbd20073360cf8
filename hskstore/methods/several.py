"""Several methods in one run: the terms of all, at once, or what each learns inside first and the predictions then."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Literal, get_args

from torch import nn

from hskstore.config import MethodName, check_choice
from hskstore.errors import OptionError
from hskstore.features import TeacherShape
from hskstore.losses import Term
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Method, Phase
from hskstore.models.observe import NOTHING, Seen, Sight
from hskstore.models.run import ModelShape

Phasing = Literal["joint", "two"]
"""What is learnt of the inside: beside the predictions, or before them."""
OF_THE_RUN = frozenset({"prediction", "gold"})
"""The terms that belong to the run, not to a method: all others are of what a method learns inside."""


@dataclass(frozen=True)
class MethodNames:
    """Methods by their names, as text with + between them. Raises OptionError for a name that no method has."""

    EXPECTED: ClassVar[str] = f"one of {', '.join(get_args(MethodName))}, or several, such as mud+ckd"

    names: tuple[MethodName, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            check_choice("--method", name, get_args(MethodName))

    @classmethod
    def parse(cls, text: str) -> "MethodNames":
        """Read "mud+ckd". Raises OptionError."""
        return cls(tuple(name.strip() for name in text.split("+")))  # type: ignore[misc]

    def __str__(self) -> str:
        return "+".join(self.names)


@dataclass(frozen=True)
class Together(Phase):
    """A phase of several methods. `parts`: what each of them learns in it, with its name; one that has several phases of its own
    may stand there several times."""

    parts: tuple[tuple[str, Phase], ...] = ()


@dataclass(frozen=True)
class Several:
    """The terms of all `parts`. "prediction" and "gold", of which a run has one each, are those of the first part that has them:
    its weight, its temperature.

    Phases "joint": one, of everything at once, at a decaying rate. "two": what the parts learn inside at a constant rate, then
    "prediction" and "gold" at a decaying one. None: two, if any part has two of its own. A single part with a phasing is learnt
    by it, whatever phases are its own.

    Raises OptionError for a method that stands there twice.
    """

    parts: tuple[Method, ...]
    phasing: Phasing | None = None

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise OptionError(f"--method {self.name}: {name} stands there {names.count(name)} times; once is enough")
        alone = len(names) == 1 and self.phasing is None
        if not names or alone or any(isinstance(part, Several) for part in self.parts):
            raise OptionError(f"--method {self.name}: several methods are two or more, or one with --phases, and none is several")
        if self.phasing is not None:
            check_choice("--phases", self.phasing, get_args(Phasing))

    @property
    def name(self) -> str:
        """Those of the parts, with + between them."""
        return "+".join(part.name for part in self.parts)

    @property
    def source(self) -> str:
        """Those of the parts."""
        return "; ".join(part.source for part in self.parts)

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """Raises OptionError for a part that the parts before it leave nothing to teach, for two phases where no part learns
        anything inside, and for what a part refuses."""
        own = {part.name: part.phases(teacher, student) for part in self.parts}
        whose: dict[str, str] = {}
        for name, phases in own.items():
            for term in (term for phase in phases for term in phase.weights):
                whose.setdefault(term, name)
            if name not in whose.values():
                raise OptionError(
                    f"--method {self.name}: {name} adds no term to those of the methods before it; leave it out, or name it first"
                )
        two = self.phasing == "two" or (self.phasing is None and any(len(phases) > 1 for phases in own.values()))
        if not two:
            return (_together(self.name, _restricted(own, whose, whose.keys()), inside=False),)
        inside = whose.keys() - OF_THE_RUN
        if not inside:
            raise OptionError(
                f"--phases two: {self.name} learns predictions alone, and nothing inside that could come first; leave it out"
            )
        return (
            _together("knowledge", _restricted(own, whose, inside), inside=True),
            _together("prediction", _restricted(own, whose, OF_THE_RUN), inside=False),
        )

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.ModuleDict | None:
        """Those of the parts, by their names."""
        found = {part.name: part.aids(teacher, student) for part in self.parts}
        beside = {name: aids for name, aids in found.items() if aids is not None}
        return nn.ModuleDict(beside) if beside else None

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        assert isinstance(phase, Together)
        methods = {part.name: part for part in self.parts}
        beside = dict(aids.items()) if isinstance(aids, nn.ModuleDict) else {}
        terms: dict[str, Term] = {}
        for name, own in phase.parts:
            weights = {term: phase.weights[term] for term in own.weights if term in phase.weights}
            if weights:
                terms |= methods[name](replace(own, weights=weights), seen, batch, beside.get(name))
        return terms


def parts_of(method: Method) -> tuple[Method, ...]:
    """The methods that a method is made of: itself alone, if it is none of several."""
    return method.parts if isinstance(method, Several) else (method,)


def _restricted(own: Mapping[str, Sequence[Phase]], whose: Mapping[str, str], terms: Collection[str]) -> list[tuple[str, Phase]]:
    """What of these terms each method has to itself, phase by phase."""
    found = []
    for name, phase in ((name, phase) for name, phases in own.items() for phase in phases):
        weights = {term: weight for term, weight in phase.weights.items() if term in terms and whose[term] == name}
        phase = replace(phase, weights=weights, labelled=phase.labelled & weights.keys())
        if not weights.keys() - OF_THE_RUN:
            phase = replace(phase, reads=(), sees=NOTHING)
        if weights:
            found.append((name, phase))
    return found


def _together(name: str, parts: Sequence[tuple[str, Phase]], *, inside: bool) -> Together:
    phases = [phase for _, phase in parts]
    return Together(
        name,
        {term: weight for phase in phases for term, weight in phase.weights.items()},
        schedule="constant" if inside else "linear",
        predicts=not inside,
        reads=tuple(dict.fromkeys(want for phase in phases for want in phase.reads)),
        sees=reduce(Sight.__or__, (phase.sees for phase in phases), NOTHING),
        labelled=frozenset[str]().union(*(phase.labelled for phase in phases)),
        parts=tuple(parts),
    )
