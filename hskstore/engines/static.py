"""One process of several that were started by somebody else, each with every n-th job: Slurm arrays, torchrun, SkyPilot."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hskstore.engines.contract import JobT
from hskstore.errors import OptionError


class ProcessRank(NamedTuple):
    """This process' number `rank`, from 0, among `world`; `local` is that among the processes of its machine, if known."""

    rank: int
    world: int
    local: int | None


def static_rank(environment: Mapping[str, str]) -> ProcessRank:
    """This process' place, as its launcher's environment tells: torchrun and the like (RANK, WORLD_SIZE), a Slurm array, srun, or
    SkyPilot. Raises OptionError where none of them does, or one says what cannot be.

    A task of a Slurm array that itself runs several processes (srun) has all of these as its world.
    """
    if "RANK" in environment:
        return _place(environment, "RANK", "WORLD_SIZE", local="LOCAL_RANK")
    srun = None
    if "SLURM_PROCID" in environment:
        srun = _place(environment, "SLURM_PROCID", "SLURM_NTASKS", local="SLURM_LOCALID")
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = _number(environment, "SLURM_ARRAY_TASK_MIN", 0), _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        task, offset = divmod(_number(environment, "SLURM_ARRAY_TASK_ID") - first, step)
        tasks = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        if offset or not 0 <= task < tasks:
            raise OptionError("--engine static: the array's indexes have gaps; use a plain one such as --array=0-7")
        inner = srun or ProcessRank(0, 1, None)
        return ProcessRank(task * inner.world + inner.rank, tasks * inner.world, inner.local)
    if srun is not None:
        return srun
    if "SKYPILOT_NODE_RANK" in environment:
        return _place(environment, "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", local=None)
    raise OptionError(
        "--engine static: no rank in the environment. Start it by a Slurm array, srun, torchrun or SkyPilot, or set RANK and"
        " WORLD_SIZE"
    )


def static_jobs(jobs: Sequence[JobT], place: ProcessRank) -> list[JobT]:
    """The jobs of this process. `jobs` must be all of the pass, done or not: every process must count the same ones."""
    return list(jobs[place.rank :: place.world])


def _place(environment: Mapping[str, str], rank: str, world: str, *, local: str | None) -> ProcessRank:
    here, size = _number(environment, rank), _number(environment, world)
    if not 0 <= here < size:
        raise OptionError(f"--engine static: {rank} is {here} and {world} is {size}; ranks are 0 to {size - 1}")
    return ProcessRank(here, size, _number(environment, local) if local is not None and local in environment else None)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.strip().isdecimal():
        raise OptionError(f"--engine static: {name} is {text!r} in the environment, where a number is needed")
    return int(text)
