"""How a run's weights are chosen: among which terms, by which chooser; and a trained selector as a folder, to be used again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hskstore.errors import HskError, ModelError, OptionError, StoreError
from hskstore.features import RowTargets, TeacherShape, Want
from hskstore.methods import Phase, Selection, Terms, chosen_terms
from hskstore.methods.ksm import TERMS
from hskstore.methods.selection import state_want
from hskstore.methods.selector import RandomWeights, Selector
from hskstore.methods.serving import lacking
from hskstore.models.run import ModelShape
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store

FOLDER = "selector"
"""Beside the student that was trained with it."""

WEIGHTS, OPTIONS = "selector.safetensors", "selector.json"

MOST_WIDE = 2**20
"""Of what a selector's file may ask memory for: vectors and batches."""


@dataclass(frozen=True)
class Selecting:
    """What a run chooses among, by `selection`, from the vectors `want` (None: from nothing), which are so wide. `used`: the
    selector that was trained before, if one is used."""

    selection: Selection
    terms: tuple[str, ...]
    want: Want[RowTargets] | None
    widths: tuple[int, int]
    used: Selector | None = None

    def chooser(self, batch_size: int) -> nn.Module:
        """Who chooses, for batches of this size. Raises OptionError where the selector that is used knows another."""
        if self.used is not None:
            if self.used.batch != batch_size:
                raise OptionError(
                    f"--selector {self.selection.selector} looks at batches of {self.used.batch} rows: give"
                    f" --batch-size {self.used.batch}, not {batch_size}"
                )
            return self.used
        if not self.selection.learns:
            return RandomWeights(self.terms, hard=self.selection.action == "random-hard")
        return Selector(self.terms, batch_size, self.widths, self.selection, learns=True)


def selecting(
    phases: Sequence[Phase], recipe: Recipe, store: Store, teacher: TeacherShape, student: ModelShape
) -> Selecting | None:
    """How the weights of a run's phase are chosen; None where they are fixed.

    Raises OptionError, ModelError or StoreError where they cannot be.
    """
    selection = recipe.selects
    if selection is None:
        return None
    if len(phases) != 1:
        names = " and ".join(phase.name for phase in phases)
        raise OptionError(f"--select: weights are chosen in one phase, and {recipe.method.name} has {names}: add --phases joint")
    if selection.learns and recipe.prune_to is not None:
        raise OptionError(
            f"--prune-to {recipe.prune_to}: a selector learns from trainings that each begin with the whole student; use one that"
            " is trained, with --selector, or choose --action random-soft, random-hard or fixed"
        )
    want, widths = state_want(teacher, student) if selection.looks else None, (student.width, teacher.width)
    used = load_selector(Path(selection.selector)) if selection.selector is not None else None
    if used is not None:
        _check_fits(used, widths, phases[0], str(selection.selector))
    terms = used.terms if used is not None else chosen_terms(selection, tuple(phases[0].weights), TERMS)
    lacks = lacking(store.plan, recipe.read_phases(teacher, student))
    if lacks:
        raise StoreError(
            f"{store.root} holds no {' and no '.join(lacks)}, from which weights are chosen: extract with --for ksm besides"
        )
    if selection.learns and "validation/label" not in store.plan.arrays:
        raise StoreError(f"{store.root} holds no label, by which a selector is rewarded: extract with --label")
    return Selecting(selection, terms, want, widths, used)


def _check_fits(used: Selector, widths: tuple[int, int], phase: Phase, folder: str) -> None:
    for whose, own, theirs in zip(("student", "teacher"), widths, used.widths, strict=True):
        if own != theirs:
            raise ModelError(f"--selector {folder} looks at a {whose} {theirs} wide, and this one is {own}: train another")
    missing = [term for term in used.terms if term not in phase.weights]
    if missing:
        raise OptionError(
            f"--selector {folder} weighs {', '.join(missing)}, of which the run has none; its terms are"
            f" {', '.join(phase.weights)}"
        )


def save_selector(selector: Selector, folder: Path) -> None:
    """Its networks, and what it is for, in a folder. Raises HskError where the disk refuses."""
    told = {
        "terms": selector.terms,
        "batch_size": selector.batch,
        "widths": selector.widths,
        "options": {name: value for name, value in asdict(selector.options).items() if name not in ("select", "selector")},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: each.detach().cpu().contiguous() for name, each in selector.named_parameters()}, folder / WEIGHTS)
        (folder / OPTIONS).write_text(json.dumps(told, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise HskError(f"{folder} could not be written ({error}): make room and run the same command again") from None


def load_selector(folder: Path) -> Selector:
    """A selector that was trained before, to be used. Raises OptionError where there is none that can be read."""
    try:
        told: dict[str, Any] = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        terms, (own, theirs), batch = (
            Terms(tuple(map(str, told["terms"]))),
            map(_count, told["widths"]),
            _count(told["batch_size"]),
        )
        found = Selector(terms.names, batch, (own, theirs), Selection(**told["options"]), learns=False)
        found.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, OptionError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionError(
            f"--selector {folder}: no trained selector could be read there ({why}); it is the folder {FOLDER} beside a"
            " student that was trained with one"
        ) from None
    return found


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 < value <= MOST_WIDE:
        raise ValueError(f"{value} is no size")
    return value
