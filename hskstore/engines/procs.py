"""Jobs on several workers of this machine, each in a process of its own: one per GPU, or so many on the CPU."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from hskstore.engines.contract import JobT, OnRows, Recruit
from hskstore.engines.ledger import Ledger, why_of
from hskstore.errors import EngineError, HskError
from hskstore.interrupts import CHECK_SECONDS, interrupts

SPAWN = multiprocessing.get_context("spawn")
"""Never fork: a child would inherit locks that threads of its parent hold."""

STILLBORN = 3
"""Processes that may die in a row before one of them was ready."""

PATIENCE = 60
"""Seconds that a process has to commit what it finished once it was told to stop."""


class _Process(Generic[JobT]):
    """A process with a worker in it, as its parent sees it."""

    def __init__(self, number: int, recruit: Recruit[JobT], threads: int) -> None:
        self.number = number
        self.recruit = recruit
        self.threads = threads
        self.depth = 0
        self.under_way: list[JobT] = []
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(theirs, recruit, threads), name=f"hsk-worker-{number}", daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)


def run_procs(jobs: Iterable[JobT], recruits: Sequence[Recruit[JobT]], on_rows: OnRows, *, threads: int) -> None:
    """Run every job on as many processes as there are `recruits`, each of which makes the worker of one.

    `threads` is what a process on the CPU may use. A process that dies is replaced and its job tried again, up to three times.
    Raises the first HskError of a worker, and EngineError where jobs were set aside or no process can live.
    """
    ledger = Ledger(jobs)
    with interrupts() as held:
        living = [_Process(number, recruit, threads) for number, recruit in enumerate(recruits)]
        stillborn = 0
        try:
            while True:
                for process in living:
                    while len(process.under_way) < process.depth and (job := ledger.take()) is not None:
                        process.under_way.append(job)
                        with suppress(OSError):  # it died: its pipe tells below
                            process.pipe.send(job)
                if not ledger.waiting and not any(process.under_way for process in living):
                    break
                ready = wait([process.pipe for process in living], CHECK_SECONDS)
                held.check()
                for process in [process for process in living if process.pipe in ready]:
                    try:
                        kind, content = process.pipe.recv()
                    except (EOFError, OSError):
                        process.process.join()
                        stillborn = 0 if process.depth else stillborn + 1
                        died = f"its process died, {_ending(process.process.exitcode)}"
                        if stillborn >= STILLBORN:
                            raise EngineError(f"no worker can start: {died}") from None
                        # The oldest job is blamed, the others are the next: two jobs that were there together part.
                        for job in process.under_way[1:]:
                            ledger.lost(job)
                        for job in process.under_way[:1]:
                            ledger.failed(job, died)
                        living[living.index(process)] = _Process(process.number, process.recruit, threads)
                        continue
                    if kind == "ready":
                        process.depth = content
                    elif kind == "rows":
                        on_rows(content)
                    elif kind == "mistake":
                        raise content
                    else:
                        process.under_way.remove(content[0])
                        if kind == "failed":
                            ledger.failed(*content)
        finally:
            _dismiss(living)
    ledger.close()


def _dismiss(living: Sequence[_Process[Any]]) -> None:
    """Let every process commit what it finished, and end."""
    for process in living:
        process.stop()
    open_pipes = {process.pipe for process in living}
    deadline = time.monotonic() + PATIENCE
    while open_pipes and time.monotonic() < deadline:
        ready = wait(open_pipes, timeout=1)
        for pipe in [pipe for pipe in open_pipes if pipe in ready]:
            try:
                pipe.recv()  # nobody needs it any more, but a full pipe would hold its process up
            except (EOFError, OSError):
                open_pipes.remove(pipe)
    for process in living:
        process.process.kill()
        process.process.join()


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return name + (", which the system sends where memory runs out" if name == "SIGKILL" else "")
    return f"exit code {exitcode}"


def _work(pipe: Connection, recruit: Recruit[Any], threads: int) -> None:
    """The whole life of a process: jobs come through the pipe, and what became of them goes back."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and schedulers reach every process of a group; the parent decides
        signal.signal(stop, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    sending = threading.Lock()

    def send(kind: str, content: object) -> None:
        with sending, suppress(OSError):  # a parent that is gone is seen by who reads
            pipe.send((kind, content))

    def run(job: object) -> None:
        try:
            worker.run(job)
        except HskError as error:
            send("mistake", error)
        except Exception as error:
            send("failed", (job, why_of(error)))
        else:
            send("done", (job,))

    try:
        with recruit(lambda rows: send("rows", rows)) as worker, ThreadPoolExecutor(worker.depth, "hsk-job") as pool:
            send("ready", worker.depth)
            with suppress(EOFError, OSError):
                while (job := pipe.recv()) is not None:
                    pool.submit(run, job)
            worker.stop()
    except HskError as error:
        send("mistake", error)
    except Exception as error:
        send("mistake", EngineError(f"no worker can start: {why_of(error)}"))
