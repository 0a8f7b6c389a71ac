"""The report of a compile as one HTML page: no script, nothing from outside, the same bytes for the same report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opcel_compiler.cli.console import bytes_text, count_text, seconds_text, value_text
from opcel_compiler.report.escape import escaped, shortened
from opcel_compiler.report.picture import joined, svg
from opcel_compiler.report.style import CSS

NAMES = 3
"""So many ONNX nodes are named in a row; the rest are counted."""
LONGEST = 90

Row = Sequence[str]
"""Cells of a table, as HTML."""


def page(report: Mapping[str, Any], manifest: Mapping[str, Any], steps: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of an artifact's `report` and `manifest`. `steps`: what `opcel bench --profile --json` measured, for
    each kernel and region one.

    Raises KeyError, TypeError, IndexError or ValueError when a report is not whole.
    """
    name, target = str(report["model"]["name"]) or "model", report["target"]
    body = [
        f"<header><h1>{escaped(name)}</h1><p>compiled for {escaped(target['name'])} ({escaped(target['id'])})"
        f" by opcel {escaped(manifest['opcel'])}</p></header><main>",
        _summary(report),
        _fallback(report),
        _interface(report, manifest),
        _quantization(report),
        _pictures(report),
        _kernels(report, steps),
        _passes(report),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(name)} – opcel report</title><style>{CSS}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


# -- parts -------------------------------------------------------------------------------------------------------------


def _summary(report: Mapping[str, Any]) -> str:
    coverage, memory, proof = report["coverage"], report["memory"], report["proof"]
    outside = int(coverage["fallback_nodes"])
    native, share = f"{coverage['native_nodes']} native", f"{coverage['share']:.1%} of the work is native"
    cards = [
        (
            "Proof", "good" if proof["status"] == "proved" else "bad", str(proof["status"]),
            _errors(proof) if proof["status"] == "proved" else str(proof.get("reason") or ""),
        ),
        (
            "Nodes", "bad" if outside else "good", f"{outside} fell back" if outside else "all native",
            f"{native}, {outside} in ONNX Runtime; {share}" if outside else native,
        ),
        ("Modelled time", "", seconds_text(sum(k["seconds_modelled"] for k in report["kernels"])), _bounds(report)),
        (
            "Memory", "", bytes_text(memory["weights_bytes"]) + " weights",
            ("an arena that depends on the shapes" if memory["arena_bytes"] is None
             else f"{bytes_text(memory['arena_bytes'])} arena"),
        ),
        (
            "Model", "", f"{count_text(report['model']['parameters'])} parameters",
            f"{report['model']['nodes']} nodes after import, {len(report['kernels'])} kernels",
        ),
    ]  # fmt: skip
    return '<section class="cards" aria-label="Summary">' + "".join(
        f'<div class="card {tone}"><h2>{title}</h2><p class="big">{escaped(big)}</p><p>{escaped(small)}</p></div>'
        for title, tone, big, small in cards
    ) + "</section>"  # fmt: skip


def _errors(proof: Mapping[str, Any]) -> str:
    worst = max((o["max_abs"] for o in proof["outputs"]), default=0.0)
    norm = max((o["relative_l2"] for o in proof["outputs"]), default=0.0)
    return f"against {proof['reference']}: largest error {worst:.2g}, relative L2 {norm:.2g} (bound: {proof['bound']})"


def _bounds(report: Mapping[str, Any]) -> str:
    """Where the modelled time goes, the largest part first."""
    shares: dict[str, float] = {}
    for kernel in report["kernels"]:
        shares[kernel["bound_by"]] = shares.get(kernel["bound_by"], 0.0) + kernel["seconds_modelled"]
    total = sum(shares.values())
    parts = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    limits = ", ".join(f"{share / total:.0%} {_limit(by)}" for by, share in parts if total and share / total >= 0.005)
    return f"kernels alone, by the roofline of the target's description: {limits}" if limits else "nothing to compute"


def _limit(by: str) -> str:
    return "limited by arithmetic" if by == "compute" else f"limited by {by}"


def _fallback(report: Mapping[str, Any]) -> str:
    entries = report["fallback"]
    if not entries:
        return _section("What fell back", "<p>Nothing: every node runs natively.</p>")
    rows = (
        [
            escaped(", ".join(e.get("operators") or [e["op"]])), _origin(e["origin"]), escaped(e["reason"]),
            _number(count_text(e["macs"])),
        ]
        for e in entries
    )  # fmt: skip
    count = len(entries)
    text = f"<p>{count} node{'s run' if count > 1 else ' runs'} in ONNX Runtime.</p>"
    return _section("What fell back", text + _table("Fallback", ("Operator", "Nodes", "Why", "#Multiply-adds"), rows))


def _interface(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    rows = [[side, _name(value_text(v))] for side in ("inputs", "outputs") for v in manifest[side]]
    rows = [[side[:-1], text] for side, text in rows]
    table = _table("Inputs and outputs", ("", "Name, type and shape"), rows)
    return _section("Inputs and outputs", f'<div class="few">{table}</div>')


def _quantization(report: Mapping[str, Any]) -> str:
    found = report.get("quantization", {})
    if "rows" not in found:
        return ""
    rows = [
        [
            _origin(r["origin"]), escaped(r["scheme"]), escaped(r["kernel"] + (", integers" if r["integers"] else "")),
            _number(f"{r['low']:.4g} to {r['high']:.4g}" if "low" in r else ""),
            _number(f"{r['sqnr_db']:.1f}" if r.get("sqnr_db") is not None else ""),
            _number(f"{r['kl']:.2g}" if "kl" in r else ""),
            _number(seconds_text(r["seconds_float_modelled"])), _number(seconds_text(r["seconds_modelled"])),
            escaped(r["reason"]),
        ]
        for r in found["rows"]
    ]  # fmt: skip
    got = found["accuracy"]
    text = f"<p>{found['quantized']} of {found['layers']} layers, {found['macs_share']:.1%} of the multiply-adds."
    if got:
        text += (
            f" On {got['samples']} samples: {got['sqnr_db']:.1f} dB of signal to noise, relative L2 "
            f"{got['relative_l2']:.2g}, KL {got['kl']:.2g}, {got['top1_agreement']:.1%} the same first choice."
        )
    text += "</p>" + "".join(f"<p>{escaped(w)}</p>" for w in found["warnings"])
    heads = ("Nodes", "Scheme", "Kernel", "#Range read", "#SQNR, dB", "#KL", "#In f32", "#As it is", "Why it is float")
    return _section("Quantization", text + _table("Quantized layers", heads, rows))


def _pictures(report: Mapping[str, Any]) -> str:
    out = []
    for key, title, what in (
        ("before", "Before: the model", "operators after import"),
        ("after", "After: the program", "kernels, each with the operators it computes"),
    ):
        sketch = report["graphs"][key]
        drawn, left = joined(sketch)
        count = len(sketch["nodes"])
        remark = f"{count} boxes, {what}"
        if drawn is not sketch:
            remark += f"; chains are joined, {len(drawn['nodes'])} boxes are drawn"
        if left:
            remark += f", {left} that follow are left out"
        picture = svg(drawn, f"{title}, {count} boxes; the table of kernels says the same in words")
        out.append(
            f'<details open><summary>{title} <span class="n">({remark})</span></summary>'
            f'<div class="scroll graph" tabindex="0" role="region" aria-label="{title}"><div>{picture}</div></div>'
            "</details>"
        )
    legend = "".join(
        f'<li class="{kind}">{kind}</li>'
        for kind in ("contraction", "row", "reduction", "elementwise", "movement", "fallback")
    )
    remark = "Dashed ends are arrows too long to draw. Boxes show more when pointed at."
    pictures = f'<ul class="legend">{legend}</ul><p class="n">{remark}</p><div class="pair">{"".join(out)}</div>'
    return _section("Graph", pictures)


def _kernels(report: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    entries = [*report["kernels"], *({**r, "family": "onnxruntime"} for r in report["regions"])]
    entries.sort(key=lambda e: int(e["step"]))
    if steps and len(steps) != len(entries):
        raise ValueError(f"{len(steps)} measured steps for {len(entries)} kernels and regions")
    total = max((float(k.get("seconds_modelled", 0.0)) for k in entries), default=0.0)
    measured = max((float(s["seconds"]) for s in steps), default=0.0)
    heads = ["#Step", "Kernel", "From the nodes", "#FLOPs", "#Bytes", "#Bound", "By"]
    rows = []
    for i, e in enumerate(entries):
        seconds = e.get("seconds_modelled")
        cells = [
            _number(str(e["step"])), escaped(e["family"]), _origin(e["origin"]), _count(e.get("flops")),
            _count(e.get("bytes")), _time(seconds, total), escaped(e.get("bound_by", "")),
        ]  # fmt: skip
        if steps:
            share = f"{seconds / steps[i]['seconds']:.0%}" if seconds and steps[i]["seconds"] else ""
            cells += [_time(float(steps[i]["seconds"]), measured), _number(share)]
        rows.append(cells)
    if steps:
        heads += ["#Measured", "#Of bound"]
    text = (
        "<p>In the order they run. The bound is the longer of arithmetic and memory traffic at the rates that the "
        "target's description states, which a faster machine of its kind may beat; symbolic sizes count with nominal "
        "values. A multiply-add is two FLOPs.</p>"
    )
    if not steps:
        text += "<p>Times are measured by <code>opcel bench --profile --json</code>; give its output to "
        text += "<code>opcel info --html OUT --profile FILE</code>.</p>"
    return _section(f"Kernels ({len(entries)})", text + _table("Kernels", heads, rows))


def _passes(report: Mapping[str, Any]) -> str:
    changes: dict[str, list[Mapping[str, Any]]] = {}
    for entry in report["passes"]:
        changes.setdefault(str(entry["name"]), []).append(entry)
    rows = []
    for name, entries in changes.items():
        for i, e in enumerate(entries):
            rows.append([escaped(name) if not i else "", escaped(e["rule"]), _number(str(e["changes"]))])
    text = f"<p>In the order of the pipeline: <code>{escaped(report['pipeline']).replace(',', ',<wbr>')}</code></p>"
    text += "<p>Passes that changed nothing are not listed; the seconds of each are in <code>build.json</code>.</p>"
    if not rows:
        return _section("Passes", text + "<p>No pass changed anything.</p>")
    return _section("Passes", text + _table("Passes", ("Pass", "Rule", "#Changes"), rows))


# -- HTML --------------------------------------------------------------------------------------------------------------


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{content}</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Row]) -> str:
    """A table that scrolls by itself; a head that begins with # stands over numbers."""
    top = "".join(
        f'<th scope="col"{" class=r" if h.startswith("#") else ""}>{escaped(h.removeprefix("#"))}</th>' for h in heads
    )
    cells = ("".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
        f'<caption class="hidden">{escaped(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(text: str) -> str:
    return f"<td class=r>{escaped(text)}</td>"


def _count(value: int | str | None) -> str:
    """A count, or the expression that it is in symbols."""
    if value is None:
        return "<td></td>"
    if isinstance(value, int):
        return _number(count_text(value))
    return f'<td class="r n" title="{escaped(shortened(value, 300))}">{escaped(shortened(value, 24))}</td>'


def _time(seconds: float | None, most: float) -> str:
    """A duration over a bar, which is full at `most`."""
    if seconds is None:
        return "<td></td>"
    share = 100 * seconds / most if most else 0.0
    return f'<td class="r bar" style="--w:{share:.1f}%">{escaped(seconds_text(seconds))}</td>'


def _name(text: str) -> str:
    return f"<span dir=ltr>{escaped(shortened(text, 4 * LONGEST))}</span>"


def _origin(names: Sequence[str]) -> str:
    if not names:
        return '<span class="n">unnamed</span>'
    shown = "<br>".join(_name(shortened(str(n), LONGEST, keep_end=True)) for n in names[:NAMES])
    return shown + (f'<br><span class="n">and {len(names) - NAMES} more</span>' if len(names) > NAMES else "")
