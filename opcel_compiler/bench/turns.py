"""Worker processes that take turns: whoever is not asked for something is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opcel_compiler.bench.engines import Engine
from opcel_compiler.errors import OpcelError


class EngineError(OpcelError):
    """An engine cannot load or run the model, or its process ended."""


class Worker:
    """An engine in its own process, with the model loaded and one call done; stopped except while it answers.

    `command` runs it in place of `bench.worker`, whose orders it understands. Raises EngineError when the engine cannot
    load or run the model.
    """

    def __init__(
        self, engine: Engine, model: Path, feeds: Path, threads: int, command: Sequence[str] | None = None
    ) -> None:
        self.engine = engine
        worker = [sys.executable, "-m", "opcel_compiler.bench.worker", engine.name, str(model), str(feeds)]
        self._process = subprocess.Popen(
            command or [*worker, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **engine.environment},
        )  # fmt: skip
        try:
            self.start = self._answer()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def ask(self, **order: Any) -> dict[str, Any]:
        """The answer to an order of `bench.worker`. Raises EngineError when it is an error."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the missing answer tells
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            return self._answer()
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise EngineError(f"the process of {self.engine.title} {how}")
        value: dict[str, Any] = json.loads(line)
        if "error" in value:
            raise EngineError(f"{self.engine.title}: {value['error']}")
        return value
