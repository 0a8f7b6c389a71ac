"""The commands `opcel` and `opcel-compile`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import opcel_compiler.cli.bench as bench_command
import opcel_compiler.cli.calibrate as calibrate_command
import opcel_compiler.cli.check as check_command
import opcel_compiler.cli.compile as compile_command
import opcel_compiler.cli.explain as explain_command
import opcel_compiler.cli.info as info_command
import opcel_compiler.cli.opt as opt_command
import opcel_compiler.cli.run as run_command
import opcel_compiler.cli.tune as tune_command
from opcel_compiler.cli.console import guarded
from opcel_compiler.cli.options import Parser
from opcel_compiler.version import VERSION

__all__ = ["main", "main_compile"]

COMMANDS = (
    compile_command, check_command, run_command, bench_command, calibrate_command, tune_command, opt_command,
    explain_command, info_command,
)  # fmt: skip
EXIT_CODES = """\
exit status: 0 done, 1 error, 2 wrong usage, 3 refused fallback, 4 output not writable, 5 no working C++ compiler,
6 outside the error bound, 70 internal error, 130 interrupted, 141 closed output, 143 terminated.
OPCEL_DEBUG=1 shows where an error was raised."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `opcel`; gives its exit status. Raises SystemExit for wrong usage and after --help."""
    parser = Parser(prog="opcel", description="Compiles ONNX models into fast, checked, self-contained artifacts.")
    parser.epilog = EXIT_CODES
    parser.add_argument("--version", action="version", version=f"opcel {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.SUMMARY, description=command.DESCRIPTION)
        command.configure(sub)
        sub.set_defaults(execute=command.execute)
    args = parser.parse_args(argv)
    return guarded(lambda: args.execute(args))


def main_compile(argv: Sequence[str] | None = None) -> int:
    """The command `opcel-compile`, which is `opcel compile`."""
    return main([compile_command.NAME, *(sys.argv[1:] if argv is None else argv)])
