"""What `hsk` prints of methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # heavy: what prints a result is called by what has made one
    from hskstore.explore.methods import MethodDescription, PhaseDescription
from hskstore.cli.console import grid, out, paragraphs


def print_methods(found: list[MethodDescription]) -> None:
    """A line for each: what its phases read beside the logits, and where it comes from."""
    table = grid("method", "reads of a store", "source", left=3, prose=True)
    for method in found:
        reads = dict.fromkeys(name for phase in method.phases for name in _read(phase))
        table.add_row(method.name, ", ".join(reads), method.source)
    out.print(table)
    out.print(
        "hsk methods NAME tells all about one, hsk extract --for NAME keeps what it reads, hsk distill --method NAME uses it;"
        " --method mud+ckd learns by both in one run"
    )


def print_method(method: MethodDescription) -> None:
    """All about one."""
    out.print(paragraphs(f"{method.name}: {method.summary}"))
    out.print()
    out.print(f"source: {method.source}")
    for phase in method.phases:
        terms = " + ".join(f"{weight:g} x {term}" for term, weight in phase.weights.items())
        out.print(f"phase {phase.name}, {phase.schedule} rate: {terms} (--weight {next(iter(phase.weights))}=NUMBER changes one)")
        for name, layers in phase.reads.items():
            if not layers:
                out.print(f"  reads {name}")
                continue
            told = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
            out.print(f"  reads {name}; for a student of 6 layers and a teacher of 12 that of teacher {told}")
        others = [name for name in _read(phase) if name not in phase.reads]
        if others:
            out.print(f"  reads {', '.join(others)}")
    if method.options:
        table = grid("option", "values", "default", "what it is", left=4, prose=True)
        for option in method.options:
            table.add_row(option.flag, option.expected, "" if option.default is None else f"{option.default}", option.help)
        out.print(table)


def _read(phase: PhaseDescription) -> list[str]:
    """Features, logits and labels that a phase reads."""
    logits = ["logits"] if "prediction" in phase.weights else []
    return [*phase.reads, *logits, *(["labels"] if phase.reads_labels else [])]
