"""Rows of the conformance run, on disk and as tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.conformance.cases import KINDS, group_of
from benchmarks.conformance.engines import ENGINES, Verdict

STATUSES = ("native", "folded", "fallback", "refused", "wrong")
TITLES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "onnx": "onnx"}
COLUMNS = ("case", "kind", "operator", *ENGINES, "why")
WHY = 240
"""Characters of a reason that are kept."""


@dataclass
class Row:
    """One case, and what became of it in each engine."""

    case: str
    kind: str
    operator: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return self.verdicts["opcel"].status

    @property
    def why(self) -> str:
        return self.verdicts["opcel"].why


def _versions() -> dict[str, str]:
    """Those of the packages that are installed."""
    out = {}
    for name, package in PACKAGES.items():
        with suppress(PackageNotFoundError):
            out[name] = version(package)
    return out


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One line a case: case, kind, operator, the status of each engine or "", and OPCEL's reason."""
    lines = []
    for row in rows:
        known = [row.verdicts[e].status if e in row.verdicts else "" for e in ENGINES]
        why = row.verdicts["opcel"].why[:WHY] if "opcel" in row.verdicts else ""
        lines.append(json.dumps([row.case, row.kind, row.operator, *known, why], ensure_ascii=False))
    head = _versions()
    text = f'{{"versions": {json.dumps(head)},\n"columns": {json.dumps(COLUMNS)},\n"rows": [\n'
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + ",\n".join(lines) + "\n]}\n")
    temporary.replace(path)


def read_rows(path: Path) -> dict[str, Row]:
    out = {}
    for case, kind, operator, *known, why in json.loads(path.read_text())["rows"]:
        verdicts = {e: Verdict(s, why if e == "opcel" else "") for e, s in zip(ENGINES, known, strict=True) if s}
        out[case] = Row(case, kind, operator, verdicts)
    return out


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows have each status of OPCEL, and how many each other engine passes."""
    ours = Counter(r.status for r in rows if "opcel" in r.verdicts)
    out = {status: ours[status] for status in STATUSES}
    for engine in TITLES:
        known = [r.verdicts[engine].status for r in rows if engine in r.verdicts]
        if known:
            out[TITLES[engine]] = known.count("pass")
    return out


def _table(title: str, groups: Iterable[tuple[str, Sequence[Row]]]) -> list[str]:
    filled = [(name, rows, _counts(rows)) for name, rows in groups if rows]
    heads = [h for h in (*STATUSES, *TITLES.values()) if any(h in counts for _, _, counts in filled)]
    lines = [f"| {title} | cases | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 2)}"]
    for name, rows, counts in filled:
        lines.append(f"| {name} | {len(rows)} | {' | '.join(str(counts.get(h, '')) for h in heads)} |")
    return lines


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items())


def totals_text(rows: Sequence[Row]) -> str:
    """The table of kinds, and the sum."""
    kinds = [(kind, [r for r in rows if r.kind == kind]) for kind in KINDS]
    return "\n".join(_table("kind", [*kinds, ("all", rows)]))


def _reason(row: Row) -> str:
    """The reason without what is particular to one case, so that equal causes count as one."""
    why = re.sub(r"^[^:]*: ", "", row.why, count=1) if row.status == "refused" else row.why
    why = why.partition(";")[0]
    return re.sub(r"'[^']*'|%[\w.]+|\[[^\]]*\]", "…", why)[:160].replace("|", "\\|")


def _reasons(rows: Sequence[Row], status: str) -> list[str]:
    found: dict[str, Counter[str]] = {}
    for row in rows:
        if "opcel" in row.verdicts and row.status == status:
            found.setdefault(_reason(row), Counter())[row.operator] += 1
    lines = ["| cases | reason | operators |", "|---|---|---|"]
    for reason, ops in sorted(found.items(), key=lambda item: -item[1].total()):
        shown = ", ".join(op for op, _ in ops.most_common(6)) + (" …" if len(ops) > 6 else "")
        lines.append(f"| {ops.total()} | {reason} | {shown} |")
    return lines if found else ["None."]


def markdown(rows: Sequence[Row]) -> str:
    """The page docs/conformance.md."""
    rows = [r for r in rows if r.verdicts]
    versions = _versions()
    named = ", ".join(f"{TITLES[e]} {versions.get(e, '')}" for e in TITLES if any(e in r.verdicts for r in rows))
    partly = [(op, found) for op, found in _by(rows, lambda r: r.operator) if _counts(found)["native"] < len(found)]
    return "\n".join([
        "# Conformance",
        "",
        f"The backend test suite of onnx {versions['onnx']}, on the suite's own data and within its own tolerances"
        + (f", beside {named} in the same run" if named else "") + ".",
        "Written by `python -m benchmarks.conformance --engines opcel,ort,openvino --json "
        "benchmarks/results/conformance.json --markdown docs/conformance.md`.",
        "",
        "- **native**: right, by generated code alone: no region in ONNX Runtime, and the tested operator was computed",
        "  when the model ran. Operators that read no element of an input (Constant, Shape, EyeLike ...) are known",
        "  when the model is compiled, and count as native.",
        "- **folded**: right, but no input is read although the operator would read one.",
        "- **fallback**: right, with at least one node in ONNX Runtime.",
        "- **refused**: an error says why. **wrong**: other values, a crash, or no end in sight.",
        "",
        "Random operators are judged by types, shapes and what their distribution allows. Engines that take only types",
        "that NumPy has are given the others through exact casts.",
        "",
        totals_text(rows),
        "",
        "## By group of operators",
        "",
        *_table("group", _by(rows, lambda r: group_of(r.operator))),
        "",
        "## What is judged by exact values",
        "",
        "Within the tolerance of float64, where the suite's own values are not.",
        "",
        *_reasons([r for r in rows if r.why], "native"),
        "",
        "## What falls back",
        "",
        *_reasons(rows, "fallback"),
        "",
        "## What is refused",
        "",
        *_reasons(rows, "refused"),
        "",
        "## What is wrong",
        "",
        *_reasons(rows, "wrong"),
        "",
        "## Operators that are not native in every case",
        "",
        *_table("operator", partly),
        "",
    ])  # fmt: skip
