"""Small networks that are trained here, and two ways to make them hard to quantize. Needs torch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Cnn(nn.Sequential):
    """Convolutions of 3x3 over one channel of 32x32; ten classes."""

    def __init__(self) -> None:
        widths, strides = (1, 32, 64, 64, 128, 128), (1, 2, 1, 2, 1)
        blocks = [_conv(a, b, s) for (a, b), s in zip(itertools.pairwise(widths), strides, strict=True)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; as in MobileNetV2."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        wide = expand * c_in
        self.body = nn.Sequential(
            _conv(c_in, wide, 1, size=1, act=nn.ReLU6), _conv(wide, wide, stride, groups=wide, act=nn.ReLU6),
            _conv(wide, c_out, 1, size=1, act=nn.Identity),
        )  # fmt: skip
        self.adds = c_in == c_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.adds else out


class DepthwiseCnn(nn.Sequential):
    """Inverted residuals over one channel of 32x32; ten classes."""

    def __init__(self) -> None:
        super().__init__(
            _conv(1, 32, 2, act=nn.ReLU6), InvertedResidual(32, 32, 1), InvertedResidual(32, 64, 2),
            InvertedResidual(64, 64, 1), InvertedResidual(64, 128, 2), InvertedResidual(128, 128, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip


def _conv(
    c_in: int, c_out: int, stride: int, size: int = 3, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), act())


class Block(nn.Module):
    """A transformer's block that normalises first, with attention written out."""

    def __init__(self, width: int, heads: int, causal: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU()
        mask = torch.full((causal, causal), -1e4).triu(1) if causal else torch.zeros(())
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + self.mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(mixed)
        out: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return out


class Vit(nn.Module):
    """Patches of 8x8 of one channel of 32x32; ten classes."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 8, 8)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return out


class CharacterModel(nn.Module):
    """The logits of the next character at each place of a text."""

    def __init__(self, characters: int, context: int, width: int = 256, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=context) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.embed(ids) + self.place)))
        return out


@torch.no_grad()
def inject_outliers(net: nn.Module, channels: int = 6, factor: float = 60.0) -> None:
    """The same function, with channels of each block's norms `factor` times as large and their next weights smaller."""
    generator = torch.Generator().manual_seed(0)
    for block in (m for m in net.modules() if isinstance(m, Block)):
        for norm, following in ((block.norm1, block.qkv), (block.norm2, block.up)):
            at = torch.randperm(len(norm.weight), generator=generator)[:channels]
            norm.weight[at] *= factor
            norm.bias[at] *= factor
            following.weight[:, at] /= factor


@torch.no_grad()
def rescale_channels(net: Cnn, octaves: float = 6.0) -> None:
    """The same function, with each channel between two convolutions multiplied by a power of 2 up to +-`octaves`."""
    generator = torch.Generator().manual_seed(0)
    blocks = [m for m in net if isinstance(m, nn.Sequential)]
    for before, after in itertools.pairwise(blocks):
        norm, conv = before[1], after[0]
        scale = 2 ** (octaves * (2 * torch.rand(len(norm.weight), generator=generator) - 1))
        norm.weight *= scale
        norm.bias *= scale
        conv.weight /= scale[None, :, None, None]
