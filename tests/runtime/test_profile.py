"""CompiledModel.profile: the time of each step."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from opcel_compiler.runtime import FeedError, RunError, load

from .conftest import CXX, MakeArtifact

FEEDS = {"a": np.ones((40000, 3), np.float32), "b": np.ones((40000, 3), np.float32)}

OLD_API = """
#include "runtime/opcel.h"
#include <cstdlib>
namespace {
opcel_description facts = {offsetof(opcel_description, n_steps)};
opcel_api api = {OPCEL_ABI_VERSION, offsetof(opcel_api, profile)};
int32_t open_model(const char*, const opcel_options*, opcel_model** model, char*, size_t) {
  *model = reinterpret_cast<opcel_model*>(&facts);
  return 0;
}
}  // namespace
extern "C" __attribute__((visibility("default"))) const opcel_api* opcel_artifact_api(void) {
  api.open = open_model;
  api.close = [](opcel_model*) {};
  api.describe = [](const opcel_model*) -> const opcel_description* { return &facts; };
  return &api;
}
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_each_step_has_its_time_and_the_sum_is_that_of_the_runs(make_artifact: MakeArtifact, threads: int) -> None:
    with load(make_artifact(), threads=threads) as model:
        seconds = model.profile(FEEDS, 5)
        assert len(seconds) == 3 and all(s > 0 for s in seconds)
        # Three passes over 1.4 MB in under a minute: the unit is seconds, whatever the machine.
        assert 1e-6 < sum(seconds) < 60
        np.testing.assert_array_equal(model.run(FEEDS)["d"], np.full((40000, 3), 4, np.float32))


def test_a_region_is_a_step_and_its_failure_is_that_of_run(make_artifact: MakeArtifact) -> None:
    region = {"kind": "onnxruntime", "file": "none.onnx", "inputs": ["d"], "outputs": ["e"]}
    path = make_artifact("REGION", modules=[{"kind": "cpu", "file": "model.so"}, region])
    (path / "none.onnx").write_bytes(b"no model")
    with load(path) as model, pytest.raises(RunError, match=r"none\.onnx"):
        model.profile(FEEDS)


def test_feeds_are_checked(make_artifact: MakeArtifact) -> None:
    with load(make_artifact()) as model:
        with pytest.raises(FeedError, match="runs is at least 1"):
            model.profile(FEEDS, 0)
        with pytest.raises(FeedError, match="'b'"):
            model.profile({"a": FEEDS["a"]})


def test_an_artifact_from_before_profiling_opens_and_says_so(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    path = make_artifact()
    (tmp_path / "old.cpp").write_text(OLD_API)
    subprocess.run([*CXX[:-1], "-Wno-missing-field-initializers", "-shared", "old.cpp", "-o", "old.so"],
                   check=True, cwd=tmp_path)  # fmt: skip
    (path / "model.so").unlink()
    (tmp_path / "old.so").rename(path / "model.so")
    with load(path) as model, pytest.raises(RunError, match="compile the model again"):
        model.profile({})
