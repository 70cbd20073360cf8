"""Typed options as named text, both ways: flags of a command, keys of a TOML file.

What an option is stands once, in the annotation of the class that has it: `temperature: Annotated[float, Doc("Of the soft
labels.")] = 1.0`. The command line and recipes are made from that.
"""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_doc import Doc

from hskstore.errors import OptionError

Plain = str | int | float | bool
"""A value as TOML and the command line write it."""


@dataclass(frozen=True)
class Option:
    """One option: `kind` is its type without None, `default` what it is where nobody says; None: that depends."""

    name: str
    kind: Any
    help: str
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def spelt(self) -> bool:
        """Whether its text is not the value itself: numbers with commas, or a class that reads its own text (`parse`)."""
        return get_origin(self.kind) is tuple or hasattr(self.kind, "parse")

    @property
    def repeated(self) -> bool:
        """Whether its flag may be given several times, each time with a part of its text; commas then join them."""
        return bool(getattr(self.kind, "REPEATED", False))

    @property
    def expected(self) -> str:
        """What its values look like, for messages."""
        if get_origin(self.kind) is Literal:
            return f"one of {', '.join(map(str, get_args(self.kind)))}"
        if get_origin(self.kind) is tuple:
            return "numbers with commas, such as 10,5"
        if hasattr(self.kind, "parse"):
            return str(self.kind.EXPECTED)
        return {int: "a whole number", float: "a number", bool: "true or false"}.get(self.kind, "text")

    @property
    def help_with_default(self) -> str:
        return self.help if self.default in (None, False) or "Default:" in self.help else f"{self.help} {told(self.default)}"

    def read(self, value: object) -> Any:
        """The option's value from text, a number or a bool, as a flag or a TOML file gives it. Raises OptionError."""
        found = _read(self.kind, value)
        if found is None:
            raise OptionError(f"{self.flag} {value}: expected {self.expected}")
        return found

    def read_text(self, text: str, where: str) -> Any:
        """The option's value from text alone, as `text_of` writes it. Raises OptionError, beginning with `where`."""
        found = _read_text(self.kind, text)
        if found is None:
            raise OptionError(f"{where}: expected {self.expected}")
        return found


def options_of(owner: type) -> dict[str, Option]:
    """The options of a dataclass or TypedDict by name: those of its fields whose annotation has a Doc."""
    defaults = {field.name: field.default for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
    return {
        name: Option(name, kind, doc, None if (default := defaults.get(name)) is dataclasses.MISSING else default)
        for name, hint in get_type_hints(owner, include_extras=True).items()
        for kind, doc in _documented(hint)
    }


def joined(owners: Mapping[Any, type]) -> dict[str, Option]:
    """The options of several classes, one for each name; its help says which of them have it, and their defaults."""
    found: dict[str, dict[Any, Option]] = {}
    for owner, kind in owners.items():
        for name, option in options_of(kind).items():
            found.setdefault(name, {})[owner] = option
    return {name: _one_for(name, owned) for name, owned in found.items()}


def told(default: object) -> str:
    return f"Default: {default:g}." if isinstance(default, float) else f"Default: {default}."


def plain(value: Any) -> Plain:
    """A value as TOML and the command line write it: the inverse of `Option.read`."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def text_of(value: Any) -> str:
    """A value as text alone: the inverse of `Option.read_text`."""
    written = plain(value)
    if isinstance(written, bool):
        return str(written).lower()
    return repr(written) if isinstance(written, float) else str(written)


def refuse_unknown(given: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raise OptionError for names that are not among `known`."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise OptionError(f"{where}: {', '.join(unknown)} is no option here; the options are {', '.join(known)}")


def _one_for(name: str, owned: Mapping[Any, Option]) -> Option:
    kinds = [option.kind for option in owned.values()]
    assert all(kind == kinds[0] for kind in kinds), f"{name} has several types: {kinds}"
    owners: dict[tuple[str, Any], list[str]] = {}
    for owner, option in owned.items():
        owners.setdefault((option.help, option.default), []).append(owner)
    said: list[str] = []
    for (doc, default), names in owners.items():
        what, default_follows, its_own = doc.partition(" Default:")  # where it depends, the Doc says on what
        stated = f"Default:{its_own}" if default_follows else told(default)
        said.append(f"{what.removesuffix('.')} ({', '.join(names)}). {stated}")
    return Option(name, kinds[0], " ".join(said), None)


def _documented(hint: Any) -> Iterator[tuple[Any, str]]:
    """The type without None, and what its Doc says; nothing of a hint that has none."""
    if get_origin(hint) is not Annotated:
        return
    kind, *notes = get_args(hint)
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    for note in notes:
        if isinstance(note, Doc):
            yield kind, note.documentation


def _read(kind: Any, value: object) -> Any:
    """None where the value is none of that kind."""
    if hasattr(kind, "parse"):
        return kind.parse(value) if isinstance(value, str) else None
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else [value]
        found = tuple(_number(get_args(kind)[0], part) for part in parts)
        return None if None in found else found
    if kind in (int, float):
        return None if isinstance(value, str) else _number(kind, value)
    return value if isinstance(value, kind) else None


def _read_text(kind: Any, text: str) -> Any:
    """None where the text is none of that kind."""
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    if kind in (int, float):
        return _number(kind, text)
    if get_origin(kind) is Literal:
        return next((value for value in get_args(kind) if str(value) == text), None)
    return _read(kind, text)


def _number(kind: type[int] | type[float], value: object) -> int | float | None:
    if not isinstance(value, str | int | float) or isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None
