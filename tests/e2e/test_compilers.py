"""Both kinds of compiler take every kernel without a warning, and make artifacts that stand alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import opcel_compiler as oc
from opcel_compiler.calibration import observing_pipeline
from opcel_compiler.codegen.cpu.build import CSRC, base_flags, generate
from opcel_compiler.codegen.cpu.toolchain import find_toolchain
from opcel_compiler.compilation import prepare
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets import list_targets, load_target
from opcel_compiler.targets.kernels import kernel_table

from ..codegen import test_dtypes as dtypes
from ..codegen import test_quantized as quantized
from ..codegen import test_sequence as sequence
from ..codegen import test_vision as vision
from ..codegen.test_operators import CASES
from . import test_ml as classical
from . import test_nbits as nbits
from . import test_quantized_forms as quantized_forms
from . import test_random as random
from . import test_sizes as sizes
from . import test_strassen as strassen
from . import test_trees as trees
from . import test_winograd as winograd
from .builder import Net
from .conftest import assert_same, reference
from .twins import TWINS, feeds
from .twins_more import gpt

ZIG = f"{sys.executable} -m ziglang c++"
NEVER_CHOSEN = frozenset({"conv_transpose"})
"""Families of the table that lowering replaces by others, whatever the shapes."""
BF16, BF16_TARGET = frozenset({"attention.bf16", "gemm.bf16"}), "x86-64-avx512-vnni-bf16"
"""Families that products in bf16 have, and the level with that precision."""
LARGE_TILES = frozenset({"gemm.strassen"})
"""Families that only levels with large register tiles have."""
STRICT = "-std=c++17 -O0 -fPIC -fno-exceptions -fno-rtti -Wall -Wextra -Werror".split()


def has_zig() -> bool:
    return subprocess.run([*ZIG.split(), "--version"], capture_output=True, check=False).returncode == 0


needs_zig = pytest.mark.skipif(not has_zig(), reason="the package ziglang is not installed")


def others() -> onnx.ModelProto:
    """Families that no twin has."""
    net = Net("others", 17)
    x, i = net.input("x", "n", 6, 5), net.input("i", 3, 2, dtype=TensorProto.INT64)
    size = net("Shape", x)
    net.output("size", net("Mul", size, size), TensorProto.INT64)
    n = net("Squeeze", net("Slice", size, np.array([0]), np.array([1])), np.array([0]))
    net.output("range", net("Range", np.array(0), n, np.array(1)), TensorProto.INT64)
    net.output("pairs", net("GatherND", net.weight(4, 5, 7), i))
    for op in ("ReduceMax", "ReduceMin", "ReduceProd"):
        net.output(op, net(op, net("Cast", x, to=TensorProto.INT32), axes=[1], keepdims=0), TensorProto.INT32)
    square = net("ReduceMean", net("Mul", x, x), axes=[-1])
    scaled = net("Mul", x, net("Reciprocal", net("Sqrt", net("Add", square, 1e-5))))
    net.output("rms", net("Mul", scaled, net.weight(5)))
    steps = net("Transpose", x, perm=[1, 0, 2])
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        w, r, b = net.weight(1, gates * 4, 5), net.weight(1, gates * 4, 4), net.weight(1, gates * 8)
        more = {"linear_before_reset": 1} if op == "GRU" else {}
        net.output(op, net.many(2, op, steps, w, r, b, hidden_size=4, **more)[0])
    image = net("Unsqueeze", x, np.array([1]))
    net.output("up", net("ConvTranspose", image, net.weight(1, 3, 3, 3), strides=[2, 2], group=1))
    return net.model()


def all_units(target_name: str) -> tuple[str, set[str]]:
    """The source of every distinct kernel of the twins and of the operators' cases, in one file; their families."""
    target, units, families = load_target(target_name), {}, set()
    precision = "bf16" if target_name == BF16_TARGET else "f32"
    own = (
        others(),
        nbits.products(),
        quantized_forms.forms().proto(),
        winograd.network(),
        strassen.network(),
        sizes.operators().model(),
        random.model(),
        gpt(),
    )
    more = (classical.model(), *map(trees.joined, trees.GROUPS.values()))
    areas = (*dtypes.models(), *sequence.models(), *vision.models())
    models = (*own, *more, *areas, *(t.build() for t in TWINS.values()), *(c.model() for c in CASES.values()))
    twins = (TWINS["resnet"].build(), TWINS["bert-dynamo"].build())
    piped = [(quantized.model(), None), *((model, observing_pipeline(target)) for model in twins)]
    for model, pipeline in (*((model, None) for model in models), *piped):
        program = prepare(model, target_name, precision=precision, pipeline=pipeline).program
        assert program is not None
        for step, calls in zip(program.steps, generate(program, target), strict=True):
            families |= {step.family} if isinstance(step, Kernel) else set()
            units.update({u.name: u.source.replace("KERNEL", u.name) for u in calls})
    lines = [source.splitlines() for source in units.values()]
    includes = dict.fromkeys(line for unit in lines for line in unit if line.startswith("#include"))
    body = [
        "\n".join([f"namespace unit{i} {{", *(line for line in unit if not line.startswith("#include")), "}"])
        for i, unit in enumerate(lines)
    ]
    return "\n".join([*includes, *body, ""]), families


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("gnu", "x86-64-avx512"),
        ("gnu", "x86-64"),
        ("gnu", BF16_TARGET),
        pytest.param("clang", "x86-64-avx512", marks=needs_zig),
        pytest.param("clang", BF16_TARGET, marks=needs_zig),
    ],
)
def test_every_kernel_compiles_without_a_warning(tmp_path: Path, kind: str, level: str) -> None:
    source, families = all_units(level)
    table = {f for entry in kernel_table().operators.values() for f in entry.families}
    if level == BF16_TARGET:
        assert families >= BF16
    else:
        assert table - families <= NEVER_CHOSEN | BF16 | (LARGE_TILES if level == "x86-64" else set()), (
            "add a model that has them to `others`"
        )
    (tmp_path / "kernels.cpp").write_text(source)
    (tmp_path / "runtime.cpp").write_text((CSRC / "runtime" / "runtime.cpp").read_text())
    command = ["g++"] if kind == "gnu" else ZIG.split()
    for name in ("kernels", "runtime"):
        flags = [*load_target(level).flags(kind), *STRICT, f"-I{CSRC}", "-c", f"{name}.cpp", "-o", f"{name}.o"]
        done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]


@needs_zig
@pytest.mark.parametrize("name", ["mlp-symbolic", "digits"])
def test_zig_makes_the_same_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CXX", ZIG)
    monkeypatch.setenv("PATH", str(tmp_path))  # no other compiler or linker is at hand
    model, sizes = TWINS[name].build(), TWINS[name].sizes[-1]
    with oc.compile(model, output=tmp_path / "a.opcel", fallback="error") as compiled:
        given = feeds(model, sizes)
        assert_same(compiled.run(given), reference(model, given))
    monkeypatch.undo()
    library = str(tmp_path / "a.opcel" / "model.so")
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split(".so")[0] for line in text.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc", "libm", "libpthread"}


@needs_zig
def test_zig_is_found_when_there_is_no_other_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_toolchain()
    assert found.zig and found.kind == "clang" and "ziglang" in found.command


@pytest.mark.parametrize("kind", ["gnu", pytest.param("clang", marks=needs_zig)])
def test_what_has_no_extensions_is_compiled_for_no_extensions(tmp_path: Path, kind: str) -> None:
    """The runtime and the host function run before the CPU is checked."""
    (tmp_path / "a.cpp").write_text("#ifdef __SSE3__\n#error extensions of this CPU\n#endif\n")
    command = ["g++"] if kind == "gnu" else ZIG.split()
    for name in list_targets():
        target = load_target(name)
        if target.isa is None or target.codegen != "cpu":
            continue
        base = base_flags(target.flags(kind))
        assert base, name
        if "x86" in name:
            flags = [*base, "-c", "a.cpp", "-o", "a.o"]
            done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (name, done.stderr)


@needs_zig
def test_both_compilers_compute_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TWINS["digits"].build()
    given = feeds(model, {"batch": 3})
    results = []
    for cxx in ("g++", ZIG):
        monkeypatch.setenv("CXX", cxx)
        with oc.compile(model, output=tmp_path / "a.opcel", proof=False) as compiled:
            results.append(compiled.run(given))
    for key, value in results[0].items():
        np.testing.assert_allclose(value, results[1][key], rtol=1e-5, atol=1e-6)
