"""Who runs the jobs: this process, several of this machine, several machines. Whoever it is, the store comes out the same."""

from hskstore.engines.inline import run_inline
from hskstore.engines.procs import run_procs
from hskstore.engines.ray import check_ray, run_ray
from hskstore.engines.static import ProcessRank, static_jobs, static_rank

__all__ = ["ProcessRank", "check_ray", "run_inline", "run_procs", "run_ray", "static_jobs", "static_rank"]
