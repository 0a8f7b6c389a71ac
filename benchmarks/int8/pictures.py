"""Crops of the pictures that come with scikit-image and scikit-learn. Needs scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

CALIBRATE = ("china", "chelsea", "hubble_deep_field", "camera", "coins", "brick", "ihc", "motorcycle_right", "page")
EVALUATE = ("flower", "astronaut", "coffee", "rocket", "retina", "moon", "text", "grass", "clock_motion", "cell")
"""No picture is in both."""

Finish = Callable[[np.ndarray], np.ndarray]
"""From pixels [h, w, 3] of 0 to 255 to a network's input."""


def picture(name: str) -> np.ndarray:
    """[h, w, 3] of u8."""
    import skimage
    import sklearn
    from skimage.io import imread

    roots = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    found = imread(next(p for root in roots for p in sorted(root.glob(f"{name}.*"))))
    pixels: np.ndarray = np.stack([found] * 3, -1) if found.ndim == 2 else found[..., :3]
    return pixels


def crops(names: Sequence[str], count: int, side: int, finish: Finish, least: float = 0.3) -> np.ndarray:
    """Squares of `least` to all of the shorter side, made `side` wide, in turn of each picture."""
    from skimage.transform import resize

    rng = np.random.default_rng(side)
    pixels = [picture(name) for name in names]
    out = []
    for i in range(count):
        image = pixels[i % len(pixels)]
        size = int(min(image.shape[:2]) * rng.uniform(least, 1))
        top, left = (int(rng.integers(0, extent - size + 1)) for extent in image.shape[:2])
        square = image[top : top + size, left : left + size].astype(np.float32)
        if rng.random() < 0.5:
            square = square[:, ::-1]
        out.append(finish(resize(square, (side, side), anti_aliasing=size > side, preserve_range=True)))
    return np.stack(out)


def normalised(mean: Sequence[float], deviation: Sequence[float]) -> Finish:
    """Channels first, with a batch axis; mean and deviation are of pixels from 0 to 1."""

    def finish(pixels: np.ndarray) -> np.ndarray:
        scaled = (pixels / 255 - np.array(mean)) / np.array(deviation)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)

    return finish


def plain(pixels: np.ndarray) -> np.ndarray:
    """0 to 255, channels first, with a batch axis."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def pages(texts: Sequence[str], side: int, finish: Finish) -> np.ndarray:
    """Pictures of lines of text, dark on light or light on dark, in several sizes."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(len(texts))
    out = []
    for text in texts:
        dark, light = (tuple(int(v) for v in rng.integers(lo, lo + 80, 3)) for lo in (0, 175))
        paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
        image = Image.new("RGB", (side, side), paper)
        draw, size, top = ImageDraw.Draw(image), int(rng.integers(12, 30)), 8
        for line in text.splitlines():
            draw.text((int(rng.integers(4, 24)), top), line, ink, ImageFont.load_default(size))
            top += int(size * 1.6)
        out.append(finish(np.asarray(image, np.float32) + rng.normal(0, 4, (side, side, 3))))
    return np.stack(out)
