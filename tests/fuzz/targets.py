"""What is fuzzed: each target takes bytes from a stranger and may only refuse them with an OpcelError."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

import opcel_compiler as oc
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program_text import parse_program, print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.verify import verify
from opcel_compiler.runtime.integrity import stamped
from opcel_compiler.runtime.model import CompiledModel
from opcel_compiler.targets.load import load_target

Target = Callable[[bytes], bool]
"""Executes an input; whether it was accepted."""


@cache
def _folder() -> Path:
    """A folder of this process, in memory where there is such a file system."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="opcel-fuzz-", dir=base))


def clean_up() -> None:
    shutil.rmtree(_folder(), ignore_errors=True)


def importer(data: bytes) -> bool:
    """A model's bytes become a graph that holds its invariants."""
    try:
        graph = import_model(data).graph
    except OpcelError:
        return False
    verify(graph)
    return True


def text(data: bytes) -> bool:
    """The text of a graph or a Program; what is read can be verified and written again."""
    try:
        source = data.decode()
    except UnicodeDecodeError:
        return False
    try:
        if source.lstrip().startswith(("program", "symbol")) and "program" in source:
            program = parse_program(source)
            verify_program(program)
            print_program(program)
        else:
            graph = parse_graph(source)
            verify(graph)
            print_graph(graph)
    except OpcelError:
        return False
    return True


@cache
def _artifact() -> tuple[Path, dict[str, object], bytes]:
    """A compiled model, its manifest and its weights."""
    graph = parse_graph(
        "symbol n in 1..64\ngraph g(%x: f32[n, 4], %i: i64[2]) {\n  %w = f32[4, 3] 0.5\n"
        "  %y = matmul(%x, %w) : f32[n, 3]\n  %z = gather(%w, %i){axis=0} : f32[2, 3]\n  return %y, %z\n}\n"
    )
    path = _folder() / "model.opcel"
    oc.compile(export_model(graph), "x86-64", path, proof=False).close()
    return path, json.loads((path / "manifest.json").read_text()), (path / "weights.bin").read_bytes()


def artifact(data: bytes) -> bool:
    """A manifest, with its hash put right every other time, and weights, of an artifact that is opened.

    The code is the compiler's: an artifact is as trusted as a program.
    """
    path, _, weights = _artifact()
    head, _, tail = data.partition(b"\0\0")
    try:
        manifest = json.loads(head)
        if isinstance(manifest, dict) and manifest.pop("stamp", True):
            head = json.dumps(stamped(manifest)).encode()
    except (ValueError, RecursionError):
        pass
    (path / "manifest.json").write_bytes(head)
    (path / "weights.bin").write_bytes(tail or weights)
    try:
        CompiledModel(path, threads=1, weights="resident" if len(data) % 2 else "map").close()
    except OpcelError:
        return False
    return True


def target(data: bytes) -> bool:
    """A target's description."""
    path = _folder() / "fuzzed.yaml"
    path.write_bytes(data)
    try:
        load_target(path)
    except OpcelError:
        return False
    return True


_DTYPES = ("<f4", "<f8", "<i8", "<i4", "u1", "?", "<f2", "<c8", "O", "<U3", "M8[s]", "V4")


@cache
def _opened() -> CompiledModel:
    path, manifest, weights = _artifact()
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "weights.bin").write_bytes(weights)
    return CompiledModel(path, threads=1)


def run(data: bytes) -> bool:
    """Arrays of any shape, strides and element type as inputs of an open artifact."""
    model = _opened()
    at = iter(data)
    feeds: dict[str, object] = {}
    for name in ("x", "i"):
        if (kind := next(at, 0)) == 255:
            continue
        dtype = np.dtype(_DTYPES[kind % len(_DTYPES)] if kind > 127 else "<f4" if name == "x" else "<i8")
        shape = tuple(next(at, 2) % 6 for _ in range(next(at, 2) % 4 if kind & 1 else (2 if name == "x" else 1)))
        if kind & 2:
            shape = (next(at, 3) % 70, 4) if name == "x" else (2,)
        base = np.zeros(4096, dtype)
        strides = tuple((next(at, 0) - 128) % 17 * dtype.itemsize // (1 + (kind & 1)) for _ in shape)
        array = np.lib.stride_tricks.as_strided(base, shape, strides) if kind & 4 else np.zeros(shape, dtype)
        if dtype == np.int64 and kind & 8:
            array = array + np.int64(int.from_bytes(bytes(next(at, 0) for _ in range(8)), "little", signed=True))
        feeds[name if kind & 16 or kind < 64 else chr(kind)] = array
    try:
        model.run(feeds)
    except OpcelError:
        return False
    return True


TARGETS: dict[str, Target] = {
    "importer": importer, "text": text, "artifact": artifact, "target": target, "run": run,
}  # fmt: skip


def warm_up(name: str) -> None:
    """What the executions of a target share is made."""
    if name == "artifact":
        _artifact()
    elif name == "run":
        _opened()
