"""Every fuzz target for a few executions, and that one that fails is noticed and its input kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import NAMES, blind
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", NAMES)
def test_strangers_input_is_refused_with_an_error_of_ours(name: str, tmp_path: Path) -> None:
    assert blind(name, 300, 7, 60, tmp_path) == 300


def test_a_crash_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise IndexError("past the end")

    monkeypatch.setitem(targets.TARGETS, "text", broken)
    with pytest.raises(IndexError):
        blind("text", 10, 1, 60, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert set(TARGETS) == set(NAMES)
