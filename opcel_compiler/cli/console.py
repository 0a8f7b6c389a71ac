"""What the commands write to the terminal: rows, progress, errors."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import IO, Any

from opcel_compiler.errors import OpcelError

INTERNAL, INTERRUPTED, BROKEN_PIPE, TERMINATED = 70, 130, 141, 143
LABEL_WIDTH = 12
QUIET_SECONDS = 10.0
"""How long a step may take before a log, which is no terminal, gets another line about it."""


class CommandError(OpcelError):
    """A command cannot do what it was asked: an option, a file or an array that does not fit."""


class UsageError(OpcelError):
    """Options that contradict each other."""

    exit_code = 2


class Terminated(BaseException):
    """SIGTERM or SIGHUP: the command ends as on an interrupt, so that it leaves nothing half-written."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise Terminated

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(command: Callable[[], int]) -> int:
    """The exit status of `command`. What it raises becomes one message on the standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_signals():
            status = command()
        sys.stdout.flush()
        return status
    except OpcelError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except Terminated:
        return _failed("terminated", TERMINATED)
    except BrokenPipeError:
        # The interpreter flushes the standard output once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return _failed("not enough memory", 1)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        way_out = "please report this, with the model and what OPCEL_DEBUG=1 shows"
        return _failed(f"{what}; {way_out}", INTERNAL, "internal ")


def _failed(message: str, status: int, kind: str = "") -> int:
    if os.environ.get("OPCEL_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    sys.stderr.write(f"opcel: {kind}error: {printable(message)}\n")
    return status


def note(message: str) -> None:
    """A remark on the standard error."""
    sys.stderr.write(f"opcel: note: {printable(message)}\n")


def printable(text: str) -> str:
    """`text` with the control characters that a model's names may hold escaped; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def write_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Write labelled lines to the standard output; a row without a label continues the one above."""
    for label, text in rows:
        print(printable(f"{label:<{LABEL_WIDTH}}{text}".rstrip()))


def value_text(value: Mapping[str, Any]) -> str:
    """An input or output of a manifest: `image f32[batch, 1, 8, 8]`, `*` for an unknown rank."""
    shape = value["shape"]
    return f"{value['name']} {value['dtype']}[{'*' if shape is None else ', '.join(map(str, shape))}]"


def bytes_text(count: float) -> str:
    """A size in bytes for people: `97.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def count_text(count: float) -> str:
    """A large number for people: `950`, `4.1 G`."""
    for unit in ("", " k", " M", " G"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def seconds_text(seconds: float) -> str:
    """A duration for people: `12.3 µs`, `4.56 ms`, `7.8 s`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Progress:
    """Shows the steps of a long command on `stream`: one line that changes on a terminal, else a line a step.

    `enabled=False` shows nothing. With `live_only` nothing is shown on what is no terminal.
    """

    def __init__(self, enabled: bool = True, live_only: bool = False, stream: IO[str] | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._enabled = enabled and (self._live or not live_only)
        self._start = time.perf_counter()
        self._last = ("", self._start)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Step `what` has done `done` of `total` parts; a total of 0 is unknown."""
        if not self._enabled:
            return
        now = time.perf_counter()
        count = f" {done}/{total}" if total else ""
        line = printable(f"[{now - self._start:6.1f} s] {what}{count}")
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{line[:width]}")
        elif what != self._last[0] or now - self._last[1] >= QUIET_SECONDS:
            self._stream.write(line + "\n")
            self._last = (what, now)
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled and self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
