"""A folder of images as samples: decoded, resized, cropped and normalised as a small description says.

The description is YAML or JSON, given or found as preprocess.yaml or preprocess.json beside the images:

    size: [256, 256]    # resize to height, width; one number: the shorter side, keeping the ratio; left out: as it is
    crop: [224, 224]    # then the middle of it
    scale: 0.00392156862745098   # elements are multiplied by this (1/255; 1 for .npy files of floats),
    mean: [0.485, 0.456, 0.406]  # then less the channel's mean,
    std: [0.229, 0.224, 0.225]   # divided by its deviation
    layout: NCHW        # or NHWC
    order: RGB          # or BGR, or GRAY for one channel
    input: data         # the input's name, where the model has several
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.calibrate.samples import Feeds, Input

OWN = (".npy", ".ppm", ".pgm")
PILLOW = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
GRAY = np.array([[0.299], [0.587], [0.114]], np.float32)
"""The weights of red, green and blue in brightness (ITU-R BT.601)."""
DESCRIPTIONS = ("preprocess.yaml", "preprocess.yml", "preprocess.json")


def find_images(folder: Path) -> list[Path]:
    """The images of a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (*OWN, *PILLOW))


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input; the fields are those of the description."""

    size: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    order: str = "RGB"
    input: str = ""

    @staticmethod
    def read(folder: Path, path: str | os.PathLike[str] | None) -> Preprocessing:
        """The description at `path`, else the folder's own. Raises CalibrationError when there is none."""
        found = (
            Path(path) if path is not None else next((folder / n for n in DESCRIPTIONS if (folder / n).exists()), None)
        )
        if found is None:
            raise CalibrationError(
                f"{folder} holds images, and nothing says how they become an input; put a preprocess.yaml beside them "
                "(size, crop, scale, mean, std, layout, order) or name one with --preprocess"
            )
        try:
            text = found.read_text(encoding="utf-8")
            return Preprocessing.of(json.loads(text) if found.suffix == ".json" else _yaml(text), str(found))
        except (OSError, ValueError) as error:
            raise CalibrationError(f"cannot read {found}: {error}") from error

    @staticmethod
    def of(given: Any, where: str) -> Preprocessing:
        """From what a description holds. Raises CalibrationError that names the key."""
        if not isinstance(given, Mapping):
            raise CalibrationError(f"{where} holds no keys and values")
        known = {f.name for f in fields(Preprocessing)}
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise CalibrationError(f"{where}: there is no key {key!r}; the keys are {', '.join(sorted(known))}")
            values[key] = _value(str(key), value, where)
        return Preprocessing(**values)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """f32[C, H, W] or f32[H, W, C] of an image [H, W, C]. Raises ValueError for other channels or few pixels."""
        channels = 1 if self.order == "GRAY" else 3
        if image.ndim == 2:
            image = image[:, :, None]
        if image.shape[2] == 4:
            image = image[:, :, :3]
        if image.shape[2] != channels and 1 not in (image.shape[2], channels):
            raise ValueError(f"it has {image.shape[2]} channels and order {self.order} has {channels}")
        scale = self.scale if self.scale is not None else 1.0 if image.dtype.kind == "f" else 1 / 255
        x = image.astype(np.float32)
        if channels == 1 and x.shape[2] == 3:
            x = x @ GRAY
        elif channels == 3 and x.shape[2] == 1:
            x = np.repeat(x, 3, axis=2)
        if self.size:
            x = resized(x, self._target(x.shape[0], x.shape[1]))
        if self.crop:
            height, width = self.crop if len(self.crop) == 2 else (*self.crop, *self.crop)
            top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
            if top < 0 or left < 0:
                raise ValueError(f"{x.shape[0]} by {x.shape[1]} pixels are too few to crop {height} by {width} of them")
            x = x[top : top + height, left : left + width]
        if self.order == "BGR":
            x = x[:, :, ::-1]
        x = x * np.float32(scale)
        if self.mean:
            x = x - np.array(self.mean, np.float32)
        if self.std:
            x = x / np.array(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1) if self.layout == "NCHW" else x, np.float32)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        shorter = self.size[0]
        return (
            (shorter, round(width * shorter / height)) if height < width else (round(height * shorter / width), shorter)
        )


def _yaml(text: str) -> Any:
    """Raises ValueError for text that is no YAML."""
    import yaml  # memory that only descriptions need

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _value(key: str, value: Any, where: str) -> Any:
    numbers = [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if key in ("layout", "order", "input"):
        allowed = {"layout": ("NCHW", "NHWC"), "order": ("RGB", "BGR", "GRAY")}.get(key)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise CalibrationError(f"{where}: {key} is {' or '.join(allowed) if allowed else 'text'}, not {value!r}")
        return value
    if not isinstance(numbers, list) or not all(isinstance(v, (int, float)) for v in numbers) or not numbers:
        raise CalibrationError(f"{where}: {key} is a number or a list of them, not {value!r}")
    if key == "scale":
        if len(numbers) != 1:
            raise CalibrationError(f"{where}: scale is one number, not {value!r}")
        return float(numbers[0])
    if key in ("size", "crop"):
        if len(numbers) > 2 or not all(isinstance(v, int) and v > 0 for v in numbers):
            raise CalibrationError(f"{where}: {key} is one or two positive whole numbers, not {value!r}")
        return tuple(numbers)
    if key == "std" and 0 in numbers:
        raise CalibrationError(f"{where}: std is {value!r}; images cannot be divided by 0")
    return tuple(map(float, numbers))


def resized(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """f32[H, W, C] at another size, bilinear; where it shrinks, a triangle as wide as the shrinking."""
    for axis, n in enumerate(size):
        if n != x.shape[axis]:
            x = np.moveaxis(np.tensordot(_triangles(x.shape[axis], n), x, (1, axis)), 0, axis)
    return x


def _triangles(old: int, new: int) -> np.ndarray:
    """f32[new, old]: the weights of the old pixels in each new one."""
    step = old / new
    reach = max(step, 1.0)
    centre = (np.arange(new) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs((np.arange(old) + 0.5)[None, :] - centre[:, None]) / reach)
    scaled: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def image_samples(
    folder: Path, files: Sequence[Path], inputs: Sequence[Input], how: Preprocessing
) -> Iterator[tuple[str, Feeds]]:
    """(file, the arrays of one sample) of each image, read when it is asked for."""
    wanted = [i for i in inputs if i.name == how.input] if how.input else list(inputs)
    if len(wanted) != 1 or len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise CalibrationError(f"images make one input, and the model takes {names}; use .npz files or a Python reader")
    target = wanted[0]
    for file in files:
        try:
            image = how.apply(read_image(file))
        except CalibrationError:
            raise
        except (OSError, ValueError) as error:
            raise CalibrationError(f"cannot use the image {file}: {error}", tensor=target.name) from error
        yield file.name, {target.name: image[None] if target.rank == image.ndim + 1 else image}


def read_image(file: Path) -> np.ndarray:
    """[H, W] or [H, W, C] of .npy, .ppm and .pgm files, of others by Pillow.

    Raises CalibrationError where that is not installed, ValueError or OSError for a damaged file.
    """
    suffix = file.suffix.lower()
    if suffix == ".npy":
        array: np.ndarray = np.load(file, allow_pickle=False)
        if array.ndim not in (2, 3):
            raise ValueError(f"an array of rank {array.ndim} is no image [height, width, channels]")
        return array
    if suffix in (".ppm", ".pgm"):
        return _portable(file.read_bytes())
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise CalibrationError(
            f"{file} needs Pillow to be read, which is not installed: pip install pillow, or convert the images to "
            ".npy or .ppm"
        ) from error
    with pillow.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _portable(data: bytes) -> np.ndarray:
    """A binary PPM or PGM of 8 bits."""
    fields_: list[bytes] = []
    at = 0
    while len(fields_) < 4:
        while data[at : at + 1].isspace():
            at += 1
        if data[at : at + 1] == b"#":
            at = data.find(b"\n", at) + 1
            if not at:
                raise ValueError("its head does not end")
            continue
        end = at
        while end < len(data) and not data[end : end + 1].isspace():
            end += 1
        if end == at:
            raise ValueError("its head does not end")
        fields_.append(data[at:end])
        at = end
    kind, *sizes = fields_
    width, height, most = (int(f) for f in sizes)
    if kind not in (b"P5", b"P6") or most != 255:
        raise ValueError("it is no binary PPM or PGM of 8 bits")
    channels = 3 if kind == b"P6" else 1
    body = data[at + 1 : at + 1 + width * height * channels]
    if len(body) != width * height * channels:
        raise ValueError("it ends early")
    return np.frombuffer(body, np.uint8).reshape(height, width, channels)
