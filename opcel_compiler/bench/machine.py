"""What this machine can do: the peak of its multiply-adds and the bandwidth of its memories, measured."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from opcel_compiler.codegen.cpu.includes import CSRC
from opcel_compiler.codegen.cpu.toolchain import find_toolchain
from opcel_compiler.targets import load_target

SIZES = (16 << 10, 512 << 10, 8 << 20, 256 << 20)
"""Bytes a thread reads in each probe: within the first, second and last cache of most CPUs, and beyond them."""

SAMPLE_S = 0.02


class Machine:
    """`threads` threads of the CPU that this process runs on, at the features of the target `host`.

    Raises ToolchainError when there is no C++ compiler.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._best = 0.0
        self._held: list[int | None] = []
        self._pool = ThreadPoolExecutor(threads)
        self._folder = tempfile.TemporaryDirectory(prefix="opcel-peak-")
        folder = Path(self._folder.name)
        toolchain = find_toolchain()
        (folder / "peak.cpp").write_bytes((CSRC / "bench" / "peak.cpp").read_bytes())
        flags = load_target("host").flags(toolchain.kind)
        toolchain.compile(folder / "peak.cpp", folder / "peak.o", CSRC, flags)
        toolchain.link([folder / "peak.o"], folder / "peak.so")
        library = ctypes.CDLL(str(folder / "peak.so"))
        self._flops, self._read = library.opcel_peak_flops, library.opcel_read_bandwidth
        self._flops.argtypes, self._flops.restype = [ctypes.c_double], ctypes.c_double
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double]
        self._read.restype = ctypes.c_double
        self._new, self._free = library.opcel_new_floats, library.opcel_free_floats
        self._new.argtypes, self._new.restype = [ctypes.c_int64], ctypes.c_void_p
        self._free.argtypes, self._free.restype = [ctypes.c_void_p, ctypes.c_int64], None

    def close(self) -> None:
        self._pool.shutdown()
        self._release()
        self._folder.cleanup()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sample(self) -> None:
        """Look for the peak for a tenth of a second; best done between measurements, over as long a time."""
        found = (self._together(lambda _: float(self._flops(SAMPLE_S))) for _ in range(5))
        self._best = max(self._best, *found)

    @property
    def peak(self) -> float:
        """f32 FLOP/s of all threads together, a multiply-add being two: the best of the samples."""
        if not self._best:
            self.sample()
        return self._best

    @cached_property
    def bandwidths(self) -> Mapping[int, float]:
        """Bytes/s of reads, all threads together, by the bytes that each thread reads over and over; best of five."""
        out = {}
        for size in SIZES:
            data = [np.ones(size // 4, np.float32) for _ in range(self.threads)]
            samples = [
                self._together(lambda i, d=data: float(self._read(d[i].ctypes.data, d[i].size, SAMPLE_S)))  # type: ignore[misc]
                for _ in range(5)
            ]
            out[size] = max(samples)
        return out

    def sample_stream(self) -> float:
        """Bytes/s of reading 256 MiB a thread that lie in huge pages, all threads together, for a fiftieth of a second.

        Raises MemoryError.
        """
        count = SIZES[-1] // 4
        if not self._held:
            self._held = list(self._pool.map(self._new, [count] * self.threads))
        if not all(self._held):
            raise MemoryError(f"no memory for {self.threads} times {SIZES[-1]} bytes")
        return self._together(lambda i: float(self._read(self._held[i], count, SAMPLE_S)))

    @cached_property
    def stream(self) -> float:
        """The best of nine samples, whose memory is then given back. Raises MemoryError."""
        try:
            return max(self.sample_stream() for _ in range(9))
        finally:
            self._release()

    def _release(self) -> None:
        for data in self._held:
            if data:
                self._free(data, SIZES[-1] // 4)
        self._held = []

    def bandwidth(self, size: float) -> float:
        """Bytes/s at which the threads together read `size` bytes again and again."""
        part = size / self.threads
        return self.bandwidths[next((s for s in SIZES if part <= s), SIZES[-1])]

    def _together(self, sample: Callable[[int], float]) -> float:
        return sum(self._pool.map(sample, range(self.threads)))
