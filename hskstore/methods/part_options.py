"""Options of one method of a run with several, as text: `--set ckd.delta=10`, where a flag sets those of all that have it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hskstore.errors import OptionError
from hskstore.methods.contract import Method
from hskstore.options import Option, text_of


@dataclass(frozen=True)
class PartOptions:
    """Values of options, as text: (("ckd.delta", "10"),), each given once. Raises OptionError."""

    EXPECTED: ClassVar[str] = "METHOD.OPTION=VALUE, with commas between several, such as ckd.delta=10,kd.temperature=2"
    REPEATED: ClassVar[bool] = True

    values: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.values]
        for name, value in self.values:
            method, _, option = name.partition(".")
            if not (method and option and value) or set(f"{name}{value}") & set(",= \t\n"):
                raise OptionError(f"--set {name}={value}: expected {self.EXPECTED}")
            if names.count(name) > 1:
                raise OptionError(f"--set: {name} is given {names.count(name)} values; one is enough")
        if not names:
            raise OptionError(f"--set: expected {self.EXPECTED}")

    @classmethod
    def parse(cls, text: str) -> "PartOptions":
        """Read "ckd.delta=10,kd.temperature=2"; names may be spelt as flags are, `pair-window`. Raises OptionError."""
        pairs = (each.partition("=") for each in text.split(","))
        return cls(tuple((name.strip().replace("-", "_"), value.strip()) for name, _, value in pairs))

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.values)

    def read(self, known: Mapping[str, Mapping[str, Option]]) -> dict[str, dict[str, Any]]:
        """The values by method and option, of methods with these options. Raises OptionError for any other, and for a value that
        is none."""
        found: dict[str, dict[str, Any]] = {}
        for name, value in self.values:
            method, _, option = name.partition(".")
            where = f"--set {name}={value}"
            if method not in known:
                raise OptionError(f"{where}: the method here is {'+'.join(known)}, and {method} is none of it")
            if option not in known[method]:
                raise OptionError(f"{where}: {no_option(option, {method: known[method]})}")
            found.setdefault(method, {})[option] = known[method][option].read_text(value, where)
        return found

    def without(self, names: Collection[str]) -> tuple[tuple[str, str], ...]:
        """The values but those of options so named, of one method ("ckd.delta") or of all ("delta")."""
        return tuple((name, value) for name, value in self.values if not {name, name.partition(".")[2]} & set(names))


def written(parts: Iterable[Method]) -> tuple[dict[str, Any], PartOptions | None]:
    """The options of some methods: by name where all that have it agree, the others each by its method; None: there are none."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for each in fields(part):  # type: ignore[arg-type]
            found.setdefault(each.name, {})[part.name] = getattr(part, each.name)
    agreed = {option: next(iter(own.values())) for option, own in found.items() if len(set(own.values())) == 1}
    others = [
        (f"{method}.{option}", text_of(value))
        for option, own in found.items()
        if option not in agreed
        for method, value in own.items()
        if value is not None
    ]
    return agreed, PartOptions(tuple(others)) if others else None


def no_option(option: str, known: Mapping[str, Mapping[str, Option]]) -> str:
    """What to say of an option that none of some methods with these options has."""
    own = {method: ", ".join(each.flag for each in options.values()) or "none" for method, options in known.items()}
    said = f"--{option.replace('_', '-')} is no option of the method {'+'.join(own)}"
    if len(own) == 1:
        return f"{said}; its own are: {next(iter(own.values()))}"
    return f"{said}; {'; '.join(f'those of {method} are: {flags}' for method, flags in own.items())}"
