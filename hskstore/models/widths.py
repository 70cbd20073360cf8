"""How wide a BERT is, and how wide it shall be."""

from dataclasses import astuple, dataclass
from typing import ClassVar, NamedTuple

from hskstore.errors import OptionError


class Widths(NamedTuple):
    """How wide a BERT is: heads and FFN units of each layer, and the rank of its word embeddings."""

    heads: int
    ffn: int
    embedding_rank: int


@dataclass(frozen=True)
class PruneTo:
    """How wide a BERT shall be; None: as wide as it is."""

    EXPECTED: ClassVar[str] = "HEADS,FFN,RANK (each a count, or all), such as 2,768,128"

    heads: int | None = None
    ffn: int | None = None
    embedding_rank: int | None = None

    @classmethod
    def parse(cls, text: str, option: str = "--prune-to") -> "PruneTo":
        """Read "2,768,128" or "2,768,all", as an option was given. Raises OptionError."""
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 3 or not all(part == "all" or (part.isdecimal() and len(part) < 10) for part in parts):
            raise OptionError(f"{option} {text}: expected {cls.EXPECTED}")
        return cls(*(None if part == "all" else int(part) for part in parts))

    def __str__(self) -> str:
        return ",".join("all" if wish is None else str(wish) for wish in astuple(self))

    def within(self, now: Widths, name: str) -> Widths:
        """The widths to reach from those of `name` now. Raises OptionError for none, or more than there is."""
        wanted = Widths(*(has if wish is None else wish for wish, has in zip(astuple(self), now, strict=True)))
        for what, wish, has in zip(("heads", "FFN units", "dimensions of word embeddings"), wanted, now, strict=True):
            if not 1 <= wish <= has:
                raise OptionError(f"{wish} {what} to keep: {name} has 1 to {has}")
        return wanted
