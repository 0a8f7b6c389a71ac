"""The loop of one worker: choose an input, change it, execute the target, keep what reaches new blocks.

A failure is saved once for each place in the code that it comes from, and the search goes on.
"""

from __future__ import annotations

import hashlib
import random
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.coverage import Coverage
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS

MAX_BYTES = {"importer": 6144, "text": 2048, "artifact": 2048, "target": 640, "run": 256}
"""Longer inputs are cut, but for one in a hundred: what they reach, shorter ones reach in less time."""

GROWTH = 512
"""MiB that one execution may add to the largest memory of the process."""


class Hang(BaseException):
    """An execution took longer than it may. No Exception: nothing that is fuzzed may catch it."""


class Growth(Exception):
    """An execution took more memory than it may."""


@dataclass
class Result:
    executions: int = 0
    accepted: int = 0
    """Inputs that were not refused."""
    failures: dict[str, bytes] = field(default_factory=dict)
    """An input for each place that failed."""
    kept: int = 0
    slowest: float = 0.0
    """Seconds of the longest execution."""


def place(error: BaseException) -> str:
    """The kind of an error and the last line of our package that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "opcel_compiler" in f.filename]
    at = f"{frames[-1].filename.rpartition('opcel_compiler/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
    return f"{type(error).__name__} at {at}"


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Loop:
    """Executions of one target. `coverage` says what is new; without it a few inputs are kept at random."""

    def __init__(
        self, name: str, seed: int, save: Path, corpus: Path | None = None, coverage: Coverage | None = None,
        timeout: float = 10,
    ) -> None:  # fmt: skip
        self.name, self.rng, self.save, self.corpus = name, random.Random(seed), save, corpus
        self.coverage = coverage or Coverage()
        self.timeout = timeout
        self.pool: list[bytes] = []
        self.result = Result()

    def execute(self, data: bytes) -> bool:
        """One execution; whether it reached a new block."""
        before, started = megabytes(), time.perf_counter()
        self.coverage.clear()
        signal.setitimer(signal.ITIMER_REAL, self.timeout)
        try:
            self.result.accepted += TARGETS[self.name](data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if (grown := megabytes() - before) > GROWTH:
                raise Growth(f"one execution took {grown:.0f} MiB")
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.failed(data, error)
        self.result.executions += 1
        self.result.slowest = max(self.result.slowest, time.perf_counter() - started)
        return self.coverage.take() > 0

    def failed(self, data: bytes, error: BaseException) -> None:
        where = place(error)
        if where in self.result.failures:
            return
        self.result.failures[where] = data
        self.save.mkdir(parents=True, exist_ok=True)
        file = self.save / f"{self.name}-{hashlib.sha1(data).hexdigest()[:12]}"
        file.write_bytes(data)
        file.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
        print(f"{self.name}: {where}: {str(error)[:200]}\n  input: {file}", flush=True)

    def keep(self, data: bytes) -> None:
        self.pool.append(data)
        self.result.kept += 1
        if self.corpus is not None:
            (self.corpus / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)

    def changed(self) -> bytes:
        """An input of the pool, newer ones more often, after one to four changes."""
        rng, pool = self.rng, self.pool
        at = rng.randrange(len(pool)) if rng.random() < 0.5 else len(pool) - 1 - int(len(pool) * rng.random() ** 3)
        data = pool[at]
        for _ in range(rng.choice((1, 1, 1, 1, 2, 4))):
            data = mutate(self.name, data, rng, rng.choice(pool))
        return data[: MAX_BYTES[self.name] * (8 if rng.random() < 0.01 else 1)]

    def steps(self, seeds: list[bytes]) -> Iterator[bytes]:
        """Gives each input before it is executed: the seeds, what the corpus holds, and then what is made of them."""
        signal.signal(signal.SIGALRM, _ring)
        found = sorted(self.corpus.iterdir()) if self.corpus is not None else []
        for data in [*seeds, *(file.read_bytes() for file in found)]:
            yield data
            if self.execute(data) or data in seeds:
                self.pool.append(data)
        while True:
            data = self.changed()
            yield data
            fresh = self.execute(data)
            if fresh or (not self.coverage.blocks and len(self.pool) < 2000 and self.rng.random() < 0.05):
                self.keep(data)


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang("the execution takes too long")
