"""Runs jobs in processes of their own, which may crash or hang without harm to the rest."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Job = TypeVar("Job")


class Worker:
    """A process, forked from this one, that works off one job at a time."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=False)
        self.process.start()
        theirs.close()
        self.job: Any = None
        self.until = 0.0

    def begin(self, job: Any, seconds: float) -> None:
        self.job, self.until = job, time.monotonic() + seconds
        self.pipe.send(job)

    def stop(self) -> int | None:
        """Ends the process; its exit status."""
        self.pipe.close()
        self.process.join(0.5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def run_jobs(
    jobs: Sequence[Job], work: Callable[[Job], Any], count: int, seconds: float
) -> Iterator[tuple[Job, Any, str]]:
    """(job, result, failure) as the jobs end, `count` at a time; a failure is a crash or `seconds` having passed."""
    waiting = list(reversed(jobs))
    workers = [Worker(work) for _ in range(min(count, len(jobs)))]
    try:
        while waiting or any(w.job is not None for w in workers):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.begin(waiting.pop(), seconds)
            busy = [w for w in workers if w.job is not None]
            ready = wait([w.pipe for w in busy], max(0.0, min(w.until for w in busy) - time.monotonic()))
            for worker in busy:
                job = worker.job
                if worker.pipe in ready:
                    try:
                        result, failure = worker.pipe.recv(), ""
                        worker.job = None
                    except (EOFError, OSError):
                        result, failure = None, f"the process ended: {_how(worker.stop())}"
                elif time.monotonic() >= worker.until:
                    worker.process.kill()
                    worker.stop()
                    result, failure = None, f"not done after {seconds:g} seconds"
                else:
                    continue
                if failure:
                    workers[workers.index(worker)] = Worker(work)
                yield job, result, failure
    finally:
        for worker in workers:
            worker.process.kill()
            worker.stop()


def _how(status: int | None) -> str:
    return signal.Signals(-status).name if status is not None and status < 0 else f"exit {status}"


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(work(job))
