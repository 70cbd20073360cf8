"""Weights of a method's terms that a run has in place of the method's own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from hskstore.errors import OptionError
from hskstore.methods.contract import Phase


@dataclass(frozen=True)
class Weights:
    """The weights of some terms, each named once: finite and not below 0. Raises OptionError."""

    EXPECTED: ClassVar[str] = "TERM=NUMBER, with commas between several, such as pkd.cls=100,gold=0.5"
    REPEATED: ClassVar[bool] = True

    terms: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.terms]
        for name, weight in self.terms:
            if not name or set(name) & set(",= \t\n") or not name.isprintable():
                raise OptionError(f"--weight: {name!r} is no name of a term; expected {self.EXPECTED}")
            if not 0 <= weight < math.inf:
                raise OptionError(f"--weight {name}={weight}: must be from 0, and finite")
            if names.count(name) > 1:
                raise OptionError(f"--weight: {name} is given {names.count(name)} weights; one is enough")
        if not names:
            raise OptionError(f"--weight: expected {self.EXPECTED}")

    @classmethod
    def parse(cls, text: str) -> "Weights":
        """Read "pkd.cls=100,gold=0.5". Raises OptionError."""
        terms: list[tuple[str, float]] = []
        for part in text.split(","):
            name, _, number = part.partition("=")
            try:
                terms.append((name.strip(), float(number)))
            except ValueError:
                raise OptionError(f"--weight {text}: expected {cls.EXPECTED}") from None
        return cls(tuple(terms))

    def __str__(self) -> str:
        return ",".join(f"{name}={weight!r}" for name, weight in self.terms)


def weighed(phases: Iterable[Phase], weights: Weights | None, method: str) -> tuple[Phase, ...]:
    """A method's phases with these weights in place of its own, in every phase that has the term; a term of weight 0 is left
    out, and with it its need of labels.

    Raises OptionError for a term that no phase has, and where a phase would be left with none.
    """
    phases = tuple(phases)
    terms = dict.fromkeys(term for phase in phases for term in phase.weights)
    given = dict(weights.terms) if weights is not None else {}
    its_own = f"the terms of the method {method} are: {', '.join(terms)}"
    for term in given:
        if term not in terms:
            raise OptionError(f"--weight {term}={given[term]:g}: there is no such term; {its_own}")
    found: list[Phase] = []
    for phase in phases:
        wanted = {term: weight for term, own in phase.weights.items() if (weight := given.get(term, own))}
        if not wanted:
            raise OptionError(f"--weight {weights}: the phase {phase.name} is left without a term; {its_own}")
        found.append(replace(phase, weights=wanted))
    return tuple(found)
