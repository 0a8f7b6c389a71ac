"""The commands' frame: help, usage, errors, progress."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
from commands import Opcel

from opcel_compiler.cli import COMMANDS, main_compile
from opcel_compiler.cli.console import Progress, bytes_text, guarded, printable, seconds_text
from opcel_compiler.cli.options import Parser
from opcel_compiler.errors import OpcelError


class Refused(OpcelError):
    exit_code = 3


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_help_names_every_command(opcel: Opcel) -> None:
    result = opcel("--help")
    assert result.code == 0
    named = {line.split()[0] for line in result.out.splitlines() if line.startswith("    ") and line.split()}
    assert named >= {command.NAME for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.NAME)
def test_every_command_explains_each_of_its_options(command: ModuleType) -> None:
    parser = Parser()
    command.configure(parser)
    assert [action.dest for action in parser._actions if not action.help] == []


def test_help_loads_neither_numpy_nor_onnx() -> None:
    code = "import sys, opcel_compiler.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "import json; print(json.dumps([m for m in ('numpy', 'onnx', 'yaml', 'networkx') if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_info_of_a_target_does_not_load_onnx() -> None:
    code = "import sys, opcel_compiler.cli as c\nc.main(['info', '--targets'])\nprint('onnx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_version(opcel: Opcel) -> None:
    from opcel_compiler.version import VERSION

    assert opcel("--version").out == f"opcel {VERSION}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND; see `opcel --help`"),
        (["fly"], "invalid choice: 'fly'"),
        (["compile"], "the following arguments are required: MODEL; see `opcel compile --help`"),
        (["compile", "m.onnx", "--threads", "0"], "argument --threads: '0' is not a whole number of at least 1"),
        (["compile", "m.onnx", "--fallback", "maybe"], "invalid choice: 'maybe'"),
        (["compile", "m.onnx", "--quie"], "unrecognized arguments: --quie"),
        (["run", "a", "--repeat", "many"], "argument --repeat: 'many' is not a whole number of at least 1"),
        (["run", "a", "--dim", "n"], "argument --dim: 'n' is not of the form name=value"),
        (["run", "a", "--dim", "n=-1"], "argument --dim: '-1' is not a whole number of at least 1"),
        (["run", "a", "--inputs", "x.npz", "--dim", "n=2"], "--dim gives sizes to random inputs"),
        (["opt"], "INPUT is missing"),
        (["info"], "name one artifact, model or target"),
        (["info", "host", "--targets"], "name one artifact, model or target"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(opcel: Opcel, argv: list[str], message: str) -> None:
    result = opcel(*argv)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1
    assert message in result.err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Refused("no"), 3, "opcel: error: no\n"),
        (KeyboardInterrupt(), 130, "opcel: error: interrupted\n"),
        (PermissionError(13, "Permission denied", "a.npz"), 1, "opcel: error: a.npz: Permission denied\n"),
        (MemoryError(), 1, "opcel: error: not enough memory\n"),
    ],
)
def test_an_error_becomes_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    monkeypatch.delenv("OPCEL_DEBUG", raising=False)
    assert guarded(raising(error)) == status
    assert capsys.readouterr().err == line


def test_an_unexpected_error_asks_for_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPCEL_DEBUG", raising=False)
    assert guarded(raising(KeyError("a\nb"))) == 70
    err = capsys.readouterr().err
    assert err.startswith("opcel: internal error: KeyError: ") and "please report" in err and err.count("\n") == 1


def test_debug_shows_where_it_happened(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPCEL_DEBUG", "1")
    assert guarded(raising(Refused("no"))) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("opcel: error: no\n")


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys, opcel_compiler.cli as c; sys.exit(c.main(['opt', '--list']))"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 141
    run.stderr.close()


def test_names_of_a_model_cannot_write_control_characters() -> None:
    assert printable("a\x1b[2Jb\r\nü") == "a\\x1b[2Jb\\r\nü"


def test_sizes_and_times_for_people() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1536, 97.5 * 2**20, 3 * 2**30)] == [
        "0 B", "1023 B", "1.5 KiB", "97.5 MiB", "3.00 GiB",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (1.23e-5, 0.00456, 7.84)] == ["12.3 µs", "4.56 ms", "7.8 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(progress: Progress) -> None:
    with progress:
        progress("importing", 0, 0)
        for done in range(3):
            progress("kernels", done, 3)


def test_progress_in_a_log_is_a_line_a_step() -> None:
    log = io.StringIO()
    steps(Progress(stream=log))
    assert [line.split("] ")[1] for line in log.getvalue().splitlines()] == ["importing", "kernels 0/3"]


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    terminal = Terminal()
    steps(Progress(stream=terminal, live_only=True))
    assert "\n" not in terminal.getvalue() and "kernels 2/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("settings", [{"enabled": False}, {"live_only": True}])
def test_progress_can_be_silent(settings: dict[str, bool]) -> None:
    log = io.StringIO()
    steps(Progress(stream=log, **settings))
    assert log.getvalue() == ""


def test_main_compile_is_the_command_compile(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main_compile(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: opcel compile ")
