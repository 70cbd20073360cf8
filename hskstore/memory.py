"""Memory and cores: what may be taken of this machine, or of a container's share of it, and how freed memory is given back."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from hskstore.errors import StoreError

MOST_OF_FREE = 0.8
"""Of the free memory, what rows may take at most."""

SHARE_FOR_ROWS = 0.4
"""Of the free memory, what rows take without being asked to: the student needs some too."""

SYSTEM = Path("/")
"""Where Linux shows its control groups, below `proc` and `sys`."""

LIMITS = {1: (("memory.limit_in_bytes",), "memory.usage_in_bytes"), 2: (("memory.max", "memory.high"), "memory.current")}
"""By the version of the interface: files with what a group may have, above which it is stopped or slowed, and what it has."""

RECLAIMED = ("inactive_file", "active_file", "slab_reclaimable", "total_inactive_file", "total_active_file")
"""What memory.stat counts of a group's memory that the kernel takes back when it is needed: files that were read. Version 1 calls
that of a group and those below it `total_`, which replaces its own."""


def free_memory() -> int:
    """Bytes that may still be taken: of the machine, and of every control group above this process that has a limit."""
    free: int = psutil.virtual_memory().available
    for version, group in _groups("memory"):
        limits, used = LIMITS[version]
        for limit in limits:
            with suppress(OSError, ValueError):  # "max" is no limit
                most = int((group / limit).read_text())
                free = min(free, most - int((group / used).read_text()) + _reclaimable(group))
    return max(0, free)


def _reclaimable(group: Path) -> int:
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        own = {name.removeprefix("total_"): int(stat[name]) for name in RECLAIMED if name in stat}
        return sum(own.values())
    return 0


def cores() -> int:
    """Cores that this process may keep busy: those it is bound to, or fewer where a control group above it has fewer's time."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, group in _groups("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """This process's control group and those above it, of either version of Linux's interface; none on other systems.

    A container may see its own group as the root of all, under a path that only the host knows: what is not there is passed over.
    """
    root = SYSTEM / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        for line in (SYSTEM / "proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            places = [root / names, root / controller] if names else [root]
            top = next((place for place in places if place.is_dir()), root)
            own = top / path.lstrip("/")
            yield from ((1 if names else 2, group) for group in (own, *own.parents) if group.is_relative_to(top))


def rows_fit(needed: int, processes: int = 1) -> bool:
    """Whether `needed` bytes of rows in each of some processes leave enough to a student."""
    return needed * processes <= SHARE_FOR_ROWS * free_memory()


def check_memory(root: str, needed: int) -> None:
    """Raise StoreError where `needed` bytes of a store's rows are more than this machine, or this container, has free."""
    free = free_memory()
    if needed > MOST_OF_FREE * free:
        raise StoreError(
            f"{root}: its rows take {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free:"
            " hsk distill --loader blocks reads them piece by piece; or extract a smaller configuration, such as --keep 1,9,0.1"
        )


def give_back_memory() -> None:
    """Let the C library return freed memory to the system, where it can be told to.

    Arrays of ever other sizes leave holes that glibc keeps: hundreds of megabytes after some thousand batches.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
