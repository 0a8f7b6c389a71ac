"""Trains the digit classifier of this folder and writes `digits.onnx`, `digits.npz` and `digits_labels.npz`.

Data: "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://archive.ics.uci.edu/dataset/80, licence CC BY 4.0), prepared with NIST's programs, in the copy of 1,797 images
by 13 people that scikit-learn (BSD-3-Clause) ships. An image is 8x8, a pixel counts the 0 to 16 dark dots of a 4x4
cell; here it is divided by 16. A fifth of the images, 360, is held out: drawn class by class with a fixed seed, never
trained on, and written to `digits.npz` (the feeds: key `image`, float32 [360, 1, 8, 8]) and `digits_labels.npz` (key
`label`, int64 [360]). The same people wrote digits of both parts, so accuracy on the held-out part is that on known
hands.

Needs torch, onnx and scikit-learn; none of them is needed to use the files that it writes. Usage: python train.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
EPOCHS = 80
BATCH = 64
SEED = 0


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A bias-free convolution with batch normalization; an odd `size` at stride 1 keeps the image's size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), same shape out as in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels, 3), conv(channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Digits(nn.Module):
    """Images [batch, 1, 8, 8] in [0, 1] to logits [batch, 10]: residual and depthwise-separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 16, 3), nn.ReLU(), Residual(16), nn.MaxPool2d(2),
            conv(16, 16, 3, groups=16), nn.ReLU(), conv(16, 32, 1), nn.ReLU(), Residual(32),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.features(x)))
        return logits


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions, blank where nothing moves in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, dy : dy + 8, dx : dx + 8] for image, (dy, dx) in zip(padded, offsets, strict=True)])


def train(images: torch.Tensor, labels: torch.Tensor) -> Digits:
    """The classifier after EPOCHS passes over `images` with Adam and a cosine schedule; deterministic for one torch."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(model(shifted(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    x, held_x, y, held_y = train_test_split(images, labels, test_size=360, stratify=labels, random_state=SEED)
    model = train(torch.from_numpy(x), torch.from_numpy(y))
    with torch.no_grad():
        right = int((model(torch.from_numpy(held_x)).argmax(1).numpy() == held_y).sum())
    print(f"held-out accuracy {right / len(held_y):.4f} ({right} of {len(held_y)})")

    # PRESERVE keeps the batch normalizations as nodes of their own: folding them is the compiler's work.
    torch.onnx.export(
        nn.Sequential(model, nn.Softmax(1)).eval(), (torch.from_numpy(held_x[:2]),), HERE / "digits.onnx",
        dynamo=False, opset_version=17, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        input_names=["image"], output_names=["probability"],
        dynamic_axes={"image": {0: "batch"}, "probability": {0: "batch"}},
    )  # fmt: skip
    exported = onnx.load(HERE / "digits.onnx")
    onnx.checker.check_model(exported, full_check=True)
    print(f"{(HERE / 'digits.onnx').stat().st_size} bytes: {', '.join(node.op_type for node in exported.graph.node)}")
    np.savez_compressed(HERE / "digits.npz", image=held_x)
    np.savez_compressed(HERE / "digits_labels.npz", label=held_y)


if __name__ == "__main__":
    main()
