"""`opcel info`: facts of an artifact, a model or a target."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import CommandError, UsageError, bytes_text, value_text, write_rows

if TYPE_CHECKING:
    from opcel_compiler.targets import Target

NAME = "info"
SUMMARY = "show facts of an artifact, a model or a target"
DESCRIPTION = """\
Shows facts of an artifact (without loading its code), of an ONNX model, of a graph as text, or of a target."""

Rows = Iterator[tuple[str, str]]


def configure(parser: argparse.ArgumentParser) -> None:
    what = "an artifact's folder, an ONNX file, a graph as text, or a target's name or description (.yaml)"
    parser.add_argument("subject", metavar="ARTIFACT|MODEL|TARGET", nargs="?", help=what)
    parser.add_argument("--targets", action="store_true", help="list the targets")
    parser.add_argument("--verify", action="store_true", help="compare every file of an artifact with its hash")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write an artifact's report as one HTML page")
    what = "with --html: what `opcel bench --profile --json` printed, for the measured times"
    parser.add_argument("--profile", type=Path, metavar="FILE", help=what)
    options.add_json(parser, "the facts")


def execute(args: argparse.Namespace) -> int:
    if args.targets == (args.subject is not None):
        raise UsageError("name one artifact, model or target, or use --targets")
    if args.verify:
        from opcel_compiler.runtime import verify

        verify(args.subject or "")
    if args.profile and not args.html:
        raise UsageError("--profile goes with --html")
    facts, rows = _targets() if args.targets else _facts(args.subject)
    if args.html:
        _write_page(facts, args.html, args.profile)
        return 0
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        write_rows(rows)
    return 0


def _write_page(facts: Any, output: Path, profile: Path | None) -> None:
    from opcel_compiler.codegen.artifact import write_page
    from opcel_compiler.report.html import page

    if not isinstance(facts, dict) or facts["kind"] != "artifact":
        raise CommandError("--html needs a compiled model: only a compile has a report")
    try:
        steps = json.loads(profile.read_text(encoding="utf-8"))["steps"] if profile else ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        way_out = "write one with `opcel bench --profile --json`"
        raise CommandError(f"{profile} holds no profile ({error}); {way_out}") from error
    try:
        text = page(facts["report"], facts["manifest"], steps)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise CommandError(f"{facts['path']} has no whole report, or the profile is another's: {error}") from error
    write_page(output, text)


def _facts(subject: str) -> tuple[Any, Rows]:
    from opcel_compiler.targets import list_targets, load_target

    path = Path(subject)
    if subject in ("host", *list_targets()) or path.suffix in (".yaml", ".yml"):
        target = load_target(subject)
        return _target_facts(target), _target_rows(target)
    if path.is_dir():
        artifact = _artifact(path)
        return artifact, _artifact_rows(artifact)
    if path.exists():
        model = _model(path)
        return model, _model_rows(model)
    known = ", ".join(("host", *list_targets()))
    raise CommandError(f"{subject} is no file, no artifact and no target; the targets are {known}")


def _listed(label: str, texts: Iterator[str]) -> Rows:
    for i, text in enumerate(texts):
        yield "" if i else label, text


# -- artifacts ---------------------------------------------------------------------------------------------------------


def _artifact(path: Path) -> dict[str, Any]:
    from opcel_compiler.codegen.artifact import REPORT
    from opcel_compiler.runtime import ArtifactError, read_manifest

    manifest = read_manifest(path)
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: cannot read {REPORT}: {error}") from error
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return {"kind": "artifact", "path": str(path), "bytes": size, "manifest": manifest, "report": report}


def _artifact_rows(facts: dict[str, Any]) -> Rows:
    from opcel_compiler.cli.compile import report_rows

    manifest, report = facts["manifest"], facts["report"]
    try:
        target = manifest["target"]
        yield "artifact", f"{facts['path']}, {bytes_text(facts['bytes'])}"
        yield "model", f"{manifest['name']}, SHA-256 {manifest['model_sha256']}"
        yield "compiled", f"by opcel {manifest['opcel']} for {target['name']} ({target['id']})"
        yield "needs", ", ".join(target["features"]) or "no CPU feature beyond the baseline"
        yield from _listed("inputs", map(value_text, manifest["inputs"]))
        yield from _listed("outputs", map(value_text, manifest["outputs"]))
        yield from _listed("modules", (f"{m['file']} ({m['kind']})" for m in manifest["modules"]))
        yield "kernels", str(len(report["kernels"]))
        yield from report_rows(report)
        yield "pipeline", manifest["pipeline"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{facts['path']} is damaged: its manifest or report is not whole ({error})") from error


# -- models ------------------------------------------------------------------------------------------------------------


def _model(path: Path) -> dict[str, Any]:
    from collections import Counter

    from opcel_compiler.cli.source import read_source
    from opcel_compiler.ir.graph import Graph, Value
    from opcel_compiler.ir.types import TensorType

    def value(v: Value, name: str) -> dict[str, Any]:
        t = v.type
        if not isinstance(t, TensorType):
            return {"name": name, "dtype": str(t), "shape": None}
        shape = None if t.shape is None else [d if isinstance(d, int) else str(d) for d in t.shape]
        return {"name": name, "dtype": str(t.dtype), "shape": shape}

    source = read_source(path)
    graph, imported = source.subject, source.imported
    if not isinstance(graph, Graph):
        raise CommandError(f"{path} is a Program; see it with `opcel opt {path}`")
    nodes = [n for n in graph.walk() if n.op != "constant"]
    constants = [n.result.constant for n in graph.walk() if n.op == "constant"]
    return {
        "kind": "model", "path": str(path), "bytes": path.stat().st_size, "name": graph.name,
        "producer": imported.producer if imported else "", "opsets": dict(imported.opsets) if imported else {},
        "symbols": dict(imported.symbols) if imported else {},
        "inputs": [value(v, n) for v, n in zip(graph.inputs, source.input_names, strict=True)],
        "outputs": [value(v, n) for v, n in zip(graph.outputs, graph.output_names, strict=True)],
        "nodes": len(nodes), "parameters": sum(c.array.size for c in constants if c is not None),
        "operators": dict(Counter(n.op for n in nodes).most_common()),
        "foreign": [
            {"op": f"{n.attrs['domain'] or 'ai.onnx'}.{n.attrs['op_type']}", "origin": list(n.origin),
             "reason": str(n.attrs.get("reason", ""))}
            for n in nodes if n.op == "foreign"
        ],
    }  # fmt: skip


def _model_rows(facts: dict[str, Any]) -> Rows:
    yield "model", f"{facts['name']} ({facts['path']}, {bytes_text(facts['bytes'])})"
    if facts["opsets"]:
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts["opsets"].items())
        yield "opsets", opsets + (f", written by {facts['producer']}" if facts["producer"] else "")
    yield from _listed("inputs", map(value_text, facts["inputs"]))
    yield from _listed("outputs", map(value_text, facts["outputs"]))
    renamed = (f"{name} is {original!r} in the file" for name, original in facts["symbols"].items() if original != name)
    yield from _listed("symbols", renamed)
    yield "parameters", f"{facts['parameters']:,}"
    yield "nodes", f"{facts['nodes']} after import: " + ", ".join(f"{o} {n}" for o, n in facts["operators"].items())
    foreign = (f"{f['op']} ({', '.join(f['origin'][:3]) or 'unnamed'}): {f['reason']}" for f in facts["foreign"])
    yield from _listed("foreign", foreign if facts["foreign"] else iter(["none: every operator is known"]))


# -- targets -----------------------------------------------------------------------------------------------------------


def _target_facts(target: Target) -> dict[str, Any]:
    from opcel_compiler.targets.host import missing_features

    return {"kind": "target", "target": dataclasses.asdict(target), "missing_here": list(missing_features(target))}


def _target_rows(target: Target) -> Rows:
    facts = _target_facts(target)
    yield "target", f"{target.id}: {target.name} ({target.kind}, {target.status})"
    if target.executes == "native":
        missing = ", ".join(facts["missing_here"])
        yield "runs here", f"no, this CPU lacks {missing}" if missing else "yes"
    else:
        yield "runs here", "in the interpreter only"
    if target.isa:
        yield "needs", ", ".join(target.isa.features) or "no CPU feature beyond the baseline"
    if target.vector:
        yield "vectors", f"{target.vector.registers} registers of {target.vector.width_f32} f32"
    units = (
        f"{unit.count} {unit.name} at {unit.clock / 1e9:g} GHz: "
        + ", ".join(f"{rate.name} {rate.ops_per_cycle:g} ops/cycle" for rate in unit.rates)
        for unit in target.units
    )
    yield from _listed("units", units)
    levels = (f"{m.name} {bytes_text(m.size)}, {m.bandwidth / 1e9:g} GB/s, {m.managed}" for m in target.memories)
    yield from _listed("memories", levels)
    yield "dtypes", ", ".join(target.dtypes)
    yield "pipeline", target.pipeline


def _targets() -> tuple[Any, Rows]:
    from opcel_compiler.targets import TargetError, list_targets, load_target

    targets = [load_target(name) for name in list_targets()]
    try:
        host = load_target("host").id
    except TargetError:
        host = ""
    facts = [{"id": t.id, "name": t.name, "kind": t.kind, "status": t.status, "host": t.id == host} for t in targets]
    width = max(len(t.id) for t in targets) + 2
    rows = ((f"{t.id:<{width}}", t.name + (" (host)" if t.id == host else "")) for t in targets)
    return {"kind": "targets", "targets": facts}, rows
