"""Train the networks of `trained`, and write them with their data. Needs torch; some ten minutes of two cores."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.int8 import data, trained
from benchmarks.int8.cases import write

CONTEXT = 128
EPOCHS = {"digits_cnn": 14, "digits_depthwise": 18, "digits_vit": 80}
LM_STEPS, LM_WARMUP, LM_BATCH, LM_RATE = 450, 40, 32, 2e-3
Made = Callable[[Path], None]


def digits(name: str, make: Callable[[], nn.Module], about: str) -> Made:
    """How to train a network on the digits."""

    def train(folder: Path) -> None:
        torch.manual_seed(0)
        images, labels = data.digits()
        net = make()
        x, y = torch.from_numpy(images.train), torch.from_numpy(labels.train)
        _fit_classifier(net, x, y, EPOCHS[name])
        with torch.no_grad():
            right = (net(torch.from_numpy(images.evaluate)).argmax(1).numpy() == labels.evaluate).mean()
        print(f"{name}: {right:.2%} of the digits that it has not seen", flush=True)
        calibrate, evaluate = ({"image": part[:, None]} for part in (images.calibrate, images.evaluate))
        for key, variant, words in variants(name, net, about):
            _export(variant, folder / f"{key}.onnx", torch.from_numpy(evaluate["image"][0]), "image", "logits")
            write(folder, key, calibrate, evaluate, metric="top1", about=words, labels=labels.evaluate)

    return train


def variants(name: str, net: nn.Module, about: str) -> list[tuple[str, nn.Module, str]]:
    """The network, and the same function in a form that is harder to quantize."""
    out = [(name, net, about)]
    hard = copy.deepcopy(net)
    if isinstance(hard, trained.Cnn):
        trained.rescale_channels(hard)
        out.append((f"{name}_rescaled", hard, f"{about}; channels rescaled by up to 2^6"))
    elif any(isinstance(m, trained.Block) for m in hard.modules()):
        trained.inject_outliers(hard)
        out.append((f"{name}_outliers", hard, f"{about}; six channels of each norm x60"))
    return out


def _fit_classifier(net: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int = 64) -> None:
    """Cross-entropy on images shifted by up to two pixels."""
    steps = epochs * math.ceil(len(x) / batch)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(batch):
            dy, dx = torch.randint(-2, 3, (2,)).tolist()
            loss = functional.cross_entropy(net(x[at].roll((dy, dx), (2, 3))), y[at], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def character_model(folder: Path) -> None:
    """Trained on Python's standard library. A checkpoint is written every 25 steps, and continued."""
    name, text = "char_lm", data.source_text(CONTEXT)
    torch.manual_seed(0)
    net = trained.CharacterModel(len(data.CHARACTERS) + 1, CONTEXT)
    _fit_text(net, text.train, folder / f"{name}.checkpoint.pt")
    windows = torch.from_numpy(text.evaluate)
    with torch.no_grad():
        loss = functional.cross_entropy(net(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    print(f"{name}: {loss:.3f} nats a character", flush=True)
    calibrate, evaluate = ({"ids": part[:, None, :-1]} for part in (text.calibrate, text.evaluate))
    about = f"character model, {sum(p.numel() for p in net.parameters()) / 1e6:.1f}M parameters, Python's sources"
    for key, variant, words in variants(name, net, about):
        _export(variant, folder / f"{key}.onnx", windows[:1, :-1], "ids", "logits")
        write(folder, key, calibrate, evaluate, metric="kl", about=words, labels=text.evaluate[:, None, 1:])


def _fit_text(net: nn.Module, text: np.ndarray, checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(net.parameters(), LM_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        done = state["done"]
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    started = time.perf_counter()
    for step in range(done, LM_STEPS):
        starts = np.random.default_rng(step).integers(0, len(text) - CONTEXT - 1, LM_BATCH)
        batch = torch.from_numpy(np.stack([text[s : s + CONTEXT + 1] for s in starts]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(batch[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        left = (step - LM_WARMUP) / (LM_STEPS - LM_WARMUP)
        rate = (step + 1) / LM_WARMUP if step < LM_WARMUP else 0.5 + 0.5 * math.cos(math.pi * left)
        for group in optimizer.param_groups:
            group["lr"] = LM_RATE * rate
        optimizer.step()
        if step % 25 == 24 or step == LM_STEPS - 1:
            torch.save({"done": step + 1, "net": net.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
            print(f"char_lm: step {step + 1}, {loss:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    net.eval()


def _export(net: nn.Module, path: Path, example: Tensor, given: str, result: str) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": [given], "output_names": [result]}
        torch.onnx.export(net.eval(), (example,), str(path), dynamo=False, opset_version=17, **names)


TRAINED: dict[str, Made] = {
    "digits_cnn": digits("digits_cnn", trained.Cnn, "convolutions of 3x3, scikit-learn's digits"),
    "digits_depthwise": digits("digits_depthwise", trained.DepthwiseCnn, "inverted residuals, scikit-learn's digits"),
    "digits_vit": digits("digits_vit", trained.Vit, "vision transformer, scikit-learn's digits"),
    "char_lm": character_model,
}
