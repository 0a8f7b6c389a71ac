"""Where samples come from: files, folders, functions, images."""

from __future__ import annotations

import builtins
import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opcel_compiler.calibrate import images
from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.readers import read_samples
from opcel_compiler.calibrate.samples import Input
from opcel_compiler.ir.dims import Dim, symbol
from opcel_compiler.ir.types import tensor

N = symbol("n", 1)


def inputs(*shape: Dim, dtype: str = "f32", name: str = "x") -> list[Input]:
    return [Input(name, tensor(dtype, *shape))]


def shapes(data: Any, wanted: list[Input], **options: Any) -> list[tuple[int, ...]]:
    return [s.feeds[wanted[0].name].shape for s in read_samples(data, wanted, **options)]


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


RULES: dict[str, tuple[tuple[int, ...], list[Input], int, tuple[int, ...]]] = {
    "a rank more": ((5, 1, 3, 4), inputs(1, 3, 4), 5, (1, 3, 4)),
    "a rank more, symbolic": ((5, 2, 3, 4), inputs(N, 3, 4), 5, (2, 3, 4)),
    "one sample": ((1, 3, 4), inputs(1, 3, 4), 1, (1, 3, 4)),
    "batches of one": ((6, 3, 4), inputs(1, 3, 4), 6, (1, 3, 4)),
    "an open batch": ((6, 3, 4), inputs(N, 3, 4), 6, (1, 3, 4)),
    "batches of two": ((6, 3, 4), inputs(2, 3, 4), 3, (2, 3, 4)),
    "no multiple": ((7, 3, 4), inputs(2, 3, 4), 1, (7, 3, 4)),
    "another rank": ((7, 3), inputs(2, 3, 4), 1, (7, 3)),
}


@pytest.mark.parametrize("kind", sorted(RULES))
@pytest.mark.parametrize("packed", [False, True])
def test_how_an_array_is_divided(kind: str, packed: bool, tmp_path: Path) -> None:
    shape, wanted, count, each = RULES[kind]
    data = numbers(*shape)
    (np.savez_compressed if packed else np.savez)(tmp_path / "d.npz", x=data)
    for source in (tmp_path / "d.npz", {"x": data}):
        found = [s.feeds["x"] for s in read_samples(source, wanted)]
        assert [a.shape for a in found] == [each] * count
        np.testing.assert_array_equal(np.concatenate([a.reshape(-1) for a in found]), data.reshape(-1))


def test_a_file_of_a_folder_is_a_sample_of_any_length(tmp_path: Path) -> None:
    for i, length in enumerate((4, 7, 5)):
        np.savez(tmp_path / f"{i}.npz", x=np.full((1, length), i, np.int64))
    found = list(read_samples(tmp_path, inputs(N, symbol("s", 1), dtype="i64")))
    assert [s.feeds["x"].shape for s in found] == [(1, 4), (1, 7), (1, 5)]
    assert [s.where for s in found] == ["0.npz", "1.npz", "2.npz"] and [s.index for s in found] == [0, 1, 2]
    assert [int(s.feeds["x"][0, 0]) for s in found] == [0, 1, 2]


def test_only_one_sample_of_a_file_is_in_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((64, 1, 128, 1024), np.float32))
    wanted = inputs(1, 128, 1024)
    list(read_samples(tmp_path / "d.npz", wanted))
    tracemalloc.start()
    count = sum(1 for _ in read_samples(tmp_path / "d.npz", wanted))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 64 and peak < 5 * 128 * 1024 * 4


def test_several_inputs_go_side_by_side(tmp_path: Path) -> None:
    wanted = [*inputs(1, 3), *inputs(1, dtype="i64", name="k")]
    np.savez(tmp_path / "d.npz", x=numbers(4, 1, 3), k=np.arange(4).reshape(4, 1))
    found = list(read_samples(tmp_path / "d.npz", wanted))
    assert [(float(s.feeds["x"][0, 0]), int(s.feeds["k"][0])) for s in found] == [(0, 0), (3, 1), (6, 2), (9, 3)]
    np.savez(tmp_path / "e.npz", x=numbers(4, 1, 3), k=np.arange(3).reshape(3, 1))
    with pytest.raises(CalibrationError, match="different numbers of samples: x 4, k 3"):
        list(read_samples(tmp_path / "e.npz", wanted))


def test_names_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "only.npz", numbers(4, 1, 3))
    assert len(shapes(tmp_path / "only.npz", inputs(1, 3))) == 4
    np.savez(tmp_path / "more.npz", x=numbers(4, 1, 3), label=np.arange(4))
    with pytest.warns(CalibrationWarning, match=r"more\.npz: label is no input"):
        assert len(shapes(tmp_path / "more.npz", inputs(1, 3))) == 4
    np.savez(tmp_path / "other.npz", z=numbers(4, 1, 3), label=np.arange(4))
    with pytest.raises(CalibrationError, match=r"other\.npz has no array 'x'; the model takes x: .*has 'z', 'label'"):
        shapes(tmp_path / "other.npz", inputs(1, 3))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "good.npz", x=numbers(40, 1, 30))
    (tmp_path / "short.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-300])
    for name in ("bad.npz", "short.npz", "none.npz"):
        with pytest.raises(CalibrationError, match=f"cannot read the calibration data .*{name}"):
            shapes(tmp_path / name, inputs(1, 30))
    with pytest.raises(CalibrationError, match="there is no calibration data at"):
        shapes(tmp_path / "nowhere", inputs(1, 30))
    np.savez(tmp_path / "columns.npz", x=np.asfortranarray(numbers(5, 1, 30)))
    with pytest.raises(CalibrationError, match="lies column by column"):
        shapes(tmp_path / "columns.npz", inputs(1, 30))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], object))
    with pytest.raises(CalibrationError, match="holds Python objects"):
        shapes(tmp_path / "objects.npz", inputs(1, 30))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"neither .* files nor images"):
        shapes(tmp_path / "empty", inputs(1, 30))


# -- Python ------------------------------------------------------------------------------------------------------------

READER = """
import numpy as np
def load():
    for i in range(3):
        yield {"x": np.full((1, 2), i, np.float32)}
def plain(): return [np.zeros((1, 2), np.float32)] * 2
def needs(path): return []
def broken(): return 5
value = 1
"""


def test_a_python_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reader.py").write_text(READER)
    file = tmp_path / "own_reader.py"
    assert [float(s.feeds["x"][0, 0]) for s in read_samples(f"{file}:load", inputs(1, 2))] == [0, 1, 2]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(shapes("own_reader:plain", inputs(1, 2))) == 2
    sys.modules.pop("own_reader", None)
    for name, text in (
        ("needs", "takes arguments"), ("broken", "gives a int, not samples"), ("value", "is a int, not a function"),
        ("absent", "cannot be loaded: AttributeError"),
    ):  # fmt: skip
        with pytest.raises(CalibrationError, match=text):
            shapes(f"{file}:{name}", inputs(1, 2))


def test_iterables_of_arrays_tuples_and_mappings() -> None:
    one = numbers(1, 2)
    assert shapes([one, one], inputs(1, 2)) == [(1, 2)] * 2
    both = [*inputs(1, 2), *inputs(1, name="k")]
    assert [sorted(s.feeds) for s in read_samples([(one, one[0, :1])], both)] == [["k", "x"]]
    with pytest.raises(CalibrationError, match="item 1 is a float; a sample is a mapping"):
        shapes([one, 1.5], inputs(1, 2))

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield one

    assert next(iter(read_samples(endless, inputs(1, 2)))).feeds["x"] is not None


# -- images ------------------------------------------------------------------------------------------------------------


def portable(path: Path, image: np.ndarray) -> None:
    kind = b"P6" if image.shape[2] == 3 else b"P5"
    path.write_bytes(kind + f"\n# made up\n{image.shape[1]} {image.shape[0]}\n255\n".encode() + image.tobytes())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    portable(tmp_path / "a.ppm", rng.integers(0, 256, (20, 30, 3), np.uint8))
    np.save(tmp_path / "b.npy", rng.integers(0, 256, (31, 22, 3), np.uint8))
    portable(tmp_path / "c.pgm", rng.integers(0, 256, (16, 16, 1), np.uint8))
    return tmp_path


def describe(folder: Path, **keys: Any) -> None:
    (folder / "preprocess.json").write_text(json.dumps(keys))


def test_images_are_resized_cropped_and_normalised(pictures: Path) -> None:
    describe(pictures, size=16, crop=[12, 10], mean=[0.5, 0.25, 0.0], std=[0.5, 1, 2])
    found = list(read_samples(pictures, inputs(1, 3, 12, 10)))
    assert [s.where for s in found] == ["a.ppm", "b.npy", "c.pgm"]
    for s in found:
        x = s.feeds["x"]
        assert x.shape == (1, 3, 12, 10) and x.dtype == np.float32
        for channel, (low, high) in enumerate(((-1, 1), (-0.25, 0.75), (0, 0.5))):
            assert low <= x[0, channel].min() < x[0, channel].max() <= high
    grey = found[2].feeds["x"][0]
    np.testing.assert_allclose(grey[0] * 0.5 + 0.5, grey[2] * 2, atol=1e-6)


def test_layout_order_and_scale(pictures: Path) -> None:
    image = np.load(pictures / "b.npy")
    for keys, want in (
        ({"layout": "NHWC", "scale": 1.0}, image[None].astype(np.float32)),
        ({"order": "BGR", "scale": 1.0}, image[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)),
        ({}, (image[None].transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)),
    ):
        describe(pictures, **keys)
        found = {s.where: s.feeds["x"] for s in read_samples(pictures, inputs(1, N, N, N))}
        np.testing.assert_allclose(found["b.npy"], want, rtol=1e-6)


def test_resizing_keeps_constants_and_ramps() -> None:
    flat = np.full((9, 14, 3), 7, np.float32)
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 8, 1))
    for size in ((5, 5), (20, 31), (9, 14)):
        np.testing.assert_allclose(images.resized(flat, size), np.full((*size, 3), 7), rtol=1e-5)
    half = images.resized(ramp, (20, 8))[:, 0, 0]
    np.testing.assert_allclose(half[1:-1], np.arange(1, 19) * 2 + 0.5, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"sise": 3}, "there is no key 'sise'"), ({"size": [1, 2, 3]}, "size is one or two positive"),
        ({"layout": "CHW"}, "layout is NCHW or NHWC"), ({"std": 0}, "cannot be divided by 0"),
        ({"mean": "x"}, "mean is a number"), ({"crop": 99}, "are too few to crop 99 by 99"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit(pictures: Path, keys: dict[str, Any], text: str) -> None:
    describe(pictures, **keys)
    with pytest.raises(CalibrationError, match=text):
        shapes(pictures, inputs(1, 3, N, N))


def test_images_need_a_description_and_one_input(pictures: Path) -> None:
    with pytest.raises(CalibrationError, match=r"put a preprocess\.yaml beside them"):
        shapes(pictures, inputs(1, 3, N, N))
    describe(pictures)
    with pytest.raises(CalibrationError, match="the model takes x, k"):
        shapes(pictures, [*inputs(1, 3, N, N), *inputs(1, name="k")])


def test_without_pillow_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    describe(tmp_path)
    real = builtins.__import__
    monkeypatch.setattr(images.importlib, "import_module", lambda name: real("no_such_module_" + name.split(".")[0]))
    with pytest.raises(CalibrationError, match=r"a\.png needs Pillow"):
        shapes(tmp_path, inputs(1, 3, N, N))


def test_damaged_images_are_named(tmp_path: Path) -> None:
    describe(tmp_path)
    for data in (b"P6\n4 4\n255\nshort", b"P6\n", b"P3\n1 1\n255\n1 2 3"):
        (tmp_path / "a.ppm").write_bytes(data)
        with pytest.raises(CalibrationError, match=r"cannot use the image .*a\.ppm"):
            shapes(tmp_path, inputs(1, 3, N, N))
