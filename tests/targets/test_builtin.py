"""What the built-in descriptions say, and which one a machine gets."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opcel_compiler.targets import TargetError, list_targets, load_target
from opcel_compiler.targets.host import cpu_features, cpu_levels, host_target, missing_features

LEVELS = ["plain", "avx2", "avx512", "avx512-vnni-bf16"]
AVX2 = frozenset("sse2 avx avx2 fma bmi2 f16c".split())
AVX512 = AVX2 | frozenset("avx512f avx512bw avx512dq avx512vl avx512cd".split())
ALL = AVX512 | {"avx512_vnni", "avx512_bf16"}
MACROS = {4: [], 8: ["__AVX2__", "__FMA__"], 16: ["__AVX512F__", "__AVX512VL__", "__AVX512DQ__", "__FMA__"]}


def host(features: frozenset[str], machine: str = "x86_64", **environment: str) -> str:
    target = host_target(features, environment, machine)
    assert target.isa is not None
    return target.isa.level


def test_levels_in_order() -> None:
    assert [target.isa.level for target in cpu_levels() if target.isa] == LEVELS
    assert [target.vector.width_f32 for target in cpu_levels() if target.vector] == [4, 8, 16, 16]
    assert [target.vector.registers for target in cpu_levels() if target.vector] == [16, 16, 32, 32]


def test_every_listed_target_loads() -> None:
    assert {"null", "x86-64", "x86-64-avx512"} <= set(list_targets())
    for name in list_targets():
        target = load_target(name)
        assert target.id == name
        if target.isa is None:
            assert target.executes == "interpreter"


@pytest.mark.parametrize(
    ("features", "level"),
    [(frozenset({"sse2"}), "plain"), (AVX2, "avx2"), (AVX512, "avx512"), (ALL, "avx512-vnni-bf16"),
     (ALL - {"avx512_bf16"}, "avx512"), (ALL - {"fma"}, "plain"), (AVX512 - {"avx512dq"}, "avx2")],
)  # fmt: skip
def test_host_is_the_best_level_that_runs(features: frozenset[str], level: str) -> None:
    assert host(features) == level


def test_forced_level() -> None:
    assert host(ALL, OPCEL_ISA="avx2") == "avx2"
    assert host(ALL, OPCEL_ISA="") == "avx512-vnni-bf16"
    with pytest.raises(TargetError, match=f"OPCEL_ISA=sse9 is no level; those are {', '.join(LEVELS)}"):
        host(ALL, OPCEL_ISA="sse9")
    with pytest.raises(TargetError, match=r"OPCEL_ISA=avx512 needs avx512f, .* lacks; .* name the target x86-"):
        host(AVX2, OPCEL_ISA="avx512")


def test_a_machine_without_a_description() -> None:
    with pytest.raises(TargetError, match="no target describes this machine, riscv64; name one of "):
        host(frozenset(), machine="riscv64")


def test_features_of_a_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: flags\nflags\t\t: sse2 avx  avx2\n\nprocessor\t: 1\nflags\t: x\n")
    assert cpu_features(cpuinfo) == {"sse2", "avx", "avx2"}
    assert cpu_features(tmp_path / "none") == frozenset()
    assert missing_features(load_target("x86-64-avx2"), cpu_features(cpuinfo)) == ("fma", "bmi2", "f16c")
    assert missing_features(load_target("null"), frozenset()) == ()


def test_host_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPCEL_ISA", raising=False)
    target = load_target("host")
    assert missing_features(target) == ()
    monkeypatch.setenv("OPCEL_ISA", "plain")
    assert load_target("host").id == "x86-64"


@pytest.mark.parametrize("name", [target.id for target in cpu_levels()])
def test_gnu_flags_allow_exactly_the_level(name: str) -> None:
    assert shutil.which("g++"), "the tests need g++"
    check_flags(name, "gnu", ["g++"])


@pytest.mark.parametrize("name", [target.id for target in cpu_levels()])
def test_clang_flags_allow_exactly_the_level(name: str) -> None:
    pytest.importorskip("ziglang")
    check_flags(name, "clang", [sys.executable, "-m", "ziglang", "c++"])


def check_flags(name: str, kind: str, compiler: list[str]) -> None:
    target = load_target(name)
    assert target.vector is not None and target.isa is not None
    command = [*compiler, *target.flags(kind), "-x", "c++", "-dM", "-E", "/dev/null"]
    macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    defined = {line.split()[1] for line in macros.splitlines() if line}
    assert set(MACROS[target.vector.width_f32]) <= defined
    assert ("__AVX2__" in defined) == (target.vector.width_f32 >= 8)
    assert ("__AVX512F__" in defined) == (target.vector.width_f32 == 16)
    assert ("__AVX512VNNI__" in defined) == ("avx512_vnni" in target.isa.features)
    assert ("__AVX512BF16__" in defined) == ("avx512_bf16" in target.isa.features)
