"""Who runs the units. An engine is given jobs and a worker factory, never arrays."""

from hskstore.engines.inline import run_inline

__all__ = ["run_inline"]
