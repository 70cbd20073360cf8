"""Knowledge of a teacher, a file a kind: how it is captured and packed on the device, and how it becomes a batch's targets."""

from collections.abc import Mapping
from typing import Any

from hskstore.features.attended import ATTENDED, AttendedTargets
from hskstore.features.cls import CLS
from hskstore.features.cls_row import CLS_ROW, ClsRowTargets
from hskstore.features.contract import FeatureRows, Kind, Targets, TeacherShape, Want
from hskstore.features.hidden import HIDDEN, HiddenTargets, check_kept
from hskstore.features.of_rows import RowTargets
from hskstore.features.pooled import POOLED, mean_of_tokens
from hskstore.features.qkv import QKV, QkvTargets
from hskstore.features.spans import SPANS, SpanTargets, check_spans
from hskstore.features.states import STATES, StateTargets

KINDS: Mapping[str, Kind[Any]] = {kind.name: kind for kind in (HIDDEN, STATES, CLS, CLS_ROW, QKV, ATTENDED, POOLED, SPANS)}
"""Every feature by its name: a closed set."""

__all__ = [
    "ATTENDED",
    "CLS",
    "CLS_ROW",
    "HIDDEN",
    "KINDS",
    "POOLED",
    "QKV",
    "SPANS",
    "STATES",
    "AttendedTargets",
    "ClsRowTargets",
    "FeatureRows",
    "HiddenTargets",
    "Kind",
    "QkvTargets",
    "RowTargets",
    "SpanTargets",
    "StateTargets",
    "Targets",
    "TeacherShape",
    "Want",
    "check_kept",
    "check_spans",
    "mean_of_tokens",
]
