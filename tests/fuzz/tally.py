"""Fuzz runs as a table: python -m tests.fuzz.tally [RECORD...]

Adds the runs of RECORDs, files that `--record` wrote, to docs/fuzz-runs.json, and puts the table of all into
docs/hardening.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.__main__ import NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUNS, PAGE = DOCS / "fuzz-runs.json", DOCS / "hardening.md"
BEGIN, END = "<!-- fuzz runs -->\n", "<!-- end of fuzz runs -->\n"


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each target: all executions, those since the last run that found something, and their seeds."""
    head = "| target | executions | runs | accepted | since the last finding | seeds | slowest |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for target in NAMES:
        own = [run for run in runs if run["target"] == target]
        if not own:
            continue
        last = max((i for i, run in enumerate(own) if run["failures"] or run["deaths"]), default=-1)
        clean = own[last + 1 :]
        seeds, slowest = ", ".join(str(run["seed"]) for run in own), max((run["slowest"] for run in clean), default=0)
        rows.append(
            f"| `{target}` | {sum(run['executions'] for run in own):,} | {len(own)} "
            f"| {sum(run['accepted'] for run in own):,} | {sum(run['executions'] for run in clean):,} "
            f"| {seeds} | {slowest:.2f} s |"
        )
    return "\n".join(rows) + "\n"


def page(text: str, runs: list[dict[str, Any]]) -> str:
    """The page `text` with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table(runs) + END + rest.partition(END)[2]


def main() -> None:
    runs = json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.exists() else []
    for name in sys.argv[1:]:
        found = map(json.loads, Path(name).read_text(encoding="utf-8").splitlines())
        known = {(run["target"], run["seed"]) for run in runs}
        runs += [run for run in found if (run["target"], run["seed"]) not in known]
    RUNS.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
