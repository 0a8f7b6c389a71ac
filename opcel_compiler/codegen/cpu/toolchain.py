"""C++ compilers: finding one, its flags, and running it."""

from __future__ import annotations

import dataclasses
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
    """A compiler command of kind `gnu` or `clang`, the version line that identifies it, and flags of the user's."""

    command: tuple[str, ...]
    kind: str
    version: str
    extra: tuple[str, ...] = ()

    @property
    def zig(self) -> bool:
        """Whether this is zig's compiler, which links what it is told to and nothing else."""
        return any(part == "ziglang" or os.path.basename(part) == "zig" for part in self.command)

    def compile(self, source: Path, output: Path, include: Path, flags: Sequence[str]) -> None:
        """Compile one translation unit. Raises ToolchainError with the compiler's first errors."""
        quiet = ("-fno-sanitize=undefined",) if self.zig else ()
        args = [*COMMON, *quiet, *flags, *self.extra, f"-I{include}", "-c", source.name, "-o", output.name]
        self._run(args, source.parent)

    def link(self, objects: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> None:
        """Link objects into a shared library that needs only libc, libm and pthread."""
        command = list(self.command)
        if self.zig:
            command[-1] = {"c++": "cc"}.get(command[-1], command[-1])
        elif self.kind == "clang" or (plain := _c_driver(command[-1])) is None:
            command.append("-nostdlib++")
        else:
            command[-1] = plain
        args = [*flags, *LINK, *self.extra, *map(str, objects), "-o", str(output), "-lm", "-lpthread"]
        self._run(args, output.parent, command)

    def _run(self, args: Sequence[str], cwd: Path, command: Sequence[str] | None = None) -> None:
        full = [*(command or self.command), *args]
        environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        try:
            done = subprocess.run(
                full, cwd=cwd, capture_output=True, text=True, errors="replace", check=False, env=environment
            )
        except OSError as error:
            raise ToolchainError(f"the C++ compiler {full[0]} cannot be started: {error.strerror}") from error
        if done.returncode:
            head = "\n".join((done.stderr or done.stdout).strip().splitlines()[:12])
            code = done.returncode
            how = f"exit {code}" if code > 0 else f"killed by signal {-code}; is there enough memory?"
            raise ToolchainError(f"the C++ compiler failed ({shlex.join(full[:1])}, {how}):\n{head}".rstrip(":\n"))


def _c_driver(command: str) -> str | None:
    """The C compiler beside a GNU C++ compiler, for /usr/bin/g++-12 /usr/bin/gcc-12; None when there is none."""
    folder, name = os.path.split(command)
    plain = os.path.join(folder, re.sub(r"(g|c)\+\+", lambda m: "gcc" if m[1] == "g" else "cc", name))
    return plain if plain != command and shutil.which(plain) else None


def find_toolchain() -> Toolchain:
    """The compiler named by CXX, else g++, c++ or clang++, else zig's from the `ziglang` package; the flags in
    OPCEL_CXXFLAGS come last when it compiles and when it links.

    Raises ToolchainError when there is none; the text says how to get one.
    """
    found = _find(os.environ.get("CXX", ""), os.environ.get("PATH", os.defpath), sys.executable)
    text = os.environ.get("OPCEL_CXXFLAGS", "")
    try:
        return dataclasses.replace(found, extra=tuple(shlex.split(text))) if text.strip() else found
    except ValueError as error:
        raise ToolchainError(f"OPCEL_CXXFLAGS is {text!r}, which are no flags: {error}") from error


@functools.cache
def _find(named: str, path: str, python: str) -> Toolchain:
    try:
        candidates = [tuple(shlex.split(named))] if named.strip() else []
    except ValueError as error:
        raise ToolchainError(f"CXX is {named!r}, which is no command: {error}") from error
    if not candidates:
        candidates = [("g++",), ("c++",), ("clang++",), (python, "-m", "ziglang", "c++")]
    for command in candidates:
        if shutil.which(command[0], path=path) is None:
            continue
        try:
            asked = [*command, "--version"]
            done = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout:
            kind = "clang" if "clang" in done.stdout else "gnu"
            return Toolchain(command, kind, done.stdout.splitlines()[0])
    tried = f"CXX={shlex.quote(named)}" if named.strip() else "g++, c++, clang++ and ziglang"
    raise ToolchainError(
        f"no C++ compiler was found (tried {tried}). Install g++ or clang, set CXX, or run "
        "`pip install opcel-compiler[zig]`, which brings one"
    )
