"""One pass over the data: each sample checked, run and added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from opcel_compiler.calibrate.accumulate import Accumulator, NonfiniteError, Observed, Runnable, tensor_warnings
from opcel_compiler.calibrate.data import Data
from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.calibrate.readers import read_samples
from opcel_compiler.calibrate.samples import Feeds, Input, Journal, Sample, checked
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.statistics import Statistics

KEPT_SAMPLES = 16


@dataclass(frozen=True)
class Calibrated:
    """`samples` are the first good ones, at most 16, by the names of the model's inputs."""

    statistics: Statistics
    samples: tuple[Feeds, ...]


@dataclass(frozen=True)
class Observation:
    """What an observing model takes and tells."""

    inputs: tuple[Input, ...]
    observed: tuple[Observed, ...]
    model_hash: str


Explain = Callable[[NonfiniteError, Sample], CalibrationError]


def gather(
    model: Runnable, about: Observation, data: Data, report: Callable[[int], None],
    random: Callable[[], Iterator[Sample]] | None = None, explain: Explain = lambda error, sample: error,
    keep: Callable[[Feeds], None] | None = None,
) -> Callable[[], Calibrated]:  # fmt: skip
    """The pass of `model` over `data`, or over what `random` gives where there are none. What is given back makes the
    statistics of it, and does not need the model any more.

    `report` is called with the number of samples after each. `explain` makes the error of a sample that makes values
    that are not finite. The first samples are given to `keep`, if there is one, and not kept in memory. Raises
    CalibrationError.
    """
    journal, sums, kept = Journal(), Accumulator(about.observed), list[Feeds]()
    drawn = random is not None and data.source is None
    for sample in (
        random() if random is not None and drawn else read_samples(data.source, about.inputs, data.preprocess)
    ):
        if data.most is not None and journal.total >= data.most:
            break
        try:
            sample = checked(sample, about.inputs)
            _run(model, sums, sample, explain)
        except CalibrationError as error:
            if data.on_bad_sample == "error" or error.sample is None:
                raise
            journal.skipped.append(str(error))
            continue
        if journal.total < KEPT_SAMPLES and keep is not None:
            keep(sample.feeds)
        elif journal.total < KEPT_SAMPLES:
            kept.append({name: array.copy() for name, array in sample.feeds.items()})
        journal.add(sample)
        report(journal.total)
    journal.check_count(str(data))

    def calibrated() -> Calibrated:
        tensors = sums.tensors()
        found = [*journal.warnings(data.ranges), *tensor_warnings(tensors)]
        if drawn:
            found.insert(0, "calibrated with random numbers: ranges mean nothing")
        statistics = Statistics(
            about.model_hash, journal.data_hash, journal.total, drawn, len(journal.skipped), tuple(found), tensors
        )
        return Calibrated(statistics, tuple(kept))

    return calibrated


def _run(model: Runnable, sums: Accumulator, sample: Sample, explain: Explain) -> None:
    try:
        sums.run(model, sample)
    except NonfiniteError as error:
        raise explain(error, sample) from None
    except CalibrationError:
        raise
    except OpcelError as error:
        raise CalibrationError(f"{sample}: {error}", sample=sample.index) from error
