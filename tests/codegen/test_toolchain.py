"""Compilers that are missing, broken or killed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

import opcel_compiler as oc
from opcel_compiler.codegen.cpu.toolchain import ToolchainError, find_toolchain

from .test_operators import CASES


def compiler(folder: Path, body: str) -> str:
    path = folder / "cxx"
    version = 'if [ "$1" = --version ]; then echo "cxx 1.0"; exit 0; fi'
    path.write_text(f"#!/bin/sh\n{version}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolchainError, match=r"tried g\+\+, c\+\+, clang\+\+ and ziglang.*opcel-compiler\[zig\]"):
        oc.compile(CASES["conv, one weight"].model(), output=tmp_path / "a.opcel")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cxx", ["none-such", "/bin/false", "'unclosed"])
def test_cxx_names_none(monkeypatch: pytest.MonkeyPatch, cxx: str) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(ToolchainError, match=r"opcel-compiler\[zig\]|is no command"):
        find_toolchain()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'unit.cpp:1: error: no such thing' >&2; exit 1", "exit 1\\):\nunit.cpp:1: error: no such thing"),
        ("kill -9 $$", r"killed by signal 9; is there enough memory\?\)$"),
    ],
)
def test_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    monkeypatch.setenv("OPCEL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ToolchainError, match=message) as raised:
        oc.compile(CASES["conv, one weight"].model(), output=tmp_path / "a.opcel")
    assert raised.value.exit_code == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cxx"]
    assert not list((tmp_path / "cache" / "objects").iterdir())
