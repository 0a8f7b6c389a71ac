"""Compiles a kernel test's C++ source for one instruction-set level and loads it through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

CSRC = Path(__file__).resolve().parents[2] / "csrc"

_AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mfma -mavx2"
FLAGS: dict[str, list[str]] = {
    "avx512-bf16": f"{_AVX512} -mavx512bf16".split(),
    "avx512-vnni": f"{_AVX512} -mavx512vnni".split(),
    "avx512": _AVX512.split(),
    "avx2": "-mavx2 -mfma".split(),
    "baseline": [],
}
WIDTH: dict[str, int] = {"avx512-bf16": 16, "avx512-vnni": 16, "avx512": 16, "avx2": 8, "baseline": 4}
"""Lanes of f32 (`opcel::W`) at each level."""

_NEEDED: dict[str, set[str]] = {
    "avx512-bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_bf16"},
    "avx512-vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
    "avx2": {"avx2", "fma"},
    "baseline": set(),
}


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")), set())


_RUN: list[str] = [isa for isa in FLAGS if _NEEDED[isa] <= _cpu_flags()]
"""Levels that this machine can run, the best first."""
ISAS: list[str] = [isa for isa in _RUN if isa not in ("avx512-bf16", "avx512-vnni")]
"""Those that differ for code in f32, widest first."""
BF16_ISAS: list[str] = [isa for isa in _RUN if isa != "avx512-vnni"]
"""Those that differ for code in bf16."""
INT8_ISAS: list[str] = [isa for isa in _RUN if isa != "avx512-bf16"]
"""Those that differ for products of bytes."""

for _isa in FLAGS:
    if _isa not in _RUN:
        print(f"kernel tests: {_isa} left out, this CPU lacks {sorted(_NEEDED[_isa] - _cpu_flags())}")


@functools.cache
def _headers_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(CSRC.rglob("*.h")):
        digest.update(path.read_bytes())
    return digest.digest()


@functools.cache
def build(source: str, isa: str) -> ctypes.CDLL:
    """The shared library compiled from `source` (C++17, includes relative to csrc/) with the flags of level `isa`.

    Functions to call must be `extern "C"`. Libraries are kept in a per-user temporary folder, keyed by source, headers
    and flags. Raises AssertionError with the compiler's messages if it rejects the source.
    """
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti", "-fPIC", *FLAGS[isa]]
    key = hashlib.sha256(_headers_digest() + repr((source, flags)).encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"opcel-kernel-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        text = folder / f"{key}.{os.getpid()}.cpp"
        partial = text.with_suffix(".so")
        text.write_text(source)
        command = ["g++", *flags, "-I", str(CSRC), "-shared", "-o", str(partial), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        partial.replace(library)
        text.unlink()
    return ctypes.CDLL(str(library))


def pointers(*arrays: np.ndarray | None) -> ctypes.Array[ctypes.c_void_p]:
    """A C array of the arrays' data pointers, null for None. The arrays must outlive it."""
    return (ctypes.c_void_p * len(arrays))(*[None if array is None else array.ctypes.data for array in arrays])


def integers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    """A C array of int64."""
    return (ctypes.c_int64 * len(values))(*values)
