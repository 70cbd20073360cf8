"""Offline hidden-state distillation: run the teacher once, train any student from what was kept.

`extract` writes stores, `open_store` reads one, `view` selects a configuration out of a rich one, `distill` trains from one by
a `Recipe`, `finetune` makes a teacher, `evaluate` scores. `sweep` and `search` train from many configurations, `recommend` says
which of them to take.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hskstore.version import __version__ as __version__

if TYPE_CHECKING:
    from hskstore.config import Keep, Strategy
    from hskstore.explore.recommend import recommend
    from hskstore.explore.report import report
    from hskstore.explore.search import search
    from hskstore.explore.sweep import sweep
    from hskstore.features.view import view
    from hskstore.stage_one.extract import extract
    from hskstore.stage_two.distill import distill
    from hskstore.stage_two.evaluate import evaluate
    from hskstore.stage_two.finetune import finetune
    from hskstore.stage_two.recipe import Recipe
    from hskstore.store import open_store

__all__ = [
    "Keep",
    "Recipe",
    "Strategy",
    "distill",
    "evaluate",
    "extract",
    "finetune",
    "open_store",
    "recommend",
    "report",
    "search",
    "sweep",
    "view",
]

_HOMES = {
    "Keep": "hskstore.config",
    "Recipe": "hskstore.stage_two.recipe",
    "Strategy": "hskstore.config",
    "distill": "hskstore.stage_two.distill",
    "evaluate": "hskstore.stage_two.evaluate",
    "extract": "hskstore.stage_one.extract",
    "finetune": "hskstore.stage_two.finetune",
    "open_store": "hskstore.store",
    "recommend": "hskstore.explore.recommend",
    "report": "hskstore.explore.report",
    "search": "hskstore.explore.search",
    "sweep": "hskstore.explore.sweep",
    "view": "hskstore.features.view",
}


def __getattr__(name: str) -> Any:
    """A public name, from where it lives: importing hskstore alone loads neither torch nor zarr."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
