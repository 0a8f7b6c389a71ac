"""The tables of docs/performance.md, made of up to three runs of benchmarks.performance.

A section's table stands between `<!-- begin SECTION -->` and `<!-- end SECTION -->`; what is around stays by hand.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.tables import table

Runs = Sequence[Mapping[str, Any]]
Rows = list[Mapping[str, Any]]


def fill(page: str, runs: Runs) -> str:
    """The page with every table between markers made anew. Raises ValueError for a marker that is not closed, or of a
    section that no run has."""
    begun = re.findall(r"<!-- begin (\S+) -->", page)
    for name in begun:
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = section(name, [run["sections"][name] for run in runs if name in run["sections"]])
        page, found = pattern.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", page)
        if found != 1:
            raise ValueError(f"the marker of {name} is not closed, or there twice")
    return page


def section(name: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """One section's table. Raises ValueError when no run has the section."""
    if not facts:
        raise ValueError(f"no run has the section {name}")
    if all("skipped" in run for run in facts):
        return f"Not measured: {facts[0]['skipped']}."
    grouped = by_label(facts)
    if name == "compile":
        return compile_table(grouped)
    if name == "tiny":
        return tiny_table(facts)
    text = ratio_table(grouped, "p99_ratio" if name == "p99" else "ratio")
    most = max((run["of"] for run in facts if "geomean" in run), default=0)
    if not most:
        return text
    means = [run for run in facts if run.get("of") == most]  # a run of some networks has no mean of all
    values = ", ".join(f"{run['geomean']:.3f}" for run in means)
    median = statistics.median(run["geomean"] for run in means)
    worst = min(means, key=lambda run: run["worst_ratio"])
    return (
        f"{text}\n\nGeometric mean of {means[0]['of']} rows, each ratio capped at {figures.CAP:g}: {values}; median "
        f"{median:.3f}. Worst: {worst['worst']}, {worst['worst_ratio']:.2f}."
    )


def by_label(facts: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """The rows of all runs by what they are of, in the order of the first run that has them."""
    out: dict[str, Rows] = {}
    for run in facts:
        for row in run["rows"]:
            out.setdefault(figures.label(row), []).append(row)
    return out


def ratio_table(grouped: Mapping[str, Rows], key: str) -> str:
    """Ours and the other engines' percentiles in the run whose ratio is the median, and each run's ratio."""
    count = max(len(rows) for rows in grouped.values())
    engines = {e["engine"]: e["title"] for rows in grouped.values() for row in rows for e in row["engines"]}
    shares = any("bandwidth_share" in e for rows in grouped.values() for row in rows for e in row["engines"])
    head = ["network", *(f"{title} P50 / P95 / P99 ms" for title in engines.values())]
    head += [
        *(f"run {i + 1}" for i in range(count)),
        "median",
        "of the bandwidth" if shares else "of the floor",
        "within",
    ]
    body = []
    for name, rows in grouped.items():
        good = [row for row in rows if row.get(key) is not None]
        if not good:
            body.append([name, *["-"] * (len(head) - 2), rows[0].get("error", "-").replace("|", "/")])
            continue
        ratios = [float(row[key]) for row in good]
        shown = good[ratios.index(statistics.median_low(ratios))]
        measured = {e["engine"]: e for e in shown["engines"] if not e.get("error")}
        ours = figures.ours(shown)
        share = ours.get("bandwidth_share", shown["floor_share"])
        each = [f"{value:.2f}" for value in ratios] + ["-"] * (count - len(ratios))
        inside = all(figures.ours(row).get("within", True) for row in good)
        body.append([
            name, *(_percentiles(measured.get(engine)) for engine in engines), *each,
            f"**{statistics.median(ratios):.2f}**", f"{share:.0%}", "yes" if inside else "NO",
        ])  # fmt: skip
    return table(head, body)


def _percentiles(engine: Mapping[str, Any] | None) -> str:
    if engine is None:
        return "-"
    return " / ".join(figures.milliseconds(engine[key]) for key in ("p50_s", "p95_s", "p99_s"))


def compile_table(grouped: Mapping[str, Rows]) -> str:
    """Seconds, the median over the runs, and the last run's sizes."""
    body = []
    for name, rows in grouped.items():
        good = [row for row in rows if "cold_s" in row]
        if not good:
            body.append([name, "-", "-", "-", "-", rows[0].get("error", "-")])
            continue
        last = good[-1]
        cold, warm = (statistics.median(row[key] for row in good) for key in ("cold_s", "warm_s"))
        sizes = [f"{last[key] / 1e6:.1f}" for key in ("artifact_bytes", "model_bytes", "transformed_bytes")]
        body.append([name, f"{cold:.1f}", f"{warm:.2f}", *sizes])
    return table(["model", "cold s", "warm s", "artifact MB", "parameters MB", "added by transformed weights MB"], body)


def tiny_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """Theirs over ours by threads and pair of calls, each run's and the median, and the last run's percentiles."""
    rows = [row for run in facts for row in run["rows"] if "tiny" in row]
    body = []
    for threads in dict.fromkeys(row["threads"] for row in rows):
        same = [row["tiny"] for row in rows if row["threads"] == threads]
        for pair in dict.fromkeys(pair for found in same for pair in found["ratios"]):
            values = [found["ratios"][pair] for found in same if pair in found["ratios"]]
            engines = same[-1]["engines"]
            spans = [
                " / ".join(f"{engines[name][key]:.2f}" for key in ("p50_us", "p99_us"))
                if "p50_us" in engines.get(name, {})
                else "-"
                for name in pair.split("/")
            ]
            each = ", ".join(f"{value:.2f}" for value in values)
            body.append([str(threads), *pair.split("/"), *spans, each, f"**{statistics.median(values):.2f}**"])
    head = ["threads", "ours", "theirs", "ours P50 / P99 us", "theirs P50 / P99 us", "runs", "median"]
    return table(head, body)


def load(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The runs in files of benchmarks.performance."""
    return [json.loads(file.read_text()) for file in files]
