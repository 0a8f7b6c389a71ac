"""The pass over the data in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from opcel_compiler.calibrate.accumulate import NonfiniteError
from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.gather import Calibrated, Explain
from opcel_compiler.calibrate.samples import Feeds, Input
from opcel_compiler.calibrate.worker import ENVIRONMENT, Job, Outcome
from opcel_compiler.ir.statistics import parse_statistics


def apart(job: Job, report: Callable[[int], None], explain: Explain) -> Calibrated:
    """`gather` in another process; `explain` is called in this one. Raises CalibrationError."""
    with tempfile.TemporaryDirectory(prefix="opcel-") as folder:
        given, made = Path(folder) / "job", Path(folder) / "outcome"
        given.write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", "opcel_compiler.calibrate.worker", str(given), str(made)]
        paths = os.pathsep.join([*(p for p in sys.path if p), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths}
        with tempfile.TemporaryFile("w+") as said:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env) as child:
                assert child.stdout is not None
                try:
                    for line in child.stdout:
                        report(int(line))
                except BaseException:
                    child.kill()
                    raise
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
        if child.returncode or not made.exists():
            raise CalibrationError(
                f"the process that runs the samples of {job.data} ended with status {child.returncode}: {last}"
            )
        outcome: Outcome = pickle.loads(made.read_bytes())
        samples = tuple(_kept(made.with_name(f"{made.name}.samples"), job.about.inputs))
    for text in outcome.warned:
        warnings.warn(text, CalibrationWarning, stacklevel=2)
    if outcome.error is not None:
        if isinstance(outcome.error, NonfiniteError) and outcome.sample is not None:
            raise explain(outcome.error, outcome.sample)
        raise outcome.error
    return Calibrated(parse_statistics(outcome.statistics), samples)


def _kept(path: Path, inputs: Sequence[Input]) -> Iterator[Feeds]:
    """The samples that the worker left: the inputs' arrays, one after another."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while file.peek(1):
            yield {i.name: np.load(file).view(i.type.dtype.numpy) for i in inputs}
