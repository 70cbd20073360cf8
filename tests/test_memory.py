"""What a process may take is what its container may, not what the machine has. Control groups are made up, in a folder."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hskstore import memory
from hskstore.cli.options import prepare_torch
from hskstore.errors import StoreError

HOST = 64 * 2**30
GIB = 2**30

System = Callable[[dict[str, str]], None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A machine of 64 GiB and 64 cores whose control groups are the files that are given."""
    monkeypatch.setattr(memory, "SYSTEM", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=HOST))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / ("proc/self/cgroup" if name == "self" else f"sys/fs/cgroup/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return write


def v2(folder: str, limit: str = "max", used: int = 0, cached: int = 0, cpu: str = "max 100000") -> dict[str, str]:
    stat = f"anon {used - cached}\nfile {cached}\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}"
    names = {"memory.max": limit, "memory.current": str(used), "memory.stat": stat, "cpu.max": cpu}
    return {f"{folder}/{name}".lstrip("/"): text for name, text in names.items()}


def v1(folder: str, limit: int, used: int = 0, cached: int = 0) -> dict[str, str]:
    stat = f"cache 5\ninactive_file 1\nactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 0"
    names = {"limit_in_bytes": str(limit), "usage_in_bytes": str(used), "stat": stat}
    return {f"memory{folder}/memory.{name}": text for name, text in names.items()}


UNLIMITED = 9223372036854771712

MEMORY: dict[str, tuple[dict[str, str], int]] = {
    "no groups at all": ({}, HOST),
    "no limit": ({"self": "0::/a", **v2("a")}, HOST),
    "a container that sees itself as the root": ({"self": "0::/", **v2("", str(GIB))}, GIB),
    "a group of its own": ({"self": "0::/a/b", **v2("a"), **v2("a/b", str(GIB), GIB // 4)}, GIB - GIB // 4),
    "a limit of a group above": ({"self": "0::/a/b", **v2("a", str(GIB), GIB // 2), **v2("a/b")}, GIB // 2),
    "the narrowest of several": ({"self": "0::/a/b", **v2("a", str(2 * GIB)), **v2("a/b", str(GIB))}, GIB),
    "files that were read are given back": ({"self": "0::/", **v2("", str(GIB), GIB - 8, GIB // 2)}, GIB // 2 + 8),
    "above its limit": ({"self": "0::/", **v2("", str(GIB), 2 * GIB)}, 0),
    "slowed down before it is stopped": ({"self": "0::/", **v2("", str(2 * GIB)), "memory.high": str(GIB)}, GIB),
    "a path that only the host knows": ({"self": "0::/docker/c0ffee", **v2("", str(GIB))}, GIB),
    "a path outside": ({"self": "0::/../x", **v2("", str(GIB))}, GIB),
    "more than the machine has": ({"self": "0::/", **v2("", str(2 * HOST))}, HOST),
    "without its statistics": ({"self": "0::/", "memory.max": str(GIB), "memory.current": "5"}, GIB - 5),
    "nonsense": ({"self": "0::/\nwhat?", "memory.max": "a lot"}, HOST),
    "version 1": ({"self": "4:memory:/docker/c0ffee\n0::/", **v1("/docker/c0ffee", GIB, GIB - 8, GIB // 2)}, GIB // 2 + 8),
    "version 1, as a container sees it": ({"self": "4:memory:/docker/c0ffee", **v1("", GIB, 7)}, GIB - 7),
    "version 1 without a limit": ({"self": "4:memory:/", **v1("", UNLIMITED, 7)}, HOST),
    "another controller of version 1": ({"self": "4:cpuset:/a", **v1("/a", GIB)}, HOST),
}


@pytest.mark.parametrize("what", MEMORY)
def test_free_memory_is_that_of_the_container(what: str, system: System) -> None:
    files, free = MEMORY[what]
    system(files)
    assert memory.free_memory() == free


CORES: dict[str, tuple[dict[str, str], int]] = {
    "no groups at all": ({}, 64),
    "no limit": ({"self": "0::/a", **v2("a")}, 64),
    "two cores' time": ({"self": "0::/", **v2("", cpu="200000 100000")}, 2),
    "one and a half": ({"self": "0::/", **v2("", cpu="150000 100000")}, 2),
    "half of one": ({"self": "0::/", **v2("", cpu="50000 100000")}, 1),
    "a limit of a group above": ({"self": "0::/a/b", **v2("a", cpu="300000 100000"), **v2("a/b")}, 3),
    "more than there are": ({"self": "0::/", **v2("", cpu="9900000 100000")}, 64),
    "version 1": ({"self": "2:cpu:/a", "cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
    "version 1 without a limit": ({"self": "2:cpu:/", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    "version 1, two controllers in one place": (
        {"self": "2:cpu,cpuacct:/", "cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        4,
    ),
    "nonsense": ({"self": "0::/", "cpu.max": "1"}, 64),
    "a period of nothing": ({"self": "0::/", "cpu.max": "1 0"}, 64),
}


@pytest.mark.parametrize("what", CORES)
def test_cores_are_those_that_the_container_has_time_on(what: str, system: System) -> None:
    files, cores = CORES[what]
    system(files)
    assert memory.cores() == cores


def test_cores_are_those_that_the_process_is_bound_to(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert memory.cores() == 2


def test_where_nobody_tells_what_a_process_is_bound_to_all_cores_are_its(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert memory.cores() == 64


def test_rows_that_the_machine_has_room_for_and_the_container_has_not_are_not_read_at_once(system: System) -> None:
    system({"self": "0::/", **v2("", str(GIB))})
    assert memory.rows_fit(GIB // 4) and not memory.rows_fit(GIB // 2) and not memory.rows_fit(GIB // 4, processes=2)
    with pytest.raises(StoreError, match=r"take 2.0 GiB of memory and 1.0 GiB are free"):
        memory.check_memory("store", 2 * GIB)


@pytest.mark.parametrize(
    ("cpu", "set_already", "threads"), [("200000 100000", None, "2"), ("max 100000", None, None), ("200000 100000", "7", "7")]
)
def test_torch_gets_as_many_threads_as_the_container_has_cores(
    cpu: str, set_already: str | None, threads: str | None, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_already is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_already)
    system({"self": "0::/", **v2("", cpu=cpu)})
    before = dict(os.environ)
    try:
        prepare_torch()
        assert os.environ.get("OMP_NUM_THREADS") == threads
    finally:
        os.environ.clear()
        os.environ.update(before)
