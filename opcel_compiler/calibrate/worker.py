"""The process that passes over the data: its memory is that of inference, so it imports no compiler."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from opcel_compiler.calibrate.accumulate import NonfiniteError
from opcel_compiler.calibrate.data import Data
from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.gather import Observation, gather
from opcel_compiler.calibrate.samples import Feeds, Sample
from opcel_compiler.ir.statistics import statistics_text
from opcel_compiler.runtime.model import CompiledModel

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Of the process, beside its parent's: glibc then gives back at once what arrays took, so that memory does not depend
on how many samples came before."""


@dataclass(frozen=True)
class Job:
    """What a worker does: the observing artifact's folder, its threads, and the data."""

    folder: str
    threads: int | None
    about: Observation
    data: Data


@dataclass(frozen=True)
class Outcome:
    """What a worker found: statistics as text; or an error, and the sample that made values not finite."""

    statistics: str = ""
    warned: tuple[str, ...] = ()
    error: CalibrationError | None = None
    sample: Sample | None = None


def work(job: Job, report: Callable[[int], None], keep: Callable[[Feeds], None]) -> Outcome:
    """The part of the other process."""
    bad: list[Sample] = []

    def remember(error: NonfiniteError, sample: Sample) -> CalibrationError:
        bad[:] = [sample]
        return error

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with CompiledModel(job.folder, threads=job.threads) as model:
                calibrated = gather(model, job.about, job.data, report, explain=remember, keep=keep)
            out = Outcome(statistics_text(calibrated().statistics))
        except CalibrationError as error:
            out = Outcome(error=error, sample=bad[0] if bad else None)
    warned = tuple(str(w.message) for w in caught if issubclass(w.category, CalibrationWarning))
    return replace(out, warned=warned)


def main(given: str, made: str) -> None:
    """Do the job in the file `given` and leave its outcome in `made`. What a reader prints goes to standard error; the
    standard output has the number of samples, line by line."""

    def keep(feeds: Feeds) -> None:
        with open(f"{made}.samples", "ab") as file:
            for array in feeds.values():
                np.save(file, array)  # pickle would copy it

    with os.fdopen(os.dup(1), "w") as counts:
        os.dup2(2, 1)
        try:
            outcome = work(pickle.loads(Path(given).read_bytes()), lambda n: print(n, file=counts, flush=True), keep)
        finally:
            sys.stdout.flush()  # what a reader printed comes before the error that ends this process
    Path(made).write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    from opcel_compiler.calibrate import worker  # by its own name, which the outcome's pickle refers to

    worker.main(*sys.argv[1:])
