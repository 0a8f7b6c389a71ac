"""How good a quantized network's outputs are: by labels where there are some, else by agreement with the float network.

A metric gives figures by name; the first is the one that tables judge by, and its points are hundredths for shares.
`want` and `got` are the network's first output on all samples, [samples, ...], by the float network and the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Figures = dict[str, float]
Metric = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], Figures]
SCORE = 0.3
"""What a detection's score must reach to count."""


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    out: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out


def divergence(want: np.ndarray, got: np.ndarray) -> float:
    """The mean of KL(want || got) in nats, of logits or of probabilities along the last axis."""
    p, q = (log_softmax(_logits(x)) for x in (want, got))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _logits(x: np.ndarray) -> np.ndarray:
    sums = x.sum(-1)
    if x.min() >= 0 and np.allclose(sums, 1, atol=1e-2):
        return np.log(np.maximum(x.astype(np.float64), 1e-9))
    return x


def same_choice(want: np.ndarray, got: np.ndarray) -> float:
    return float((want.argmax(-1) == got.argmax(-1)).mean())


def signal_to_noise(want: np.ndarray, got: np.ndarray) -> float:
    """Decibels; 200 for what is equal."""
    a, b = want.astype(np.float64), got.astype(np.float64)
    noise = float(np.square(a - b).sum())
    return 200.0 if noise == 0 else float(10 * np.log10(max(np.square(a).sum(), 1e-300) / noise))


def top1(want: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> Figures:
    """The share of samples whose largest output is the label's."""
    assert labels is not None
    classes = got.reshape(len(got), -1).argmax(-1)
    return {"accuracy": float((classes == labels.ravel()).mean()), **classes_agree(want, got, None)}


def classes_agree(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    """The share of samples for which both networks choose the same class."""
    want, got = (x.reshape(len(x), -1) for x in (want, got))
    return {
        "agreement": same_choice(want, got), "kl": divergence(want, got), "sqnr_db": signal_to_noise(want, got)
    }  # fmt: skip


def language(want: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> Figures:
    """KL to the float network at each place, and the loss of the text that follows."""
    assert labels is not None
    picked = np.take_along_axis(log_softmax(got), labels[..., None], -1)
    return {
        "kl": divergence(want, got), "agreement": same_choice(want, got), "loss": float(-picked.mean()),
        "sqnr_db": signal_to_noise(want, got),
    }  # fmt: skip


def cosines(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Of each sample."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (want, got))
    out: np.ndarray = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300)
    return out


def cosine(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    found = cosines(want, got)
    return {"cosine": float(found.mean()), "least": float(found.min()), "sqnr_db": signal_to_noise(want, got)}


def embedding(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    """The share of texts whose nearest other text is the same; `want` and `got` hold one vector a text."""
    a, b = (x.reshape(len(x), -1) for x in (want, got))
    near, found = (x @ x.T - 4 * np.eye(len(x)) for x in (a, b))
    return {"agreement": float((near.argmax(1) == found.argmax(1)).mean()), **cosine(want, got, None)}


def boxes(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    """YOLOX: the share, of places where either network sees something, where both see the same, and boxes overlap."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (want, got))
    scores = [x[:, 4] * x[:, 5:].max(1) for x in (a, b)]
    either = (scores[0] >= SCORE) | (scores[1] >= SCORE)
    both = (scores[0] >= SCORE) & (scores[1] >= SCORE) & (a[:, 5:].argmax(1) == b[:, 5:].argmax(1))
    far = float(np.abs(scores[0] - scores[1])[either].mean()) if either.any() else 0.0
    return {
        "agreement": float(both.sum() / max(1, either.sum())), "overlap": _overlap(a[both], b[both]),
        "score_error": far, "places": float(either.sum()), **cosine(want, got, None),
    }  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The mean intersection over union of boxes (x, y, log w, log h) in cells."""
    if not len(a):
        return 1.0
    sizes = [np.exp(x[:, 2:4]) for x in (a, b)]
    low, high = ([x[:, :2] + sign * s / 2 for x, s in zip((a, b), sizes, strict=True)] for sign in (-1, 1))
    shared = np.maximum(np.minimum(*high) - np.maximum(*low), 0).prod(1)
    return float((shared / (sizes[0].prod(1) + sizes[1].prod(1) - shared)).mean())


def mask(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    """Intersection over union of the places above the score, of all samples together."""
    a, b = want > SCORE, got > SCORE
    return {"overlap": float((a & b).sum() / max(1, (a | b).sum())), **cosine(want, got, None)}


def score(want: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> Figures:
    """Both on the same side of a half, and how far apart."""
    far = np.abs(want.astype(np.float64) - got)
    return {
        "agreement": float(((want > 0.5) == (got > 0.5)).mean()),
        "mean_error": float(far.mean()),
        "most": float(far.max()),
    }


METRICS: dict[str, Metric] = {
    "top1": top1, "classes": classes_agree, "kl": language, "cosine": cosine, "embedding": embedding, "boxes": boxes,
    "mask": mask, "score": score,
}  # fmt: skip
LOWER_IS_BETTER = frozenset({"kl"})
"""First figures of which less is better; all others are shares."""
