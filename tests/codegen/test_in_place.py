"""An artifact takes the place of another in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opcel_compiler.codegen import artifact
from opcel_compiler.codegen.artifact import put_in_place


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(artifact, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        put_in_place(folder(tmp_path / "work", text), tmp_path / "final")
        assert [p.name for p in tmp_path.iterdir()] == ["final"]
        assert (tmp_path / "final" / "manifest.json").read_text() == text


def test_without_an_exchange_what_interrupts_it_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, final = folder(tmp_path / "work", "new"), folder(tmp_path / "final", "old")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if source == final:
            raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(work, final)
    assert (final / "manifest.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "work"]
