"""hsk methods: what the methods are, what they read, and their options; and the methods that `--for` names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hskstore.cli.options import JsonOpt, prepare_torch
from hskstore.errors import OptionError

if TYPE_CHECKING:  # heavy: methods import torch
    from hskstore.methods import Method


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Tell all about one. Default: a line for each.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """List the methods of distillation: what they learn from, what they read of a store, options, defaults and sources."""
    from hskstore.cli import console, print_methods

    prepare_torch()
    from hskstore.explore.methods import describe_methods

    found = describe_methods()
    if name is not None:
        found = [each for each in found if each.name == name]
        if not found:
            raise OptionError(f"{name} is no method; the methods are {', '.join(each.name for each in describe_methods())}")
    if as_json:
        console.print_json(found[0] if name is not None else found)
    elif name is None:
        print_methods.print_methods(found)
    else:
        print_methods.print_method(found[0])


def methods_for(named: Sequence[str]) -> list["Method"]:
    """The methods that `--for` names: by their own names with their defaults, or by recipe files with theirs; each of several in
    one run by itself, and ksm besides where a recipe's selector looks at its knowledge.

    Raises OptionError for what is neither.
    """
    if not named:
        return []
    prepare_torch()
    from hskstore.methods import METHODS, make_method, parts_of
    from hskstore.stage_two.recipe import Recipe, read_recipe

    found: list[Method] = []
    for text in dict.fromkeys(named):
        if set(text.split("+")) <= set(METHODS):
            found += parts_of(make_method(text, {}))
        elif Path(text).is_file():
            found += Recipe.of(read_recipe(Path(text))).reading
        else:
            raise OptionError(f"--for {text}: no method is called so ({', '.join(METHODS)}), and no recipe file")
    return found
