"""Every job in this process."""

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from hskstore.engines.contract import JobT, OnRows, Recruit
from hskstore.engines.ledger import Ledger, why_of
from hskstore.errors import HskError
from hskstore.interrupts import CHECK_SECONDS, interrupts


def run_inline(jobs: Iterable[JobT], recruit: Recruit[JobT], on_rows: OnRows) -> None:
    """Run every job on one worker, made here and closed at the end, also after an error or Ctrl-C.

    Raises the first HskError of a job, and EngineError where jobs were set aside.
    """
    ledger = Ledger(jobs)
    with interrupts() as held, recruit(on_rows) as worker, ThreadPoolExecutor(worker.depth, "hsk-job") as pool:
        under_way: dict[Future[None], JobT] = {}
        try:
            while True:
                while len(under_way) < worker.depth and (job := ledger.take()) is not None:
                    under_way[pool.submit(worker.run, job)] = job
                if not under_way:
                    break
                held.check()
                for future in wait(under_way, CHECK_SECONDS, FIRST_COMPLETED).done:
                    job = under_way.pop(future)
                    try:
                        future.result()
                    except HskError:
                        raise
                    except Exception as error:
                        ledger.failed(job, why_of(error))
        except BaseException:
            worker.stop()
            raise
    ledger.close()
