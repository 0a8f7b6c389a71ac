"""The benchmark networks: published architectures with seeded random weights. Needs torch and transformers.

Attention is built in its plain form, so that exporters write it out and compilers must find it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Input:
    """`shape` without the batch axis, which comes first; integers from `least` to below `below`, or normal floats where
    that is 0. `axes` names the axes of `shape` whose size a dynamic export leaves open, "" for one that it does not."""

    name: str
    shape: tuple[int, ...]
    below: int = 0
    least: int = 0
    axes: tuple[str, ...] = ()

    def sample(self, batch: int) -> Tensor:
        shape = (batch, *self.shape)
        return torch.randint(self.least, self.below, shape) if self.below else torch.randn(shape)

    @property
    def varying(self) -> dict[int, str]:
        """From axis to the name of its size, for the axes that a dynamic export leaves open."""
        return {0: "batch", **{i + 1: axis for i, axis in enumerate(self.axes) if axis}}


class Network(nn.Module):
    """A network whose inputs are positional, as exporters want them; `call` gives them to `net` and picks outputs."""

    def __init__(
        self, net: nn.Module, inputs: Sequence[Input], call: Callable[[nn.Module, Mapping[str, Tensor]], Any]
    ) -> None:
        super().__init__()
        self.net, self.inputs, self._call = net, tuple(inputs), call

    def forward(self, *values: Tensor) -> Any:
        return self._call(self.net, dict(zip((i.name for i in self.inputs), values, strict=True)))


def _field(name: str) -> Callable[[nn.Module, Mapping[str, Tensor]], Any]:
    return lambda net, values: getattr(net(**values), name)


def _only(net: nn.Module, values: Mapping[str, Tensor]) -> Any:
    (value,) = values.values()
    return net(value)


# -- images ------------------------------------------------------------------------------------------------------------

IMAGE = Input("pixel_values", (3, 224, 224))


def resnet50() -> Network:
    config = transformers.ResNetConfig(num_labels=1000)
    return Network(transformers.ResNetForImageClassification(config), [IMAGE], _field("logits"))


def mobilenet_v2() -> Network:
    config = transformers.MobileNetV2Config(num_labels=1000)
    return Network(transformers.MobileNetV2ForImageClassification(config), [IMAGE], _field("logits"))


def vit_b16() -> Network:
    config = transformers.ViTConfig(num_labels=1000, attn_implementation="eager")
    return Network(transformers.ViTForImageClassification(config), [IMAGE], _field("logits"))


class _Double(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for source in (channels, width):
            layers += [nn.Conv2d(source, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers)


class _UNet(nn.Module):
    """Four scales with skip connections, transposed convolutions back up, and a bilinear one to twice the size."""

    def __init__(self, width: int = 32, scales: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width << i for i in range(scales)]
        self.encoder = nn.ModuleList(_Double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upward = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(_Double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for stage in self.encoder:
            x = stage(self.pool(kept[-1]) if kept else x)
            kept.append(x)
        kept.pop()
        for up, stage in zip(self.upward, self.decoder, strict=True):
            x = stage(torch.cat([up(x), kept.pop()], dim=1))
        out: Tensor = self.enlarge(self.head(x))
        return out


def unet() -> Network:
    return Network(_UNet(), [Input("x", (3, 128, 128))], _only)


# -- text --------------------------------------------------------------------------------------------------------------


def _encoder(config: Any) -> Network:
    length = ("length",)
    tokens = [Input("input_ids", (128,), 30000, axes=length), Input("attention_mask", (128,), 2, 1, axes=length)]
    return Network(transformers.BertModel(config), tokens, _field("last_hidden_state"))


def bert_base() -> Network:
    return _encoder(transformers.BertConfig(attn_implementation="eager"))


def minilm() -> Network:
    return _encoder(
        transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            attn_implementation="eager",
        )
    )  # fmt: skip


def _decoder(net: nn.Module, config: Any, heads: int, past: int = 256) -> Network:
    """One token after `past` others, whose keys and values are inputs; gives the logits and the longer cache."""
    size = config.hidden_size // config.num_attention_heads
    layers = range(config.num_hidden_layers)
    cache = [
        Input(f"past_{kind}_{i}", (heads, past, size), axes=("", "past")) for i in layers for kind in ("key", "value")
    ]

    def step(net: nn.Module, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        state = transformers.DynamicCache()
        for i in layers:
            state.update(values[f"past_key_{i}"], values[f"past_value_{i}"], i)
        found = net(input_ids=values["input_ids"], past_key_values=state, use_cache=True)
        grown = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (found.logits, *grown)

    return Network(net, [Input("input_ids", (1,), config.vocab_size), *cache], step)


def gpt2_decode() -> Network:
    config = transformers.GPT2Config(attn_implementation="eager")
    return _decoder(transformers.GPT2LMHeadModel(config), config, config.num_attention_heads)


def llama_160m_decode() -> Network:
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, attn_implementation="eager",
    )  # fmt: skip
    return _decoder(transformers.LlamaForCausalLM(config), config, config.num_key_value_heads)


# -- sound, sequences, vectors -----------------------------------------------------------------------------------------


def whisper_tiny_encoder() -> Network:
    config = transformers.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, decoder_layers=1,
        attn_implementation="eager",
    )  # fmt: skip
    spectrum = Input("input_features", (80, 3000))
    return Network(transformers.WhisperModel(config).encoder, [spectrum], _field("last_hidden_state"))


class _Tagger(nn.Module):
    """Two LSTM layers and a linear one on each of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(64, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 32)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layers(x)
        out: Tensor = self.head(states)
        return out


def lstm() -> Network:
    return Network(_Tagger(), [Input("x", (100, 64), axes=("length",))], _only)


def mlp() -> Network:
    widths = (64, 256, 256, 10)
    layers: list[nn.Module] = []
    for source, width in itertools.pairwise(widths):
        layers += [nn.Linear(source, width), nn.ReLU()]
    return Network(nn.Sequential(*layers[:-1]), [Input("x", (64,))], _only)


def liven(net: nn.Module) -> None:
    """Give batch norms statistics as if trained: new ones are nearly the identity and would fold into nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
