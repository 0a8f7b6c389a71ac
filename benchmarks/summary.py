"""The pages of measured results, from benchmarks/results.

python -m benchmarks.summary > docs/results.md
python -m benchmarks.summary --into docs/performance.md performance-*.json    fills the tables between its markers
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import performance_page
from benchmarks.tables import table

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def compile_time() -> str:
    rows = [
        [r["model"], f"{r['cold_s']:.1f}", f"{r['warm_s']:.2f}", f"{r['peak_mib']:.0f}", f"{r['model_mib']:.0f}",
         f"{250e6 / 2**20 + 1.5 * r['model_mib']:.0f}", f"{r['children_peak_mib']:.0f}"]
        for r in load("compile.json")
    ]  # fmt: skip
    return table(["model", "cold s", "warm s", "our peak MiB", "model MiB", "allowed MiB", "children MiB"], rows)


def startup() -> str:
    s = load("startup-bert_base.json")
    ours, theirs, c = s["opcel"], s["onnxruntime"], s["c_program"]
    return (
        f"BERT-base, warm page cache, medians of {s['rounds']} fresh processes: open {ours['open_ms']:.1f} ms (mapped) "
        f"against {theirs['open_ms']:.0f} ms; first result less a steady run {ours['start_up_ms']:.1f} ms against "
        f"{theirs['start_up_ms']:.0f} ms, a ratio of {s['start_up_ratio']:.3f}. A C program built from `opcel.h` alone "
        f"peaks at {c['peak_mib']:.0f} MiB; the weights have {c['weights_mib']:.0f} and the arena {c['arena_mib']:.1f} "
        "(rows of the embedding table that are not looked up are never read)."
    )


def dynamic() -> str:
    facts = load("dynamic.json")
    worst = max(facts["right"], key=lambda r: r["relative_l2"])
    beside = "; ".join(
        f"{sizes(r)}: {r['ratio']:.3f} ({r['ratio_low']:.3f}-{r['ratio_high']:.3f})" for r in facts["specialized"]
    )
    (changing,) = facts["changing"]
    names = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
    shares = "; ".join(
        f"{names[e]} {v:.2f} times our time ({changing['totals'][e]:.2f} over all calls)"
        for e, v in changing["ratios"].items()
    )
    good = all(r["within"] for r in facts["right"])
    within = "all within" if good else "NOT ALL WITHIN"
    return (
        f"One artifact of {facts['network']}, {facts['threads']} threads. At {len(facts['right'])} sizes, the corners "
        f"among them, its results are {within} the bound; largest relative L2 error {worst['relative_l2']:.1e}.\n"
        f"Its time over that of an artifact compiled for the size alone: {beside}.\n"
        f"With other sizes at each of {changing['calls']} calls (medians of blocks): {shares}."
    )


def trees() -> str:
    rows = [
        [r["model"], str(r["rows"]), str(r["threads"]), *(f"{r[k]:.1f}" for k in ("opcel_us", "ort_us")),
         f"{r['ratio']:.2f}", f"{r['error']:.1e}"]
        for r in load("trees.json")
    ]  # fmt: skip
    return table(["model", "rows", "threads", "ours µs", "ONNX Runtime µs", "ratio", "largest difference"], rows)


def sizes(row: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in row.items() if isinstance(v, int))


def models() -> str:
    rows = load("models.json")
    counts = Counter(r["status"] for r in rows)
    told = [
        [
            r["file"],
            r["status"],
            (r.get("why") or f"max {r['max_abs']:.2g}, L2 {r['relative_l2']:.2g}")
            .split("\n")[0][:150]
            .replace("|", "/"),
        ]
        for r in rows
        if r["status"] != "within"
    ]
    fallen = [
        [r["file"], r["status"], "; ".join(r["fallback"])[:200].replace("|", "/")] for r in rows if r.get("fallback")
    ]
    agreed, slowest = sum(r["check_agrees"] for r in rows), max(r["check_s"] for r in rows)
    told_counts = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    return (
        f"{len(rows)} files: {told_counts}. `opcel check` foretold {agreed} of them, the slowest in {slowest:.1f} s. "
        "Those not within:\n\n"
        + table(["file", "status", "why, or errors"], told)
        + "\n\nCompiled with regions in ONNX Runtime:\n\n"
        + table(["file", "status", "operators and reasons"], fallen)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="the page with markers, rewritten in place")
    parser.add_argument("runs", nargs="*", type=Path, help="what benchmarks.performance wrote, at different times")
    args = parser.parse_args()
    if args.into is None:
        results()
    else:
        filled = performance_page.fill(args.into.read_text(), performance_page.load(args.runs))
        args.into.write_text(filled)


def results() -> None:
    """Print docs/results.md."""
    machine = load("dynamic.json")["machine"]
    facts = ", ".join(f"{k} {v}" for k, v in machine.items() if isinstance(v, (str, int)))
    print(f"""# Measured results

Made by `python -m benchmarks.summary` from `benchmarks/results/`. The machine: {facts}. It is shared, so ratios
count and single times do not; [measuring.md](measuring.md) says how they are made. Beside other
engines: [performance.md](performance.md). In brackets: quartiles over the rounds.

## One artifact for many sizes

`python -m benchmarks.export --dynamic DIR minilm`, then
`python -m benchmarks.dynamic DIR/minilm.onnx --json benchmarks/results/dynamic.json`

{dynamic()}

## Tree ensembles

Depth 8, 30 features, other rows at each call, from Python; a ratio is ONNX Runtime's time over ours.
`python -m benchmarks.trees --json benchmarks/results/trees.json`

{trees()}

## Start-up and memory

`python -m benchmarks.startup bert_base.onnx bert_base.npz --json benchmarks/results/startup-bert_base.json`

{startup()}

## Compiling

`python -m benchmarks.compile_time MODEL.onnx ... --json benchmarks/results/compile.json`. Allowed: 250 MB and 1.5 times
the model.

{compile_time()}

## Stored models

`python -m benchmarks.models FOLDER --json benchmarks/results/models.json`. `loose`: outside the bound, but within 4
times what ONNX Runtime's own optimizations change.

`fns_candy` normalizes images of 720 x 720 fifteen times over. One such layer is 2.8e-5 off float64 in ONNX Runtime and
2.1e-6 in ours (`python -m benchmarks.instance_norm`), so most of its row is the reference's own error.

{models()}""")


if __name__ == "__main__":
    main()
