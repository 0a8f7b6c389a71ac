"""C++ text of dims and literals, and weights in their kernels' order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from opcel_compiler.codegen.cpu.build import CSRC
from opcel_compiler.codegen.cpu.expressions import c_dim, literal
from opcel_compiler.codegen.cpu.host import c_string
from opcel_compiler.codegen.cpu.pack import conv_panels, laid_out, merged_groups, packed
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.parse_dims import parse_dim
from opcel_compiler.ir.program import Buffer, whole
from opcel_compiler.ir.types import BF16, BOOL, F32, F64, I64, TensorType


def test_dims_mean_the_same_in_cpp(tmp_path: Path) -> None:
    texts = ["3", "a", "2*a*b - 7", "(a - 9)//4", "(a - 9) % 4", "min(a, b)", "max(2*a, b + 1)", "(a*b + 5)//(b + 1)"]
    lines = [
        f'  std::printf("%lld\\n", (long long)({c_dim(parse_dim(t), {"a": "s[0]", "b": "s[1]"})}));' for t in texts
    ]
    source = tmp_path / "dims.cpp"
    source.write_text(
        '#include <cstdio>\n#include "base/dims.h"\nusing namespace opcel;\nint main() {\n'
        "  for (int64_t a = 0; a < 12; a += 5)\n    for (int64_t b = 1; b < 9; b += 3) {\n"
        "  const int64_t s[] = {a, b};\n" + "\n".join(lines) + "\n  (void)s;\n  }\n}\n"
    )
    subprocess.run(["g++", "-std=c++17", f"-I{CSRC}", source, "-o", tmp_path / "dims"], check=True)
    printed = subprocess.run([tmp_path / "dims"], capture_output=True, text=True, check=True).stdout.split()
    wanted = [evaluate(parse_dim(t), {"a": a, "b": b}) for a in range(0, 12, 5) for b in range(1, 9, 3) for t in texts]
    assert [int(p) for p in printed] == wanted


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, F64, "0x1.999999999999ap-4"), (np.float32(0.1).item(), F32, "0x1.99999a0000000p-4f"),
        (float("inf"), F32, "__builtin_inff()"), (-float("inf"), F64, "-__builtin_inf()"), (True, BOOL, "true"),
        (-(1 << 63), I64, "INT64_MIN"), (-3, I64, "INT64_C(-3)"),
    ],
)  # fmt: skip
def test_literals_are_exact(value: float, dtype, text: str) -> None:
    assert literal(value, dtype) == text


def test_strings_cannot_leave_their_quotes() -> None:
    assert c_string('a"b\\c\n?é') == '"a\\042b\\134c\\012\\077\\303\\251"'


@pytest.mark.parametrize(
    "layout",
    [
        Layout(), Layout(order=(1, 0, 2)), Layout(block_axis=1, block=4), Layout((0, 2, 1), 2, 8),
        Layout(block_axis=1, block=4, halo=((0, 0), (0, 0), (1, 2))),
    ],
)  # fmt: skip
def test_packed_order_is_what_the_layout_says(layout: Layout) -> None:
    shape = (2, 6, 5)
    array = np.arange(1, 61, dtype=np.float32).reshape(shape)
    flat = laid_out(array, layout)
    assert flat.size == layout.elements(shape)
    strides, base = layout.strides(shape), layout.interior(shape)
    for index in np.ndindex(*shape):
        at, inner = base, 0
        for axis, i in enumerate(index):
            if layout.block > 1 and axis == layout.block_axis:
                i, inner = divmod(i, layout.block)
            at += i * strides[axis]
        assert flat[at + inner] == array[index]
    assert np.count_nonzero(flat) == array.size


def test_weights_are_stored_as_their_layout_says() -> None:
    array = np.array([1, 1 / 3, -1e30, np.inf], np.float32)
    buffer = Buffer("w", TensorType(F32, (4,)), "weight", Layout(storage="bf16"), data=Constant(array))
    np.testing.assert_array_equal(packed(buffer).view(np.uint16), array.astype(BF16.numpy).view(np.uint16))


def test_a_family_not_made_for_bf16_storage_cannot_read_it() -> None:
    buffer = Buffer("t", TensorType(F32, (4,)), layout=Layout(storage="bf16"))
    assert KernelUnit().pointer(whole(buffer), "bf16") == "static_cast<const bf16*>(p[0])"
    with pytest.raises(ValueError, match=r"@t.* cannot be read or written as float"):
        KernelUnit().pointer(whole(buffer))
    with pytest.raises(ValueError, match=r"@t.* cannot be read or written as bf16"):
        KernelUnit().pointer(whole(Buffer("t", TensorType(F32, (4,)))), "bf16")


def test_convolution_panels() -> None:
    w = np.arange(1, 1 + 12 * 5 * 3 * 2, dtype=np.float32).reshape(12, 5, 3, 2)
    panels = conv_panels(w, 2, 4, 8).reshape(2, 1, 2, 3, 2, 4, 8)
    for filter_, channel, kh, kw in np.ndindex(*w.shape):
        group, at = divmod(filter_, 6)
        assert panels[group, 0, channel // 4, kh, kw, channel % 4, at] == w[filter_, channel, kh, kw]
    assert np.count_nonzero(panels) == w.size
    pairs = conv_panels(w, 2, 4, 8, 2).reshape(2, 1, 2, 3, 2, 2, 8, 2)
    np.testing.assert_array_equal(pairs.transpose(0, 1, 2, 3, 4, 5, 7, 6).reshape(panels.shape), panels)


def test_groups_merged_into_larger_ones() -> None:
    w = np.arange(1, 1 + 12 * 2 * 3, dtype=np.float32).reshape(12, 2, 3)
    merged = merged_groups(w, 2, 3)
    assert merged.shape == (12, 6, 3)
    for filter_, channel, k in np.ndindex(*w.shape):
        assert merged[filter_, filter_ // 2 % 3 * 2 + channel, k] == w[filter_, channel, k]
    assert np.count_nonzero(merged) == w.size


def test_convolution_panels_of_planes_pair_neighbours_of_a_row() -> None:
    w = np.arange(1, 1 + 6 * 3 * 2 * 5, dtype=np.float32).reshape(6, 3, 2, 5)
    panels = conv_panels(w, 1, 1, 8, 2).reshape(3, 2, 3, 8, 2)
    for filter_, channel, kh, kw in np.ndindex(*w.shape):
        assert panels[channel, kh, kw // 2, filter_, kw % 2] == w[filter_, channel, kh, kw]
    assert np.count_nonzero(panels) == w.size
