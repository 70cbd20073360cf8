"""One file per method of distillation."""

from collections.abc import Mapping
from dataclasses import fields
from typing import get_args

from hskstore.config import MethodName, check_choice
from hskstore.errors import OptionError
from hskstore.losses import Term
from hskstore.methods.contract import Method, Phase
from hskstore.methods.finetune import Finetune
from hskstore.methods.kd import Kd
from hskstore.methods.mud import Mud

METHODS: dict[MethodName, type[Mud] | type[Kd] | type[Finetune]] = {"mud": Mud, "kd": Kd, "finetune": Finetune}


def make_method(name: MethodName, options: Mapping[str, object]) -> Method:
    """A method by its name with the options given. Raises OptionError for another name, or an option that the method has not."""
    check_choice("--method", name, get_args(MethodName))
    chosen = METHODS[name]
    own = [field.name for field in fields(chosen)]
    for option in options:
        if option not in own:
            flags = ", ".join("--" + field.replace("_", "-") for field in own) or "none"
            raise OptionError(f"--{option.replace('_', '-')} is no option of the method {name}; its own are: {flags}")
    return chosen(**options)  # type: ignore[arg-type]


__all__ = ["METHODS", "Finetune", "Kd", "Method", "Mud", "Phase", "Term", "make_method"]
