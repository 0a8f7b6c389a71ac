"""Settings of the whole suite, and one object cache for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def object_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have neighbouring folders; they share the cache.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "object-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPCEL_CACHE", str(folder))
        yield folder


@contextmanager
def det_without_kernel() -> Iterator[None]:
    """Meanwhile Det, which ONNX Runtime has, is an operator without a kernel."""
    import opcel_compiler.frontend.importer  # noqa: F401  the lowerings register themselves
    from opcel_compiler.frontend.lowering import REGISTRY

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(REGISTRY, ("", "Det"))
        yield


@pytest.fixture
def det_falls_back() -> Iterator[None]:
    with det_without_kernel():
        yield


@pytest.fixture(scope="session")
def falling_back() -> Callable[[], AbstractContextManager[None]]:
    """`det_without_kernel`, for fixtures that last longer than a test."""
    return det_without_kernel
