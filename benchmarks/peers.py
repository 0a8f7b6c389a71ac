"""The benchmark networks beside ONNX Runtime and OpenVINO: python -m benchmarks.peers [NAME ...]

The networks are those of `python -m benchmarks.export`, made at first use where PyTorch is installed. A row tells the
ratio of our time to that of either engine (below 1 is faster), what part of our time the machine's own floor is, and
how far outputs are from ONNX Runtime's unoptimized ones. The floor is the network's FLOPs at the peak of
multiply-adds, measured in the same run, or reading its weights once, whichever takes longer: docs/measuring.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import export
from benchmarks.networks import machine_facts, measure_network, names_in
from opcel_compiler.bench.bounds import program_bound
from opcel_compiler.bench.machine import Machine
from opcel_compiler.bench.measure import as_dict
from opcel_compiler.driver import FallbackError
from opcel_compiler.errors import OpcelError

HERE = Path(__file__).parent
PEERS = ("ort", "openvino")
HEADER = (
    f"{'network':20} {'ours ms':>8} {'ORT ms':>8} {'ratio':>6} {'quartiles':>11} {'OV ms':>8} {'ratio':>6} "
    f"{'quartiles':>11} {'floor':>6} {'by':8} {'MB':>5}  outputs"
)
SLOWEST = 1.5
"""A network that takes longer than this times ONNX Runtime is a defect."""


def networks(folder: Path, names: list[str]) -> list[str]:
    """The networks to measure; makes what is missing where that is possible."""
    wanted = names or list(export.NETWORKS)
    missing = [n for n in wanted if n in export.NETWORKS and not (folder / f"{n}.onnx").exists()]
    if missing:
        export.export_all(missing, folder, export.Settings())
    return names_in(folder, wanted)


def measured(folder: Path, name: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One network's row, as JSON holds it."""
    with Machine(args.threads) as machine:
        settings = {"threads": args.threads, "rounds": args.rounds, "idle": machine.sample}
        try:
            result, report = measure_network(folder, name, work, args.against, **settings)
            fallback = 0
        except FallbackError:
            result, report = measure_network(folder, name, work, args.against, fallback="allow", **settings)
            fallback = len(report["fallback"])
        bound = program_bound(report, {}, machine)
        return {
            "network": name, **as_dict(result), "fallback_nodes": fallback, "peak_flops": machine.peak,
            "floor_s": bound.seconds, "floor_by": bound.by, "floor_share": bound.seconds / result.ours.p50_s,
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    by_name = {engine["engine"]: engine for engine in row["engines"]}
    ours = by_name["opcel"]
    text = f"{row['network']:20} {1e3 * ours['p50_s']:8.3f}"
    for peer in PEERS:
        facts = by_name.get(peer, {})
        if "ratio" in facts:
            span = f"{facts['ratio_low']:.3f}-{facts['ratio_high']:.3f}"
            text += f" {1e3 * facts['p50_s']:8.3f} {facts['ratio']:6.3f} {span:>11}"
        else:
            text += f" {'-':>8} {'-':>6} {'-':>11}"
    worst = max((o["max_abs"] for o in ours["outputs"]), default=0.0)
    text += f" {row['floor_share']:6.1%} {row['floor_by']:8} {ours['peak_bytes'] / 1e6:5.0f}"
    text += f"  {'within, ' if ours['within'] else 'OUTSIDE THE BOUND, '}largest error {worst:.2g}"
    return text + (f"; {row['fallback_nodes']} nodes in ONNX Runtime" if row["fallback_nodes"] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: all of benchmarks.export)")
    parser.add_argument("--networks", type=Path, default=HERE / "networks", metavar="DIR", help="where they lie")
    parser.add_argument("--against", default=",".join(PEERS), help=f"engines (default: {','.join(PEERS)})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    default = HERE / "results" / "peers.json"
    parser.add_argument("--json", type=Path, default=default, metavar="FILE", help=f"default: {default}")
    args = parser.parse_args()
    args.against = tuple(name for name in args.against.split(",") if name)
    names = networks(args.networks, args.names)
    print(f"{args.threads} threads, {args.rounds} rounds; ratio = ours / theirs; floor = the machine's / ours")
    print(HEADER)
    rows, good = [], True
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as work:
                row = measured(args.networks, name, Path(work), args)
        except OpcelError as error:
            print(f"{name:20} {error}", flush=True)
            good = False
            continue
        rows.append(row)
        print(line(row), flush=True)
        for engine in row["engines"]:
            if engine.get("error"):
                print(f"{'':20} {engine['title']}: {engine['error']}")
            good &= engine["engine"] != "opcel" or engine["within"]
            if engine["engine"] == "ort" and engine.get("ratio", 0) > SLOWEST:
                print(f"{'':20} slower than {SLOWEST} times ONNX Runtime")
                good = False
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine_facts(), "rows": rows}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"written to {args.json}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
