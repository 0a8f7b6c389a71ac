"""The compiler's choices against measured ones: python -m benchmarks.choices --networks DIR [NAME ...]

Every kernel that has candidates is measured with each of them, by itself (`opcel tune`). A network's row sums its
kernels, each as often as the network has it, as chosen and with the best candidate of each. The goal: choices within
5 % of the best, and no kernel over 15 %. Kernels over 5 % are listed with their best parameters.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.networks import machine_facts, names_in
from opcel_compiler.compilation import prepare
from opcel_compiler.search.tune import Found, tune

HERE = Path(__file__).parent
SUM_GOAL, ONE_GOAL = 1.05, 1.15


def network_row(name: str, found: Sequence[Found]) -> dict[str, Any]:
    """The sums, and the kernels whose choice is over a goal, the worst first."""
    chosen, best = sum(f.count * f.chosen_s for f in found), sum(f.count * f.best_s for f in found)
    over = sorted((f for f in found if f.gain > SUM_GOAL), key=lambda f: -f.gain)
    return {
        "network": name, "kernels": len(found), "chosen_s": chosen, "best_s": best,
        "ratio": chosen / best if best else 1.0, "worst": max((f.gain for f in found), default=1.0),
        "over": [
            {"kernel": f.text, "origin": list(f.kernel.origin[:2]), "family": f.kernel.family, "gain": f.gain,
             "seconds": f.count * (f.chosen_s - f.best_s), "params": {"family": f.family, **f.params}}
            for f in over
        ],
    }  # fmt: skip


def is_good(row: dict[str, Any]) -> bool:
    return bool(row["ratio"] <= SUM_GOAL and row["worst"] <= ONE_GOAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: all in the folder)")
    parser.add_argument("--networks", type=Path, default=HERE / "networks", metavar="DIR", help="where they lie")
    parser.add_argument("--target", default="host")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, metavar="N", help="for each network (default: all kernels)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    print(f"{'network':22} {'kernels':>7} {'chosen ms':>10} {'best ms':>9} {'sum':>6} {'worst':>6}")
    for name in names_in(args.networks, args.names):
        work = prepare(args.networks / f"{name}.onnx", args.target, precision=args.precision)
        assert work.program is not None
        row = network_row(name, list(tune(work.program, work.target, args.threads, args.seconds)))
        rows.append(row)
        print(
            f"{name:22} {row['kernels']:7} {1e3 * row['chosen_s']:10.3f} {1e3 * row['best_s']:9.3f} "
            f"{row['ratio']:6.3f} {row['worst']:6.3f}{'' if is_good(row) else '  over the goal'}", flush=True,
        )  # fmt: skip
        for over in row["over"]:
            print(f"  {over['gain']:.2f} {1e6 * over['seconds']:8.0f} us {over['family']} {', '.join(over['origin'])}")
            print(f"       {over['kernel']}\n       {over['params']}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine_facts(), "rows": rows}, indent=1) + "\n")
    sys.exit(0 if all(map(is_good, rows)) else 1)


if __name__ == "__main__":
    main()
