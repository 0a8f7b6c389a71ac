"""Every mistake in a description is an error that names file, line and field; good descriptions are read exactly."""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from pathlib import Path

import pytest
import yaml

from opcel_compiler.errors import OpcelError
from opcel_compiler.targets import TargetError, load_target

GOOD = """\
id: chip
name: A chip
kind: npu
status: modelled
executes: interpreter
codegen: npu
pipeline: default
dtypes: [f32, i8]
vector: {width_f32: 8, registers: 16, alignment: 64 B, source: made up}
units:
  mac:
    kind: matrix
    count: 2
    clock: 1 GHz
    memory: local
    shape: [8, 8, 8]
    source: made up
    rates:
      i8: {dtype: i8, accumulate: i32, ops_per_cycle: 512, sparse_ops_per_cycle: 1024, source: made up}
memories:
  local: {parent: dram, size: 4 KiB, bandwidth: 100 GB/s, managed: software, alignment: 16 B, source: made up}
  dram: {size: 1 GiB, bandwidth: 8 GB/s, latency: 100 ns, managed: software, alignment: 64 B, source: made up}
kernels:
  gemm: {vectors: 2, rows: [6, 4, 1], source: made up}
limits: {max_rank: 6, static_shapes: true, source: made up}
claimed_peaks:
  i8: {dtype: i8, throughput: 1.03 Top/s, source: made up}
power: {load: 2 W, idle: 100 mW, source: made up}
price:
  cloud: {usd_per_hour: 1.5, provider: someone, region: somewhere, date: 2025-01-31, source: a list}
"""


def write(folder: Path, text: str, name: str = "chip") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def problem(path: Path) -> str:
    """The only problem of the description, without the file's folder."""
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert len(caught.value.problems) == 1, str(caught.value)
    assert str(caught.value) == str(caught.value.problems[0])
    return str(caught.value).replace(f"{path.parent}/", "")


def test_all_fields_are_read(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, GOOD))
    assert [m.name for m in target.memories] == ["dram", "local"]
    assert target.memory("local").size == 4096
    assert target.memory("dram").latency == pytest.approx(1e-7)
    assert target.unit("mac").shape == (8, 8, 8)
    assert target.peak("i8") == 1.024e12
    assert target.peak("i8", sparse=True) == 2.048e12
    assert target.peak("f32") == 0.0
    assert target.kernel("gemm") is not None and target.kernel("conv") is None
    assert target.limits.static_shapes is True
    assert target.power is not None and target.power.idle == pytest.approx(0.1)
    assert target.price[0].date == "2025-01-31"
    assert target.flags("gnu") == ()
    assert hash(target) == hash(dataclasses.replace(target))
    with pytest.raises(KeyError, match="'l7' is none of dram, local"):
        target.memory("l7")
    with pytest.raises(ValueError, match="no kind of compiler"):
        target.flags("msvc")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("static_shapes:", "static_shape:", "chip.yaml:25: limits.static_shape: is no field; did you mean 'static_sha"),
        ("kind: npu\n", "kind: toaster\n", "chip.yaml:3: kind: 'toaster' is none of cpu, gpu, npu"),
        ("count: 2", "count: -2", "chip.yaml:13: units.mac.count: -2 is not positive"),
        ("count: 2", "count: 0", "chip.yaml:13: units.mac.count: 0 is not positive"),
        ("count: 2", "count: 2.5", "chip.yaml:13: units.mac.count: 2.5 is not a whole number"),
        ("count: 2", "count: true", "chip.yaml:13: units.mac.count: True is not a number"),
        ("count: 2", f"count: {10**400}", "units.mac.count: 1000"),
        ("ops_per_cycle: 512", "ops_per_cycle: .nan", "units.mac.rates.i8.ops_per_cycle: nan is not a finite number"),
        ("ops_per_cycle: 512", "ops_per_cycle: .inf", "units.mac.rates.i8.ops_per_cycle: inf is not a finite number"),
        ("clock: 1 GHz", "clock: nan GHz", "chip.yaml:14: units.mac.clock: 'nan GHz' is not a finite number"),
        ("clock: 1 GHz", "clock: -5 GHz", "chip.yaml:14: units.mac.clock: '-5 GHz' is not positive"),
        ("clock: 1 GHz", "clock: 1e9", "chip.yaml:14: units.mac.clock: '1e9' is not a number and a unit; write a freq"),
        ("clock: 1 GHz", "clock: 7", "chip.yaml:14: units.mac.clock: 7 has no unit; write a frequency with its unit"),
        ("clock: 1 GHz", "clock: 1 GB", "chip.yaml:14: units.mac.clock: 'GB' is no unit of frequency; those are Hz"),
        ("clock: 1 GHz", "clock: one GHz", "chip.yaml:14: units.mac.clock: 'one' is not a number; write a frequency"),
        ("size: 4 KiB", "size: 4 kib", "chip.yaml:21: memories.local.size: 'kib' is no unit of size; those are B, KB"),
        ("size: 4 KiB", "size: 0.3 B", "memories.local.size: '0.3 B' is not a whole number of bytes"),
        ("size: 4 KiB", "size: 4100 B", "memories.local.size: 4100 bytes is no multiple of the alignment, 16"),
        ("100 GB/s", "1 GB/s", "memories.local.bandwidth: 1 GB/s is less than the 8 GB/s of its parent 'dram'"),
        ("parent: dram", "parent: hbm", "chip.yaml:21: memories.local.parent: 'hbm' is no memory; those are local, dr"),
        ("parent: dram, ", "", "chip.yaml:20: memories: one memory has no parent, the outermost; here it is local and"),
        ("memory: local", "memory: sram", "chip.yaml:15: units.mac.memory: 'sram' is no memory; those are local, dram"),
        ("    shape: [8, 8, 8]\n", "", "chip.yaml:11: units.mac: a matrix unit has a shape"),
        ("shape: [8, 8, 8]", "shape: [8, 8]", "chip.yaml:16: units.mac.shape: [8, 8] is not [m, n, k]"),
        ("shape: [8, 8, 8]", "shape: 8", "chip.yaml:16: units.mac.shape: is not a list"),
        ("shape: [8, 8, 8]", "shape: [8, [8], 8]", "units.mac.shape: is not a list of single values"),
        ("dtypes: [f32, i8]", "dtypes: [f32, int8]", "chip.yaml:8: dtypes: 'int8' is no element type; those are f64"),
        ("dtypes: [f32, i8]", "dtypes: [f32]", "units.mac.rates.i8: i8 is not among the target's dtypes"),
        ("sparse_ops_per_cycle: 1024", "sparse_ops_per_cycle: 4", "sparse_ops_per_cycle: 4 is less than the dense 512"),
        ("rows: [6, 4, 1]", "rows: [6, 4, 2]", "kernels.gemm.rows: [6, 4, 2] does not descend to 1"),
        ("rows: [6, 4, 1]", "rows: [14, 1]", "kernels.gemm: a tile of 14 rows x 2 vectors keeps 30 registers busy"),
        ("throughput: 1.03 Top/s", "throughput: 2.05 Top/s", "claimed_peaks.i8: 2050 Gop/s, but the units reach 1024"),
        ("idle: 100 mW", "idle: 3 W", "power.idle: 3.0 W is more than the 2.0 W under load"),
        ("2025-01-31", "soon", "price.cloud.date: 'soon' is not a date"),
        ("static_shapes: true", "static_shapes: maybe", "limits.static_shapes: 'maybe' is neither true nor false"),
        ("name: A chip", "name: 7", "chip.yaml:2: name: 7 is not a text"),
        ("name: A chip", "name:", "chip.yaml:2: name: has no value"),
        ("name: A chip", "name: [a, b]", "chip.yaml:2: name: is not a single value"),
        ("name: A chip\n", "", "chip.yaml:1: name: is missing"),
        ("limits: {max_rank: 6, static_shapes: true, source: made up}", "limits: 6",
         "chip.yaml:25: limits: is not a map"),
        ("i8: {dtype: i8, throughput: 1.03 Top/s, source: made up}", "- 7",
         "claimed_peaks: is not a mapping from names"),
        ("max_rank: 6, static_shapes: true, source: made up", "max_rank: 6", "chip.yaml:25: limits.source: is missing"),
        ("executes: interpreter", "executes: native", "isa: is missing, and a target that executes native code"),
        ("id: chip", "id: chop", "chip.yaml:1: id: 'chop' is not the file's name, 'chip'"),
        ("name: A chip", "name: A chip\nid: chip", "chip.yaml:3: id: is given twice, first at line 1"),
        ("name: A chip", "name: [", "chip.yaml:4: is not a description in YAML"),
        ("name: A chip", "name: *other", "chip.yaml:2: is not a description in YAML: aliases are not allowed"),
        ("name: A chip", "name: !!python/name:os.system x", "chip.yaml:2: name: 'x' cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    assert message in problem(write(tmp_path, GOOD.replace(old, new, 1)))


def test_alignment_is_a_power_of_two(tmp_path: Path) -> None:
    text = GOOD.replace("size: 4 KiB", "size: 48 B").replace("alignment: 16 B", "alignment: 24 B")
    assert "memories.local.alignment: 24 bytes is not a power of two" in problem(write(tmp_path, text))


def test_memories_in_a_circle(tmp_path: Path) -> None:
    text = GOOD.replace("dram: {size", "dram: {parent: local, size")
    with pytest.raises(TargetError, match="'dram' is filled from itself"):
        load_target(write(tmp_path, text))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("count: 2", "count: 0").replace("4 KiB", "4").replace("kind: npu", "kynd: npu")
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, text))
    found = {p.field: p.line for p in caught.value.problems}
    assert found == {"units.mac.count": 13, "memories.local.size": 21, "kynd": 3, "kind": 1}
    assert isinstance(caught.value, OpcelError) and caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "chip.yaml:1: is not a mapping"),
        (b"- 1\n", "chip.yaml:1: is not a mapping"),
        (b"id: chip\nname: \xff\n", "chip.yaml:2: is not UTF-8"),
        (b"id: \x00\n", "chip.yaml:1: is not YAML"),
        (b"[" * 100_000, "chip.yaml:1: is nested too deeply"),
        (b"#" * (1 << 20) + b"\n", "chip.yaml:1: has 1048577 bytes; a description has at most 1048576"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_description(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "chip.yaml"
    path.write_bytes(content)
    assert message in problem(path)


def test_unknown_names() -> None:
    with pytest.raises(TargetError, match=r"no target 'x86-64-avx51'; did you mean 'x86-64-avx512'\?; there are host"):
        load_target("x86-64-avx51")
    with pytest.raises(TargetError, match="no target '\\*'"):
        load_target("*")
    with pytest.raises(TargetError, match=r"cannot read the target description .*nowhere/chip.yaml: No such file"):
        load_target("nowhere/chip.yaml")


def test_extends_merges_removes_and_replaces(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    child = write(tmp_path, """\
        extends: chip
        id: child
        power: null
        memories:
          local: {size: 8 KiB}
          scratch: {parent: local, size: 1 KiB, bandwidth: 1 TB/s, managed: software, alignment: 16 B, source: made up}
        dtypes: [i8]
        """, "child")  # fmt: skip
    target = load_target(child)
    assert [m.name for m in target.memories] == ["dram", "local", "scratch"]
    assert target.memory("local").size == 8192 and target.memory("local").bandwidth == 100e9
    assert target.dtypes == ("i8",) and target.power is None and target.name == "A chip"


def test_a_mistake_in_the_parent_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("count: 2", "count: 0"))
    child = write(tmp_path, "extends: chip\nid: child\n", "child")
    assert problem(child) == "chip.yaml:13: units.mac.count: 0 is not positive"


def test_extends_a_built_in_target(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, "extends: x86-64-avx512\nid: chip\nmemories: {l2: {size: 2 MiB}}\n"))
    assert target.memory("l2").size == 2 << 20
    assert target.flags("gnu") == load_target("x86-64-avx512").flags("gnu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: chip\n", "chip.yaml:1: extends: goes in a circle: chip extends chip"),
        ("id: chip\nextends: other\n", "chip.yaml:2: extends: goes in a circle: chip extends other extends chip"),
        ("extends: othr\n", "chip.yaml:1: extends: no target 'othr'; did you mean 'other'?"),
        ("extends: [other]\n", "chip.yaml:1: extends: is not the name of one target"),
    ],
)
def test_extends_mistakes(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "extends: chip\n", "other")
    path = write(tmp_path, text)
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert message in str(caught.value).replace(f"{tmp_path}/", "") or "other.yaml:1" in str(caught.value)


def test_any_one_change_loads_or_is_a_target_error(tmp_path: Path) -> None:
    changes, good = 0, yaml.safe_load(GOOD)
    for at in _paths(good):
        for change in ("drop", "rename", -1, [], {}, ".nan"):
            tree = copy.deepcopy(good)
            parent = tree
            for key in at[:-1]:
                parent = parent[key]
            if change == "drop":
                del parent[at[-1]]
            elif change == "rename":
                parent[f"{at[-1]}_"] = parent.pop(at[-1])
            else:
                parent[at[-1]] = change
            changes += 1
            try:
                load_target(write(tmp_path, yaml.safe_dump(tree)))
            except TargetError as error:
                assert error.problems and all(p.line >= 1 and p.message for p in error.problems)
    assert changes > 200


def _paths(tree: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, dict):
        return []
    return [p for key, value in tree.items() for p in ((*prefix, key), *_paths(value, (*prefix, key)))]
