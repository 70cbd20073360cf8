"""Flags of commands, made from the classes whose options they set: name, type, default and help are written there, once."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

import typer

from hskstore.options import Option, options_of

Command = Callable[..., None]


def flags_of(owner: type, *, leave_out: Sequence[str] = ()) -> dict[str, Option]:
    """The options that flags are made for: the documented ones of a dataclass or TypedDict."""
    return {name: option for name, option in options_of(owner).items() if name not in leave_out}


def with_flags(
    panels: Mapping[str, str] = MappingProxyType({}), /, **groups: Mapping[str, Option]
) -> Callable[[Command], Command]:
    """A command that has, in place of each parameter so named, a flag for each of these options.

    `panels` has the headings below which `--help` lists those of a parameter, by its name.
    The parameter gets a dict of those that were given: 0 is given, an option left out and a switch that is off are not.
    """

    def wrap(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, one in own.parameters.items()
            for parameter in ([_flag(option, panels.get(name)) for option in groups[name].values()] if name in groups else [one])
        ]

        def call(**values: Any) -> None:
            taken = {
                group: {name: _text(option, values.pop(name)) for name, option in options.items()}
                for group, options in groups.items()
            }
            command(**values, **{group: {n: v for n, v in found.items() if _is_given(v)} for group, found in taken.items()})

        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return wrap


def _text(option: Option, value: Any) -> Any:
    """What was given, in one piece where it was given in several."""
    return ",".join(value) if option.repeated and value else value


def _is_given(value: object) -> bool:
    return not (value is None or value is False or value == [])


def _flag(option: Option, panel: str | None) -> inspect.Parameter:
    switch = option.kind is bool
    kind: Any = option.kind
    if option.spelt:
        kind = list[str] if option.repeated else str
    elif get_origin(kind) is Sequence:
        kind = types.GenericAlias(list, get_args(kind))
    told = typer.Option(option.flag, help=option.help_with_default, rich_help_panel=panel)
    annotation: Any = Annotated[kind if switch else kind | None, told]
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=False if switch else None, annotation=annotation
    )
