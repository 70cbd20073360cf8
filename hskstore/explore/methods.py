"""What the methods are, in words and numbers: for `hsk methods`."""

import inspect
from dataclasses import dataclass

from hskstore.features import TeacherShape
from hskstore.methods import METHODS, Method, Phase
from hskstore.models.run import ModelShape
from hskstore.options import Plain, options_of, plain

EXAMPLE_TEACHER, EXAMPLE_STUDENT = TeacherShape(12, 768), ModelShape("the student", 2, (6, 768))
"""Of what a method reads an example is told: a student of 6 layers and a teacher of 12."""


@dataclass(frozen=True)
class MethodOption:
    """A method's own option, its values and its default."""

    flag: str
    expected: str
    help: str
    default: Plain | None


@dataclass(frozen=True)
class PhaseDescription:
    """One run of the optimiser: its terms with their weights, and the teacher layers of the features that it reads, in the
    example."""

    name: str
    schedule: str
    weights: dict[str, float]
    reads: dict[str, list[int]]
    reads_labels: bool


@dataclass(frozen=True)
class MethodDescription:
    """A method with its defaults."""

    name: str
    summary: str
    source: str
    phases: list[PhaseDescription]
    options: list[MethodOption]


def describe_methods() -> list[MethodDescription]:
    """Every method, in the order in which they are listed."""
    return [_describe(kind()) for kind in METHODS.values()]


def _describe(method: Method) -> MethodDescription:
    options = [
        MethodOption(option.flag, option.expected, option.help, None if option.default is None else plain(option.default))
        for option in options_of(type(method)).values()
    ]
    phases = [
        PhaseDescription(
            phase.name,
            phase.schedule,
            dict(phase.weights),
            _layers_read(phase),
            phase.reads_labels,
        )
        for phase in method.phases(EXAMPLE_TEACHER, EXAMPLE_STUDENT)
    ]
    return MethodDescription(method.name, inspect.getdoc(type(method)) or "", method.source, phases, options)


def _layers_read(phase: Phase) -> dict[str, list[int]]:
    """The teacher layers of each feature, of all that is wanted of it."""
    found: dict[str, set[int]] = {}
    for want in phase.reads:
        found.setdefault(want.kind.name, set()).update(pair.teacher for pair in want.pairs)
    return {name: sorted(layers) for name, layers in found.items()}
