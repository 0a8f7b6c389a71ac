"""Writes the models of this folder: three small transformer blocks in four spellings of PyTorch's exporters, and the
encoder as ONNX Runtime's transformer optimizer writes it.

Needs torch and onnxscript, which the tests do not: `python export.py FOLDER`. What ONNX Runtime's sessions make of the
models is made in the tests.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers.optimizer import optimize_model
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, SIZE = 16, 4, 4
spell_out = False


def split(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, SIZE).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to earlier places. The exporter has no rule for the fused function before opset 14."""
    if not spell_out:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    place = torch.arange(q.shape[2])
    scores = (q @ k.transpose(-1, -2) / SIZE**0.5).masked_fill(place[None, :] > place[:, None], float("-inf"))
    return torch.softmax(scores, -1) @ v


class Encoder(nn.Module):
    """Norms after the sums, attention with a mask of the padding, erf GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH, 1e-12), nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        scores = split(self.q(x), HEADS) @ split(self.k(x), HEADS).transpose(-1, -2) / SIZE**0.5
        attended = join(torch.softmax(scores + hidden, -1) @ split(self.v(x), HEADS))
        x = self.first(self.o(attended) + x)
        y: Tensor = self.second(self.down(F.gelu(self.up(x))) + x)
        return y


class Decoder(nn.Module):
    """Norms before the sums, causal attention, tanh GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (split(t, HEADS) for t in self.qkv(self.first(x)).split(WIDTH, -1))
        x = x + self.o(join(causal(q, k, v)))
        y: Tensor = x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))
        return y


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Grouped(nn.Module):
    """Root mean square norms, rotary embedding, causal attention with two heads of q a head of k and v, gated SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 32, bias=False) for _ in range(2))
        self.down = nn.Linear(32, WIDTH, bias=False)
        self.first, self.second = RootMeanSquare(), RootMeanSquare()
        self.register_buffer("rates", 1.0 / 100 ** (torch.arange(0, SIZE, 2).float() / SIZE))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        angles = torch.arange(ids.shape[1]).float()[:, None] * self.rates
        cos, sin = (f(torch.cat((angles, angles), -1))[None, None] for f in (torch.cos, torch.sin))

        def rotated(t: Tensor) -> Tensor:
            half = torch.cat((-t[..., SIZE // 2 :], t[..., : SIZE // 2]), -1)
            return t * cos + half * sin

        def repeated(t: Tensor) -> Tensor:
            wide = t[:, :, None].expand(-1, -1, 2, -1, -1)
            return wide.reshape(t.shape[0], HEADS, t.shape[2], SIZE)

        y = self.first(x)
        q, k, v = (split(f(y), n) for f, n in ((self.q, HEADS), (self.k, HEADS // 2), (self.v, HEADS // 2)))
        q, k = rotated(q), repeated(rotated(k))
        x = x + self.o(join(causal(q, k, repeated(v))))
        y = self.second(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what exporters note about the place and time of the export."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    for part in [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    return model


def torchscript(module: nn.Module, args: tuple[Tensor, ...], names: list[str], opset: int) -> onnx.ModelProto:
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "y"]}
    torch.onnx.export(
        module, args, file, input_names=names, output_names=["y"], opset_version=opset, dynamic_axes=axes, dynamo=False
    )
    return onnx.load_from_string(file.getvalue())


def dynamo(module: nn.Module, args: tuple[Tensor, ...], names: list[str], opset: int) -> onnx.ModelProto:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple({0: batch, 1: length} for _ in names)
    program = torch.onnx.export(
        module, args, input_names=names, output_names=["y"], opset_version=opset, dynamic_shapes=shapes, dynamo=True
    )
    assert program is not None
    return program.model_proto


SPELLINGS: dict[str, tuple[Callable[..., onnx.ModelProto], int]] = {
    "opset13": (torchscript, 13), "opset17": (torchscript, 17), "dynamo": (dynamo, 18), "dynamo23": (dynamo, 23),
}  # fmt: skip


def main(folder: Path) -> None:
    global spell_out
    warnings.simplefilter("ignore")
    ids = torch.randint(0, 50, (2, 5))
    blocks = {
        "encoder": (Encoder, (ids, torch.ones(2, 5, dtype=torch.long)), ["ids", "mask"]),
        "decoder": (Decoder, (ids,), ["ids"]),
        "grouped": (Grouped, (ids,), ["ids"]),
    }
    for name, (block, args, names) in blocks.items():
        torch.manual_seed(0)
        module = block().eval()
        for spelling, (export, opset) in SPELLINGS.items():
            spell_out = opset < 14
            onnx.save(plain(export(module, args, names, opset)), folder / f"{name}-{spelling}.onnx")
    fused = optimize_model(str(folder / "encoder-opset17.onnx"), "bert", HEADS, WIDTH, opt_level=0)
    fused.model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(plain(fused.model), folder / "encoder-transformers.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
