"""The object cache: private, capped, sound when damaged, shared by processes, and never needed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.codegen.cpu import includes
from opcel_compiler.codegen.cpu.cache import CacheError, ObjectCache, cache_size

from .test_operators import CASES

ROOT = Path(__file__).resolve().parents[2]


def model() -> onnx.ModelProto:
    return CASES["conv, one weight"].model()


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPCEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPCEL_CACHE_SIZE", raising=False)
    return tmp_path / "cache" / "objects"


def put(name: str, data: bytes) -> None:
    with ObjectCache() as cache:
        cache.object(key(name)).write_bytes(data)
        cache.store(key(name))


def has(name: str) -> bytes | None:
    with ObjectCache() as cache:
        return cache.object(key(name)).read_bytes() if cache.fetch(key(name)) else None


def test_what_is_stored_comes_back_and_only_for_this_user(folder: Path) -> None:
    assert has("a") is None
    put("a", b"object a")
    assert has("a") == b"object a"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    folder.chmod(0o777)
    assert has("a") == b"object a" and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "renamed"])
def test_a_damaged_object_is_missing_and_removed(folder: Path, damage: str) -> None:
    put("a", b"object a" * 100)
    path = folder / f"{key('a')}.o"
    data = bytearray(path.read_bytes())
    data[11] ^= 1 if damage == "flip" else 0
    path.write_bytes(bytes(data[: {"cut": -5, "empty": 0}.get(damage, len(data))]))
    name = "a"
    if damage == "renamed":
        path, name = path.rename(folder / f"{key('b')}.o"), "b"
    assert has(name) is None
    assert not path.exists()


def test_the_least_recently_used_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("abcd"):
        put(name, bytes(1000))
        os.utime(folder / f"{key(name)}.o", (i, i))
    assert has("a") is not None  # used now, so b is the oldest
    monkeypatch.setenv("OPCEL_CACHE_SIZE", "3K")
    put("e", bytes(1000))
    assert [n for n in "abcde" if (folder / f"{key(n)}.o").exists()] == ["a", "e"]


def test_sizes_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, size in (("", 1 << 30), ("512", 512), ("3k", 3 << 10), ("2 GiB", 2 << 30), ("0", 0)):
        monkeypatch.setenv("OPCEL_CACHE_SIZE", text)
        assert cache_size() == size
    monkeypatch.setenv("OPCEL_CACHE_SIZE", "much")
    with pytest.raises(CacheError, match="OPCEL_CACHE_SIZE is 'much', not a size such as 500M"):
        cache_size()


def test_a_size_of_zero_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPCEL_CACHE_SIZE", "0")
    put("a", b"object")
    assert has("a") is None and not folder.exists()


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_a_folder_that_cannot_be_used_is_no_error(folder: Path, tmp_path: Path, obstacle: str) -> None:
    if obstacle == "file":
        folder.parent.write_text("in the way")
    else:
        (tmp_path / "elsewhere").mkdir()
        folder.parent.mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    with oc.compile(model(), output=tmp_path / "a.opcel") as compiled:
        assert compiled.manifest["proof"]["status"] == "proved"
    assert obstacle == "file" or not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_folder_is_not_used(folder: Path) -> None:
    put("a", b"object a")
    os.chown(folder, 12345, 12345)
    assert has("a") is None
    put("b", b"object b")
    assert len(list(folder.iterdir())) == 1


def test_damaged_objects_are_compiled_again(folder: Path, tmp_path: Path) -> None:
    oc.compile(model(), output=tmp_path / "a.opcel").close()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    oc.compile(model(), output=tmp_path / "b.opcel").close()
    assert (tmp_path / "a.opcel" / "model.so").read_bytes() == (tmp_path / "b.opcel" / "model.so").read_bytes()


def test_two_compiles_at_once(folder: Path, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    code = "import sys, opcel_compiler as oc; oc.compile(sys.argv[1], output=sys.argv[2])"
    # A cap of less than one build makes each remove what the other has just stored.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPCEL_CACHE_SIZE": "20K"}
    running = [
        subprocess.Popen([sys.executable, "-c", code, "m.onnx", f"{i}.opcel"], cwd=tmp_path, env=environment)
        for i in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert (tmp_path / "0.opcel" / "model.so").read_bytes() == (tmp_path / "1.opcel" / "model.so").read_bytes()
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_an_object_depends_on_the_headers_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()

    def digest(**texts: str) -> str:
        for name, text in texts.items():
            (tmp_path / "base" / f"{name}.h").write_text(text)
        monkeypatch.setattr(includes, "CSRC", tmp_path)
        includes._header.cache_clear()
        return includes.included_digest('#include <cmath>\n#include "base/a.h"\n')

    first = digest(a='#include "b.h"\n#if 0\n# include "base/missing.h"\n#endif', b="int b;", c="int c;")
    assert digest(c="long c;") == first
    assert digest(b="long b;") != first
    assert digest(b="int b;") == first
    includes._header.cache_clear()
