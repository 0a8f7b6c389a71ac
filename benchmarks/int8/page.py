"""The page of figures in 8 bits, made of what benchmarks.int8 and benchmarks.accuracy wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import figures
from benchmarks.int8.metrics import LOWER_IS_BETTER
from benchmarks.tables import table

Facts = Mapping[str, Any]


def figure(row: Facts, values: Mapping[str, float]) -> str:
    """The figure that a row is judged by: a share in percent, a divergence as it is."""
    value = values[row["figure"]]
    return f"{value:.2g}" if row["figure"] in LOWER_IS_BETTER else f"{100 * value:.2f} %"


def page(accuracy: Facts, speed: Facts | None, same_file: str = "") -> str:
    """Markdown; `same_file` is the section that benchmarks.same_file wrote."""
    parts = ["# In 8 bits", _made(accuracy)]
    if speed:
        parts += ["## Speed", _speed_words(speed), speed_table(speed)]
    if same_file:
        parts.append(same_file.rstrip())
    parts += ["## Accuracy", ACCURACY, accuracy_table(accuracy)]
    if failed := [row for row in accuracy["rows"] if row.get("failed")]:
        parts += ["Peers that could not quantize a network:", "\n".join(map(_failures, failed))]
    if short := [row for row in accuracy["rows"] if row["short"]]:
        parts += ["Short of the bounds:", "\n".join(f"- {row['network']}: {', '.join(row['short'])}" for row in short)]
    return "\n\n".join(parts) + "\n"


ACCURACY = """Each network is trained, and each is judged on real data that it was not calibrated on: by labels where
there are any (`accuracy`), else by agreement with the float network. `outliers` and `rescaled` are the same functions
in forms that are harder to quantize. Ours is the default recipe, judged and timed as one artifact; ONNX Runtime's is
the better of its minimum-maximum and percentile ranges. Times are milliseconds a call."""


def _made(facts: Facts) -> str:
    machine = facts["machine"]
    versions = ", ".join(f"{key} {machine[key]}" for key in ("onnxruntime", "openvino") if key in machine)
    return (
        f"Made by `python -m benchmarks.accuracy` and `python -m benchmarks.int8` on {machine['cpu']}, "
        f"{machine['cpus']} cores, {facts['date']}; {versions}."
    )


def _speed_words(speed: Facts) -> str:
    words = (
        f"Batch 1, {speed['threads']} threads, engines by turns in processes of their own. The ratio is the best "
        "peer's time over ours, with its quartiles over the rounds."
    )
    if "geomean" not in speed:
        return words
    return f"{words} The mean, each capped at 2, is {speed['geomean']:.2f}; the least is {speed['worst_ratio']:.2f}."


def speed_table(speed: Facts) -> str:
    engines = ("opcel", "opcel-f32", "openvino-int8", "openvino-int8-bf16", "ort-int8")
    head = ["network", "ours", "ours in f32", "OpenVINO", "OpenVINO, rest bf16", "ONNX Runtime", "ratio", "over f32"]
    rows = []
    for row in speed["rows"]:
        if "error" in row:
            continue
        found = {e["engine"]: figures.milliseconds(e["p50_s"]) for e in row["engines"] if e.get("p50_s")}
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})" if "ratio" in row else "-"
        over = f"{row['over_f32']:.2f}" if "over_f32" in row else "-"
        rows.append([row["network"], *(found.get(e, "-") for e in engines), ratio, over])
    return table(head, rows)


def accuracy_table(facts: Facts) -> str:
    rows = []
    for row in facts["rows"]:
        if "error" in row:
            continue
        engines = row["engines"]
        ways = [engines[way] for way in ("ort-minmax", "ort-percentile") if way in engines]
        best = _best(row, ways)
        times = [_time(engines.get(way, {})) for way in ("opcel", "nncf", "ort-minmax")]
        rows.append([
            row["network"], row["figure"], str(row["samples"]), figure(row, row["float"]),
            figure(row, engines["opcel"]["figures"]), _of(row, engines.get("nncf")), _of(row, best),
            f"{row['integer_share']:.0%}", *times,
        ])  # fmt: skip
    head = [
        "network",
        "figure",
        "samples",
        "float",
        "ours",
        "NNCF",
        "ONNX Runtime",
        "in integers",
        "ours, ms",
        "NNCF, ms",
    ]
    return table([*head, "ONNX Runtime, ms"], rows)


NAMES = {"nncf": "NNCF", "ort-minmax": "ONNX Runtime", "ort-percentile": "ONNX Runtime, percentile"}


def _failures(row: Facts) -> str:
    said = [f"{NAMES.get(way, way)}: `{' '.join(why.split())}`" for way, why in row["failed"].items()]
    return f"- {row['network']}: {'; '.join(said)}"


def _best(row: Facts, ways: list[Any]) -> Any:
    sign = 1 if row["figure"] in LOWER_IS_BETTER else -1
    return min(ways, key=lambda engine: sign * engine["figures"][row["figure"]], default=None)


def _of(row: Facts, engine: Any) -> str:
    return figure(row, engine["figures"]) if engine else "-"


def _time(engine: Mapping[str, Any]) -> str:
    return figures.milliseconds(engine["p50_s"]) if "p50_s" in engine else "-"
