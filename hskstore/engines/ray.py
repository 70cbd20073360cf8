"""Jobs on the machines of a Ray cluster: an actor per GPU, or per core, where there is room. A lost machine costs only time."""

import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Generic
from urllib.parse import urlsplit

from hskstore.engines.contract import JobT, OnRows, Recruit
from hskstore.engines.ledger import Ledger, why_of
from hskstore.errors import EngineError, HskError, OptionError

STILLBORN = 3
"""Times that a worker may end before it is ready, while none ever was."""

PATIENCE = 30
"""Seconds that workers have to commit what they finished once they were told to stop."""

LOOK = 5
"""Seconds between two looks at the cluster: it may have grown, and who was lost is replaced."""

LONELY = 60
"""Seconds without any worker after which that is said."""

CALLS = 16
"""Calls that an actor takes at a time: more than jobs, so that `stop` does not wait behind them."""

log = logging.getLogger(__name__)


class _Actor:
    """A worker, in a process on some machine of the cluster."""

    def __init__(self, recruit: Sequence[Any], gpu: bool) -> None:
        """`recruit` is one reference, in a list: a bare one Ray would fetch itself, and what fails then could not be told."""
        sys.stdout = sys.stderr  # Ray shows both at the driver, whose stdout is the command's
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._recruit = recruit
        self._open = ExitStack()
        self._told = threading.local()

    def ready(self) -> tuple[str, Any]:
        """Make the worker: ready and its depth, failed and why, or mistake and the HskError."""
        try:
            import ray
            import torch

            torch.set_num_threads(1)  # as OMP_NUM_THREADS, which Ray sets: their number shows in a digest
            (reference,) = self._recruit
            self._worker = self._open.enter_context(ray.get(reference)(self._tell))
            self._pool = self._open.enter_context(ThreadPoolExecutor(self._worker.depth, "hsk-job"))
        except HskError as error:
            return "mistake", error
        except Exception as error:
            return "failed", why_of(error)
        return "ready", self._worker.depth

    def run(self, job: object) -> tuple[str, Any]:
        """Do a job: done and its rows, failed and why, or mistake and the HskError."""
        return self._pool.submit(self._do, job).result()

    def stop(self) -> None:
        """End the jobs under way, and the worker when they have."""
        self._worker.stop()
        self._open.close()

    def _do(self, job: object) -> tuple[str, Any]:
        self._told.rows = 0
        try:
            self._worker.run(job)
        except HskError as error:
            return "mistake", error
        except Exception as error:
            return "failed", why_of(error)
        return "done", self._told.rows

    def _tell(self, rows: int) -> None:
        """A worker tells of rows in the thread of their job."""
        self._told.rows += rows


class _Hired(Generic[JobT]):
    """An actor as the driver sees it. `depth` is 0 until it is ready; `calls` are its jobs, or None where it gets ready."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.depth = 0
        self.calls: dict[Any, JobT | None] = {handle.ready.remote(): None}


class _Crew(Generic[JobT]):
    """The actors of a run, each in a numbered place.

    One that is lost is not restarted by Ray but hired anew: so there is one way for what died, cannot be reached, or never came
    to life, and nothing is sent to one that is not ready.
    """

    def __init__(self, ray: Any, recruit: Recruit[JobT], workers: int | None, gpu: bool | None, most: int) -> None:
        """`most` is how many have something to do. Raises EngineError where the cluster has no room for any."""
        resources = ray.cluster_resources()
        gpu = resources.get("GPU", 0) >= 1 if gpu is None else gpu
        self._ray, self._workers, self._gpu, self._most = ray, workers, gpu, most
        self._resource = "GPU" if gpu else "CPU"
        if resources.get(self._resource, 0) < 1:
            raise EngineError(
                f"no worker can start: the Ray cluster has no {self._resource}" + (". Try --device cpu" if gpu else "")
            )
        options = {"num_cpus": 0 if gpu else 1, "num_gpus": 1 if gpu else 0, "max_concurrency": CALLS}
        self._actor = ray.remote(_Actor).options(**options, max_restarts=0, scheduling_strategy="SPREAD")
        self._recruit = [ray.put(recruit)]
        self._hired: dict[int, _Hired[JobT]] = {}
        self._stillborn: Counter[int] = Counter()
        self._ever_ready = False
        self._looked = float("-inf")
        self._lonely_at = time.monotonic() + LONELY

    @property
    def busy(self) -> bool:
        """Whether somebody has a job."""
        return any(one.depth and one.calls for one in self._hired.values())

    def look(self) -> None:
        """Now and then: hire for every place where nobody is."""
        now = time.monotonic()
        if any(one.depth for one in self._hired.values()):
            self._lonely_at = now + LONELY
        elif now > self._lonely_at:
            log.warning("no worker is there; waiting until the Ray cluster has room for one")
            self._lonely_at = float("inf")
        if now < self._looked + LOOK:
            return
        self._looked = now
        places = self._workers or int(self._ray.cluster_resources().get(self._resource, 0))
        for place in range(min(places, self._most)):
            if place not in self._hired:
                self._hired[place] = _Hired(self._actor.remote(self._recruit, self._gpu))

    def give(self, ledger: Ledger[JobT]) -> None:
        """Give everybody who is ready as many jobs as they do at a time."""
        for one in self._hired.values():
            while len(one.calls) < one.depth and (job := ledger.take()) is not None:
                one.calls[one.handle.run.remote(job)] = job

    def hear(self, ledger: Ledger[JobT], on_rows: OnRows) -> None:
        """Wait for one answer, until the next look. Raises the HskError that it is, and EngineError where nobody can live."""
        calls = {call: place for place, one in self._hired.items() for call in one.calls}
        if not calls:
            time.sleep(LOOK)
            return
        for call in self._ray.wait(list(calls), timeout=LOOK)[0]:
            place = calls[call]
            one = self._hired[place]
            try:
                kind, content = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:  # its job, or what it said of it, could not be sent
                kind, content = "failed", why_of(error.cause)
            except self._ray.exceptions.RayError as error:
                self._lose(place, ledger, _why_lost(error))
                continue
            job = one.calls.pop(call)
            if kind == "mistake":
                raise content
            if kind == "ready":
                one.depth = content
                self._ever_ready = True
            elif job is None:
                self._lose(place, ledger, content)
            elif kind == "failed":
                ledger.failed(job, content)
            else:
                on_rows(content)

    def _lose(self, place: int, ledger: Ledger[JobT], why: str) -> None:
        one = self._hired.pop(place)
        self._ray.kill(one.handle)  # it may live on where nobody reaches it
        log.warning("a worker was lost (%s); another takes its place when there is room", why)
        for job in one.calls.values():
            if job is not None:
                ledger.lost(job)
        self._stillborn[place] += not one.depth
        if self._stillborn[place] >= STILLBORN and not self._ever_ready:
            raise EngineError(f"no worker can start: {why}")
        if one.depth:
            self._looked = float("-inf")

    def dismiss(self) -> None:
        """Let everybody commit what they finished, and end."""
        try:
            stops = [one.handle.stop.remote() for one in self._hired.values() if one.depth]
            if stops:
                self._ray.wait(stops, num_returns=len(stops), timeout=PATIENCE)
        finally:
            for one in self._hired.values():
                self._ray.kill(one.handle)


def require_ray() -> None:
    """Raise OptionError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise OptionError("--engine ray needs Ray: pip install 'hskstore[ray]'")


def check_ray(engine: str, address: str | None, device: str | None) -> None:
    """Raises OptionError for an address of another engine; for ray where it is not installed, or its workers have no such
    device."""
    if engine != "ray":
        if address is not None:
            raise OptionError(f"--address {address}: only --engine ray has one")
        return
    require_ray()
    if device not in (None, "cpu", "cuda"):
        raise OptionError(f"--device {device}: a worker of --engine ray has a GPU of its own or none; choose cuda or cpu")


def run_ray(
    jobs: Iterable[JobT],
    recruit: Recruit[JobT],
    on_rows: OnRows,
    *,
    address: str | None,
    workers: int | None,
    gpu: bool | None,
) -> None:
    """Run every job on `workers` actors, each with a GPU or else a core of its own; None: as many as the cluster has of these.

    `address` is the cluster's ("auto", "host:port", "ray://host:port"); None starts Ray on this machine and ends it with the run.
    A Ray that this process uses already is taken as it is, and stays. `gpu` None: on GPUs if the cluster has any. `recruit`, with
    all that it holds, goes to the cluster once. Jobs of a lost machine or process go to others, and another worker comes when
    there is room, however often; machines that join are used. No actor is left behind, whatever happens.

    Raises OptionError without Ray, the first HskError of a worker, and EngineError where jobs were set aside, or there is no
    cluster or no room in it.
    """
    todo = list(jobs)
    ledger = Ledger(todo)
    with _cluster(address, workers) as ray:
        crew = _Crew(ray, recruit, workers, gpu, len(todo))
        try:
            while ledger.waiting or crew.busy:
                crew.look()
                crew.give(ledger)
                crew.hear(ledger, on_rows)
        finally:
            crew.dismiss()
    ledger.close()


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """The ray module, connected. Raises EngineError where that fails."""
    require_ray()
    import ray

    if ray.is_initialized():
        yield ray
        return
    here: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        try:
            if address:
                _knock(address)
            with _own_signals():
                ray.init(**({"address": address} if address else here), logging_level=logging.ERROR)
        except Exception as error:
            what = f"--address {address}: no Ray cluster can be joined there" if address else "Ray cannot be started here"
            token = "; where it has token authentication, set RAY_AUTH_MODE=token" if isinstance(error, ConnectionError) else ""
            raise EngineError(f"{what}: {why_of(error)}{token}") from error
        yield ray
    finally:
        with _own_signals():
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody listens: Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does: Ray would end the process by it, with nobody told."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _why_lost(error: Exception) -> str:
    """The last of an error's lines: there Ray says what the matter was."""
    return str(error).strip().rpartition("\n")[2][:160]
