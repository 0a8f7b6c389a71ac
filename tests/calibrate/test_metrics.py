"""Metrics of quantized outputs: what they are for outputs that are known to differ so much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opcel_compiler.quantization.metrics import METRICS, accuracy, metric_of
from opcel_compiler.quantization.recipe import QuantizationError

LOGITS = np.log(np.float32([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
OTHER = np.log(np.float32([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))


@pytest.mark.parametrize("shift", [0.0, 7.0])
@pytest.mark.parametrize("shares", [False, True])
def test_entropy_and_first_choice(shift: float, shares: bool) -> None:
    want, got = ([{"y": np.exp(a) if shares else a + np.float32(shift)}] for a in (LOGITS, OTHER))
    assert METRICS["kl"](want, got) == pytest.approx(0.25 * np.log(2) / 2, rel=1e-5)
    assert METRICS["top1"](want, got) == 0.5
    assert METRICS["kl"](want, want) == METRICS["top1"](want, want) == METRICS["sqnr"](want, want) == 0


def test_all_samples_and_outputs_count_together() -> None:
    want = [{"y": np.float32([3.0]), "i": np.int64([1])}, {"y": np.float32([4.0]), "i": np.int64([1])}]
    got = [{"y": np.float32([3.5]), "i": np.int64([2])}, {"y": np.float32([4.0]), "i": np.int64([1])}]
    found = accuracy(want, got)
    assert found["relative_l2"] == pytest.approx(0.1) and found["sqnr_db"] == 20
    assert found["samples"] == 2 and found["kl"] == 0 and found["top1_agreement"] == 1


def test_a_metric_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "def largest(wants, gots):\n    return max(abs(w['y'] - g['y']).max() for w, g in zip(wants, gots))\n"
    file.write_text(text)
    assert metric_of(f"{file}:largest")([{"y": LOGITS}], [{"y": LOGITS + 2}]) == pytest.approx(2)
    for name, why in (("nothing", "not 'nothing'"), (f"{file}:other", "cannot load"), ("none.py:f", "cannot load")):
        with pytest.raises(QuantizationError, match=why):
            metric_of(name)
    with pytest.raises(QuantizationError, match="failed: KeyError"):
        metric_of(f"{file}:largest")([{"z": LOGITS}], [{"z": LOGITS}])
