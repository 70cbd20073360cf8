"""A student that was just made."""

from dataclasses import dataclass

from hskstore.models import pruned_bert as pruned_bert  # registered with the Auto classes by being imported


@dataclass(frozen=True)
class NewStudent:
    """An untrained student, where it lies and how big it is."""

    folder: str
    layers: int
    parameters: int
