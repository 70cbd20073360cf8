"""Knowledge of a teacher, a file a kind: how it is captured and packed on the device, and how it becomes a batch's targets."""

from collections.abc import Mapping
from typing import Any

from hskstore.features.cls import CLS, ClsTargets
from hskstore.features.contract import FeatureRows, Kind, Targets, TeacherShape, Want
from hskstore.features.hidden import HIDDEN, HiddenTargets
from hskstore.features.states import STATES, StateTargets

KINDS: Mapping[str, Kind[Any]] = {kind.name: kind for kind in (HIDDEN, STATES, CLS)}

__all__ = [
    "CLS",
    "HIDDEN",
    "KINDS",
    "STATES",
    "ClsTargets",
    "FeatureRows",
    "HiddenTargets",
    "Kind",
    "StateTargets",
    "Targets",
    "TeacherShape",
    "Want",
]
