"""C++ compilers: finding one, its flags, and running it."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opcel_compiler.errors import OpcelError

COMMON = (
    "-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-fno-asynchronous-unwind-tables", "-fno-stack-protector",
    "-fcf-protection=none", "-U_FORTIFY_SOURCE", "-w",
)  # fmt: skip
LINK = (
    "-shared", "-fPIC", "-Wl,--build-id=none", "-Wl,--as-needed", "-Wl,-Bsymbolic", "-Wl,-z,relro", "-Wl,-z,now",
    "-Wl,-s",
)  # fmt: skip


class ToolchainError(OpcelError):
    """No C++ compiler, or a compiler that failed."""

    exit_code = 5


@dataclass(frozen=True)
class Toolchain:
    """A compiler command of kind `gnu` or `clang`, and the version line that identifies it."""

    command: tuple[str, ...]
    kind: str
    version: str

    def compile(self, source: Path, output: Path, include: Path, flags: Sequence[str]) -> None:
        """Compile one translation unit. Raises ToolchainError with the compiler's first errors."""
        extra = ("-fno-sanitize=undefined",) if "ziglang" in self.command else ()
        self._run([*COMMON, *extra, *flags, f"-I{include}", "-c", source.name, "-o", output.name], source.parent)

    def link(self, objects: Sequence[Path], output: Path) -> None:
        """Link objects into a shared library that needs only libc, libm and pthread."""
        zig = "ziglang" in self.command
        command = list(self.command)
        if self.kind == "gnu" and not zig:
            command[-1] = re.sub(r"(g|c)\+\+", lambda m: "gcc" if m[1] == "g" else "cc", os.path.basename(command[-1]))
            if shutil.which(command[-1]) is None:
                command = [*self.command, "-nostdlib++"] if self.kind == "clang" else list(self.command)
        elif not zig:
            command.append("-nostdlib++")
        elif command[-1] == "c++":
            command[-1] = "cc"
        self._run([*LINK, *map(str, objects), "-o", str(output), "-lm", "-lpthread"], output.parent, command)

    def _run(self, args: Sequence[str], cwd: Path, command: Sequence[str] | None = None) -> None:
        full = [*(command or self.command), *args]
        done = subprocess.run(full, cwd=cwd, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode:
            head = "\n".join(done.stderr.strip().splitlines()[:12])
            raise ToolchainError(f"the C++ compiler failed ({shlex.join(full[:1])}, exit {done.returncode}):\n{head}")


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}


@functools.cache
def find_toolchain() -> Toolchain:
    """The compiler named by CXX, else g++, c++ or clang++, else zig's from the `ziglang` package.

    Raises ToolchainError when there is none; the text says how to get one.
    """
    named = os.environ.get("CXX")
    candidates: list[tuple[str, ...]] = [tuple(shlex.split(named))] if named else [("g++",), ("c++",), ("clang++",)]
    if not named:
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout:
            kind = "clang" if "clang" in done.stdout else "gnu"
            return Toolchain(command, kind, done.stdout.splitlines()[0])
    tried = shlex.join(candidates[0]) if named else "g++, c++, clang++ and ziglang"
    raise ToolchainError(
        f"no C++ compiler was found (tried {tried}). Install g++ or clang, set CXX, or run "
        "`pip install opcel-compiler[zig]`, which brings one."
    )
