"""How long work tells whoever watches it how far it is."""

from typing import Protocol


class Watch(Protocol):
    """Called with a stage's name, the rows that are done of the total, and a word on how it goes."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def unwatched(stage: str, done: int, total: int, note: str = "") -> None:
    """Nobody watches."""
