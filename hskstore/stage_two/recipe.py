"""A run of stage two as one typed value: what decides a student besides its store; as TOML, and as the command line has it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import tomli_w
from annotated_doc import Doc

from hskstore.config import (
    DEFAULT_WARMUP,
    Loader,
    MethodName,
    TrainPrecision,
    TrainPrecisionOption,
    TrainSeedOption,
    check_choice,
    check_count,
    check_positive,
    check_seed,
    check_share,
)
from hskstore.errors import OptionError
from hskstore.features import TeacherShape
from hskstore.methods import (
    Ksm,
    Method,
    MethodNames,
    Mud,
    PartOptions,
    Phase,
    Phasing,
    Selection,
    Several,
    Weights,
    make_method,
    method_options,
    parts_of,
    weighed,
    written,
)
from hskstore.methods.selection import seeing_state, state_want
from hskstore.models.run import ModelShape
from hskstore.models.widths import PruneTo
from hskstore.options import Option, Plain, options_of, plain, refuse_unknown

METHOD = Option(
    "method",
    MethodNames,
    f"What is learnt, and how: {', '.join(get_args(MethodName))}, or several, mud+ckd. hsk methods tells of each.",
    MethodNames((Mud.name,)),
)
"""In a file and on the command line methods are their names; their options stand among the others, those of one in `set`."""
PHASES = Option(
    "phases",
    Phasing,
    "What is learnt of the inside: beside the predictions (joint) or before (two). Default: two, if a method has two phases, but"
    " joint where weights are chosen.",
    None,
)
SET = Option(
    "set",
    PartOptions,
    "METHOD.OPTION=VALUE: an option of one of several methods; a flag sets it of all. May be given several times.",
    None,
)


@dataclass(frozen=True)
class Recipe:
    """What decides a student besides its store. What is given per phase is one value for each, or one for all.

    `student` is None where it is a module, which no file can name. What is None of `epochs`, `lr` and `batch_size` is the
    task's. `max_steps` and `max_minutes` are of the whole run, shared among the phases in proportion to their steps; a decaying
    rate decays within them. `patience`: dev scores in a row that may be no better than the best before a phase ends. With
    `prune_to` a copy of a BERT gets narrower while it learns, over `prune_share` of the first phase (None: half).
    `weight` stands in place of the method's own weights of its terms. `selection` is how weights are chosen at every step; None:
    they are not, but for the method ksm, by its defaults. Where a selector learns, all these numbers are of
    each of its episodes and of the training that counts.

    Raises OptionError for what makes no sense.
    """

    student: Annotated[str | None, Doc("The student to train: folder or hub name.")] = None
    method: Method = field(default_factory=Mud)
    selection: Selection | None = None
    epochs: Annotated[
        tuple[int, ...] | None,
        Doc("Per phase: 10,5. Default: the paper's for the task (QQP: MNLI's; WNLI: RTE's; data of your own: SST-2's)."),
    ] = None
    lr: Annotated[tuple[float, ...] | None, Doc("Peak rate per phase: 5e-5,2e-5. Default: likewise.")] = None
    batch_size: Annotated[tuple[int, ...] | None, Doc("Per phase: 32,32. Default: likewise.")] = None
    max_steps: Annotated[
        int | None, Doc("At most so many steps, shared among the phases; where a selector learns, in each training.")
    ] = None
    max_minutes: Annotated[
        float | None, Doc("At most so many minutes of training, likewise; a decaying rate decays in them.")
    ] = None
    patience: Annotated[int | None, Doc("End a phase after so many epochs whose dev score is no better than the best.")] = None
    warmup: Annotated[float, Doc("Share of a decaying phase over which the rate rises.")] = DEFAULT_WARMUP
    weight: Annotated[
        Weights | None, Doc("TERM=NUMBER: weigh a term of the loss so, 0 leaves it out. May be given several times.")
    ] = None
    prune_to: Annotated[
        PruneTo | None, Doc("HEADS,FFN,RANK: a BERT gets so narrow while it learns, a head at a time (ROSITA).")
    ] = None
    prune_share: Annotated[float | None, Doc("Share of the first phase over which it does. Default: 0.5.")] = None
    seed: TrainSeedOption = 0
    precision: TrainPrecisionOption = "auto"
    loader: Annotated[
        Loader, Doc("Rows in memory (ram) or read in pieces (blocks). Default: ram, if 40 % of memory will do.")
    ] = "auto"

    def __post_init__(self) -> None:
        for option, values in (("--epochs", self.epochs), ("--lr", self.lr), ("--batch-size", self.batch_size)):
            if values is not None and not (isinstance(values, tuple) and values):
                raise OptionError(f"{option} {values}: expected a tuple, one value for all phases or one for each")
            for value in values or ():
                if option == "--lr":
                    check_positive(option, value)
                else:
                    check_count(option, value)  # type: ignore[arg-type]
        check_count("--max-steps", self.max_steps)
        check_positive("--max-minutes", self.max_minutes)
        check_count("--patience", self.patience)
        check_share("--warmup", self.warmup)
        check_seed(self.seed)
        check_choice("--precision", self.precision, get_args(TrainPrecision))
        check_choice("--loader", self.loader, get_args(Loader))
        if self.prune_share is not None and self.prune_to is None:
            raise OptionError("--prune-share goes with --prune-to")
        chosen = self.selection
        if chosen is not None and chosen.select is None and chosen.selector is None and not self._selects_itself:
            raise OptionError(
                f"the method {self.method.name} chooses no weights by itself: name the terms with --select, or leave out"
                " --action and what else is of a selector"
            )

    @property
    def _selects_itself(self) -> bool:
        return any(isinstance(part, Ksm) for part in parts_of(self.method))

    @property
    def selects(self) -> Selection | None:
        """How weights are chosen at every step; None: they are fixed."""
        chosen = Selection() if self.selection is None and self._selects_itself else self.selection
        return None if chosen is None or chosen.action == "fixed" else chosen

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """Those of its method, as it weighs them. Raises OptionError or ModelError where it cannot be so with these two."""
        return weighed(self.method.phases(teacher, student), self.weight, self.method.name)

    def read_phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        """The same with all that is read and seen in them: what a selector looks at is no method's."""
        phases = self.phases(teacher, student)
        if self.selects is None or not self.selects.looks:
            return phases
        return tuple(seeing_state(phase, state_want(teacher, student)) for phase in phases)

    @property
    def reading(self) -> tuple[Method, ...]:
        """The methods for which a store is made that has all of `read_phases`: those of the run, and ksm where a selector looks
        at what ksm learns of the last layers."""
        parts = parts_of(self.method)
        looks = self.selects is not None and self.selects.looks and not self._selects_itself
        return (*parts, Ksm()) if looks else parts

    @classmethod
    def of(cls, given: Mapping[str, object]) -> "Recipe":
        """From options by name as a TOML file or the command line gives them.

        Raises OptionError for a name that is no option, or one of another method, and for a value that is none.
        """
        known = recipe_options()
        refuse_unknown(given, list(known), "a recipe")
        values: dict[str, Any] = {name: known[name].read(value) for name, value in given.items()}
        name, phasing, by_part = (values.pop(each.name, each.default) for each in (METHOD, PHASES, SET))
        own = {option: values.pop(option) for option in method_options() if option in values}
        chosen = {option: values.pop(option) for option in options_of(Selection) if option in values}
        names = MethodNames.parse(str(name)).names
        several_with_ksm = len(names) > 1 and Ksm.name in names
        if phasing is None and ({"select", "selector"} & chosen.keys() or (several_with_ksm and chosen.get("action") != "fixed")):
            phasing = "joint"
        method = make_method(str(name), own, by_part=by_part, phasing=phasing)
        return cls(method=method, selection=Selection(**chosen) if chosen else None, **values)

    def as_options(self) -> dict[str, Plain]:
        """The inverse of `of`: everything that is not None."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        of_methods, by_part = written(parts_of(self.method))
        phasing = self.method.phasing if isinstance(self.method, Several) else None
        chosen = {} if self.selection is None else {name: getattr(self.selection, name) for name in options_of(Selection)}
        found = own | of_methods | chosen | {METHOD.name: self.method.name, PHASES.name: phasing, SET.name: by_part}
        return {name: plain(found[name]) for name in recipe_options() if found.get(name) is not None}

    def to_toml(self) -> str:
        """A recipe file: `as_options` as TOML."""
        return tomli_w.dumps(self.as_options())


def recipe_options() -> dict[str, Option]:
    """Every option that a recipe can have, by name: flags of `hsk distill`, keys of a file."""
    own = options_of(Recipe)
    of_methods = method_options() | {PHASES.name: PHASES, SET.name: SET} | options_of(Selection)
    return {"student": own.pop("student"), METHOD.name: METHOD} | of_methods | own


def overridden(file: Mapping[str, Plain], given: Mapping[str, object]) -> dict[str, object]:
    """The options of a file with those given in place of the same ones: also of one method alone (`set`), where a flag given is
    in place of what the file has of any method. Raises OptionError."""
    found = {**file, **given}
    if SET.name in file:
        anew = PartOptions.parse(str(given[SET.name])).values if SET.name in given else ()
        own = PartOptions.parse(str(file[SET.name])).without({*given, *(name for name, _ in anew)})
        found.pop(SET.name)
        if own + anew:
            found[SET.name] = str(PartOptions(own + anew))
    return found


def read_recipe(path: Path) -> dict[str, Plain]:
    """The options in a recipe file, by name, each of its kind; a file may have some of them alone.

    Raises OptionError for a file that is none.
    """
    where = f"--recipe {path}"
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no TOML
        raise OptionError(f"{where}: no recipe could be read ({getattr(error, 'strerror', None) or error})") from None
    known = recipe_options()
    refuse_unknown(given, list(known), where)
    for name, value in given.items():
        said = "a list" if isinstance(value, list) else "a table" if isinstance(value, dict) else value
        try:
            known[name].read(value)
        except OptionError:
            raise OptionError(f"{where}: {name} is {said}; expected {known[name].expected}") from None
    return given


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe file that is not there yet. Raises OptionError where it is, or where the disk refuses."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(recipe.to_toml())
    except FileExistsError:
        raise OptionError(f"{path} already exists: choose another name, or delete it") from None
    except OSError as error:
        raise OptionError(f"{path} could not be written ({error.strerror}): make room, or choose another place") from None
