"""Real data that needs no network: digits, pictures and text of installed packages."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 32
"""Pixels of a digit's side: each of the 8x8 is four wide and four high, smoothed."""

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""What a character model tells apart; the last stands for any other."""


@dataclass(frozen=True)
class Split:
    """Parts that share no sample."""

    train: np.ndarray
    calibrate: np.ndarray
    evaluate: np.ndarray


def digits() -> tuple[Split, Split]:
    """scikit-learn's 1797 handwritten digits, [samples, 1, 32, 32] from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = enlarged(found.images.astype(np.float32) / 16)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [897, 997])
    return Split(*(images[p] for p in parts)), Split(*(found.target[p].astype(np.int64) for p in parts))


def enlarged(images: np.ndarray) -> np.ndarray:
    """[n, 8, 8] to [n, 32, 32], linear between the pixels' centres."""
    side = images.shape[-1]
    at = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    share = (at - low).astype(np.float32)
    weights = np.zeros((SIDE, side), np.float32)
    weights[np.arange(SIDE), low], weights[np.arange(SIDE), low + 1] = 1 - share, share
    return np.asarray(np.einsum("pi,nij,qj->npq", weights, images, weights), np.float32)


def source_files(folder: Path | None = None) -> list[Path]:
    """The modules of Python's standard library, or of another folder, by name."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    apart = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}
    return sorted(p for p in root.rglob("*.py") if not apart & set(p.relative_to(root).parts[:-1]))


def encoded(text: str) -> np.ndarray:
    """The numbers of a text's characters."""
    table = {c: i for i, c in enumerate(CHARACTERS)}
    return np.array([table.get(c, len(CHARACTERS)) for c in text], np.int64)


def source_text(context: int, calibrate: int = 64, evaluate: int = 192) -> Split:
    """Characters to train on, in one row, and windows [samples, context + 1] of files that are not among them."""
    files = source_files()
    held = [encoded(p.read_text("utf-8", "replace")) for p in files[::10]]
    train = [encoded(p.read_text("utf-8", "replace")) for i, p in enumerate(files) if i % 10]
    rng = np.random.default_rng(0)
    half = len(held) // 2
    return Split(
        np.concatenate(train), _windows(held[:half], context + 1, calibrate, rng),
        _windows(held[half:], context + 1, evaluate, rng),
    )  # fmt: skip


def _windows(texts: list[np.ndarray], length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    text = np.concatenate(texts)
    starts = rng.choice(len(text) // length, count, replace=False) * length
    return np.stack([text[s : s + length] for s in starts])
